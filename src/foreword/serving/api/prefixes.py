"""/v1/prefixes: prefix files, up and down, and what the store says of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Request, UploadFile
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from foreword.errors import BadName, UnknownPrefix
from foreword.prefix import Prefix
from foreword.serving.api.auth import writer_of
from foreword.serving.api.models import remove
from foreword.serving.api.schemas import ERRORS, Deleted, PrefixAnswer
from foreword.serving.api.state import RequestIdentity, ServerState, server_of, visitor_of
from foreword.serving.errors import refuse_fields_beside, unknown_model
from foreword.serving.jobs import uploads
from foreword.store import Description, PrefixStore

router = APIRouter(tags=["prefixes"], prefix="/v1/prefixes")
Owner = Annotated[str, Path(max_length=128)]
Name = Annotated[str, Path(max_length=220, description="Name, or name@version.")]


@router.post("", response_model=PrefixAnswer, responses=ERRORS)
async def upload_prefix(
    request: Request,
    file: Annotated[UploadFile, File(description="A prefix file for this server's base.")],
    name: Annotated[str, Form(max_length=260, description="Name, or owner/name.")],
) -> Any:
    """Store a prefix file as the next version of a name."""
    refuse_fields_beside(await request.form(), {"file", "name"})
    content = await file.read()
    return await run_in_threadpool(_put, server_of(request), visitor_of(request), name, content)


@router.get("/{owner}/{name}", response_model=PrefixAnswer, responses=ERRORS)
def describe_prefix(request: Request, owner: Owner, name: Name) -> Any:
    """All that the store says of a version and its prefix."""
    return _answer(_described(visitor_of(request).view, f"{owner}/{name}"))


@router.get(
    "/{owner}/{name}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, **ERRORS},
)
def download_prefix(request: Request, owner: Owner, name: Name) -> Response:
    """The prefix file, checked against its digest."""
    view = visitor_of(request).view
    version = _described(view, f"{owner}/{name}").version
    content = view.get(version.reference).to_bytes()
    headers = {
        "content-disposition": f'attachment; filename="{version.name}-{version.number}.prefix"',
        "etag": f'"{version.digest}"',
    }
    return Response(content, headers=headers, media_type="application/octet-stream")


@router.delete("/{owner}/{name}", response_model=Deleted, responses=ERRORS)
def delete_prefix(request: Request, owner: Owner, name: Name) -> Any:
    """Delete the one version that is named, or else all of them."""
    remove(visitor_of(request).view, f"{owner}/{name}")
    return Deleted(id=f"{owner}/{name}", object="prefix")


def _put(server: ServerState, identity: RequestIdentity, name: str, content: bytes) -> PrefixAnswer:
    full = name if "/" in name else f"{writer_of(identity, 'prefixes')}/{name}"
    prefix = Prefix.from_bytes(content, where="the file")
    server.served.check(prefix)
    limit, owner = identity.limits.stored_bytes, full.partition("/")[0]
    server.store.catalogue.read(
        lambda connection: uploads.check_room(connection, owner, len(content), limit), snapshot=True
    )
    version = identity.view.put(full, prefix)
    return _answer(_described(identity.view, version.reference))


def _described(view: PrefixStore, name: str) -> Description:
    try:
        return view.describe(name)
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error


def _answer(found: Description) -> PrefixAnswer:
    facts = found.to_json()
    return PrefixAnswer(id=facts.pop("reference"), **facts)
