"""What routers get from the application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from playhead.appliance import Appliance
from playhead.errors import PlayheadError
from playhead.group import Group


def _appliance(request: Request) -> Appliance:
    appliance = request.app.state.appliance
    if not isinstance(appliance, Appliance):
        raise PlayheadError("stopping", "the service is not running", "start it")
    return appliance


TheAppliance = Annotated[Appliance, Depends(_appliance)]


def _group(group: str, appliance: TheAppliance) -> Group:
    return appliance.group(group)


TheGroup = Annotated[Group, Depends(_group)]
"""The group named in the path."""
