"""Errors: every answer that is none, in the form that OpenAI's clients read.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

What `foreword.errors` names by what is wrong gets its HTTP status here, in one place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from foreword import errors

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
    (errors.BadPrefix, 400, "invalid_prefix"),
    (errors.UsageError, 400, "invalid_value"),
    (errors.EngineStopped, 503, "unavailable"),
    (errors.StoreUnavailable, 503, "unavailable"),
    (errors.DamagedBlob, 500, "damaged_prefix"),
)
"""The first class that fits decides; anything else is a fault of ours, or of the disk: 500."""


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: what was found, what was expected, what to do.
        code: for programs.
        param: the field of the request that is wrong, if it is one.
        headers: beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status)
        self.param = param
        self.headers = dict(headers or {})


def unknown_model(name: str) -> Refused:
    """The same for a model that is absent and for one that is somebody else's."""
    return Refused(
        404,
        f"the model {shown(name)} does not exist or is not yours; GET /v1/models lists those you may use",
        code="model_not_found",
        param="model",
    )


def shown(text: str) -> str:
    """`text` quoted for a message: control characters escaped, never endless."""
    plain = ascii(text)
    return plain if len(plain) <= 80 else f"{plain[:60]}... ({len(plain)} characters)"


def refused(error: errors.ForewordError) -> Refused:
    """A named error as an answer."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            # What a store says about its own files and databases is for who runs the server.
            message = str(error) if status < 500 else _OWN_FAULTS.get(code, _FAULT)
            return Refused(
                status, message, code=code, headers={"retry-after": "5"} if status == 503 else None
            )
    return Refused(500, _FAULT)


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


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Let every error of the app, which has these routes, leave in this form."""

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> Response:
        return response_of(error)

    @app.exception_handler(errors.ForewordError)
    async def on_named(request: Request, error: errors.ForewordError) -> Response:
        answer = refused(error)
        if answer.status >= 500:
            request.state.fault = error
        return response_of(answer)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return response_of(_of_validation(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        known = {
            404: f"there is nothing at {shown(request.url.path)}; /docs lists what there is",
            405: f"{request.method} is not possible here",
        }
        message = known.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router tells the methods of one route only
            here = [route for route in routes if route.path_regex.match(request.url.path)]
            methods = {method for route in here for method in route.methods or ()}
            headers = {"allow": ", ".join(sorted(methods))}
        return response_of(Refused(error.status_code, message, headers=headers))


def refuse_fields_beside(form: Iterable[str], known: Collection[str]) -> None:
    """Refuse a form with a field that has no meaning here, as bodies in JSON are.

    Raises:
        Refused: 400.
    """
    for field in form:
        if field not in known:
            param = field.partition("[")[0]  # a field with parts comes as `expires_after[seconds]`
            raise _unknown_field(field, param if param.isidentifier() else None)


def _unknown_field(where: str, param: str | None) -> Refused:
    return Refused(
        400, f"the field {shown(where)} is not known here; leave it out", code="unknown_field", param=param
    )


def _of_validation(error: RequestValidationError) -> Refused:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    kind = first["type"]
    if kind == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return Refused(400, f"the body is not JSON: {detail} at byte {first['loc'][-1]}", code="invalid_json")
    # Types of a union stand in the path too; a caller looks for the field.
    param = ".".join(part for part in path if part.isidentifier() or part.isdigit()) or None
    where = param or "the body"
    if kind == "extra_forbidden":
        return _unknown_field(where, param)
    if kind == "missing":
        return Refused(400, f"{where} is missing", code="missing_field", param=param)
    return Refused(400, f"{where}: {first['msg']}", code="invalid_value", param=param)
