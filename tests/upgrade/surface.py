"""What callers can write: the calls, names and command lines that the fixtures record and the tests repeat."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foreword import BaseModel, Example, Prefix, Template, generate, train, train_many
from foreword.evaluation import evaluate

FIXTURES = Path(__file__).parent / "fixtures"
REPOSITORY = Path(__file__).parents[2]
WORDS = ["abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx", "yzab", "cdef"]


def examples(count: int = 12, first: int = 0) -> list[Example]:
    """Examples that never change."""
    return [
        Example(f"{WORDS[i % 8]} {WORDS[(3 * i + 1) % 8]} {i}", f"{WORDS[(i * i) % 8]}!")
        for i in range(first, first + count)
    ]


def chats(count: int = 8) -> list[Example]:
    """Conversations that never change."""
    return [
        Example(({"role": "user", "content": example.source},), example.target)  # type: ignore[arg-type]
        for example in examples(count)
    ]


def digest(tensors: Any) -> str:
    """SHA-256 over the bytes of keys and values, in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def machine() -> dict[str, str]:
    """What arithmetic depends on, to the last bit."""
    model = "unknown"
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.M)
        model = found[1] if found else model
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": f"{platform.machine()} {model}",
    }


def mark_of(prefix: Prefix) -> float:
    """One number that tells prefixes apart: the sum of all numbers, each with a weight from -5 to 5."""
    whole = 0.0
    for _, tensor in sorted(prefix.tensors.items()):
        places = torch.arange(tensor.numel())
        whole += float((tensor.double().flatten() * ((places * 37 + places // 11) % 11 - 5)).sum())
    return whole


# -- calls, keyword by keyword -----------------------------------------------------------------

TRAIN: dict[str, dict[str, Any]] = {
    name: {name: value}
    for name, value in {
        "length": 3,
        "steps": 2,
        "batch_size": 3,
        "accumulate": 2,
        "learning_rate": 0.02,
        "warmup": 2.0,
        "weight_decay": 0.5,
        "clip": 0.0625,
        "parameterization": "mlp+start",
        "init": "text:some other text",
        "start": "$prefix",
        "dev": "$dev",
        "seed": 5,
        "by_source": True,
        "template": "$template",
        "placement": "infix",
        "layers": "first:1",
        "reduction": "sequence",
        "max_length": 12,
        "gradient_checkpointing": True,
        "packed": True,
        "checkpoint_dir": "$folder",
        "on_progress": "$function",
    }.items()
} | {
    "epochs": {"epochs": 1.5, "steps": None},
    "streams": {"streams": ("decoder", "cross"), "$base": "tiny-seq2seq"},
    "length by stream": {"length": {"encoder": 2, "decoder": 3, "cross": 1}, "$base": "tiny-seq2seq"},
    "embedding": {"parameterization": "embedding"},
    "demonstrations": {"init": "demonstrations"},
    "random": {"init": "random"},
    "evaluate_every": {"evaluate_every": 2, "dev": "$dev"},
    "patience": {"patience": 1, "evaluate_every": 1, "dev": "$dev"},
    "checkpoint_every": {"checkpoint_every": 1, "checkpoint_dir": "$folder"},
    "tensorboard": {"tensorboard": True, "checkpoint_dir": "$folder"},
    "labels": {"labels": {"a": "b"}, "$many": False},
    "licence": {"licence": "CC0-1.0", "$many": False},
}
TRAIN["tensorboard"]["$many"] = False
TRAIN_MANY: dict[str, dict[str, Any]] = {
    "places": {"places": 1},
    "pass_tokens": {"pass_tokens": 40},
    "isolated": {"isolated": True},
    "into": {"into": "$function"},
    "on_failure": {"on_failure": "$function"},
}
GENERATE: dict[str, dict[str, Any]] = {
    name: {name: value}
    for name, value in {
        "prefixes": "$prefix",
        "max_new_tokens": 3,
        "min_new_tokens": 5,
        "temperature": 0.5,
        "beams": 2,
        "stop": "a",
        "banned": ("a", "e"),
        "template": "$template",
        "raw": True,
        "batch_size": 1,
        "on_text": "$function",
        "on_progress": "$function",
    }.items()
} | {
    "top_p": {"temperature": 1.0, "top_p": 0.5},
    "top_k": {"temperature": 1.0, "top_k": 2},
    "seed": {"temperature": 1.0, "seed": 7},
    "length_penalty": {"beams": 3, "length_penalty": 2.0},
}
EVALUATE: dict[str, dict[str, Any]] = {
    name: {name: value}
    for name, value in {
        "prefix": "$prefix",
        "text": False,
        "metrics": (),
        "unseen": (),
        "template": "$template",
        "max_new_tokens": 3,
        "batch_size": 1,
        "on_progress": "$function",
        "beams": 2,
        "stop": "a",
    }.items()
}
TOKEN_LOSSES: dict[str, dict[str, Any]] = {
    "prefixes": {"prefixes": "$prefix"},
    "template": {"template": "$template"},
    "layout left": {"layout": "left"},
    "layout right": {"layout": "right"},
    "batch_tokens": {"batch_tokens": 20},
}


class Calls:
    """The public functions, each called with one keyword beside what it needs, and what comes out."""

    def __init__(self, bases: dict[str, BaseModel], prefix: Prefix, folder: Path) -> None:
        self._bases = bases
        self._prefix = prefix
        self._folder = folder
        self._number = 0

    def train(self, case: dict[str, Any]) -> float:
        """Mark of the trained prefix."""
        base, given = self._given({"steps": 3, "length": 4, **case})
        return mark_of(train(base, examples(), **given))

    def train_many(self, case: dict[str, Any]) -> float:
        """Marks of two owners' prefixes, summed."""
        base, given = self._given({"steps": 3, "length": 4, **case})
        if "dev" in given:
            given["dev"] = {"a": given["dev"]}
        kept = train_many(base, {"a": examples(6), "b": examples(5, 6)}, **given)
        return sum(mark_of(prefix) for prefix in kept.values())

    def generate(self, case: dict[str, Any]) -> list[str]:
        """Texts of three prompts."""
        base, given = self._given({"max_new_tokens": 8, **case})
        return generate(base, [str(e.source) for e in examples(3)], **given)

    def evaluate(self, case: dict[str, Any]) -> float:
        """The loss."""
        base, given = self._given({"max_new_tokens": 4, **case})
        return evaluate(base, examples(3), **given).loss

    def token_losses(self, case: dict[str, Any]) -> float:
        """The sum of all losses."""
        base, given = self._given(case)
        return sum(float(losses.sum()) for losses in base.token_losses(examples(3), **given))

    def _given(self, case: dict[str, Any]) -> tuple[BaseModel, dict[str, Any]]:
        given = {name: self._value(value) for name, value in case.items() if not name.startswith("$")}
        given = {name: value for name, value in given.items() if value is not None}
        return self._bases[case.get("$base", "tiny-llama")], given

    def _value(self, value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        self._number += 1
        return {
            "$prefix": self._prefix,
            "$dev": examples(4, 20),
            "$template": Template(separator=" -> ", end="<end>"),
            "$folder": self._folder / str(self._number),
            "$function": lambda *_: None,
        }[value]


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "train": TRAIN,
    "train_many": {name: case for name, case in TRAIN.items() if case.get("$many", True)} | TRAIN_MANY,
    "generate": GENERATE,
    "evaluate": EVALUATE,
    "token_losses": TOKEN_LOSSES,
}


# -- the command line --------------------------------------------------------------------------


def root_command() -> Any:
    """The command group that `foreword` runs."""
    import typer.main

    import foreword.cli

    found = foreword.cli.app
    # A module of that name may come to stand where the object was.
    return typer.main.get_command(getattr(found, "app", found) if not callable(found) else found)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its path, such as `store put`."""
    group = root_command() if group is None else group
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@functools.cache
def all_commands() -> dict[str, Any]:
    """Every command by its path; building them takes a moment."""
    return dict(commands())


def options_of(command: Any) -> list[dict[str, Any]]:
    """Its options and arguments as a caller writes them."""
    return [
        {
            "name": parameter.name,
            "kind": parameter.param_type_name,
            "spellings": sorted([*parameter.opts, *parameter.secondary_opts]),
            "flag": bool(getattr(parameter, "is_flag", False)),
            "multiple": bool(getattr(parameter, "multiple", False)),
            "nargs": parameter.nargs,
            "required": parameter.required,
            "variable": parameter.envvar,
        }
        for parameter in command.params
    ]


def parse(words: list[str]) -> None:
    """Parse a command line without running it; an error of click's if it is no command line."""
    known = all_commands()
    for size in (3, 2, 1):
        if (command := known.get(" ".join(words[:size]))) is not None:
            command.make_context(" ".join(words[:size]), list(words[size:]))
            return
    raise LookupError(f"no command: {words}")


def recorded(name: str) -> Any:
    """A JSON file of the fixtures."""
    return json.loads((FIXTURES / name).read_text())
