"""Images: a group's volumes as of one point, exported like volumes."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from playhead.api.state import TheAppliance, TheGroup
from playhead.resources import Image

router = APIRouter(tags=["image"])


class ImageOpen(BaseModel):
    """Which moment to open."""

    model_config = ConfigDict(extra="forbid")
    name: str
    at: str = Field(default="head", max_length=256, description="A point: LSN, time, span back from now, bookmark")
    writable: bool = Field(default=False, description="Takes writes, and leaves history untouched")
    force: bool = Field(default=False, description="Also where a volume was being resynchronised with its production")
    copy_name: str | None = Field(default=None, description="Read from this copy, and written there")


@router.get("/images")
def list_all_images(appliance: TheAppliance) -> list[Image]:
    """The open images of all groups in service."""
    return appliance.images()


@router.get("/groups/{group}/images")
def list_images(group: TheGroup) -> list[Image]:
    """The group's open images."""
    return group.images.all()


@router.post("/groups/{group}/images", status_code=201)
def open_image(body: ImageOpen, group: TheGroup) -> Image:
    """Opens an image and exports each of its volumes. It stays open over restarts, until it is closed."""
    return group.images.open(body.name, body.at, body.writable, force=body.force, copy=body.copy_name)


@router.get("/groups/{group}/images/{image}")
def show_image(image: str, group: TheGroup) -> Image:
    """One open image."""
    return group.images.find(image)


@router.delete("/groups/{group}/images/{image}", status_code=204)
def close_image(image: str, group: TheGroup) -> None:
    """Closes an image. What was written to a writable one is discarded."""
    group.images.close(image)
