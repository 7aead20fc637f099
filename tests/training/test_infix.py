"""Infix: virtual tokens that the target sees and the source does not, against a mask written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from foreword import BaseModel, Example, Prefix, generate, train
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import encode
from foreword.errors import NotExportable, UsageError
from foreword.interop import export_peft
from foreword.template import Template
from foreword.training.loop import train_step
from foreword.training.train import build_trainer, make_settings
from support.stand_ins import byte_tokenizer, random_examples, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

TASK = [Example(f"{a}{b}", "yes yes yes") for a in "abcd" for b in "efgh"]
QUICK: dict[str, Any] = {"length": 4, "steps": 12, "batch_size": 4, "learning_rate": 2e-2}


def infix_of(base: BaseModel, length: int, seed: int = 0) -> Prefix:
    return random_prefix(base, length, seed, template=Template(end="<end>", placement="infix"))


def infix_logits(
    model: Any, source: Sequence[int], target: Sequence[int], prefix: Prefix | None
) -> torch.Tensor:
    """`[T, V]`: transformers' own attention under a mask written out, the infix as `past_key_values`."""
    text, cache, length = [*source, *target], DynamicCache(), 0
    if prefix is not None:
        length = prefix.length
        for layer, (key, value) in enumerate(zip(prefix.key(), prefix.value(), strict=True)):
            cache.update(key[None], value[None], layer)
    mask = torch.zeros(1, 1, len(text), length + len(text), dtype=torch.bool)
    for place in range(len(text)):
        mask[0, 0, place, length : length + place + 1] = True
        mask[0, 0, place, :length] = place >= len(source) - 1
    return model(
        input_ids=torch.tensor([text]),
        attention_mask=mask,
        position_ids=torch.arange(length, length + len(text))[None],
        past_key_values=cache,
    ).logits[0]


def infix_losses(source: Sequence[int], target: Sequence[int], prefix: Prefix | None) -> torch.Tensor:
    predicted = infix_logits(tiny_llama().eval(), source, target, prefix)[len(source) - 1 : -1]
    return torch.nn.functional.cross_entropy(predicted, torch.tensor(list(target)), reduction="none")


