"""`foreword serve --engine vllm`: starts vLLM on the store, looks after it, and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from foreword import BaseModel, Prefix, PrefixStore, generate
from foreword.serving.engine.protocol import Row, Sampling
from foreword.serving.vllm import ticket
from foreword.serving.vllm.process import VllmProcess, answers
from support.served_processes import ServedProcess, served, wait_for
from support.stand_ins import random_prefix
from support.vllm_servers import CPU, SECRET, free_port, local

PROMPT = "the mug is chipped"
ARGUMENTS = "--enforce-eager --max-num-seqs 16 --max-model-len 256"
SECONDS = 300.0


@pytest.fixture(scope="module")
def prefix(base: BaseModel) -> Prefix:
    return random_prefix(base, 37, seed=800)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base: BaseModel, prefix: Prefix) -> Path:
    folder = tmp_path_factory.mktemp("gateway")
    with PrefixStore(folder / "store") as store:
        store.put("local/mugs", prefix)
        for name, length in (("cups", 9), ("jugs", 40)):
            recipe = {"together": "crockery"}
            store.put(f"local/{name}", random_prefix(base, length, seed=length, recipe=recipe))
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path, model_folder: Path) -> Iterator[ServedProcess]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CPU.items():
            patch.setenv(name, value)
        more = ("--engine", "vllm", "--no-training", "--dtype", "float32")
        more += ("--set", "engine_silent_seconds=10")
        more += ("--set", f"engine_arguments={ARGUMENTS}")
        with served(folder, model_folder, *more) as process:
            yield process


def complete(process: ServedProcess, **more: object) -> str:
    settings = {"model": "local/mugs", "prompt": PROMPT, "temperature": 0, "max_tokens": 16, **more}
    return process.client().completions.create(**settings).choices[0].text


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def vllm_of(process: ServedProcess) -> int:
    """The process of vLLM's own server, which the keeper runs."""
    (pid,) = children(process.events("vllm started")[-1]["pid"])
    return pid


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_prefix_of_the_store_is_served(gateway: ServedProcess, base: BaseModel, prefix: Prefix) -> None:
    (expected,) = generate(base, [PROMPT], prefixes=prefix, max_new_tokens=16)
    assert complete(gateway) == expected
    (plain,) = generate(base, [PROMPT], max_new_tokens=16)
    assert plain != expected
    with gateway.client().completions.create(
        model="local/mugs", prompt=PROMPT, temperature=0, max_tokens=16, stream=True
    ) as stream:
        assert "".join(event.choices[0].text for event in stream) == expected


def test_joined_prefixes_of_the_store_are_served(
    gateway: ServedProcess, folder: Path, base: BaseModel
) -> None:
    with PrefixStore(folder / "store") as store:
        parts = [store.get("local/cups"), store.get("local/jugs")]
    (expected,) = generate(base, [PROMPT], prefixes=[parts], max_new_tokens=16)
    assert complete(gateway, model="local/cups+local/jugs") == expected
    assert complete(gateway, model="local/cups") != expected
    with pytest.raises(openai.BadRequestError, match="'local/mugs' was not trained together"):
        complete(gateway, model="local/cups+local/mugs")


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
    "required": ["kind", "sure"],
}


def test_answers_follow_schemas_as_those_of_the_local_engine(
    gateway: ServedProcess, base: BaseModel, prefix: Prefix
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    asked = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 64}
    answers = [
        gateway.client().chat.completions.create(model=model, response_format=form, **asked).choices[0]
        for model in ("local/mugs", gateway.base)
    ]
    assert [answer.finish_reason for answer in answers] == ["stop", "stop"]
    (expected,) = generate(base, [PROMPT], prefixes=prefix, schema=SCHEMA, max_new_tokens=64)
    assert answers[0].message.content == expected
    assert json.loads(answers[1].message.content)["kind"] in ("a", "b")
    free = gateway.client().chat.completions.create(model="local/mugs", **asked).choices[0]
    assert free.message.content != expected


def test_usage_is_without_the_virtual_tokens(gateway: ServedProcess) -> None:
    settings = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16}
    answer = gateway.client().completions.create(model="local/mugs", **settings)
    assert answer.usage.prompt_tokens == len(PROMPT) + 1  # and the separator of the prefix's template


@pytest.mark.parametrize("field", ["kv_transfer_params", "cache_salt", "prompt_logprobs", "vllm_xargs"])
def test_fields_of_vllm_are_refused_from_clients(gateway: ServedProcess, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"(Unknown|Unsupported) parameter: '{field}"):
        gateway.client().completions.create(model="local/mugs", prompt="x", extra_body={field: "x"})


