"""An NBD client that keeps many requests under way and knows which of them were answered.

Small on purpose (newstyle fixed, simple replies): the crash test needs to know exactly which request was acknowledged
before the server died, which the libraries' callbacks blur.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
FIXED_NEWSTYLE_AND_NO_ZEROES = 3
OPTION_GO = 7
REPLY_ACK = 1
REPLY_INFO = 3
INFO_EXPORT = 0

READ, WRITE, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 3, 4, 6
FLAG_FUA = 1


class LostError(Exception):
    """The server is gone."""


class RefusedError(Exception):
    """The server answered with an error."""


@dataclass(frozen=True)
class Request:
    """One request under way. `offset` and `length` are in bytes."""

    cookie: int
    command: int
    flags: int
    offset: int
    length: int


class NbdClient:
    """One connection to an export."""

    def __init__(self, host: str, port: int, export: str, timeout_s: float = 30.0) -> None:
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.size_bytes = self._go(export)
        except (OSError, struct.error) as error:
            raise LostError(str(error)) from error
        self._cookie = 0
        self._under_way: dict[int, Request] = {}
        self._pending = bytearray()

    def close(self) -> None:
        """Drops the connection."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise LostError("the connection ended")
            data += piece
        return bytes(data)

    def _go(self, export: str) -> int:
        magic, option_magic, flags = struct.unpack(">QQH", self._exactly(18))
        if magic != NBD_MAGIC or option_magic != OPTION_MAGIC or not flags & 1:
            raise RefusedError("not a fixed newstyle server")
        self._socket.sendall(struct.pack(">I", FIXED_NEWSTYLE_AND_NO_ZEROES))
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">QII", OPTION_MAGIC, OPTION_GO, len(data)) + data)
        size = -1
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._exactly(20))
            payload = self._exactly(length)
            if magic != OPTION_REPLY_MAGIC or kind & 0x8000_0000:
                raise RefusedError(f"export {export!r}: reply {kind:#x} {payload!r}")
            if kind == REPLY_INFO and struct.unpack(">H", payload[:2])[0] == INFO_EXPORT:
                size = struct.unpack(">Q", payload[2:10])[0]
            if kind == REPLY_ACK:
                return size

    @property
    def under_way(self) -> int:
        """Requests not answered yet."""
        return len(self._under_way)

    def send(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> Request:
        """Queues a request; it leaves with the next `push`."""
        self._cookie += 1
        request = Request(self._cookie, command, flags, offset, length)
        self._under_way[request.cookie] = request
        self._pending += struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, request.cookie, offset, length) + data
        return request

    def push(self) -> None:
        """Sends what is queued."""
        data, self._pending = self._pending, bytearray()
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LostError(str(error)) from error

    def answer(self) -> tuple[Request, bytes]:
        """The next answer, whichever request it is for; data if it was a read."""
        try:
            magic, error, cookie = struct.unpack(">IIQ", self._exactly(16))
            request = self._under_way.pop(cookie)
            if magic != REPLY_MAGIC:
                raise RefusedError(f"bad reply magic {magic:#x}")
            if error:
                raise RefusedError(f"{request}: error {error}")
            return request, self._exactly(request.length) if request.command == READ else b""
        except OSError as error:
            raise LostError(str(error)) from error

    def read(self, offset: int, length: int) -> bytes:
        """Reads, with nothing else under way."""
        self.send(READ, offset, length)
        self.push()
        return self.answer()[1]
