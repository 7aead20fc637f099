"""Runs each tiny architecture through vLLM with a prefix, and records which of them it carries.

    python tests/support/architectures/run_vllm.py [--again] [MODEL_TYPE ...]

In the environment of `make test-vllm`. Each architecture has a process of its own, with a limit of time; what is in
the record already is left out unless `--again` is said, so that a run that was broken off goes on. The record is
`vllm.json` beside this file; `make_table.py` writes the column of docs/architectures.md from it.

An architecture "works" when the greedy tokens of vLLM with the connector, several prompts in one batch behind one
prefix, cold and then from vLLM's cache, are those of transformers with the same keys and values in front (the local
engine, which tests/base holds against attention by hand), and other tokens than without the prefix. The model is the
one of the zoo with heads of a size that vLLM's kernels for CPUs have, and without a sliding window where its
configuration can have none.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AutoConfig

from support.architectures.zoo import ABSENT, Architecture

RECORD = Path(__file__).with_name("vllm.json")
SECONDS = 300
PROMPTS = ("hello", "a", "some longer prompt here, longer than a block of tokens", "xyz abc")
NEW_TOKENS = 16
LENGTHS = (5, 37)
"""Of the prefixes: within one block of the cache, and a whole block and a part of the next."""

LARGER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
"""vLLM's kernels for CPUs have heads of 32 and more."""

FIRST = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "olmo2",
    "granite",
    "smollm3",
    "starcoder2",
    "gemma2",
    "gemma3_text",
    "cohere",
    "glm4",
    "qwen3_moe",
    "mixtral",
    "gpt_oss",
]
"""The most used ones come first."""

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
SECRET = "a secret of this run, long enough to be taken"


def ordered(architectures: tuple[Architecture, ...]) -> list[Architecture]:
    """The most used ones first, the others in the order of the table."""
    place = {model_type: number for number, model_type in enumerate(FIRST)}
    return sorted(architectures, key=lambda each: place.get(each.model_type, len(place)))


def enlarged(architecture: Architecture) -> tuple[Architecture, bool]:
    """With sizes that vLLM's kernels have; whether its sliding window was left out."""
    settings = {**LARGER, **architecture.settings}
    if settings["head_dim"] in (8, 12):
        settings["head_dim"] = LARGER["head_dim"]
    known = AutoConfig.for_model(architecture.model_type)
    for name in ("head_dim", "num_key_value_heads"):  # vLLM believes them where the architecture has none
        if name not in {*dir(known), *known.attribute_map}:  # to read it is an error where layers differ
            settings[name] = ABSENT
    settings |= PUBLISHED.get(architecture.model_type, {})
    for name in (
        "ffn_dim",
        "intermediate_size_mlp",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
    ):
        if name in settings:
            settings[name] = 128
    if "word_embed_proj_dim" in settings:
        settings["word_embed_proj_dim"] = 128
    without_window = architecture.windowed and architecture.model_type in WINDOW_IS_OPTIONAL
    if without_window:
        settings |= WINDOW_IS_OPTIONAL[architecture.model_type]
    return dataclasses.replace(architecture, settings=settings, windowed=False), without_window


PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt_bigcode": {"num_key_value_heads": ABSENT},  # one, by multi_query
    "deepseek_v3": {"topk_method": "noaux_tc"},  # transformers knows no other
}
"""What published configurations say, and vLLM goes by, where transformers' own do without."""

WINDOW_IS_OPTIONAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "exaone4": {
        "sliding_window": None,
        "sliding_window_pattern": None,
        "layer_types": ["full_attention"] * 3,
    },
}
"""Architectures whose published models have a window in some and none in others, and how to say so."""


# -- one architecture, in a process of its own -----------------------------------------------------


REASONS = {"MLA": "latent attention", "see the last": "sliding window", "groups of": "several kinds of cache"}
"""What the connector says, and what the table says."""


