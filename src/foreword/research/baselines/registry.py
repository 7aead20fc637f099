"""Method: a way to adapt the base model, by name, with the grid from which dev examples choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError
from foreword.research.baselines import fine_tuning, peft, prefix, prompting
from foreword.research.baselines.bottleneck_adapter import bottleneck_adapter
from foreword.research.baselines.protocol import Adapter, AdapterInputs, ContextCost, nothing

Choice = dict[str, Any]

RATE = "learning_rate"

MOST_TRIED = 6
"""Choices in all, where the best of a grid lies at its edge and the grid is made wider."""


@dataclass(frozen=True)
class Method:
    """A way to adapt the base model.

    Attributes:
        name: on the command line and in the results.
        title: in tables and pictures.
        grid: what is tried on dev examples, rates in ascending order.
        default: what is taken where nothing is tried.
        fits: whether a choice can be had of a base model; None: all can.
        front: what a choice puts in front of every text.
        trains: whether it has parameters to train.
        sees_training: whether training examples change what it does; if not, one trial tells all.
    """

    name: str
    title: str
    begin: Callable[[AdapterInputs], Adapter]
    grid: tuple[Choice, ...]
    default: Choice
    trains: bool = True
    fits: Callable[[BaseModel, Choice], bool] | None = None
    front: Callable[[AdapterInputs], ContextCost] = nothing
    sees_training: bool = True

    def choices(self, base: BaseModel) -> list[Choice]:
        """The grid, without what can't be had of `base`."""
        return [choice for choice in self.grid if self.fits is None or self.fits(base, choice)]

    def wider(self, tried: Mapping[float, float]) -> Choice | None:
        """The next rate beyond the grid if the best of those tried is at its edge.

        Args:
            tried: dev loss by learning rate; infinite where it diverged.
        """
        if len(tried) < 2 or len(tried) >= MOST_TRIED:
            return None
        rates = sorted(tried)
        best = min(rates, key=lambda rate: tried[rate])
        if best == rates[0]:
            return {RATE: _rounded(rates[0] ** 2 / rates[1])}
        return {RATE: _rounded(rates[-1] ** 2 / rates[-2])} if best == rates[-1] else None


def rates(*values: float) -> tuple[Choice, ...]:
    """A grid of learning rates."""
    return tuple({RATE: value} for value in values)


def shown(choice: Choice) -> str:
    """A choice in words, as tables and the results have it."""
    if not choice:
        return "-"
    return ", ".join(
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in choice.items()
    )


def _trained(
    name: str,
    title: str,
    begin: Callable[[AdapterInputs], Adapter],
    tried: tuple[float, float, float],
    front: Callable[[AdapterInputs], ContextCost] = nothing,
) -> Method:
    """A method with three learning rates to try, of which the middle one is the default."""
    return Method(name, title, begin, rates(*tried), {RATE: tried[1]}, front=front)


_front = prefix.front()

METHODS = {
    method.name: method
    for method in (
        _trained("prefix", "prefix", prefix.ours(), (0.02, 0.05, 0.1), front=_front),
        _trained("fine-tuning", "fine-tuning", fine_tuning.all_weights, (2e-5, 5e-5, 1.2e-4)),
        _trained("top-2", "fine-tuning, top 2 layers", fine_tuning.top_layers(2), (1e-4, 3e-4, 1e-3)),
        _trained("lora", "LoRA, prefix's size", peft.lora(None), (1e-3, 3e-3, 1e-2)),
        _trained("lora-8", "LoRA, r = 8", peft.lora(8), (3e-4, 1e-3, 3e-3)),
        _trained("adapter", "adapter, at most prefix's size", bottleneck_adapter, (1e-3, 3e-3, 1e-2)),
        _trained(
            "peft-prefix",
            "PEFT prefix, direct",
            peft.peft_prefix(projection=False),
            (1e-2, 3e-2, 1e-1),
            front=_front,
        ),
        _trained(
            "peft-projection",
            "PEFT prefix, projected",
            peft.peft_prefix(projection=True),
            (3e-4, 1e-3, 3e-3),
            front=_front,
        ),
        _trained("prompt-tuning", "prompt tuning", peft.prompt_tuning, (1e-3, 1e-2, 1e-1), front=_front),
        Method("none", "base model alone", prompting.alone, ({},), {}, trains=False, sees_training=False),
        Method(
            "zero-shot",
            "zero-shot prompt",
            prompting.zero_shot,
            tuple({"form": form} for form in prompting.FORMS),
            {"form": "text"},
            trains=False,
            fits=prompting.has_form,
            front=prompting.front,
            sees_training=False,
        ),
        Method(
            "few-shot",
            "few-shot prompt",
            prompting.few_shot,
            ({"shots": 2}, {"shots": 4}, {"shots": 8}),
            {"shots": 4},
            trains=False,
            front=prompting.front,
        ),
    )
}
"""All of them, in the order of tables."""

VARIANTS = {
    **{
        name: _trained(name, title, prefix.ours(**options), tried, front=prefix.front(**options))
        for name, (title, options, tried) in prefix.OPTIONS.items()
    },
    **{
        f"{end}-half": _trained(
            f"{end}-half",
            f"{end} half of the layers",
            prefix.half_of_layers(end),
            prefix.DIRECT_RATES,
            front=_front,
        )
        for end in ("first", "last")
    },
}
"""Our prefix with one thing changed."""

GONE = ("adapter-16", "ia3", "llama-adapter")
"""Methods of earlier releases that no measurement of ours had."""


def methods_named(names: Sequence[str]) -> list[Method]:
    """Methods by name, each once.

    Raises:
        UsageError: an unknown name.
    """
    known = METHODS | VARIANTS
    for name in names:
        if name in GONE:
            raise UsageError(f"the method {name!r} is gone, as no measurement had it; leave it out")
        if name not in known:
            raise UsageError(f"no method is called {name!r}; expected some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
