"""Data types by what a device has: bfloat16 in hardware, float64 nowhere on MPS, and gradients in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from foreword import BaseModel, train
from foreword.base import prefix_batch
from foreword.base.loading import choose_dtype
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample, encode
from foreword.errors import UsageError
from foreword.sampling import RowSampling, TokenSampler
from foreword.training.loop import mean_loss
from foreword.training.objective import RowLosses
from foreword.training.settings import make_settings
from foreword.training.trainer import build_trainer
from support.stand_ins import byte_tokenizer, random_examples, random_prefix, tiny_llama


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", torch.bfloat16),
        ("cuda:0", torch.bfloat16),
        ("cuda:1", torch.float32),
        (torch.device("cuda:1"), torch.float32),
        ("balanced", torch.float32),
        ("cpu", torch.float32),
        ("mps", torch.float32),
    ],
)
def test_bfloat16_is_taken_where_every_gpu_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, device: Any, expected: torch.dtype
) -> None:
    """Two GPUs; torch says of the second that it has bfloat16, as it emulates it."""
    current = [0]

    @contextlib.contextmanager
    def on(index: int | None) -> Any:
        before, current[0] = current[0], current[0] if index is None else index
        yield
        current[0] = before

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or current[0] == 0

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_dtype("auto", device) == expected
    assert choose_dtype("bfloat16", device) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # "balanced" on a machine without any
    assert choose_dtype("auto", "balanced") == torch.float32


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [
        ("int8", "cpu", "expected auto, float32, bfloat16 or float16"),
        (torch.int64, "cpu", "expected auto, float32"),
        ("float8_e4m3fn", "cuda", "expected auto, float32"),
        ("nonsense", "cpu", "expected auto, float32"),
        ("float64", "mps", "MPS does not have"),
        (torch.float64, torch.device("mps"), "MPS does not have"),
    ],
)
def test_a_type_that_a_model_cannot_have_is_refused(dtype: Any, device: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_dtype(dtype, device)
    assert choose_dtype("float64", "cpu") == torch.float64


class OnMps(torch.Tensor):
    """A tensor that refuses float64, as those on MPS do, until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return made.as_subclass(torch.Tensor)
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made


def on_mps(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnMps)  # type: ignore[return-value]


def test_a_dev_loss_is_summed_without_float64_on_the_device(tiny_base: BaseModel) -> None:
    with pytest.raises(TypeError, match="MPS Tensor to float64"):
        on_mps(torch.ones(2)).double()

    class Losses:
        def count(self, row: EncodedExample) -> int:
            return 2

        def losses(self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: Any) -> RowLosses:
            return RowLosses(on_mps(torch.full((2 * len(rows),), 0.1)), (2,) * len(rows))

    rows, _ = encode(random_examples(3), tiny_base.tokenizer, tiny_base.template)
    trained = build_trainer(tiny_base, make_settings(length=1), rows, []).trained
    assert mean_loss(tiny_base, trained, rows, Losses()) == pytest.approx(0.1)


class Made(TorchDispatchMode):
    """Notes the types of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda tensor: self.dtypes.add(tensor.dtype), made)
        return made


def test_sampling_makes_nothing_in_float64_which_mps_has_not() -> None:
    with Made() as made:
        sampler = TokenSampler([RowSampling(1.0, top_p=0.9, top_k=3), RowSampling(0.0)], torch.device("cpu"))
        sampler.choose(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))
    assert torch.float32 in made.dtypes
    assert torch.float64 not in made.dtypes


def test_a_prefix_in_float64_is_cast_before_it_gets_to_mps(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.dtype] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (moved.append(tensor.dtype), tensor)[1])
    states = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    prefix_batch._moved(states, torch.device("mps"))
    prefix_batch._moved(states, torch.device("cuda"))
    prefix_batch._moved(states.bfloat16(), torch.device("mps"))
    assert moved == [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("distinct", [1, 2])
def test_gradients_of_rows_that_share_a_prefix_are_summed_in_float32(distinct: int) -> None:
    """In bfloat16, 1 + 2**-9 is 1: what one row adds to the sum of others would be lost."""
    key, value = (torch.zeros(1, 1, 1, 1, requires_grad=True) for _ in range(2))
    other = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    rows = (0,) * 256 + (1,) * (distinct - 1)
    prefixes = PrefixBatch.from_tensors(
        [{"decoder": pair} for pair in ((key, value), other)[:distinct]],
        rows,
        ["prefix"] * distinct,
        ["text-after-prefix"] * distinct,
    )
    like = torch.zeros(len(rows), 1, 1, 1, dtype=torch.bfloat16)
    places = prefixes.row_places(len(rows))
    index_B = None if places is None else torch.tensor(places)
    key_BHPD, _ = prefixes.rows("decoder", 0, like, index_B)
    assert key_BHPD.dtype == torch.bfloat16
    gradient = torch.full_like(key_BHPD, 2**-9)
    gradient[0] = 1
    key_BHPD.backward(gradient)
    assert key.grad is not None
    assert key.grad.dtype == torch.float32
    assert float(key.grad) == 1 + 255 * 2**-9  # which bfloat16 does not have either


def test_training_through_a_model_in_float16_is_refused_and_running_it_is_not() -> None:
    base = BaseModel(tiny_llama().half(), byte_tokenizer(), name="half")
    with pytest.raises(UsageError, match="half is in float16.*load it with dtype bfloat16 or float32"):
        train(base, random_examples(2), length=2, steps=1)
    assert torch.isfinite(base.token_losses(random_examples(1), random_prefix(base, 2))[0]).all()
