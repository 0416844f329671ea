"""An array of 2010: plain files behind a SCSI device server, with a splitter in the array that feeds a replica, and can be told to miss offloads.

It runs in this process, on data that it makes itself in a folder that bears the laboratory's mark (`LabArray`): there is no way to it from a service.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from playhead import _native
from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, Journaled, LunPlace, Treatment

IQN = "iqn.2026-11.io.playhead.lab:array"
REPLICA_IQN = "iqn.2026-11.io.playhead.lab:replica"
BLOCK_BYTES = 512
PATIENCE_S = 10.0


MISSED = {primitive: [primitive.value] for primitive in Primitive}
# A splitter that misses WRITE SAME misses it with the UNMAP bit too, which the device server passes on as an unmap.
MISSED[Primitive.WRITE_SAME] = [Primitive.WRITE_SAME.value, Primitive.UNMAP.value]


class MissingArray:
    """Both LUNs as files, with a splitter that captures what it is not told to miss."""

    splitter, array = "array", "files, splitter in the array"

    def __init__(self, folder: Path, lun_bytes: int) -> None:
        folder.mkdir()
        name, text = _native.LabArray.mark()
        (folder / name).write_text(text)
        self._array = _native.LabArray(folder, [SOURCE, TARGET], lun_bytes // BLOCK_BYTES)
        self._server = _native.IscsiServer("127.0.0.1", 0)
        for iqn in (IQN, REPLICA_IQN):
            self._server.add_target(iqn)
        for number, lun in enumerate((SOURCE, TARGET)):
            self._server.set_lun(IQN, number, self._array.production(lun))
        self._server.open()
        self._numbers = itertools.count()
        self._last: int | None = None

    @property
    def _address(self) -> str:
        host, port = self._server.portals[0]
        return f"{host}:{port}"

    def impossible(self, _primitive: Primitive, _treatment: Treatment) -> str | None:
        return None

    def treat(self, primitive: Primitive, treatment: Treatment) -> None:
        self._server.set_policy([(None, None, primitive.value, treatment is not Treatment.REJECT)])
        self._array.miss(MISSED[primitive] if treatment is Treatment.IGNORE else [])

    def production(self, name: str) -> LunPlace:
        return LunPlace(self._address, IQN, (SOURCE, TARGET).index(name))

    def medium(self, name: str) -> LunPlace:
        return self.production(name)

    def nbd_url(self, _name: str) -> str | None:
        return None

    def replica(self, name: str) -> LunPlace:
        if self._last is not None:
            self._server.remove_lun(REPLICA_IQN, self._last, PATIENCE_S)
        self._last = next(self._numbers)
        self._server.set_lun(REPLICA_IQN, self._last, self._array.replica(name))
        return LunPlace(self._address, REPLICA_IQN, self._last)

    def journaled(self) -> Journaled:
        return Journaled(*self._array.journal())

    def served(self, primitive: Primitive) -> tuple[int, int]:
        counts = [each for each in self._server.offload_counts() if each["offload"] == primitive.value]
        return sum(each["served"] for each in counts), sum(each["rejected"] for each in counts)

    def close(self) -> None:
        self._server.stop(PATIENCE_S)
        self._array.close()
