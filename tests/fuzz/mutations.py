"""Changes to JSON values, to text and to bytes, as somebody would make them who wants a reader to fail."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP = "[" * 3000 + "]" * 3000
RAW = {  # written as they stand, where Python's json has no value for them
    "@nan@": "NaN",
    "@inf@": "-Infinity",
    "@huge@": "1e999",
    "@long@": "9" * 5000,
    "@deep@": DEEP,
    "@-0@": "-0",
    "@esc@": '"\\ud83d"',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**32, 2**62, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, 0.5, -0.0, 1e308, 5e-324, 1.0, 2.0),
    *(
        "",
        "x",
        "0",
        "null",
        "\0",
        "\ud800",
        "é" * 70,
        "x" * 300,
        "x" * 70_000,
        "../../etc/passwd",
        " ",
        "\r\n",
    ),
    *("2026-02-30", "2026-11-30T25:00:00", "9999-99-99", "now", "float8_e4m3fn", "infix", "chat", "a/b"),
    *([], {}, [[]], [None], [0, 0], [{}], {"": 0}, {"x": {"y": []}}, [1, 2, 3], ["a", "b"], [[], []]),
    *RAW,
)
NAMES = (
    "",
    "x",
    "version",
    "dtype",
    "__metadata__",
    "decoder.key",
    "role",
    "source",
    "optional",
    "\ud800",
    "\0",
)
BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b'"',
    b"{",
    b"}",
    b"[",
    b",",
    b"\\u0000",
)


def dumps(value: Any, rng: random.Random) -> str:
    """As JSON, with what no value of Python stands for; sometimes with a key twice."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if "@" in text:
        for mark, raw in RAW.items():
            text = text.replace(f'"{mark}"', raw)
    if rng.random() < 0.02 and text.startswith('{"'):
        text = f"{{{text[1 : text.find(':') + 1]} 0, {text[1:]}"
    return text


def changed(value: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy of a JSON value with something in it replaced, removed, added or doubled."""
    made = copy.deepcopy(value)
    for _ in range(times):
        made = _changed_once(made, rng)
    return made


def _changed_once(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.01:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.65:
        del holder[key]
    elif kind < 0.75:
        if isinstance(holder, dict):
            name = rng.choice((*NAMES, *holder))
            holder[name] = holder.pop(key)
        else:
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
    elif kind < 0.83:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {str(key): holder[key]}
    elif kind < 0.9:
        if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        else:
            holder.append(copy.deepcopy(rng.choice(VALUES)))
    elif kind < 0.93 and isinstance(holder, dict):
        holder.update({f"k{number}": "x" for number in range(rng.choice((70, 2000)))})
    else:
        holder[key] = _near(holder[key], rng)
    return value


def _near(value: Any, rng: random.Random) -> Any:
    """A value of the same type, a little away."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 2**32, -(2**31)))
    if isinstance(value, float):
        return value * rng.choice((-1, 1e30, 1e-30))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(("\0", "\ud83d", "\n", "x" * 2000, "é", "")) + value[place + 1 :]
    if isinstance(value, list):
        return value[::-1] if rng.random() < 0.5 else value * rng.choice((2, 50))
    return value


def _places(value: Any) -> Any:
    """Every container of a JSON value with each key in it."""
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield value, index
            yield from _places(one)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, cut, doubled or put in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        place = rng.randrange(len(content) + 1)
        kind = rng.random()
        if kind < 0.3 and content:
            place = min(place, len(content) - 1)
            content = (
                content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
            )
        elif kind < 0.5:
            content = content[:place] + rng.choice(BYTES) + content[place:]
        elif kind < 0.65:
            content = content[:place] + content[place + rng.choice((1, 2, 8, 100)) :]
        elif kind < 0.75:
            content = content[:place]
        elif kind < 0.85:
            content = content[:place] + rng.randbytes(rng.choice((1, 4, 16))) + content[place:]
        else:
            other = rng.randrange(len(content) + 1)
            low, high = min(place, other), max(place, other)
            content = content[:high] + content[low:high][:2000] + content[high:]
    return content
