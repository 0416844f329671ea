"""One page about everything."""

from fastapi import APIRouter

from playhead.api.state import TheAppliance
from playhead.resources import Status

router = APIRouter(tags=["status"])


@router.get("/status")
def show_status(appliance: TheAppliance) -> Status:
    """The service, its groups, windows, lag, space, sessions, jobs and alerts."""
    return appliance.status()
