"""Prefixes from and for other libraries: PEFT, adapters, the original code, the Hugging Face Hub.

Each import ends in a `Prefix` like any other; what was kept by another rule (positions, layout, a
network that makes the keys) is converted here, once, and refused where it can't be.
"""

from __future__ import annotations

from foreword.interop.adapters import import_adapters
from foreword.interop.hub import export_hub, import_hub
from foreword.interop.original import import_prefix_tuning
from foreword.interop.peft import export_peft, import_peft

__all__ = [
    "export_hub",
    "export_peft",
    "import_adapters",
    "import_hub",
    "import_peft",
    "import_prefix_tuning",
]
