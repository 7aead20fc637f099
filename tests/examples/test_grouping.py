"""References and digest: what examples are together, and whether they are the same data."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from foreword.examples import Example, digest, read_examples, references

EXAMPLES = st.lists(
    st.builds(
        Example,
        st.text(max_size=3) | st.text(max_size=2).map(lambda text: ({"role": "user", "content": text},)),
        st.text(min_size=1, max_size=3).filter(str.strip),
        st.sampled_from([None, "ann", "bob"]),
    )
)


def test_references_of_a_source_come_together_in_the_order_first_seen():
    examples = [Example("x", "1"), Example("y", "2"), Example("x", "3"), Example("x", "1")]
    assert references(examples) == [("x", ["1", "3", "1"]), ("y", ["2"])]


def test_owners_with_the_same_source_stay_apart():
    examples = [Example("x", "1", "ann"), Example("x", "2", "bob"), Example("x", "3")]
    assert references(examples) == [("x", ["1"]), ("x", ["2"]), ("x", ["3"])]


def test_conversations_are_grouped_by_what_they_say():
    def source() -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": "x"},)

    text = '[{"role": "user", "content": "x"}]'  # spelled like it, and still another source
    examples = [Example(source(), "1"), Example(text, "2"), Example(source(), "3")]
    assert references(examples) == [(source(), ["1", "3"]), (text, ["2"])]


@given(EXAMPLES)
def test_no_reference_is_lost(examples):
    groups = references(examples)
    assert sorted(t for _, targets in groups for t in targets) == sorted(e.target for e in examples)


def test_the_digest_is_the_documented_one():
    # Written out by hand: the form must not change unnoticed, prefix files carry it.
    lines = b'["caf\\u00e9","b",null]\n[[{"content":"x","role":"user"}],"y","ann"]\n'
    examples = [Example("café", "b"), Example(({"role": "user", "content": "x"},), "y", "ann")]
    assert digest(examples) == hashlib.sha256(b"foreword examples 1\n" + lines).hexdigest()


@given(EXAMPLES, EXAMPLES)
def test_the_digest_tells_different_data_apart(one, two):
    assert (digest(one) == digest(two)) == (one == two)


def test_the_digest_does_not_depend_on_the_file_format(tmp_path):
    (tmp_path / "a").write_text('{"target": "b", "source": "a"}\n')
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbftarget;source\r\nb;a\r\n")
    assert digest(read_examples(tmp_path / "a")) == digest(read_examples(tmp_path / "b"))
