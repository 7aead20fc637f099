"""The KV connector that hands prefixes to an unmodified vLLM as if their tokens had been computed elsewhere.

vLLM makes one in the scheduler's process and one in each worker. The scheduler's says of a request that the
gateway has signed that its first P tokens are to be had, and which blocks they go to; the workers' write them
there before the step's forward pass. Nothing remembers what was loaded: after preemption or eviction vLLM
asks again, and the prefix is loaded again. A load that fails fails the request: placeholders are never run
as text.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

import vllm
from foreword.base.joining import KeyRotation, check_joinable, concatenated, rotations_of
from foreword.errors import GeometryMismatch
from foreword.models.fingerprint import fingerprint, former_fingerprint
from foreword.serving.vllm import plan
from foreword.serving.vllm.checks import (
    attention_layers,
    check_base,
    check_files,
    check_settings,
    check_version,
    has_long_factors,
    share_of,
    weights_of,
)
from foreword.serving.vllm.plan import CacheSalts
from foreword.serving.vllm.prefixes import JOINED, ShardedPrefix, ShardMemory, open_source, shard_of
from foreword.serving.vllm.ticket import secret_of

LOGGER = logging.getLogger("vllm.foreword")
MEMORY_BYTES = 1 << 30
"""Bytes of prefixes that a worker keeps, unless `memory_bytes` in the connector's settings says otherwise."""


@dataclass
class Loads(KVConnectorMetadata):
    """What the workers write before the next forward pass."""

    loads: list[plan.Load] = field(default_factory=list)


