"""Parts of the vLLM engine that need no vLLM: tickets and salts, blocks and heads, sources."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, PrefixStore, Template
from foreword.errors import (
    AlteredBlob,
    GeometryMismatch,
    UnknownPrefix,
    UnsupportedArchitecture,
    UsageError,
)
from foreword.serving.vllm import plan, ticket
from foreword.serving.vllm.checks import check_files, check_settings
from foreword.serving.vllm.plan import CacheSalts, blocks_between, slots
from foreword.serving.vllm.prefixes import (
    BLOBS,
    STORE,
    FolderSource,
    HeadShard,
    ShardedPrefix,
    ShardMemory,
    StoreSource,
    open_source,
    shard_of,
)
from support.stand_ins import random_prefix

SECRET = "0123456789abcdef" * 4
DIGEST = "ab" * 32


# -- tickets and salts -------------------------------------------------------------------------------


def signed(length: int = 3, owner: str = "alice") -> tuple[ticket.SignedRequest, str, list[int]]:
    salt = ticket.salt(SECRET, owner, DIGEST)
    ids = [ticket.PLACEHOLDER] * length + [5, 6]
    return ticket.sign(SECRET, DIGEST, length, salt, ids), salt, ids


def test_a_ticket_holds_for_the_request_that_it_was_made_for() -> None:
    made, salt, ids = signed()
    read = ticket.read(json.loads(json.dumps(made.params())))
    assert read == made
    ticket.verify(SECRET, read, salt, ids)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, salt, ids: (t, ticket.salt(SECRET, "bob", DIGEST), ids),
        lambda t, salt, ids: (t, None, ids),
        lambda t, salt, ids: (t, salt, [*ids[:-1], 7]),
        lambda t, salt, ids: (t, salt, ids[1:]),
        lambda t, salt, ids: (ticket.SignedRequest("cd" * 32, t.length, t.signature), salt, ids),
        lambda t, salt, ids: (ticket.SignedRequest(t.digest, t.length - 1, t.signature), salt, ids),
        lambda t, salt, ids: (ticket.SignedRequest(t.digest, t.length, "0" * 64), salt, ids),
        lambda t, salt, ids: (ticket.SignedRequest(t.digest, t.length, "ü"), salt, ids),
        lambda t, salt, ids: (ticket.sign("x" * 64, t.digest, t.length, salt, ids), salt, ids),
    ],
)
def test_a_ticket_holds_for_no_other_request(change: Any) -> None:
    with pytest.raises(UsageError, match="did not sign"):
        ticket.verify(SECRET, *change(*signed()))


def test_a_signed_ticket_over_text_in_the_placeholders_place_is_refused() -> None:
    _, salt, _ = signed()
    for ids in ([0, 9, 0, 5], [0, 0, 0]):
        with pytest.raises(UsageError, match="3 placeholders"):
            ticket.verify(SECRET, ticket.sign(SECRET, DIGEST, 3, salt, ids), salt, ids)


@pytest.mark.parametrize(
    "params",
    [{}, {"do_remote_prefill": True}, {"foreword": 1}, {"foreword": {"digest": DIGEST}}, "foreword", [1]],
)
def test_other_transfer_parameters_are_refused(params: Any) -> None:
    with pytest.raises(UsageError, match="without a ticket"):
        ticket.read(params)


def test_salts_differ_by_owner_prefix_and_secret() -> None:
    asked = [(o, d) for o in ("alice", "bob", "alice bob", "") for d in (DIGEST, "cd" * 32, None)]
    salts = {ticket.salt(SECRET, *pair) for pair in asked} | {ticket.salt("y" * 64, *asked[0])}
    assert len(salts) == len(asked) + 1
    assert all(len(salt) <= 128 and salt.isalnum() for salt in salts)


def test_a_short_secret_is_refused() -> None:
    assert ticket.secret_of({ticket.SECRET: SECRET}) == SECRET
    for environment in ({}, {ticket.SECRET: "short"}):
        with pytest.raises(UsageError, match=ticket.SECRET):
            ticket.secret_of(environment)


# -- blocks and heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("computed", [0, 8, 16])
def test_what_is_missing_goes_to_the_slots_that_paging_gives_it(length: int, computed: int) -> None:
    """Against a cache of eight tokens a block that is laid out by hand."""
    block_ids = [4, 1, 7, 2]
    by_hand = [(block, offset) for block in block_ids for offset in range(8)]
    want = plan.PrefixRequest(DIGEST, length)
    count = plan.tokens_to_load(want, computed)
    assert count == max(0, length - computed)
    if not count:
        return
    load = plan.load("r", want, block_ids, 8, count)
    assert load.slots == [block * 8 + offset for block, offset in by_hand[computed:length]]
    assert (load.start, load.stop) == (length - count, length)
    assert set(load.blocks) == {block for block, _ in by_hand[load.start : load.stop]}


def test_blocks_and_slots_of_no_tokens_are_none() -> None:
    assert slots([3], 8, 4, 4) == []
    assert blocks_between([3, 5], 8, 8, 8) == []


def test_every_head_is_held_by_one_worker_or_by_equally_many() -> None:
    for heads, workers in [(8, 1), (8, 2), (8, 8), (2, 4), (1, 4)]:
        held = [
            head
            for rank in range(workers)
            for head in range(heads)[HeadShard(2, heads, 16, rank, workers).heads]
        ]
        assert sorted(held) == sorted(list(range(heads)) * max(1, workers // heads))
        assert held == sorted(held)
    with pytest.raises(UsageError, match="3 key/value heads"):
        _ = HeadShard(2, 3, 16, 0, 2).heads


def test_pages_are_the_workers_own_heads_token_after_token(plain_prefix: Prefix) -> None:
    layers, heads, length, size = plain_prefix.key().shape
    for rank in range(heads):
        pages = shard_of(plain_prefix, HeadShard(layers, heads, size, rank, heads), torch.float64)
        assert pages.length == length
        for token in range(length):
            assert torch.equal(pages.key_LPHD[:, token, 0], plain_prefix.key()[:, rank, token].double())
            assert torch.equal(pages.value_LPHD[:, token, 0], plain_prefix.value()[:, rank, token].double())


def test_a_prefix_of_another_model_or_place_becomes_no_pages(tiny_base: BaseModel) -> None:
    share = HeadShard(3, 2, 8)
    with pytest.raises(GeometryMismatch, match="4 layers"):
        shard_of(random_prefix(tiny_base, 3), HeadShard(4, 2, 8), torch.float32)
    tensors = {f"decoder.{p}.{n}": torch.ones(n + 1, 3, 8) for n in (0, 1) for p in ("key", "value")}
    with pytest.raises(GeometryMismatch, match=r"2 layers \(1 of 1.*the model in vLLM has 2 layers x 2"):
        shard_of(
            dataclasses.replace(random_prefix(tiny_base, 3), tensors=tensors),
            HeadShard(2, 2, 8),
            torch.float32,
        )
    for changes in (
        {"template": Template(placement="infix")},
        {"positions": "text-after-prefix-within-window"},
    ):
        with pytest.raises(UsageError, match="in front of the text"):
            shard_of(random_prefix(tiny_base, 3, **changes), share, torch.float32)


def test_the_least_recently_used_leave_the_memory() -> None:
    def load(digest: str) -> ShardedPrefix:
        if digest == "bad":
            raise AlteredBlob("altered")
        size = 100 if digest == "large" else 10
        return ShardedPrefix(torch.zeros(1, size, 1, 1), torch.zeros(1, size, 1, 1))  # 8 bytes a token

    memory = ShardMemory(160, load)
    for digest in ("a", "b", "a", "c", "a"):
        memory.get(digest)
    assert (memory.read, len(memory), memory.size) == (3, 2, 160)
    memory.get("b")  # c, not a, has made room for it
    memory.get("a")
    assert memory.read == 4
    memory.get("large")
    memory.get("large")
    assert (memory.read, memory.size) == (6, 160)
    for _ in range(2):
        with pytest.raises(AlteredBlob):
            memory.get("bad")
    assert memory.read == 8


# -- what a request gets ------------------------------------------------------------------------------


def test_a_request_gets_what_its_ticket_says() -> None:
    made, salt, ids = signed()
    want = plan.prefix_request(SECRET, made.params(), salt, ids, reads_cache=True)
    assert want == plan.PrefixRequest(DIGEST, 3)
    assert plan.prefix_request(SECRET, None, None, ids, reads_cache=True) is None
    assert plan.tokens_to_load(None, 0) == 0


def test_a_request_that_is_refused_has_something_to_load_so_that_it_fails() -> None:
    """It finds nothing in the cache (tests/vllm/test_vllm_salts.py), so a load that fails is what it gets."""
    made, salt, ids = signed()
    refused = [
        plan.prefix_request(SECRET, made.params(), "another", ids, reads_cache=True),
        plan.prefix_request(SECRET, {"x": 1}, salt, ids, reads_cache=True),
        plan.prefix_request(SECRET, made.params(), salt, ids, reads_cache=False),
    ]
    for want in refused:
        assert want is not None
        assert want.refusal is not None
        load = plan.load("r", want, [3], 8, plan.tokens_to_load(want, 0))
        assert (load.blocks, load.refusal) == ([3], want.refusal)


# -- sources ------------------------------------------------------------------------------------------


def test_a_folder_gives_what_has_the_digest(tmp_path: Path, plain_prefix: Prefix) -> None:
    path = tmp_path / f"{plain_prefix.digest}.prefix"
    plain_prefix.save(path)
    source = FolderSource(tmp_path)
    assert source.get(plain_prefix.digest) == plain_prefix
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AlteredBlob, match="not used"):
        source.get(plain_prefix.digest)
    for digest in ("cd" * 32, "../secret", "", plain_prefix.digest.upper()):
        with pytest.raises(UnknownPrefix):
            source.get(digest)
    with pytest.raises(UsageError, match="is no folder"):
        FolderSource(path)


def test_the_store_gives_what_has_the_digest(tmp_path: Path, plain_prefix: Prefix) -> None:
    with PrefixStore(tmp_path / "store") as store:
        store.put("alice/notes", plain_prefix.relabel(licence="MIT"))
        store.put("alice/notes", plain_prefix)
        source = StoreSource(str(tmp_path / "store"), None)
        assert source.get(plain_prefix.digest) == plain_prefix
        (blob,) = (tmp_path / "store").rglob(f"{plain_prefix.digest}*.prefix")
        blob.write_bytes(blob.read_bytes()[:-4] + b"oops")
        with pytest.raises(AlteredBlob):
            source.get(plain_prefix.digest)
        store.delete("alice/notes@2")
        with pytest.raises(UnknownPrefix, match="it was deleted"):
            source.get(plain_prefix.digest)


def test_a_source_is_named_by_the_connectors_settings_or_the_environment(tmp_path: Path) -> None:
    assert isinstance(open_source({"folder": str(tmp_path)}, {STORE: "elsewhere"}), FolderSource)
    PrefixStore(tmp_path / "store").close()
    assert isinstance(open_source({}, {STORE: str(tmp_path / "store"), BLOBS: ""}), StoreSource)
    with pytest.raises(UsageError, match=STORE):
        open_source({}, {})


# -- salts --------------------------------------------------------------------------------------------


def test_a_failure_ends_what_is_cached_under_its_salt_alone() -> None:
    salts = CacheSalts()
    salts.placed([1, 2], "alice")
    salts.placed([3], "bob")
    assert salts.failed([7]) == set()
    assert salts.now("alice") == "alice"
    assert salts.failed([2, 1]) == {"alice"}
    once = salts.now("alice")
    assert once != "alice"
    assert salts.now("bob") == "bob"
    salts.placed([3], "alice")  # the block is hers now
    assert salts.failed([3]) == {"alice"}
    assert salts.now("alice") not in ("alice", once)
    assert salts.now("bob") == "bob"


# -- settings under which prefixes would go wrong -----------------------------------------------------


class FullAttentionSpec:
    """By the name that vLLM's has."""

    sliding_window: int | None = None


