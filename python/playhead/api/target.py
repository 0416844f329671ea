"""What hosts see: targets, LUNs and sessions."""

from fastapi import APIRouter

from playhead.api.state import TheAppliance
from playhead.resources import Redirection, Session, Target

router = APIRouter(tags=["target"])


@router.get("/targets")
def list_targets(appliance: TheAppliance) -> list[Target]:
    """Everything exported, by IQN, with the sessions on it."""
    return appliance.targets()


@router.get("/targets/{iqn}")
def show_target(iqn: str, appliance: TheAppliance) -> Target:
    """One target."""
    return appliance.target(iqn)


@router.put("/targets/{iqn}/redirection")
def redirect_target(iqn: str, body: Redirection, appliance: TheAppliance) -> Target:
    """Sends those who log in from now on to another portal. Sessions that exist stay."""
    appliance.access.redirect(iqn, body)
    return appliance.target(iqn)


@router.delete("/targets/{iqn}/redirection")
def end_target_redirection(iqn: str, appliance: TheAppliance) -> Target:
    """Serves those who log in here again."""
    appliance.access.redirect(iqn, None)
    return appliance.target(iqn)


@router.get("/sessions")
def list_sessions(appliance: TheAppliance) -> list[Session]:
    """Every iSCSI session and NBD connection, discovery included."""
    return appliance.sessions()
