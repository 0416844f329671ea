"""What hosts see: targets, LUNs and sessions."""

from fastapi import APIRouter

from playhead.api.state import TheAppliance
from playhead.resources import Session, Target

router = APIRouter(tags=["target"])


@router.get("/targets")
def list_targets(appliance: TheAppliance) -> list[Target]:
    """Everything exported, by IQN, with the sessions on it."""
    return appliance.targets()


@router.get("/sessions")
def list_sessions(appliance: TheAppliance) -> list[Session]:
    """Every iSCSI session and NBD connection, discovery included."""
    return appliance.sessions()
