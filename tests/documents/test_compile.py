"""A text becomes a prefix: exactly, or studied; its template, its start, its checkpoints and its report."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from foreword import BaseModel, Example, Prefix, compile_document, generate
from foreword.documents.conversations import Conversation
from foreword.documents.exact import document_ids, document_template, exact_key_values, piecewise_start
from foreword.documents.report import bare_template
from foreword.documents.settings import DocumentSettings
from foreword.documents.studies import chunks_of, studies, study
from foreword.errors import CheckpointMismatch, ReportWorse, UsageError, WindowExceeded
from foreword.training.initialization import activations
from foreword.training.train import TrainingStopped
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.zoo import Architecture
from support.few_prompts import take_few_prompts
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

TEXT = "The gate opens at nine. Mr. Ott has the key. It closes at noon, and Ada rings a bell.\n\n# Rules\n\nNo dogs."
CHAT = (
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
QUICK: dict[str, Any] = {"steps": 12, "batch_size": 4, "draw": 24, "chunk_tokens": 60, "length": 12}
MATCHED: dict[str, Any] = {"method": "matched", "draw": 24, "chunk_tokens": 60, "length": 12}


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(tiny_llama(max_position_embeddings=512), byte_tokenizer(), name="tiny-llama")


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)


@pytest.mark.parametrize("chat", [CHAT, NO_SYSTEM, None])
def test_exact_writes_what_the_text_in_the_prompt_does(base: BaseModel, chat: str | None) -> None:
    base.tokenizer.chat_template = chat
    prefix = compile_document(base, TEXT, method="exact")
    question = "When?"
    if chat is None:
        prompt = f"{TEXT}\n\n{question}\n"
    elif chat == CHAT:
        prompt = f"s: {TEXT}\nu: {question}\na: "
    else:
        prompt = f"u: {TEXT}\n\n{question}\na: "
    assert prefix.length == len(document_ids(base, prefix.template, TEXT))
    expected = generate(base, [prompt], raw=True, max_new_tokens=12)
    assert generate(base, [question], prefix, max_new_tokens=12) == expected
    if chat is not None:
        messages = ({"role": "user", "content": question},)
        assert generate(base, [messages], prefix, max_new_tokens=12) == expected
        instructed = ({"role": "system", "content": "Be brief."}, *messages)
        prompt = prompt.replace(TEXT, f"{TEXT}\n\nBe brief.")
        expected = generate(base, [prompt], raw=True, max_new_tokens=12)
        assert generate(base, [instructed], prefix, max_new_tokens=12) == expected


@pytest.mark.parametrize("architecture", DECODER_ONLY_WORKING, ids=lambda each: each.model_type)
def test_a_documents_keys_and_values_are_read_without_its_logits(architecture: Architecture) -> None:
    base, ids = architecture.base, [3, 9, 27, 17, 50]
    expected = activations(base, ids, ids, len(ids))  # from the model as a whole
    asked: list[object] = []
    with base.model.get_output_embeddings().register_forward_hook(lambda *given: asked.append(given)):
        found = exact_key_values(base, ids)
    # transformers finds no inner model of some (Llama 4's text model): there the head cannot be left out.
    assert not asked or base.model.base_model is base.model
    assert found.keys() == expected.keys()
    for place, pair in expected.items():
        assert all(torch.equal(one, other) for one, other in zip(found[place], pair, strict=True))


def test_exact_reads_the_document_once(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def reading(base: BaseModel, ids: list[int]) -> Any:
        read.append(len(ids))
        return exact_key_values(base, ids)

    monkeypatch.setattr("foreword.documents.compile.exact_key_values", reading)
    prefix = compile_document(base, TEXT, method="exact")
    assert read == [prefix.length]
    assert prefix.report["recovered_share"] == 1


def test_exact_keeps_the_losses_of_the_text_in_the_prompt(base: BaseModel, tmp_path: Path) -> None:
    base.tokenizer.chat_template = CHAT
    compile_document(base, TEXT, method="exact").save(tmp_path / "a.prefix")
    prefix = Prefix.load(tmp_path / "a.prefix")
    example = Example("When?", "At nine.")
    (found,) = base.token_losses([example], prefix)
    whole = Example(f"s: {TEXT}\nu: When?\na: ", "At nine.")
    (expected,) = base.token_losses([whole], template=dataclasses.replace(base.raw_template, end="<end>"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    report = prefix.report
    assert report["recovered_share"] == pytest.approx(1, abs=1e-3)
    assert report["harm"] == report["harm_of_document"] > 0
    assert prefix.recipe["document"]["method"] == "exact"


def test_what_half_the_bits_change_is_measured(base: BaseModel) -> None:
    base.tokenizer.chat_template = CHAT
    question = Example("When?", "At nine.")
    whole = compile_document(base, TEXT, method="exact", questions=[question])
    half = compile_document(base, TEXT, method="exact", questions=[question], precision="bfloat16")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.tensors["decoder.key"], whole.tensors["decoder.key"].bfloat16())
    assert half.report["bytes"] * 2 == whole.report["bytes"]
    assert half.report["with_document"] == whole.report["with_document"]
    assert "rounding_loss" not in whole.report
    logs = []
    for prefix in (whole, half):  # by hand: the answer's tokens behind keys and values in a cache
        source, target = (
            prefix.template.source_ids(base.tokenizer, "When?"),
            base.tokenizer("At nine.")["input_ids"],
        )
        cache = DynamicCache()
        for layer, (key, value) in enumerate(
            zip(prefix.key("decoder"), prefix.value("decoder"), strict=True)
        ):
            cache.update(key[None].float(), value[None].float(), layer)
        with torch.no_grad():
            logits_TV = base.model(torch.tensor([[*source, *target]]), past_key_values=cache).logits[0]
        logs.append(logits_TV[len(source) - 1 :].log_softmax(-1))
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert half.report["rounding_loss"] == pytest.approx(float(expected), rel=0.05, abs=2e-6)


def test_studying_lowers_the_divergence_and_keeps_the_first_token(base: BaseModel) -> None:
    base.tokenizer.chat_template = CHAT
    losses: list[float] = []

    def watch(progress: Any) -> None:
        losses.extend([progress.dev_loss] if progress.dev_loss is not None else [])

    prefix = compile_document(base, TEXT, **{**QUICK, "steps": 30}, learning_rate=0.05, on_progress=watch)
    assert losses[-1] < 0.7 * losses[0]
    start = compile_document(base, TEXT, **MATCHED)  # which it starts from
    for found, begun in zip(prefix.tensors.values(), start.tensors.values(), strict=True):
        assert torch.equal(found[:, :, 0], begun[:, :, 0])
        assert not torch.equal(found[:, :, 1], begun[:, :, 1])
    assert prefix.length == 12
    assert prefix.template.system_in_prefix
    assert prefix.origin.steps is not None
    assert prefix.report["dev_loss"] == prefix.origin.dev_loss


def test_a_run_that_was_stopped_ends_in_the_same_prefix(base: BaseModel, tmp_path: Path) -> None:
    whole = compile_document(base, TEXT, **QUICK)

    asked: list[int] = []

    def stop(progress: Any) -> None:
        if progress.step == 5 and not asked:
            asked.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        compile_document(base, TEXT, checkpoint_dir=tmp_path, on_progress=stop, **QUICK)
    with pytest.raises(CheckpointMismatch):
        compile_document(base, TEXT + " More.", checkpoint_dir=tmp_path, **QUICK)
    resumed = compile_document(base, TEXT, checkpoint_dir=tmp_path, **QUICK)
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_a_run_that_goes_on_does_not_ask_the_teacher_again(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compile_document(base, TEXT, checkpoint_dir=tmp_path, **QUICK)
    asked = []

    def counting(*given: Any) -> Any:
        asked.append(given)
        return study(*given)

    monkeypatch.setattr("foreword.documents.compile.study", counting)
    for path in tmp_path.glob("*.checkpoint"):
        path.unlink()
    again = compile_document(base, TEXT, checkpoint_dir=tmp_path, **QUICK)
    assert not asked
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())
    kept = tmp_path / "teacher.safetensors"
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    compile_document(base, TEXT, checkpoint_dir=tmp_path, **QUICK)
    assert len(asked) == 1  # what is damaged is not trained on
    kept.write_bytes(content[:99])
    compile_document(base, TEXT, checkpoint_dir=tmp_path, **QUICK)
    assert len(asked) == 2
    for path in tmp_path.glob("*.checkpoint"):
        path.unlink()
    compile_document(base, TEXT, checkpoint_dir=tmp_path, **{**QUICK, "draw": 20})
    assert len(asked) == 3  # nor of other conversations


def test_unrelated_prompts_have_the_bare_base_as_teacher(base: BaseModel) -> None:
    base.tokenizer.chat_template = CHAT
    template = document_template(base)
    settings = DocumentSettings(draw=40, unrelated=0.2, chunk_tokens=60)
    made = studies(chunks_of(base, TEXT, settings), settings)
    unrelated = [each for each in made.training if each.kind == "unrelated"]
    assert len(unrelated) == pytest.approx(0.2 * len(made.training), abs=1)
    assert not any(each.kind == "unrelated" for each in made.held_out)
    assert not {(each.source, each.target) for each in made.training} & {
        (each.source, each.target) for each in made.held_out
    }
    (row,) = study(base, template, made.chunks, unrelated[:1])
    text = base.tokenizer.decode(row.source_ids)
    assert text == f"\nu: {unrelated[0].source}\na: "  # as the prefix's rows are written
    ids = base.tokenizer(f"u: {unrelated[0].source}\na: ", add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # and the teacher read it without any document, from the beginning
        logits_TV = base.model(torch.tensor([[*ids, *row.target_ids[:-1]]])).logits[0]
    expected = torch.softmax(logits_TV[-len(row.target_ids) :].float(), -1).topk(20).indices
    assert torch.equal(row.teacher.ids_MK, expected)


def test_the_start_is_the_texts_own_keys_and_values_in_its_order(base: BaseModel) -> None:
    template = document_template(base)
    key_LHPD, _ = piecewise_start(base, template, TEXT * 4, 100, 0)["decoder"]
    assert key_LHPD.shape[2] == 100
    assert not torch.equal(key_LHPD, piecewise_start(base, template, TEXT * 4, 100, 1)["decoder"][0])
    ids = document_ids(base, template, TEXT)
    with torch.no_grad():
        cache = base.model(torch.tensor([ids[:20]]), use_cache=True).past_key_values
    exact = compile_document(base, TEXT, method="exact").key("decoder")
    torch.testing.assert_close(exact[0, :, :20], cache.layers[0].keys[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("  \n ", {}, "the document is empty"),
        ("Short.", {"length": 50}, "the document has 8 tokens, and the prefix would have 50"),
        (TEXT, {"length": 5, "ratio": 2.0}, "give length or ratio, not both"),
        (TEXT, {"method": "exact", "length": 5}, "exact keeps every token"),
        (TEXT, {"method": "gisted"}, "method is 'gisted'"),
        (
            TEXT,
            {"method": "matched", "steps": 90},
            "steps is 90, which method matched does not use; leave it",
        ),
        (
            TEXT,
            {"method": "matched", "unrelated": 0.1},
            "unrelated is 0.1, which method matched does not use",
        ),
        (TEXT, {"method": "exact", "draw": 400}, "draw is 400, which method exact does not use"),
        (TEXT, {"ratio": 0.5}, "ratio is 0.5"),
        (TEXT, {"size": 3}, "size"),
        ("Nothing" * 30, {"length": 5}, "no sentence or table"),
    ],
)
def test_bad_input_is_refused_by_name(base: BaseModel, text: str, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_document(base, text, **options)


@pytest.mark.parametrize("method", ["studied", "matched", "exact"])
def test_settings_of_a_method_can_be_given_again_and_no_others_are_kept(method: Any) -> None:
    kept = DocumentSettings.from_mapping({"method": method, "steps": None}).to_json()
    assert DocumentSettings.from_mapping(kept).to_json() == kept
    assert ("steps" in kept) == (method == "studied")


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "there are 0 conversations, 0 of them different; expected at least 2"),
        ([Conversation("When?", "At nine.", 0, "given")], "there are 1 conversations, 1 of them different"),
        (
            [Conversation("When?", "At nine.", 0, "given")] * 3,
            "there are 3 conversations, 1 of them different",
        ),
        (
            [Conversation("When?", "At nine.", 99, "given")],
            "conversation 0 is about chunk 99; the document has 3",
        ),
        ([Conversation("When?", "At nine.", -1, "given")], "conversation 0 is about chunk -1"),
    ],
)
def test_conversations_that_can_not_be_trained_on_are_refused(
    base: BaseModel, conversations: list[Conversation], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compile_document(base, TEXT, conversations=conversations, **QUICK)


@pytest.mark.parametrize("number", range(4))
def test_of_two_conversations_one_is_trained_on(base: BaseModel, number: int) -> None:
    settings = DocumentSettings(chunk_tokens=60)
    two = [Conversation(f"When {number + n}?", "At nine.", 0, "given") for n in range(2)]
    made = studies(chunks_of(base, TEXT, settings), settings, two)
    assert len(made.held_out) == 1
    assert [each for each in made.training if each.kind != "unrelated"] == [
        each for each in two if each not in made.held_out
    ]


def test_exact_needs_no_conversations_where_questions_are_given(base: BaseModel) -> None:
    prefix = compile_document(base, "Nothing" * 5, method="exact", questions=[Example("What?", "Nothing")])
    assert prefix.report["answers"] == 1


def test_a_recipe_that_does_not_fit_is_refused_before_training(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword.documents.compile.digests", lambda chunks: ["0" * 12] * 2000)
    monkeypatch.setattr("foreword.documents.compile.studies", lambda *a: pytest.fail("went on"))
    with pytest.raises(UsageError, match="recipe has"):
        compile_document(base, TEXT, **QUICK)


def test_a_prefix_that_leaves_no_room_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(WindowExceeded, match="no room"):
        compile_document(tiny_base, TEXT * 5, length=127)


def test_an_edit_goes_on_from_the_previous_prefix_in_fewer_steps(base: BaseModel) -> None:
    base.tokenizer.chat_template = CHAT
    options = {**QUICK, "draw": 60}
    text = TEXT.replace("\n\n# Rules", "\n\n# Food\n\nSoup is served at two. Bread is free.\n\n# Rules")
    previous = compile_document(base, text, **options)
    del options["length"]
    edited = text.replace("Soup is served at two.", "Soup is served at six.")
    notes: list[str] = []

    def note(progress: Any) -> None:
        notes.extend([progress.note] if progress.note else [])

    prefix = compile_document(base, edited, previous=previous, on_progress=note, **options)
    assert "1 of 4 parts of the document are new or changed" in notes
    assert prefix.length == previous.length
    assert prefix.recipe["document"]["previous"] == previous.digest
    for name, tensor in previous.tensors.items():
        assert torch.equal(prefix.tensors[name][:, :, 0], tensor[:, :, 0])
    again = compile_document(base, edited, previous=prefix, on_progress=note, **options)
    assert "0 of 4 parts of the document are new or changed" in notes
    assert again.length == prefix.length


def test_what_is_held_out_stays_so_behind_an_edit(base: BaseModel) -> None:
    settings = DocumentSettings(draw=200, chunk_tokens=60)
    before = studies(chunks_of(base, TEXT, settings), settings)
    after = studies(chunks_of(base, TEXT.replace("dogs", "cats"), settings), settings)
    assert before.held_out
    kept = {(each.source, each.target) for each in before.held_out}
    assert not kept & {(each.source, each.target) for each in after.training}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "only studied goes on"),
        ({"length": 7}, "the previous prefix has length 12, which the new one keeps"),
        ({"ratio": 3.0}, "the previous prefix has length 12, which the new one keeps"),
        (
            {"chunk_tokens": 80},
            "made with chunk_tokens 60, and with 80 all of the document would count as new",
        ),
    ],
)
def test_what_can_not_go_on_from_a_previous_prefix_is_refused(
    base: BaseModel, options: Any, message: str
) -> None:
    previous = compile_document(base, TEXT, **MATCHED)
    with pytest.raises(UsageError, match=message):
        compile_document(base, TEXT, previous=previous, **options)
    with pytest.raises(UsageError, match="made by compile"):
        compile_document(base, TEXT, previous=random_prefix(base, 5))


def test_the_gate_asks_both_prefixes_the_same_of_what_both_know(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.tokenizer.chat_template = CHAT
    text = TEXT.replace("\n\n# Rules", "\n\n# Food\n\nSoup is served at two.\n\n# Rules")
    previous = compile_document(base, text, **{**QUICK, "steps": 40, "learning_rate": 0.05})
    questions = [Example("When does the gate open?", "At nine."), Example("When is soup?", "Served at six.")]
    edited = text.replace("served at two", "served at six")
    options: dict[str, Any] = {**QUICK, "steps": 1, "questions": questions, "previous": previous}
    options["learning_rate"] = 1e-3
    # Whatever the old report says, and whatever it was about.
    forged = dataclasses.replace(previous, report={"recovered_share": -99.0, "harm": 0.0})
    made = compile_document(base, edited, **{**options, "previous": forged}, gate=True)
    report = made.report
    (losses,) = base.token_losses(questions[:1], previous)
    (new_losses,) = base.token_losses(questions[:1], made)
    (without,) = base.token_losses(questions[:1], template=bare_template(base, previous.template))
    (whole,) = base.token_losses(questions[:1], compile_document(base, edited, method="exact"))
    expected = (without.mean() - losses.mean()) / (without.mean() - whole.mean())
    share = (without.mean() - new_losses.mean()) / (without.mean() - whole.mean())
    assert float(share) != pytest.approx(float(expected), abs=2e-3)
    assert report["gate"]["answers"] == 1
    assert report["gate"]["recovered_share"] == pytest.approx(float(share), rel=1e-3, abs=1e-3)
    assert report["gate"]["recovered_share_before"] == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
    assert report["gate"]["harm_before"] == pytest.approx(previous.report["harm"], abs=2e-4)
    monkeypatch.setattr(
        "foreword.documents.edits.HARM_TIMES", 0.5
    )  # a prefix that went on for a step is no worse
    with pytest.raises(ReportWorse, match="harm .*, before") as told:
        compile_document(base, edited, **options, gate=True)
    assert told.value.report["gate"] == report["gate"]
    with pytest.raises(UsageError, match="there is none; give previous"):
        compile_document(base, edited, gate=True, **QUICK)


def test_where_nothing_is_known_all_questions_are_asked(base: BaseModel) -> None:
    previous = compile_document(base, TEXT, **QUICK)
    questions = [Example("What sails?", "Ships.")] * 2
    text = "Ships sail at dawn. Boats wait. The harbour is closed at night, and nobody minds the rain."
    options: dict[str, Any] = {**QUICK, "steps": 2, "questions": questions, "gate": True}
    try:
        report = compile_document(base, text, previous=previous, **options).report
    except ReportWorse as error:
        report = error.report
    assert report["gate"]["answers"] == 2


def test_what_takes_a_while_is_counted_to_its_end(base: BaseModel) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def watch(progress: Any) -> None:
        if progress.total is not None:
            seen.setdefault(progress.note, []).append((progress.done, progress.total))

    compile_document(base, TEXT, **QUICK, on_progress=watch)
    first = [note.split()[0] for note in seen]
    assert first == ["answering", "matching", "reading", "measuring"]
    for counts in seen.values():
        (total,) = {total for _, total in counts}
        assert counts[0][0] == 0
        assert counts[-1][0] == total
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert all(len(counts) > 2 for note, counts in seen.items() if not note.startswith("answering"))
