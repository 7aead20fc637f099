"""Base models in folders, as a user has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.stand_ins import byte_tokenizer, tiny_llama

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


def save_tiny(folder: Path, **changes: Any) -> Path:
    """Save a tiny model with a tokenizer that has a chat template."""
    tiny_llama(**changes).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


TOOL_TEMPLATE = (
    "{% if tools %}tools: {% for t in tools %}{{ t | tojson }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}t: {{ m['content'] }}\n"
    "{% else %}{{ m['role'][0] }}: {{ m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}<call>{{ c['function'] | tojson }}</call>{% endfor %}{{ '\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)
"""With tools, in about the form of Hermes."""
