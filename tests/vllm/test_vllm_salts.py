"""After a load that failed: requests that wait, and those to come, look in the cache under another name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from foreword.serving.vllm import ticket
from foreword.serving.vllm.connector import PrefixConnector
from foreword.serving.vllm.plan import CacheSalts
from support.vllm_servers import SECRET

BLOCK, LENGTH = 4, 6
DIGEST = "ab" * 32


def scheduler_side() -> Any:
    """As vLLM makes it in the scheduler's process, without a vLLM."""
    connector = PrefixConnector.__new__(PrefixConnector)
    connector._block_size, connector._secret = BLOCK, SECRET
    connector._requests, connector._salted, connector._salts, connector._next = {}, {}, CacheSalts(), []
    return connector


def request(name: str, owner: str) -> Request:
    """One of vLLM's own, with a ticket for a prefix and two blocks behind it."""
    ids = [ticket.PLACEHOLDER] * LENGTH + list(range(5, 15))
    salt = ticket.salt(SECRET, owner, DIGEST)
    init_none_hash(sha256)
    made = Request(
        request_id=name,
        prompt_token_ids=ids,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        cache_salt=salt,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )
    made.kv_transfer_params = ticket.sign(SECRET, DIGEST, LENGTH, salt, ids).params()
    return made


def test_what_was_cached_behind_a_failed_load_is_found_by_nobody() -> None:
    connector = scheduler_side()
    failing, waiting, other = request("1", "alice"), request("2", "alice"), request("3", "bob")
    before = {each.request_id: list(each.block_hashes) for each in (failing, waiting, other)}
    assert before["1"] == before["2"] != before["3"]
    for each in (failing, waiting, other):
        connector.on_new_request(each)
    assert connector.get_num_new_matched_tokens(failing, 0) == (LENGTH, False)
    blocks = SimpleNamespace(get_block_ids=lambda: ([7, 8, 9, 10],))
    connector.update_state_after_alloc(failing, blocks, LENGTH)
    connector.request_finished(failing, [])  # its client has gone before the step came back
    connector.update_connector_output(SimpleNamespace(invalid_block_ids={7, 8}))
    later = request("4", "alice")
    connector.on_new_request(later)
    assert waiting.block_hashes == later.block_hashes
    assert len(later.block_hashes) == len(before["1"])
    assert not set(later.block_hashes) & set(before["1"])
    assert list(other.block_hashes) == before["3"]


def test_a_refused_request_finds_nothing_in_the_cache() -> None:
    connector = scheduler_side()
    good, forged = request("1", "alice"), request("2", "alice")
    assert good.block_hashes == forged.block_hashes
    forged.kv_transfer_params["foreword"]["signature"] = "0" * 64
    connector.on_new_request(good)
    connector.on_new_request(forged)
    assert not set(good.block_hashes) & set(forged.block_hashes)
    assert connector.get_num_new_matched_tokens(forged, 0) == (LENGTH + 9, False)
