"""Training files: JSON lines, conversations, tables, E2E's lines, DART's JSON, WebNLG's XML; read and encoded."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foreword.encoding import encode
from foreword.errors import ForewordError
from foreword.examples import Example, Preference
from foreword.examples.example import digest
from foreword.examples.readers import read_examples
from foreword.examples.triples import read_dart, read_webnlg
from foreword.serving.jobs.uploads import parse
from foreword.training.preference import encode_preferences
from fuzz.harness import Target
from fuzz.mutations import changed, damaged, dumps
from fuzz.prefix_files import served

PLAIN = {"source": "The food was good.", "target": "Thanks!", "owner": "alice"}
LISTS = {"source": ["One.", "Two."], "target": ["a", "b"]}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "weight": 1},
    ],
    "owner": 7,
}
PREFERENCES = (
    {
        "input": {"messages": CHAT["messages"], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "hi, you"}],
        "non_preferred_output": [{"role": "assistant", "content": "hi"}],
    },
    {"prompt": "hello", "chosen": "hi, you", "rejected": "hi", "owner": "alice"},
    {"chosen": CHAT["messages"], "rejected": [*CHAT["messages"][:2], {"role": "assistant", "content": "no"}]},
)
DART = {"tripleset": [["a", "B", "c"]], "annotations": [{"text": "a c", "source": "x"}]}
TABLES = (
    'source,target,owner\nhello,"hi, you",alice\n',
    "source;target\nhello;hi\n",
    'mr,ref\n"name[The Vaults], eatType[pub]",A pub.\n',
    "name : The Vaults | Type : pub || A pub.\n",
)
XML = (
    '<?xml version="1.0"?><benchmark><entries><entry category="A" eid="1"><modifiedtripleset><mtriple>a | b | c'
    '</mtriple></modifiedtripleset><lex comment="good">a c</lex></entry></entries></benchmark>'
)
BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)


def make(rng: random.Random) -> bytes:
    """A byte for the kind of file, and the file."""
    kind = rng.choice("jjjjjjccppptdx")
    if kind in "jcp":
        good = CHAT if kind == "c" or rng.random() < 0.2 else rng.choice((PLAIN, LISTS))
        good = rng.choice(PREFERENCES) if kind == "p" else good
        lines = [
            dumps(changed(good, rng, 1) if rng.random() < 0.6 else good, rng)
            for _ in range(rng.choice((1, 2, 3)))
        ]
        text = "\n".join(lines) + rng.choice(("\n", "", "\r\n", "\n\n"))
    elif kind == "t":
        text = rng.choice(TABLES)
    elif kind == "d":
        text = dumps([changed(DART, rng, rng.choice((1, 1, 2))) for _ in range(2)], rng)
    else:
        text = rng.choice(("", "", BOMB)) + XML.replace("a c", rng.choice(("a c", "&i;", "&#0;", "&x;")))
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < (0.8 if kind in "tx" else 0.15):
        content = damaged(content, rng)
    return kind.encode() + content


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="foreword-fuzz-"))


READERS: dict[bytes, Callable[[Path], object]] = {
    b"t": lambda path: read_examples(path),
    b"d": read_dart,
    b"x": read_webnlg,
}


def run(content: bytes) -> str:
    kind, content = content[:1], content[1:]
    if kind in READERS:
        path = _folder() / "data"
        path.write_bytes(content)
        READERS[kind](path)
        return f"taken ({kind.decode()})"
    _encoded(parse(content, "mine.jsonl"))
    return "taken"


def _encoded(examples: Sequence[Example | Preference]) -> None:
    """As training does it."""
    digest(examples)
    json.dumps([example.owner for example in examples])
    for template in (served().template, served().chat_template):
        preferences = [each for each in examples if isinstance(each, Preference)]
        plain = [each for each in examples if isinstance(each, Example)]
        try:
            encode(plain, served().tokenizer, template, limit=64)
            encode_preferences(preferences, served().tokenizer, template, limit=64)
        except ForewordError:
            continue


TARGET = Target("training-files", make, run, share=0.25)
