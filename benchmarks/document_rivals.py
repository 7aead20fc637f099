"""What else a document's place in the context could hold, at the size of its prefix: part `rivals`.

At the same P: the document cut off, a summary by hand, a prefix trained on the text by next tokens, LoRA of
equal bytes trained on the same conversations with the same loss and as many steps, and `matched`. Beside them
the best P tokens of the document for each question, by BM25: it sees the question. The table sets them beside
the rows of `studied` in the results.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.documents import FOLDER, Bench, Results, compiled, prefix_of, read_questions, spread
from foreword import Example, compile_document
from foreword.documents.chunks import sentences, tables
from foreword.documents.conversations import Conversation
from foreword.documents.distillation import Distillation, DistilledExample
from foreword.documents.exact import document_ids, document_template, opening_ids
from foreword.documents.report import bare_template
from foreword.documents.settings import DocumentSettings
from foreword.documents.studies import chunks_of, studies, study
from foreword.encoding import EncodedExample, encode_example
from foreword.reporting.markdown import table
from foreword.research.baselines import peft
from foreword.research.baselines.fine_tuning import Weights
from foreword.research.baselines.fit import fit
from foreword.research.baselines.protocol import AdapterInputs, EvaluatedModel
from foreword.training import loop
from foreword.training.objective import CROSS_ENTROPY
from foreword.training.trainer import build_trainer

RIVALS = ("cut off", "summary", "next tokens", "LoRA", "matched", "BM25")


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet, a line for each document and rival."""
    ways: dict[str, Callable[[Rival], dict[str, Any]]] = {
        "cut off": lambda rival: rival.cut_off(),
        "summary": lambda rival: rival.summary(),
        "BM25": lambda rival: rival.retrieved(),
        "next tokens": lambda rival: rival.next_tokens(),
    }
    for seed in given.seeds:
        for ratio in given.ratios:
            settings = DocumentSettings.from_mapping({"ratio": ratio, "seed": seed, "steps": given.steps})
            for name in given.documents:
                rival = Rival(bench, name, settings)
                key = {"part": "rivals", "document": name, "ratio": ratio}
                for way, measured in ways.items():
                    trained = way == "next tokens"
                    more = {"rival": way, "seed": seed if trained else None}
                    more |= {"steps_asked": given.steps if trained else None}
                    results.once(key | more, lambda: rival.timed(measured))  # noqa: B023
                for rate in given.lora_rates:
                    more = {"rival": "LoRA", "seed": seed, "steps_asked": given.steps, "rate": rate}
                    results.once(key | more, lambda: rival.timed(lambda each: each.lora(rate)))  # noqa: B023
                more = {"part": "matched", "method": "matched", "seed": seed}
                more |= {"unrelated": None, "steps_asked": None}
                results.once(key | more, lambda: compiled(bench, name, "matched", ratio, seed))  # noqa: B023


