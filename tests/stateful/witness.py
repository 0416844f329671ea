"""A host that does nothing wrong, on a LUN of its own: whatever happens next door, its blocks are what it wrote."""

from __future__ import annotations

import random

from playhead.lab import cdb
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.chap import Chap
from playhead.lab.session import Session

CHUNK_BLOCKS = 64
UNDER_WAY = 8
INITIATOR = "iqn.2026-11.org.example:witness"
CHAP = Chap("witness", "what-only-it-knows", "appliance", "and-what-it-is-told", algorithms="7,5")
PLACES = 256


class Witness:
    """Keeps a model of its LUN and compares."""

    def __init__(self, address: str, iqn: str, lun: int, block_count: int, seed: str) -> None:
        self.rng = random.Random(f"{seed}/witness")
        self.address = address
        self.session = self.log_in(iqn)
        self.lun = lun
        self.session.ready(lun)
        self.model = bytearray(block_count * BLOCK_BYTES)
        self.rounds = 0

    def log_in(self, iqn: str) -> Session:
        """A session with a target, each side proving itself to the other."""
        return Session(self.address, iqn, initiator=INITIATOR, chap=CHAP)

    def round(self) -> None:
        """A few changes under way together in different places, then reads; raises at the first block that is wrong."""
        chunks = self.rng.sample(range(len(self.model) // BLOCK_BYTES // CHUNK_BLOCKS), UNDER_WAY)
        changes = [self._change(chunk * CHUNK_BLOCKS) for chunk in chunks]
        tags = [self.session.start(command, data=data, lun=self.lun) for command, data in changes]
        for itt, (command, data) in zip(tags, changes, strict=True):
            answer = self.session.finish(itt)
            if answer.attention:
                self.session.must(command, data=data, lun=self.lun)
            else:
                assert answer.good, f"the witness was refused: {answer}"
        for chunk in (*chunks[:2], self.rng.randrange(len(self.model) // BLOCK_BYTES // CHUNK_BLOCKS)):
            self.compare(self.session, self.lun, chunk * CHUNK_BLOCKS, self.model)
        self.rounds += 1

    def some_places(self) -> list[int]:
        """LBAs to look at."""
        chunks = len(self.model) // BLOCK_BYTES // CHUNK_BLOCKS
        return [chunk * CHUNK_BLOCKS for chunk in self.rng.sample(range(chunks), min(chunks, PLACES))]

    def check_all(self) -> None:
        """Every block."""
        for lba in range(0, len(self.model) // BLOCK_BYTES, CHUNK_BLOCKS):
            self.compare(self.session, self.lun, lba, self.model)

    def _change(self, lba: int) -> tuple[bytes, bytes]:
        """A change of the model, and the command with its data that makes it."""
        start, end = lba * BLOCK_BYTES, (lba + CHUNK_BLOCKS) * BLOCK_BYTES
        kind = self.rng.randrange(5)
        if kind == 0:
            self.model[start:end] = bytes(end - start)
            return cdb.write_same_16(lba, CHUNK_BLOCKS), bytes(BLOCK_BYTES)
        if kind == 1:
            self.model[start:end] = bytes(end - start)
            return cdb.unmap([(lba, CHUNK_BLOCKS)])
        data = self.rng.randbytes(end - start)
        if kind == 2:
            old = bytes(self.model[start : start + BLOCK_BYTES])
            self.model[start : start + BLOCK_BYTES] = data[:BLOCK_BYTES]
            return cdb.compare_and_write(lba, 1), old + data[:BLOCK_BYTES]
        self.model[start:end] = data
        return cdb.write_16(lba, CHUNK_BLOCKS, fua=self.rng.random() < 0.05), data

    @staticmethod
    def compare(session: Session, lun: int, lba: int, model: bytes | bytearray) -> None:
        """The blocks there are those of `model`."""
        start, end = lba * BLOCK_BYTES, (lba + CHUNK_BLOCKS) * BLOCK_BYTES
        found = session.must(cdb.read_16(lba, CHUNK_BLOCKS), read_bytes=end - start, lun=lun)
        assert found == model[start:end], f"{session.target}: the witness' blocks from {lba} on are not what it wrote"
