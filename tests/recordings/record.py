"""Recorded runs: training, generation and serving whose results are kept, and compared with what the code does now.

    python tests/recordings/record.py                        # check all recordings
    python tests/recordings/record.py --check server         # one of them
    python tests/recordings/record.py --write generate-tiny  # make one anew

The recordings are the JSON files beside this script; README.md says when to make them anew. The script runs the
code of the checkout it lies in, whatever is installed, and uses its public names only: those that `foreword`
itself has, the command, and HTTP. It shares nothing with the tests, so that it can stay as it is while everything
else moves.

All runs compute in float32 with one thread. The weights of the tiny models come from integer arithmetic, and so are
the same on every machine.

What stands in a recording:
- a float, as `float.hex()` writes it: equal in the environment of the recording, within 1e-4 of it elsewhere;
- "sha256:...": digest of the bytes of a prefix's keys and values (not of its file, whose format has versions):
  equal in the environment of the recording, not compared elsewhere;
- everything else (texts, counts, names, status codes): equal everywhere.
"""

# ruff: noqa: E402 (threads and the path of the code are set before the imports that they are for)
from __future__ import annotations

import os

# Before torch is imported: threads change the order of sums, and with it their last bits.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

import argparse
import functools
import hashlib
import json
import platform
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import foreword
from foreword import BaseModel, Example, Prefix, Template, generate, train, train_many

SMOLLM2 = "smollm2-135m-instruct"
TOLERANCE = 1e-4
"""Relative difference of floats that is let pass in another environment than the recording's."""
SHOWN = 30
"""Differences that are printed of each recording."""
SLOWEST = 120.0
"""Seconds after which a server that does not answer has failed."""

NOT_COMPARABLE = "NOT COMPARED"
"""What a line of the output begins with where the recording is of other weights than those that are here."""


# --- Tiny models, the same on every machine ---------------------------------------------------------------------------

END = "<end>"
VOCABULARY = 97
PRIME = 65521
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character and the newline, and an end token."""
    printable = "".join(map(chr, range(32, 127))) + "\n"
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = list(pre_tokenizer.pre_tokenize_str(printable)[0][0])
    vocabulary = {END: 0, **{letter: index + 1 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    made.chat_template = CHAT_TEMPLATE
    return made


def numbers(shape: Sequence[int], salt: int, halvings: int = 16) -> torch.Tensor:
    """Numbers that look random: integers below 2**15 in size, halved some times, so that every one is exact."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + 7919 * (salt + 1)
    square = index * index % PRIME
    mixed = (square * index + 17 * square + 31 * salt) % PRIME
    return ((mixed - PRIME // 2).float() / 2**halvings).reshape(tuple(shape))


def fill(model: PreTrainedModel) -> PreTrainedModel:
    """Give every weight a number; scales of norms stay near one."""
    with torch.no_grad():
        for salt, (name, weight) in enumerate(model.named_parameters()):
            value = numbers(weight.shape, salt)
            if weight.ndim == 1:
                value = value / 4 + (1 if name.endswith("weight") else 0)
            weight.copy_(value)
    return model


_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": None,
}


def tiny_llama() -> BaseModel:
    """Three layers, grouped heads."""
    return BaseModel(fill(LlamaForCausalLM(LlamaConfig(**_SIZES))), byte_tokenizer(), name="tiny-llama")


def tiny_mistral() -> BaseModel:
    """With a sliding window shorter than the texts."""
    model = MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=24))
    return BaseModel(fill(model), byte_tokenizer(), name="tiny-mistral")


def tiny_bart() -> BaseModel:
    """An encoder-decoder with learned positions."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    return BaseModel(fill(BartForConditionalGeneration(config)), byte_tokenizer(), name="tiny-bart")


def tiny_t5() -> BaseModel:
    """An encoder-decoder with relative positions."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    return BaseModel(fill(T5ForConditionalGeneration(config)), byte_tokenizer(), name="tiny-t5")


