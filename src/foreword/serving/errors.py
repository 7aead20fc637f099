"""HTTP errors: the exception that refuses a request, and its JSON in the form that OpenAI's clients read.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

The one place where the package's own errors get a status.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from foreword import errors
from foreword.store import names

shown = functools.partial(names.shown, most=80)

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_CODES = {
    401: "invalid_api_key",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    503: "unavailable",
}
_STATUS: tuple[tuple[type[errors.ForewordError], int, str], ...] = (
    (errors.UnknownKey, 401, "invalid_api_key"),
    (errors.UnknownPrefix, 404, "model_not_found"),
    (errors.NotAllowed, 403, "not_allowed"),
    (errors.WindowExceeded, 400, "context_length_exceeded"),
    (errors.BadExamples, 400, "invalid_file"),
    (errors.BadDocument, 400, "invalid_file"),
    (errors.BadConversations, 400, "invalid_file"),
    (errors.HarmExceeded, 400, "harm_exceeded"),
    (errors.ReportWorse, 400, "report_worse"),
    (errors.BadPrefix, 400, "invalid_prefix"),
    (errors.BadSchema, 400, "invalid_json_schema"),
    (errors.UsageError, 400, "invalid_value"),
    (errors.StorageLimitExceeded, 429, "storage_limit_exceeded"),
    (errors.NotFinite, 400, "not_finite"),
    (errors.EngineStopped, 503, "unavailable"),
    (errors.EngineOutOfMemory, 503, "out_of_memory"),
    (errors.StoreUnavailable, 503, "unavailable"),
    (errors.DamagedBlob, 500, "damaged_prefix"),
)
"""The first class that fits decides; anything else is a fault of ours, or of the disk: 500."""

ADVICE = {
    "other weights": "take a prefix that was trained for this server's base, or train one here",
    "too large for the type": "train it again with a lower learning rate, or for a base in another data type",
    "unknown prefix": "GET /v1/models lists those you may use",
    "no pyarrow": "write the examples as JSON lines",
    "format not told": "write one JSON object a line, or a table with named columns",
    "examples for dpo": "take the method supervised, or a file of preferences",
    "preferences for supervised": "take the method dpo, or a file of examples",
    "no dev examples": "give validation_file, or leave hyperparameters.patience out",
    "two starts": "leave hyperparameters.init out, or train from the base model",
    "no start": "take another hyperparameters.parameterization, such as direct, or train from the base model",
}
"""What to do over HTTP, by `ForewordError.remedy`."""


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        message: what was found, what was expected, what to do.
        param: the field of the request that is wrong, if it is one.
        headers: beside the usual ones.
        counted: its tokens are counted already by the rate limit.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        counted: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status)
        self.param = param
        self.headers = dict(headers or {})
        self.counted = counted


def unknown_model(name: str) -> Refused:
    """The same for a model that is absent and for one that is somebody else's."""
    return Refused(
        404,
        f"the model {shown(name)} does not exist or is not yours; GET /v1/models lists those you may use",
        code="model_not_found",
        param="model",
    )


NOT_HERE = re.compile(
    "assistants|audio|batches|chatkit|containers|content_provenance_checks|decisions|embeddings|evals|images|"
    "live|moderations|organization|projects|realtime|safety|skills|threads|vector_stores|videos"
)
"""What OpenAI's API has below /v1 and a server of Foreword has not, by the beginning of its path."""
_OTHERWISE_NAMED = {
    "chat/completions": "stored chat completions",
    "conversations": "stored conversations",
    "fine_tuning/alpha": "graders",
    "fine_tuning/checkpoints": "permissions on checkpoints",
    "responses": "stored responses",
    "uploads": "uploads in parts",
}
"""The same, where the path does not say it."""


def unknown_url(method: str, path: str) -> Refused:
    """A path at which there is nothing, or something that others' servers have."""
    parts = path.removeprefix("/v1/").split("/")
    what = _OTHERWISE_NAMED.get(parts[0]) or _OTHERWISE_NAMED.get("/".join(parts[:2]))
    if what is None and NOT_HERE.fullmatch(parts[0]):
        what = parts[0].replace("_", " ")
    if what is None or not path.startswith("/v1/"):
        why = "Please check it; /docs lists what there is."
    else:
        why = (
            f"This server has no {what}; it has chat and text completions, responses, models, files and "
            "fine-tuning jobs."
        )
    return Refused(404, f"Unknown request URL: {shown(f'{method} {path}')}. {why}", code="unknown_url")


def refused(error: errors.ForewordError) -> Refused:
    """A named error as an answer."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            # What a store says about its own files and databases is for who runs the server.
            message = str(error) if status < 500 else _OWN_FAULTS.get(code, _FAULT)
            if isinstance(error, errors.UnknownField):  # whose advice is an argument in Python
                message = f"{error.found}; expected {' and '.join(error.parts)}, rename what holds it"
                if len(error.parts) > 1:  # of no form that is known
                    named = ", ".join(f'"{part}": "..."' for part in error.parts)
                    message += f', or name it in the job\'s hyperparameters: "fields": {{{named}}}'
            elif advice := ADVICE.get(error.remedy or ""):
                message = f"{error.found}; {advice}"
            later = RETRY_SECONDS.get(status)
            return Refused(status, message, code=code, headers={"retry-after": later} if later else None)
    return Refused(500, _FAULT)


RETRY_SECONDS = {503: "5", 429: "600"}
"""When to ask again; of the package's own errors, only a full store is 429."""
_FAULT = "the server failed to answer; its log says more under this request's x-request-id"
_OWN_FAULTS = {
    "damaged_prefix": "the stored file of this model is missing or was altered; it is not used. "
    "Ask the administrator to restore it",
    "unavailable": "the server can't answer just now; repeat the request",
}


def body_of(error: Refused) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def response_of(error: Refused) -> Response:
    """The whole answer."""
    # ASCII only: a message may quote text that UTF-8 can't hold.
    content = json.dumps(body_of(error)).encode("ascii")
    return Response(content, error.status, error.headers, media_type="application/json")