def test_placeholder_ids_of_a_client_are_tokens_like_others(gateway: ServedProcess, base: BaseModel) -> None:
    """Where the prefix is, and in the cache, for the same owner: what they mean is text, not a prefix."""
    text = base.tokenizer(PROMPT)["input_ids"]
    raw = [ticket.PLACEHOLDER] * 37 + text
    with_prefix = complete(gateway, prompt=text)
    sampling = Sampling(16, temperature=0.0)
    (expected,) = local(base, [Row(tuple(raw), None, "local", sampling, base.end_ids)])
    ids = [token.token_id for token in expected if token.token_id not in base.end_ids]
    for _ in range(2):
        assert complete(gateway, model=gateway.base, prompt=raw) == base.tokenizer.decode(ids)
        assert complete(gateway, prompt=text) == with_prefix
    assert base.tokenizer.decode(ids) != with_prefix


def test_a_vllm_that_dies_is_started_again(gateway: ServedProcess, base: BaseModel, prefix: Prefix) -> None:
    """Meanwhile requests get 503, and never a short text; and /readyz says so."""
    ready = gateway.url.replace("/v1", "/readyz")
    assert httpx.get(ready).status_code == 200
    (expected,) = generate(base, [PROMPT], prefixes=prefix, max_new_tokens=16)
    started = len(gateway.events("vllm started"))
    os.kill(vllm_of(gateway), signal.SIGKILL)
    refused: list[int] = []
    text, until, unready = "", time.monotonic() + SECONDS, 0
    while not (refused and text):
        assert time.monotonic() < until
        try:
            text = complete(gateway)
        except openai.InternalServerError as error:
            refused.append(error.status_code)
            text = ""
            time.sleep(0.5)
        unready += httpx.get(ready).status_code == 503
    assert text == expected
    assert set(refused) == {503}
    assert unready
    assert wait_for(lambda: httpx.get(ready).status_code == 200, "readiness")
    assert len(gateway.events("vllm started")) == started + 1


def test_a_vllm_that_hangs_is_started_again(gateway: ServedProcess, base: BaseModel, prefix: Prefix) -> None:
    """The process that computes is stopped: vLLM's own server still calls itself healthy."""
    (expected,) = generate(base, [PROMPT], prefixes=prefix, max_new_tokens=16)
    assert complete(gateway) == expected
    started = len(gateway.events("vllm started"))
    for pid in descendants(vllm_of(gateway)):
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(openai.InternalServerError) as refused:
        complete(gateway)
    assert refused.value.status_code == 503
    assert gateway.events("vllm hangs")

    def works() -> bool:
        try:
            return complete(gateway) == expected
        except openai.InternalServerError:
            return False

    assert wait_for(works, "a text again")
    assert len(gateway.events("vllm started")) == started + 1


def test_vllm_goes_with_its_gateway_even_by_kill_9(gateway: ServedProcess) -> None:
    """The last test of this gateway."""
    pid = vllm_of(gateway)
    own = [pid, *children(pid)]
    assert len(own) > 1
    os.kill(gateway.process.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while not all(map(is_gone, own)):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_printed_line_starts_a_vllm_that_is_used_and_left_running(
    folder: Path, model_folder: Path, base: BaseModel, prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ticket.SECRET, SECRET)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for name, value in CPU.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", "from foreword.cli import main; main()", "serve", "--vllm-line"]
    command += ["--base", str(model_folder), "--store", str(folder / "store")]
    command += ["--set", f"engine_arguments={ARGUMENTS}"]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert "--port 8001" in line
    port = free_port()
    command = ["sh", "-c", line.replace("--port 8001", f"--port {port}")]
    process = VllmProcess(command, {}, f"http://127.0.0.1:{port}", start_seconds=SECONDS)
    try:
        process.wait()
        (expected,) = generate(base, [PROMPT], prefixes=prefix, max_new_tokens=16)
        with served(folder, model_folder, "--engine-url", process.url, "--no-training") as server:
            assert complete(server) == expected
            long = complete(server, prompt="a" * 200, max_tokens=100)  # --max-model-len is 256
            assert len(base.tokenizer(long)["input_ids"]) <= 256 - 37 - 200
            assert server.stop() == 0
        assert answers(process.url)
    finally:
        process.close()
