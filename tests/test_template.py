"""Template: what it renders stays what training saw, and what it refuses is named with its place."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, Template, generate, train, train_many
from foreword.encoding import encode
from foreword.errors import (
    BadExamples,
    OwnersFailed,
    TemplateChanged,
    TemplateRefuses,
    UsageError,
    WindowExceeded,
)
from foreword.evaluation import evaluate
from foreword.examples import read_examples
from foreword.serving import logs
from foreword.training.checkpoint import list_checkpoints
from support.saved_bases import CHAT_TEMPLATE
from support.stand_ins import byte_tokenizer, tiny_llama

DATE = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHAT_TEMPLATE
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
CHAT = Template(style="chat", end="<end>")
QUICK: dict[str, Any] = {"length": 2, "steps": 4, "batch_size": 2, "template": CHAT}

USER, SYSTEM = ({"role": role, "content": "hi"} for role in ("user", "system"))
GOOD, REFUSED = Example((USER,), "yo"), Example((SYSTEM, USER), "yo")


def chatting(chat_template: str) -> BaseModel:
    """The tiny model with a chat template."""
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    base.tokenizer.chat_template = chat_template
    return base


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go to a place where it is another day: these two are 25 hours apart."""

    def go(name: str) -> str:
        monkeypatch.setenv("TZ", f"Pacific/{name}")
        time.tzset()
        return datetime.date.today().isoformat()

    yield go
    monkeypatch.undo()
    time.tzset()


# -- dates -------------------------------------------------------------------------------------------


def test_the_day_of_training_is_kept_and_written_ever_after(
    in_zone: Callable[[str], str], tmp_path: Path
) -> None:
    base = chatting(DATE)
    day = in_zone("Kiritimati")
    prefix = train(base, [GOOD, GOOD], **QUICK)
    text = f"Today: {datetime.date.fromisoformat(day):%d %b %Y}\nu: hi\na: "
    assert prefix.template == dataclasses.replace(CHAT, date=day)
    (there,) = base.token_losses([GOOD], prefix)
    written = generate(base, [GOOD.source], prefix, max_new_tokens=5)
    prefix.save(tmp_path / "a.prefix")

    assert in_zone("Pago_Pago") != day
    loaded = Prefix.load(tmp_path / "a.prefix")
    assert base.tokenizer.decode(loaded.template.source_ids(base.tokenizer, GOOD.source)) == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(base.token_losses([GOOD], loaded)[0], there)
        assert generate(base, [GOOD.source], loaded, max_new_tokens=5) == written
    assert loaded.template.rendering_digest(base.tokenizer) == prefix.template_digest
    # Without a prefix, today is today.
    assert base.tokenizer.decode(CHAT.source_ids(base.tokenizer, GOOD.source)) != text


@pytest.mark.parametrize("many", [False, True])
def test_a_run_that_goes_on_keeps_the_day_on_which_it_began(
    many: bool, in_zone: Callable[[str], str], tmp_path: Path
) -> None:
    base = chatting(DATE)

    def run() -> Prefix:
        options: dict[str, Any] = {**QUICK, "checkpoint_dir": tmp_path, "checkpoint_every": 2}
        return (
            train_many(base, {"ann": [GOOD] * 3}, **options)["ann"]
            if many
            else train(base, [GOOD] * 3, **options)
        )

    day = in_zone("Kiritimati")
    whole = run()
    folder = tmp_path / "@ann" if many else tmp_path
    list_checkpoints(folder)[-1].unlink()  # as a run that broke off after two steps
    in_zone("Pago_Pago")
    resumed = run()
    assert resumed.template.date == whole.template.date == day
    assert torch.equal(resumed.key(), whole.key())


def test_a_template_without_the_day_gets_none() -> None:
    base = chatting(CHAT_TEMPLATE)
    assert train(base, [GOOD], **QUICK).template == CHAT
    with pytest.raises(UsageError, match="date is 'today'; expected one such as"):
        Template(style="chat", date="today")


# -- what has changed since training -------------------------------------------------------------------


def changes(base: BaseModel, prefix: Prefix) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            base.per_row(prefix, 1)
    return [str(one.message) for one in caught if issubclass(one.category, TemplateChanged)]


