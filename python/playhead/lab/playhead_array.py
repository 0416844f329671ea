"""Playhead as the array: production is a group's own LUN, its replica an image of the head, which is what the journal says and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

from playhead.errors import PlayheadError
from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, Journaled, LunPlace, Treatment
from playhead.lab.service import Service

GROUP = "lab"
SYNCHRONISED_WITHIN_S = 120.0
POLL_S = 0.05


class PlayheadArray:
    """A service of its own with both LUNs in one group. Arrangements in which a service splits what is elsewhere derive from it."""

    splitter, array = "array", "Playhead"

    def __init__(self, folder: Path, lun_bytes: int) -> None:
        self.service = Service(folder)
        self._images = 0
        try:
            self.service.api.post("groups", body={"name": GROUP, "policy": {}})
            for name in (SOURCE, TARGET):
                self._make(folder, name, lun_bytes)
        except BaseException:
            self.service.close()
            raise

    def _make(self, _folder: Path, name: str, lun_bytes: int) -> None:
        self.service.api.post("groups", GROUP, "volumes", body={"name": name, "size_bytes": lun_bytes})

    def impossible(self, primitive: Primitive, treatment: Treatment) -> str | None:
        if treatment is Treatment.IGNORE:
            return f"no setting of Playhead makes it ignore {primitive.value}"
        return None

    def treat(self, primitive: Primitive, treatment: Treatment) -> None:
        offloads = {each.value: "support" for each in Primitive} | {primitive.value: treatment.value}
        self.service.api.patch("policy", body={"offloads": offloads})

    def production(self, name: str) -> LunPlace:
        disk = self.service.api.get("groups", GROUP, "volumes", name)
        return LunPlace(self.service.iscsi, disk["iqn"], disk["lun"])

    def medium(self, name: str) -> LunPlace:
        return self.production(name)

    def nbd_url(self, name: str) -> str | None:
        url: str | None = self.service.api.get("groups", GROUP, "volumes", name)["nbd_url"]
        return url

    def replica(self, name: str) -> LunPlace:
        if self._images:
            self.service.api.delete("groups", GROUP, "images", f"look-{self._images}")
        self._images += 1
        body = {"name": f"look-{self._images}", "at": "head", "writable": False}
        image = self.service.api.post("groups", GROUP, "images", body=body)
        disk = next(disk for disk in image["volumes"] if disk["name"] == name)
        return LunPlace(self.service.iscsi, disk["iqn"], disk["lun"])

    def journaled(self) -> Journaled:
        numbers = self.service.api.get("groups", GROUP, "journal")
        return Journaled(numbers["records"], numbers["bytes_written"])

    def served(self, primitive: Primitive) -> tuple[int, int]:
        found = self.service.api.get("policy", "in-force", lun=f"{GROUP}/{TARGET}")["offloads"]
        return next((each["served"], each["rejected"]) for each in found if each["offload"] == primitive.value)

    def close(self) -> None:
        complaints = self.service.complaints()
        self.service.close()
        if complaints:
            raise PlayheadError("internal", f"the laboratory's service complained: {complaints[0]}")


def wait_until_synchronised(arrangement: PlayheadArray, name: str) -> None:
    """Until the volume says so."""
    end = time.monotonic() + SYNCHRONISED_WITHIN_S
    while True:
        found = arrangement.service.api.get("groups", GROUP, "volumes", name)["splitter"]
        if found["state"] == "synchronised":
            return
        if time.monotonic() > end:
            raise PlayheadError("internal", f"{name} stays {found['state']}: {found['reason']}")
        time.sleep(POLL_S)
