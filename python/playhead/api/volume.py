"""Volumes of production."""

from typing import Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from playhead.api.state import TheAppliance, TheGroup
from playhead.resources import Volume

router = APIRouter(tags=["volume"])


class FabricSource(BaseModel):
    """A LUN of an array."""

    model_config = ConfigDict(extra="forbid")
    array: str
    target: str = Field(max_length=230)
    lun: int = Field(ge=0, le=16383)
    identity: Literal["own", "new"] = Field(
        default="own", description="own: hosts find the disk under the array's names; new: under the volume's"
    )


class VolumeCreate(BaseModel):
    """A new volume: sparse, of a size; or adopted, from a path on the appliance; or following a LUN of another array."""

    model_config = ConfigDict(extra="forbid")
    name: str
    size_bytes: int | None = Field(default=None, description="Of a sparse volume: a multiple of 512, up to 64 TiB")
    adopt_path: str | None = Field(default=None, description="A raw image or block device to take over in place")
    fabric: FabricSource | None = Field(default=None, description="Production stays on another array")

    physical_block_bytes: Literal[512, 4096] = Field(
        default=4096, description="What hosts are told is a physical block; 512 for those that want blocks to be native"
    )

    @model_validator(mode="after")
    def _one_of_all(self) -> Self:
        if sum(given is not None for given in (self.size_bytes, self.adopt_path, self.fabric)) != 1:
            raise ValueError("give exactly one of size_bytes, adopt_path and fabric")
        return self


@router.get("/volumes")
def list_all_volumes(appliance: TheAppliance) -> list[Volume]:
    """The volumes of all groups in service."""
    return appliance.volumes()


@router.get("/groups/{group}/volumes")
def list_volumes(group: TheGroup) -> list[Volume]:
    """The group's volumes."""
    return group.volumes.all()


@router.post("/groups/{group}/volumes", status_code=201)
def create_volume(body: VolumeCreate, group: TheGroup, appliance: TheAppliance) -> Volume:
    """Adds a volume and exports it."""
    if body.fabric is not None:
        fabric = body.fabric
        return appliance.protect_lun(group, body.name, fabric.array, fabric.target, fabric.lun, fabric.identity)
    if body.adopt_path is not None:
        return group.volumes.adopt(body.name, body.adopt_path, body.physical_block_bytes)
    return group.volumes.create(body.name, body.size_bytes or 0, body.physical_block_bytes)


@router.get("/groups/{group}/volumes/{volume}")
def show_volume(volume: str, group: TheGroup) -> Volume:
    """One volume."""
    return group.volumes.find(volume)


class VolumeChange(BaseModel):
    """What can be changed of a volume; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    read_only: bool | None = Field(default=None, description="Hosts may only read it")
    ublk: bool | None = Field(
        default=None, description="It is a block device of the appliance's own host too; one that is mounted stays"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.read_only is None and self.ublk is None:
            raise ValueError("give read_only or ublk")
        return self


@router.patch("/groups/{group}/volumes/{volume}")
def change_volume(volume: str, body: VolumeChange, group: TheGroup) -> Volume:
    """Write-protects a volume for every host, or lets them write again; makes it a block device of the appliance's host, or no longer."""
    if body.read_only is not None:
        group.volumes.set_read_only(volume, body.read_only)
    if body.ublk is not None:
        group.volumes.set_ublk(volume, body.ublk)
    return group.volumes.find(volume)


class VolumeAttach(BaseModel):
    """Production that lives elsewhere: a file or block device of the appliance's host."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(description="Absolute; it stays where it is and is used through the volume from now on")
    physical_block_bytes: Literal[512, 4096] = 4096


@router.post("/groups/{group}/volumes/{volume}/attach", status_code=201)
def attach_volume(volume: str, body: VolumeAttach, group: TheGroup) -> Volume:
    """Protects a file or block device: the volume, a new one, is its replica. Also one whose production was lost."""
    return group.volumes.attach(volume, body.path, body.physical_block_bytes)


class VolumeDetach(BaseModel):
    """What becomes of a volume whose production is let go of."""

    model_config = ConfigDict(extra="forbid")
    keep_history: bool = Field(description="The volume stays, read-only, with its past; or goes")


@router.post("/groups/{group}/volumes/{volume}/detach", status_code=204)
def detach_volume(volume: str, body: VolumeDetach, group: TheGroup) -> None:
    """Lets go of production, which is whole where it is."""
    group.volumes.detach(volume, body.keep_history)


@router.post("/groups/{group}/volumes/{volume}/resync", status_code=202)
def resync_volume(volume: str, group: TheGroup) -> Volume:
    """Compares all of a volume with its production, while hosts work."""
    return group.volumes.resync(volume)


@router.delete("/groups/{group}/volumes/{volume}", status_code=204)
def delete_volume(volume: str, group: TheGroup, delete_base: bool) -> None:
    """Takes a volume out of its group. Its base stays where it is or goes too, as the caller says."""
    group.volumes.delete(volume, delete_base)
