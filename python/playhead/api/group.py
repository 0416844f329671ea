"""Consistency groups."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from playhead.api.state import TheAppliance, TheGroup
from playhead.resources import Group, Job, Point, Policy, Rewind

router = APIRouter(tags=["group"])


class GroupCreate(BaseModel):
    """A new group."""

    model_config = ConfigDict(extra="forbid")
    name: str
    policy: Policy = Field(default_factory=Policy)


class GroupRewind(BaseModel):
    """Where production is to go back to."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(description="A point: LSN, time, span back from now, bookmark")


@router.get("/groups")
def list_groups(appliance: TheAppliance) -> list[Group]:
    """All groups, in service or failed."""
    return [group.resource() for group in appliance.groups()]


@router.post("/groups", status_code=201)
def create_group(body: GroupCreate, appliance: TheAppliance) -> Group:
    """A new, empty group with a journal of its own."""
    return appliance.create_group(body.name, body.policy).resource()


@router.get("/groups/{group}")
def show_group(group: TheGroup) -> Group:
    """One group."""
    return group.resource()


@router.delete("/groups/{group}", status_code=204)
def delete_group(group: TheGroup, appliance: TheAppliance, force: bool = False) -> None:
    """Removes a group that has no volumes left. `force`: also one that is not in service, whose journal is then lost."""
    appliance.delete_group(group.row.name, force)


@router.post("/groups/{group}/retry")
def retry_group(group: TheGroup) -> Group:
    """Opens a failed group again."""
    group.retry()
    return group.resource()


@router.get("/groups/{group}/head")
def show_group_head(group: TheGroup) -> Point:
    """The newest point, all acknowledged writes included."""
    return group.head()


@router.get("/groups/{group}/rewinds")
def list_group_rewinds(group: TheGroup) -> list[Rewind]:
    """Rewinds that the window still holds, oldest first."""
    return group.rewinds()


@router.post("/groups/{group}/rewind")
def rewind_group(body: GroupRewind, group: TheGroup) -> Rewind:
    """Production goes back to a point: no data moves, nothing is lost, and it can be undone."""
    return group.rewind(body.to)


@router.post("/groups/{group}/undo")
def undo_group_rewind(group: TheGroup) -> Rewind:
    """Undoes the last rewind."""
    return group.undo_rewind()


@router.put("/groups/{group}/policy")
def set_group_policy(body: Policy, group: TheGroup) -> Group:
    """How much past the group keeps from now on."""
    return group.set_policy(body)


@router.post("/groups/{group}/settle", status_code=202)
def settle_group(group: TheGroup, appliance: TheAppliance) -> Job:
    """Brings the bases up to date, so that the plain files alone are the current data. The window's past is given up."""

    def work(progress: Any) -> None:
        group.settle(progress)

    group.head()
    return appliance.jobs.start("settle", group.row.name, work)
