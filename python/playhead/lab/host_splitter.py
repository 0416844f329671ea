"""The host-based splitter: production is a file of this host, served back to hosts by the service that splits what changes it."""

from __future__ import annotations

from pathlib import Path

from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import LunPlace, Treatment
from playhead.lab.playhead_array import GROUP, PlayheadArray, wait_until_synchronised


class HostSplitter(PlayheadArray):
    """A service that has two files attached."""

    splitter, array = "host", "a file of the host"

    def _make(self, folder: Path, name: str, lun_bytes: int) -> None:
        path = folder / f"{name}.production"
        with path.open("wb") as file:
            file.truncate(lun_bytes)
        body = {"path": str(path), "physical_block_bytes": 4096}
        self.service.api.post("groups", GROUP, "volumes", name, "attach", body=body)
        wait_until_synchronised(self, name)

    def replica(self, name: str) -> LunPlace:
        wait_until_synchronised(self, name)
        return super().replica(name)

    def impossible(self, primitive: Primitive, treatment: Treatment) -> str | None:
        if treatment is Treatment.IGNORE:
            return f"hosts reach the file through the splitter alone, and no setting makes it ignore {primitive.value}"
        return None
