"""Long work: progress, result, cancelling."""

from fastapi import APIRouter

from playhead.api.state import TheAppliance
from playhead.resources import Job

router = APIRouter(tags=["job"])


@router.get("/jobs")
def list_jobs(appliance: TheAppliance) -> list[Job]:
    """All jobs since the service started, oldest first."""
    return appliance.jobs.list()


@router.get("/jobs/{job}")
def show_job(job: str, appliance: TheAppliance) -> Job:
    """One job."""
    return appliance.jobs.get(job).resource()


@router.delete("/jobs/{job}")
def cancel_job(job: str, appliance: TheAppliance) -> Job:
    """Asks a job to stop, which it does at its next progress."""
    return appliance.jobs.cancel(job)
