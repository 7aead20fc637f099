"""What a prefix learns from preferences: how often it finds the better of two answers that it has not seen.

    python -m benchmarks.preference

The pairs are made here, from rules and a seed: questions about sizes, answered once in metric and once in
imperial units, in the same words; the metric answer is the preferred one. Places, words of the questions and
words of the answers that are asked at the end do not come in training. Counted is the share of these pairs
whose preferred answer is the likelier one, by the base alone ("before") and behind the prefix ("after"), with
Wilson's 95% interval; and the share with a positive reward margin, which compares with the base pair by pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foreword import BaseModel, Example, Prefix, Template, train
from foreword.examples import Preference
from foreword.training.settings import DEFAULT_BETA

KINDS: list[tuple[str, str, str, float, float, float, tuple[str, ...]]] = [
    (
        "long",
        "metres",
        "feet",
        3.281,
        20,
        400,
        ("bridge", "ferry", "tunnel", "pier", "freight train", "canal lock"),
    ),
    (
        "tall",
        "metres",
        "feet",
        3.281,
        8,
        120,
        ("lighthouse", "clock tower", "old mill", "water tower", "chimney"),
    ),
    (
        "far away",
        "kilometres",
        "miles",
        0.6214,
        3,
        300,
        ("harbour", "airport", "next village", "summit", "lake"),
    ),
    ("heavy", "kilograms", "pounds", 2.205, 2, 900, ("bronze bell", "anvil", "piano", "millstone", "parcel")),
    (
        "fast",
        "kilometres an hour",
        "miles an hour",
        0.6214,
        8,
        180,
        ("night train", "cable car", "ferry", "tram"),
    ),
    (
        "deep",
        "metres",
        "feet",
        3.281,
        2,
        90,
        ("well", "mine shaft", "harbour basin", "quarry pond", "cistern"),
    ),
]
"""Of each kind: the adjective, both units, imperial for one metric, the range, and what is asked about."""

PLACES = [
    *("Altenau", "Brisk Hollow", "Carrow", "Dunmore", "Eastwick", "Fallow End", "Greyport", "Hollin"),
    *("Ivers Bay", "Jarrow", "Kestrel Point", "Lindholm", "Marrow Hill", "Norwick", "Oakley", "Penfold"),
]
QUESTIONS = [
    "How {adjective} is the {thing} of {place}?",
    "Can you tell me how {adjective} the {thing} in {place} is?",
    "I am writing a guide to {place}. How {adjective} is its {thing}?",
    "My daughter asks how {adjective} the {thing} at {place} is.",
    "{place}: how {adjective} is the {thing} there?",
    "Do you know how {adjective} the {thing} near {place} is?",
]
ANSWERS = [
    "The {thing} of {place} is {amount} {adjective}.",
    "It is about {amount} {adjective}.",
    "According to the town's records, {amount}.",
    "That would be {amount}.",
    "The {thing} is {amount} {adjective}, as far as I know.",
    "Roughly {amount}, I believe.",
]
HELD_PLACES, HELD_QUESTIONS, HELD_ANSWERS = 4, 2, 2
"""How many of each, the last ones, are asked at the end alone."""


def make_pairs(count: int, seed: int, *, held_out: bool) -> list[Preference]:
    """So many different pairs; those held out share no place and no form of words with the others."""
    draw = random.Random(f"{seed}/{held_out}")

    def some(items: Sequence[str], held: int) -> str:
        return draw.choice(items[-held:] if held_out else items[:-held])

    made: dict[str, Preference] = {}
    while len(made) < count:
        adjective, metric, imperial, rate, least, most, things = draw.choice(KINDS)
        words = {"adjective": adjective, "thing": draw.choice(things), "place": some(PLACES, HELD_PLACES)}
        amount = round(math.exp(draw.uniform(math.log(least), math.log(most))))
        question = some(QUESTIONS, HELD_QUESTIONS).format(**words)
        answer = some(ANSWERS, HELD_ANSWERS)
        if adjective in ("heavy", "fast", "far away"):
            answer = answer.replace(" {adjective}", "")
        chosen, rejected = (
            answer.format(**words, amount=f"{number} {unit}")
            for number, unit in ((amount, metric), (round(amount * rate), imperial))
        )
        source = ({"role": "user", "content": question},)
        made.setdefault(question + answer, Preference(source, chosen, rejected))
    return list(made.values())


def answer_log_probabilities(
    base: BaseModel, pairs: Sequence[Preference], prefix: Prefix | None
) -> torch.Tensor:
    """Of the chosen and the rejected answers, `[2, pairs]`, through the interface that anybody has."""
    rows = [Example(pair.source, pair.chosen) for pair in pairs]
    rows += [Example(pair.source, pair.rejected) for pair in pairs]
    losses = base.token_losses(rows, prefix, template=chat_template(base))
    return -torch.stack([each.sum() for each in losses]).view(2, -1)


def chat_template(base: BaseModel) -> Template:
    """Behind which the questions are written, with the base and with the prefix."""
    return dataclasses.replace(base.template, style="chat", begin=False)


def wilson(wins: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, 1927)."""
    share, spread = wins / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def shown(wins: int, count: int) -> str:
    low, high = wilson(wins, count)
    return f"{wins / count:.3f} ({low:.3f} to {high:.3f})"