def run(architecture: Architecture) -> dict[str, Any]:
    """What becomes of one architecture: `works`, `refused` by Foreword, or `fails` in vLLM, and why."""
    from foreword.base.base_model import BaseModel
    from foreword.errors import ForewordError, UnsupportedArchitecture
    from foreword.serving.vllm.engine import check_base
    from support.stand_ins import byte_tokenizer, random_prefix
    from support.vllm_servers import local, row

    larger, without_window = enlarged(architecture)
    told: dict[str, Any] = {"without_window": without_window}
    with tempfile.TemporaryDirectory() as name:
        folder, prefixes = Path(name, "model"), Path(name, "prefixes")
        prefixes.mkdir()
        larger.model().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        try:
            base = BaseModel.load(folder, device="cpu", dtype="float32")
            check_base(base)
        except UnsupportedArchitecture as error:
            why = str(error).replace(str(folder), "the model")
            short = "sliding window" if architecture.windowed else why.split(":")[0]
            return {**told, "result": "refused", "short": short, "why": why}
        made = [random_prefix(base, length, seed=length) for length in LENGTHS]
        for prefix in made:
            prefix.save(prefixes / f"{prefix.digest}.prefix")
        rows = [
            row(base, prompt, prefix, max_tokens=NEW_TOKENS) for prefix in (*made, None) for prompt in PROMPTS
        ]
        rows = [dataclasses.replace(one, end_ids=frozenset()) for one in rows]
        # Before there is a vLLM in this process, which alters transformers' classes that it runs itself.
        answers = local(base, rows) if base.cache_takes_prefixes else None
        try:
            llm = vllm_of(folder, prefixes)
        except Exception as error:
            if isinstance(error, ForewordError):
                short = next((name for part, name in REASONS.items() if part in str(error)), "see the record")
                return {**told, "result": "refused", "short": short, "why": str(error)}
            return {**told, "result": "fails", "short": "vLLM does not load it", "why": summary(error)}
        told["implementation"] = llm.apply_model(lambda model: type(model).__name__)[0]
        assert answers is not None, "no tokens to compare with"
        expected = [[token.token_id for token in tokens] for tokens in answers]
        count = len(PROMPTS)
        assert expected[:count] != expected[-count:], "the prefix changes nothing; take other weights"
        for turn in ("cold", "warm"):
            try:
                found = tokens_of(llm, rows)
            except Exception as error:
                return {**told, "result": "fails", "short": "vLLM does not run it", "why": summary(error)}
            if found != expected:
                wrong = sum(one != other for one, other in zip(found, expected, strict=True))
                bare = sum(a != b for a, b in zip(found[-count:], expected[-count:], strict=True))
                empty = found.count([])
                why = f"{turn}: {wrong} of {len(rows)} texts differ, {bare} of them without a prefix"
                why += f"; {empty} were failed by vLLM" if empty else ""
                short = "other tokens without a prefix, too" if bare else "other tokens behind a prefix"
                return {**told, "result": "fails", "short": short, "why": why}
    return {**told, "result": "works"}


def vllm_of(folder: Path, prefixes: Path) -> Any:
    """A vLLM in this process, with the connector, as the gateway starts one."""
    from foreword.serving.vllm.launch import BLOCK_SIZE, CONNECTOR
    from vllm import LLM

    return LLM(
        model=str(folder),
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_model_len=192,
        max_num_seqs=16,
        enforce_eager=True,
        generation_config="vllm",
        disable_log_stats=True,
        kv_transfer_config={**CONNECTOR, "kv_connector_extra_config": {"folder": str(prefixes)}},
    )


def tokens_of(llm: Any, rows: list[Any]) -> list[list[int]]:
    """Greedy tokens of all rows, asked for at once, signed as the gateway signs them."""
    from vllm.inputs import TokensPrompt

    from foreword.serving.vllm import ticket
    from vllm import SamplingParams

    prompts, settings = [], []
    for row in rows:
        digest = None if row.prefix is None else row.prefix.digest
        salt = ticket.salt(SECRET, row.owner, digest)
        ids, extra = list(row.prompt_ids), None
        if row.prefix is not None:
            ids = [ticket.PLACEHOLDER] * row.prefix.length + ids
            signed = ticket.sign(SECRET, digest, row.prefix.length, salt, ids)
            extra = {"kv_transfer_params": signed.params()}
        prompts.append(TokensPrompt(prompt_token_ids=ids, cache_salt=salt))
        settings.append(
            SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, extra_args=extra)
        )
    outputs = llm.generate(prompts, settings, use_tqdm=False)
    return [
        [*output.outputs[0].token_ids] if output.outputs[0].finish_reason == "length" else []
        for output in outputs
    ]


def summary(error: BaseException) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:240]


# -- all of them -----------------------------------------------------------------------------------


def in_a_process(architecture: Architecture) -> dict[str, Any]:
    """`run` in a process of its own, or why it did not come back."""
    with tempfile.TemporaryDirectory() as name:
        out, log = Path(name, "out.json"), Path(name, "log")
        # Forked, so that the libraries are imported once.
        process = multiprocessing.get_context("fork").Process(target=_child, args=(architecture, out, log))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return {"result": "fails", "short": "it does not end", "why": f"not done within {SECONDS} s"}
        if out.exists():
            return dict(json.loads(out.read_text(encoding="utf-8")))
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["nothing"]
        why = f"ended with status {process.exitcode}: {said[-1][:240]}"
        return {"result": "fails", "short": "vLLM breaks off", "why": why}


def _child(architecture: Architecture, out: Path, log: Path) -> None:
    with open(log, "wb") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
        try:
            told = run(architecture)
        except Exception as error:
            traceback.print_exc()
            told = {"result": "fails", "short": "the run itself fails", "why": summary(error)}
        out.write_text(json.dumps(told), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)  # what vLLM has left running here ends without ceremony


def main() -> None:
    """The command."""
    from foreword.serving.vllm import ticket
    from support.architectures.decoder_only import DECODER_ONLY_WORKING

    os.environ.update(ENVIRONMENT, **{ticket.SECRET: SECRET})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--again", action="store_true", help="also those that are in the record")
    given = parser.parse_args()
    import vllm  # noqa: F401  # here, before the processes are forked

    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"results": {}}
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "transformers", "torch")}
    for architecture in ordered(DECODER_ONLY_WORKING):
        name = architecture.model_type
        wanted = name in given.model_types if given.model_types else True
        if not wanted or (name in record["results"] and not given.again):
            continue
        told = in_a_process(architecture)
        print(f"{name}: {told}", flush=True)
        record["results"][name] = {"name": architecture.name, **told}
        record["versions"] = versions
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
