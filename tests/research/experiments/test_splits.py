"""Material: training subsets, examples that choose and examples that are measured never meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import Example
from foreword.errors import BadExamples, UsageError
from foreword.evaluation import find_task, read_task
from foreword.examples import Entry, digest, entries_of, examples_of
from foreword.research.experiments.splits import (
    DataSplits,
    apart,
    divide,
    draw_dev,
    draw_measured,
    few_targets,
    split_by_group,
)
from support.trials import small_splits


def dev_of(sources: int, targets: int = 3, owner: str | None = None) -> list[Example]:
    return [Example(f"{owner}{s}", f"{s} {t}", owner) for s in range(sources) for t in range(targets)]


def test_what_chooses_and_what_is_measured_have_no_source_in_common() -> None:
    dev, measured = divide(dev_of(10), dev_rows=4, measured_sources=5, seed=0)
    assert (len(dev), len(measured)) == (4, 5)
    assert len({example.source for example in dev}) == 4
    assert not {example.source for example in dev} & {entry.source for entry in measured}
    assert all(len(entry.references) == 3 for entry in measured)


def test_entries_of_one_source_stay_entries_and_on_one_side() -> None:
    entries = [Entry(str(n // 2), (f"{n} a", f"{n} b"), "xy"[n % 2], "ann") for n in range(20)]
    for seed in range(8):
        dev, measured = divide(entries, dev_rows=4, measured_sources=5, seed=seed)
        assert (len(dev), len(measured)) == (4, 10)
        assert not {example.source for example in dev} & {entry.source for entry in measured}
        assert {e.references for e in measured} <= {e.references for e in entries}
        assert {e.category for e in measured} == {"x", "y"}


def test_how_entries_are_counted_is_told_where_the_digest_does_not() -> None:
    apart, merged = [Entry("a", ("1",)), Entry("a", ("2", "3"))], [Entry("a", ("1", "2", "3"))]
    found = [DataSplits([], [], {"measured": entries}) for entries in (apart, merged)]
    assert found[0].counts() == found[1].counts()
    assert found[0].counts()["measured: measured"] == 3
    assert found[0].digests()["measured digest"] == found[1].digests()["measured digest"]
    assert found[0].digests()["measured entries"] == 2
    assert "measured entries" not in found[1].digests()  # as runs have it that were begun before


def test_material_of_e2e_is_what_it_always_was(data_folder: Path) -> None:
    """Runs that were begun must be able to go on: digests of a run from before entries were told apart."""
    entries = read_task(find_task("e2e"), data_folder / "e2e" / "devset.csv")
    dev, measured = divide(entries, dev_rows=48, measured_sources=80, seed=0)
    splits = DataSplits([], dev, {"measured": measured})
    assert len(measured) == 80
    assert splits.counts() == {"train examples": 0, "dev examples": 48, "measured: measured": 667}
    assert splits.digests() == {
        "train digest": digest([]),
        "dev digest": "2f1166d3065df28e94a31009e61cc1580200a9466ca2c4014398cb570033a12e",
        "measured digest": "b6d825267d6eb7daec7f090d6454c92e84da6e3ba76397935d867b9d5e46ef10",
    }
    losses_on = "4893ac0a2ffe1fd5d0fd39f58c28b732ec4c01ccf39dcdbb6f27307d3c15babf"
    assert digest(few_targets(measured, 3)) == losses_on


def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    def drawn(seed: int) -> object:
        return divide(dev_of(20), dev_rows=4, measured_sources=5, seed=seed)

    assert drawn(0) == drawn(0) != drawn(1)


def test_too_few_sources_are_refused_with_the_numbers() -> None:
    with pytest.raises(BadExamples, match="have 10 different sources; 8 to choose by and 5 .* are 13"):
        divide(dev_of(10), dev_rows=8, measured_sources=5, seed=0)
    with pytest.raises(UsageError, match="expected 1 or more"):
        divide(dev_of(10), dev_rows=0, measured_sources=5, seed=0)


def test_a_file_to_measure_on_gives_all_targets_of_its_sources() -> None:
    assert len(examples_of(draw_measured(dev_of(6), 4, 0))) == 12
    assert len(examples_of(draw_measured(dev_of(6), None, 0))) == 18
    assert len(draw_dev(dev_of(6), 4, 0)) == 4
    assert [example.target for example in few_targets(entries_of(dev_of(2)), 2)] == [
        "0 0",
        "0 1",
        "1 0",
        "1 1",
    ]


def test_subsets_depend_on_seed_size_and_name_alone() -> None:
    splits = small_splits()
    subset = splits.subset(8, 0, "1")
    assert subset == splits.subset(8, 0, "1")
    assert len(set(subset)) == 8
    assert subset != splits.subset(8, 0, "2") != splits.subset(8, 1, "2")
    assert splits.subset(30, 0, "1") == splits.train
    with pytest.raises(UsageError, match="31 training examples are asked for, and there are 30"):
        splits.subset(31, 0, "1")


def test_groups_held_out_are_in_nothing_but_what_is_measured_as_unseen() -> None:
    data = [example for owner in "abcdef" for example in dev_of(6, owner=owner)]
    splits, held, _ = split_by_group(data, data, ["b", "e"], dev_rows=4, measured_sources=5, seed=0)
    assert held == ("b", "e")

    def groups(examples: object) -> set[str]:
        return {example.source[0] for example in examples}  # type: ignore[attr-defined]

    assert groups(splits.train) == set("acdf")
    assert groups(splits.dev) <= set("acdf")
    assert groups(splits.measured["seen"]) <= set("acdf")
    assert groups(splits.measured["unseen"]) <= {"b", "e"}
    sources = {entry.source for entry in splits.measured["seen"]}
    assert not {example.source for example in splits.dev} & sources


def test_without_names_one_group_in_three_is_held_out() -> None:
    data = [example for owner in "abcdef" for example in dev_of(6, owner=owner)]
    found = {
        split_by_group(data, data, (), dev_rows=2, measured_sources=2, seed=seed)[1] for seed in range(5)
    }
    assert all(len(held) == 2 for held in found)
    assert len(found) > 1


def test_groups_that_are_not_there_are_named() -> None:
    data = [example for owner in "ab" for example in dev_of(6, owner=owner)]
    options = {"dev_rows": 2, "measured_sources": 2, "seed": 0}
    with pytest.raises(UsageError, match="no dev example is of 'z'; groups there are a, b"):
        split_by_group(data, data, ["z"], **options)
    with pytest.raises(UsageError, match="name those to hold out"):
        split_by_group(data, data, (), **options)
    with pytest.raises(UsageError, match="no training example is left without a, b"):
        split_by_group(data, data, ["a", "b"], **options)
    with pytest.raises(BadExamples, match="training example 0 has no group; .* --group-field"):
        split_by_group(dev_of(3), data, ["a"], **options)


def test_a_group_that_training_lacks_is_unseen() -> None:
    def data(owners: str) -> list[Example]:
        return [example for owner in owners for example in dev_of(6, owner=owner)]

    options = {"dev_rows": 4, "measured_sources": 50, "seed": 0}
    splits, unseen, _ = split_by_group(
        data("abcd"), data("abcdz"), ["b"], **{**options, "measured_sources": 6}
    )
    assert unseen == ("b", "z")
    assert {entry.source[0] for entry in splits.measured["unseen"]} == {"b", "z"}
    assert {entry.source[0] for entry in splits.measured["seen"]} <= set("acd")
    assert {example.source[0] for example in splits.dev} <= set("acd")

    # Measured on a file of its own, which has new groups: none of training is held out.
    test = [Example(example.source + "t", example.target, example.owner) for example in data("acyz")]
    splits, unseen, _ = split_by_group(data("abcd"), data("abcdz"), (), test=test, **options)
    assert unseen == ("y", "z")
    assert {example.source[0] for example in splits.train} == set("abcd")
    assert {entry.source[0] for entry in splits.measured["seen"]} == {"a", "c"}
    assert {entry.source[0] for entry in splits.measured["unseen"]} == {"y", "z"}
    assert {example.source[0] for example in splits.dev} <= set("abcd")
    with pytest.raises(UsageError, match="no test example is of 'b'; groups there are a, c, y, z"):
        split_by_group(data("abcd"), data("abcdz"), ["b"], test=test, **options)
    new = [example for example in test if example.owner in "yz"]
    with pytest.raises(UsageError, match="measured as seen: training has a, b, c, d, measured are y, z"):
        split_by_group(data("abcd"), data("abcdz"), (), test=new, **options)


def test_no_source_is_trained_on_that_chooses_or_is_measured() -> None:
    data = dev_of(12)
    chosen, measured = divide(data, dev_rows=3, measured_sources=4, seed=0)
    splits, left_out = apart(data, chosen, {"measured": measured})
    taken = {example.source for example in chosen} | {entry.source for entry in measured}
    assert len(taken) == 7
    assert {example.source for example in splits.train} == {example.source for example in data} - taken
    assert left_out == len(data) - len(splits.train) > 0
    with pytest.raises(BadExamples, match="among those that choose or are measured"):
        apart([data[0]], [data[0]], {})


def test_a_source_of_two_groups_is_on_one_side() -> None:
    both = [Example(f"s{n}", f"t{n} of {group}", group) for n in range(12) for group in "ab"]
    own = [Example(f"{group}{n}", "t", group) for n in range(8) for group in "ab"]
    splits, _, left_out = split_by_group(
        [*both, *own], [*both, *own], ["b"], dev_rows=3, measured_sources=4, seed=1
    )
    sides = [
        {example.source for example in splits.train},
        {example.source for example in splits.dev},
        *({entry.source for entry in entries} for entries in splits.measured.values()),
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert left_out > 0
