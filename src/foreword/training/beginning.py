"""Beginning: a learner at step 0, from settings and data."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UsageError
from foreword.geometry import Stream
from foreword.prefix import Prefix
from foreword.template import Placement
from foreword.training.embedding import compile_embeddings, starting_embeddings
from foreword.training.initialization import starting_point
from foreword.training.parameterization import Embeddings, KeysValues, Parameterization
from foreword.training.prefix_trainer import Learner
from foreword.training.settings import TrainingSettings


def build_learner(
    base: BaseModel,
    settings: TrainingSettings,
    examples: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    *,
    start: Prefix | None = None,
    placement: Placement = "prefix",
) -> Learner:
    """A learner at step 0, beginning at the keys and values of `start` or of the initialisation.

    Raises:
        UsageError: embeddings shall be trained from `start`, or more layers than there are; `start` has
            other lengths or streams than the settings, or the base lacks a stream.
        GeometryMismatch, WrongBaseModel: it is a prefix of another base.
    """
    parameters: Parameterization | Embeddings
    if settings.parameterization.kind == "embedding":
        parameters = _embeddings(base, settings, examples, start)
    else:
        layers = settings.trained_layers(base.geometry)
        begin = _begin(base, settings, examples, start)
        parameters = Parameterization(settings.parameterization, begin, settings.seed, layers)
    # Only models that need padding gain from batches of like length.
    return Learner(
        settings,
        parameters.to(base.device),
        examples,
        dev,
        by_length=not base.takes_positions,
        placement=placement,
        positions=base.positions,
    )


def _embeddings(
    base: BaseModel, settings: TrainingSettings, examples: Sequence[EncodedExample], start: Prefix | None
) -> Embeddings:
    if start is not None:
        raise UsageError(
            "parameterization is 'embedding', and a prefix to start from has no embeddings, only keys and "
            "values; take direct or mlp+start, or an init"
        )
    length = settings.lengths(base.geometry)["decoder"]
    begin_PE = starting_embeddings(base, settings.init, length, examples, settings.seed)
    return Embeddings(settings.parameterization, begin_PE, functools.partial(compile_embeddings, base))


def _begin(
    base: BaseModel, settings: TrainingSettings, examples: Sequence[EncodedExample], start: Prefix | None
) -> dict[Stream, KeysValues]:
    if start is None:
        return starting_point(base, settings.init, settings.lengths(base.geometry), examples, settings.seed)
    start.check_fits(base.identity, base.geometry)
    begins = {stream: start.stream_length(stream) for stream in start.streams}
    given = settings.streams is not None or isinstance(settings.length, Mapping)
    lengths = settings.lengths(base.geometry if given else start.geometry)
    if begins != lengths:
        raise UsageError(f"start has length {_told(begins)}, the run has {_told(lengths)}; make them equal")
    return {stream: (start.key(stream), start.value(stream)) for stream in start.streams}


def _told(lengths: Mapping[Stream, int]) -> str:
    each = ", ".join(f"{stream} {length}" for stream, length in lengths.items())
    return str(lengths["decoder"]) if set(lengths) == {"decoder"} else each
