"""Arguments of the public functions: what is meant is taken, and what can't be meant is a UsageError by name."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from foreword import BaseModel, Example, Prefix, PrefixStore, Template, generate, train, train_many
from foreword.errors import UsageError
from foreword.prefix import BaseIdentity, Origin
from support.stand_ins import random_examples, random_prefix

TASK = random_examples(3)
QUICK: dict[str, Any] = {"length": 2, "steps": 1, "batch_size": 2}


def test_a_whole_number_is_taken_for_a_float_and_numpys_for_pythons(tiny_base: BaseModel) -> None:
    sampled: dict[str, Any] = {"max_new_tokens": 4, "top_k": 5, "seed": 3}
    expected = generate(tiny_base, ["ab"], temperature=1.0, top_p=1.0, **sampled)
    assert generate(tiny_base, ["ab"], temperature=1, top_p=1, **sampled) == expected
    numbers = {name: numpy.int64(value) for name, value in sampled.items()}
    assert (
        generate(tiny_base, ["ab"], temperature=numpy.float32(1), raw=numpy.bool_(False), **numbers)
        == expected
    )
    assert generate(tiny_base, ["ab"], temperature=Fraction(1), **sampled) == expected
    assert generate(tiny_base, numpy.array(["ab"]), beams=2, length_penalty=1, max_new_tokens=2)  # type: ignore[arg-type]


def test_numbers_of_numpy_train_and_are_written(tiny_base: BaseModel, tmp_path: Path) -> None:
    plain = train(tiny_base, TASK, **QUICK, learning_rate=0.5)
    options = {name: numpy.int32(value) for name, value in QUICK.items()}
    found = train(tiny_base, TASK, **options, learning_rate=numpy.float64(0.5), checkpoint_dir=tmp_path)  # type: ignore[arg-type]
    assert torch.equal(found.key(), plain.key())
    assert Prefix.from_bytes(found.to_bytes()) == found
    by_stream = train(
        tiny_base, TASK, length={"decoder": numpy.int64(2)}, steps=1, checkpoint_dir=tmp_path / "b"
    )  # type: ignore[dict-item]
    assert by_stream.length == 2
    assert json.dumps(Origin(dev_loss=numpy.float32(0.5)).dev_loss) == "0.5"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a whole number"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected a number"),
        ({"temperature": True}, "temperature is True; expected a number"),
        ({"temperature": None}, "temperature is None; expected a number"),
        ({"temperature": float("nan")}, "temperature is nan; expected 0"),
        ({"temperature": 1, "top_k": 4.0}, "top_k is 4.0; expected a whole number"),
        ({"temperature": 1, "seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"seed": 2**65}, r"seed is 36893488147419103232; expected -9,223,\d+,\d+,.* to 18,446,744,\S+,615"),
        ({"temperature": 10**400}, "temperature is a number of more than 80 digits; expected a number that"),
        ({"temperature": Fraction(10**400)}, "temperature is of type Fraction; expected a number"),
        ({"top_p": [0.9]}, r"top_p is \[0.9\]; expected a number"),
        ({"beams": 2.0}, "beams is 2.0; expected a whole number"),
        ({"length_penalty": "1"}, "length_penalty is '1'; expected a number"),
        ({"stop": b"a"}, "stop is b'a'; expected several of: text or text"),
        ({"stop": ["a", b"b"]}, r"stop\[1\] is b'b'; expected text"),
        ({"banned": 5}, "banned is 5"),
        ({"raw": 1}, "raw is 1; expected true or false"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected a whole number"),
        ({"template": "chat"}, "template is 'chat'; expected Template or None"),
        ({"prefixes": "a.prefix"}, "prefixes is 'a.prefix'; expected Prefix"),
        ({"prefixes": [5]}, r"prefixes\[0\] is 5; expected Prefix.* or None"),
        ({"prefixes": [("a", "b")]}, r"prefixes\[0\]\[0\] is 'a'; expected Prefix"),
        ({"on_text": 5}, "on_text is 5; expected a function or None"),
        ({"prompts": 5}, "prompts is 5"),
        ({"prompts": [5]}, r"prompts\[0\] is 5"),
        ({"base": "tiny"}, "base is 'tiny'; expected BaseModel"),
    ],
)
def test_what_generate_cannot_mean(tiny_base: BaseModel, options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        generate(**{"base": tiny_base, "prompts": ["ab"], **options})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"examples": 5}, "examples is 5"),
        ({"examples": [("a", "b")]}, r"examples\[0\] is \('a', 'b'\); expected Example"),
        ({"dev": [None]}, r"dev\[0\] is None; expected Example"),
        ({"start": "a.prefix"}, "start is 'a.prefix'; expected Prefix or None"),
        ({"template": "raw"}, "template is 'raw'; expected Template or None"),
        ({"checkpoint_dir": 5}, "checkpoint_dir is 5; expected text, Path or None"),
        ({"checkpoint_every": 2.5}, "checkpoint_every is 2.5"),
        ({"tensorboard": "yes"}, "tensorboard is 'yes'; expected true or false"),
        ({"labels": {"a": 1}}, r"labels\['a'\] is 1; expected text"),
        ({"on_progress": "print"}, "on_progress is 'print'"),
        ({"learning_rate": True}, "learning_rate is True; expected a number"),
        ({"seed": "0"}, "seed is '0'; expected a whole number"),
        ({"seed": 2**65}, r"seed is 36893488147419103232; expected -9,223,\d+,\d+,.* to 18,446,744,\S+,615"),
        ({"seed": -(10**5000)}, "seed is a number of more than 80 digits; expected -9,223"),
        ({"learning_rate": 10**400}, "learning_rate is a number of more than 80 digits; expected a number"),
        ({"epochs": "2", "steps": None}, "epochs is '2'; expected a number"),
        ({"init": 5}, "init is 5; expected Initialization"),
        ({"parameterization": 5}, "parameterization is 5; expected"),
        ({"streams": 5}, "streams is 5"),
        ({"layers": 5}, "layers is 5; expected text"),
        ({"placement": 5}, "placement is 5; expected prefix or infix"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1; expected true or false"),
    ],
)
def test_what_train_cannot_mean(tiny_base: BaseModel, options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        train(**{"base": tiny_base, "examples": TASK, **QUICK, **options})


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_seed_of_the_generators_is_taken(tiny_base: BaseModel, seed: int) -> None:
    for init in ("random", "demonstrations"):
        train(tiny_base, TASK, **QUICK, seed=seed, init=init, parameterization="mlp+start")
    generate(tiny_base, ["ab"], temperature=1, seed=seed, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"by_owner": 5}, "by_owner is 5"),
        ({"by_owner": {"ann": 5}}, r"by_owner\['ann'\] is 5; expected several of: Example"),
        ({"by_owner": TASK}, r"by_owner\[0\] is .*; expected a tuple of text and several of: Example"),
        ({"by_owner": {5: TASK}}, "a key of by_owner is 5; expected text"),
        ({"dev": TASK}, "dev is of type list; expected a mapping"),
        ({"concurrent_owners": 2.5}, "concurrent_owners is 2.5"),
        ({"isolated": "no"}, "isolated is 'no'"),
        ({"into": "folder"}, "into is 'folder'; expected a function or None"),
    ],
)
def test_what_train_many_cannot_mean(tiny_base: BaseModel, options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        train_many(**{"base": tiny_base, "by_owner": {"ann": TASK}, **QUICK, **options})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"layout": "middle"}, "layout is 'middle'; expected flat, right or left"),
        ({"batch_tokens": 2.0}, "batch_tokens is 2.0"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"examples": ["a"]}, r"examples\[0\] is 'a'; expected Example"),
        ({"prefixes": {}}, "prefixes is {}"),
    ],
)
def test_what_token_losses_cannot_mean(tiny_base: BaseModel, options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        tiny_base.token_losses(**{"examples": TASK, **options})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"name": 5}, "name is 5; expected text or Path"),
        ({"device": 5}, "device is 5; expected text or device"),
        ({"device": "gpu"}, "device is 'gpu'; expected auto, cpu"),
        ({"dtype": "float8"}, "dtype is 'float8'; expected auto, float32"),
        ({"dtype": 16}, "dtype is 16; expected text or dtype"),
        ({"attention": "flash"}, "attention is 'flash'; expected sdpa, eager or auto"),
        ({"quantization": "int4"}, "quantization is 'int4'; expected int8, nf4 or None"),
        ({"notify": "me"}, "notify is 'me'; expected a function or None"),
    ],
)
def test_what_load_cannot_mean(options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        BaseModel.load(**{"name": "nowhere", **options})


def test_what_a_store_cannot_mean(tmp_path: Path, plain_prefix: Prefix) -> None:
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("put", {"name": 5, "prefix": plain_prefix}, "name is 5; expected text"),
        ("put", {"name": "ann/a", "prefix": 5}, "expected a Prefix"),
        ("put_many", {"prefixes": 5}, "prefixes is 5; expected a mapping"),
        ("get", {"reference": b"ann/a"}, "reference is b'ann/a'; expected text"),
        ("list", {"limit": "5"}, "limit is '5'; expected a whole number"),
        ("list", {"owner": 5}, "owner is 5; expected text or None"),
        ("label", {"reference": "ann/a", "label": 5}, "label is 5; expected text"),
        ("copy", {"source": None, "destination": "ann/b"}, "source is None; expected text"),
        ("delete", {"reference": "ann/a", "all_versions": "yes"}, "all_versions is 'yes'"),
        ("publish", {"name": "ann/a", "public": 1}, "public is 1; expected true or false"),
        ("share", {"name": "ann/a", "grantee": 5}, "grantee is 5; expected text"),
        ("as_owner", {"owner": 5}, "owner is 5; expected text"),
        ("as_owner", {"owner": "ann", "role": 5}, "role is 5; expected"),
        ("as_key", {"secret": 5}, "secret is 5; expected text"),
        ("create_key", {"owner": "ann", "role": "owner", "note": 5}, "note is 5; expected text or None"),
        ("audit", {"limit": 2.5}, "limit is 2.5; expected a whole number"),
        ("collect_garbage", {"grace": "1"}, "grace is '1'; expected a number"),
        ("export_owner", {"owner": "ann", "path": 5}, "path is 5; expected text or Path"),
        ("import_owner", {"path": 5}, "path is 5; expected text or Path"),
        ("forget", {"owner": 5}, "owner is 5; expected text"),
    ]
    with PrefixStore(tmp_path / "store") as store:
        store.put("ann/a", plain_prefix)
        for method, options, found in calls:
            with pytest.raises(UsageError, match=found):
                getattr(store, method)(**options)
        assert len(store.list(limit=numpy.int64(5))) == 1  # type: ignore[arg-type]
        assert store.collect_garbage(grace=1) is not None
    with pytest.raises(UsageError, match="memory_bytes is '1G'; expected a whole number"):
        PrefixStore(tmp_path / "other", memory_bytes="1G")  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_what_a_prefix_cannot_be_saved_to_or_read_from(tmp_path: Path, plain_prefix: Prefix) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: plain_prefix.save(3), "path is 3; expected text or PathLike"),  # type: ignore[arg-type]
        (lambda: plain_prefix.save(tmp_path / "a", overwrite="no"), "overwrite is 'no'"),  # type: ignore[arg-type]
        (lambda: Prefix.load(None), "path is None; expected text or PathLike"),  # type: ignore[arg-type]
        (lambda: Prefix.from_bytes("text"), "content is 'text'; expected bytes"),  # type: ignore[arg-type]
    ]
    for call, found in calls:
        with pytest.raises(UsageError, match=found):
            call()
    plain_prefix.save(str(tmp_path / "b"))
    assert Prefix.load(tmp_path / "b") == plain_prefix


def test_plain_data_that_is_no_plain_data_is_named(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="begin is 1; expected true or false"):
        Template(begin=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="style is 'magic'; expected separator, chat or raw"):
        Template(style="magic")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name is 5; expected text"):
        BaseIdentity(5)  # type: ignore[arg-type]
    prefix = random_prefix(tiny_base, 2)
    with pytest.raises(TypeError, match="unexpected keyword"):  # as of every function of Python
        generate(tiny_base, ["ab"], prefix, temprature=1)  # type: ignore[call-arg]
    assert tiny_base.token_losses(iter([Example("a", "b")]))  # type: ignore[arg-type]
