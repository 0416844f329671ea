"""Playhead as the target of the suite: a group of volumes for every run, on a running service."""

from __future__ import annotations

from tests.appliance import Appliance

from .places import SIZE_BYTES, Place


class PlayheadTarget:
    """Volumes of a group of their own, so that several runs may go on at once, resets and all."""

    name = "Playhead"

    def __init__(self, appliance: Appliance, group: str) -> None:
        self._appliance = appliance
        size = str(SIZE_BYTES)
        appliance.cli("group", "create", group)
        plain = appliance.cli("volume", "create", f"{group}/lun", "--size", size)["iscsi_url"]
        self._urls = {Place.PLAIN: [plain], Place.TWO_PORTALS: [plain, plain]}
        appliance.cli("bookmark", "create", f"{group}/empty")
        image = appliance.cli("image", "open", f"{group}/past", "--at", "empty")
        self._urls[Place.READ_ONLY] = [image["volumes"][0]["iscsi_url"]]

    def urls(self, place: Place) -> list[str]:
        """The addresses for the suite's command line."""
        return self._urls.get(place, self._urls[Place.PLAIN])
