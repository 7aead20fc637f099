"""What documents' prefixes keep of the ten example documents, at what cost, and what they harm.

    python -m benchmarks.documents --part studied --ratios 10 --seeds 0 1 2 --results documents.jsonl
    python -m benchmarks.documents --part matched --ratios 2 4 10 --results documents.jsonl
    python -m benchmarks.documents --part rivals --results documents.jsonl
    python -m benchmarks.documents --part edits --results documents.jsonl
    python -m benchmarks.documents --part chunks --results documents.jsonl
    python -m benchmarks.documents --part joining --seeds 0 1 2 --results documents.jsonl
    python -m benchmarks.documents --part gemma --results documents.jsonl
    python -m benchmarks.documents --part exact-serving --engines local --results documents.jsonl
    python -m benchmarks.documents --part exact-serving --engines vllm --results documents.jsonl
    python -m benchmarks.documents --part serving --results documents.jsonl
    python -m benchmarks.documents --table --results documents.jsonl        # what there is so far

The last engine and `serving` need the environment of `make test-vllm`.

Each measurement is a line of the results file and is not made again; a run of `studied` that was killed goes
on from its checkpoint beside that file. Settings were chosen on the questions of the split `dev`; the tables
show `test`. Prefixes may be made in another data type than they are measured in, which is float32.

R = (loss without - loss with prefix) / (loss without - loss with the whole document), over all tokens of a
document's answers; "several passages" are the questions whose answer can't be read off one section.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreword import BaseModel, Example, Prefix, compile_document
from foreword.documents.exact import document_ids, document_template, exact_key_values
from foreword.documents.report import bare_template, harm, harm_answers
from foreword.prefix_sizes import tensor_names
from foreword.reporting.markdown import table

FOLDER = Path(__file__).parents[1] / "examples" / "documents"
NAMES = tuple(
    sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README" and "." not in path.stem)
)

COMPILED = ("studied", "matched", "exact")
"""Parts that are a method of compile each."""

OTHERS = {
    "exact-serving": "document_serving",
    "serving": "document_serving",
    "rivals": "document_rivals",
    "edits": "document_edits",
    "chunks": "document_chunks",
    "joining": "document_joining",
    "gemma": "document_gemma",
}
"""Other parts, and the module that measures each."""


JOINED = {"alone": "trained alone", "together": "trained together", "texts": "texts"}
"""What several documents' prefixes that are joined are of, and how rows and tables call it."""


@dataclass(frozen=True)
class Questions:
    """The questions of one split of a document.

    Attributes:
        several: of each, whether its answer needs passages of several sections.
    """

    examples: list[Example]
    several: list[bool]


def read_questions(name: str, split: str) -> Questions:
    """The questions of a document in one split, `dev` or `test`."""
    lines = (FOLDER / f"{name}.questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return Questions(
        [Example(source=row["question"], target=row["answer"]) for row in rows],
        [len({_section(text, each) for each in row["evidence"]}) > 1 for row in rows],
    )


def _section(text: str, passage: str) -> int:
    """The heading above a passage, by its place."""
    return max((text.rfind(f"\n{'#' * depth} ", 0, text.find(passage)) for depth in range(1, 5)), default=-1)


def exact_prefix(base: BaseModel, text: str) -> Prefix:
    """A document's own keys and values, as the method `exact` makes them, without its report."""
    return prefix_of(base, document_ids(base, document_template(base), text))


def prefix_of(base: BaseModel, ids: Sequence[int]) -> Prefix:
    """The keys and values of some tokens, which are what stands for a document."""
    return Prefix(
        tensors=tensor_names(exact_key_values(base, ids)),
        base=base.identity,
        template=document_template(base),
        positions=base.positions,
    )


class Results:
    """Measurements by what they are of, each a line of a file that is only added to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, key: dict[str, Any]) -> bool:
        """Whether it was measured."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def once(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure what the file does not have yet, and add it."""
        if self.has(key):
            return
        row = key | measure()
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


