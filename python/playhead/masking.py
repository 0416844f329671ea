"""LUN masking: which disks each initiator sees, under which number, and whether it may write.

A disk that is mapped is seen by the hosts it is mapped to and by nobody else; one that is not, by every initiator under its own number, unless the
node hides such volumes. An image's disk without mappings of its own has those of its volume: what a host may not see now it may not see
as of yesterday either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from playhead.host import HostRow
from playhead.host import Mapping as HostMapping

NativeMasking = dict[tuple[str, int], list[tuple[str, int, bool]]]
"""(target, its number there) -> who sees it: (initiator, under which number, read-only). Not in it: everyone, under its own number."""


@dataclass(frozen=True)
class Place:
    """Where a disk is exported: its target and its own number there."""

    path: str
    iqn: str
    number: int

    @property
    def volume(self) -> str:
        """The path of the volume that it is, or shows."""
        parts = self.path.split("/")
        return f"{parts[0]}/{parts[-1]}"


class Masking:
    """What is seen by whom, at one moment."""

    def __init__(
        self, places: Iterable[Place], hosts: Iterable[HostRow], mappings: Iterable[HostMapping], *, hidden: bool
    ) -> None:
        self._places = sorted(places, key=lambda place: (place.iqn, place.number))
        self._members = {host.name: host.initiators for host in hosts}
        self._hidden = hidden
        self._mappings: dict[str, dict[str, HostMapping]] = {}
        for mapping in mappings:
            self._mappings.setdefault(mapping.path, {})[mapping.host] = mapping

    def of(self, place: Place) -> list[HostMapping] | None:
        """The mappings that decide who sees a disk, its own or its volume's; None: it has none."""
        found = self._mappings.get(place.path) or self._mappings.get(place.volume)
        return list(found.values()) if found else None

    def hosts(self, place: Place) -> list[str] | None:
        """The names of the hosts that see a disk; None: every initiator does."""
        mappings = self.of(place)
        if mappings is not None:
            return sorted(mapping.host for mapping in mappings)
        return [] if self._hidden else None

    def native(self) -> NativeMasking:
        """The table for the front end. Where two disks claim one number for an initiator, the one that has a mapping of its own wins over
        one that has its volume's.
        """
        table: NativeMasking = {}
        taken: set[tuple[str, str, int]] = set()
        for place in sorted(self._places, key=lambda place: place.path not in self._mappings):
            mappings = self.of(place)
            if mappings is None and not self._hidden:
                continue
            seen = table.setdefault((place.iqn, place.number), [])
            for mapping in mappings or ():
                for initiator in self._members.get(mapping.host, ()):
                    if (place.iqn, initiator, mapping.lun) not in taken:
                        taken.add((place.iqn, initiator, mapping.lun))
                        seen.append((initiator, mapping.lun, mapping.read_only))
        return table

    def view(self, host: str) -> dict[tuple[str, int], list[Place]]:
        """What a host finds: (target, number) -> disk; more than one where two stand in each other's way."""
        found: dict[tuple[str, int], list[Place]] = {}
        for place in self._places:
            mappings = self.of(place)
            number = place.number
            if mappings is not None:
                mine = next((mapping for mapping in mappings if mapping.host == host), None)
                if mine is None:
                    continue
                number = mine.lun
            elif self._hidden:
                continue
            found.setdefault((place.iqn, number), []).append(place)
        return found

    def taken(self, host: str, path: str) -> dict[int, Place]:
        """The numbers at which a host finds other disks, wherever a mapping of `path` to it would count."""
        moved = [
            place
            for place in self._places
            if path == place.path or (path == place.volume and place.path not in self._mappings)
        ]
        targets = {place.iqn for place in moved}
        found: dict[int, Place] = {}
        # Production comes first: it is what is named where an image stands in the way too.
        for (iqn, number), places in sorted(self.view(host).items()):
            for place in places:
                if iqn in targets and place not in moved:
                    found.setdefault(number, place)
        return found

    def shadowed(self, place: Place) -> list[tuple[str, int, Place]]:
        """Hosts that should find a disk without a mapping of its own, but under its number have another: (host, number, the other)."""
        if place.path in self._mappings:
            return []
        return [
            (host, number, other)
            for host in self._members
            for (iqn, number), places in self.view(host).items()
            if iqn == place.iqn and place in places
            for other in places
            if other != place
        ]