def test_another_chat_template_is_warned_of_once_with_what_differs() -> None:
    prefix = train(chatting(CHAT_TEMPLATE), [GOOD], **QUICK)
    assert changes(chatting(CHAT_TEMPLATE), prefix) == []
    other = chatting(CHAT_TEMPLATE.replace("}}: {{", "}} - {{"))
    (told,) = changes(other, prefix)
    assert prefix.digest[:12] in told
    assert "behind 'u' its chat template now writes ' - What is" in told
    assert "and wrote ': What is" in told
    again = prefix.relabel(labels={"a": "b"})
    assert len(changes(other, again)) == 1  # another prefix

    base = chatting(CHAT_TEMPLATE)
    texts = train(base, [Example("a", "b")], length=2, steps=1, template=base.template)
    assert changes(other, texts) == []  # whose template does not ask for the chat template
    split = chatting(CHAT_TEMPLATE)
    split.tokenizer.add_tokens(["capital"])
    (told,) = changes(split, texts)
    assert "makes other tokens of the same text" in told
    refusing = chatting("{{ raise_exception('no') }}")
    (told,) = changes(refusing, prefix)
    assert "can't write the conversation by which templates are compared any more" in told


SYSTEM_FIRST = "{% if messages[0]['role'] == 'system' %}[S]{% endif %}"


@pytest.mark.parametrize(
    ("trained", "loaded", "found"),
    [
        (CHAT_TEMPLATE, SYSTEM_FIRST + CHAT_TEMPLATE, r"a: \n' its .* now writes '[S]s: Answer"),
        (
            CHAT_TEMPLATE,
            CHAT_TEMPLATE + SYSTEM_FIRST,
            "a: ' its chat template now writes '[S]', and wrote ''",
        ),
        (CHAT_TEMPLATE, STRICT + CHAT_TEMPLATE, r"now writes '', and wrote '\ns: Answer in one sentence"),
        (CHAT_TEMPLATE, "x" + CHAT_TEMPLATE, "at the beginning its chat template now writes 'xu: What"),
        (SYSTEM_FIRST + CHAT_TEMPLATE, SYSTEM_FIRST + CHAT_TEMPLATE, None),
        (STRICT + CHAT_TEMPLATE, STRICT + CHAT_TEMPLATE, None),
    ],
)
def test_a_chat_template_that_changes_only_where_a_system_message_stands_is_warned_of(
    trained: str, loaded: str, found: str | None
) -> None:
    prefix = train(chatting(trained), [GOOD], **QUICK)
    told = changes(chatting(loaded), prefix)
    assert len(told) == (found is not None)
    for message in told:
        assert re.search(re.escape(found or "").replace(r"\.\*", ".*"), message)
    # Files of earlier releases have the digest alone, which stays as it was.
    older = dataclasses.replace(prefix, template_rendering=None)
    assert len(changes(chatting(loaded), older)) == (found is not None and "beginning" in found)


def test_a_file_that_does_not_say_its_day_is_told_apart_from_one_of_another_template(
    in_zone: Callable[[str], str],
) -> None:
    """As earlier releases wrote it: the digest is of the day of training, which the template does not name."""
    day = in_zone("Kiritimati")
    base = chatting(DATE)
    prefix = dataclasses.replace(train(base, [GOOD], **QUICK), template=CHAT, template_rendering=None)
    assert changes(base, prefix) == []
    in_zone("Pago_Pago")
    (told,) = changes(chatting(DATE), prefix)
    assert f"it was trained on {day}" in told
    (told,) = changes(chatting(DATE), dataclasses.replace(prefix, created="some time ago"))
    assert "makes other tokens of the same text" in told
    kept = dataclasses.replace(prefix, template=dataclasses.replace(CHAT, date=day))
    assert changes(chatting(DATE), kept) == []


def test_older_readers_may_ignore_the_rendering_and_it_is_bounded() -> None:
    prefix = train(chatting(CHAT_TEMPLATE), [GOOD], **QUICK)
    content = prefix.to_bytes()
    header = json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["foreword"]
    )
    assert header["optional"] == ["template_rendering"]
    assert header["template_rendering"].startswith("u: What is the capital of France?\n")
    long = chatting("{{ 'x' * 100000 }}" + CHAT_TEMPLATE)
    assert CHAT.rendering(long.tokenizer) == "\n".join(["x" * 1000] * 2)
    with pytest.raises(UsageError, match=r"template_rendering has 2,049 characters; expected 2,048"):
        dataclasses.replace(prefix, template_rendering="x" * 2049).to_bytes()


def test_the_server_logs_what_has_changed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prefix = train(chatting(CHAT_TEMPLATE), [GOOD], **QUICK)
    for name in ("foreword.serving", "uvicorn"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.install()
        chatting("x" + CHAT_TEMPLATE).per_row(prefix, 1)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["warning"]) == ("warning", "TemplateChanged")
    assert "now writes 'xu: What" in line["text"]