class Bench:
    """The bases of a run, and what of them is measured once.

    Attributes:
        base: in float32, which measures.
        maker: which makes prefixes, in the data type asked for.
        folder: of checkpoints, and of prefixes that later measurements go on from.
    """

    def __init__(self, name: str, dtype: str, folder: Path, harm_prompts: int) -> None:
        self.base = BaseModel.load(name, dtype="float32")
        self.maker = self.base if dtype == "float32" else BaseModel.load(name, dtype=dtype)
        self.dtype = dtype
        self.folder = folder
        self.harm_prompts = harm_prompts
        self._losses: dict[tuple[str, str, str], list[torch.Tensor]] = {}
        self._documents: dict[str, Prefix] = {}

    def text(self, name: str) -> str:
        """A document."""
        return (FOLDER / f"{name}.md").read_text(encoding="utf-8")

    def document(self, name: str) -> Prefix:
        """A document's own keys and values."""
        if name not in self._documents:
            self._documents[name] = exact_prefix(self.base, self.text(name))
        return self._documents[name]

    def losses(self, name: str, split: str, prefix: Prefix | None) -> list[torch.Tensor]:
        """Of each answer of a split its tokens' losses."""
        bare = bare_template(self.base, document_template(self.base))
        return self.base.token_losses(read_questions(name, split).examples, prefix, template=bare)

    def _reference(self, name: str, split: str, what: str) -> list[torch.Tensor]:
        key = (name, split, what)
        if key not in self._losses:
            self._losses[key] = self.losses(name, split, None if what == "none" else self.document(name))
        return self._losses[key]

    def shares(self, name: str, made: Callable[[str], list[torch.Tensor]]) -> dict[str, Any]:
        """R of one way to have a document at hand; `made`: from a split to the answers' losses."""
        found: dict[str, Any] = {}
        for split in ("dev", "test"):
            several = read_questions(name, split).several
            losses = made(split)
            for kind, wanted in (("", (True, False)), ("_one", (False,)), ("_several", (True,))):
                chosen = [number for number, each in enumerate(several) if each in wanted]
                none, whole, with_prefix = (
                    float(torch.cat([rows[number] for number in chosen]).double().mean())
                    for rows in (
                        self._reference(name, split, "none"),
                        self._reference(name, split, "whole"),
                        losses,
                    )
                )
                found[f"R_{split}{kind}"] = round((none - with_prefix) / (none - whole), 4)
        return found

    def of_prefix(self, name: str, prefix: Prefix) -> dict[str, Any]:
        """R and harm of a prefix."""
        answers = harm_answers(self.base, bare_template(self.base, prefix.template), self.harm_prompts)
        return {
            "P": prefix.length,
            **self.shares(name, lambda split: self.losses(name, split, prefix)),
            "harm": round(harm(self.base, prefix, answers), 4),
        }

    def harm_of_document(self, name: str) -> float:
        """The whole document's own harm."""
        document = self.document(name)
        answers = harm_answers(self.base, bare_template(self.base, document.template), self.harm_prompts)
        return round(harm(self.base, document, answers), 4)


def compiled(bench: Bench, name: str, method: str, ratio: float, seed: int, **options: Any) -> dict[str, Any]:
    """A prefix of a document, made and measured."""
    slug = "-".join([name, method, f"{ratio:g}", str(seed), *(f"{k}{v:g}" for k, v in options.items())])
    folder = bench.folder / slug if method == "studied" else None
    begin, cpu = time.perf_counter(), time.process_time()
    seen = 0

    def watch(progress: Any) -> None:
        nonlocal seen
        seen = max(seen, getattr(progress, "tokens", 0) or 0)

    given = {} if method == "exact" else {"ratio": ratio}
    prefix = compile_document(
        bench.maker,
        bench.text(name),
        method=method,  # type: ignore[arg-type]
        seed=seed,
        checkpoint_dir=folder,
        on_progress=watch,
        **given,
        **options,
    )
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    return {
        **{what: round(value, 1) for what, value in seconds.items()},
        "threads": torch.get_num_threads(),
        "dtype": bench.dtype,
        "steps": prefix.origin.steps,
        "tokens_trained": seen,
        **bench.of_prefix(name, prefix),
        "harm_of_document": bench.harm_of_document(name),
    }


