"""Tokens of a whole batch are chosen at once, each row's by its own settings and its own randomness."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foreword.sampling import EndedRows, RowSampling, TokenSampler, exponential_noise, row_seed

CPU = torch.device("cpu")
MASK = 2**64 - 1
ROWS = st.builds(
    RowSampling,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 3, 7, 1000]),
    seed=st.integers(0, 2**63 - 1),
)


def split_mix(bits: int) -> int:
    """The output function of SplitMix64 as its paper has it."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def test_noise_is_that_of_the_generator_computed_by_hand() -> None:
    seeds, steps = [0, 1, 2**63 - 1, row_seed(5, 3)], [0, 7, 2, 10**6]
    found_BV = exponential_noise(torch.tensor(seeds), torch.tensor(steps), 50)
    for row, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
        key = split_mix((split_mix(seed) + step) & MASK)
        bits = [split_mix((key + place * 0x9E3779B97F4A7C15) & MASK) for place in range(1, 51)]
        uniform = torch.tensor([((each >> 11) | 1) / 2**53 for each in bits], dtype=torch.float64)
        expected_V = -torch.log1p(-uniform)
        torch.testing.assert_close(found_BV[row].double(), expected_V, rtol=1e-5, atol=1e-12)


def test_the_first_numbers_of_the_generator_are_the_published_ones() -> None:
    """SplitMix64 from seed 1234567, as in the test vectors that implementations share."""
    state, found = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        found.append(split_mix(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_samples_follow_the_distribution_over_seeds_and_over_steps() -> None:
    """Chi-square against softmax, for many rows at one step, and for one row's many steps."""
    count, logits_V = 40_000, torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, -torch.inf])
    logits_BV, zeros_B = logits_V.expand(count, -1), torch.zeros(count, dtype=torch.long)
    kinds = {
        "seeds": ([RowSampling(0.8, seed=seed) for seed in range(count)], zeros_B),
        "places": ([RowSampling(0.8, seed=row_seed(3, place)) for place in range(count)], zeros_B),
        "steps": ([RowSampling(0.8, seed=11)] * count, torch.arange(count)),
    }
    expected_V = (logits_V / 0.8).softmax(-1)[:7] * count
    for name, (rows, steps_B) in kinds.items():
        drawn_B = TokenSampler(rows, CPU).choose(logits_BV, steps_B)
        found_V = torch.bincount(drawn_B, minlength=8)
        assert found_V[7] == 0
        chi_square = float(((found_V[:7] - expected_V) ** 2 / expected_V).sum())
        assert chi_square < 22.5, name  # 6 degrees of freedom: beyond in 1 of 1,000
        # One step says nothing about the next: pairs are as likely as their product.
        pairs = torch.bincount(drawn_B[:-1] * 8 + drawn_B[1:], minlength=64).view(8, 8)[:7, :7]
        shares_V = expected_V / count
        expected_VV = torch.outer(shares_V, shares_V) * (count - 1)
        assert float(((pairs - expected_VV) ** 2 / expected_VV).sum()) < 84, name  # 48 degrees


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_scores_are_those_of_transformers_and_rows_are_chosen_as_if_alone(
    rows: list[RowSampling], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = torch.randn(len(rows), 23, generator=generator) * 3
    logits_BV[:, 5] = logits_BV[:, 6]  # a tie
    steps_B = torch.arange(len(rows))
    chosen = TokenSampler(rows, CPU).choose(logits_BV, steps_B).tolist()
    for place, row in enumerate(rows):
        alone = slice(place, place + 1)
        one = TokenSampler([row], CPU)
        assert one.choose(logits_BV[alone], steps_B[alone]).tolist() == [chosen[place]]
        if row.temperature <= 1e-6:
            assert chosen[place] == int(logits_BV[place].argmax())
            continue
        warpers = LogitsProcessorList([TemperatureLogitsWarper(row.temperature)])
        warpers += [TopKLogitsWarper(row.top_k)] if row.top_k else []
        warpers += [TopPLogitsWarper(row.top_p)] if row.top_p < 1 else []
        expected_V = warpers(None, logits_BV[alone].clone())[0]
        torch.testing.assert_close(one.warped(logits_BV[alone])[0], expected_V)
        assert expected_V[chosen[place]] > -torch.inf


def test_a_row_has_other_randomness_at_every_step_and_place() -> None:
    logits_BV = torch.zeros(200, 50)
    steps = TokenSampler([RowSampling(1.0, seed=4)] * 200, CPU).choose(logits_BV, torch.arange(200))
    again = TokenSampler([RowSampling(1.0, seed=4)] * 200, CPU).choose(logits_BV, torch.arange(200))
    # The next place's row is no shifted copy of this one's.
    place = TokenSampler([RowSampling(1.0, seed=row_seed(4, 1))] * 200, CPU).choose(
        logits_BV, torch.arange(200)
    )
    assert steps.tolist() == again.tolist()
    assert len(set(steps.tolist())) > 40
    for shift in range(3):
        assert int((steps[shift:] == place[: 200 - shift]).sum()) < 20


def test_end_ids_are_copied_to_the_device_once() -> None:
    """Each copy makes the host wait for the device; without a GPU, the meta device stands for one."""
    ended = EndedRows(frozenset({0, 3}), None)
    ids_BT = torch.zeros(2, 5, dtype=torch.long, device="meta")
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            copies.append(func is torch.ops.aten._to_copy.default)
            return func(*args, **(kwargs or {}))

    with Copies():
        ended(ids_BT, None)
        first = sum(copies)
        ended(ids_BT, None)
    assert first == sum(copies) == 1
