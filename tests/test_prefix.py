"""The prefix file: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword import Prefix
from foreword.errors import (
    BadPrefix,
    CannotRead,
    CannotWrite,
    GeometryMismatch,
    NonFinitePrefix,
    NotAPrefixFile,
    OutputExists,
    TruncatedPrefix,
    UnsupportedGeometry,
    UnsupportedVersion,
    UsageError,
    WrongBaseModel,
)
from foreword.prefix import BaseIdentity, Geometry, Origin, StreamGeometry

FIXTURES = Path(__file__).parent / "upgrade" / "fixtures" / "prefixes"


def header_of(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def with_header(prefix: Prefix, **changes: object) -> bytes:
    described = json.loads(header_of(prefix.to_bytes())["__metadata__"]["foreword"]) | changes
    return safetensors.torch.save(dict(prefix.tensors), metadata={"foreword": json.dumps(described)})


def test_a_saved_prefix_comes_back_whole(plain_prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.prefix"
    plain_prefix.save(path)
    loaded = Prefix.load(path)
    assert loaded == plain_prefix
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.template == plain_prefix.template
    assert loaded.labels == {"note": "größer"}
    assert torch.equal(loaded.key("decoder"), plain_prefix.key("decoder"))
    assert list(loaded.key("decoder").shape) == [3, 2, 5, 8]


def test_the_rule_of_positions_is_kept_in_the_file(plain_prefix: Prefix, tmp_path: Path) -> None:
    near = dataclasses.replace(plain_prefix, positions="text-after-prefix-within-window")
    near.save(tmp_path / "p.prefix")
    loaded = Prefix.load(tmp_path / "p.prefix")
    assert loaded.positions == "text-after-prefix-within-window"
    assert loaded.digest != plain_prefix.digest
    assert loaded.slice(0, 2).positions == loaded.to(torch.bfloat16).positions == loaded.positions
    with pytest.raises(UsageError, match="positions"):
        Prefix.join([plain_prefix, loaded])


def test_an_unknown_rule_of_positions_is_refused(plain_prefix: Prefix) -> None:
    with pytest.raises(UsageError, match="text-at-zero"):
        dataclasses.replace(plain_prefix, positions="text-at-zero")


def test_the_file_is_plain_safetensors(plain_prefix: Prefix, tmp_path: Path) -> None:
    plain_prefix.save(tmp_path / "p.prefix")
    tensors = safetensors.torch.load_file(tmp_path / "p.prefix")
    assert torch.equal(tensors["decoder.value"], plain_prefix.value())


def test_an_existing_file_is_kept_unless_told(plain_prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.prefix"
    path.write_text("mine")
    with pytest.raises(OutputExists, match="--overwrite"):
        plain_prefix.save(path)
    assert path.read_text() == "mine"
    plain_prefix.save(path, overwrite=True)
    assert Prefix.load(path) == plain_prefix


def test_a_full_disk_leaves_the_old_file(
    plain_prefix: Prefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.prefix"
    path.write_text("mine")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        plain_prefix.save(path, overwrite=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(plain_prefix: Prefix, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="does not exist"):
        plain_prefix.save(tmp_path / "absent" / "p.prefix")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_being_killed_while_saving_leaves_the_old_file(plain_prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.prefix"
    plain_prefix.save(path)
    script = (
        "import sys, os, signal, torch\n"
        "from foreword import Prefix\n"
        "p = Prefix.load(sys.argv[1])\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Prefix.join([p, p]).save(sys.argv[1], overwrite=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Prefix.load(path) == plain_prefix


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_a_bad_prefix_or_the_same_numbers(
    plain_prefix: Prefix, data: st.DataObject
) -> None:
    content = bytearray(plain_prefix.to_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        (length,) = struct.unpack("<Q", content[:8])
        content[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = Prefix.from_bytes(bytes(content))
    except BadPrefix:
        return
    # A changed letter of a label or a name is nothing that can be told; the numbers are as they were.
    assert all(torch.equal(loaded.tensors[name], plain_prefix.tensors[name]) for name in loaded.tensors)


def test_no_changed_byte_of_the_header_is_anything_but_a_bad_prefix(plain_prefix: Prefix) -> None:
    content = plain_prefix.to_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for place in range(8 + length):
        for value in (0x00, ord("9"), ord(","), ord("]"), 0xFF):
            changed = content[:place] + bytes([value]) + content[place + 1 :]
            with contextlib.suppress(BadPrefix):
                Prefix.from_bytes(changed)


def test_each_way_to_be_no_prefix_has_its_own_error(plain_prefix: Prefix, tmp_path: Path) -> None:
    content = plain_prefix.to_bytes()
    foreign = safetensors.torch.save({"a": torch.zeros(2)})
    with pytest.raises(NotAPrefixFile, match="found other content"):
        Prefix.from_bytes(b"PK\x03\x04 a zip file, perhaps a pickle")
    with pytest.raises(NotAPrefixFile, match="imported"):
        Prefix.from_bytes(foreign)
    with pytest.raises(NotAPrefixFile, match="0 bytes"):
        Prefix.from_bytes(b"")
    with pytest.raises(TruncatedPrefix, match="fetch it again"):
        Prefix.from_bytes(content[:-10])
    with pytest.raises(TruncatedPrefix):
        Prefix.from_bytes(content[:60])
    with pytest.raises(UnsupportedVersion, match="version 99"):
        Prefix.from_bytes(with_header(plain_prefix, version=99))
    with pytest.raises(UnsupportedVersion, match="text-at-zero"):
        Prefix.from_bytes(with_header(plain_prefix, positions="text-at-zero"))
    with pytest.raises(NotAPrefixFile, match="unexpected form"):
        Prefix.from_bytes(with_header(plain_prefix, template={"style": "separator", "trick": 1}))
    with pytest.raises(GeometryMismatch, match="header declares"):
        Prefix.from_bytes(with_header(plain_prefix, geometry={}))
    with pytest.raises(CannotRead, match=r"absent\.prefix"):
        Prefix.load(tmp_path / "absent.prefix")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": "xy"},
        {"labels": [1]},
        {"labels": {"a": 1}},
        {"created": 5},
        {"licence": 5},
        {"base": {"name": None}},
        {"base": {"name": "a", "fingerprint": 12}},
        {"origin": {"dev_loss": "x"}},
        {"origin": {"steps": 1.5}},
        {"template": {"separator": None}},
        {"template": {"end": 5}},
        {"template": {"begin": "yes"}},
    ],
)
def test_a_header_field_of_another_type_is_refused(plain_prefix: Prefix, changes: dict) -> None:
    with pytest.raises(NotAPrefixFile, match="unexpected form"):
        Prefix.from_bytes(with_header(plain_prefix, **changes))


def test_nan_is_refused_when_made_and_when_read(plain_prefix: Prefix) -> None:
    spoilt = {name: tensor.clone() for name, tensor in plain_prefix.tensors.items()}
    spoilt["decoder.key"][1, 0, 2, 3] = float("nan")
    with pytest.raises(NonFinitePrefix, match=r"decoder\.key holds 1 values"):
        Prefix(tensors=spoilt, base=plain_prefix.base)
    described = header_of(plain_prefix.to_bytes())["__metadata__"]
    with pytest.raises(NonFinitePrefix, match="here: decoder"):
        Prefix.from_bytes(safetensors.torch.save(spoilt, metadata=described), where="here")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"decoder.key": torch.zeros(1, 1, 1, 1)},
        {"decoder.key": torch.zeros(1, 1, 1, 1), "decoder.value": torch.zeros(2, 1, 1, 1)},
        {"decoder.key": torch.zeros(1, 1, 0, 1), "decoder.value": torch.zeros(1, 1, 0, 1)},
        {"decoder.key": torch.zeros(1, 1, 1), "decoder.value": torch.zeros(1, 1, 1)},
        {"decoder.key": torch.zeros(1, 1, 1, 1, dtype=torch.long), "decoder.value": torch.zeros(1, 1, 1, 1)},
        {"lora.A": torch.zeros(1, 1, 1, 1), "lora.B": torch.zeros(1, 1, 1, 1)},
    ],
)
def test_tensors_that_make_no_prefix_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(GeometryMismatch):
        Prefix(tensors=tensors, base=BaseIdentity("any"))


def test_another_base_is_refused_with_both_names(plain_prefix: Prefix) -> None:
    fits = plain_prefix.geometry
    plain_prefix.check_fits(BaseIdentity("tiny-llama", None, "ab" * 32), fits)
    with pytest.raises(WrongBaseModel, match="weights abababababab.*weights cdcdcdcdcdcd"):
        plain_prefix.check_fits(BaseIdentity("other", None, "cd" * 32), fits)
    plain_prefix.check_fits(BaseIdentity("other", None, "cd" * 32), fits, {"ab" * 32})  # declared
    with pytest.raises(WrongBaseModel, match="declare_equivalent") as refused:
        plain_prefix.check_fits(BaseIdentity("other", None, "cd" * 32), fits, {"cd" * 32, "ef" * 32})
    assert "foreword store" not in str(refused.value)  # which is the command line's to say
    with pytest.raises(GeometryMismatch, match="4 layers"):
        plain_prefix.check_fits(plain_prefix.base, Geometry({"decoder": StreamGeometry(4, 2, 8, 8)}))


def test_slices_join_to_the_whole(plain_prefix: Prefix) -> None:
    joined = Prefix.join([plain_prefix.slice(0, 2), plain_prefix.slice(2)])
    assert torch.equal(joined.key(), plain_prefix.key())
    assert torch.equal(joined.value(), plain_prefix.value())
    assert plain_prefix.slice(1, 3).length == 2
    with pytest.raises(UsageError, match="keeps nothing"):
        plain_prefix.slice(5)


def test_join_refuses_prefixes_of_two_models(plain_prefix: Prefix) -> None:
    other = Prefix(tensors=plain_prefix.tensors, base=BaseIdentity("other", None, "cd" * 32))
    with pytest.raises(WrongBaseModel):
        Prefix.join([plain_prefix, other])


def test_a_prefix_does_not_follow_later_changes_of_its_tensors() -> None:
    key = torch.ones(1, 1, 2, 2, requires_grad=True)
    prefix = Prefix(
        tensors={"decoder.key": key, "decoder.value": torch.ones(1, 1, 2, 2)}, base=BaseIdentity("any")
    )
    with torch.no_grad():
        key.mul_(2)
    assert prefix.key().max() == 1
    assert not prefix.key().requires_grad


def test_repr_says_what_it_is(plain_prefix: Prefix) -> None:
    assert repr(plain_prefix).startswith(
        "Prefix(length=5, base='tiny-llama', decoder: 3 layers x 2 key/value heads x 8"
    )


# -- version 2 ---------------------------------------------------------------------------------


def described(content: bytes) -> dict:
    return json.loads(header_of(content)["__metadata__"]["foreword"])


def version_1(prefix: Prefix, **changes: object) -> bytes:
    return with_header(prefix, version=1, **changes)


def test_what_is_optional_comes_back_whole(plain_prefix: Prefix, tmp_path: Path) -> None:
    full = dataclasses.replace(
        plain_prefix,
        template_digest="0f" * 32,
        report={"dev_loss": 1.5, "recovered_share": 0.8, "harm": 0.01, "questions": 40},
        recipe={"teacher": {"temperature": 1.0}, "chunks": ["a", "ü", None, True]},
    )
    full.save(tmp_path / "p.prefix")
    loaded = Prefix.load(tmp_path / "p.prefix")
    assert loaded == full
    assert loaded != plain_prefix
    assert loaded.digest == full.digest == hashlib.sha256((tmp_path / "p.prefix").read_bytes()).hexdigest()
    assert (loaded.template_digest, loaded.report, loaded.recipe) == (
        full.template_digest,
        full.report,
        full.recipe,
    )
    assert {"template_digest", "report", "recipe", "optional"}.isdisjoint(described(plain_prefix.to_bytes()))
    assert described(plain_prefix.to_bytes())["version"] == 2


def test_what_was_measured_is_not_said_of_other_keys_and_values(plain_prefix: Prefix) -> None:
    told = dataclasses.replace(plain_prefix, report={"harm": 0.1}, recipe={"a": 1}, extra={"new": 1})
    for other in (told.slice(0, 2), told.to(torch.float64), Prefix.join([told, told])):
        assert (other.report, other.extra, other.recipe) == ({}, {}, {"a": 1})
    assert told.relabel(labels={"b": "c"}).extra == {"new": 1}


def test_an_optional_field_of_a_later_release_is_kept(plain_prefix: Prefix, tmp_path: Path) -> None:
    content = with_header(
        plain_prefix, gate={"layers": [1, 2]}, mood="good", optional=["mood", "gate", "absent"]
    )
    loaded = Prefix.from_bytes(content)
    assert loaded.extra == {"gate": {"layers": [1, 2]}, "mood": "good"}
    loaded.save(tmp_path / "same.prefix")
    assert (tmp_path / "same.prefix").read_bytes() == content
    assert loaded.digest == hashlib.sha256(content).hexdigest()
    relabelled = Prefix.from_bytes(loaded.relabel(labels={"a": "b"}).to_bytes())
    assert relabelled.extra == loaded.extra
    assert described(relabelled.to_bytes())["optional"] == ["gate", "mood"]


def test_an_unknown_field_that_is_not_optional_is_refused(plain_prefix: Prefix) -> None:
    with pytest.raises(UnsupportedVersion, match=r"must not ignore: gate\. Update"):
        Prefix.from_bytes(with_header(plain_prefix, gate=1, mood=1, optional=["mood"]))
    with pytest.raises(UsageError, match="extra has base"):
        dataclasses.replace(plain_prefix, extra={"base": {}})


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*.prefix")))
def test_a_file_of_version_1_keeps_its_bytes_and_its_identity(name: str, tmp_path: Path) -> None:
    content = (FIXTURES / name).read_bytes()
    assert described(content)["version"] == 1
    prefix = Prefix.load(FIXTURES / name)
    assert prefix.digest == hashlib.sha256(content).hexdigest()
    prefix.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content
    changed = prefix.relabel(labels={"a": "b"})
    assert described(changed.to_bytes())["version"] == 2
    assert changed.digest != prefix.digest
    assert changed.relabel(labels=prefix.labels) == prefix  # equal, though its file would be another


def test_bytes_in_another_order_are_kept_too(plain_prefix: Prefix) -> None:
    header, (key, value) = header_of(plain_prefix.to_bytes()), (plain_prefix.key(), plain_prefix.value())
    size = key.numel() * 4
    header["decoder.key"]["data_offsets"], header["decoder.value"]["data_offsets"] = (
        [size, 2 * size],
        [0, size],
    )
    text = json.dumps(header, indent=1).encode() + b"   "
    content = struct.pack("<Q", len(text)) + text + value.numpy().tobytes() + key.numpy().tobytes()
    loaded = Prefix.from_bytes(content)
    assert loaded == plain_prefix
    assert loaded.to_bytes() == content
    assert loaded.digest == hashlib.sha256(content).hexdigest() != plain_prefix.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {str(n): "x" for n in range(65)}}, "65 labels; expected 64"),
        ({"labels": {"x" * 65: "x"}}, "name of a label has 65 characters; expected 64"),
        ({"labels": {"a": "x" * 1025}}, "label 'a' has 1,025 characters; expected 1,024"),
        ({"licence": "x" * 1025}, "licence has 1,025 characters; expected 1,024"),
        ({"report": {"a": "x" * 8184}}, "report has 8,193 bytes as JSON; expected 8,192"),
        ({"recipe": {"a": "x" * 16376}}, "recipe has 16,385 bytes as JSON; expected 16,384"),
        ({"template_digest": "0F" * 32}, "template_digest is '0F.*expected 64"),
        (
            {"labels": {f"{n}": "x" * 1024 for n in range(64)}},
            r"header .* bytes; expected 65,536|have .* 65,536",
        ),
    ],
)
def test_a_limit_holds_for_writing_and_reading(plain_prefix: Prefix, changes: dict, message: str) -> None:
    beyond = dataclasses.replace(plain_prefix, **changes)
    with pytest.raises(UsageError, match=message):
        beyond.to_bytes()
    with pytest.raises(NotAPrefixFile, match=message):
        Prefix.from_bytes(with_header(plain_prefix, **changes))
    repr(beyond)  # it can still be looked at


def test_what_is_at_a_limit_is_taken(plain_prefix: Prefix) -> None:
    labels = {f"{n:064}": "x" for n in range(63)} | {"a": "x" * 1024}
    full = dataclasses.replace(
        plain_prefix, labels=labels, licence="x" * 1024, report={"a": "x" * 8183}, recipe={"a": "x" * 16375}
    )
    assert Prefix.from_bytes(full.to_bytes()) == full


def test_files_of_version_1_had_no_limits_of_their_own(plain_prefix: Prefix) -> None:
    labels = {f"{n:0100}": "x" * 2000 for n in range(100)}
    loaded = Prefix.from_bytes(
        version_1(plain_prefix, labels=labels, unknown=1, origin={"dev_loss": float("nan")})
    )
    assert loaded.labels == labels
    assert loaded.extra == {}
    assert Prefix.from_bytes(loaded.to_bytes()) == loaded
    with pytest.raises(UsageError, match="100 labels"):
        loaded.relabel(licence="MIT").to_bytes()
    with pytest.raises(NotAPrefixFile, match="1,048,576 bytes at most"):
        Prefix.from_bytes(version_1(plain_prefix, labels={"a": "x" * 1_048_576}))


def test_a_number_that_json_has_not_is_not_written(plain_prefix: Prefix) -> None:
    with pytest.raises(UsageError, match="finite"):
        dataclasses.replace(plain_prefix, report={"harm": float("inf")})
    spoilt = dataclasses.replace(plain_prefix, origin=Origin(dev_loss=float("nan")))
    assert Prefix.from_bytes(spoilt.to_bytes()).origin.dev_loss is None
    with pytest.raises(UsageError, match="holds a set"):
        dataclasses.replace(plain_prefix, recipe={"a": {1}})


def by_layer(plain_prefix: Prefix, heads: list[int], shapes: list[list[int]], **sizes: object) -> bytes:
    tensors = {
        f"decoder.{part}.{layer}": torch.ones(shape)
        for layer, shape in enumerate(shapes)
        if 0 not in shape
        for part in ("key", "value")
    }
    geometry = {"layers": len(heads), "kv_heads": heads, "key_dim": 8, "value_dim": 8, **sizes}
    text = json.dumps(described(plain_prefix.to_bytes()) | {"geometry": {"decoder": geometry}})
    return safetensors.torch.save(tensors, metadata={"foreword": text})


def test_a_file_of_sizes_that_differ_by_layer_is_read(plain_prefix: Prefix) -> None:
    """Made by safetensors alone, as docs/format.md has it."""
    content = by_layer(plain_prefix, [2, 1], [[2, 5, 8], [1, 5, 16]], key_dim=[8, 16], value_dim=[8, 16])
    prefix = Prefix.from_bytes(content)
    assert prefix.digest == hashlib.sha256(content).hexdigest()
    assert prefix.to_bytes() == content
    assert prefix.geometry == Geometry({"decoder": StreamGeometry(2, (2, 1), (8, 16), (8, 16))})
    assert (prefix.length, prefix.numel(), prefix.streams) == (5, 2 * (80 + 80), ("decoder",))
    assert [(tuple(key.shape), tuple(value.shape)) for key, value in prefix.layers()] == [
        ((2, 5, 8), (2, 5, 8)),
        ((1, 5, 16), (1, 5, 16)),
    ]
    assert "2 layers (1 of 2 key/value heads x 8, 1 of 1 key/value heads x 16)" in repr(prefix)
    with pytest.raises(UsageError, match=r"differ by layer.*prefix\.layers\('decoder'\)"):
        prefix.key()
    # A list may say what one number would, beside one that does not.
    sizes = {"key_dim": [8, 8], "value_dim": 8}
    assert Prefix.from_bytes(by_layer(plain_prefix, [2, 1], [[2, 5, 8], [1, 5, 8]], **sizes)).length == 5


def test_a_prefix_of_sizes_by_layer_goes_through_all_that_a_prefix_can(
    plain_prefix: Prefix, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 8), (1, 4, 16), (2, 4, 8)]
    tensors = {
        f"decoder.{part}.{layer}": torch.randn(shape, generator=generator)
        for layer, shape in enumerate(shapes)
        for part in ("key", "value")
    }
    prefix = dataclasses.replace(plain_prefix, tensors=tensors)
    prefix.save(tmp_path / "p.prefix")
    loaded = Prefix.load(tmp_path / "p.prefix")
    assert loaded == prefix
    assert loaded.digest == prefix.digest == hashlib.sha256((tmp_path / "p.prefix").read_bytes()).hexdigest()
    assert described(prefix.to_bytes())["geometry"] == {
        "decoder": {"layers": 3, "kv_heads": [2, 1, 2], "key_dim": [8, 16, 8], "value_dim": [8, 16, 8]}
    }
    first, rest = prefix.slice(0, 1), prefix.slice(1)
    assert (first.length, rest.length) == (1, 3)
    joined = Prefix.join([first, rest])
    assert all(torch.equal(joined.tensors[name], tensors[name]) for name in tensors)
    assert torch.equal(rest.layers()[1][0], tensors["decoder.key.1"][:, 1:])
    assert prefix.to(torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(GeometryMismatch, match="other geometry"):
        Prefix.join([prefix, plain_prefix])
    with pytest.raises(
        GeometryMismatch, match=r"has decoder keys.*3 layers \(2 of 2.*no decoder|3 layers x 2"
    ):
        prefix.check_fits(prefix.base, plain_prefix.geometry)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.key.1": None, "decoder.value.1": None}, r"expected.*decoder\.key\.1"),
        ({"decoder.value.1": None}, "stands alone"),
        ({"decoder.key.01": torch.ones(1, 4, 8), "decoder.value.01": torch.ones(1, 4, 8)}, "named"),
        ({"decoder.key": torch.ones(1, 2, 4, 8), "decoder.value": torch.ones(1, 2, 4, 8)}, "named"),
        ({"decoder.key.1": torch.ones(1, 3, 8), "decoder.value.1": torch.ones(1, 3, 8)}, r"lengths \[3, 4\]"),
        (
            {"decoder.key.1": torch.ones(2, 4, 8), "decoder.value.1": torch.ones(2, 4, 8)},
            "one tensor for all",
        ),
        ({"decoder.key.1": torch.ones(4, 8), "decoder.value.1": torch.ones(4, 8)}, r"expected \[kv_heads, P"),
    ],
)
def test_tensors_by_layer_that_do_not_belong_together_are_refused(
    plain_prefix: Prefix, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    shapes = [(2, 4, 8), (1, 4, 8), (2, 4, 8)]
    tensors = {
        f"decoder.{p}.{n}": torch.ones(shape) for n, shape in enumerate(shapes) for p in ("key", "value")
    }
    if "decoder.key.1" in changes and changes["decoder.key.1"] is not None:
        tensors.pop("decoder.key.2"), tensors.pop("decoder.value.2")
    changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    with pytest.raises(GeometryMismatch, match=message):
        dataclasses.replace(plain_prefix, tensors=changed)


def test_what_a_file_of_sizes_by_layer_may_not_be_is_refused_by_name(plain_prefix: Prefix) -> None:
    content = by_layer(plain_prefix, [2, 0, 1], [[2, 5, 8], [0], [1, 5, 8]])
    with pytest.raises(UnsupportedGeometry, match=r"layers without keys and values.*\[2, 0, 1\].*Update"):
        Prefix.from_bytes(content)
    with pytest.raises(GeometryMismatch, match="one tensor for all"):
        Prefix.from_bytes(by_layer(plain_prefix, [2, 2], [[2, 5, 8], [2, 5, 8]]))
    with pytest.raises(
        GeometryMismatch, match=r"decoder\.key\.1 has the shape \[1, 5, 8\]; the header declares \[2, 5, 8\]"
    ):
        Prefix.from_bytes(by_layer(plain_prefix, [2, 2], [[2, 5, 8], [1, 5, 8]]))
    with pytest.raises(GeometryMismatch, match=r"lengths \[4, 5\]"):
        Prefix.from_bytes(by_layer(plain_prefix, [2, 2], [[2, 5, 8], [2, 4, 8]]))
    with pytest.raises(GeometryMismatch, match=r"decoder\.key\.1"):
        Prefix.from_bytes(by_layer(plain_prefix, [2, 2], [[2, 5, 8]]))


def test_bytes_and_digest_of_layers_of_one_size_are_what_they_were() -> None:
    """Digests that the release without sizes by layer gave."""
    numbers = torch.arange(24, dtype=torch.float32).reshape(2, 1, 3, 4)
    tensors = {"decoder.key": numbers, "decoder.value": -numbers / 7}
    made = {"created": "2026-11-30T00:00:00+00:00"}
    prefix = Prefix(tensors, BaseIdentity("m", "r", "f"), labels={"a": "b"}, **made)
    assert prefix.digest == "782044fb2b3e93c9d462dca9284083a6425ec7733f23a93b8c6d79194e12f28e"
    names = [f"{s}.{part}" for s in ("decoder", "encoder", "cross") for part in ("key", "value")]
    streams = Prefix({name: numbers.half() + n for n, name in enumerate(names)}, BaseIdentity("m"), **made)
    assert streams.digest == "6783a524ff92571901d80a95751697a97e37a63d73464c673ea1f32aefd25dcd"


def test_a_file_that_claims_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.prefix"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2 * 1024**3) + b'{"a":')
        file.truncate(3 * 1024**3)  # a sparse file: the disk holds its first block alone
    tracemalloc.start()
    try:
        with pytest.raises(NotAPrefixFile, match="1,048,576 bytes at most"):
            Prefix.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()


def test_a_file_that_goes_on_behind_its_tensors_is_not_read_to_its_end(
    plain_prefix: Prefix, tmp_path: Path
) -> None:
    path = tmp_path / "long.prefix"
    path.write_bytes(plain_prefix.to_bytes())
    os.truncate(path, 3 * 1024**3)
    with pytest.raises(NotAPrefixFile, match="bytes behind its tensors"):
        Prefix.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_as_well_as_a_file(plain_prefix: Prefix, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "p").write_bytes(plain_prefix.to_bytes())
    with subprocess.Popen(f"cat {tmp_path / 'p'} > {tmp_path / 'pipe'}", shell=True):
        assert Prefix.load(tmp_path / "pipe") == plain_prefix
