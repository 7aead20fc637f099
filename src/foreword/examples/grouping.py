"""When two sources are the same."""

from __future__ import annotations

import json

from foreword.template import Source


def source_key(source: Source) -> tuple[bool, str]:
    """Equal for equal sources, and for no others; texts and messages never are."""
    is_text = isinstance(source, str)
    return is_text, str(source) if is_text else json.dumps(source)