def made_prefixes(base: BaseModel, *lengths: int) -> list[Prefix]:
    """Prefixes that nothing was trained for, all different."""
    # A trained one says what shapes there are.
    like = train(base, [Example("a", "b")], length=1, steps=1, init="random")
    made = []
    for salt, length in enumerate(lengths):
        tensors = {}
        for place, stream in enumerate(sorted(like.streams)):
            for part, tensor in (("key", like.key(stream)), ("value", like.value(stream))):
                layers, heads, _, size = tensor.shape
                number = 100 * salt + 10 * place + (part == "value")
                tensors[f"{stream}.{part}"] = numbers((layers, heads, length, size), number, halvings=15)
        made.append(Prefix(tensors=tensors, base=base.identity, template=base.template))
    return made


# --- Examples ---------------------------------------------------------------------------------------------------------

THINGS = [
    "mug",
    "lamp",
    "candle",
    "scarf",
    "kettle",
    "notebook",
    "teapot",
    "cushion",
    "clock",
    "basket",
    "vase",
]
STATES = ["chipped", "lovely", "late", "broken", "warm", "missing", "perfect"]
WORDS = {"lovely": "PRAISE", "warm": "PRAISE", "perfect": "PRAISE", "late": "DELAY", "missing": "DELAY"}


def examples(count: int, first: int = 0) -> list[Example]:
    """Made-up reviews, of different lengths."""
    made = []
    for number in range(first, first + count):
        thing, state = THINGS[number % len(THINGS)], STATES[number * 3 % len(STATES)]
        more = f", order {number * 37 % 1000}" if number % 3 == 0 else ""
        made.append(Example(f"the {thing} is {state}{more}", f"[{WORDS.get(state, 'DAMAGED')}] {thing}"))
    return made


def conversations(count: int) -> list[Example]:
    """The same as messages."""
    return [replace(each, source=({"role": "user", "content": each.source},)) for each in examples(count)]


