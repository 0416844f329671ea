"""Other people's tools through the same arrangements: qemu-img and qemu-io over iSCSI (libiscsi) and NBD.

They ask for offloads by themselves and fall back by themselves; how often is what the array counted. A tool that is not installed is not a cell.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from playhead.errors import PlayheadError
from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, Arrangement, Treatment
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.matrix import Hosts, Outcome
from playhead.lab.operations import GUARD, GUARD_BLOCKS, write

TOOL_TIMEOUT_S = 300.0
REFERENCE_SHARE = 4
"""What cost the journal less than this part of the region was captured as what it is, not as data."""


@dataclass(frozen=True)
class Tooled:
    """What became of one use of a tool."""

    tool: str
    primitive: Primitive
    treatment: Treatment
    splitter: str
    array: str
    outcome: Outcome
    seconds: float
    served: int | None
    """Commands carried out, as the array counted them; none where nothing counts."""
    rejected: int | None
    journal_bytes: int
    differing_blocks: int

    @property
    def as_expected(self) -> bool:
        """Only what is ignored may be corrupt; whatever a tool chooses not to ask for is its own affair."""
        if self.outcome is Outcome.CORRUPT:
            return self.treatment is Treatment.IGNORE
        return self.outcome is not Outcome.WRONG


@dataclass(frozen=True)
class Use:
    """A command line, and the target's region as it must be afterwards; none if it may be left."""

    tool: str
    primitive: Primitive
    command: Callable[[Arrangement, int], list[str]]
    wanted: Callable[[bytes], bytes | None]
    counted: bool = True
    """Whether the array counts its commands; NBD's are not counted, and what came of them is read off the journal."""


def _clone(arrangement: Arrangement, _region_bytes: int) -> list[str]:
    source, target = arrangement.production(SOURCE).url, arrangement.production(TARGET).url
    return ["qemu-img", "convert", "-n", "-C", "-f", "raw", "-O", "raw", source, target]


def _copy(arrangement: Arrangement, _region_bytes: int) -> list[str]:
    source, target = arrangement.production(SOURCE).url, arrangement.production(TARGET).url
    return ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, target]


def _io(what: str) -> Callable[[Arrangement, int], list[str]]:
    def command(arrangement: Arrangement, region_bytes: int) -> list[str]:
        text = f"{what} {GUARD_BLOCKS * BLOCK_BYTES} {region_bytes}"
        return ["qemu-io", "-f", "raw", "-c", text, arrangement.production(TARGET).url]

    return command


def _nbd(what: str) -> Callable[[Arrangement, int], list[str]]:
    def command(arrangement: Arrangement, region_bytes: int) -> list[str]:
        url = arrangement.nbd_url(TARGET)
        if url is None:
            return []
        text = f"{what} {GUARD_BLOCKS * BLOCK_BYTES} {region_bytes}"
        return ["qemu-io", "-f", "raw", "-c", text, url]

    return command


def _zeros(content: bytes) -> bytes:
    return bytes(len(content))


USES = (
    Use("qemu-img convert -C", Primitive.XCOPY, _clone, lambda content: content),
    Use("qemu-img convert", Primitive.WRITE_SAME, _copy, lambda content: content),
    Use("qemu-io write -z", Primitive.WRITE_SAME, _io("write -z"), _zeros),
    Use("qemu-io discard", Primitive.UNMAP, _io("discard"), lambda _: None),
    Use("qemu-io write -z, NBD", Primitive.WRITE_SAME, _nbd("write -z"), _zeros, counted=False),
    Use("qemu-io discard, NBD", Primitive.UNMAP, _nbd("discard"), lambda _: None, counted=False),
)


def run(arrangement: Arrangement, region_bytes: int, done: Callable[[Tooled], None]) -> list[Tooled]:
    """Every tool that is installed, under every treatment the arrangement has."""
    hosts = Hosts(arrangement, region_bytes)
    try:
        found = []
        for use in USES:
            command = use.command(arrangement, region_bytes)
            if not command or shutil.which(command[0]) is None:
                continue
            for treatment in Treatment:
                if arrangement.impossible(use.primitive, treatment) is None:
                    tooled = _use(hosts, use, command, treatment)
                    done(tooled)
                    found.append(tooled)
        return found
    finally:
        hosts.close()


def _use(hosts: Hosts, use: Use, command: list[str], treatment: Treatment) -> Tooled:
    arrangement, places = hosts.arrangement, hosts.places
    arrangement.treat(use.primitive, treatment)
    write(hosts.looker, 0, GUARD * (places.all_blocks * BLOCK_BYTES))
    if hosts.compare()[0]:
        raise PlayheadError("internal", f"{use.tool}: the replica was not production before it began")
    served, rejected = arrangement.served(use.primitive)
    journal = arrangement.journaled()
    started = time.perf_counter()
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PlayheadError("io", f"{use.tool} does not end", f"try it: {' '.join(command)}") from error
    seconds = time.perf_counter() - started
    served_after, rejected_after = arrangement.served(use.primitive)
    journal_bytes = arrangement.journaled().bytes - journal.bytes
    differing, _, blocks = hosts.compare()
    start = GUARD_BLOCKS * BLOCK_BYTES
    region, wanted = blocks[start : start + len(places.content)], use.wanted(places.content)
    said_no = ended.returncode != 0 or "failed" in ended.stdout
    if differing:
        outcome = Outcome.CORRUPT
    elif (wanted is not None and region != wanted) or (said_no and treatment is not Treatment.REJECT):
        outcome = Outcome.WRONG
    elif served_after > served or (not use.counted and 0 < journal_bytes < len(region) // REFERENCE_SHARE):
        outcome = Outcome.EXECUTED
    else:
        outcome = Outcome.FELL_BACK if rejected_after > rejected else Outcome.BY_HOST
    return Tooled(
        use.tool,
        use.primitive,
        treatment,
        arrangement.splitter,
        arrangement.array,
        outcome,
        seconds,
        served_after - served if use.counted else None,
        rejected_after - rejected if use.counted else None,
        journal_bytes,
        differing,
    )