class Rival:
    """One document, and what could stand for it in P tokens."""

    def __init__(self, bench: Bench, name: str, settings: DocumentSettings) -> None:
        self.bench, self.base, self.name, self.settings = bench, bench.base, name, settings
        self.template = document_template(self.base)
        self.ids = document_ids(self.base, self.template, bench.text(name))
        self.length = settings.length_for(len(self.ids))

    def timed(self, way: Callable[[Rival], dict[str, Any]]) -> dict[str, Any]:
        """What a way finds out, and the seconds that it took to make; measuring is none of them."""
        self._begin = time.perf_counter(), time.process_time()
        return way(self) | {"P": self.length, "threads": torch.get_num_threads()}

    def _made(self) -> dict[str, Any]:
        wall, cpu = (
            round(now - begin, 1)
            for now, begin in zip((time.perf_counter(), time.process_time()), self._begin, strict=True)
        )
        return {"seconds": wall, "cpu_seconds": cpu}

    def cut_off(self) -> dict[str, Any]:
        """The document's first P tokens."""
        prefix = prefix_of(self.base, self.ids[: self.length])
        return self._made() | self.bench.of_prefix(self.name, prefix)

    def summary(self) -> dict[str, Any]:
        """The summary by hand."""
        path = FOLDER / f"{self.name}.summary.md"
        ids = document_ids(self.base, self.template, path.read_text(encoding="utf-8"))
        if len(ids) > self.length:
            raise SystemExit(f"{path} has {len(ids)} tokens, the prefix {self.length}; shorten it")
        prefix = prefix_of(self.base, ids)
        return self._made() | self.bench.of_prefix(self.name, prefix) | {"tokens": len(ids)}

    def retrieved(self) -> dict[str, Any]:
        """For each question the passages that share most with it, as many as have room."""
        passages = passages_of(self.bench.text(self.name))

        def losses(split: str) -> list[torch.Tensor]:
            examples = read_questions(self.name, split).examples
            prefixes = [prefix_of(self.base, self._best(passages, str(each.source))) for each in examples]
            return self.base.token_losses(examples, prefixes)

        # Nothing is made beforehand: a question's passages are read when it is asked.
        return self._made() | self.bench.shares(self.name, losses)

    def _best(self, passages: Sequence[str], question: str) -> list[int]:
        scores = bm25(passages, question)
        found = opening_ids(self.base, self.template)
        for number in sorted(range(len(passages)), key=lambda number: -scores[number]):
            ids = self.base.tokenizer(f"{passages[number]}\n", add_special_tokens=False)["input_ids"]
            if len(found) + len(ids) <= self.length:
                found += ids
        return found

    def next_tokens(self) -> dict[str, Any]:
        """A prefix trained to predict the text itself, pieces of it at a time, as many steps as `studied`.

        From the same start; held-out conversations choose its step, too.
        """
        base, settings = self.base, self.settings
        text = self.bench.text(self.name)
        start = compile_document(base, text, method="matched", length=self.length, seed=settings.seed)
        made = studies(chunks_of(base, text, settings), settings)
        dev = study(base, self.template, made.chunks, made.held_out)
        body, size = self.ids[len(opening_ids(base, self.template)) :], settings.chunk_tokens
        rng = random.Random(settings.seed)
        begins = [rng.randint(0, max(0, len(body) - size)) for _ in range(settings.draw)]
        rows = [EncodedExample((body[at],), tuple(body[at + 1 : at + size])) for at in begins]
        trainer = build_trainer(base, settings.training(self.length), rows, dev, start=start)
        seen = 0

        def count(_: Any, report: loop.StepReport) -> None:
            nonlocal seen
            seen += report.tokens

        loop.run(
            base,
            iter([trainer]),
            objective=CROSS_ENTROPY,
            on_step=count,
            on_evaluation=lambda _, found: None,
            on_finish=lambda _: None,
            on_divergence=_fail,
            should_stop=lambda: False,
        )
        best = trainer.result()
        prefix = dataclasses.replace(start, tensors=best.tensors)
        took = self._made() | {"tokens_trained": seen, "steps": best.step}
        return took | self.bench.of_prefix(self.name, prefix)

    def lora(self, rate: float) -> dict[str, Any]:
        """LoRA of no more numbers than the prefix has, on the same conversations, teacher and steps."""
        base, settings = self.base, self.settings
        bare = bare_template(base, self.template)
        made = studies(chunks_of(base, self.bench.text(self.name), settings), settings)

        def alone(part: Sequence[Conversation]) -> list[DistilledExample]:
            """With the student's source as the bare base reads it: there is no document in front of it."""
            found = study(base, self.template, made.chunks, part)
            sources = (encode_example(Example(e.source, e.target), base.tokenizer, bare)[0] for e in part)
            return [
                dataclasses.replace(row, source_ids=source.source_ids)
                for row, source in zip(found, sources, strict=True)
            ]

        rows, dev = alone(made.training), alone(made.held_out)
        inputs = AdapterInputs(base, [], rows, self.length, settings.seed, {}, "")
        adapter = Distilled(peft.lora(None)(inputs))
        training = dataclasses.replace(settings.training(self.length), learning_rate=rate)
        done = fit(base, adapter, rows, dev, training)
        took = self._made() | {"tokens_trained": adapter.tokens, "steps": done.step}
        model = adapter.finish()
        numbers = {"numbers": model.kept, "numbers_of_prefix": base.geometry.parameters(self.length)}

        def losses(split: str) -> list[torch.Tensor]:
            return model.base.token_losses(read_questions(self.name, split).examples, template=bare)

        return took | numbers | self.bench.shares(self.name, losses)