def repeated(count: int) -> list[Example]:
    """Two targets to each source."""
    return [
        replace(each, target=each.target + tail) for each in examples(count // 2) for tail in ("", " again")
    ]


# --- How results are written down -------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """JSON in which every float is exact."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def digests(prefix: Prefix) -> dict[str, Any]:
    """Shape and digest of the keys and values of each stream."""
    found = {}
    for stream in sorted(prefix.streams):
        for part, tensor in (("key", prefix.key(stream)), ("value", prefix.value(stream))):
            content = tensor.detach().cpu().contiguous().numpy().tobytes()
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            found[f"{stream}.{part}"] = [str(tensor.dtype), list(tensor.shape), digest]
    return found


def log_of(folder: Path) -> list[Any]:
    """A run's log without what is time."""
    (file,) = folder.rglob("log.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [plain({key: row[key] for key in row if key not in ("seconds", "time")}) for row in rows]


def run_of(base: BaseModel, rows: Sequence[Example], **settings: Any) -> dict[str, Any]:
    """One training run: its log and its prefix. By default in the base's own form, source and target."""
    settings.setdefault("template", base.template)
    with tempfile.TemporaryDirectory() as folder:
        prefix = train(base, rows, checkpoint_dir=Path(folder) / "run", **settings)
        return {"log": log_of(Path(folder)), "prefix": digests(prefix), "positions": prefix.positions}


def losses_of(base: BaseModel, rows: Sequence[Example], **settings: Any) -> list[list[str]]:
    return [plain(losses.tolist()) for losses in base.token_losses(rows, **settings)]


# --- The recorded runs ------------------------------------------------------------------------------------------------


def train_tiny() -> dict[str, Any]:
    base, rows, dev = tiny_llama(), examples(40), examples(8, first=40)
    chat = Template(style="chat", end=END, system="be brief")
    variants: dict[str, dict[str, Any]] = {
        "defaults": {},
        "mlp": {"parameterization": "mlp", "evaluate_every": 4},
        "mlp+start": {"parameterization": "mlp+start", "accumulate": 3, "warmup": 2},
        "embedding": {"parameterization": "embedding", "init": "text:some text", "weight_decay": 0.1},
        "random, infix": {"init": "random", "placement": "infix", "seed": 3},
        "demonstrations, last layers": {
            "init": "demonstrations",
            "layers": "last:2",
            "reduction": "sequence",
        },
        "patience": {"learning_rate": 0.5, "evaluate_every": 1, "patience": 2, "clip": 0.0},
        "checkpointing": {"gradient_checkpointing": True, "length": 4},
        "separator": {"template": replace(base.template, separator=" -> ", end=None)},
    }
    short = {"steps": 6, "dev": dev[:4]}
    found: dict[str, Any] = {"fingerprint": base.fingerprint, "weights": base.weights_checksum()}
    for name, settings in variants.items():
        found[name] = run_of(base, rows, steps=12, dev=dev, **settings)
    found["repeated sources"] = run_of(base, repeated(24), **short)
    found["chat"] = run_of(base, conversations(24), template=chat, steps=6, dev=conversations(4))
    found["sliding window"] = run_of(tiny_mistral(), rows, **short)
    found["bart"] = run_of(tiny_bart(), rows, length={"encoder": 3, "decoder": 5, "cross": 2}, **short)
    found["t5"] = run_of(tiny_t5(), rows, streams=("decoder", "cross"), parameterization="mlp", **short)
    for name, isolated in (("many", False), ("many, isolated", True)):
        found[name] = many_of(base, isolated=isolated)
    return found


def many_of(base: BaseModel, *, isolated: bool) -> dict[str, Any]:
    """Three owners in one run, two of them at once; one has no dev set."""
    by_owner = {"alice": examples(16), "bob": examples(9, first=16), "carol": examples(12, first=25)}
    dev = {"alice": examples(4, first=40), "carol": examples(4, first=44)}
    with tempfile.TemporaryDirectory() as folder:
        prefixes = train_many(
            base,
            by_owner,
            dev=dev,
            steps=8,
            length=4,
            batch_size=4,
            template=base.template,
            places=2,
            pass_tokens=256,
            isolated=isolated,
            checkpoint_dir=lambda owner: Path(folder) / owner,
        )
        return {
            owner: {"log": log_of(Path(folder) / owner), "prefix": digests(prefixes[owner])}
            for owner in by_owner
        }


def train_smollm2() -> dict[str, Any]:
    return run_of(smollm2(), examples(12), steps=3, dev=examples(4, first=40))


def generate_tiny() -> dict[str, Any]:
    base = tiny_llama()
    first, second = made_prefixes(base, 5, 11)
    prefixes = [first, second, None]
    prompts = ["the mug is chipped", "lovely", "the lamp and the clock are late, order 12"]
    rows = [
        Example(prompt, target)
        for prompt, target in zip(prompts, ("[A] mug", "yes", "[B] lamp"), strict=True)
    ]
    sampled = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
    ways: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled, seed 0": {**sampled, "seed": 0},
        "sampled, seed 7": {**sampled, "seed": 7, "min_new_tokens": 10},
        "beams": {"beams": 3, "length_penalty": 0.8},
        "one row at once": {"batch_size": 1},
        "stop and banned": {"stop": ["a"], "banned": ["q", "zz"], **sampled, "seed": 1},
        "raw": {"raw": True, **sampled, "seed": 2},
    }
    found: dict[str, Any] = {
        name: generate(base, prompts, prefixes=prefixes, max_new_tokens=32, **way)
        for name, way in ways.items()
    }
    pieces: list[Any] = []
    streamed = {**sampled, "seed": 7, "max_new_tokens": 12}
    generate(
        base, prompts, prefixes=prefixes, on_text=lambda row, text: pieces.append([row, text]), **streamed
    )
    found["streamed"] = pieces
    for layout in ("flat", "left", "right"):
        found[f"token losses, {layout}"] = losses_of(base, rows, prefixes=prefixes, layout=layout)
    joined = Prefix.join([first.slice(1, 4), second])
    found["joined"] = {
        "tensors": digests(joined),
        "losses": losses_of(base, rows, prefixes=joined),
        # Back in float32, since numpy has no bfloat16; nothing is lost by it.
        "through bfloat16": digests(joined.to(torch.bfloat16).to(torch.float32)),
    }
    found["saved and loaded"] = digests(Prefix.from_bytes(joined.to_bytes()))
    for name, other in (("sliding window", tiny_mistral()), ("bart", tiny_bart()), ("t5", tiny_t5())):
        own = [*made_prefixes(other, 4, 7), None]
        found[name] = {
            "greedy": generate(other, prompts, prefixes=own, max_new_tokens=40),
            "sampled": generate(other, prompts, prefixes=own, max_new_tokens=40, **sampled, seed=5),
            "token losses": losses_of(other, rows, prefixes=own),
        }
    with tempfile.TemporaryDirectory() as folder:
        coarse = BaseModel.load(
            save(base, Path(folder) / "tiny"), device="cpu", dtype="float32", quantization="int8"
        )
        own = [*made_prefixes(coarse, 5, 11), None]
        found["int8"] = {
            "greedy": generate(coarse, prompts, prefixes=own, max_new_tokens=24),
            "token losses": losses_of(coarse, rows, prefixes=own),
        }
    return found


def generate_smollm2() -> dict[str, Any]:
    base = smollm2()
    # One step from words or random numbers each: no longer what they began at, and different from each other.
    settings: dict[str, Any] = {"steps": 1, "batch_size": 4, "template": base.template}
    prefixes = [
        train(base, examples(4), length=10, **settings),
        train(base, examples(4, first=4), length=3, init="random", seed=1, **settings),
        None,
    ]
    prompts = ["the mug is chipped, please refund", "lovely candles", "the lamp is broken"]
    targets = ["[DAMAGED] mug", "[PRAISE] candles", "[DAMAGED] lamp"]
    rows = [Example(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    return {
        "greedy": generate(base, prompts, prefixes=prefixes, max_new_tokens=24),
        "token losses": losses_of(base, rows, prefixes=prefixes),
    }


@functools.cache
def smollm2() -> BaseModel:
    return BaseModel.load(SMOLLM2, device="cpu", dtype="float32")


def save(base: BaseModel, folder: Path) -> Path:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


# --- The server -------------------------------------------------------------------------------------------------------


class Conversation:
    """Requests to one server, and what it answered, with what differs from run to run replaced.

    - identifiers (`ftjob-...`) by their kind and number in order of appearance: `<ftjob 1>`;
    - fields that are times (`created`, `created_at`, `finished_at`, `made`) by `<time>`, unless they are null;
    - digests of prefix files and their sizes by `<digest>` and `<bytes>`;
    - the folder of the run by `<folder>`.
    """

    _IDENTIFIER = re.compile(r"\b([a-z]+)-([0-9a-f]{16,})\b")
    _EVENT = re.compile(r"\b(ftevent)-([0-9]+)\b")
    _TIMES = ("created", "created_at", "finished_at", "made")

    def __init__(self, url: str, folder: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=SLOWEST, trust_env=False)
        self._folder = folder
        self._known: dict[str, str] = {}
        self.found: list[dict[str, Any]] = []

    def ask(self, method: str, path: str, *, keep: bool = True, **body: Any) -> Any:
        """Send a request; its answer is kept in the recording, and given back as it came."""
        answer = self._http.request(method, path, **body)
        kind = answer.headers.get("content-type", "").split(";")[0]
        if kind == "text/event-stream":
            content: Any = [
                event if event == "[DONE]" else json.loads(event)
                for event in re.findall(r"^data: (.*)$", answer.text, flags=re.MULTILINE)
            ]
        else:
            content = answer.json() if kind == "application/json" else answer.content
        if keep:
            asked = f"{method} {self._stable(path)}"
            status, body_kept = answer.status_code, self._stable(content)
            self.found.append({"asked": asked, "status": status, "type": kind, "answer": body_kept})
        return content

    def close(self) -> None:
        self._http.close()

    def note(self, what: str, content: Any) -> None:
        """Keep what is no answer as it came."""
        self.found.append({"asked": what, "answer": content})

    def _stable(self, value: Any, field: str = "") -> Any:
        if field in self._TIMES and value is not None:
            return "<time>"
        if field in ("digest", "sha256") and value is not None:
            return "<digest>"
        if isinstance(value, dict):
            of_prefix = value.get("object") == "prefix"
            return {
                key: "<bytes>" if of_prefix and key == "size" else self._stable(each, key)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self._stable(each) for each in value]
        if isinstance(value, bytes):
            return "sha256:" + hashlib.sha256(value).hexdigest()
        if isinstance(value, str):
            value = value.replace(str(self._folder), "<folder>")
            return self._EVENT.sub(self._named, self._IDENTIFIER.sub(self._named, value))
        return plain(value)

    def _named(self, match: re.Match[str]) -> str:
        kind, whole = match[1], match[0]
        if whole not in self._known:
            number = sum(each.startswith(f"<{kind} ") for each in self._known.values()) + 1
            self._known[whole] = f"<{kind} {number}>"
        return self._known[whole]


def command(*arguments: str) -> list[str]:
    """`foreword ARGUMENTS`, of this checkout."""
    entry = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]["foreword"]
    module, function = entry.split(":")
    return [
        sys.executable,
        "-c",
        f"import sys; from {module} import {function}; sys.exit({function}())",
        *arguments,
    ]


@contextmanager
def served(folder: Path, base: Path) -> Iterator[str]:
    """URL of a server, without /v1."""
    settings = ["--set", "trainer_threads=1", "--set", "idle_seconds=5", "--set", "drain_seconds=0.5"]
    store = ["--store", str(folder / "store")]
    arguments = ["serve", "--json", "--no-keys", "--port", "0", "--base", str(base), *store, *settings]
    paths = [str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command(*arguments, "--device", "cpu", "--dtype", "float32"),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start:\n{log.read_text()}")
        yield json.loads(line)["url"].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait(SLOWEST)
        assert process.stdout is not None
        process.stdout.close()


def server() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        base = tiny_llama()
        with served(folder, save(base, folder / "tiny")) as url:
            conversation = Conversation(url, folder)
            _converse(conversation, base)
            conversation.close()
        return {"conversation": conversation.found}


def _converse(c: Conversation, base: BaseModel) -> None:
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/tiny"):
        c.ask("GET", path)
    completion = {"model": "tiny", "prompt": "the mug is", "max_tokens": 12, "temperature": 0}
    sampled = {
        **completion,
        "prompt": ["the mug", "a lamp"],
        "temperature": 0.9,
        "top_p": 0.9,
        "seed": 5,
        "n": 2,
    }
    messages = [{"role": "user", "content": "the mug is chipped"}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 12, "temperature": 0}
    usage = {"stream": True, "stream_options": {"include_usage": True}}

    def write(model: str) -> None:
        named = {"model": model}
        c.ask("POST", "/v1/completions", json={**completion, **named, "logprobs": 2})
        c.ask("POST", "/v1/completions", json={**completion, **named, **usage})
        c.ask("POST", "/v1/chat/completions", json={**chat, **named, "logprobs": True, "top_logprobs": 2})
        c.ask("POST", "/v1/chat/completions", json={**chat, **named, **usage})

    write("tiny")
    c.ask("POST", "/v1/completions", json=sampled)
    c.ask(
        "POST",
        "/v1/chat/completions",
        json={**chat, "temperature": 0.8, "seed": 1, "stop": ["H"], "raw": False},
    )

    def lines(rows: Sequence[Example]) -> bytes:
        return "".join(json.dumps({"source": e.source, "target": e.target}) + "\n" for e in rows).encode()

    def upload(file_name: str, content: bytes) -> Any:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": (file_name, content)}}
        return c.ask("POST", "/v1/files", **form).get("id")

    training, validation = (
        upload("mine.jsonl", lines(examples(16))),
        upload("dev.jsonl", lines(examples(4, 40))),
    )
    c.ask("GET", "/v1/files?order=asc")
    c.ask("GET", f"/v1/files/{training}/content")
    order: dict[str, Any] = {
        "model": "tiny",
        "training_file": training,
        "validation_file": validation,
        "suffix": "mine",
        "seed": 3,
        "method": {
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"steps": 8, "length": 4, "batch_size": 4, "evaluate_every": 4}
            },
        },
        "metadata": {"for": "a recording"},
        "template": {"style": "separator"},
    }
    job = c.ask("POST", "/v1/fine_tuning/jobs", json=order)["id"]
    finish(c, job)
    c.ask("GET", f"/v1/fine_tuning/jobs/{job}")
    c.ask("GET", f"/v1/fine_tuning/jobs/{job}/events?limit=100")
    c.ask("GET", f"/v1/fine_tuning/jobs/{job}/checkpoints")
    c.ask("POST", f"/v1/fine_tuning/jobs/{job}/cancel")
    c.ask("GET", "/v1/models")
    c.ask("GET", "/v1/prefixes/local/mine")
    content = c.ask("GET", "/v1/prefixes/local/mine/content", keep=False)
    c.note("keys and values of local/mine", digests(Prefix.from_bytes(content)))
    write("local/mine")
    again = {key: order[key] for key in ("training_file", "suffix", "method")}
    second = c.ask("POST", "/v1/fine_tuning/jobs", json={**again, "model": "local/mine"})["id"]
    finish(c, second)
    c.ask("GET", f"/v1/fine_tuning/jobs/{second}/events?limit=100")
    c.ask("POST", "/v1/completions", json={**completion, "model": "local/mine@2"})
    made = made_prefixes(base, 3)[0].to_bytes()
    answer = {"data": {"name": "made"}, "files": {"file": ("made.prefix", made)}}
    c.ask("POST", "/v1/prefixes", **answer)
    c.ask("POST", "/v1/completions", json={**completion, "model": "local/made"})
    c.ask("DELETE", "/v1/models/local/made")

    for changes in (
        {"model": "nobody"},
        {"model": "local/mine@9"},
        {"temperature": -1},
        {"presence_penalty": 1},
        {"best": 1},
        {"max_tokens": "many"},
        {"prompt": "x" * 300},
        {"prompt": None},
    ):
        c.ask("POST", "/v1/completions", json={**completion, **changes})
    c.ask("POST", "/v1/completions", content=b"{", headers={"content-type": "application/json"})
    c.ask("POST", "/v1/chat/completions", json={**chat, "messages": []})
    c.ask("POST", "/v1/chat/completions", json={**chat, "model": "local/mine", "messages": messages * 2})
    upload("bad.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a"}\n')
    c.ask("POST", "/v1/fine_tuning/jobs", json={**order, "training_file": "file-nothing"})
    c.ask("POST", "/v1/fine_tuning/jobs", json={**order, "hyperparameters": {"length": 0}, "method": None})
    c.ask(
        "POST", "/v1/prefixes", data={"name": "bad"}, files={"file": ("bad.prefix", b"nothing of the kind")}
    )
    for path in (
        "/v1/fine_tuning/jobs/ftjob-nothing",
        "/v1/files/file-nothing",
        "/v1/prefixes/local/none",
        "/v1/no",
    ):
        c.ask("GET", path)
    c.ask("PUT", "/v1/models", json={})
    c.ask("DELETE", "/v1/models/tiny")
    page = c.ask("GET", "/metrics", keep=False).decode()
    c.note("metrics", sorted(re.findall(r"^# TYPE (\S+ \S+)$", page, flags=re.MULTILINE)))


def finish(c: Conversation, job: str) -> None:
    deadline = time.monotonic() + SLOWEST
    while c.ask("GET", f"/v1/fine_tuning/jobs/{job}", keep=False)["status"] in ("queued", "running"):
        if time.monotonic() > deadline:
            raise SystemExit("the job did not end")
        time.sleep(0.05)


# --- Recordings: made, kept, compared ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A run whose results are kept.

    Attributes:
        real: it needs SmolLM2, whose weights depend on where they were pulled from.
    """

    run: Callable[[], dict[str, Any]]
    real: bool = False

    def weights(self) -> str | None:
        return smollm2().fingerprint if self.real else None


RECORDINGS = {
    "train-tiny": Recording(train_tiny),
    "generate-tiny": Recording(generate_tiny),
    "server": Recording(server),
    "train-smollm2": Recording(train_smollm2, real=True),
    "generate-smollm2": Recording(generate_smollm2, real=True),
}


def environment() -> dict[str, str]:
    """What the last bits of a float depend on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+|-?inf|nan")
_MISSING = "(nothing)"


def differences(recorded: Any, now: Any, *, exact: bool, where: str = "") -> Iterator[str]:
    """Each difference as a line that says where it is."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in [*recorded, *(key for key in now if key not in recorded)]:
            below = f"{where} / {key}" if where else key
            yield from differences(
                recorded.get(key, _MISSING), now.get(key, _MISSING), exact=exact, where=below
            )
        return
    if isinstance(recorded, list) and isinstance(now, list):
        if len(recorded) != len(now):
            yield f"{where}: {len(recorded)} entries recorded, {len(now)} now"
        for index, (old, new) in enumerate(zip(recorded, now, strict=False)):
            asked = f" ({old['asked']})" if isinstance(old, dict) and "asked" in old else ""
            yield from differences(old, new, exact=exact, where=f"{where}[{index}]{asked}")
        return
    if type(recorded) is type(now) and recorded == now:
        return
    if isinstance(recorded, str) and isinstance(now, str):
        if _FLOAT.fullmatch(recorded) and _FLOAT.fullmatch(now):
            old, new = float.fromhex(recorded), float.fromhex(now)
            relative = abs(new - old) / max(abs(old), abs(new), 1e-30)
            if exact or not relative <= TOLERANCE:
                yield f"{where}: {old!r} recorded, {new!r} now (relative difference {relative:.1e})"
            return
        if recorded.startswith("sha256:") and now.startswith("sha256:") and not exact:
            return
    yield f"{where}: {recorded!r} recorded, {now!r} now"


def file_of(name: str) -> Path:
    return HERE / f"{name}.json"


def write(name: str) -> None:
    """Make a recording anew."""
    recording = RECORDINGS[name]
    weights = recording.weights()
    found = {"environment": environment(), "weights": weights, "results": recording.run()}
    file_of(name).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: written", flush=True)


def check(name: str) -> bool:
    """Compare a run with its recording; prints what differs."""
    begun = time.monotonic()
    recording = RECORDINGS[name]
    kept = json.loads(file_of(name).read_text())
    weights = recording.weights()
    if weights != kept["weights"]:
        print(f"{NOT_COMPARABLE} {name}: of base model {kept['weights']}, here it is {weights}", flush=True)
        return True
    here = environment()
    changed = [
        f"{key} {kept['environment'].get(key)} / {here[key]}"
        for key in here
        if kept["environment"].get(key) != here[key]
    ]
    how = "to the bit"
    if changed:
        how = f"floats within {TOLERANCE:g}, digests not compared: recorded elsewhere ({'; '.join(changed)})"
    # Through JSON, as the recording went.
    now = json.loads(json.dumps(recording.run()))
    found = list(differences(kept["results"], now, exact=not changed))
    seconds = time.monotonic() - begun
    print(f"{name}: {len(found) or 'no'} differences, compared {how} ({seconds:.1f} s)", flush=True)
    for line in found[:SHOWN]:
        print(f"  {line}")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the recorded runs, or make them anew.")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--check", action="store_true", help="compare with the recordings (what is done by default)"
    )
    way.add_argument("--write", action="store_true", help="make the recordings anew")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which; all by default: {', '.join(RECORDINGS)}"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RECORDINGS]
    if unknown:
        parser.error(f"no recording {', '.join(unknown)}; there are {', '.join(RECORDINGS)}")
    torch.set_num_threads(1)
    assert Path(foreword.__file__).is_relative_to(REPOSITORY), f"foreword came from {foreword.__file__}"
    names = arguments.names or list(RECORDINGS)
    if arguments.write:
        for name in names:
            write(name)
        return 0
    results = [check(name) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