class PrefixConnector(KVConnectorBase_V1, SupportsHMA):
    """Settings: `folder` of prefix files (else the store of the environment), `memory_bytes`."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """
        Raises:
            UsageError: no secret, no source of prefixes, a vLLM that is too old, a setting under which
                prefixes would go wrong, or a folder with a second copy of the weights that vLLM loads.
            UnsupportedArchitecture: a model whose attention does not see a prefix from everywhere.
            CannotRead: a folder of weights that are no safetensors.
        """
        if (untried := check_version(vllm.__version__)) is not None:
            LOGGER.warning(untried)
        super().__init__(vllm_config, role, kv_cache_config)
        check_settings(vllm_config, kv_cache_config)
        self._block_size = int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        self._secret = secret_of(os.environ)
        self._requests: dict[str, plan.PrefixRequest] = {}
        self._salts = CacheSalts()
        self._salted: dict[str, tuple[Any, str]] = {}
        self._next: list[plan.Load] = []
        self._failed: set[int] = set()
        if role == KVConnectorRole.WORKER:
            extra = vllm_config.kv_transfer_config.kv_connector_extra_config
            self._source = open_source(extra, os.environ)
            self._share = share_of(vllm_config)
            self._model, self._long_context = vllm_config.model_config.model, has_long_factors(vllm_config)
            if (folder := Path(self._model)).is_dir():
                check_files(folder)
            self._weights = weights_of(vllm_config, fingerprint)
            self._former = weights_of(vllm_config, former_fingerprint)
            self._dtype = vllm_config.model_config.dtype
            self._memory = ShardMemory(int(extra.get("memory_bytes", MEMORY_BYTES)), self._read)

    # -- in the scheduler's process --------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Read what the gateway signed, and take it out: vLLM trips over parameters that are not its own."""
        params, request.kv_transfer_params = request.kv_transfer_params, None
        want = plan.prefix_request(
            self._secret,
            params,
            request.cache_salt,
            request.prompt_token_ids or (),
            reads_cache=not request.skip_reading_prefix_cache,
        )
        if want is None:
            return
        if request.skip_reading_prefix_cache:
            # Else vLLM would not take what is loaded, and the request could not be failed; and it trips over
            # log-probabilities of a prompt that it has computed in part.
            request.skip_reading_prefix_cache = False
            request.sampling_params.prompt_logprobs = None
        self._requests[request.request_id] = want
        # One that is refused finds nothing in the cache, so that there is something to load, and to fail.
        salt = request.cache_salt or "" if want.refusal is None else f"refused: {request.request_id}"
        self._salted[request.request_id] = request, salt
        if self._salts.now(salt) != request.cache_salt:
            self._salt_anew(request, salt)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """What is missing of the request's prefix; loaded in the step itself."""
        return plan.tokens_to_load(self._requests.get(request.request_id), num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note where the prefix goes."""
        if num_external_tokens == 0:
            return
        (block_ids,) = blocks.get_block_ids()
        want = self._requests[request.request_id]
        load = plan.load(request.request_id, want, block_ids, self._block_size, num_external_tokens)
        self._salts.placed(load.blocks, self._salted[request.request_id][1])
        self._next.append(load)

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Hand the step's loads to the workers."""
        loads, self._next = self._next, []
        return Loads(loads)

    def update_connector_output(self, connector_output: Any) -> None:
        """After loads that failed, nothing that the cache has under their salts is found any more."""
        salts = self._salts.failed(connector_output.invalid_block_ids or ())
        for request, salt in self._salted.values():
            if salt in salts:
                self._salt_anew(request, salt)

    def _salt_anew(self, request: Any, salt: str) -> None:
        request.cache_salt = self._salts.now(salt)
        request.block_hashes.clear()
        request.update_block_hashes()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Forget the request; its blocks may go."""
        self._requests.pop(request.request_id, None)
        self._salted.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        """As `request_finished`."""
        return self.request_finished(request, [])

    # -- in a worker -----------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        """Write the step's prefixes into the cache; note the blocks of those that can't be."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        for load in metadata.loads:
            if load.refusal is not None:
                self._fail(load, load.refusal)
                continue
            try:
                shard = self._memory.get(load.digest)
                if shard.length < load.stop:
                    raise GeometryMismatch(
                        f"the prefix has {shard.length} tokens, the request counts on {load.stop}"
                    )
                self._write(forward_context, load, shard)
            except Exception as error:  # whatever it is, it is this request's alone, and fails it
                self._fail(load, f"{type(error).__name__}: {error}")

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks without what they should hold; vLLM fails their requests."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: all is written when the forward pass begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Nothing is saved: prefixes are only read."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def _read(self, digest: str) -> ShardedPrefix:
        parts = [self._source.get(each) for each in digest.split(JOINED)]
        declared = self._source.equivalents(self._weights)
        for part in parts:
            check_base(part, self._weights, {*declared, self._former})
        check_joinable(parts)
        prefix = parts[0] if len(parts) == 1 else concatenated(parts, self._rotations)
        prefix.check_dtype(self._dtype)
        return shard_of(prefix, self._share, self._dtype)

    @functools.cached_property
    def _rotations(self) -> tuple[KeyRotation, ...]:
        """How keys are moved: of transformers' model with this configuration, as the gateway moves them."""
        return rotations_of(self._model, long_context=self._long_context)

    def _write(self, forward_context: Any, load: plan.Load, shard: ShardedPrefix) -> None:
        layers = attention_layers(forward_context.no_compile_layers)
        if len(layers) != self._share.layers:
            raise GeometryMismatch(f"found {len(layers)} attention layers, expected {self._share.layers}")
        slots_P = torch.tensor(load.slots, dtype=torch.int64)
        for index, layer in layers.items():
            key_PHD, value_PHD = (
                stacked[index, load.start : load.stop].to(layer.kv_cache.device)
                for stacked in (shard.key_LPHD, shard.value_LPHD)
            )
            # The layer's own way in: what a cache looks like inside is the attention backend's business.
            layer.impl.do_kv_cache_update(
                layer, key_PHD, value_PHD, layer.kv_cache, slots_P.to(layer.kv_cache.device)
            )

    def _fail(self, load: plan.Load, why: str) -> None:
        LOGGER.error("request %s fails, its prefix %s is not loaded: %s", load.request, load.digest[:12], why)
        self._failed.update(load.blocks)
