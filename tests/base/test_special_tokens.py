"""Special tokens are those that the tokenizer itself adds: losses and texts are those of transformers."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from foreword import BaseModel, Example, Prefix, Template, generate, train
from foreword.errors import UsageError
from foreword.interop import import_peft
from foreword.serving.served_model import served_of
from foreword.training import Progress, TrainingStopped
from support.interop_models import build
from support.peft_models import LENGTH, peft_model
from support.stand_ins import byte_tokenizer
from support.translators import FAMILIES, translator, translator_base

FIRST = {"bart": "<s>", "nllb": "fra_Latn"}
ROWS = [Example("ab cd", "dc a"), Example("a quick fox", "b"), Example("abba", "dc dc dc")]


@torch.no_grad()
def losses_of_transformers(family: str, example: Example) -> torch.Tensor:
    """Of the labels that its tokenizer makes of the target, from the logits of the forward pass on labels."""
    model, tokenizer = translator(family)
    inputs = tokenizer([example.source], return_tensors="pt")
    labels_1T = tokenizer(text_target=[example.target], return_tensors="pt")["input_ids"]
    output = model(input_ids=inputs["input_ids"], labels=labels_1T)
    losses_T = torch.nn.functional.cross_entropy(output.logits[0], labels_1T[0], reduction="none")
    torch.testing.assert_close(losses_T.mean(), output.loss)
    return losses_T


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_an_encoder_decoder_are_those_of_its_training_in_transformers(family: str) -> None:
    found = translator_base(family).token_losses(ROWS)
    for example, mine in zip(ROWS, found, strict=True):
        torch.testing.assert_close(mine, losses_of_transformers(family, example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_texts_of_an_encoder_decoder_are_those_of_transformers(family: str) -> None:
    """Where all targets begin with one token, transformers is told to begin with it."""
    model, tokenizer = translator(family)
    forced = tokenizer.convert_tokens_to_ids(FIRST[family]) if family in FIRST else None
    front = 1 if forced is None else 2
    start = tokenizer.convert_tokens_to_ids("ro_RO") if family == "mbart" else None
    base = translator_base(family)
    for raw in (False, True):
        found = generate(base, [row.source for row in ROWS], max_new_tokens=9, raw=raw)
        for row, text in zip(ROWS, found, strict=True):
            ids = model.generate(
                **{"input_ids": tokenizer([row.source], return_tensors="pt")["input_ids"]},
                decoder_start_token_id=start or model.config.decoder_start_token_id,
                forced_bos_token_id=forced,
                max_new_tokens=8 + front,
                do_sample=False,
                num_beams=1,
            )
            assert text == tokenizer.decode(ids[0, front:], skip_special_tokens=True)
    pieces: list[str] = []
    generate(base, [ROWS[0].source], max_new_tokens=9, on_text=lambda row, text: pieces.append(text))
    assert "".join(pieces) == generate(base, [ROWS[0].source], max_new_tokens=9)[0]


def test_the_tokens_travel_in_the_prefix_and_old_templates_mean_what_they_meant(tmp_path: Path) -> None:
    base = translator_base("mbart")
    prefix = train(base, ROWS, length=2, steps=1, max_length=14)
    assert prefix.template.source_tokens == ((), ("</s>", "en_XX"))
    assert prefix.template.target_tokens == ((), ("</s>", "ro_RO"))
    assert prefix.template.start == "ro_RO"
    assert base.start_id == base.tokenizer.convert_tokens_to_ids("ro_RO")
    prefix.save(tmp_path / "a.prefix")
    assert Prefix.load(tmp_path / "a.prefix").template == prefix.template
    old: dict[str, Any] = {"style": "raw", "separator": "\n", "begin": False, "end": "</s>", "system": None}
    template = Template.from_json(old)
    assert template.to_json() == old
    plain = base.tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert template.source_ids(base.tokenizer, "ab") == plain
    assert template.target_ids(base.tokenizer, "ab") == [*plain, base.tokenizer.eos_token_id]


def test_rows_of_one_batch_may_be_of_different_languages() -> None:
    base = translator_base("mbart")
    swapped = dataclasses.replace(
        base.template,
        source_tokens=((), ("</s>", "ro_RO")),
        target_tokens=((), ("</s>", "en_XX")),
        start="en_XX",
    )
    prefixes = [train(base, ROWS, length=2, steps=1, template=each) for each in (base.template, swapped)]
    together = base.token_losses([ROWS[0], ROWS[0]], prefixes)
    texts = generate(base, ["ab", "ab"], prefixes, max_new_tokens=5)
    for prefix, losses, text in zip(prefixes, together, texts, strict=True):
        torch.testing.assert_close(losses, base.token_losses([ROWS[0]], prefix)[0], rtol=1e-5, atol=1e-5)
        assert text == generate(base, ["ab"], prefix, max_new_tokens=5)[0]
    assert not torch.allclose(together[0], together[1])


def test_a_source_that_is_cut_keeps_its_special_tokens() -> None:
    base = translator_base("t5")
    with pytest.warns(UserWarning, match="1 sources"):
        train(base, [Example("abcdefgh" * 4, "a")], length=1, steps=1, max_length=6)
    from foreword.encoding import encode_example

    row, cut = encode_example(Example("abcdefgh" * 4, "a"), base.tokenizer, base.template, 6, apart=True)
    assert cut.sources == 1
    assert (len(row.source_ids), row.source_ids[-1]) == (6, base.tokenizer.eos_token_id)


# -- decoders whose tokenizer begins texts -----------------------------------------------------------


def beginning(front: str = "<end>", **special: str) -> Any:
    """The byte tokenizer, which begins every text with a token, as those of Llama and Gemma."""
    tokenizer = byte_tokenizer(**special)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{front} $A", special_tokens=[(front, tokenizer.convert_tokens_to_ids(front))]
    )
    return tokenizer


@pytest.fixture
def begun() -> BaseModel:
    return BaseModel(
        build("llama"),
        beginning(
            bos_token="~",  # a letter that no text of the tests has
            front="~",
        ),
        name="tiny-llama",
    )


def test_an_imported_prefix_of_peft_sees_the_first_token_that_pefts_users_give_it(
    begun: BaseModel, tmp_path: Path
) -> None:
    model = peft_model()
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    prefix = import_peft(tmp_path / "saved", begun)
    assert prefix.length == LENGTH
    (mine,) = begun.token_losses([Example("some source ", "target")], prefix)
    source = begun.tokenizer("some source ")["input_ids"]  # as in examples of PEFT
    target = begun.tokenizer("target", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([source + target])
    with torch.no_grad():
        predicted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(source) - 1 : -1]
        written = model.generate(input_ids=torch.tensor([source]), max_new_tokens=6, do_sample=False)
    theirs = torch.nn.functional.cross_entropy(predicted, torch.tensor(target), reduction="none")
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    expected = begun.tokenizer.decode(written[0, len(source) :], skip_special_tokens=True)
    assert generate(begun, ["some source "], prefix, max_new_tokens=6) == [expected]


@torch.no_grad()
def test_raw_text_begins_as_in_transformers_and_never_twice(begun: BaseModel) -> None:
    ids = torch.tensor([begun.tokenizer("go on")["input_ids"]])
    written = build("llama").generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    expected = begun.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    for prompt in ("go on", "~go on"):  # who writes the token gets one
        assert generate(begun, [prompt], raw=True, max_new_tokens=6) == [expected]
        served = served_of(begun).template_of(None, chat=False, raw=False)
        assert served.source_ids(begun.tokenizer, prompt) == ids[0].tolist()
    begun.tokenizer.chat_template = "~{{ messages[0]['content'] }}"
    chat = served_of(begun).template_of(None, chat=True, raw=False)
    assert chat.source_ids(begun.tokenizer, "go on") == ids[0].tolist()


def test_a_first_token_that_is_no_bos_is_added_as_well() -> None:
    tokenizer = beginning(front="^")
    base = BaseModel(build("llama"), tokenizer, name="tiny-llama")
    assert base.raw_template.source_ids(tokenizer, "a") == tokenizer("a")["input_ids"]
    assert base.template.source_ids(tokenizer, "a") == tokenizer("a\n")["input_ids"]
    with pytest.raises(UsageError, match="no token 'eng_Latn' to put around a text"):
        Template(style="raw", source_tokens=(("eng_Latn",), ())).source_ids(tokenizer, "a")


def test_a_run_of_a_release_without_special_tokens_goes_on_without_them(tmp_path: Path) -> None:
    base = translator_base("t5")
    former = Template(style="raw", end=base.tokenizer.eos_token)
    run: dict[str, Any] = {"steps": 4, "length": 2, "batch_size": 2, "learning_rate": 0.01}
    whole = train(base, ROWS, template=former, **run)

    def stop(progress: Progress) -> None:
        if progress.step == 2 and progress.note is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(base, ROWS, template=former, checkpoint_dir=tmp_path, on_progress=stop, **run)
    resumed = train(base, ROWS, checkpoint_dir=tmp_path, **run)
    assert resumed.template == former
    assert torch.equal(resumed.key(), whole.key())
    assert train(base, ROWS, **run).template == base.template != former
