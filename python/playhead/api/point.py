"""Points: what an expression stands for."""

from typing import Annotated

from fastapi import APIRouter, Query

from playhead.api.state import TheGroup
from playhead.point import EXPRESSIONS
from playhead.resources import Point

router = APIRouter(tags=["point"])


@router.get("/groups/{group}/point")
def show_point(group: TheGroup, at: Annotated[str, Query(description=EXPRESSIONS, max_length=256)] = "head") -> Point:
    """The point that an expression names, if it lies in the window."""
    return Point.of(group.resolve(at))
