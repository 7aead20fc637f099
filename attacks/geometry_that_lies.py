"""Sizes that the tensors do not have; sizes by layer whose tensors are others, none, or without end."""

from forge import described, show

sizes = {"layers": 2, "kv_heads": 1, "key_dim": 4, "value_dim": 4}
for change in (
    {"layers": 3},
    {"kv_heads": [1, 1]},
    {"kv_heads": [0, 0]},
    {"kv_heads": [1, 1], "layers": 10**12},
    {"kv_heads": [1] * 3},
    {"key_dim": [4, -4]},
    {"key_dim": [4, 4.0]},
    {"value_dim": [[4], [4]]},
):
    show(described(geometry={"decoder": {**sizes, **change}}))
show(described(geometry={"../decoder": {**sizes, "kv_heads": [1, 1]}}))
show(described(geometry={}))