# -- a system message in the prefix ----------------------------------------------------------------------


def test_turns_in_front_of_the_system_message_are_refused_and_not_dropped() -> None:
    late = (
        "{% for m in messages if m['role'] != 'system' %}"
        "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} {% endif %}"
        "{{ m['content'] }}\n{% endfor %}"
    )
    template = Template(style="chat", system_in_prefix=True)
    turns = ({"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hi."}, USER)
    tokenizer = chatting(late).tokenizer
    assert template.source_text(tokenizer, (USER,)) == " hi\n"
    with pytest.raises(TemplateRefuses, match="writes earlier turns in front of the system message"):
        template.source_text(tokenizer, turns)
    assert "I am Ada." in template.source_text(chatting(CHAT_TEMPLATE).tokenizer, turns)


def test_a_system_message_beside_the_prefixs_own_is_refused() -> None:
    with pytest.raises(UsageError, match="leave system out"):
        Template(style="chat", system="Be brief.", system_in_prefix=True)


# -- refusals ------------------------------------------------------------------------------------------


@pytest.fixture
def strict() -> BaseModel:
    return chatting(STRICT + CHAT_TEMPLATE)


def test_an_example_that_the_template_refuses_is_named_everywhere(strict: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    answer = {"role": "assistant", "content": "yo"}
    rows: list[Any] = [[USER, answer], [SYSTEM, USER, answer]]
    file.write_text("".join(json.dumps({"messages": row}) + "\n\n" for row in rows))
    examples = read_examples(file)
    expected = (
        r"example 1 \(.*chats.jsonl, line 3\): .*refuses the messages \(system, user\): no system messages"
    )
    for work in (
        lambda: train(strict, examples, **QUICK),
        lambda: train(strict, examples[:1], dev=examples, **QUICK),
        lambda: strict.token_losses(examples, template=CHAT),
        lambda: evaluate(strict, examples, template=CHAT),
    ):
        with pytest.raises(TemplateRefuses, match=expected):
            work()
    with pytest.raises(TemplateRefuses, match=r"prompt 1: the base's chat template refuses"):
        generate(strict, [GOOD.source, REFUSED.source], template=CHAT)
    assert examples[0] == GOOD  # a place makes no other example


@pytest.mark.parametrize(
    "faulty",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[9]['content'] | length }}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ nothing.there() }}",
    ],
)
def test_whatever_a_template_fails_with_is_named(faulty: str) -> None:
    with pytest.raises(
        BadExamples, match=r"example 0: the base's chat template refuses the messages \(user\): ."
    ):
        encode([GOOD], chatting(faulty).tokenizer, CHAT)


def test_an_owner_whose_examples_are_refused_costs_no_other_their_prefix(strict: BaseModel) -> None:
    with pytest.raises(OwnersFailed) as failed:
        train_many(strict, {"ann": [REFUSED], "bob": [GOOD], "eve": [Example("a", "b", place=None)]}, **QUICK)
    assert {owner: type(error) for owner, error in failed.value.errors.items()} == {"ann": TemplateRefuses}
    assert sorted(failed.value.prefixes) == ["bob", "eve"]
    assert "no system messages" in str(failed.value)


def test_a_template_that_refuses_what_cutting_leaves_says_that_it_does_not_fit() -> None:
    base = chatting(
        "{% if messages[0]['content'] | length < 9 %}{{ raise_exception('too short') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    long = Example(({"role": "user", "content": "abcdefghijkl"},), "yo")
    with pytest.raises(WindowExceeded, match=r"example 0: .* once their longest text is cut"):
        encode([long], base.tokenizer, CHAT, 12)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (5, "of type int"),
        (None, "of type NoneType"),
        ({"role": "user", "content": "a"}, "of type dict"),
        (("a", "b"), r"\('a', 'b'\)"),
        (({"role": "user"},), "role"),
        (({"role": "user", "content": None},), "None"),
        ((), r"\(\)"),
        ("\ud83d", "half of a character"),
        (({"role": "user", "content": "caf\udce9"},), "at character 4"),
    ],
)
def test_what_is_no_source_is_named(source: Any, found: str) -> None:
    with pytest.raises(UsageError, match=f"the source (is|holds) .*{found}"):
        CHAT.source_ids(chatting(CHAT_TEMPLATE).tokenizer, source)


def test_the_last_day_that_there_is_has_no_day_behind_it() -> None:
    from foreword.base.template_changes import what_differs

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}"
    differs = what_differs(Template(style="chat"), tokenizer, "ab" * 32, created="9999-12-31T00:00:00")
    assert differs is not None
