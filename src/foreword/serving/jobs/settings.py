"""Job settings: what a caller asks of a job, as the arguments of `train_many` or `compile_document`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, create_model

from foreword.documents.edits import check_previous
from foreword.documents.settings import DocumentSettings
from foreword.encoding import name_of
from foreword.errors import TemplateRefuses, UsageError, WindowExceeded
from foreword.examples import Example, Preference
from foreword.examples.forms import Learned, candidates
from foreword.examples.readers import Format
from foreword.examples.records import make_fields, parse_fields
from foreword.prefix import Prefix
from foreword.serving.errors import Refused, shown
from foreword.serving.jobs.queue import LONGEST_MESSAGE
from foreword.serving.requests import LONGEST_NAME, Body
from foreword.serving.served_model import ServedModel
from foreword.template import Template, training_template
from foreword.training.settings import DEFAULT_LEARNING_RATE, TrainingSettings, make_settings
from foreword.validation import Setting, current_names, flat_settings

Auto = Literal["auto"]
MethodType = Literal["supervised", "dpo", "document"]
NO_ZERO = r"^[^\x00]*$"
"""Pattern of text that PostgreSQL can be asked for."""
FileId = Annotated[str, Field(min_length=1, max_length=40, pattern=NO_ZERO)]
_SUFFIX = "Name of the prefix; the owner's name goes in front."
Suffix = Annotated[str, Field(min_length=1, max_length=128, description=_SUFFIX)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]


FieldPart = Annotated[str, Field(max_length=64)]
FieldName = Annotated[str, Field(min_length=1, max_length=200)]
READING = ("format", "fields")
"""Hyperparameters that say how the files are read."""


class OpenAIHyperparameters(Body):
    """OpenAI's three, and Foreword's own; see docs/settings.md. None and "auto" stand for the defaults."""

    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto | None = None
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto | None = None
    format: Annotated[Format | None, Field(description="The form of the files; see docs/data.md.")] = None
    fields: Annotated[
        dict[FieldPart, FieldName] | Annotated[str, Field(max_length=2000)] | None,
        Field(description='Names of your fields, such as {"source": "question", "target": "answer"}.'),
    ] = None


class OpenAIPreferenceHyperparameters(OpenAIHyperparameters):
    """OpenAI's four, and Foreword's own; see docs/settings.md. None and "auto" stand for the defaults."""

    beta: Annotated[float, Field(gt=0, le=10)] | Auto | None = None


ELSEWHERE = {"epochs": "n_epochs", "batch_size": "batch_size", "seed": "seed", "method": "method"}
"""Settings of training that a field of OpenAI's stands for."""

LARGEST: dict[str, int] = {
    "length": 1024,
    "learning_rate": 10,
    "weight_decay": 10,
    "patience": 1000,
    "width": 8192,
    "gradient_accumulation": 1024,
    "layers": 20,
    "init": 2000,
}
"""What one caller may ask for at most on a server that others use, too: of text, in characters."""

LARGEST_OF_DOCUMENTS: dict[str, int] = LARGEST | {
    "batch_size": 1024,
    "steps": 100_000,
    "draw": 4000,
    "chunk_tokens": 512,
}
"""The same of a document. The teacher reads chunk and conversations before the first step, which nothing
interrupts for the jobs of others."""

MOST_QUESTIONS = 1000
"""Of a file that a document's report is about: they are read three times at the end."""


def hyperparameters_of(
    kind: Any,
    name: str = "Hyperparameters",
    base: type[Body] = OpenAIHyperparameters,
    *,
    elsewhere: Collection[str] = tuple(ELSEWHERE),
    largest: Mapping[str, int] = LARGEST,
) -> type[Body]:
    """The hyperparameters of a job: OpenAI's, and the settings of a class, with ranges and old names.

    Args:
        name: of the model in the OpenAPI document.
        base: what has the fields that are not of the class.
        elsewhere: settings for which the job has another field.
        largest: see `LARGEST`.
    """
    fields: dict[str, Any] = {}
    for each in flat_settings(kind):
        if each.name in elsewhere:
            continue
        annotation = _bounded(each, largest)
        fields[each.name] = (annotation | None, Field(None, description=each.help))
        for alias in each.aliases:
            note = f"The old name of {each.name}"
            fields[alias] = (annotation | None, Field(None, description=note, deprecated=True))
    return create_model(
        name,
        __base__=base,
        __module__=__name__,
        __doc__=base.__doc__,
        **fields,
    )