class SlidingWindowSpec:
    sliding_window = 64


def settings_of(**given: Any) -> tuple[Any, Any]:
    """vLLM's own, as far as they are looked at; all well but for what is given."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=given.get("pipeline_parallel_size", 1)),
        kv_transfer_config=SimpleNamespace(kv_load_failure_policy=given.get("policy", "fail")),
        speculative_config=given.get("speculative"),
        model_config=SimpleNamespace(max_model_len=256),
    )
    specs = given.get("specs", [FullAttentionSpec()])
    return config, SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"policy": "recompute"}, UsageError, "kv_load_failure_policy is 'recompute'"),
        ({"pipeline_parallel_size": 2}, UsageError, "pipeline_parallel_size is 2"),
        ({"speculative": object()}, UsageError, "speculative"),
        (
            {"specs": [SlidingWindowSpec()]},
            UnsupportedArchitecture,
            "the last 64 tokens only.*`foreword generate` runs",
        ),
        ({"specs": [FullAttentionSpec()] * 2}, UnsupportedArchitecture, "2 groups.*`foreword generate` runs"),
    ],
)
def test_settings_that_would_give_wrong_text_are_refused(
    given: dict[str, Any], error: type[Exception], told: str
) -> None:
    check_settings(*settings_of())
    with pytest.raises(error, match=told):
        check_settings(*settings_of(**given))


# -- files of weights ----------------------------------------------------------------------------------


def test_a_folder_of_which_vllm_would_load_a_second_copy_is_refused(tmp_path: Path) -> None:
    """As vLLM's loader has it: the index's shards where there is an index, else every file."""
    (tmp_path / "model.safetensors").touch()
    check_files(tmp_path)
    (tmp_path / "model.fp16.safetensors").touch()
    with pytest.raises(UsageError, match=r"differ in model\.fp16\.safetensors"):
        check_files(tmp_path)
    (tmp_path / "model.fp16.safetensors").unlink()
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    with pytest.raises(UsageError, match=r"differ in a\.safetensors, model\.safetensors"):
        check_files(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    check_files(tmp_path)
