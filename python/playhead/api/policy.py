"""Offload policy: which offloads hosts get, by appliance, host, initiator and LUN."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from playhead.api.state import TheAppliance
from playhead.policy import OFFLOADS
from playhead.resources import OffloadPolicy, PolicyInForce

router = APIRouter(tags=["policy"])

LunOrAny = Annotated[
    str | None, Query(max_length=256, description="GROUP/VOLUME, or GROUP/IMAGE/VOLUME; without it: any")
]
InitiatorOrAny = Annotated[str | None, Query(max_length=256, description="An initiator's name; without it: any")]
HostOrAny = Annotated[str | None, Query(max_length=256, description="A host's name; without it: any")]


def _described(schema: dict[str, Any]) -> None:
    """The words that are allowed. They are checked by us, so that a refusal says why."""
    schema["propertyNames"] = {"enum": list(OFFLOADS)}
    schema["additionalProperties"] = {"type": "string", "enum": ["support", "reject"]}


class PolicySet(BaseModel):
    """Decisions at one scope; what is left out of the scope is any."""

    model_config = ConfigDict(extra="forbid")
    lun: str | None = Field(default=None, max_length=256)
    initiator: str | None = Field(default=None, max_length=256)
    host: str | None = Field(default=None, max_length=256)
    offloads: dict[str, str] = Field(json_schema_extra=_described, min_length=1, max_length=len(OFFLOADS) + 1)


@router.get("/policy")
def show_policy(appliance: TheAppliance) -> OffloadPolicy:
    """All rules, widest first."""
    return OffloadPolicy(rules=appliance.access.rules())


@router.patch("/policy")
def set_policy(body: PolicySet, appliance: TheAppliance) -> OffloadPolicy:
    """Supports or rejects offloads at one scope, at once and for good; the other rules stay."""
    rules = appliance.access.set_rules(body.lun, body.initiator, body.host, body.offloads)
    return OffloadPolicy(rules=rules)


@router.delete("/policy")
def reset_policy(
    appliance: TheAppliance,
    lun: LunOrAny = None,
    initiator: InitiatorOrAny = None,
    host: HostOrAny = None,
    offload: Annotated[list[str] | None, Query(max_length=16, description="Only these; without it: all")] = None,
    everywhere: Annotated[bool, Query(description="At every scope rather than at one")] = False,
) -> OffloadPolicy:
    """Drops the rules at exactly one scope (none given: the appliance's own), or everywhere."""
    return OffloadPolicy(rules=appliance.access.reset_rules(lun, initiator, host, offload or (), everywhere))


@router.get("/policy/in-force")
def show_policy_in_force(
    appliance: TheAppliance, lun: LunOrAny = None, initiator: InitiatorOrAny = None, host: HostOrAny = None
) -> PolicyInForce:
    """What somebody gets of a LUN, which rule decides it, and what it has led to."""
    return appliance.access.in_force(lun, initiator, host)
