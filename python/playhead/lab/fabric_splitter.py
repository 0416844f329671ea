"""The fabric-based splitter: Playhead between hosts and another array, which is a second Playhead, or tgtd."""

from __future__ import annotations

from pathlib import Path

from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, LunPlace, Treatment
from playhead.lab.playhead_array import GROUP, PlayheadArray, wait_until_synchronised
from playhead.lab.service import Service
from playhead.lab.tgtd import Tgtd

ARRAY = "san"


class FabricSplitter(PlayheadArray):
    """A service between hosts and a second service, which plays the array."""

    splitter, array = "fabric", "a second Playhead"

    def __init__(self, folder: Path, lun_bytes: int) -> None:
        self._places = self._start_array(folder, lun_bytes)
        try:
            super().__init__(folder, lun_bytes)
        except BaseException:
            self._stop_array()
            raise

    def _start_array(self, folder: Path, lun_bytes: int) -> dict[str, LunPlace]:
        self._far = Service(folder.with_name("far"))
        api = self._far.api
        api.post("groups", body={"name": "far", "policy": {}})
        places = {}
        for name in (SOURCE, TARGET):
            disk = api.post("groups", "far", "volumes", body={"name": name, "size_bytes": lun_bytes})
            places[name] = LunPlace(self._far.iscsi, disk["iqn"], disk["lun"])
        return places

    def _stop_array(self) -> None:
        self._far.close()

    def _make(self, _folder: Path, name: str, _lun_bytes: int) -> None:
        place, api = self._places[name], self.service.api
        if name == SOURCE:
            api.post("arrays", body={"name": ARRAY, "portals": [place.address]})
        fabric = {"array": ARRAY, "target": place.target, "lun": place.lun}
        api.post("groups", GROUP, "volumes", body={"name": name, "fabric": fabric})
        wait_until_synchronised(self, name)

    def medium(self, name: str) -> LunPlace:
        return self._places[name]

    def replica(self, name: str) -> LunPlace:
        # What an array makes of UNMAP is its own affair, so it is read back: the replica follows a moment later, and says so.
        wait_until_synchronised(self, name)
        return super().replica(name)

    def impossible(self, primitive: Primitive, treatment: Treatment) -> str | None:
        if treatment is Treatment.IGNORE:
            return f"no setting of the splitter makes it pass {primitive.value} on unseen"
        return None

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._stop_array()


class FabricBeforeTgtd(FabricSplitter):
    """The same before tgtd, which nobody here has written."""

    array = "tgtd"

    def _start_array(self, folder: Path, lun_bytes: int) -> dict[str, LunPlace]:
        self._tgtd = Tgtd(folder.with_name("tgtd"), [SOURCE, TARGET], lun_bytes)
        return self._tgtd.places

    def _stop_array(self) -> None:
        self._tgtd.close()

    def impossible(self, primitive: Primitive, treatment: Treatment) -> str | None:
        if primitive is Primitive.ATS and treatment is Treatment.SUPPORT:
            return "tgtd advertises COMPARE AND WRITE and does not know it"
        if primitive is Primitive.XCOPY and treatment is Treatment.SUPPORT:
            return "tgtd does not know EXTENDED COPY"
        return super().impossible(primitive, treatment)
