"""`playhead lab vaai`: the arrangements there are, one after another, each in a folder that is made for it and thrown away."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playhead.errors import PlayheadError, invalid
from playhead.lab import matrix, tools
from playhead.lab.arrangement import AbsentError, Arrangement
from playhead.lab.fabric_splitter import FabricBeforeTgtd, FabricSplitter
from playhead.lab.host_splitter import HostSplitter
from playhead.lab.matrix import Measured
from playhead.lab.missing_splitter import MissingInArray, MissingInFabric, MissingInHost
from playhead.lab.operations import OPERATION_OF
from playhead.lab.playhead_array import PlayheadArray
from playhead.lab.settings import MIB
from playhead.lab.tools import Tooled

REGION_MIN, REGION_MAX = 3 * MIB, 4096 * MIB
Build = Callable[[Path, int], Arrangement]
ARRANGEMENTS: dict[str, tuple[Build, ...]] = {
    "array": (PlayheadArray, MissingInArray),
    "host": (HostSplitter, MissingInHost),
    "fabric": (FabricSplitter, FabricBeforeTgtd, MissingInFabric),
}
"""By splitter; each is built in a folder that does not exist yet, with LUNs of so many bytes."""


@dataclass
class Report:
    """What a run found."""

    region_bytes: int
    cells: list[Measured] = field(default_factory=list)
    tools: list[Tooled] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What this machine has not got, and what to do about it."""

    @property
    def as_expected(self) -> bool:
        """Corruption where the splitter ignores what the host asks for, and nowhere else."""
        return all(each.as_expected for each in self.cells) and all(each.as_expected for each in self.tools)

    def json(self) -> dict[str, Any]:
        """For programs; docs/lab.md has it."""
        return {
            "region_bytes": self.region_bytes,
            "as_expected": self.as_expected,
            "cells": [_cell(each) for each in self.cells],
            "tools": [_tool(each) for each in self.tools],
            "left_out": self.left_out,
        }


def _cell(each: Measured) -> dict[str, Any]:
    cell = each.cell
    return {
        "splitter": cell.splitter,
        "array": cell.array,
        "offload": cell.primitive.value,
        "operation": OPERATION_OF[cell.primitive],
        "treatment": cell.treatment.value,
        "switch": cell.switch,
        "outcome": each.outcome.value,
        "as_expected": each.as_expected,
        "detail": each.detail,
        "seconds": round(each.seconds, 6),
        "commands": each.commands,
        "wire_bytes": each.wire_bytes,
        "journal_records": each.journal_records,
        "journal_bytes": each.journal_bytes,
        "differing_blocks": each.differing_blocks,
    }


def _tool(each: Tooled) -> dict[str, Any]:
    return {
        "tool": each.tool,
        "splitter": each.splitter,
        "array": each.array,
        "offload": each.primitive.value,
        "treatment": each.treatment.value,
        "outcome": each.outcome.value,
        "as_expected": each.as_expected,
        "seconds": round(each.seconds, 6),
        "served": each.served,
        "rejected": each.rejected,
        "journal_bytes": each.journal_bytes,
        "differing_blocks": each.differing_blocks,
    }


@contextlib.contextmanager
def arranged(build: Build, region_bytes: int) -> Iterator[Arrangement]:
    """One arrangement in a folder of its own, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="playhead-lab-") as folder:
        arrangement = build(Path(folder) / "array", matrix.lun_bytes(region_bytes))
        try:
            yield arrangement
        except BaseException:
            # What went wrong counts, not what is said of it at the end.
            with contextlib.suppress(PlayheadError):
                arrangement.close()
            raise
        arrangement.close()


def run(splitters: Sequence[str], region_bytes: int, with_tools: bool, done: Callable[[Measured], None]) -> Report:
    """Everything asked for; `done` hears of each cell. Raises `invalid`, or PlayheadError if a cell cannot be measured."""
    for name in splitters:
        if name not in ARRANGEMENTS:
            raise invalid(f"there is no splitter {name!r} in the laboratory", f"it has {', '.join(ARRANGEMENTS)}")
    if not REGION_MIN <= region_bytes <= REGION_MAX or region_bytes % MIB:
        raise invalid(f"a size of {region_bytes} bytes", "give whole MiB, from 3M to 4G")
    report = Report(region_bytes)
    if with_tools:
        report.left_out += tools.not_installed()
    for name in splitters:
        for build in ARRANGEMENTS[name]:
            try:
                with arranged(build, region_bytes) as arrangement:
                    report.cells += matrix.run(arrangement, region_bytes, done)
                    if with_tools:
                        report.tools += tools.run(arrangement, region_bytes, lambda _: None)
            except AbsentError as error:
                report.left_out.append(str(error))
    return report
