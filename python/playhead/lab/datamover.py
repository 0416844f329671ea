"""The operations: each with its offload while the device has it and the host's switch is on, else with plain reads and writes.

LBAs and counts are in blocks of 512 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from playhead.errors import PlayheadError
from playhead.lab import cdb
from playhead.lab.advertised import Primitive
from playhead.lab.cdb import BLOCK_BYTES, Segment
from playhead.lab.device import Claim, Device
from playhead.lab.session import CONFLICT, CommandError
from playhead.lab.settings import KIB, MIB, HostSettings

IO_BLOCKS = MIB // BLOCK_BYTES
"""Of a plain read or write; VMFS moves whole blocks of a MiB."""
SEGMENT_BLOCKS_MAX = 0xFFFF
"""The length field of a segment descriptor has 16 bits (SPC-4 6.4.6.3)."""
ALIGNMENT_BLOCKS = MIB // BLOCK_BYTES
"""VMFS-6 reclaims whole MiBs."""
RESERVE_TRIES = 1000


def pieces(count: int, most: int) -> Iterator[tuple[int, int]]:
    """(Offset, blocks) of stretches of at most `most` blocks."""
    for offset in range(0, count, most):
        yield offset, min(most, count - offset)


class DataMover:
    """One host's data mover."""

    def __init__(self, settings: HostSettings | None = None) -> None:
        self.settings = settings or HostSettings()

    @property
    def _piece_blocks(self) -> int:
        return self.settings.max_hw_transfer_kib * KIB // BLOCK_BYTES

    def clone(self, source: Device, destination: Device, *, source_lba: int, lba: int, count: int) -> None:
        """Copies blocks between devices, piece by piece; a piece the array does not copy is read and written."""
        for offset, blocks in pieces(count, min(self._piece_blocks, SEGMENT_BLOCKS_MAX)):
            moved = False
            if self.settings.hardware_accelerated_move and destination.may_try(Primitive.XCOPY):
                segment = Segment(0, 1, blocks, source_lba + offset, lba + offset)
                command, parameters = cdb.extended_copy([source.naa, destination.naa], [segment])
                moved = destination.offload(Primitive.XCOPY, command, parameters)
            if not moved:
                self._carry(source, destination, source_lba + offset, lba + offset, blocks)

    @staticmethod
    def _carry(source: Device, destination: Device, source_lba: int, lba: int, count: int) -> None:
        for offset, blocks in pieces(count, IO_BLOCKS):
            data = source.must(cdb.read_16(source_lba + offset, blocks), read_bytes=blocks * BLOCK_BYTES)
            destination.must(cdb.write_16(lba + offset, blocks), data=data)

    def zero(self, device: Device, *, lba: int, count: int) -> None:
        """Fills blocks with zeros, for a disk that is handed out eagerly zeroed."""
        for offset, blocks in pieces(count, self._piece_blocks):
            zeroed = False
            if self.settings.hardware_accelerated_init and device.may_try(Primitive.WRITE_SAME):
                command = cdb.write_same_16(lba + offset, blocks)
                zeroed = device.offload(Primitive.WRITE_SAME, command, bytes(BLOCK_BYTES))
            if not zeroed:
                for further, part in pieces(blocks, IO_BLOCKS):
                    device.must(cdb.write_16(lba + offset + further, part), data=bytes(part * BLOCK_BYTES))

    def reclaim(self, device: Device, *, lba: int, count: int) -> int:
        """Tells the array what is no longer in use, in whole MiBs; how many blocks it took. Nothing replaces it if it does not."""
        start = -(-lba // ALIGNMENT_BLOCKS) * ALIGNMENT_BLOCKS
        end = (lba + count) // ALIGNMENT_BLOCKS * ALIGNMENT_BLOCKS
        most = min(device.advertised.unmap or ALIGNMENT_BLOCKS, 1 << 20)
        most -= most % ALIGNMENT_BLOCKS
        reclaimed = 0
        for offset, blocks in pieces(max(0, end - start), most or ALIGNMENT_BLOCKS):
            if not (self.settings.enable_block_delete and device.may_try(Primitive.UNMAP)):
                break
            command, parameters = cdb.unmap([(start + offset, blocks)])
            if device.offload(Primitive.UNMAP, command, parameters):
                reclaimed += blocks
        return reclaimed

    def swap(self, device: Device, *, lba: int, old: bytes, new: bytes) -> bool:
        """Replaces a sector of a cluster file system's metadata if it is still `old`: by COMPARE AND WRITE, or under a reservation."""
        if self.settings.hardware_accelerated_locking and device.may_try(Primitive.ATS):
            answer = device.execute(cdb.compare_and_write(lba, 1), data=old + new)
            if answer.good or answer.key_code == (0xE, 0x1D00):
                device.claims[Primitive.ATS] = Claim.SUPPORTED
                return answer.good
            device.claims[Primitive.ATS] = Claim.NOT_SUPPORTED
        self._reserve(device)
        try:
            if device.must(cdb.read_16(lba, 1), read_bytes=BLOCK_BYTES) != old:
                return False
            device.must(cdb.write_16(lba, 1), data=new)
            return True
        finally:
            device.must(cdb.release_6())

    @staticmethod
    def _reserve(device: Device) -> None:
        for _ in range(RESERVE_TRIES):
            answer = device.execute(cdb.reserve_6())
            if answer.good:
                return
            if answer.status != CONFLICT:
                raise CommandError(cdb.reserve_6(), answer, device.session.who)
        raise PlayheadError("busy", f"{device.session.who} stays reserved for another host", "release it there")