@pytest.mark.parametrize("layout", ["flat", "right", "left"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_losses_under_an_infix_are_those_under_a_mask_written_out(layout: Any, kernel: str) -> None:
    model = tiny_llama()
    model.set_attn_implementation(f"foreword-{kernel}")
    base = BaseModel(model, byte_tokenizer(), name="tiny-llama")
    examples = random_examples(6)
    prefixes = [infix_of(base, 3), infix_of(base, 5, 1), None, random_prefix(base, 4, 2)] * 2
    found = base.token_losses(examples, prefixes[:6], layout=layout)
    rows, _ = encode(examples, base.tokenizer, base.template)
    for row, prefix, losses in zip(rows, prefixes, found, strict=False):
        if prefix is None or prefix.template.placement == "infix":
            expected = infix_losses(row.source_ids, row.target_ids, prefix)
            torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-5)
    for place, prefix in enumerate(prefixes[:6]):  # a row is independent of its neighbours
        alone = base.token_losses([examples[place]], [prefix])[0]
        torch.testing.assert_close(found[place], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["flat", "right", "left"])
def test_source_tokens_do_not_see_an_infix_and_the_last_one_does(tiny_base: BaseModel, layout: Any) -> None:
    rows, _ = encode(random_examples(3), tiny_base.tokenizer, tiny_base.template)
    found: list[torch.Tensor] = []
    for prefixes in ([infix_of(tiny_base, 4, seed) for seed in range(3)], [None] * 3):
        stacked = PrefixBatch.stack(prefixes, tiny_base.device)
        batch = tiny_base.batch(rows, stacked, layout)
        with (
            torch.no_grad(),
            attention_context(
                AttentionContext(prefixes=stacked, layout=batch.layout, target_starts=batch.target_starts)
            ),
        ):
            found.append(tiny_base.model(**batch.inputs, use_cache=False).logits.flatten(0, 1))
    start = 0
    firsts = batch.logit_index_M[torch.tensor([0, *batch.targets[:-1]]).cumsum(0)].tolist()
    for row, first in zip(rows, firsts, strict=True):
        start = first - len(row.source_ids) + 1
        # The rotary embedding counts distances, so that moving the text by P changes nothing.
        torch.testing.assert_close(found[0][start:first], found[1][start:first], rtol=1e-4, atol=1e-4)
        assert float((found[0][first] - found[1][first]).abs().max()) > 0.05


@pytest.mark.parametrize("in_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_generating_under_an_infix_continues_as_the_mask_written_out_does(
    tiny_base: BaseModel, in_cache: bool, beams: int
) -> None:
    tiny_base.__dict__["cache_takes_prefixes"] = in_cache
    prompts = ["a prompt of some length", "b", "another one"]
    prefixes = [infix_of(tiny_base, 3), infix_of(tiny_base, 6, 1), random_prefix(tiny_base, 4, 2)]
    texts = generate(tiny_base, prompts, prefixes, max_new_tokens=8, beams=beams)
    for prompt, prefix, text in zip(prompts, prefixes, texts, strict=True):
        alone = generate(tiny_base, [prompt], prefix, max_new_tokens=8, beams=beams)
        assert alone == [text]
        if beams == 1 and prefix.template.placement == "infix":
            source, new = prefix.template.source_ids(tiny_base.tokenizer, prompt), []
            while len(new) < 8:
                token = int(infix_logits(tiny_llama().eval(), source, new, prefix)[-1].argmax())
                if token in tiny_base.end_ids:
                    break
                new.append(token)
            assert tiny_base.tokenizer.decode(new) == text


def test_an_infix_stays_one_when_prompts_are_raw(tiny_base: BaseModel) -> None:
    infix = infix_of(tiny_base, 5)
    plain = random_prefix(tiny_base, 5)
    assert torch.equal(infix.key(), plain.key())
    prompt = "a prompt of some length"
    whole = generate(tiny_base, [prompt + "\n"], infix, max_new_tokens=8, raw=True)
    assert whole == generate(tiny_base, [prompt], infix, max_new_tokens=8)
    assert whole != generate(tiny_base, [prompt], plain, max_new_tokens=8)


def test_an_infix_is_kept_in_the_file_and_files_without_one_keep_their_digest(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    prefix = train(tiny_base, TASK, **QUICK, placement="infix")
    prefix.save(tmp_path / "one.prefix")
    assert Prefix.load(tmp_path / "one.prefix").template.placement == "infix"
    plain = train(tiny_base, TASK, **QUICK)
    assert "placement" not in plain.template.to_json()
    assert Prefix.from_bytes(plain.to_bytes()).template.placement == "prefix"


def test_training_reports_the_loss_that_evaluation_finds(tiny_base: BaseModel) -> None:
    dev = random_examples(5, seed=3)
    prefix = train(tiny_base, TASK, **QUICK, placement="infix", dev=dev)
    found = float(torch.cat(tiny_base.token_losses(dev, prefix)).mean())
    assert found == pytest.approx(prefix.origin.dev_loss, rel=1e-5)


def test_a_prefix_and_an_infix_share_a_training_step(tiny_base: BaseModel) -> None:
    rows, _ = encode(random_examples(8), tiny_base.tokenizer, tiny_base.template)
    settings = make_settings(length=3, batch_size=4, steps=1)
    placements: tuple[Any, ...] = ("prefix", "infix")

    def trainers() -> list[Any]:
        return [build_trainer(tiny_base, settings, rows, [], placement=each) for each in placements]

    together = train_step(tiny_base, trainers())
    for trainer, report in zip(trainers(), together, strict=True):
        (alone,) = train_step(tiny_base, [trainer])
        assert report.loss == pytest.approx(alone.loss, rel=1e-5)  # type: ignore[union-attr]
    assert together[0].loss != pytest.approx(together[1].loss, rel=1e-3)  # type: ignore[union-attr]


def test_an_infix_is_refused_where_it_can_not_be_kept(tiny_base: BaseModel, tmp_path: Path) -> None:
    bart = tiny_bart_base()
    with pytest.raises(UsageError, match="encoder-decoder"):
        train(bart, TASK, **QUICK, placement="infix")
    with pytest.raises(UsageError, match="encoder-decoder"):
        bart.token_losses(TASK, infix_of(bart, 3))
    with pytest.raises(UsageError, match="expected prefix or infix"):
        train(tiny_base, TASK, placement="suffix")  # type: ignore[arg-type]
    with pytest.raises(NotExportable, match="infix"):
        export_peft(infix_of(tiny_base, 3), tmp_path / "folder", tiny_base)
    with pytest.raises(UsageError, match="can't join"):
        Prefix.join([infix_of(tiny_base, 3), random_prefix(tiny_base, 3)])
