"""Bookmarks: named points."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from playhead.api.state import TheGroup
from playhead.resources import Bookmark

router = APIRouter(tags=["bookmark"])


class BookmarkCreate(BaseModel):
    """A name for this instant."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["crash", "application"] = "crash"


@router.get("/groups/{group}/bookmarks")
def list_bookmarks(group: TheGroup) -> list[Bookmark]:
    """The group's bookmarks, oldest first."""
    return group.bookmarks()


@router.post("/groups/{group}/bookmarks", status_code=201)
def create_bookmark(body: BookmarkCreate, group: TheGroup) -> Bookmark:
    """Names this instant. It survives power loss when the answer is there."""
    return group.create_bookmark(body.name, body.kind)
