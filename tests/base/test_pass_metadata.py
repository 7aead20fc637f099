"""What layers need beside keys and values is made before the model runs: no layer waits for a device."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foreword import BaseModel, Prefix, generate
from foreword.base import attention, kernels
from foreword.base.batch import pack_rows
from foreword.base.loss import target_losses
from foreword.base.pass_metadata import PassMetadata
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import EncodedExample, encode
from foreword.template import Template
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.stand_ins import byte_tokenizer, random_examples, random_prefix, tiny_llama

READS = {"aten._local_scalar_dense.default", "aten.nonzero.default"}
"""Operations after which Python waits for the device."""

MADE_FROM_NUMBERS = "aten.lift_fresh.default"
"""Under `torch.tensor([...])`: on a GPU a copy from the host."""


class Operations(TorchDispatchMode):
    """Every operation while it is on, with the kinds of devices of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, frozenset[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, made)) if torch.is_tensor(each)]
        self.seen.append((str(func), frozenset(each.device.type for each in tensors if each.dim())))
        return made


@contextlib.contextmanager
def operations_of_layers(model: Any) -> Iterator[list[list[tuple[str, frozenset[str]]]]]:
    """The operations of each layer's forward pass, in order."""
    every: list[list[tuple[str, frozenset[str]]]] = []
    starts: list[int] = []
    with Operations() as mode, contextlib.ExitStack() as stack:
        for layer in model.model.layers:
            stack.callback(layer.register_forward_pre_hook(lambda *_: starts.append(len(mode.seen))).remove)
            stack.callback(
                layer.register_forward_hook(lambda *_: every.append(mode.seen[starts[-1] :])).remove
            )
        yield every


def windowed() -> BaseModel:
    (architecture,) = [each for each in DECODER_ONLY_WORKING if each.model_type == "mistral"]
    return architecture.base


def near(prefix: Prefix) -> Prefix:
    return Prefix(
        dict(prefix.tensors), prefix.base, prefix.template, positions="text-after-prefix-within-window"
    )


def case(name: str) -> tuple[BaseModel, list[Prefix | None]]:
    if name == "window":
        base = windowed()
        return base, [near(random_prefix(base, 3)), random_prefix(base, 2, seed=1), None]
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    template = Template(placement="infix") if name == "infix" else base.template
    return base, [random_prefix(base, 4), random_prefix(base, 6, seed=1, template=template), None]


@pytest.mark.parametrize("layout", ["flat", "left"])
@pytest.mark.parametrize("name", ["lengths", "infix", "window"])
def test_no_layer_reads_a_value_or_makes_a_tensor_from_numbers(name: str, layout: Any) -> None:
    base, prefixes = case(name)
    rows, _ = encode(random_examples(3, shortest=12), base.tokenizer, base.template)
    stacked = PrefixBatch.stack(prefixes, base.device)
    batch = base.batch(rows, stacked, layout)
    with torch.no_grad(), operations_of_layers(base.model) as layers:
        target_losses(base.model, batch, stacked)
    assert len(layers) == len(base.model.model.layers)
    for number, layer in enumerate(layers):
        found = Counter(operation for operation, _ in layer)
        assert not READS & found.keys(), number
        # One window's limit is known when its first layer is there.
        assert found[MADE_FROM_NUMBERS] <= (name == "window" and number == 0)
    assert len(layers[-1]) <= min(map(len, layers[:-1]))


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that stands for a GPU: its tensors have no values, so that reading one is an error."""
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", {"meta"})
    monkeypatch.setattr(kernels, "_has_flash_attention", lambda device: device.type == "meta")
    return torch.device("meta")


def masks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every mask that transformers makes on the device that stands for a GPU."""
    made: list[int] = []
    plain = attention.sdpa_mask

    def counted(**kwargs: Any) -> Any:
        if torch.device(kwargs["device"]).type in attention.CAUSAL_DEVICES:
            made.append(kwargs["q_length"])
        return plain(**kwargs)

    monkeypatch.setattr(attention, "sdpa_mask", counted)
    return made


