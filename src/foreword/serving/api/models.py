"""/v1/models: the base, and the prefixes that a caller may use with it; /v1/prefixes: prefix files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Query, Request, UploadFile
from starlette.responses import Response

from foreword.errors import BadName, ForewordError, TemplateRefuses, UnknownPrefix, UsageError
from foreword.prefix import Prefix
from foreword.serving.api import schemas
from foreword.serving.api.pools import FairRoute
from foreword.serving.api.prompts import find_model
from foreword.serving.api.schemas import BINARY, ERRORS, seconds_of
from foreword.serving.api.state import RequestIdentity, ServerState, identity_of, server_of
from foreword.serving.errors import Refused, refused, unknown_model
from foreword.serving.requests import JOINS, LONGEST_MODEL
from foreword.serving.validation_errors import refuse_fields_beside
from foreword.store import Description, PrefixStore, Version

router = APIRouter(tags=["models"], route_class=FairRoute)
ModelName = Annotated[
    str,
    Path(
        description="The base, owner/name, owner/name@version, or several joined by +.",
        max_length=LONGEST_MODEL,
    ),
]


@router.get("/v1/models/", include_in_schema=False)
@router.get("/v1/models", response_model=schemas.ModelList, responses=ERRORS)
def list_models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after: Annotated[str | None, Query(max_length=300)] = None,
) -> Any:
    """The base model and the latest version of each prefix that the caller may use with it."""
    server, view = server_of(request), identity_of(request).view
    models = [_base(server)] if after is None else []
    start = None if after in (None, server.served.name) else after
    while True:  # the store's pages have prefixes of other bases too, which do not count here
        page = view.list(limit=limit, after=start, facts=False)
        for version in page:
            if len(models) == limit:
                return schemas.ModelList(data=models, has_more=True, next=models[-1].id)
            if _fits(server, version):
                models.append(_model_of(version, f"{version.owner}/{version.name}"))
        start = page.next
        if start is None:
            return schemas.ModelList(data=models)


@router.get("/v1/models/{model:path}", response_model=schemas.ModelAnswer, responses=ERRORS)
def retrieve_model(request: Request, model: ModelName) -> Any:
    """One model."""
    server, view = server_of(request), identity_of(request).view
    if model == server.served.name:
        return _base(server)
    if JOINS in model:
        find_model(server, view, model)  # refuses what completions would
        return _joined(view, model)
    version = describe(view, model).version
    if not _fits(server, version):
        raise Refused(
            404,
            f"{model} is a prefix of {version.base}; this server has {server.served.name}",
            code="wrong_base_model",
            param="model",
        )
    return _model_of(version, model)


@router.delete("/v1/models/{model:path}", response_model=schemas.Deleted, responses=ERRORS)
def delete_model(request: Request, model: ModelName) -> Any:
    """Delete a prefix: the one version that is named, or else all of them."""
    server, view = server_of(request), identity_of(request).view
    if model == server.served.name:
        raise Refused(403, f"{model} is the base model; it can't be deleted here", param="model")
    _remove(view, model)
    return schemas.Deleted(id=model, object="model")


def describe(view: PrefixStore, name: str) -> Description:
    """What the store says of a model's name. Raises Refused, 404, for what the caller may not see."""
    try:
        return view.describe(name)
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error


def _remove(view: PrefixStore, name: str) -> None:
    try:
        view.delete(name, all_versions="@" not in name)
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error


def _fits(server: ServerState, version: Version) -> bool:
    """Whether a prefix runs on the served base, as far as the database knows."""
    mine, served = version.fingerprint, server.served
    return mine is None or mine == served.identity.fingerprint or mine in served.equivalent


def _model_of(version: Version, name: str) -> schemas.ModelAnswer:
    return schemas.ModelAnswer(
        id=name,
        created=seconds_of(version.created),
        owned_by=version.owner,
        foreword=schemas.ModelFacts.model_validate(version, from_attributes=True),
    )


def _joined(view: PrefixStore, name: str) -> schemas.ModelAnswer:
    versions = [describe(view, each).version for each in name.split(JOINS)]
    owners = sorted({version.owner for version in versions})
    created = max(seconds_of(version.created) for version in versions)
    return schemas.ModelAnswer(id=name, created=created, owned_by=JOINS.join(owners))


def _base(server: ServerState) -> schemas.ModelAnswer:
    return schemas.ModelAnswer(id=server.served.name, created=0, owned_by="foreword")


prefix_router = APIRouter(tags=["prefixes"], prefix="/v1/prefixes", route_class=FairRoute)
Owner = Annotated[str, Path(max_length=128)]
Name = Annotated[str, Path(max_length=220, description="Name, or name@version.")]


@prefix_router.post("", response_model=schemas.PrefixAnswer, responses=ERRORS)
async def upload_prefix(
    request: Request,
    file: Annotated[UploadFile, File(description="A prefix file for this server's base.")],
    name: Annotated[str, Form(max_length=260, description="Name, or owner/name.")],
) -> Any:
    """Store a prefix file as the next version of a name."""
    refuse_fields_beside(await request.form(), {"file", "name"})
    server, identity = server_of(request), identity_of(request)

    def put() -> schemas.PrefixAnswer:
        return _put(server, identity, name, file.file.read())

    return await server.pools.uploads.run(identity.account, put)


@prefix_router.get("/{owner}/{name}", response_model=schemas.PrefixAnswer, responses=ERRORS)
def describe_prefix(request: Request, owner: Owner, name: Name) -> Any:
    """All that the store says of a version and its prefix."""
    return _prefix_answer(describe(identity_of(request).view, f"{owner}/{name}"))


@prefix_router.get("/{owner}/{name}/content", response_class=Response, responses=BINARY)
def download_prefix(request: Request, owner: Owner, name: Name) -> Response:
    """The prefix file, checked against its digest."""
    view = identity_of(request).view
    version = describe(view, f"{owner}/{name}").version
    content = view.get(version.reference).to_bytes()
    headers = {
        "content-disposition": f'attachment; filename="{version.name}-{version.number}.prefix"',
        "etag": f'"{version.digest}"',
    }
    return Response(content, headers=headers, media_type="application/octet-stream")


@prefix_router.delete("/{owner}/{name}", response_model=schemas.Deleted, responses=ERRORS)
def delete_prefix(request: Request, owner: Owner, name: Name) -> Any:
    """Delete the one version that is named, or else all of them."""
    _remove(identity_of(request).view, f"{owner}/{name}")
    return schemas.Deleted(id=f"{owner}/{name}", object="prefix")


def _put(server: ServerState, identity: RequestIdentity, name: str, content: bytes) -> schemas.PrefixAnswer:
    full = name if "/" in name else f"{identity.writer('prefixes')}/{name}"
    prefix = _readable(server, content)
    version = identity.view.put(full, prefix, limit=identity.limits.stored_bytes)
    return _prefix_answer(describe(identity.view, version.reference))


def _readable(server: ServerState, content: bytes) -> Prefix:
    """The prefix of a file that this server can keep and run. Raises Refused: 400, any other."""
    try:
        prefix = Prefix.from_bytes(content, where="the file")
        server.served.check_runs(prefix)
    except ForewordError as error:
        code = "invalid_prefix" if isinstance(error, UsageError | TemplateRefuses) else None
        answer = refused(error)
        raise Refused(answer.status, answer.message, code=code or answer.code, param="file") from error
    return prefix


def _prefix_answer(description: Description) -> schemas.PrefixAnswer:
    facts = description.to_json()
    return schemas.PrefixAnswer(id=facts.pop("reference"), **facts)