def measure(base: BaseModel, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train once, and count."""
    pairs = make_pairs(given.pairs + given.dev, 0, held_out=False)
    test = make_pairs(given.test, 0, held_out=True)
    before_2N = answer_log_probabilities(base, test, None)
    start_time = time.perf_counter()
    prefix = train(
        base,
        pairs[given.dev :],
        dev=pairs[: given.dev],
        template=chat_template(base),
        method="dpo",
        beta=given.beta,
        length=given.length,
        steps=given.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        evaluate_every=max(1, given.steps // 4),
        seed=seed,
    )
    seconds = time.perf_counter() - start_time
    after_2N = answer_log_probabilities(base, test, prefix)
    margin_N = given.beta * ((after_2N - before_2N)[0] - (after_2N - before_2N)[1])
    return {
        "seed": seed,
        "pairs": len(test),
        "before": int((before_2N[0] > before_2N[1]).sum()),
        "after": int((after_2N[0] > after_2N[1]).sum()),
        "reward": int((margin_N > 0).sum()),
        "margin": round(float(margin_N.mean()), 4),
        "kept step": prefix.origin.steps,
        "dev loss": prefix.origin.dev_loss,
        "dev accuracy": prefix.report["dev_reward_accuracy"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=240, help="to train on")
    parser.add_argument("--dev", type=int, default=40, help="by which the best step is chosen")
    parser.add_argument("--test", type=int, default=200, help="that are counted at the end")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--beta", type=float, default=DEFAULT_BETA)
    parser.add_argument("--learning-rate", type=float, help="default: that of foreword train")
    parser.add_argument("--results", type=Path, help="a line of JSON for each seed goes behind this file")
    parser.add_argument(
        "--write", type=Path, help="write the pairs as OpenAI has them into this folder, and end"
    )
    given = parser.parse_args()
    if given.write is not None:
        return write(given)
    base = BaseModel.load(given.base, dtype=torch.float32)
    print("| seed | before | after | reward margin above 0 | mean margin | step kept | seconds of training |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for seed in range(given.seeds):
        found = measure(base, given, seed)
        counted = " | ".join(shown(found[name], found["pairs"]) for name in ("before", "after", "reward"))
        rest = " | ".join(str(found[name]) for name in ("margin", "kept step", "seconds"))
        print(f"| {seed} | {counted} | {rest} |", flush=True)
        if given.results is not None:
            with given.results.open("a") as file:
                settings = {name: str(value) for name, value in vars(given).items()}
                file.write(json.dumps({**found, "settings": settings}) + "\n")


def write(given: argparse.Namespace) -> None:
    """The same pairs as files, to be trained on by command or by a job."""
    made = make_pairs(given.pairs + given.dev, 0, held_out=False)
    parts = {"dev": made[: given.dev], "train": made[given.dev :]}
    parts["test"] = make_pairs(given.test, 0, held_out=True)
    given.write.mkdir(parents=True, exist_ok=True)
    for name, pairs in parts.items():
        with (given.write / f"{name}.jsonl").open("w") as file:
            for pair in pairs:
                outputs = {"preferred_output": pair.chosen, "non_preferred_output": pair.rejected}
                said = {key: [{"role": "assistant", "content": text}] for key, text in outputs.items()}
                file.write(json.dumps({"input": {"messages": list(pair.source)}, **said}) + "\n")


if __name__ == "__main__":
    main()