def _bounded(described: Setting, largest: Mapping[str, int]) -> Any:
    """The type of a hyperparameter; of several, the first: a number for all streams."""
    kind, most = described.alternatives[0], largest.get(described.name, 1_000_000)
    if kind in (int, float):
        least = 2 if described.name == "max_length" else described.ge  # a source and a target
        return Annotated[
            kind, Field(ge=least, gt=described.gt, le=min(most, described.le or most), lt=described.lt)
        ]
    if typing.get_origin(kind) is tuple:
        return Annotated[list[typing.get_args(kind)[0]], Field(min_length=1, max_length=16)]  # type: ignore[misc]
    if kind is bool or described.choices:
        return kind
    return Annotated[str, Field(min_length=1, max_length=min(most, 2000))]


class DocumentBody(Body):
    """How a document becomes a prefix; see docs/documents.md. None stands for the default."""


if TYPE_CHECKING:
    Hyperparameters = OpenAIHyperparameters
    PreferenceHyperparameters = OpenAIPreferenceHyperparameters
    DocumentHyperparameters = DocumentBody
else:
    Hyperparameters = hyperparameters_of(TrainingSettings, elsewhere=(*ELSEWHERE, "beta"))
    PreferenceHyperparameters = hyperparameters_of(
        TrainingSettings,
        "PreferenceHyperparameters",
        OpenAIPreferenceHyperparameters,
        elsewhere=(*ELSEWHERE, "beta", "reduction"),
    )
    DocumentHyperparameters = hyperparameters_of(
        DocumentSettings,
        "DocumentHyperparameters",
        DocumentBody,
        elsewhere=("seed",),
        largest=LARGEST_OF_DOCUMENTS,
    )


class Supervised(Body):
    """Of `method`."""

    hyperparameters: Hyperparameters | None = None


class DPOMethod(Body):
    """Of `method`: preferences between two answers."""

    hyperparameters: PreferenceHyperparameters | None = None


class DocumentMethod(Body):
    """Of `method`: a document becomes a prefix that stands for it."""

    hyperparameters: DocumentHyperparameters | None = None
    conversations: Annotated[
        FileId | None, Field(description="A file of conversations to train on, instead of drawn ones.")
    ] = None
    keep_conversations: Annotated[
        bool | None, Field(description="Keep the conversations that were trained on as a file.")
    ] = None
    previous: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=LONGEST_NAME,
            description="Prefix of an earlier state of the document, to go on from.",
        ),
    ] = None
    gate: Annotated[
        bool | None, Field(description="Fail where the prefix is worse than the previous one.")
    ] = None


class Method(Body):
    """Supervised fine-tuning on examples, DPO on preferences, or a document that becomes a prefix."""

    type: MethodType
    supervised: Supervised | None = None
    dpo: DPOMethod | None = None
    document: DocumentMethod | None = None


class TemplateChoice(Body):
    """How a source becomes the text in front of its target; see docs/data.md."""

    style: Literal["separator", "chat", "raw"] | None = None
    separator: Annotated[str, Field(max_length=1000)] | None = None
    system: Annotated[str, Field(max_length=100_000)] | None = None


