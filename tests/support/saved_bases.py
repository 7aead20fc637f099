"""Base models in folders, as a user has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.stand_ins import byte_tokenizer, tiny_llama

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)

TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)
"""The same with tools, whose calls are written as Hermes and Qwen do."""


def save_tiny(folder: Path, template: str = CHAT_TEMPLATE, **changes: Any) -> Path:
    """Save a tiny model with a tokenizer that has a chat template."""
    tiny_llama(**changes).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
