"""What is wrong with a request, in the words, codes and names of fields that OpenAI's API uses.

FastAPI and pydantic find the faults. Who calls the API does not know them, so their words reach no client.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from foreword.serving.errors import Refused, shown

_ELSEWHERE = frozenset(
    [
        "audio",
        "background",
        "best_of",
        "cache_control",
        "context_management",
        "conversation",
        "echo",
        "effort",
        "file",
        "frequency_penalty",
        "function_call",
        "functions",
        "ignore_eos",
        "image_url",
        "include",
        "input_audio",
        "instructions",
        "logit_bias",
        "max_tool_calls",
        "min_p",
        "modalities",
        "moderation",
        "prediction",
        "presence_penalty",
        "prompt_logprobs",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "service_tier",
        "store",
        "structured_outputs",
        "suffix",
        "summary",
        "top_k",
        "truncation",
        "verbosity",
        "web_search_options",
    ]
)
"""Fields of the API, or of other servers of it, that this one has not; any other name is a mistake."""

_EXPECTED = {
    "bool": "a boolean",
    "dict": "an object",
    "model_attributes": "an object",
    "model": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "an array",
    "string": "a string",
    "none_required": "null",
}
"""By the beginning of pydantic's `..._type`."""

_LIMITS = {  # what is wrong, what is expected, the code
    "greater_than_equal": ("{kind} below minimum value", "a value >= {ge}", "{kind}_below_min_value"),
    "greater_than": ("{kind} below minimum value", "a value > {gt}", "{kind}_below_min_value"),
    "less_than_equal": ("{kind} above maximum value", "a value <= {le}", "{kind}_above_max_value"),
    "less_than": ("{kind} above maximum value", "a value < {lt}", "{kind}_above_max_value"),
    "string_too_short": ("string too short", "at least {min_length} characters", "string_below_min_length"),
    "string_too_long": ("string too long", "at most {max_length} characters", "string_above_max_length"),
    "too_short": ("{kind} too short", "at least {min_length} items", "{kind}_below_min_length"),
    "too_long": ("{kind} too long", "at most {max_length} items", "{kind}_above_max_length"),
}


def unknown_field(name: str, param: str | None) -> Refused:
    """A field that is not taken here: one that others know, or one that nobody does."""
    if name.rpartition(".")[2] in _ELSEWHERE:
        message = f"Unsupported parameter: {shown(name)} is not supported by this server; leave it out."
        return Refused(400, message, code="unsupported_parameter", param=param)
    return Refused(
        400, f"Unknown parameter: {shown(name)}; leave it out.", code="unknown_parameter", param=param
    )


def refuse_fields_beside(form: Iterable[str], known: Collection[str]) -> None:
    """Refuse a form with a field that has no meaning here, as bodies in JSON are. Raises Refused: 400."""
    for field in form:
        if field not in known:
            param = field.partition("[")[0]  # a field with parts comes as `expires_after[seconds]`
            raise unknown_field(field, param if param.isidentifier() else None)


def unreadable_body(cause: BaseException | None, headers: Mapping[str, str]) -> Refused | None:
    """A body that could not be read as JSON, by the exception that reading ended with; None for any other."""
    coding = headers.get("content-encoding", "identity").lower()
    if coding not in ("", "identity"):
        return Refused(
            415,
            f"Unsupported content encoding: {shown(coding)}. Send the body as it is, without that header.",
            code="unsupported_content_encoding",
        )
    if isinstance(cause, UnicodeDecodeError):
        return Refused(
            400,
            f"We could not parse the JSON body of your request: byte {cause.start + 1} is not UTF-8. Send "
            "the body in UTF-8.",
            code="invalid_json",
        )
    if isinstance(cause, RecursionError | ValueError):  # a number of too many digits
        why = "it is nested too deeply" if isinstance(cause, RecursionError) else "a number is too long"
        return Refused(400, f"We could not parse the JSON body of your request: {why}.", code="invalid_json")
    return None


def refusal_of(error: RequestValidationError, headers: Mapping[str, str]) -> Refused:
    """What pydantic found wrong with a request, said of the one field that a caller has to look at."""
    faults = error.errors()
    first = faults[0]
    if first["loc"][0] == "body" and (unreadable := unreadable_body(None, headers)) is not None:
        return unreadable
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        message = (
            f"We could not parse the JSON body of your request: {detail} at byte {first['loc'][-1]}. "
            "The API expects a JSON object."
        )
        return Refused(400, message, code="invalid_json")
    if isinstance(error.body, bytes) and first["loc"] == ("body",) and error.body:
        given = headers.get("content-type")
        found = "has no Content-Type" if given is None else f"has the Content-Type {shown(given)}"
        return Refused(
            415,
            f"Unsupported content type: the request {found}. Send JSON with the header "
            "'Content-Type: application/json'.",
            code="unsupported_content_type",
        )
    if first["loc"][0] == "body" and isinstance(error.body, Mapping):
        located = [(_path_in(error.body, fault), fault) for fault in faults]
    else:
        located = [(tuple(fault["loc"][1:]), fault) for fault in faults]
    return _in_words(*_most_telling(located))


