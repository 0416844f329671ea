"""Hosts: initiators, their credentials, and what is mapped to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from playhead.access import ChapRequest
from playhead.api.state import TheAppliance
from playhead.catalogue import MAX_LUNS
from playhead.host import MAX_INITIATORS
from playhead.resources import ChapUser, Host, HostMapping, Unmapped

router = APIRouter(tags=["host"])


class HostCreate(BaseModel):
    """A new host."""

    model_config = ConfigDict(extra="forbid")
    name: str
    initiators: list[str] = Field(default_factory=list, max_length=MAX_INITIATORS)


class InitiatorAdd(BaseModel):
    """An initiator, by its iSCSI name."""

    model_config = ConfigDict(extra="forbid")
    initiator: str = Field(max_length=256)


class ChapSet(BaseModel):
    """Credentials. Secrets are never shown again."""

    model_config = ConfigDict(extra="forbid")
    user: str = Field(max_length=255)
    secret: SecretStr = Field(max_length=255, description="12 to 255 bytes; Windows takes 12 to 16")
    mutual_user: str | None = Field(default=None, max_length=255, description="What the target proves itself with")
    mutual_secret: SecretStr | None = Field(default=None, max_length=255)

    def request(self) -> ChapRequest:
        mutual = self.mutual_secret.get_secret_value() if self.mutual_secret is not None else None
        return ChapRequest(self.user, self.secret.get_secret_value(), self.mutual_user, mutual)


class HostMap(BaseModel):
    """A LUN for a host."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(max_length=256, description="GROUP/VOLUME, or GROUP/IMAGE/VOLUME")
    lun: int | None = Field(
        default=None, ge=0, lt=MAX_LUNS, description="Under which number; null: its own if that is free, else another"
    )
    read_only: bool = False


class DiscoveryAuth(BaseModel):
    """What is asked of those who ask which targets there are."""

    chap: ChapUser | None = Field(description="Null: nothing")


@router.get("/hosts")
def list_hosts(appliance: TheAppliance) -> list[Host]:
    """All hosts."""
    return appliance.access.hosts()


@router.post("/hosts", status_code=201)
def create_host(body: HostCreate, appliance: TheAppliance) -> Host:
    """A new host. It sees what is not mapped to other hosts."""
    return appliance.access.create_host(body.name, body.initiators)


@router.get("/hosts/{host}")
def show_host(host: str, appliance: TheAppliance) -> Host:
    """One host."""
    return appliance.access.host(host)


@router.delete("/hosts/{host}")
def delete_host(host: str, appliance: TheAppliance, force: bool = False) -> Unmapped:
    """Forgets a host with its credentials and offload rules. `force`: also one that has LUNs mapped to it."""
    return Unmapped(warnings=appliance.access.delete_host(host, force))


@router.post("/hosts/{host}/initiators")
def add_host_initiator(host: str, body: InitiatorAdd, appliance: TheAppliance) -> Host:
    """Adds an initiator, at once."""
    return appliance.access.add_initiator(host, body.initiator)


@router.delete("/hosts/{host}/initiators/{initiator}")
def remove_host_initiator(host: str, initiator: str, appliance: TheAppliance) -> Host:
    """Takes an initiator away; its sessions lose what is mapped to the host, at once."""
    return appliance.access.remove_initiator(host, initiator)


@router.put("/hosts/{host}/chap")
def set_host_chap(host: str, body: ChapSet, appliance: TheAppliance) -> Host:
    """What its initiators prove themselves with from their next login on."""
    return appliance.access.set_chap(host, body.request())


@router.delete("/hosts/{host}/chap")
def clear_host_chap(host: str, appliance: TheAppliance) -> Host:
    """Forgets the credentials."""
    return appliance.access.set_chap(host, None)


@router.post("/hosts/{host}/mappings")
def map_lun(host: str, body: HostMap, appliance: TheAppliance) -> HostMapping:
    """Maps a LUN to a host, or changes how it is mapped. From now on only hosts that it is mapped to see it."""
    return appliance.access.map(host, body.path, body.lun, body.read_only)


@router.delete("/hosts/{host}/mappings")
def unmap_lun(host: str, path: Annotated[str, Query(max_length=256)], appliance: TheAppliance) -> Unmapped:
    """Takes a LUN from a host; its sessions lose it at once."""
    return Unmapped(warnings=appliance.access.unmap(host, path))


@router.get("/discovery")
def show_discovery(appliance: TheAppliance) -> DiscoveryAuth:
    """Who may ask which targets there are."""
    return DiscoveryAuth(chap=appliance.access.discovery())


@router.put("/discovery/chap")
def set_discovery_chap(body: ChapSet, appliance: TheAppliance) -> DiscoveryAuth:
    """Asks everybody who discovers targets for these credentials."""
    return DiscoveryAuth(chap=appliance.access.set_discovery(body.request()))


@router.delete("/discovery/chap")
def clear_discovery_chap(appliance: TheAppliance) -> DiscoveryAuth:
    """Asks nobody any longer."""
    return DiscoveryAuth(chap=appliance.access.set_discovery(None))
