"""Other people's tools through the same arrangements: qemu-img, qemu-io and iscsi-test-cu over iSCSI (libiscsi), nbdcopy and nbdsh (libnbd)
and qemu-io over NBD.

They ask for offloads by themselves and fall back by themselves; how often is what the array counted. A tool that is not installed is not run,
and the report names its package. sg_xcopy and its kin want the kernel's own initiator and are run in the guest (docs/testing-vm.md).
"""

from __future__ import annotations

import os
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
PACKAGES = {
    "qemu-img": "qemu-utils qemu-block-extra",
    "qemu-io": "qemu-utils qemu-block-extra",
    "iscsi-test-cu": "libiscsi-bin",
    "nbdcopy": "libnbd-bin",
    "nbdsh": "python3-libnbd",
}
"""What a tool is in, in Debian's words."""
NBD_STEP_BYTES = 1 << 30
"""Of one request to zero or trim; its field has 32 bits."""


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
    cheap_below: Callable[[int], int] = lambda region_bytes: region_bytes // REFERENCE_SHARE
    """Bytes of journal below which what was not counted was captured as what it is, by those of the region."""

    fill: bytes = GUARD
    """What every block holds before."""

    @property
    def program(self) -> str:
        """What is run."""
        return self.tool.partition(" ")[0]


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


def _nbd_copy(arrangement: Arrangement, _region_bytes: int) -> list[str]:
    source, target = arrangement.nbd_url(SOURCE), arrangement.nbd_url(TARGET)
    # With several requests at once nbdcopy 1.14 may wait for ever for a server without WRITE_ZEROES, nbdkit's `nozero` too.
    return ["nbdcopy", "--connections=1", "--requests=1", source, target] if source and target else []


def _nbd_script(what: str, otherwise: str) -> Callable[[Arrangement, int], list[str]]:
    """A script that asks for `what` if the server has it, and else does as a program without it would."""
    script = (
        "for at in range({start}, {end}, {step}):\n"
        "    count = min({step}, {end} - at)\n"
        "    if h.can_{what}():\n"
        "        h.{what}(count, at)\n"
        "    else:\n"
        "        {otherwise}\n"
    )

    def command(arrangement: Arrangement, region_bytes: int) -> list[str]:
        url, start = arrangement.nbd_url(TARGET), GUARD_BLOCKS * BLOCK_BYTES
        text = script.format(start=start, end=start + region_bytes, step=NBD_STEP_BYTES, what=what, otherwise=otherwise)
        return ["nbdsh", "-u", url, "-c", text] if url else []

    return command


def _swap(arrangement: Arrangement, _region_bytes: int) -> list[str]:
    """Block after block compared and written by two paths in turn: of its tests the one that leaves other blocks than it found."""
    url = arrangement.production(TARGET).url
    return ["iscsi-test-cu", "--dataloss", "--test=SCSI.MultipathIO.CompareAndWrite", url, url]


def _zeros(content: bytes) -> bytes:
    return bytes(len(content))


ZERO_BY_WRITES = "[h.pwrite(bytes(1 << 20), at + offset) for offset in range(0, count, 1 << 20)]"
USES = (
    # It zeroes one block fewer than it expects to be zeros.
    Use("iscsi-test-cu CompareAndWrite", Primitive.ATS, _swap, lambda _: None, fill=b"\0"),
    Use("qemu-img convert -C", Primitive.XCOPY, _clone, lambda content: content),
    Use("qemu-img convert", Primitive.WRITE_SAME, _copy, lambda content: content),
    Use("qemu-io write -z", Primitive.WRITE_SAME, _io("write -z"), _zeros),
    Use("qemu-io discard", Primitive.UNMAP, _io("discard"), lambda _: None),
    Use("qemu-io write -z, NBD", Primitive.WRITE_SAME, _nbd("write -z"), _zeros, counted=False),
    Use("qemu-io discard, NBD", Primitive.UNMAP, _nbd("discard"), lambda _: None, counted=False),
    Use(
        "nbdcopy",
        Primitive.WRITE_SAME,
        _nbd_copy,
        lambda content: content,
        counted=False,
        # All of the source is copied, and 4 MiB around its region are zeros.
        cheap_below=lambda region_bytes: region_bytes + 2 * GUARD_BLOCKS * BLOCK_BYTES,
    ),
    Use("nbdsh zero", Primitive.WRITE_SAME, _nbd_script("zero", ZERO_BY_WRITES), _zeros, counted=False),
    Use("nbdsh trim", Primitive.UNMAP, _nbd_script("trim", "pass"), lambda _: None, counted=False),
)


def not_installed() -> list[str]:
    """Tools that this machine has not got, each with what to do about it."""
    return [
        f"{tool} is not installed: apt-get install {package}"
        for tool, package in PACKAGES.items()
        if shutil.which(tool) is None
    ]


def run(arrangement: Arrangement, region_bytes: int, done: Callable[[Tooled], None]) -> list[Tooled]:
    """Every tool that is installed, under every treatment the arrangement has."""
    hosts = Hosts(arrangement, region_bytes)
    try:
        found = []
        for use in USES:
            command = use.command(arrangement, region_bytes)
            if not command or shutil.which(use.program) is None:
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
    hosts.awake()
    write(hosts.looker, 0, use.fill * (places.all_blocks * BLOCK_BYTES))
    if hosts.compare()[0]:
        raise PlayheadError("internal", f"{use.tool}: the replica was not production before it began")
    served, rejected = arrangement.served(use.primitive)
    journal = arrangement.journaled()
    started = time.perf_counter()
    # Debian's nbdsh takes the first Python there is, and only the system's has libnbd.
    env = os.environ | {"PATH": f"/usr/bin:{os.environ.get('PATH', '')}"}
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
            env=env,
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
    elif served_after > served or (not use.counted and 0 < journal_bytes < use.cheap_below(len(region))):
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
