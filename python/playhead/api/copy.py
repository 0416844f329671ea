"""Copies of a group on other disks."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from playhead.api.state import TheAppliance, TheGroup
from playhead.resources import Copy, Group, Job

router = APIRouter(tags=["copy"])

MAX = (1 << 63) - 1


class CopyAdd(BaseModel):
    """A new copy, and how much past it keeps; what is not given is as the group's policy has it."""

    model_config = ConfigDict(extra="forbid")
    name: str
    directory: str = Field(max_length=4096, description="An absolute path, on another disk; made if it is not there")
    window_ns: int | None = Field(default=None, ge=0, le=MAX)
    limit_bytes: int | None = Field(default=None, ge=0, le=MAX)


class CopyChange(BaseModel):
    """What is to be different. Limits that are not given stay; null lifts one."""

    model_config = ConfigDict(extra="forbid")
    paused: bool | None = None
    window_ns: int | None = Field(default=None, ge=0, le=MAX)
    limit_bytes: int | None = Field(default=None, ge=0, le=MAX)


class CopyPromote(BaseModel):
    """How a copy becomes production."""

    model_config = ConfigDict(extra="forbid")
    while_serving: bool = Field(
        default=False, description="Also while production is in service: its hosts are taken to the copy"
    )
    allow_inconsistent: bool = Field(
        default=False,
        description="Also if its newest points lie where a volume was being resynchronised with its production",
    )


@router.get("/copies")
def list_all_copies(appliance: TheAppliance) -> list[Copy]:
    """The copies of all groups."""
    return appliance.copies()


@router.get("/groups/{group}/copies")
def list_copies(group: TheGroup) -> list[Copy]:
    """The group's copies."""
    return group.copies.all()


@router.post("/groups/{group}/copies", status_code=201)
def add_copy(body: CopyAdd, group: TheGroup) -> Copy:
    """Adds a copy. Its first synchronisation begins at once, while hosts write."""
    window_ns = body.window_ns if "window_ns" in body.model_fields_set else group.row.window_ns
    limit_bytes = body.limit_bytes if "limit_bytes" in body.model_fields_set else group.row.limit_bytes
    return group.copies.add(body.name, body.directory, window_ns, limit_bytes)


@router.get("/groups/{group}/copies/{copy}")
def show_copy(copy: str, group: TheGroup) -> Copy:
    """One copy: its state and its lag."""
    return group.copies.show(copy)


@router.patch("/groups/{group}/copies/{copy}")
def change_copy(copy: str, body: CopyChange, group: TheGroup) -> Copy:
    """Pauses or resumes a copy, or says how much past it keeps."""
    now, given = group.copies.show(copy), body.model_fields_set
    return group.copies.change(
        copy,
        body.paused,
        body.window_ns if "window_ns" in given else now.window_ns,
        body.limit_bytes if "limit_bytes" in given else now.limit_bytes,
        policy=bool(given & {"window_ns", "limit_bytes"}),
    )


@router.delete("/groups/{group}/copies/{copy}", status_code=204)
def remove_copy(copy: str, group: TheGroup, delete_data: bool = False) -> None:
    """Ends a copy. Its files stay, unless `delete_data`."""
    group.copies.remove(copy, delete_data)


@router.post("/groups/{group}/copies/{copy}/verify", status_code=202)
def verify_copy(copy: str, group: TheGroup, appliance: TheAppliance) -> Job:
    """Compares a copy with production at one point, by hashes. The verdict is the job's result."""
    path = group.copies.show(copy).path
    return appliance.jobs.start("copy verify", path, lambda progress: group.copies.verify(copy, progress))


@router.post("/groups/{group}/copies/{copy}/promote")
def promote_copy(copy: str, body: CopyPromote, group: TheGroup) -> Group:
    """Makes a copy production: the same targets, LUN numbers and identities, on the copy's journal and base."""
    return group.promote_copy(copy, while_serving=body.while_serving, allow_inconsistent=body.allow_inconsistent)
