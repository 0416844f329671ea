"""The journal of a group: its numbers, its records, its health."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from playhead import _native
from playhead.api.state import TheAppliance, TheGroup
from playhead.point import MAX_LSN, show_time
from playhead.resources import Job, Journal, Point, Record, Records

router = APIRouter(tags=["journal"])

MAX_RECORDS = 10_000


class JournalTrim(BaseModel):
    """How much past to give up."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(max_length=256, description="A point: everything before it may go")


def record(found: _native.RecordDict) -> Record:
    """The engine's record, for programs."""
    return Record(time=show_time(found["time_ns"]), **{key: value for key, value in found.items() if key != "time_ns"})  # type: ignore[arg-type]


@router.get("/groups/{group}/journal")
def show_journal(group: TheGroup) -> Journal:
    """The engine's numbers since the group was opened."""
    return group.journal()


@router.get("/groups/{group}/journal/records")
def list_journal_records(
    group: TheGroup,
    from_lsn: Annotated[int, Query(ge=0, le=MAX_LSN)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_RECORDS)] = 1000,
) -> Records:
    """Records from an LSN on, without their payload, read from the files and not from memory."""
    found: list[Record] = []
    more: list[int] = []

    def visit(one: _native.RecordDict) -> bool:
        if len(found) == limit:
            more.append(one["lsn"])
            return False
        found.append(record(one))
        return True

    group.head()
    _native.dump(str(group.directory), from_lsn, visit)
    return Records(records=found, next_lsn=more[0] if more else None)


@router.post("/groups/{group}/journal/verify", status_code=202)
def verify_journal(group: TheGroup, appliance: TheAppliance) -> Job:
    """Reads the whole journal from the files and checks all of it. The verdict is the job's result."""

    def work(_progress: Any) -> dict[str, Any]:
        return _native.verify(str(group.directory))

    return appliance.jobs.start("verify", group.row.name, work)


@router.post("/groups/{group}/journal/trim")
def trim_journal(body: JournalTrim, group: TheGroup) -> Point:
    """Gives up the past before a point, whole segments at a time and never past an open image. Returns the new edge."""
    return group.trim(body.to)
