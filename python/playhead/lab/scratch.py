"""The blocks a probe may write: a consented range, and within it

    guard | source | guard | destination | guard

Each try writes all of it anew, so that what is found afterwards was made by that try, and reads all of it back. Nothing outside the range is ever
written. What was there can be kept and written back; it lies in a file meanwhile, so that it outlives this process.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playhead.errors import PlayheadError, invalid
from playhead.lab import cdb
from playhead.lab.device import Device

MIB = 1 << 20
IO_BYTES = MIB
AREA_BYTES_MAX = MIB
UNIT_BLOCKS_MIN = 8
UNIT_BYTES_MAX = 8 * MIB
"""A device whose unmap granularity is larger is asked in the smallest units; it may then decline to unmap."""
RANGE_BLOCKS_MIN = 5 * UNIT_BLOCKS_MIN


@dataclass(frozen=True)
class Layout:
    """Where things lie; LBAs and counts in blocks of the device."""

    start: int
    unit: int
    """Length of a guard; the areas are whole multiples of it, and begin at whole multiples of the granularity."""
    area: int
    aligned: bool
    """Whether the areas suit the device's unmap granularity."""

    @property
    def source(self) -> int:
        return self.start + self.unit

    @property
    def destination(self) -> int:
        return self.start + 2 * self.unit + self.area

    @property
    def count(self) -> int:
        return 3 * self.unit + 2 * self.area


def lay_out(device: Device, start: int, count: int) -> Layout:
    """Places the areas in the consented range. Raises `invalid` if it does not lie on the LUN or is too small."""
    found = device.advertised
    if start + count > found.block_count:
        raise invalid(
            f"{device.who} has {found.block_count} blocks; {start}:{count} is beyond its end", "name a range on it"
        )
    if count < RANGE_BLOCKS_MIN:
        raise invalid(f"{count} blocks are too few to try offloads on", f"consent to {RANGE_BLOCKS_MIN} or more")
    most = AREA_BYTES_MAX // found.block_bytes
    wanted = max(UNIT_BLOCKS_MIN, found.unmap_granularity)
    if wanted * found.block_bytes <= UNIT_BYTES_MAX:
        first = start + (found.unmap_alignment - start) % wanted
        rest = start + count - first
        if rest >= 5 * wanted:
            return Layout(first, wanted, wanted * max(1, min(most // wanted, (rest // wanted - 3) // 2)), True)
    unit = UNIT_BLOCKS_MIN
    return Layout(start, unit, unit * max(1, min(most // unit, (count // unit - 3) // 2)), found.unmap_granularity <= 1)


class Scratch:
    """The range on a device, and what a try makes of it."""

    def __init__(self, layout: Layout, block_bytes: int) -> None:
        self.layout, self.block_bytes = layout, block_bytes
        self.source_data = os.urandom(layout.area * block_bytes)
        self._before = b""

    # Blocks.

    def read(self, device: Device, lba: int, count: int) -> bytes:
        """Blocks as they are."""
        step, parts = IO_BYTES // self.block_bytes, []
        for at in range(0, count, step):
            blocks = min(step, count - at)
            want = blocks * self.block_bytes
            part = device.must(cdb.read_16(lba + at, blocks), read_bytes=want)
            if len(part) != want:
                raise PlayheadError("io", f"{device.who} answers a read of {want} bytes with {len(part)}", "check it")
            parts.append(part)
        return b"".join(parts)

    def write(self, device: Device, lba: int, data: bytes) -> None:
        """Only within the range: everything that writes passes here or is an offload under test."""
        layout, count = self.layout, len(data) // self.block_bytes
        if lba < layout.start or lba + count > layout.start + layout.count:
            raise PlayheadError("internal", f"LBA {lba} + {count} is outside of the scratch range")
        step = IO_BYTES // self.block_bytes
        for at in range(0, count, step):
            blocks = min(step, count - at)
            part = data[at * self.block_bytes : (at + blocks) * self.block_bytes]
            device.must(cdb.write_16(lba + at, blocks), data=part)

    # A try.

    @property
    def old(self) -> bytes:
        """What lies in the destination before a try."""
        start = (self.layout.destination - self.layout.start) * self.block_bytes
        return self._before[start : start + self.layout.area * self.block_bytes]

    def fill(self, device: Device) -> None:
        """Writes all of it: guards and destination of random bytes, the source of its own. Makes sure it is there."""
        size, guard = self.block_bytes, self.layout.unit * self.block_bytes
        parts = (os.urandom(guard), self.source_data, os.urandom(guard + self.layout.area * size + guard))
        self._before = b"".join(parts)
        self.write(device, self.layout.start, self._before)
        if self.read(device, self.layout.start, self.layout.count) != self._before:
            raise PlayheadError("io", f"{device.who} does not keep plain writes", "nothing can be said of its offloads")

    def look(self, device: Device) -> tuple[bytes, int | None]:
        """The destination as it is now, and the first LBA outside of it that has changed."""
        found = self.read(device, self.layout.start, self.layout.count)
        start = (self.layout.destination - self.layout.start) * self.block_bytes
        end = start + self.layout.area * self.block_bytes
        for low, high in ((0, start), (end, len(found))):
            if found[low:high] != self._before[low:high]:
                return found[start:end], self.layout.start + self.first_difference(
                    found, self._before, low // self.block_bytes
                )
        return found[start:end], None

    def first_difference(self, found: bytes, wanted: bytes, since: int = 0) -> int:
        """Index of the first block that differs, from block `since` on."""
        size = self.block_bytes
        for at in range(since, len(found) // size):
            if found[at * size : (at + 1) * size] != wanted[at * size : (at + 1) * size]:
                return at
        return len(found) // size

    def differences(self, found: bytes, wanted: bytes) -> int:
        """How many blocks differ."""
        size = self.block_bytes
        return sum(found[at : at + size] != wanted[at : at + size] for at in range(0, len(found), size))


class Kept:
    """What was in the range before, in a file until it is written back."""

    def __init__(self, scratch: Scratch, device: Device) -> None:
        self._scratch = scratch
        self._data = scratch.read(device, scratch.layout.start, scratch.layout.count)
        descriptor, name = tempfile.mkstemp(prefix=f"playhead-lab-lba{scratch.layout.start}-", suffix=".blocks")
        self.path = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._data)
            file.flush()
            os.fsync(file.fileno())

    def restore(self, device: Device) -> None:
        """Writes it back and makes sure. If that fails, the file stays, and the error names it."""
        layout = self._scratch.layout
        try:
            self._scratch.write(device, layout.start, self._data)
            device.must(cdb.synchronize_cache())
            same = self._scratch.read(device, layout.start, layout.count) == self._data
            why = "they read back as something else"
        except (PlayheadError, TimeoutError) as error:
            same, why = False, str(error)
        if not same:
            raise PlayheadError(
                "io",
                f"{device.who}: blocks {layout.start} to {layout.start + layout.count - 1} could not be written back ({why})",
                f"what was there is in {self.path}",
            )
        self.path.unlink()
