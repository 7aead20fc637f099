"""foreword train."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, train
from foreword.errors import TrainingDiverged
from foreword.examples import read_examples
from foreword.training.checkpoint import list_checkpoints
from support.saved_bases import save_tiny

QUICK = ("--length", 3, "--steps", 6, "--batch-size", 4)


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_the_command_trains_what_the_function_trains(run: Any, base: str, data: str, tmp_path: Path) -> None:
    done = run(
        *("train", data, "--base", base, "--out", "a.prefix", "--dev", data, "--dev-limit", 3, *QUICK),
        *("--parameterization", "mlp+start", "--width", 16, "--freeze-first", "--init", "words:abc"),
        *("--seed", 7, "--label", "task=test", "--label", "who=me", "--licence", "MIT"),
        *("--separator", r" =>\n", "--learning-rate", 0.01, "--reduction", "sequence"),
    )
    assert done.status == 0, done.stderr
    found = Prefix.load("a.prefix")
    examples = read_examples(data)
    from foreword.template import default_template
    from foreword.training.parameterization import ParameterizationSettings

    model = BaseModel.load(base)
    expected = train(
        model,
        examples,
        dev=examples[:3],
        length=3,
        steps=6,
        batch_size=4,
        parameterization=ParameterizationSettings("mlp+start", 16, True),
        init="words:abc",
        seed=7,
        learning_rate=0.01,
        reduction="sequence",
        template=default_template(model.tokenizer, separator=" =>\n"),
    )
    assert same(found, expected)
    assert (found.origin, found.template) == (expected.origin, expected.template)
    assert (found.labels, found.licence) == ({"task": "test", "who": "me"}, "MIT")


def test_people_see_progress_places_and_what_to_type_next(run: Any, base: str, data: str) -> None:
    done = run("train", data, "--base", base, "--out", "a.prefix", "--dev", data, *QUICK)
    assert "step 0/6  dev" in done.stderr
    assert "step 6/6  loss" in done.stderr
    assert "best" in done.stderr
    for text in ("Prefix(length=3", "a.prefix", "a.run/log.jsonl", "a.run/curves.png"):
        assert text in done.stdout
    assert done.stdout.splitlines()[-1] == "next: foreword generate --prefix a.prefix 'YOUR TEXT'"
    assert Path("a.run/curves.png").exists()


def test_json_is_one_object_and_all_else_goes_to_standard_error(run: Any, base: str, data: str) -> None:
    done = run("train", data, "--base", base, "--out", "a.prefix", *QUICK, "--json")
    prefix = Prefix.load("a.prefix")
    assert done.json["digest"] == prefix.digest
    assert done.json["steps"] == 6
    assert (done.json["prefix"], done.json["run"]) == ("a.prefix", "a.run")
    assert "step 6/6" in done.stderr


def test_the_output_is_checked_before_the_model_is_loaded(
    run: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseModel, "load", lambda *a, **k: pytest.fail("loaded"))
    Path("a.prefix").write_text("mine")
    done = run("train", data, "--out", "a.prefix")
    assert done.status == 1
    assert done.stderr.startswith("error: a.prefix exists already")
    assert run("train", data, "--out", "no/a.prefix").status == 1
    assert run("train", data, "--out", "b.prefix", "--learning-rate", -1).status == 2
    assert run("train", data, "--out", "b.prefix", "--system", "x", "--template", "raw").status == 2
    assert run("train", data, "--out", "b.prefix", "--width", 8).status == 2
    assert run("train", data, "--out", "b.prefix", "--label", "x").status == 2
    assert Path("a.prefix").read_text() == "mine"


def test_a_failed_run_leaves_the_old_prefix_as_it_was(
    run: Any, base: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.prefix").write_text("mine")
    options = ("--parameterization", "direct", "--warmup", 0, "--learning-rate", 1e30, "--steps", 30)
    done = run("train", data, "--base", base, "--out", "a.prefix", "--overwrite", *options, "--json")
    assert done.status == 1
    assert done.json["error"]["type"] == TrainingDiverged.__name__
    assert Path("a.prefix").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("absent.jsonl",), 1, "absent.jsonl does not exist"),
        (("empty.jsonl",), 1, "empty.jsonl is empty"),
        (("data.jsonl", "--length", 500), 1, "128 positions"),
        (("data.jsonl", "--base", "nosuch"), 1, "no base model is called 'nosuch'"),
        (("data.jsonl", "--base", "data.jsonl"), 1, "is a file"),
        (("data.jsonl", "--source-field", "body"), 1, "body"),
        (("data.jsonl", "--device", "cuda"), 2, "--device cpu"),
        (("data.jsonl", "--device", "gpu"), 2, "expected auto, cpu"),
        (("data.jsonl", "--parameterization", "lora"), 2, "lora"),
        (("data.jsonl", "--steps", "many"), 2, "--steps"),
        (("data.jsonl", "--steps", 1, "--epochs", 1), 2, "not both"),
        (("data.jsonl", "--init", "zeros"), 2, "expected random"),
        (("data.jsonl", "--seed", 2**65), 2, "seed is 36893488147419103232; expected -9,223"),
        (("data.jsonl", "--patience", "2"), 2, "give --dev, or leave --patience out"),
        (("data.jsonl", "--system", "x", "--separator", "y"), 2, "needs --template separator"),
        (("data.jsonl", "--no-such-option"), 2, "--no-such-option"),
        ((), 2, "DATA"),
    ],
)
def test_bad_input_ends_with_a_message_and_its_status(
    run: Any, base: str, data: str, arguments: tuple[object, ...], status: int, message: str
) -> None:
    if message == "--device cpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    Path("empty.jsonl").touch()
    chosen = () if "--base" in arguments else ("--base", base)
    people = run("train", *arguments, *chosen, "--out", "a.prefix")
    assert people.status == status
    assert people.stderr.splitlines()[-1].startswith("error: ")
    assert message in people.stderr
    assert people.stdout == ""
    machine = run("train", *arguments, *chosen, "--out", "a.prefix", "--json")
    assert machine.status == status
    assert message in machine.json["error"]["message"]
    assert not Path("a.prefix").exists()


def test_conversations_are_trained_with_the_chat_template(run: Any, base: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    Path("chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    options = ("--base", base, *QUICK, "--system", "be brief")
    assert run("train", "chat.jsonl", "--out", "a.prefix", *options).status == 0
    template = Prefix.load("a.prefix").template
    assert (template.style, template.system, template.end) == ("chat", "be brief", "<end>")
    told_otherwise = run("train", "chat.jsonl", "--out", "b.prefix", "--base", base, "--template", "raw")
    assert told_otherwise.status == 2
    assert "conversations" in told_otherwise.stderr


def test_what_is_cut_is_said_once(run: Any, base: str) -> None:
    Path("long.jsonl").write_text(json.dumps({"source": "a" * 300, "target": "b"}) + "\n")
    done = run("train", "long.jsonl", "--base", base, "--out", "a.prefix", *QUICK)
    assert done.stderr.count("note: training examples: 1 sources and 0 targets were cut") == 1


def test_several_owners_in_the_data_are_pointed_out(run: Any, base: str) -> None:
    rows = [{"source": "a", "target": "b", "owner": owner} for owner in ("alice", "bob")]
    Path("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("train", "two.jsonl", "--base", base, "--out", "a.prefix", *QUICK)
    assert "note: 2 owners in the data" in done.stderr


def test_another_run_in_the_folder_is_kept_unless_told_to_overwrite(run: Any, base: str, data: str) -> None:
    command = ("train", data, "--base", base, *QUICK, "--checkpoint-dir", "run")
    assert run(*command, "--out", "a.prefix").status == 0
    kept = [path.read_bytes() for path in list_checkpoints(Path("run"))]
    refused = run(*command, "--out", "b.prefix", "--seed", 1)
    assert refused.status == 1
    assert "settings.seed is 1, was 0" in refused.stderr
    assert [path.read_bytes() for path in list_checkpoints(Path("run"))] == kept

    again = run(*command, "--out", "b.prefix")
    assert "this run is complete already" in again.stderr
    assert same(Prefix.load("a.prefix"), Prefix.load("b.prefix"))

    anew = run(*command, "--out", "b.prefix", "--seed", 1, "--overwrite")
    assert anew.status == 0, anew.stderr
    assert "starts anew" in anew.stderr
    assert Prefix.load("b.prefix").origin.seed == 1


def test_a_run_stopped_by_ctrl_c_goes_on_and_ends_where_it_would_have(
    run: Any, start: Any, base: str, data: str
) -> None:
    command = ("train", data, "--base", base, "--length", 4, "--steps", 200, "--checkpoint-every", 15)
    process = start(*command, "--out", "a.prefix")
    while "step 20/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == ""
    (newest,) = list_checkpoints(Path("a.run"))[-1:]
    assert f"checkpoint: {newest}" in stderr
    assert f"go on with: foreword train data.jsonl --base {base} --length 4" in stderr
    assert "Traceback" not in stderr
    assert not Path("a.prefix").exists()

    resumed = run(*command, "--out", "a.prefix")
    assert resumed.status == 0
    assert "going on from step" in resumed.stderr
    assert run(*command, "--out", "b.prefix").status == 0
    assert same(Prefix.load("a.prefix"), Prefix.load("b.prefix"))


def test_ctrl_c_before_training_ends_with_status_1_and_no_traceback(
    run: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BaseModel, "load", interrupted)
    people = run("train", data, "--out", "a.prefix")
    assert (people.status, people.stdout, people.stderr) == (
        1,
        "",
        "note: read 12 examples: source and target\ninterrupted\n",
    )
    machine = run("train", data, "--out", "a.prefix", "--json")
    assert machine.status == 1
    assert machine.json == {"error": {"type": "KeyboardInterrupt", "message": "interrupted"}}


def test_a_field_of_another_name_is_told_by_the_option_that_names_it(run: Any, base: str) -> None:
    Path("asked.jsonl").write_text('{"prompt": "a", "target": "b"}\n')
    Path("asked.csv").write_text("prompt,completion\na,b\n")
    done = run("train", "asked.jsonl", "--out", "x.prefix", "--base", base)
    assert done.status == 1
    assert "line 1: found the fields 'prompt', 'target'; expected" in done.stderr
    assert "if it has another name, say so with --source-field or --target-field" in done.stderr
    machine = run("train", "asked.csv", "--out", "x.prefix", "--base", base, "--format", "csv", "--json")
    assert machine.json["error"]["type"] == "UnknownField"
    assert machine.json["error"]["message"].endswith("say so with --source-field or --target-field")


def test_a_chat_template_that_refuses_is_told_with_the_line(run: Any, tmp_path: Path) -> None:
    save_tiny(tmp_path / "strict")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    file = tmp_path / "strict" / "chat_template.jinja"
    file.write_text(refusing + file.read_text())
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    system = {"role": "system", "content": "be kind"}
    rows = [
        {"messages": [user, answer], "owner": "bob"},
        {"messages": [system, user, answer], "owner": "ann"},
    ]
    Path("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick = ("--base", "strict", "--steps", 1, "--length", 2, "--json")
    done = run("train", "two.jsonl", "--out", "a.prefix", *quick)
    assert (done.status, done.json["error"]["type"]) == (1, "TemplateRefuses")
    assert "example 1 (two.jsonl, line 2): " in done.json["error"]["message"]
    assert "no system" in done.json["error"]["message"]
    many = run("train", "two.jsonl", "--by", "owner", "--out", "out", *quick)
    assert many.status == 1
    assert [(one["owner"], one["type"]) for one in many.json["failed"]] == [("ann", "TemplateRefuses")]
    assert [path.name for path in Path("out").iterdir()] == ["bob.prefix"]
    Path("ask.jsonl").write_text("\n" + json.dumps({"messages": [system, user]}))
    asked = run(
        "generate", "--input", "ask.jsonl", "--prefix", "out/bob.prefix", "--base", "strict", "--json"
    )
    assert (asked.status, asked.json["error"]["type"]) == (1, "TemplateRefuses")
    assert asked.json["error"]["message"].startswith("prompt 0 (ask.jsonl, line 2): the base's chat template")
    measured = run("evaluate", "two.jsonl", "--prefix", "out/bob.prefix", "--base", "strict", "--json")
    assert "(two.jsonl, line 2)" in measured.json["error"]["message"]
    file.write_text(file.read_text().replace("}}: {{", "}} - {{"))
    Path("one.jsonl").write_text(json.dumps({"messages": [user]}))
    warned = run("generate", "--input", "one.jsonl", "--prefix", "out/bob.prefix", "--base", "strict")
    assert warned.status == 0
    assert "note: the prefix " in warned.stderr
    assert "its chat template now writes ' - What" in warned.stderr


def test_training_files_of_any_form_are_read_said_and_mapped(run: Any, base: str) -> None:
    Path("alpaca.json").write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}], indent=1))
    done = run("train", "alpaca.json", "--dev", "alpaca.json", "--base", base, "--out", "a.prefix", *QUICK)
    assert done.status == 0
    assert "note: read 1 example: Alpaca instructions\n" in done.stderr
    assert "note: dev: read 1 example: Alpaca instructions\n" in done.stderr
    assert Prefix.load("a.prefix").template.style == "chat"
    Path("mine.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    named = ("train", "mine.jsonl", "--base", base, *QUICK)
    assert run(*named, "--fields", "source=question,target=answer", "--out", "b.prefix").status == 0
    mixed = run(*named, "--fields", "target=answer", "--source-field", "question", "--out", "c.prefix")
    assert mixed.status == 0
    assert Prefix.load("b.prefix").origin.data_digest == Prefix.load("c.prefix").origin.data_digest
    refused = run(*named, "--out", "d.prefix")
    assert "line 1: found the fields 'question', 'answer'; expected those of one of" in refused.stderr
    assert "say so with --source-field or --target-field" in refused.stderr
    forced = run(*named, "--format", "chat", "--out", "d.prefix")
    assert "no field 'messages'; found 'question', 'answer'; " in forced.stderr
    assert "say so with --fields messages=NAME" in forced.stderr
    twice = run(*named, "--fields", "source=question", "--source-field", "answer", "--out", "d.prefix")
    assert (twice.status, "--fields and --source-field both name source" in twice.stderr) == (2, True)
