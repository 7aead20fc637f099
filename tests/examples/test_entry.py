"""Entries: what is generated once and scored together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreword.examples import Entry, Example, entries_of, examples_of

EXAMPLES = st.lists(
    st.builds(
        Example,
        st.text(max_size=2) | st.text(max_size=2).map(lambda text: ({"role": "user", "content": text},)),
        st.text(min_size=1, max_size=3).filter(str.strip),
        st.sampled_from([None, "ann", "bob"]),
    )
)


@given(EXAMPLES)
def test_entries_keep_every_example_with_its_owner(examples):
    key = repr
    assert sorted(examples_of(entries_of(examples)), key=key) == sorted(examples, key=key)


def test_entries_are_never_merged_even_with_one_source():
    entries = [Entry("a", ("1",), "x"), Entry("a", ("2", "3"), "x")]
    assert entries_of(entries) == entries
    assert entries_of([Example("b", "1"), *entries, Example("b", "2")]) == [Entry("b", ("1", "2")), *entries]
