"""/v1/usage: what owners used, by day: what a bill is made from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from foreword.errors import NotAllowed, UnknownPrefix
from foreword.serving.api.pools import FairRoute
from foreword.serving.api.schemas import ERRORS
from foreword.serving.api.state import identity_of
from foreword.serving.errors import Refused
from foreword.serving.jobs.settings import NO_ZERO

router = APIRouter(tags=["usage"], route_class=FairRoute)
Day = Annotated[str | None, Query(max_length=10, description="UTC, such as 2026-01-31.")]


class UsageRow(BaseModel):
    """What an owner used on one day (UTC)."""

    object: Literal["usage"] = "usage"
    owner: str
    day: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    training_steps: int
    trained_tokens: int
    stored_bytes: int


class UsageList(BaseModel):
    """Rows by day and owner; `next` is the `after` of the page behind this one."""

    object: Literal["list"] = "list"
    data: list[UsageRow]
    has_more: bool
    next: str | None = None


@router.get("/v1/usage", response_model=UsageList, responses=ERRORS)
def list_usage(
    request: Request,
    start: Day = None,
    end: Day = None,
    owner: Annotated[str | None, Query(max_length=128, pattern=NO_ZERO)] = None,
    limit: Annotated[int, Query(ge=1, le=999)] = 100,
    after: Annotated[str | None, Query(max_length=140, pattern=NO_ZERO)] = None,
) -> Any:
    """What owners used, by day; administrators see everybody's, owners their own."""
    view = identity_of(request).view
    if owner is None and view.caller.role != "admin":
        owner = view.caller.owner
    try:
        rows = view.usage(owner, start=start, end=end, limit=limit + 1, after=after)
    except (NotAllowed, UnknownPrefix) as error:
        raise Refused(
            403, "this key reads what its own owner used; leave owner out", param="owner"
        ) from error
    data, more = rows[:limit], len(rows) > limit
    last = f"{data[-1].day}/{data[-1].owner}" if more else None
    return UsageList(data=[UsageRow(**row.to_json()) for row in data], has_more=more, next=last)
