"""Tensors by layer: of other names, layers left out, alike or of several lengths, empty, or not finite."""

from typing import Any

import safetensors.torch
import torch
from forge import assemble, good_file, parts, show

_, description, _ = parts(good_file())
GOOD = {"decoder.key.0": (2, 3, 4), "decoder.key.1": (1, 3, 4)}


def file(keys: dict[str, tuple[int, ...]], filled: float = 1.0, **sizes: Any) -> bytes:
    """A file of such keys, and of values like them."""
    tensors = {
        name.replace("key", part): torch.full(shape, filled)
        for name, shape in keys.items()
        for part in ("key", "value")
    }
    header, _, data = parts(safetensors.torch.save(tensors, metadata={"foreword": "{}"}))
    header.pop("__metadata__")
    geometry = {"layers": 2, "kv_heads": [2, 1], "key_dim": 4, "value_dim": 4, **sizes}
    return assemble(header, {**description, "geometry": {"decoder": geometry}}, data)


show(file(GOOD, filled=float("nan")))
show(file({**GOOD, "decoder.key.2": (1, 3, 4)}))
show(file({"decoder.key.0": (2, 3, 4)}))
show(file({"decoder.key.0": (2, 3, 4), "decoder.key.01": (1, 3, 4)}))
show(file({"decoder.key.0": (2, 3, 4), "decoder.key.-1": (1, 3, 4)}))
show(file({**GOOD, "decoder.key": (2, 1, 3, 4)}))
show(file({**GOOD, "decoder.key.1": (1, 2, 4)}))
show(file({**GOOD, "decoder.key.1": (2, 3, 4)}, kv_heads=[2, 2]))
show(file({"decoder.key.0": (2, 3, 4)}, kv_heads=[2, 0]))
show(file(GOOD, key_dim=[4, 8]))
