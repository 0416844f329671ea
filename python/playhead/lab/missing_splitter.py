"""Splitters of 2010: each feeds a replica, and can be told to miss offloads, which production then carries out unseen.

They run in this process, on data that they make themselves in a folder that bears the laboratory's mark (`LabSplitter`): there is no way to
them from a service, and no way from them to anything that exists.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import ClassVar

from playhead import _native
from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, Journaled, LunPlace, Treatment

IQN = "iqn.2026-11.io.playhead.lab:production"
REPLICA_IQN = "iqn.2026-11.io.playhead.lab:replica"
LOOPBACK = "127.0.0.1"
BLOCK_BYTES = 512
PATIENCE_S = 10.0


MISSED = {primitive: [primitive.value] for primitive in Primitive}
# A splitter that misses WRITE SAME misses it with the UNMAP bit too, which the device server passes on as an unmap.
MISSED[Primitive.WRITE_SAME] = [Primitive.WRITE_SAME.value, Primitive.UNMAP.value]


class _Missing:
    """Both LUNs, with a splitter that captures what it is not told to miss. Derived from once for each place of a splitter."""

    splitter: ClassVar[str]
    array: ClassVar[str]

    def __init__(self, folder: Path, lun_bytes: int) -> None:
        folder.mkdir()
        name, text = _native.LabSplitter.mark()
        (folder / name).write_text(text)
        self._split = _native.LabSplitter(folder, self.splitter, [SOURCE, TARGET], lun_bytes // BLOCK_BYTES)
        self._server = _native.IscsiServer(LOOPBACK, 0)
        for iqn in (IQN, REPLICA_IQN):
            self._server.add_target(iqn)
        for number, lun in enumerate((SOURCE, TARGET)):
            self._server.set_lun(IQN, number, self._split.production(lun))
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
        self._split.miss(MISSED[primitive] if treatment is Treatment.IGNORE else [])

    def production(self, name: str) -> LunPlace:
        return LunPlace(self._address, IQN, (SOURCE, TARGET).index(name))

    def medium(self, name: str) -> LunPlace:
        beyond = self._split.beyond(name)
        if beyond is None:
            return self.production(name)
        host, port, iqn, number = beyond
        return LunPlace(f"{host}:{port}", iqn, number)

    def nbd_url(self, _name: str) -> str | None:
        return None

    def replica(self, name: str) -> LunPlace:
        if self._last is not None:
            self._server.remove_lun(REPLICA_IQN, self._last, PATIENCE_S)
        self._last = next(self._numbers)
        self._server.set_lun(REPLICA_IQN, self._last, self._split.replica(name))
        return LunPlace(self._address, REPLICA_IQN, self._last)

    def journaled(self) -> Journaled:
        return Journaled(*self._split.journal())

    def served(self, primitive: Primitive) -> tuple[int, int]:
        counts = [each for each in self._server.offload_counts() if each["offload"] == primitive.value]
        return sum(each["served"] for each in counts), sum(each["rejected"] for each in counts)

    def close(self) -> None:
        self._server.stop(PATIENCE_S)
        self._split.close()


class MissingInArray(_Missing):
    """The FLARE arrangement: files behind a SCSI device server, and the splitter in it."""

    splitter, array = "array", "files, splitter in the array"


class MissingInHost(_Missing):
    """A filter in a host's block layer over a file; what it misses, the file system below does. Reached over NBD too."""

    splitter, array = "host", "a file, filter in the host"

    def __init__(self, folder: Path, lun_bytes: int) -> None:
        super().__init__(folder, lun_bytes)
        self._nbd = _native.NbdServer(LOOPBACK, 0)
        for lun in (SOURCE, TARGET):
            self._nbd.add_export(lun, self._split.production(lun))
        self._nbd.open()

    def treat(self, primitive: Primitive, treatment: Treatment) -> None:
        super().treat(primitive, treatment)
        self._nbd.set_policy([(None, None, primitive.value, treatment is not Treatment.REJECT)])

    def nbd_url(self, name: str) -> str | None:
        host, port = self._nbd.address
        return f"nbd://{host}:{port}/{name}"

    def close(self) -> None:
        self._nbd.stop(PATIENCE_S)
        super().close()


class MissingInFabric(_Missing):
    """The SANTap arrangement: a splitter between hosts and another array, to which it lets by what it does not understand."""

    splitter, array = "fabric", "an array beyond, splitter in the fabric"
