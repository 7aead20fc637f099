"""E2E: the challenge's CSV becomes what the original prefix-tuning code reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.errors import BadExamples
from foreword.examples import Example, read_examples

MEANING = (
    "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[less than £20], "
    "customer rating[low], area[riverside], familyFriendly[yes], near[Burger King]"
)
# A source as it stands in the data of the original code.
SOURCE = (
    "name : The Eagle | Type : coffee shop | food : Japanese | price : less than £20 | "
    "customer rating : low | area : riverside | family friendly : yes | near : Burger King"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_csv_becomes_the_original_codes_lines(path):
    path.write_text(f'mr,ref\n"{MEANING}","The Eagle, a low rated one.\nIt is by the river. "\n')
    assert read_examples(path) == [Example(SOURCE, "The Eagle, a low rated one.\nIt is by the river.")]


def test_both_forms_give_the_same_examples(path):
    path.write_text(f'mr,ref\n"{MEANING}",It is cheap.\n')
    from_csv = read_examples(path)
    path.write_text(f"{SOURCE}||It is cheap.\n")
    assert read_examples(path) == from_csv


def test_customerrating_is_renamed_however_it_is_written(path):
    path.write_text("mr,ref\ncustomerrating[low],a\ncustomer rating[low],b\n")
    assert {example.source for example in read_examples(path)} == {"customer rating : low"}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("mr,ref\nThe Eagle,a\n", 2, ["mr is 'The Eagle'", "name[The Vaults]"]),
        ("mr,ref\nname[The Eagle,a\n", 2, ["mr is"]),
        ("mr,ref\n[The Eagle],a\n", 2, ["mr is"]),
        ("mr,ref\nname[x],a\n,b\n", 3, ["mr is ''"]),
        ("mr,ref\nname[x],\n", 2, ["target is empty"]),
        ("mr,ref\nname[x], food[y],a\n", 2, ["3 cells", "double quotes"]),
        ("a||b\nonly a source\n", 2, ["|| 0 times", "source||target"]),
        ("a||b||c\n", 1, ["|| 2 times"]),
        ("a||\n", 1, ["target is empty"]),
    ],
)
def test_a_fault_names_its_line(path, content, line, words):
    path.write_text(content)
    with pytest.raises(BadExamples) as caught:
        read_examples(path, format="e2e")
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert all(word in message for word in words), message


def test_a_long_run_of_spaces_does_not_take_long(path):
    path.write_text("mr,ref\n" + " " * 100_000 + ",a\n")
    with pytest.raises(BadExamples, match="mr is"):
        read_examples(path, format="e2e")
