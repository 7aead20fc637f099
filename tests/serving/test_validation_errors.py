"""Whatever is wrong with a body: one refusal, in words of ours, that names a field of the body."""

from __future__ import annotations

from typing import Any

import pydantic
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.serving.jobs.settings import JobBody
from foreword.serving.requests import ChatBody, CompletionBody
from foreword.serving.validation_errors import refusal_of

USUAL: dict[type[pydantic.BaseModel], dict[str, Any]] = {
    ChatBody: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    CompletionBody: {"model": "m", "prompt": "x"},
    JobBody: {"model": "m", "training_file": "file-x"},
}
NAMES = sorted({name for kind in USUAL for name in kind.model_fields} | {"role", "content", "type", "text"})
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["{0}", "{x"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(USUAL)), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_every_fault_is_said_in_our_words(kind: type[pydantic.BaseModel], changes: dict[str, Any]) -> None:
    body = {**USUAL[kind], **changes}
    try:
        kind.model_validate(body)
    except pydantic.ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        found = refusal_of(RequestValidationError(faults, body=body), {"content-type": "application/json"})
        assert found.status == 400
        assert "Input should" not in found.message
        assert found.code
        if found.param is not None:  # the first part of it is a field of the body, or one that is missing
            assert any(found.param.startswith(name) for name in (*body, *kind.model_fields))


def test_a_number_or_a_word_is_asked_for_as_both() -> None:
    body = {**USUAL[JobBody], "hyperparameters": {"n_epochs": "x"}}
    try:
        JobBody.model_validate(body)
    except pydantic.ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        found = refusal_of(RequestValidationError(faults, body=body), {})
        assert (found.code, found.param) == ("invalid_type", "hyperparameters.n_epochs")
        assert found.message.endswith("expected one of an integer or 'auto', but got a string instead.")
    else:
        raise AssertionError("accepted")
