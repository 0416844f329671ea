"""Load whose every acknowledgement is remembered, and the comparison of a disk with that memory.

The disk is divided among writers. A writer never has two requests under way on the same block, so after a crash a
block holds what was last acknowledged there, or what was under way, and nothing else; and a request is all there or
not at all.
"""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import dataclass, field

from .nbd_client import FLAG_FUA, FLUSH, TRIM, WRITE, WRITE_ZEROES, LostError, NbdClient, Request

BLOCK_BYTES = 512
ZEROS = 0
DEPTH = 16
LONGEST_BLOCKS = 64


def block_bytes(stamp: int, block: int) -> bytes:
    """What block number `block` holds after the write with this stamp; stamp `ZEROS` is zeros."""
    if stamp == ZEROS:
        return bytes(BLOCK_BYTES)
    return struct.pack("<QQ", stamp, block) * (BLOCK_BYTES // 16)


def describe(data: bytes) -> str:
    """Says what a block read from the disk is."""
    stamp, block = struct.unpack("<QQ", data[:16])
    if data == block_bytes(stamp, block):
        return f"write {stamp} of block {block}"
    return "zeros" if data == bytes(BLOCK_BYTES) else f"nobody's block {data[:16].hex()}"


@dataclass(frozen=True)
class Doing:
    """A change under way: blocks `first .. first + count` get `stamp`."""

    first: int
    count: int
    stamp: int


@dataclass
class Memory:
    """What a disk must hold: the stamp of every block, and what may or may not have reached it."""

    stamps: list[int]
    doubtful: list[Doing] = field(default_factory=list)

    def check(self, first: int, data: bytes) -> list[str]:
        """What is wrong with blocks from `first` on, in words; doubtful blocks are not looked at."""
        doubtful = {block for doing in self.doubtful for block in range(doing.first, doing.first + doing.count)}
        wrong = []
        for index in range(len(data) // BLOCK_BYTES):
            block = first + index
            found = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            if block not in doubtful and found != block_bytes(self.stamps[block], block):
                wrong.append(f"block {block} should be write {self.stamps[block]}, is {describe(found)}")
        return wrong

    def settle_doubts(self, disk: bytes) -> list[str]:
        """Decides, from the whole disk, which doubtful changes happened: each wholly or not at all."""
        wrong = []
        for doing in self.doubtful:
            blocks = range(doing.first, doing.first + doing.count)
            found = [disk[b * BLOCK_BYTES : (b + 1) * BLOCK_BYTES] for b in blocks]
            if all(data == block_bytes(doing.stamp, b) for data, b in zip(found, blocks, strict=True)):
                for block in blocks:
                    self.stamps[block] = doing.stamp
            elif any(data != block_bytes(self.stamps[b], b) for data, b in zip(found, blocks, strict=True)):
                wrong.append(f"{doing} happened in part: {[describe(data) for data in found]}")
        self.doubtful.clear()
        return wrong


class Writer(threading.Thread):
    """Writes to blocks `first .. first + count` of an export until the server is gone or `stop` is set."""

    def __init__(
        self, address: tuple[str, int, str], memory: Memory, first: int, count: int, seed: int, stamps: range
    ) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._memory = memory
        self._first = first
        self._count = count
        self._random = random.Random(seed)
        self._stamps = iter(stamps)
        self._doing: dict[int, Doing] = {}
        self.acknowledged = 0
        self.flushes = 0
        self.failure: BaseException | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        """The thread."""
        try:
            client = NbdClient(*self._address)
            try:
                self._load(client)
            finally:
                client.close()
        except LostError:
            pass
        except BaseException as error:  # noqa: BLE001  Told to the test, which raises it.
            self.failure = error
        finally:
            self._memory.doubtful.extend(self._doing.values())

    def _load(self, client: NbdClient) -> None:
        while not self.stop.is_set() or client.under_way:
            while client.under_way < DEPTH and not self.stop.is_set():
                self._send(client)
            client.push()
            self._answered(client.answer()[0])

    def _send(self, client: NbdClient) -> None:
        dice = self._random.random()
        if dice < 0.05:
            client.send(FLUSH)
            return
        count = self._random.choice([1, 2, 7, 8, 8, 8, 16, self._random.randint(1, LONGEST_BLOCKS)])
        for _ in range(100):
            first = self._first + self._random.randrange(self._count - count + 1)
            if not any(d.first < first + count and first < d.first + d.count for d in self._doing.values()):
                break
        else:
            client.send(FLUSH)
            return
        flags = FLAG_FUA if self._random.random() < 0.05 else 0
        offset, length = first * BLOCK_BYTES, count * BLOCK_BYTES
        if dice < 0.12:
            stamp = ZEROS
            request = client.send(self._random.choice([TRIM, WRITE_ZEROES]), offset, length, flags=flags)
        else:
            stamp = next(self._stamps)
            data = b"".join(block_bytes(stamp, block) for block in range(first, first + count))
            request = client.send(WRITE, offset, length, data, flags)
        self._doing[request.cookie] = Doing(first, count, stamp)

    def _answered(self, request: Request) -> None:
        doing = self._doing.pop(request.cookie, None)
        if doing is None:
            self.flushes += 1
            return
        self.acknowledged += 1
        for block in range(doing.first, doing.first + doing.count):
            self._memory.stamps[block] = doing.stamp


def whole_disk(address: tuple[str, int, str], piece_bytes: int = 1 << 20) -> bytes:
    """Reads an export from end to end."""
    client = NbdClient(*address)
    try:
        pieces = []
        for offset in range(0, client.size_bytes, piece_bytes):
            pieces.append(client.read(offset, min(piece_bytes, client.size_bytes - offset)))
        return b"".join(pieces)
    finally:
        client.close()
