"""/v1/files: examples, documents and conversations that were sent, and results of jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, File, Form, Path, Query, Request, UploadFile
from starlette.responses import Response

from foreword.examples.records import PARQUET
from foreword.serving.api.pools import FairRoute
from foreword.serving.api.schemas import BINARY, ERRORS, Deleted, FileAnswer, FileList, seconds_of
from foreword.serving.api.state import identity_of, server_of
from foreword.serving.jobs import uploads
from foreword.serving.jobs.settings import NO_ZERO
from foreword.serving.validation_errors import refuse_fields_beside

router = APIRouter(tags=["files"], route_class=FairRoute)
FileId = Annotated[str, Path(max_length=40, pattern=NO_ZERO)]
_SUFFIXES = {"document": "", "report": ".json", "metrics": ".csv"}


@router.post("/v1/files", response_model=FileAnswer, responses=ERRORS)
async def upload_file(
    request: Request,
    file: Annotated[
        UploadFile,
        File(description="fine-tune: examples. user_data: a document, or conversations as JSON lines."),
    ],
    purpose: Annotated[uploads.Purpose, Form()],
) -> Any:
    """Keep a file.

    Every line of examples and conversations is read before; a bad one is named, and nothing is kept. A
    document is read by the job that it is for.
    """
    refuse_fields_beside(await request.form(), {"file", "purpose"})
    server, identity = server_of(request), identity_of(request)
    owner = identity.writer("files")

    def add() -> uploads.Upload:
        return uploads.add(
            server.store.database,
            identity.caller,
            owner,
            file.filename or "upload.jsonl",
            file.file.read(),
            purpose=purpose,
            limit=identity.limits.stored_bytes,
        )

    return _answer(await server.pools.uploads.run(identity.account, add))


@router.get("/v1/files", response_model=FileList, responses=ERRORS)
def list_files(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=40, pattern=NO_ZERO)] = None,
    purpose: Annotated[str | None, Query(max_length=40)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> Any:
    """The caller's files, by the time they came; desc: newest first."""
    server, owner = server_of(request), identity_of(request).owner("files")
    records, more = uploads.listed(
        server.store.database, owner, limit, after, newest_first=order == "desc", purpose=purpose
    )
    data = [_answer(record) for record in records]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=more and bool(data))


@router.get("/v1/files/{file_id}", response_model=FileAnswer, responses=ERRORS)
def retrieve_file(request: Request, file_id: FileId) -> Any:
    """What is known of a file."""
    server, owner = server_of(request), identity_of(request).owner("files")
    return _answer(uploads.find(server.store.database, owner, file_id))


@router.get("/v1/files/{file_id}/content", response_class=Response, responses=BINARY)
def file_content(request: Request, file_id: FileId) -> Response:
    """A file's bytes, as they were sent."""
    server, owner = server_of(request), identity_of(request).owner("files")
    # Never with the uploader's name or type: a browser is not to open it as anything.
    record = uploads.find(server.store.database, owner, file_id)
    content = uploads.content(server.store.database, owner, file_id)
    suffix = ".parquet" if content.startswith(PARQUET) else _SUFFIXES.get(record.style, ".jsonl")
    headers = {"content-disposition": f'attachment; filename="{file_id}{suffix}"'}
    return Response(content, headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", response_model=Deleted, responses=ERRORS)
def delete_file(request: Request, file_id: FileId) -> Any:
    """Delete a file that no unfinished job needs."""
    server, identity = server_of(request), identity_of(request)
    uploads.remove(server.store.database, identity.caller, identity.writer("files"), file_id)
    return Deleted(id=file_id, object="file")


def _answer(record: uploads.Upload) -> FileAnswer:
    return FileAnswer(
        id=record.id,
        bytes=record.size,
        created_at=seconds_of(record.created),
        filename=record.filename,
        purpose=cast(Any, record.purpose),
        examples=record.examples,
        status_details=uploads.UNNAMED if record.style == "records" else record.told,
    )
