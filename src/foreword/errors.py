"""Every error that Foreword raises on purpose.

Each message says what was found, what was expected and what to do. The command line prints it as
it is and ends with status 1 (2 for `UsageError`); nothing else is caught there, so a traceback
always means a fault of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

LONGEST_MESSAGE = 2000


def printable(message: str) -> str:
    """A message as it can be printed anywhere: what it quotes may be as long as a file, or hold half of a
    surrogate pair, which UTF-8 can't. Its end stays, where it says what to do."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE - 405]} ... {message[-400:]}"
    return message if message.isascii() else message.encode(errors="backslashreplace").decode()


class ForewordError(Exception):
    """Base of all errors below.

    Attributes:
        found: the message without the advice.
        remedy: where the command line and HTTP have an advice of their own, what they look it up under.
        owner: in a run of several owners, the one whose files or data it is about.
    """

    owner: str | None = None

    def __init__(self, *given: object, advice: str | None = None, remedy: str | None = None) -> None:
        whole = given if advice is None else (f"{given[0]}; {advice}",)
        super().__init__(*(printable(one) if isinstance(one, str) else one for one in whole))
        self.found = printable(str(given[0])) if given else ""
        self.remedy = remedy


@contextlib.contextmanager
def concerning(owner: str) -> Iterator[None]:
    """Let an error that leaves the block say whose it is."""
    try:
        yield
    except ForewordError as error:
        error.owner = error.owner or owner
        raise


class ForewordWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class TemplateChanged(ForewordWarning):
    """A prefix whose template makes other tokens with this base's tokenizer than it made in training."""


class ForewordDeprecation(ForewordWarning, FutureWarning):
    """An old name that still works for one release; the message says the new one."""


class UsageError(ForewordError, ValueError):
    """The call itself is wrong: an option out of range, options that exclude each other."""


class BadSchema(UsageError):
    """A JSON schema that no text can be made to follow; says what in it is wrong, contradicts or asks for too
    much."""


# -- base models -------------------------------------------------------------------------------


class UnknownModel(ForewordError):
    """A name that is no alias, no folder and no hub id."""


class DownloadFailed(ForewordError):
    """No source could deliver the file; says what each of them answered."""


class ChecksumMismatch(ForewordError):
    """A file whose SHA-256 is not the expected one."""


class UnsupportedArchitecture(ForewordError):
    """A model whose attention does not take a prefix; raised at load time, before any work."""


class WindowExceeded(ForewordError):
    """Prefix plus text do not fit into the positions the base model has."""


class NotFinite(ForewordError):
    """The base model computes NaN or infinity, behind some prefix or alone; nothing is made of that."""


# -- prefixes ----------------------------------------------------------------------------------


class BadPrefix(ForewordError):
    """A prefix that can't be used. The classes below say why."""


class NotAPrefixFile(BadPrefix):
    """Not safetensors at all, or safetensors without Foreword's header."""


class TruncatedPrefix(BadPrefix):
    """A file that ends before its tensors do."""


class UnsupportedVersion(BadPrefix):
    """A format version that this release does not read."""


class UnsupportedGeometry(BadPrefix):
    """A file that counts layers without keys and values, which this release does not number."""


class GeometryMismatch(BadPrefix):
    """Shapes that differ from each other or from the base model's."""


class WrongBaseModel(BadPrefix):
    """A prefix trained for a model with other weights."""


class NonFinitePrefix(BadPrefix):
    """NaN or infinity among the keys and values."""


# -- examples ----------------------------------------------------------------------------------


class BadExamples(ForewordError):
    """Data that can't be read: names the file, the line and the fault."""


class UnknownField(BadExamples):
    """Data without the field that was to hold a part of an example.

    Attributes:
        found: place and fields of the data.
        parts: those that may have another name there, such as source, target, messages, chosen.
    """

    def __init__(self, found: str, *parts: str) -> None:
        named = ", ".join(f'"{part}": "…"' for part in parts)
        super().__init__(f"{found}; if it has another name, say so with fields={{{named}}}")
        self.found = printable(found)
        self.parts = parts


class TemplateRefuses(BadExamples):
    """A chat template that can't write some messages; says what the template said of them."""


class TrainingDiverged(ForewordError):
    """The loss became NaN or infinite."""


