"""Start-up: how long a person waits for help and for the first token, each in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.models import resolve
from foreword.research.bench import memory
from foreword.research.bench.generation import PROMPTS, make_prefix, save_as_peft
from foreword.research.bench.timing import Work, in_turns

PYTHON, HELP = "python alone", "foreword --help"
LIBRARIES, FIRST = "importing torch and transformers", "foreword generate, first token"
PEFT = "PEFT, first token"

_COMMAND = "from foreword.cli import main; main()"
_LIBRARIES = "import torch, transformers; transformers.AutoModelForCausalLM, transformers.AutoTokenizer"
_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, adapter, prompt, device, numbers = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, numbers))
model = PeftModel.from_pretrained(model, adapter).to(device).eval()
inputs = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").to(device)
with torch.no_grad():
    model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=0)
"""

COLUMNS = ("way", "seconds", "limit / own time", "times as fast as PEFT")
"""Of a row of figures: which way, seconds of the whole process, share of the limit (the seconds of the bare
interpreter, for help, or of importing the libraries, for a token, over its own in the same round; None for a
limit itself), and for our first token the speed over PEFT's (None without PEFT)."""


def measure(
    base: BaseModel,
    *,
    length: int,
    rounds: int,
    peft: bool,
    on_round: Callable[[int], None],
) -> list[tuple[Any, ...]]:
    """A row of figures (`COLUMNS`) of each way, in turns, after a round that fills the caches.

    Raises:
        MeasurementFailed: a process that ended otherwise.
    """
    prefix = make_prefix(base, length, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prefix.save(folder / "one.prefix")
        arguments = ["generate", "--base", base.name, "--prefix", str(folder / "one.prefix"), "--raw"]
        place = (str(base.device), str(base.dtype).removeprefix("torch."))
        arguments += ["--device", place[0], "--dtype", place[1], "--max-new-tokens", "1", PROMPTS[0]]
        ways = {
            PYTHON: _process(PYTHON, "pass"),
            HELP: _process(HELP, _COMMAND, "--help"),
            LIBRARIES: _process(LIBRARIES, _LIBRARIES),
            FIRST: _process(FIRST, _COMMAND, *arguments),
        }
        if peft:
            from foreword.research.bench import peft as peft_peer

            path = str(resolve(base.name).path)
            fresh = peft_peer.load(path, length=length, projection=False, like=base)
            save_as_peft(fresh, prefix, folder / "peft")
            ways[PEFT] = _process(PEFT, _PEFT, path, str(folder / "peft"), PROMPTS[0], *place)
        turns = in_turns(ways, rounds, on_round=on_round)
    limits = {HELP: PYTHON, FIRST: LIBRARIES, PEFT: LIBRARIES}
    return [
        (
            way,
            turns.of(way),
            turns.faster(way, than=limits[way]) if way in limits else None,
            turns.faster(FIRST, than=PEFT) if peft and way == FIRST else None,
        )
        for way in ways
    ]


def _process(way: str, program: str, *arguments: str) -> Work:
    # -P: as an installed program starts, without modules of the folder that it is called in.
    command = [sys.executable, "-P", "-c", program, *arguments]
    return lambda number: memory.run(way, command, torch.get_num_threads())
