"""Arrays: other storage whose LUNs are protected."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from playhead.api.host import ChapSet
from playhead.api.state import TheAppliance
from playhead.array import MAX_PORTALS
from playhead.resources import Array, ArrayTarget

router = APIRouter(tags=["array"])


class ArrayAdd(BaseModel):
    """An array, by the portals it is reached at."""

    model_config = ConfigDict(extra="forbid")
    name: str
    portals: list[str] = Field(
        min_length=1, max_length=MAX_PORTALS, description="ADDR or ADDR:PORT, in order of preference"
    )
    names: Literal["host", "own"] = Field(
        default="host", description="Hosts' sessions log in under the hosts' own names, or all under Playhead's"
    )
    digests: bool = Field(default=False, description="Ask for CRC32C over headers and data")
    chap: ChapSet | None = Field(default=None, description="What Playhead proves itself with, and asks of the array")


class ArrayShown(Array):
    """An array and what it has, asked just now."""

    targets: list[ArrayTarget]


@router.get("/arrays")
def list_arrays(appliance: TheAppliance) -> list[Array]:
    """The arrays that are known."""
    return [appliance.arrays.resource(row) for row in appliance.arrays.all()]


@router.post("/arrays", status_code=201)
def add_array(body: ArrayAdd, appliance: TheAppliance) -> Array:
    """Makes an array known. It is not asked anything yet."""
    chap = body.chap.request() if body.chap else None
    given = (chap.user, chap.secret, chap.mutual_user, chap.mutual_secret) if chap else None
    return appliance.arrays.resource(appliance.arrays.add(body.name, body.portals, body.names, body.digests, given))


@router.get("/arrays/{array}")
def show_array(array: str, appliance: TheAppliance) -> ArrayShown:
    """An array, with its targets and LUNs as it shows them to Playhead now (SendTargets, REPORT LUNS)."""
    row = appliance.arrays.get(array)
    return ArrayShown(**appliance.arrays.resource(row).model_dump(), targets=appliance.arrays.look(array))


@router.delete("/arrays/{array}", status_code=204)
def remove_array(array: str, appliance: TheAppliance) -> None:
    """Forgets an array that no volume has its production on."""
    appliance.arrays.remove(array)
