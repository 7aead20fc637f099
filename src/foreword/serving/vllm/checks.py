"""What the connector demands of a vLLM's settings and model, and which layers take a prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from foreword.base.rope import long_fingerprint, short_positions
from foreword.errors import UnsupportedArchitecture, UsageError, WrongBaseModel
from foreword.models.fingerprint import INDEX, shards_of, short, weight_files
from foreword.prefix import Prefix
from foreword.serving.vllm.prefixes import HeadShard

OLDEST, NEWEST = (0, 31), (0, 32)
"""Of vLLM: the connector's interface moves with its versions, and `make test-vllm` ran on these."""


def check_version(version: str) -> str | None:
    """A remark about a vLLM that is newer than any that was tried; None where there is nothing to say.

    Args:
        version: as vLLM says it, such as "0.32.0+cpu".

    Raises:
        UsageError: an older one than was tried.
    """
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    tried = " to ".join(dict.fromkeys(".".join(map(str, each)) for each in (OLDEST, NEWEST)))
    if found < OLDEST:
        raise UsageError(f"vLLM is {version}; prefixes were tried with {tried}, and older ones are refused")
    if found > NEWEST:
        return f"vLLM is {version}, prefixes were tried with {tried}: compare texts with the local engine's"
    return None


def check_settings(vllm_config: Any, kv_cache_config: Any) -> None:
    """Refuse what would give wrong text.

    Raises:
        UsageError: a setting; says which, and what to set instead.
        UnsupportedArchitecture: the model.
    """
    parallel, transfer = vllm_config.parallel_config, vllm_config.kv_transfer_config
    if transfer.kv_load_failure_policy != "fail":
        raise UsageError(
            f"kv_load_failure_policy is {transfer.kv_load_failure_policy!r}: placeholders would be run as "
            "text; set it to fail"
        )
    for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            raise UsageError(f"{name} is {getattr(parallel, name)}; prefixes are served with 1 only")
    if vllm_config.speculative_config is not None:
        raise UsageError("prefixes do not reach the cache of speculative decoding; leave that out")
    groups = kv_cache_config.kv_cache_groups
    limit = vllm_config.model_config.max_model_len
    for spec in (group.kv_cache_spec for group in groups):
        window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
        if window is not None and window < limit:
            raise UnsupportedArchitecture(
                f"the model has layers that see the last {window} tokens only and would lose sight of a "
                f"prefix; set --max-model-len to at most {window}. `foreword generate` runs this one"
            )
    kinds = {type(group.kv_cache_spec).__name__ for group in groups}
    if len(groups) != 1 or kinds != {"FullAttentionSpec"}:
        raise UnsupportedArchitecture(
            f"the model's cache has {len(groups)} groups of {', '.join(sorted(kinds))}; prefixes need one of "
            "full attention. `foreword generate` runs this one"
        )


def share_of(vllm_config: Any) -> HeadShard:
    """What this worker holds of the model. Raises UsageError as `HeadShard.heads`."""
    from vllm.distributed import get_tensor_model_parallel_rank

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    share = HeadShard(
        # Those that have keys and values of their own, as a prefix counts them.
        layers=model.hf_text_config.num_hidden_layers
        - getattr(model.hf_text_config, "num_kv_shared_layers", 0),
        kv_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        rank=get_tensor_model_parallel_rank(),
        workers=parallel.tensor_parallel_size,
    )
    _ = share.heads
    return share


def weights_of(vllm_config: Any, of_folder: Callable[[Path], str | None]) -> str | None:
    """Fingerprint of vLLM's base; None for a model that it has by another name than its folder's.

    Where a text may be longer than LongRoPE's short factors go, vLLM has the long ones for every text.

    Args:
        of_folder: gives the fingerprint of a folder of weights, or None for one that has no such.

    Raises:
        CannotRead: a folder of weights that are no safetensors.
    """
    model = vllm_config.model_config
    if not (folder := Path(model.model)).is_dir():
        return None
    weights = of_folder(folder)
    return long_fingerprint(weights) if weights is not None and has_long_factors(vllm_config) else weights


def has_long_factors(vllm_config: Any) -> bool:
    """Whether vLLM has LongRoPE's long factors for every text."""
    model = vllm_config.model_config
    positions = short_positions(model.hf_config)
    return positions is not None and model.max_model_len > positions


def check_files(folder: Path) -> None:
    """Refuse a folder of which vLLM loads other files than transformers: the base would not be the gateway's.

    vLLM takes the shards of an index where there is one, and else every *.safetensors
    (`filter_duplicate_safetensors_files` of vLLM 0.32), a second copy of the weights among them.

    Raises:
        UsageError: there are such files; says which.
        CannotRead: a folder without weights.
    """
    wanted = {path.name for path in weight_files(folder)}
    index = folder / INDEX
    loaded = shards_of(index) if index.is_file() else [path.name for path in folder.glob("*.safetensors")]
    if differing := sorted(wanted.symmetric_difference(loaded)):
        raise UsageError(
            f"vLLM and transformers do not load the same files of {folder}: they differ in "
            f"{', '.join(differing[:3])}. Move second copies of the weights out of the folder"
        )


def check_base(prefix: Prefix, weights: str | None, equivalent: Collection[str | None] = ()) -> None:
    """Refuse a prefix of another base of the same sizes, which would give text, and the wrong one.

    Args:
        weights: fingerprint of what vLLM has loaded; None where it is not known.
        equivalent: fingerprints of bases whose prefixes run on those weights, too.

    Raises:
        WrongBaseModel: other weights.
    """
    expected = prefix.base.fingerprint
    if None not in (expected, weights) and expected != weights and expected not in equivalent:
        raise WrongBaseModel(
            f"the prefix was trained for {prefix.base.name} with weights {short(expected or '')}, vLLM has "
            f"{short(weights or '')}; start vLLM with the base that the gateway has"
        )


def attention_layers(modules: Mapping[str, Any]) -> dict[int, Any]:
    """Attention layers by their number in the model.

    Raises:
        UnsupportedArchitecture: one that can't be written to, or that hides what is far.
    """
    from vllm.model_executor.models.utils import extract_layer_index

    layers = {}
    for name, module in modules.items():
        shares = getattr(module, "kv_sharing_target_layer_name", None)  # the cache of another layer
        if shares is not None or getattr(module, "kv_cache", None) is None:
            continue
        if not hasattr(module.impl, "do_kv_cache_update") or getattr(module, "use_mla", False):
            raise UnsupportedArchitecture(
                f"{name} has attention of {type(module.impl).__name__}, whose cache takes no prefix"
            )
        layers[extract_layer_index(name)] = module
    return layers
