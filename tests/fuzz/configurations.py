"""Settings: a server's TOML, its environment and options; the options of training, as text and as plain data."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from foreword.cli.options import pairs
from foreword.serving import config
from foreword.training.settings import TrainingSettings
from foreword.validation import Setting, flat_settings, settings_of
from fuzz.harness import Target
from fuzz.mutations import VALUES, damaged

TEXTS = (
    *(
        "",
        " ",
        "none",
        "true",
        "0",
        "1",
        "-1",
        "8000",
        "65536",
        "1e999",
        "nan",
        "inf",
        "1_000",
        "٣",
        "0x10",
        "9" * 5000,
    ),
    *(
        "float16",
        "local",
        "vllm",
        "http://",
        "127.0.0.1",
        "0.0.0.0",
        "::1",
        "a=b",
        "a.b",
        "[]",
        "{}",
        "\0",
        "x" * 3000,
    ),
    *(
        "\ud800",
        "adamw",
        "mlp",
        "mlp(0)",
        "mlp(512)+start",
        "real words",
        "1,2",
        "decoder",
        "decoder=1",
        "decoder=x",
    ),
)
SERVER = tuple(each.name for each in settings_of(config.Configuration))
LIMITS = tuple(each.name for each in settings_of(config.Limits))
TRAINING: dict[str, Setting] = {each.name: each for each in flat_settings(TrainingSettings)}
SCALARS = (
    "true",
    "1",
    "-1",
    "1.5",
    "nan",
    "inf",
    '"x"',
    "[]",
    "{}",
    '"none"',
    "2026-11-30",
    "9" * 25,
    '"\\u0000"',
    "0x7f",
)


def make(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        names = [*TRAINING, *(alias for each in TRAINING.values() for alias in each.aliases), "x", ""]
        as_text = rng.random() < 0.5
        chosen = {
            rng.choice(names): rng.choice(TEXTS if as_text else VALUES)
            for _ in range(rng.choice((1, 1, 2, 4)))
        }
        return json.dumps({"text" if as_text else "training": chosen}).encode()
    toml = _toml(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        toml = damaged(toml, rng)
    given = {
        "toml": toml.decode("latin-1"),
        "environment": {
            f"FOREWORD_SERVE_{_name(rng).upper()}": rng.choice(TEXTS) for _ in range(rng.choice((0, 0, 1, 2)))
        },
        "set": [
            f"{_name(rng)}{rng.choice(('=', '=', '=', '', '=='))}{rng.choice(TEXTS)}"
            for _ in range(rng.choice((0, 0, 1)))
        ],
    }
    return json.dumps(given).encode()


def _name(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.75:
        return rng.choice(SERVER)
    if kind < 0.9:
        return f"limits{rng.choice(('.', '__'))}{rng.choice(LIMITS)}"
    return rng.choice(
        ("x", "", "limits.x", "limits.jobs.x", "key_limits.abc.jobs", "key_limits", ".", "a..b")
    )


def _toml(rng: random.Random) -> str:
    lines = [f"{rng.choice(SERVER)} = {rng.choice(SCALARS)}" for _ in range(rng.choice((0, 1, 1, 2)))]
    if rng.random() < 0.3:
        lines.append(f"[{rng.choice(('limits', 'key_limits.abc', 'key_limits', 'x', 'limits.x', 'base'))}]")
        lines += [
            f"{rng.choice((*LIMITS, 'x'))} = {rng.choice(SCALARS)}" for _ in range(rng.choice((0, 1, 2)))
        ]
    if rng.random() < 0.02:
        lines.append("a = " + "[" * 2000 + "]" * 2000)
    return "\n".join(lines)


@functools.cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="foreword-fuzz-")) / "server.toml"


def run(content: bytes) -> str:
    given: dict[str, Any] = json.loads(content)
    if "text" in given:
        TrainingSettings.from_mapping(
            {
                name: TRAINING[name].from_text(text) if name in TRAINING else text
                for name, text in given["text"].items()
            }
        )
        return "training options"
    if "training" in given:
        TrainingSettings.from_mapping(given["training"])
        return "training options"
    _file().write_bytes(given["toml"].encode("latin-1"))
    chosen = config.read(_file(), given["environment"], pairs(given["set"], "--set"))
    assert config.of(chosen.to_json()) == chosen
    return "server"


TARGET = Target("configurations", make, run, share=0.14)
