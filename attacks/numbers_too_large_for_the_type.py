"""Numbers of 64 bits that are infinite in the 32 or 16 bits a base computes in: finite in the file alone.

The reader takes such a file: whether it fits is a question of the base, and `Prefix.check_dtype` answers it.
"""

import torch
from forge import show_used

from foreword import Prefix
from foreword.prefix import BaseIdentity

for number, dtype in ((1e300, torch.float32), (1e38, torch.float16), (-1e39, torch.bfloat16)):
    tensors = {
        f"decoder.{part}": torch.full((2, 1, 3, 4), number, dtype=torch.float64) for part in ("key", "value")
    }
    content = Prefix(tensors, BaseIdentity("a-model")).to_bytes()
    show_used(content, lambda prefix, dtype=dtype: prefix.check_dtype(dtype))
