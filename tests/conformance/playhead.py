"""Playhead as the target of the suite: a group of volumes for every run, on a running service."""

from __future__ import annotations

from tests.appliance import Appliance

from .places import HUGE_BYTES, SECRET, SIZE_BYTES, USER, Place

TWO_PORTALS = ("--iscsi", "127.0.0.1:0", "--iscsi", "127.0.0.2:0")
"""Options of a service whose targets are reached by two portals."""


class PlayheadTarget:
    """Volumes of a group of their own, so that several runs may go on at once, resets and all."""

    name = "Playhead"

    def __init__(self, appliance: Appliance, group: str) -> None:
        self._appliance = appliance
        size = str(SIZE_BYTES)
        appliance.cli("group", "create", group)
        plain = appliance.cli("volume", "create", f"{group}/lun", "--size", size)["iscsi_url"]
        portals = appliance.ready["iscsi_portals"]
        by_another_portal = plain.replace(portals[0], portals[-1])
        self._arguments = {Place.PLAIN: [plain], Place.TWO_PORTALS: [plain, by_another_portal]}
        appliance.cli("bookmark", "create", f"{group}/empty")
        image = appliance.cli("image", "open", f"{group}/past", "--at", "empty")
        self._arguments[Place.READ_ONLY] = [image["volumes"][0]["iscsi_url"]]

        self._arguments[Place.CHAP] = self._chap(group, plain)

        native = appliance.cli("volume", "create", f"{group}/native", "--size", size, "--physical-block", "512")
        self._arguments[Place.NATIVE] = [native["iscsi_url"]]
        fixed = appliance.cli("volume", "create", f"{group}/not-thin", "--size", size)
        appliance.cli("policy", "set", "unmap=reject", "--lun", f"{group}/not-thin")
        self._arguments[Place.NO_UNMAP] = [fixed["iscsi_url"]]
        # In a target of its own: the test resets the whole of it while others run.
        appliance.cli("group", "create", f"{group}-huge")
        huge = appliance.cli("volume", "create", f"{group}-huge/lun", "--size", str(HUGE_BYTES))
        self._arguments[Place.HUGE] = [huge["iscsi_url"]]

    def _chap(self, name: str, url: str) -> list[str]:
        """Credentials for initiators of other names than the suite's own, who must prove nothing elsewhere."""
        initiators = [f"iqn.2026-11.example.conformance:{name}-{which}" for which in ("one", "other")]
        self._appliance.cli("host", "create", name, *(word for iqn in initiators for word in ("--initiator", iqn)))
        secret = self._appliance.store.with_name(f"{name}.secret")
        secret.write_text(SECRET)
        secret.chmod(0o600)
        self._appliance.cli("host", "chap", name, "--user", USER, "--secret-file", str(secret))
        names = [f"--initiator-name={initiators[0]}", f"--initiator-name-2={initiators[1]}"]
        return [*names, url.replace("iscsi://", f"iscsi://{USER}%{SECRET}@")]

    def arguments(self, place: Place) -> list[str]:
        """The end of the suite's command line."""
        return self._arguments.get(place, self._arguments[Place.PLAIN])