def meta_pass(dtype: torch.dtype, device: torch.device, placement: Any = "prefix") -> Counter[str]:
    """Operations of a training pass on `device`, forward and backward."""
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    rows, _ = encode(random_examples(3), base.tokenizer, base.template)
    base.model.to(device, dtype)
    parts = [
        tuple(torch.empty(3, 2, length, 8, device=device, requires_grad=True) for _ in range(2))
        for length in (4, 6)
    ]
    prefixes = PrefixBatch.from_tensors(
        [{"decoder": part} for part in parts],  # type: ignore[dict-item]
        [0, 1, None],
        [placement] * 2,
        ["text-after-prefix"] * 2,
    )
    batch = base.batch(rows, prefixes, "flat")
    with operations_of_layers(base.model) as layers, Operations() as backward:
        target_losses(base.model, batch, prefixes).sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for pair in parts for part in pair)
    for layer in layers:
        assert not [each for each in layer if "cpu" in each[1]]
    return Counter(operation for operation, _ in backward.seen)


def test_a_training_pass_runs_where_no_value_can_be_read_and_nothing_is_masked(
    meta: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = masks(monkeypatch)
    found = meta_pass(torch.bfloat16, meta)
    assert found["torch_attn._varlen_attn.default"] == found["torch_attn._varlen_attn_backward.default"] == 3
    assert not found["aten.tril.default"] + found["aten.where.self"] + found["aten.masked_fill.Scalar"]
    assert not made


def test_numbers_and_placements_that_the_kernel_does_not_know_get_one_mask_for_all_layers(
    meta: torch.device,
) -> None:
    for dtype, placement in ((torch.float32, "prefix"), (torch.bfloat16, "infix")):
        found = meta_pass(dtype, meta, placement)
        assert not found["torch_attn._varlen_attn.default"]
        assert found["aten.tril.default"] == 1


def reference_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch.nn.attention.varlen.varlen_attn says it computes, a segment and its own mask at a time."""
    assert window_size == (-1, 0)
    assert enable_gqa
    group = query.shape[1] // key.shape[1]
    outputs = []
    for number in range(len(query_ends) - 1):
        q, (k, v) = (
            query[query_ends[number] : query_ends[number + 1]],
            (
                part[key_ends[number] : key_ends[number + 1]].repeat_interleave(group, 1)
                for part in (key, value)
            ),
        )
        assert len(q) <= most_queries
        assert len(k) <= most_keys
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


SHARING = [
    EncodedExample((5, 6, 7, 8), (9, 10, 0)),
    EncodedExample((5, 6), (4, 0)),
    EncodedExample((5, 6, 7, 8), (9, 10, 0)),  # as the first: nothing of its own
    EncodedExample((5, 6, 7), (8, 9, 11, 12, 0)),
    EncodedExample((5, 6, 7), (8, 0)),
]
WHOSE = [(0, 0, 0, 0, 0), (0, 1, 0, 0, None), (None, None, None, 1, 1)]


@pytest.mark.parametrize("of_row", WHOSE)
def test_losses_and_gradients_without_a_mask_are_those_with_one(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, of_row: tuple[int | None, ...]
) -> None:
    def losses_and_gradients() -> list[torch.Tensor]:
        leaves = [
            [part.clone().requires_grad_() for part in random_prefix(tiny_base, n, seed=n).tensors.values()]
            for n in (4, 7)
        ]
        prefixes = PrefixBatch.from_tensors(
            [{"decoder": (key, value)} for key, value in leaves],
            of_row,
            ["prefix"] * 2,
            ["text-after-prefix"] * 2,
        )
        losses_M = target_losses(tiny_base.model, tiny_base.batch(SHARING, prefixes, "flat"), prefixes)
        (losses_M * torch.arange(1.0, len(losses_M) + 1)).sum().backward()
        return [losses_M.detach(), *(part.grad for leaf in leaves for part in leaf)]

    expected = losses_and_gradients()
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", {"cpu"})
    monkeypatch.setattr(attention, "varlen_takes", lambda query, key, value: True)
    monkeypatch.setattr(kernels, "varlen_attn", reference_varlen)
    monkeypatch.setattr(attention, "sdpa_mask", None)  # whoever asks for a mask fails
    for found, wanted in zip(losses_and_gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(1 + wanted.abs().max()))


def test_a_window_that_no_row_fills_needs_no_mask_and_one_that_is_filled_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = windowed()
    short, long = ([EncodedExample((5,) * n, (6, 0))] for n in (2, 12))
    prefixes = PrefixBatch.stack([random_prefix(base, 3)], base.device)

    def losses(rows: list[EncodedExample]) -> torch.Tensor:
        with torch.no_grad():
            return target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes)

    expected = [losses(rows) for rows in (short, long)]
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", {"cpu"})
    made = masks(monkeypatch)
    for rows, wanted, number in zip((short, long), expected, (0, 1), strict=True):
        torch.testing.assert_close(losses(rows), wanted, rtol=1e-5, atol=1e-6)
        assert len(made) == number


def test_generating_rows_of_one_length_makes_no_mask_and_others_keep_theirs(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        (["one", "two"], (4, 4), False),
        (["one", "two"], (4, 7), False),  # the columns in front differ: their own mask is enough
        (["one", "two2"], (4, 4), True),
        (["one", "two"], (0, 4), False),
    ]
    wanted = []
    for prompts, lengths, _ in cases:
        prefixes = [random_prefix(tiny_base, n, seed=n) if n else None for n in lengths]
        wanted.append((prefixes, generate(tiny_base, prompts, prefixes, max_new_tokens=6)))
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", {"cpu"})
    for (prompts, _, padded), (prefixes, texts) in zip(cases, wanted, strict=True):
        made = masks(monkeypatch)
        assert generate(tiny_base, prompts, prefixes, max_new_tokens=6) == texts
        assert bool(made) is padded


def test_segments_are_the_tokens_of_their_own_and_all_that_their_rows_see() -> None:
    layout = pack_rows([(5, 6, 7), (5, 6, 8, 9), (7,), (5, 6, 7)], [0, 0, None, 0])
    key = torch.zeros(2, 1, 1, 3, 2)
    prefixes = PrefixBatch({"decoder": StreamBlock(key, key, (2, 3))}, (1, 1, 0, 1))
    found = PassMetadata(prefixes, layout).on(torch.device("cpu")).segments("decoder")
    # Ungrouped rows come first: token 0 is the third row's 7; then 5 6 7, which the last row shares; then 8 9.
    assert layout.new_tokens == ((2, 1), (0, 3), (1, 2))
    assert found.query_ends_G1.tolist() == [0, 1, 4, 6]
    assert found.key_ends_G1.tolist() == [0, 3, 9, 16]
    virtual = [[0, 1], [3, 4, 5], [3, 4, 5]]  # of the first prefix two, of the second all
    text = [[6], [7, 8, 9], [7, 8, 10, 11]]
    assert found.key_index_K.tolist() == [i for v, t in zip(virtual, text, strict=True) for i in (*v, *t)]
    assert (found.most_queries, found.most_keys) == (3, 7)


def test_each_device_with_layers_gets_its_tensors_once() -> None:
    """Rows of a flat batch are gathered where their states are: layers of one model may be on several devices."""
    layout = pack_rows([(5, 6, 7), (5, 8)], [0, 0])
    key = torch.zeros(2, 1, 1, 3, 2)
    prefixes = PrefixBatch({"decoder": StreamBlock(key, key, (2, 3))}, (1, 0))
    metadata = PassMetadata(prefixes, layout)
    for device in (torch.device("cpu"), torch.device("meta")):
        states_1HND = torch.zeros(1, 1, 4, 2, device=device)
        assert layout.to_rows(states_1HND).device == device
        assert layout.on(device) is layout.on(torch.device(device))
        found = metadata.on(device).visible("decoder", 2, 3)
        assert found.device == device
        assert metadata.on(device).visible("decoder", 2, 3) is found
        key_BHPD, _ = metadata.on(device).prefix_rows("decoder", 0, torch.zeros(2, 1, 1, 2, device=device))
        assert key_BHPD.device == device
