"""`foreword serve` with the plain engine, in a process of its own: as slow as a test wants it."""

from __future__ import annotations

import os
import sys

import torch

from foreword import BaseModel
from foreword.cli import main
from foreword.serving import serve
from foreword.serving.config import Configuration
from support.plain_engine import PlainEngine

torch.set_num_threads(1)


def make_engine(configuration: Configuration, base: BaseModel) -> PlainEngine:
    engine = PlainEngine(base)
    engine.pause = float(os.environ["PLAIN_ENGINE_PAUSE"])
    return engine


serve.make_engine = make_engine
sys.argv[0] = "foreword"
main()
