"""What prefixes of one base lose on another, such as a quantised copy: measured before that is declared.

The bases are measured one after the other, so that one of them has to fit into memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.encoding import encode_example
from foreword.errors import GeometryMismatch, UsageError
from foreword.evaluation.evaluate import token_loss
from foreword.examples import Example
from foreword.examples.example import digest
from foreword.models.fingerprint import short
from foreword.prefix import Geometry, Prefix


@dataclass(frozen=True)
class BaseLosses:
    """Losses of one base on the same examples, without a prefix and behind each of several.

    Attributes:
        targets: tokens that the losses are means over.
        token_ids: SHA-256 over what the tokenizer makes of the examples.
        without: mean loss per target token without a prefix, in nats.
        behind: the same behind each prefix, by its digest.
    """

    name: str
    fingerprint: str
    quantization: str | None
    geometry: Geometry
    data: str
    targets: int
    token_ids: str
    without: float
    behind: Mapping[str, float]


def losses_of(
    base: BaseModel,
    examples: Sequence[Example],
    prefixes: Sequence[Prefix] = (),
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> BaseLosses:
    """The losses of `base`, which has to accept the prefixes (`BaseModel.equivalent`).

    Raises: as `token_loss`.
    """
    ids = hashlib.sha256()
    for template in (base.template, *(prefix.template for prefix in prefixes)):
        for example in examples:
            encoded, _ = encode_example(example, base.tokenizer, template)
            ids.update(repr((encoded.source_ids, encoded.target_ids)).encode())
    without = token_loss(base, examples, on_progress=on_progress)
    behind = {
        prefix.digest: token_loss(base, examples, prefix, on_progress=on_progress).mean for prefix in prefixes
    }
    return BaseLosses(
        name=base.name,
        fingerprint=base.fingerprint,
        quantization=base.quantization,
        geometry=base.geometry,
        data=digest(examples),
        targets=without.tokens,
        token_ids=ids.hexdigest(),
        without=without.mean,
        behind=behind,
    )


def loss_difference(trained: BaseLosses, other: BaseLosses) -> float:
    """The loss on `other` less that on `trained`, in nats per target token: of the prefix that differs most.

    Without prefixes, that of the base models alone. With them this does not count: it says little of what a
    prefix loses, which can be more or less (docs/quantization.md has both).

    Raises:
        UsageError: they were not measured on the same examples, or cut texts into other tokens.
        GeometryMismatch: the base models have other sizes.
    """
    if trained.geometry != other.geometry:
        raise GeometryMismatch(
            f"{trained.name} has {trained.geometry}, {other.name} has {other.geometry}: no prefix fits both; "
            "expected two forms of one model"
        )
    if trained.data != other.data or trained.behind.keys() != other.behind.keys():
        raise UsageError(
            "the two bases were measured on other examples or prefixes; measure both on the same"
        )
    if trained.token_ids != other.token_ids:
        raise UsageError(
            f"{trained.name} and {other.name} make other tokens of the same examples; expected two forms "
            "of one model, with the same tokenizer and chat template"
        )
    pairs = [(trained.behind[digest], other.behind[digest]) for digest in trained.behind]
    differences = [after - before for before, after in pairs or [(trained.without, other.without)]]
    return max(differences, key=abs)


def facts_of(trained: BaseLosses, other: BaseLosses) -> dict[str, Any]:
    """What was measured, as a store's record keeps it: plain data."""
    rows: list[dict[str, Any]] = [{"prefix": None, "trained": trained.without, "other": other.without}]
    rows += [
        {"prefix": short(prefix), "trained": loss, "other": other.behind[prefix]}
        for prefix, loss in trained.behind.items()
    ]
    return {
        "trained": {"name": trained.name, "quantization": trained.quantization},
        "other": {"name": other.name, "quantization": other.quantization},
        "data": trained.data,
        "targets": trained.targets,
        "losses": rows,
    }