class JobBody(Body):
    """POST /v1/fine_tuning/jobs."""

    model: Annotated[
        str, Field(min_length=1, max_length=LONGEST_NAME, description="The base, or a prefix to start from.")
    ]
    training_file: Annotated[FileId, Field(description="Examples, preferences, or the document.")]
    validation_file: Annotated[
        FileId | None,
        Field(description="Examples, preferences, or questions about the document with their answers."),
    ] = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    suffix: Suffix | None = None
    metadata: Annotated[dict[MetadataKey, MetadataText], Field(max_length=16)] | None = None
    template: TemplateChoice | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def method_type(self) -> MethodType:
        """How the prefix is made; supervised, where nothing is said."""
        return "supervised" if self.method is None else self.method.type

    @property
    def chosen(self) -> Hyperparameters:
        """Hyperparameters of a job that trains on examples or preferences, wherever they were given.

        Raises:
            Refused: 400, in both places.
        """
        given = self.method and (self.method.dpo if self.method_type == "dpo" else self.method.supervised)
        inner = given.hyperparameters if given else None
        if inner is not None and self.hyperparameters is not None:
            raise Refused(
                400, "hyperparameters are given twice; give them in method alone", param="hyperparameters"
            )
        return inner or self.hyperparameters or Hyperparameters()

    @property
    def document(self) -> DocumentMethod | None:
        """How a document is to become a prefix; None of a job that trains on examples or preferences.

        Raises:
            Refused: 400, a field of another kind of job.
        """
        kind = self.method_type
        beside: dict[str, Any] = {
            f"method.{name}": getattr(self.method, name, None)
            for name in get_args(MethodType)
            if name != kind
        }
        if kind != "supervised":
            beside["hyperparameters"] = self.hyperparameters
        if kind == "document":
            beside["template"] = self.template
        for name, value in beside.items():
            if value is not None:
                raise Refused(
                    400,
                    f"{name} has no meaning for the method {kind}; leave it out, settings go into "
                    f"method.{kind}.hyperparameters",
                    param=name,
                )
        return (self.method and self.method.document) or DocumentMethod() if kind == "document" else None


def choose_document(
    served: ServedModel,
    body: JobBody,
    asked: DocumentMethod,
    start: Prefix | None,
    previous: tuple[str, Prefix] | None,
) -> dict[str, Any]:
    """Plain data: the fields of `DocumentSettings` and, beside them, what else the job is told.

    Args:
        previous: version and prefix of an earlier state of the document.

    Raises:
        UsageError, WindowExceeded: settings that do not go together, or do not fit the base.
        Refused: 400, a prefix to start from, or a gate without a previous prefix.
    """
    if start is not None:
        raise Refused(
            400,
            f"{shown(body.model)} is a prefix, and a document's prefix starts from the document itself; take "
            f"{served.name}",
            param="model",
        )
    given = {} if asked.hyperparameters is None else asked.hyperparameters.model_dump(exclude_none=True)
    settings = DocumentSettings.from_mapping({**given, "seed": body.seed or 0})
    if settings.length is not None:
        served.text_limit(settings.length)
    if previous is not None:
        check_previous(settings, previous[1])
    elif asked.gate:
        raise Refused(
            400,
            "gate compares with a previous prefix, and there is none; give method.document.previous",
            param="method.document.gate",
        )
    return {
        "document": settings.to_json(),
        # The version, not a name that may mean another one when the job's turn comes.
        "previous": None if previous is None else previous[0],
        "gate": bool(asked.gate),
        "seed": settings.seed,
        "conversations": asked.conversations,
        "keep_conversations": bool(asked.keep_conversations),
    }