Path = tuple[str | int, ...]


def _path_in(body: Any, fault: Mapping[str, Any]) -> Path:
    """The place in the body: pydantic names the types that it tried in between, which are no fields."""
    path: list[str | int] = []
    for part in fault["loc"][1:]:
        is_item = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_item or (isinstance(body, Mapping) and part in body):
            body = body[part]
            path.append(part)
    return (*path, fault["loc"][-1]) if fault["type"] == "missing" else tuple(path)


def _is_type(fault: Mapping[str, Any]) -> bool:
    return str(fault["type"]).endswith(("_type", "_from_float"))


def _most_telling(located: Sequence[tuple[Path, Any]]) -> tuple[Path, list[Any]]:
    """Where a field takes several types, the fault of the one that was meant, or all types that it takes.

    An array whose second item is wrong was meant as an array, not as the text that the field takes, too.
    """
    path = located[0][0]
    same = [(where, fault) for where, fault in located if where[: len(path)] == path]
    of_other_types = {where for where, fault in same if _is_type(fault)}
    for where, fault in same:
        # A word that may stand for a number is one more type of it.
        is_word = fault["type"] == "literal_error" and where in of_other_types
        if not _is_type(fault) and not is_word and (where == path or path in of_other_types):
            return where, [fault]
    deeper = [where for where, _ in same if len(where) > len(path)]
    chosen = deeper[0] if path in of_other_types and deeper else path
    return chosen, [fault for where, fault in same if where == chosen]


def _in_words(path: Path, faults: Sequence[Mapping[str, Any]]) -> Refused:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    fault = faults[0]
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    param = name or None
    where = shown(name) if name else "the body"
    if kind == "extra_forbidden":
        return unknown_field(name, param)
    if kind == "missing":
        message = (
            f"Missing required parameter: {where}."
            if name
            else "The body is missing; expected a JSON object."
        )
        return Refused(400, message, code="missing_required_parameter", param=param)
    if kind == "literal_error" and len(faults) == 1:
        message = f"Invalid value: {_value(given)}. Supported values are: {context['expected']}."
        if isinstance(given, str) and given in _ELSEWHERE:
            message = message.replace(". Supported", " is not supported by this server. Supported", 1)
        return Refused(400, message, code="invalid_value", param=param)
    if kind == "string_pattern_mismatch":
        message = (
            f"Invalid {where}: string does not match pattern. Expected a string that matches the pattern "
        )
        message += f"{context['pattern']!r}, but got {_value(given)} instead."
        return Refused(400, message, code="invalid_value", param=param)
    if kind == "finite_number":
        message = f"Invalid value for {where}: expected a finite number."
        return Refused(400, message, code="invalid_value", param=param)
    if any(_is_type(each) for each in faults):
        expected = list(dict.fromkeys(_expected(each) for each in faults))
        words = expected[0] if len(expected) == 1 else f"one of {', '.join(expected[:-1])} or {expected[-1]}"
        if given is None:
            message = f"Invalid value for {where}: expected {words}, got null."
            return Refused(400, message, code="invalid_value", param=param)
        message = f"Invalid type for {where}: expected {words}, but got {_kind(given)} instead."
        return Refused(400, message, code="invalid_type", param=param)
    if kind in _LIMITS:
        kinds: dict[type, str] = {dict: "object", list: "array"}
        is_decimal = any(isinstance(bound, float) for bound in context.values())
        facts = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
        facts["kind"] = kinds.get(type(given), "decimal" if is_decimal else "integer")
        what, limit, code = (part.format(**facts) for part in _LIMITS[kind])
        found = len(given) if isinstance(given, str | list | dict) else _value(given)
        message = f"Invalid {where}: {what}. Expected {limit}, but got {found} instead."
        return Refused(400, message, code=code, param=param)
    if "UploadFile" in fault["msg"]:  # FastAPI's words for text where a file belongs
        message = f"Invalid type for {where}: expected a file, which is a part of the form with a file name."
        return Refused(400, message, code="invalid_type", param=param)
    if kind == "value_error":  # of a validator of ours
        return Refused(400, str(context["error"]), code="invalid_value", param=param)
    return Refused(400, f"Invalid value for {where}: {_value(given)}.", code="invalid_value", param=param)


def _expected(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "literal_error":
        return str(fault["ctx"]["expected"])
    return next(
        (words for start, words in _EXPECTED.items() if fault["type"].startswith(start)), "another type"
    )


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", str: "a string", int: "an integer", float: "a decimal", list: "an array"}
    return kinds.get(type(value), "an object")


def _value(value: Any) -> str:
    return shown(value) if isinstance(value, str) else shown(json.dumps(value, default=str)).strip("'")
