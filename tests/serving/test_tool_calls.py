"""Calls of tools: the form is found in the chat template, forced by a grammar, and read again in any pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from foreword.errors import BadSchema, TemplateRefuses
from foreword.grammar import compiler_of, json_rule
from foreword.serving.tool_calls import ToolCallReader, ToolForm, tool_form
from support.saved_bases import CHAT_TEMPLATE, TOOL_TEMPLATE
from support.stand_ins import byte_tokenizer

HERMES = ToolForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
LLAMA = ToolForm('{"name": "', '", "parameters": ', "}")
TAGS = ToolForm("<function=", ">", "</function>")
FORMS = [HERMES, LLAMA, TAGS]
PAINT = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
WALK = {"type": "object", "properties": {"steps": {"type": "integer", "minimum": 0, "maximum": 9}}}
TOOLS = [("paint", PAINT), ("walk", WALK)]


def template_of(form: ToolForm) -> str:
    """A chat template that writes calls in a form."""
    before, between, behind = (json.dumps(part) for part in (form.before, form.between, form.behind))
    call = f"{{{{ {before} + c.function.name + {between} + (c.function.arguments | tojson) + {behind} }}}}"
    return (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}{{{{ eos_token }}}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


def tokenizer_with(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def read(form: ToolForm, parts: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls (name, arguments) of an answer that comes in parts."""
    reader, text, calls = ToolCallReader(form), "", list[list[str]]()
    for number, part in enumerate(parts):
        for piece in reader.add(part, final=number == len(parts) - 1):
            if piece.kind == "text":
                text += piece.text
            elif piece.kind == "call":
                assert piece.id.startswith("call_")
                assert piece.index == len(calls)
                calls.append([piece.text, ""])
            else:
                calls[piece.index][1] += piece.text
    assert reader.calls == len(calls)
    return text, [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_found_in_the_template(form: ToolForm) -> None:
    assert tool_form(tokenizer_with(template_of(form))) == form
    assert tool_form(tokenizer_with(TOOL_TEMPLATE)) == HERMES


NO_CALLS = "{{ tools | tojson if tools }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
WITH_ID = template_of(HERMES).replace("(c.function.arguments", "c.id + (c.function.arguments")
ARGUMENTS_FIRST = template_of(HERMES).replace("c.function.name", "(c.function.arguments | tojson)", 1)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_CALLS, WITH_ID, ARGUMENTS_FIRST])
def test_a_template_without_tools_or_of_another_form_is_refused(template: str) -> None:
    with pytest.raises(TemplateRefuses, match="chat template"):
        tool_form(tokenizer_with(template))


def test_calls_with_special_tokens_which_no_text_shows_are_refused() -> None:
    tokenizer = tokenizer_with(TOOL_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    with pytest.raises(TemplateRefuses, match="special tokens"):
        tool_form(tokenizer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_an_answer_is_read_in_any_pieces(form: ToolForm, cut: int) -> None:
    arguments = ['{"colour": "a } \\" ] {", "n": [1, {"x": 2}]}', "{}"]
    calls = [
        f"{form.before}{name}{form.between}{each}{form.behind}"
        for name, each in zip("pw", arguments, strict=True)
    ]
    whole = f"Well <tool {calls[0]}\n{calls[1]}"
    parts = [whole[start : start + cut] for start in range(0, len(whole), cut)]
    assert read(form, parts) == ("Well <tool", [("p", arguments[0]), ("w", arguments[1])])
    assert read(form, [whole, "\nand more"])[0] == "Well <tool\nand more"


def test_text_that_only_looks_like_a_call_stays_text() -> None:
    for text in ("a < b", "<tool_call>", "<tool_call> no call here, " * 9, 'say {"x": 1}', "<tool_call>\n{"):
        assert read(HERMES, list(text)) == (text, [])


def test_a_call_that_is_cut_off_keeps_what_there_is() -> None:
    text = '<tool_call>\n{"name": "paint", "arguments": {"colour": "re'
    assert read(HERMES, [text]) == ("", [("paint", '{"colour": "re')])
    for end in ("", "}", "}\n</tool_"):
        assert read(HERMES, list(text + 'd"}' + end)) == ("", [("paint", '{"colour": "red"}')])


def test_an_answer_may_be_a_call_or_json_of_a_schema() -> None:
    rule = json_rule({"const": [1]})
    assert walk(HERMES, random.Random(1), "[", text=rule) == "[1]"
    assert len(read(HERMES, [walk(HERMES, random.Random(1), "<", text=rule)])[1]) == 1


def walk(form: ToolForm, chance: random.Random, begin: str = "", **options: Any) -> str:
    """A random text that the grammar of `TOOLS` allows, which begins with `begin`."""
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {"forced": False, "several": True, **options}
    state = compiler_of(tokenizer).compile(form.grammar(TOOLS, **settings)).state()
    import numpy as np

    text, given = "", list(begin)
    while len(text) < 300:
        bits_W = np.zeros(state.mask_bytes, dtype=np.uint8)
        state.allow(bits_W, frozenset({tokenizer.eos_token_id}))
        allowed = np.unpackbits(bits_W, bitorder="little").nonzero()[0].tolist()
        if tokenizer.eos_token_id in allowed and not given:
            return text
        token = tokenizer(given.pop(0))["input_ids"][0] if given else chance.choice(allowed)
        assert token in allowed
        text += tokenizer.decode([token])
        state.take(token)
        if state.complete:
            return text
    raise AssertionError(f"no end: {text}")


@pytest.mark.parametrize("form", FORMS)
def test_a_forced_answer_is_one_call_that_parses(form: ToolForm) -> None:
    for seed in range(10):
        text, ((name, arguments),) = read(form, [walk(form, random.Random(seed), forced=True)])
        assert text == ""
        assert set(json.loads(arguments)) <= {"paint": {"colour"}, "walk": {"steps"}}[name]


def test_an_answer_that_may_call_is_text_or_calls_that_parse() -> None:
    assert walk(HERMES, random.Random(1)) == ""
    assert walk(HERMES, random.Random(1), "any text, {even this}") == "any text, {even this}"
    for seed in range(10):
        text, calls = read(HERMES, [walk(HERMES, random.Random(seed), "I paint.<tool_call>")])
        assert text == "I paint."
        assert json.loads(calls[0][1]) is not None
    one = '<tool_call>\n{"name": "walk", "arguments": {}}\n</tool_call>'
    assert len(read(HERMES, [walk(HERMES, random.Random(1), f"{one}\n<tool_call>")])[1]) == 2
    assert walk(HERMES, random.Random(1), f"{one}\n<tool_call>", several=False) == one


def test_a_tool_whose_schema_can_not_be_followed_is_named() -> None:
    with pytest.raises(BadSchema, match="'broken'"):
        HERMES.grammar([("broken", False)], forced=True, several=False)
