"""foreword generate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix, Template, generate
from foreword.cli.generate import read_prompts
from foreword.errors import BadExamples
from foreword.sampling import Decoding
from support.saved_bases import save_tiny
from support.stand_ins import random_prefix

SHORT = ("--max-new-tokens", 6)


@pytest.fixture
def model(base: str) -> BaseModel:
    return BaseModel.load(base)


@pytest.fixture
def two(model: BaseModel) -> tuple[Prefix, Prefix]:
    """Two prefixes, also in p.prefix and q.prefix."""
    prefixes = random_prefix(model, 3, seed=1), random_prefix(model, 5, seed=2)
    for name, prefix in zip("pq", prefixes, strict=True):
        prefix.save(f"{name}.prefix")
    return prefixes


def test_one_prompt_prints_its_text_and_nothing_else(run: Any, model: BaseModel, two: Any) -> None:
    done = run("generate", "abc", "--prefix", "p.prefix", *SHORT)
    assert done.status == 0, done.stderr
    assert done.stdout == generate(model, "abc", two[0], max_new_tokens=6)[0] + "\n"
    assert done.stderr == ""


def test_every_prompt_gets_the_prefix_in_its_place(run: Any, model: BaseModel, two: Any) -> None:
    names = ("--prefix", "p.prefix", "--prefix", "none", "--prefix", "q.prefix")
    done = run("generate", "abc", "abc", "abc", *names, *SHORT, "--json")
    expected = generate(model, ["abc"] * 3, [two[0], None, two[1]], max_new_tokens=6)
    assert [row["text"] for row in done.json["outputs"]] == expected
    assert [row["prefix"] for row in done.json["outputs"]] == ["p.prefix", None, "q.prefix"]
    one_prompt = run("generate", "abc", *names, *SHORT, "--json")
    assert one_prompt.json == done.json


def test_options_reach_the_decoder(run: Any, model: BaseModel, two: Any) -> None:
    options = ("--temperature", 0.9, "--top-k", 9, "--top-p", 0.8, "--seed", 4, "--stop", r"\n", "--ban", "e")
    done = run("generate", "abc", "--prefix", "p.prefix", *options, "--raw", "--max-new-tokens", 20)
    expected = generate(
        model,
        "abc",
        two[0],
        temperature=0.9,
        top_k=9,
        top_p=0.8,
        seed=4,
        stop="\n",
        banned="e",
        raw=True,
        max_new_tokens=20,
    )
    assert done.stdout == expected[0] + "\n"
    beams = run("generate", "abc", "--prefix", "p.prefix", "--beams", 3, "--length-penalty", 0.5, *SHORT)
    assert (
        beams.stdout
        == generate(model, "abc", two[0], beams=3, length_penalty=0.5, max_new_tokens=6)[0] + "\n"
    )


def test_the_shortest_length_reaches_the_decoder(run: Any, model: BaseModel) -> None:
    prefix = random_prefix(model, 3, seed=1)
    end = generate(model, "abc", prefix, max_new_tokens=6)[0][1]
    prefix = dataclasses.replace(prefix, template=Template(end=end))
    prefix.save("short.prefix")
    command = ("generate", "abc", "--prefix", "short.prefix", *SHORT)
    assert len(run(*command).stdout) <= 1 + len("\n")
    longer = run(*command, "--min-new-tokens", 4).stdout
    assert longer == generate(model, "abc", prefix, max_new_tokens=6, min_new_tokens=4)[0] + "\n"
    assert len(longer) >= 4 + len("\n")
    refused = run(*command, "--min-new-tokens", 7)
    assert refused.status == 2
    assert "min_new_tokens is 7; expected 0 or more, and at most max_new_tokens, which is 6" in refused.stderr


def test_defaults_are_those_of_decoding(run: Any) -> None:
    from foreword.cli.generate import SamplingOptions

    for name in (
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "beams",
        "length_penalty",
        "seed",
    ):
        assert SamplingOptions().decoding()[name] == getattr(Decoding(), name)


def test_streamed_pieces_make_the_whole_text(run: Any, two: Any) -> None:
    whole = run("generate", "abc", "--prefix", "p.prefix", *SHORT)
    streamed = run("generate", "abc", "--prefix", "p.prefix", *SHORT, "--stream")
    assert streamed.stdout == whole.stdout
    assert run("generate", "a", "b", "--base", "tiny", "--stream").status == 2
    assert run("generate", "a", "--base", "tiny", "--stream", "--json").status == 2


def test_prompts_come_from_a_file_or_standard_input(run: Any, two: Any) -> None:
    texts = [
        row["text"]
        for row in run("generate", "ab", "cd", "--prefix", "p.prefix", *SHORT, "--json").json["outputs"]
    ]
    Path("prompts.txt").write_text("ab\n\ncd\r\n")
    Path("prompts.jsonl").write_text('{"source": "ab", "target": "x"}\n{"source": "cd"}\n')
    for given, typed in (("prompts.txt", None), ("prompts.jsonl", None), ("-", "ab\ncd\n")):
        done = run("generate", "--input", given, "--prefix", "p.prefix", *SHORT, "--json", input=typed)
        assert [row["text"] for row in done.json["outputs"]] == texts


def test_conversations_can_be_prompts(run: Any, base: str, data: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    Path("chat.jsonl").write_text(
        json.dumps({"messages": [*messages, {"role": "assistant", "content": "ho"}]})
    )
    assert run("train", "chat.jsonl", "--base", base, "--out", "c.prefix", "--steps", 1).status == 0
    Path("ask.jsonl").write_text(json.dumps({"messages": messages}))
    done = run("generate", "--input", "ask.jsonl", "--prefix", "c.prefix", *SHORT, "--json")
    expected = generate(BaseModel.load(base), [tuple(messages)], Prefix.load("c.prefix"), max_new_tokens=6)
    assert [row["text"] for row in done.json["outputs"]] == expected


def test_many_texts_are_a_numbered_list(run: Any, two: Any) -> None:
    done = run("generate", "first", "second", "--prefix", "p.prefix", *SHORT)
    lines = done.stdout.splitlines()
    assert lines[0] == "1. first"
    assert "2. second" in lines


def test_comparison_shows_texts_without_and_with(run: Any, model: BaseModel, two: Any) -> None:
    done = run("generate", "abc", "--prefix", "p.prefix", "--compare", *SHORT, "--json")
    (row,) = done.json["outputs"]
    assert row["text"] == generate(model, "abc", two[0], max_new_tokens=6)[0]
    assert row["without"] == generate(model, "abc", template=two[0].template, max_new_tokens=6)[0]
    people = run("generate", "abc", "--prefix", "p.prefix", "--compare", *SHORT)
    assert "without" in people.stdout
    assert "with p.prefix" in people.stdout
    assert run("generate", "abc", "--base", "tiny", "--compare").status == 2


@pytest.mark.parametrize("given", ["file", "standard input"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{ "source": "ab" }\n', "ab"),
        (b'\xef\xbb\xbf{"source": "ab"}\r\n\r\n', "ab"),
        (b' {\t"source": ["a", "b"]}', "a b"),
        (b"\xef\xbb\xbfab\n", "ab"),
        (b"\n\n ab \r\n  \n", " ab "),
        (b"{ab} cd\n", "{ab} cd"),
        (b'a "q" {"b": 1}', 'a "q" {"b": 1}'),
        (b"ab\ncaf\xe9\n", "line 2: byte 0xe9 at position 4 is not UTF-8"),
        ("ab\n".encode("utf-16"), "is encoded in UTF-16"),
        ("ab\n".encode("utf-32"), "is encoded in UTF-32"),
        ("ab\n".encode("utf-16-le"), "line 1: byte 0x00 at position 2, as in UTF-16"),
        (b"a\0b\n", "line 1: byte 0x00 at position 2, as in UTF-16 without a byte-order mark; save the file"),
        ("\nab\n".encode("utf-16-le"), "0x00"),
        (b'{"source": "ab"\n', "line 1: not JSON"),
        (b'{\n"source": "ab"}\n', "spread over several lines"),
        (b"{}\n", "line 1: expected an object with source"),
        (b"\n \r\n", "is empty"),
    ],
)
def test_prompts_are_read_alike_however_they_are_written(
    run: Any, two: Any, given: str, content: bytes, found: str
) -> None:
    Path("asked").write_bytes(content)
    name, typed = ("asked", None) if given == "file" else ("-", content)
    done = run(
        "generate", "--input", name, "--prefix", "p.prefix", "--max-new-tokens", 1, "--json", input=typed
    )
    if done.status == 0:
        assert [row["source"] for row in done.json["outputs"]] == [found]
    else:
        assert (done.status, done.json["error"]["type"]) == (1, "BadExamples")
        assert found in done.json["error"]["message"]
        assert done.json["error"]["message"].startswith("asked" if given == "file" else "standard input")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('[{"source": "ab"}]', r"a JSON list; expected text, or an object .* one a line \(jq"),
        (
            '[{"role": "user", "content": "ab"}]',
            r"a JSON list of messages; .* write {\"messages\": \[...\]} around",
        ),
        ("[]", "a JSON list; expected text"),
        ('"ab"', "text in the quotes of JSON; expected text, or an object .* write it without them"),
        ("[ab] cd", None),
        ('["ab", ', None),
        ('"ab" cd', None),
        ("12", None),
    ],
)
def test_a_prompt_that_is_json_of_another_kind_is_no_text(
    tmp_path: Path, line: str, found: str | None
) -> None:
    file = tmp_path / "prompts"
    file.write_text(f"{json.dumps({'source': line})}\n{line}\n")
    if found is None:
        assert read_prompts((), file)[0] == [line, line]
    else:
        with pytest.raises(BadExamples, match=f"line 2: found {found}"):
            read_prompts((), file)


def test_texts_are_written_as_json_lines_and_nothing_is_replaced_unasked(run: Any, two: Any) -> None:
    command = ("generate", "ab", "cd", "--prefix", "p.prefix", *SHORT, "--out", "texts.jsonl")
    assert run(*command).stdout == "2 texts: texts.jsonl\n"
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["ab", "cd"]
    Path("texts.jsonl").write_text("mine")
    assert run(*command).status == 1
    assert Path("texts.jsonl").read_text() == "mine"
    assert run(*command, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "no prompt"),
        (("a", "--input", "x"), 2, "choose one"),
        (("--input", "absent.txt"), 1, "absent.txt does not exist"),
        (("--input", "empty.txt"), 1, "empty.txt is empty"),
        (("--input", "odd.jsonl"), 1, "odd.jsonl, line 1"),
        (("a",), 2, "give --base"),
        (("a", "--prefix", "absent.prefix"), 1, "absent.prefix could not be read"),
        (("a", "--prefix", "empty.txt"), 1, "not a prefix file"),
        (("a", "--prefix", "p.prefix", "--base", "other"), 1, "was trained for tiny with weights"),
        (("a", "--prefix", "p.prefix", "--base", "larger"), 1, "4 layers"),
        (("a" * 200, "--prefix", "p.prefix"), 1, "125 fit"),
        (("", "--prefix", "none", "--base", "tiny", "--raw"), 2, "prompt 0 is empty"),
        (("a", "b", "c", "--prefix", "p.prefix", "--prefix", "q.prefix"), 2, "2 prefixes for 3 prompts"),
        (("a", "--prefix", "p.prefix", "--temperature", -1), 2, "temperature is -1"),
        (("a", "--prefix", "p.prefix", "--beams", 2, "--temperature", 1), 2, "exclude each other"),
        (("a", "--prefix", "p.prefix", "--batch-size", 0), 2, "batch_size is 0"),
        (("a", "--prefix", "p.prefix", "--seed", 2**65), 2, "seed is 36893488147419103232; expected"),
        (("caf\udce9", "--prefix", "p.prefix"), 2, "prompt 0: the source holds '\\udce9' at character 4"),
        (("a", "--stop", "\udce9", "--prefix", "p.prefix"), 2, "stop holds '\\udce9' at character 1"),
    ],
)
def test_bad_input_ends_with_a_message_and_its_status(
    run: Any, two: Any, arguments: tuple[object, ...], status: int, message: str
) -> None:
    Path("empty.txt").touch()
    Path("odd.jsonl").write_text('{"text": "x"}\n')
    if "other" in arguments:
        save_tiny(Path("other"), seed=1)
    if "larger" in arguments:
        save_tiny(Path("larger"), num_hidden_layers=4)
    done = run("generate", *arguments)
    assert done.status == status
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""
    assert run("generate", *arguments, "--json").json["error"]["message"] in done.stderr


def test_a_base_that_has_moved_is_asked_for(run: Any, two: Any) -> None:
    Path("tiny").rename("moved")
    done = run("generate", "a", "--prefix", "p.prefix")
    assert done.status == 1
    assert "with --base" in done.stderr
    assert run("generate", "a", "--prefix", "p.prefix", "--base", "moved").status == 0


def test_texts_follow_a_schema_file(run: Any, model: BaseModel, two: Any) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
    Path("schema.json").write_text(json.dumps(schema))
    done = run("generate", "abc", "xy", "--prefix", "p.prefix", "--schema", "schema.json", "--json")
    assert done.status == 0, done.stderr
    texts = [row["text"] for row in done.json["outputs"]]
    assert texts == generate(model, ["abc", "xy"], two[0], schema=schema)
    assert all(json.loads(text)["kind"] in ("a", "b") for text in texts)


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        ("{", 2, "schema.json is not JSON"),
        ("[]", 2, "schema.json: the schema is list; expected an object"),
        ('{"type": "integer", "minimum": 3, "maximum": 1}', 2, "minimum"),
        (None, 1, "schema.json"),
    ],
)
def test_a_schema_file_that_can_not_be_followed_is_named(
    run: Any, base: str, content: str | None, status: int, why: str
) -> None:
    if content is not None:
        Path("schema.json").write_text(content)
    done = run("generate", "abc", "--base", base, "--schema", "schema.json")
    assert (done.status, why in done.stderr) == (status, True), done.stderr
