"""The comparison, against figures worked out by hand."""

from __future__ import annotations

import pytest

from foreword.research.experiments.statistics import Column, contrast, contrast_own, sign_test


def column(owner: str, own: float, *, none: float = 9.0, shared: float = 9.0, **others: float) -> Column:
    return Column(owner, 3, 12, none, shared, {**others, owner: own})


def test_a_column_knows_its_own_prefix_among_the_others() -> None:
    bob = column("bob", 2.0, alice=1.5, carol=3.5)
    assert bob.own == 2.0
    assert bob.others == 2.5
    assert bob.rank == 2


def test_a_contrast_is_mean_spread_and_count_over_owners() -> None:
    columns = [column("a", 1.0, b=1.5), column("b", 2.0, a=1.0), column("c", 3.0, a=3.0)]
    found = contrast_own(columns, "others")
    assert found.mean == pytest.approx((0.5 - 1.0 + 0.0) / 3)
    assert found.spread == pytest.approx(0.763763, abs=1e-6)
    assert (found.better, found.worse, found.ties) == (1, 1, 1)


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [(0, 0, 1.0), (4, 0, 0.125), (0, 4, 0.125), (2, 2, 1.0), (9, 1, 22 / 1024), (2000, 0, 0.0)],
)
def test_the_sign_test_is_that_of_fair_coins(better: int, worse: int, expected: float) -> None:
    assert sign_test(better, worse) == pytest.approx(expected)


def test_a_verdict_needs_a_count_that_chance_would_not_give() -> None:
    def verdict(*differences: float) -> str:
        own = [column("a", 1.0, shared=1.0 + d) for d in differences]
        assert contrast_own(own, "shared").verdict == contrast(differences).verdict
        return contrast(differences).verdict

    assert verdict(*[0.1] * 8) == "held"
    assert verdict(*[-0.1] * 8) == "opposite"
    assert verdict(*[0.1] * 4) == "open"  # one in eight, by chance
    assert verdict(*[0.1] * 5, *[-0.1] * 3) == "open"
    assert verdict(*[0.01] * 9, -5.0) == "open"  # mean and count disagree
