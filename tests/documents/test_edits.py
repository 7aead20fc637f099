"""What of a document is new, and what is replayed."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation
from foreword.documents.edits import MOST_CHUNKS, changed, digests, known_chunks, replay, worse
from foreword.documents.settings import DocumentSettings
from foreword.errors import UsageError
from foreword.prefix_file import check_description

OLD = "# One\n\nThe gate opens at nine.\n\n# Two\n\nIt closes at noon.\n\n# Three\n\nNo dogs."


def test_chunks_that_the_old_document_did_not_have_are_new() -> None:
    known = digests(split(OLD, len, 40))
    edited = OLD.replace("noon", "four").replace("# Three", "# Between\n\nAda sings.\n\n# Three")
    chunks = split(edited, len, 40)
    assert [chunks[number].section for number in changed(chunks, known)] == ["Two", "Between"]
    assert changed(split(OLD.replace("# One\n\nThe gate opens at nine.\n\n", ""), len, 40), known) == []


EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.summary.md")), ids=lambda path: path.stem)
def test_a_sentence_that_is_put_in_makes_few_chunks_new(path: Path) -> None:
    def tokens(part: str) -> int:
        return round(1.3 * len(part.split()))

    text = path.with_name(path.name.replace(".summary", "")).read_text(encoding="utf-8")
    known = digests(split(text, tokens, 160))
    places = [match.end() for match in re.finditer(r"(?<=[.!?]) (?=[A-Z])", text)]
    for at in places[:: max(1, len(places) // 6)]:
        edited = f"{text[:at]}The board added this in the spring, after a long talk. {text[at:]}"
        assert 1 <= len(changed(split(edited, tokens, 160), known)) <= 4


def test_as_many_digests_as_are_kept_fit_into_a_prefix_file() -> None:
    chunks = digests([Chunk(str(number), "", 0, 1) for number in range(MOST_CHUNKS)])
    document = DocumentSettings().to_json() | {"sha256": "0" * 64, "tokens": 10**9, "chunks": chunks}
    check_description({"recipe": {"document": document | {"previous": "0" * 64}, "together": "0" * 64}})


def test_half_of_what_is_known_of_each_chunk_is_replayed() -> None:
    conversations = [Conversation(f"q{n}", "a", n % 3, "cloze") for n in range(60)]
    kept = replay(conversations, {1}, seed=0)
    assert collections.Counter(each.chunk for each in kept) == {0: 10, 1: 20, 2: 10}
    assert kept == [each for each in conversations if each in kept]
    assert kept == replay(conversations, {1}, seed=0) != replay(conversations, {1}, seed=1)


@pytest.mark.parametrize("recipe", [{}, {"document": {}}, {"document": {"chunks": []}}, {"document": "x"}])
def test_a_prefix_of_no_document_is_refused(recipe: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="made by compile"):
        known_chunks(recipe)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.93, 0.95, 0.32, 0.3), None),
        ((None, None, 0.3, 0.3), None),
        ((0.9, 0.95, 0.3, 0.3), "recovered share 0.90, before 0.95"),
        ((1.0, 0.95, 0.34, 0.3), "harm 0.34, before 0.3"),
        ((0.9, 0.95, 0.34, 0.3), "recovered share 0.90, before 0.95; harm 0.34, before 0.3"),
    ],
)
def test_a_prefix_is_worse_beyond_what_two_runs_differ_by(
    figures: tuple[float | None, ...], expected: str | None
) -> None:
    names = ("recovered_share", "recovered_share_before", "harm", "harm_before")
    assert worse(dict(zip(names, figures, strict=True))) == expected