class OwnersFailed(ForewordError):
    """Some owners of a run with many ended without a prefix.

    Attributes:
        errors: what was wrong, by owner.
        prefixes: the prefixes of the other owners.
    """

    def __init__(self, errors: dict[str, ForewordError], prefixes: dict[str, Any]) -> None:
        named = "; ".join(f"{owner}: {error}" for owner, error in list(errors.items())[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        super().__init__(f"{len(errors)} owners ended without a prefix: {named}{more}")
        self.errors = errors
        self.prefixes = prefixes


_LESS_HARM = {
    "studied": "take a larger share of unrelated prompts or fewer steps",
    "matched": "take another length, or method studied, which learns from unrelated prompts, too",
    "exact": "leave parts of the document out: its text in the prompt changes answers by as much",
}
"""What to do by a document's method."""


class HarmExceeded(ForewordError):
    """A document's prefix that changes unrelated answers by more than it was allowed to.

    Attributes:
        report: what was measured, as it would stand in the prefix.
    """

    def __init__(self, report: dict[str, Any], where: str = "the prefix was not kept") -> None:
        own, share = report["harm_of_document"], report["recovered_share"]
        beside = "" if own is None else f" (of the whole document: {own:.4g})"
        kept = "" if share is None else f", at a recovered share of {share:.2f}"
        super().__init__(
            f"harm is {report['harm']:.4g}{beside}{kept}; expected at most {report['max_harm']:.4g}. {where}",
            advice=f"allow more with max_harm, or {_LESS_HARM[report.get('method', 'studied')]}",
            remedy=f"harm exceeded, {report.get('method', 'studied')}",
        )
        self.report = report


class ReportWorse(ForewordError):
    """A document's prefix whose report is worse than that of the prefix it went on from.

    Attributes:
        report: what was measured, as it would stand in the prefix.
    """

    def __init__(self, report: dict[str, Any], worse: str, where: str = "the prefix was not kept") -> None:
        super().__init__(
            f"the report is worse than the previous prefix's: {worse}. {where}",
            advice="take more steps, or leave the gate out",
            remedy="report worse",
        )
        self.report = report
        self.worse = worse


class DocumentsFailed(ForewordError):
    """Some documents of a run with many ended without a prefix.

    Attributes:
        errors: what was wrong, by document.
        prefixes: the prefixes of the other documents.
    """

    def __init__(self, errors: dict[str, ForewordError], prefixes: dict[str, Any]) -> None:
        named = "; ".join(f"{name}: {error}" for name, error in list(errors.items())[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        super().__init__(f"{len(errors)} documents ended without a prefix: {named}{more}")
        self.errors = errors
        self.prefixes = prefixes


class DamagedCheckpoint(ForewordError):
    """A checkpoint that is cut or altered; the one before it may be whole."""


class CheckpointMismatch(ForewordError):
    """A checkpoint of a run with other settings, another base model or other data."""


# -- documents ---------------------------------------------------------------------------------


class BadDocument(ForewordError):
    """A document that can't be read: names the file, what is wrong with it and what to do."""


class BadConversations(ForewordError):
    """Conversations that no document prefix can be trained on: about another text, or none that hold."""


class WriterFailed(ForewordError):
    """A model that was to write conversations did not answer, or refused; says what it said."""


# -- files -------------------------------------------------------------------------------------


class OutputExists(ForewordError):
    """The output is there already and overwriting was not asked for."""


class OutputInUse(ForewordError):
    """Another process is writing there."""


class CannotWrite(ForewordError):
    """No right, no space, or no such folder."""


class CannotRead(ForewordError):
    """An input file that is absent or can't be opened."""


# -- store -------------------------------------------------------------------------------------


class BadName(UsageError):
    """An owner, prefix name or label that the store does not accept; says which characters it does."""


class UnknownPrefix(ForewordError):
    """No such prefix for this caller: absent and hidden look the same."""


class PrefixExists(ForewordError):
    """An import would mix with a prefix of that name that is there already."""


class NotAllowed(ForewordError):
    """The caller's role does not permit this; raised alike whether the prefix exists or not."""


class StorageLimitExceeded(ForewordError):
    """More bytes than a server lets an owner store; nothing was added."""


class UnknownKey(ForewordError):
    """An API key that is malformed, was never made, or was revoked."""


class DamagedBlob(ForewordError):
    """A stored prefix file that can't be trusted. The classes below say why."""


class MissingBlob(DamagedBlob):
    """A version names a file that is not in the blob storage."""


class AlteredBlob(DamagedBlob):
    """A stored file whose SHA-256 is no longer the one it was stored under."""


class UnknownStore(ForewordError):
    """No store there, and making one was not asked for; or blobs that belong to another store."""


class OutdatedCatalogue(ForewordError):
    """A store's database of an older release; `foreword store migrate` brings it up to date."""


class UnsupportedCatalogue(ForewordError):
    """A store's database of a newer release, which this one would damage."""


class StoreUnavailable(ForewordError):
    """The database or the blob storage did not answer; what was not confirmed is not listed."""


class BadArchive(ForewordError):
    """An export file that is no export, or was altered; nothing of it was imported."""


# -- interop -----------------------------------------------------------------------------------


class ForeignFormat(BadPrefix):
    """Files of another library that are not the prefix that was to be imported."""


class UnsafePickle(ForeignFormat):
    """A pickle that holds more than tensors: it would have run code, and was not loaded."""


class NotExportable(ForewordError):
    """A prefix that the other library's format can't hold."""


class HubRefused(ForewordError):
    """The Hugging Face Hub wants a token, or the token's owner has no right to do this."""


class UploadFailed(ForewordError):
    """The hub did not take the files; says what it answered."""


# -- evaluation ----------------------------------------------------------------------------------


class MetricUnavailable(ForewordError):
    """A metric that needs a package, weights or Java that is not there; says which and how to get it."""


# -- serving -------------------------------------------------------------------------------------


class EngineStopped(ForewordError):
    """The engine was closed before the row was finished."""


class EngineOutOfMemory(ForewordError):
    """The engine's memory did not suffice for a row, though nothing else ran."""
