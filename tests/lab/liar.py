"""A small iSCSI target whose offloads do as they are told: carried out, refused, or answered GOOD and not carried out, or badly.

One LUN of 512-byte blocks in memory; each connection has a thread, commands are carried out one by one. It advertises every offload.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from playhead.lab import pdu
from playhead.lab.pdu import BHS_BYTES, Header

BLOCK, BLOCK_COUNT = 512, 8192
INVALID_OPCODE, INVALID_FIELD, MISCOMPARE, MEDIUM = (5, 0x2000), (5, 0x2400), (0xE, 0x1D00), (3, 0x1100)
IQN = "iqn.2026-11.org.example:liar"
NAA = bytes.fromhex("6e4f6c796172000000000000000001aa")
ANSWERS = {
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxBurstLength": "8388608",
    "MaxRecvDataSegmentLength": "262144",
}

ATS, XCOPY, WRITE_SAME, UNMAP = 0x89, 0x83, 0x93, 0x42
SenseCode = tuple[int, int]


class HungUpError(Exception):
    """The other side is gone, or we want it to be."""


@dataclass(frozen=True)
class Ended:
    """How a command ends."""

    data: bytes = b""
    status: int = 0
    sense: bytes = b""
    left_over_bytes: int = 0
    """Of what the initiator expected to be moved."""


def sense_data(code: SenseCode, *, deferred: bool = False) -> bytes:
    """In the fixed format (SPC-4 4.5.3)."""
    key, additional = code
    return (
        bytes((0x71 if deferred else 0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0))
        + struct.pack(">H", additional)
        + bytes(4)
    )


class Liar:
    """The target. `ways` says for an operation code what is done: "right", "reject", "nothing", "wrong", "outside", "medium", "hang up"."""

    def __init__(self, **ways: str) -> None:
        self.blocks = bytearray(BLOCK_COUNT * BLOCK)
        self.ways = ways
        self.written: set[int] = set()
        """Blocks that any command has changed."""
        self.addressed = 0
        """The LUN that the command is for, while it is carried out."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, args=(self._listener, 1), daemon=True)
        self._open: set[socket.socket] = set()
        self.one = threading.Lock()
        """Held while a command is carried out."""

    @property
    def url(self) -> str:
        return f"iscsi://{self.portal}/{IQN}/0"

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self.hang_up()

    def hang_up(self) -> None:
        """Ends all connections."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket, group: int) -> None:
        """Takes connections at a portal of the portal group `group`."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._attend, args=(connection, group), daemon=True).start()

    def _attend(self, connection: socket.socket, group: int) -> None:
        with connection, contextlib.suppress(HungUpError, OSError):
            _Connection(connection, self, group).run()
        self._open.discard(connection)

    # Blocks.

    def put(self, lba: int, data: bytes) -> None:
        self.blocks[lba * BLOCK : lba * BLOCK + len(data)] = data
        self.written.update(range(lba, lba + len(data) // BLOCK))

    def get(self, lba: int, count: int) -> bytes:
        return bytes(self.blocks[lba * BLOCK : (lba + count) * BLOCK])

    def answer(self, cdb: bytes, data: bytes) -> Ended:
        """Carries a command out."""
        found, sense = self.execute(cdb, data)
        return Ended(found, 2, sense_data(sense)) if sense else Ended(found)

    def execute(self, cdb: bytes, data: bytes) -> tuple[bytes, SenseCode | None]:
        """Data-in, and sense if it fails."""
        code = cdb[0]
        lba, count = struct.unpack_from(">QI", cdb, 2)
        if code == 0x12:
            return self._inquiry(cdb), None
        if code == 0x9E:
            return struct.pack(">QI2xH", len(self.blocks) // BLOCK - 1, BLOCK, 0xC000).ljust(32, b"\0"), None
        if code in (0x00, 0x35):
            return b"", None
        if code == 0x88:
            return self.get(lba, count), None
        if code == 0x8A:
            self.put(lba, data)
            return b"", None
        if code == ATS:
            return b"", self._offload("ats", lambda: self._swap(lba, data), lba)
        if code == WRITE_SAME:
            if cdb[1] & 1:
                return b"", MEDIUM
            return b"", self._offload("write_same", lambda: self.put(lba, data * count), lba)
        if code == UNMAP:
            at, length = struct.unpack_from(">QI", data, 8)
            return b"", self._offload("unmap", lambda: self.put(at, bytes(length * BLOCK)), at)
        if code == XCOPY and cdb[1] == 0:
            blocks, source, to = struct.unpack_from(">HQQ", data, 16 + 64 + 10)
            return b"", self._offload("xcopy", lambda: self.put(to, self.get(source, blocks)), to)
        return b"", INVALID_OPCODE

    def _offload(self, name: str, act: Callable[[], SenseCode | None], lba: int) -> SenseCode | None:
        way = self.ways.get(name, "right")
        if way == "right":
            return act()
        if way == "reject":
            return INVALID_OPCODE
        if way == "medium":
            return MEDIUM
        if way == "hang up":
            raise HungUpError
        if way == "wrong":
            self.put(lba, b"\x5a" * BLOCK)
        elif way == "outside":
            sense = act()
            self.put(lba - 1, b"\x5a" * BLOCK)
            return sense
        elif way == "reject badly":
            act()
            return INVALID_OPCODE
        return None

    def _swap(self, lba: int, data: bytes) -> SenseCode | None:
        if self.get(lba, 1) != data[:BLOCK]:
            return MISCOMPARE
        self.put(lba, data[BLOCK:])
        return None

    @staticmethod
    def _inquiry(cdb: bytes) -> bytes:
        page = cdb[2]
        if not cdb[1] & 1:
            return bytes((0, 0, 6, 2, 91, 0x08, 0, 2)) + b"LIAR    " + b"fair words".ljust(16) + b"1.0 " + bytes(60)
        bodies = {
            0x00: bytes((0x00, 0x83, 0xB0, 0xB2)),
            0x83: bytes((1, 3, 0, 16)) + NAA,
            0xB0: bytes((0, 1))
            + bytes(14)
            + struct.pack(">IIII", 0xFFFF, 16, 8, 0x8000_0000)
            + struct.pack(">Q16x", 0xFFFF),
            0xB2: bytes((0, 0xE4, 2, 0)),
        }
        body = bodies.get(page, b"")
        return bytes((0, page)) + struct.pack(">H", len(body)) + body


class _Connection:
    """One session over one connection: logins without authentication, and commands one after another."""

    def __init__(self, connection: socket.socket, liar: Liar, group: int) -> None:
        self._connection, self._liar, self._group = connection, liar, group
        self._stat_sn = 1

    def run(self) -> None:
        while True:
            head, data = self._receive()
            if head.opcode == pdu.LOGIN:
                self._log_in(head, data)
            elif head.opcode == pdu.COMMAND:
                self._command(head)
            elif head.opcode == pdu.NOP_OUT:
                if head.itt != pdu.RESERVED_TAG:
                    words = self._words(head, pdu.RESERVED_TAG)
                    self._send(pdu.header(pdu.NOP_IN, pdu.FINAL, itt=head.itt, words=words), data)
            else:
                raise HungUpError

    def _gather(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            some = self._connection.recv(count - len(parts))
            if not some:
                raise HungUpError
            parts += some
        return parts

    def _receive(self) -> tuple[Header, bytes]:
        head = Header(self._gather(BHS_BYTES))
        return head, self._gather(head.data_bytes + 3 & ~3)[: head.data_bytes]

    def _send(self, head: bytes, data: bytes = b"") -> None:
        self._connection.sendall(pdu.whole(head, data))

    def _words(self, head: Header, first: int) -> tuple[int, int, int, int]:
        cmd_sn = head.word(24) + (not head.raw[0] & pdu.IMMEDIATE)
        words = (first, self._stat_sn, cmd_sn, cmd_sn + 32)
        self._stat_sn += 1
        return words

    def _log_in(self, head: Header, data: bytes) -> None:
        asked = dict(pdu.pairs(data))
        answers = [
            (key, ANSWERS.get(key, value)) for key, value in asked.items() if key[0] in "HDIMFE" and "Name" not in key
        ]
        answers.append(("TargetPortalGroupTag", str(self._group)))
        words = self._words(head, 0)
        flags = head.flags & 0x87
        self._send(
            pdu.header(pdu.LOGIN_RESPONSE, flags, lun=head.raw[8:14] + b"\0\1", itt=head.itt, words=words),
            pdu.text(answers),
        )

    def _command(self, head: Header) -> None:
        length, data = head.word(20), b""
        if head.flags & 0x20:
            words = (7, self._stat_sn, head.word(24) + 1, head.word(24) + 32, 0, 0, length)
            self._send(pdu.header(pdu.R2T, pdu.FINAL, itt=head.itt, words=words))
            while len(data) < length:
                data += self._receive()[1]
        with self._liar.one:
            self._liar.addressed = head.raw[9]
            ended = self._liar.answer(head.raw[32:48], data)
        found = ended.data[:length]
        for at in range(0, len(found), 1 << 17):
            words = (pdu.RESERVED_TAG, 0, head.word(24) + 1, head.word(24) + 32, at >> 17, at, 0)
            self._send(pdu.header(pdu.DATA_IN, 0, itt=head.itt, words=words), found[at : at + (1 << 17)])
        words = (0, self._stat_sn, head.word(24) + 1, head.word(24) + 32, 0, 0, ended.left_over_bytes)
        self._stat_sn += 1
        answer = struct.pack(">H", len(ended.sense)) + ended.sense if ended.sense else b""
        underflow = 0x02 if ended.left_over_bytes else 0
        response = bytearray(pdu.header(pdu.RESPONSE, pdu.FINAL | underflow, itt=head.itt, words=words))
        response[3] = ended.status
        self._send(bytes(response), answer)
