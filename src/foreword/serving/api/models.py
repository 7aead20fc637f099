"""/v1/models: the base, and the prefixes that a caller may use with it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from foreword.errors import BadName, UnknownPrefix
from foreword.serving.api.schemas import ERRORS, Deleted, ModelAnswer, ModelFacts, ModelList, seconds_of
from foreword.serving.api.state import ServerState, server_of, visitor_of
from foreword.serving.errors import Refused, unknown_model
from foreword.store import PrefixStore, Version

router = APIRouter(tags=["models"])
ModelName = Annotated[str, Path(description="The base, owner/name, or owner/name@version.", max_length=300)]


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
def list_models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after: Annotated[str | None, Query(max_length=300)] = None,
) -> Any:
    """The base model and the latest version of each prefix that the caller may use with it."""
    server, view = server_of(request), visitor_of(request).view
    found = [_base(server)] if after is None else []
    start = None if after in (None, server.served.name) else after
    while True:
        page = view.list(limit=limit, after=start)
        for version in page:
            if len(found) == limit:
                last = found[-1].id
                return ModelList(data=found, has_more=True, next=last)
            if fits(server, version):
                found.append(model_of(version, f"{version.owner}/{version.name}"))
        start = page.next
        if start is None:
            return ModelList(data=found)


@router.get("/v1/models/{model:path}", response_model=ModelAnswer, responses=ERRORS)
def retrieve_model(request: Request, model: ModelName) -> Any:
    """One model."""
    server, view = server_of(request), visitor_of(request).view
    if model == server.served.name:
        return _base(server)
    version = describe(view, model)
    if not fits(server, version):
        raise Refused(
            404,
            f"{model} is a prefix of {version.base}; this server has {server.served.name}",
            code="wrong_base_model",
            param="model",
        )
    return model_of(version, model)


@router.delete("/v1/models/{model:path}", response_model=Deleted, responses=ERRORS)
def delete_model(request: Request, model: ModelName) -> Any:
    """Delete a prefix: the one version that is named, or else all of them."""
    server, view = server_of(request), visitor_of(request).view
    if model == server.served.name:
        raise Refused(403, f"{model} is the base model; it can't be deleted here", param="model")
    remove(view, model)
    return Deleted(id=model, object="model")


def describe(view: PrefixStore, name: str) -> Version:
    """The version that a model's name means. Raises Refused, 404, for what the caller may not see."""
    try:
        return view.describe(name).version
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error


def remove(view: PrefixStore, name: str) -> None:
    """Delete a version, or a prefix with all of them. Raises Refused as `describe`, and NotAllowed."""
    try:
        view.delete(name, all_versions="@" not in name)
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error


def fits(server: ServerState, version: Version) -> bool:
    """Whether the served base is the one that a prefix was made for, as far as the catalogue knows."""
    mine = version.facts["base"].get("fingerprint")
    return mine is None or mine == server.served.identity.fingerprint


def model_of(version: Version, name: str) -> ModelAnswer:
    """A prefix as a model."""
    return ModelAnswer(
        id=name,
        created=seconds_of(version.created),
        owned_by=version.owner,
        foreword=ModelFacts(
            digest=version.digest,
            length=version.length,
            base=version.base,
            created=version.created,
            labels=list(version.labels),
            public=version.public,
        ),
    )


def _base(server: ServerState) -> ModelAnswer:
    return ModelAnswer(id=server.served.name, created=0, owned_by="foreword")