def choose(
    served: ServedModel, body: JobBody, style: str, start: Prefix | None, reference: str | None
) -> dict[str, Any]:
    """Plain data: arguments of `train_many`, with the template, and the version that it starts from.

    Raises:
        UsageError, WindowExceeded: settings that do not go together, or do not fit the base.
        Refused: a template that can't write the examples.
    """
    asked = body.chosen.model_dump(exclude_none=True, exclude=set(READING))
    given = current_names(TrainingSettings, asked, warn=False)
    for ours, theirs in (("epochs", "n_epochs"), ("batch_size", "batch_size")):
        value = given.pop(theirs, "auto")
        if value != "auto":
            given[ours] = value
    multiplier = given.pop("learning_rate_multiplier", "auto")
    if multiplier != "auto":
        if "learning_rate" in given:
            raise Refused(
                400,
                "learning_rate and learning_rate_multiplier are both given; give one",
                param="learning_rate_multiplier",
            )
        given["learning_rate"] = DEFAULT_LEARNING_RATE[given.get("parameterization", "direct")] * multiplier
    if start is not None:
        given.setdefault("length", start.length)
    given["seed"] = body.seed or 0
    if body.method_type == "dpo":
        given["method"] = "dpo"
        if given.get("beta") == "auto":
            del given["beta"]
    settings = make_settings(**given)
    settings.check_with(dev=body.validation_file is not None, start=start is not None)
    settings.lengths(served.geometry)
    settings.trained_layers(served.geometry)
    limit = served.text_limit(settings.lengths(served.geometry).get("decoder", 0))
    if limit is not None and settings.max_length is not None and settings.max_length > limit:
        raise WindowExceeded(f"max_length is {settings.max_length}; {limit} tokens fit behind this prefix")
    template = _template(served, body.template, style, start).dated(served.tokenizer)
    how = {"reading": reading} if (reading := reading_of(body)) else {}
    return {**given, "template": template.to_json(), "start": reference, **how}


def reading_of(body: JobBody) -> dict[str, Any]:
    """How a job's files are read: `format` and `fields` of the readers, where they are given.

    Raises:
        Refused: 400, parts of an example that there are not.
    """
    param = f"method.{body.method_type}.hyperparameters.fields"
    reading = body.chosen.model_dump(include=set(READING), exclude_none=True)
    try:
        if isinstance(fields := reading.get("fields"), str):
            reading["fields"] = parse_fields(fields, "fields")
        make_fields(reading.get("fields"))
        candidates(reading.get("format", "auto"), reading.get("fields", ()), learned_by(body.method_type))
    except UsageError as error:
        raise Refused(400, str(error), param=param) from error
    return reading


def learned_by(method: str | None) -> Learned:
    """What a job of this method reads its files for; None is supervised."""
    return "preferences" if method == "dpo" else "examples"


def is_document(settings: Mapping[str, Any]) -> bool:
    """Whether these settings are of a job that makes a prefix of a document, or of one that trains one."""
    return "document" in settings


TRIED_BYTES = 64 << 10
TRIED_EXAMPLES = 20
"""How much of the beginning of a file the template is tried on before a job is made: what is wrong with all
examples is wrong there, and the rest is found when the job begins."""


def try_template(
    served: ServedModel, template: Mapping[str, Any], examples: Sequence[Example | Preference], param: str
) -> None:
    """Refuse examples that the base's template can't write. Raises Refused: 400, in the template's words."""
    made = Template.from_json(dict(template))
    for number, example in enumerate(examples[:TRIED_EXAMPLES]):
        try:
            made.source_ids(served.tokenizer, example.source)
            for target in example.targets:
                made.target_text(served.tokenizer, example.source, target)
        except (TemplateRefuses, UsageError) as error:
            found = f"{name_of(number, example)}: {error}"
            raise Refused(400, found[:LONGEST_MESSAGE], code="invalid_file", param=param) from error


def run_key(settings: Mapping[str, Any]) -> str:
    """The same for jobs that one run can train."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _template(
    served: ServedModel, choice: TemplateChoice | None, style: str, start: Prefix | None
) -> Template:
    given = {} if choice is None else choice.model_dump(exclude_none=True)
    template = served.template if start is None else start.template
    if start is None and not given:
        template = training_template(template, served.tokenizer)
    if start is None and (style == "chat" or "system" in given):
        given.setdefault("style", "chat")
    if given.get("style") == "chat":
        given["begin"] = False  # a chat template writes its own beginning
    template = dataclasses.replace(template, **given)
    if style == "chat" and template.style != "chat":
        raise Refused(
            400,
            f"the examples are conversations, which the template style {template.style!r} can't write; "
            "take chat, or examples with source and target",
            param="template.style",
        )
    if template.style == "chat" and not served.chats:
        raise Refused(
            400,
            f"{served.name} has no chat template; train on source and target",
            code="no_chat_template",
            param="training_file",
        )
    return template