class Distilled:
    """Weights in training whose loss is KL to the teacher's likeliest tokens.

    Attributes:
        tokens: read in training so far.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.base, self.template, self.parameters = weights.base, weights.template, weights.parameters
        self.tokens = 0

    def losses(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """The loss of each target token, `[M]`."""
        if torch.is_grad_enabled():
            self.tokens += sum(row.tokens for row in rows)
        return Distillation().losses(self.base, rows, None).losses_M

    def finish(self) -> EvaluatedModel:
        """The model, frozen as it is now."""
        return self.weights.finish()


def _fail(_: Any, error: Exception) -> None:
    raise error


# -- retrieval ----------------------------------------------------------------------------------------


def passages_of(text: str) -> list[str]:
    """Sentences, and rows of tables with the names of their columns."""
    rows = [
        ", ".join(f"{column}: {cell}" for column, cell in zip(head, row, strict=False))
        for head, body in tables(text)
        for row in body
    ]
    return [*sentences(text), *rows]


def bm25(passages: Sequence[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Of each passage its Okapi BM25 score for a question (Robertson and others, 1994)."""
    counts = [Counter(_words(each)) for each in passages]
    mean = statistics.fmean(count.total() for count in counts)
    scores = [0.0] * len(passages)
    for word in set(_words(question)):
        having = sum(word in count for count in counts)
        rarity = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
        for number, count in enumerate(counts):
            norm = k1 * (1 - b + b * count.total() / mean)
            scores[number] += rarity * count[word] * (k1 + 1) / (count[word] + norm)
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# -- the table ----------------------------------------------------------------------------------------


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Means over documents, and in how many of them `studied` is ahead."""
    pages = []
    for ratio in sorted({row["ratio"] for row in rows if row["part"] == "rivals"}):
        studied = [row for row in rows if row["part"] == "studied" and row["ratio"] == ratio]
        lines = [_line("studied", studied, studied)] if studied else []
        for name in RIVALS:
            if name == "matched":
                found = [row for row in rows if row["part"] == "matched" and row["ratio"] == ratio]
            else:
                found = [row for row in rows if row.get("rival") == name and row["ratio"] == ratio]
            for rate in _best_rate(found):
                chosen = [row for row in found if row.get("rate") == rate]
                lines.append(_line(name if rate is None else f"{name}, rate {rate:g}", chosen, studied))
        columns = (f"{ratio:g} times smaller", "documents", "R", "one passage", "several passages")
        columns += ("studied ahead", "one", "several", "tokens trained", "CPU seconds")
        pages.append(table(columns, lines))
    return "\n".join(pages)


def _best_rate(found: Sequence[dict[str, Any]]) -> list[float | None]:
    """The rate with the best mean on dev questions; [None] for what has none, [] for nothing."""
    rates = {row.get("rate") for row in found}
    return sorted(
        rates, key=lambda rate: -statistics.fmean(r["R_dev"] for r in found if r.get("rate") == rate)
    )[:1]


def _line(name: str, found: Sequence[dict[str, Any]], studied: Sequence[dict[str, Any]]) -> list[str]:
    names = ("R_test", "R_test_one", "R_test_several")
    own, other = _by_document(found), _by_document(studied)
    line = [name, str(len(own))]
    line += [spread([values[each] for values in own.values()]) for each in names]
    shared = [document for document in own if document in other]
    for each in names:
        ahead = sum(other[document][each] > own[document][each] for document in shared)
        line.append("" if found is studied else f"{ahead} of {len(shared)}")
    tokens = [row["tokens_trained"] for row in found if row.get("tokens_trained")]
    line.append(f"{statistics.fmean(tokens):,.0f}" if tokens else "")
    return [*line, f"{statistics.fmean(row['cpu_seconds'] for row in found):.0f}"]


def _by_document(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over seeds."""
    names = ("R_test", "R_test_one", "R_test_several")
    return {
        document: {
            name: statistics.fmean(row[name] for row in rows if row["document"] == document) for name in names
        }
        for document in dict.fromkeys(row["document"] for row in rows)
    }