def show(rows: Iterable[dict[str, Any]]) -> str:
    """A table of what compiled prefixes keep: means over documents, and the spread between them."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] in COMPILED:
            groups.setdefault((row["method"], row["ratio"], row["unrelated"]), []).append(row)
    lines = []
    for (method, ratio, unrelated), found in sorted(groups.items(), key=str):
        by_document = {row["document"] for row in found}
        line = [method, f"{ratio:g}", "" if unrelated is None else f"{unrelated:g}"]
        line += [str(len(by_document)), str(len({row["seed"] for row in found}))]
        for name in ("R_test", "R_test_one", "R_test_several", "R_dev", "harm", "harm_of_document"):
            line.append(spread([row[name] for row in found]))
        line.append(spread([row["cpu_seconds"] for row in found], 0))
        lines.append(line)
    columns = ("method", "times smaller", "unrelated", "documents", "seeds", "R", "one passage")
    columns += ("several", "R on dev", "harm", "of the document", "CPU seconds")
    return table(columns, lines) if lines else ""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=(*COMPILED, *OTHERS), default="studied")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", help="in which prefixes are made")
    parser.add_argument("--documents", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--ratios", type=float, nargs="+", default=[10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="default: that of compile")
    parser.add_argument(
        "--unrelated", type=float, help="share of unrelated prompts; default: that of compile"
    )
    parser.add_argument("--harm-prompts", type=int, default=100, help="that harm is measured on")
    parser.add_argument("--lora-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--edits", type=int, default=10, help="at most")
    parser.add_argument("--anew", type=int, nargs="*", default=[1, 5, 10], help="edits also trained anew")
    parser.add_argument("--joined", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument(
        "--ways", nargs="+", choices=JOINED, default=list(JOINED), help="to make what is joined"
    )
    parser.add_argument(
        "--neighbours", type=int, default=4, help="of those that are trained together, at most"
    )
    parser.add_argument("--mixed", type=float, default=0.25, help="share of their rows behind others, too")
    parser.add_argument("--profiles", type=int, default=20, help="of those that are joined, at most")
    parser.add_argument("--rounds", type=int, default=5, help="of the parts that take turns")
    parser.add_argument("--engines", nargs="+", choices=("local", "vllm"), default=["local"])
    parser.add_argument("--compared", type=int, default=4, help="answers of each document, token by token")
    parser.add_argument("--requests", type=int, default=32, help="at once")
    parser.add_argument("--serving-documents", type=int, default=8, help="that they are about")
    parser.add_argument("--tokens", type=int, default=32, help="new ones of each request")
    parser.add_argument("--threads", type=int, default=2, help="of vLLM")
    parser.add_argument("--cache-gib", type=int, default=2, help="of each vLLM, for keys and values")
    parser.add_argument("--vllm-arguments", default="", help="more for vLLM, such as --enforce-eager")
    parser.add_argument("--results", type=Path, required=True, help="file that is added to")
    parser.add_argument("--table", action="store_true", help="print the table of what there is, and end")
    given = parser.parse_args()
    results = Results(given.results)
    if not given.table:
        bench = Bench(given.base, given.dtype, given.results.with_suffix(".runs"), given.harm_prompts)
        if given.part in OTHERS:
            importlib.import_module(f"benchmarks.{OTHERS[given.part]}").measure(bench, results, given)
        else:
            _measure(bench, results, given)
    parts = (importlib.import_module(f"benchmarks.{name}") for name in dict.fromkeys(OTHERS.values()))
    for page in (show(results.rows), *(part.show(results.rows) for part in parts)):
        if page:
            print(page)


def _measure(bench: Bench, results: Results, given: Any) -> None:
    """The parts that are one method of compile each."""
    options = {name: getattr(given, name) for name in ("steps", "unrelated")}
    options = {name: value for name, value in options.items() if value is not None}
    for seed in given.seeds:
        for ratio in [1.0] if given.part == "exact" else given.ratios:
            for name in given.documents:
                key = {"part": given.part, "document": name, "method": given.part, "ratio": ratio}
                key |= {"seed": seed, "unrelated": given.unrelated, "steps_asked": given.steps}
                results.once(
                    key,
                    lambda: compiled(bench, name, given.part, ratio, seed, **options),  # noqa: B023
                )


if __name__ == "__main__":
    from benchmarks import documents  # the module that the other parts import, not a second one

    documents.main()
