"""A session over one connection: login with any keys and CHAP, commands one by one or many at once, and what it cost on the wire.

One thread uses a session at a time. Whatever the target sends that is not about the command waited for is kept for the one it is about.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from crc32c import crc32c
from tests.initiator import pdu
from tests.initiator.pdu import Digests, Header, Received

GOOD, CHECK_CONDITION, CONFLICT, TASK_SET_FULL = 0x00, 0x02, 0x18, 0x28
HASHES = {"5": hashlib.md5, "6": hashlib.sha1, "7": hashlib.sha256, "8": hashlib.sha3_256}
"""CHAP algorithms (RFC 7143 12.1.3 and IANA's list)."""
CHALLENGE_BYTES = 16
LOGIN_STEPS_MAX = 16

ORDINARY: dict[str, str] = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "1048576",
    "FirstBurstLength": "262144",
    "MaxOutstandingR2T": "1",
    "ErrorRecoveryLevel": "0",
}
"""Keys offered unless told otherwise."""


class EndedError(Exception):
    """The target hung up."""


class LoginError(Exception):
    """The target refused a login."""

    def __init__(self, status: int) -> None:
        super().__init__(f"login refused with status {status:#06x}")
        self.status = status


class UntrustedError(Exception):
    """The target did not prove who it is (mutual CHAP)."""


@dataclass(frozen=True)
class Chap:
    """Credentials: ours, and what the target must prove if it is to."""

    name: str
    secret: str
    target_name: str | None = None
    target_secret: str | None = None
    algorithms: str = "5"


@dataclass
class Wire:
    """What crossed the connection, both ways, headers and padding included."""

    commands: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.sent_bytes + self.received_bytes


@dataclass
class Answer:
    """How a command ended."""

    status: int
    data: bytes
    sense: bytes = b""
    residual_bytes: int = 0
    """Bytes announced and not moved; below zero, bytes that would not fit."""

    @property
    def good(self) -> bool:
        return self.status == GOOD

    @property
    def key_code(self) -> tuple[int, int]:
        """Sense key, and additional sense code with its qualifier; (0, 0) without sense data."""
        if len(self.sense) < 4:
            return 0, 0
        if self.sense[0] & 0x7F >= 0x72:
            return self.sense[1] & 0xF, self.sense[2] << 8 | self.sense[3]
        return self.sense[2] & 0xF, self.sense[12] << 8 | self.sense[13]

    @property
    def information(self) -> int:
        """The INFORMATION field of fixed-format sense data."""
        return int.from_bytes(self.sense[3:7], "big")

    @property
    def attention(self) -> bool:
        return self.status == CHECK_CONDITION and self.key_code[0] == 6


class CommandError(Exception):
    """A command ended otherwise than GOOD."""

    def __init__(self, cdb: bytes, answer: Answer) -> None:
        key, code = answer.key_code
        super().__init__(f"{cdb.hex()} ended with status {answer.status:#04x}, sense {key:x}/{code:04x}")
        self.answer = answer


@dataclass
class _Task:
    cdb: bytes
    lun: int
    data_out: bytes
    data_in: bytearray = field(default_factory=bytearray)
    answer: Answer | None = None


class Session:
    """A logged-in session. Use `raw` and `receive` to step outside the rules."""

    def __init__(
        self,
        address: str,
        target: str | None,
        *,
        initiator: str = "iqn.2026-11.org.example:tests",
        isid: int = 1,
        keys: dict[str, str] | None = None,
        chap: Chap | None = None,
        timeout_s: float = 30.0,
        log_in: bool = True,
    ) -> None:
        """Connects to `HOST:PORT` and logs in, unless told not to; without `target` it is a discovery session."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wire = Wire()
        self.digests = Digests()
        self.initiator, self.target = initiator, target
        self.isid = b"\x80\0\0" + isid.to_bytes(3, "big")
        self.tsih = 0
        self.cmd_sn, self.exp_stat_sn, self.max_cmd_sn = 1, 0, 1
        self.next_itt = 1
        self.parameters: dict[str, str] = {}
        self.target_max_bytes = 8192
        self._tasks: dict[int, _Task] = {}
        self._other: list[Received] = []
        self._buffer = bytearray()
        if not log_in:
            return
        try:
            self._login(ORDINARY | (keys or {}), chap)
        except BaseException:
            self.socket.close()
            raise

    # Login.

    def _login(self, keys: dict[str, str], chap: Chap | None) -> None:
        names = [("InitiatorName", self.initiator), ("SessionType", "Normal" if self.target else "Discovery")]
        if self.target:
            names.append(("TargetName", self.target))
        if chap:
            self._prove(names, chap)
            names = []
        self._stage(pdu.OPERATIONAL, pdu.FULL_FEATURE, [*names, *keys.items()])
        answered = self.parameters
        self.digests = Digests(answered.get("HeaderDigest") == "CRC32C", answered.get("DataDigest") == "CRC32C")
        self.target_max_bytes = int(answered.get("MaxRecvDataSegmentLength", "8192"))

    def _prove(self, names: list[tuple[str, str]], chap: Chap) -> None:
        offered = self._stage(pdu.SECURITY, None, [*names, ("AuthMethod", "CHAP,None")])
        if offered.get("AuthMethod") == "None":
            self._stage(pdu.SECURITY, pdu.OPERATIONAL, [])
            return
        asked = self._stage(pdu.SECURITY, None, [("CHAP_A", chap.algorithms)])
        digest = HASHES[asked["CHAP_A"]]

        def response(identifier: str, secret: str, challenge: bytes) -> str:
            return "0x" + digest(bytes((int(identifier, 0),)) + secret.encode() + challenge).hexdigest()

        challenge = bytes.fromhex(asked["CHAP_C"][2:])
        proof = [("CHAP_N", chap.name), ("CHAP_R", response(asked["CHAP_I"], chap.secret, challenge))]
        ours = os.urandom(CHALLENGE_BYTES)
        if chap.target_secret is not None:
            proof += [("CHAP_I", "77"), ("CHAP_C", "0x" + ours.hex())]
        answered = self._stage(pdu.SECURITY, pdu.OPERATIONAL, proof)
        if chap.target_secret is not None:
            right = response("77", chap.target_secret, ours)
            same = int(answered.get("CHAP_R", "0"), 0) == int(right, 0)
            if not same or chap.target_name not in (None, answered.get("CHAP_N")):
                raise UntrustedError(f"the target answered as {answered.get('CHAP_N')!r}")

    def _stage(self, stage: int, to: int | None, offer: list[tuple[str, str]]) -> dict[str, str]:
        """One step of a login, from `stage` to `to` if given; the pairs answered."""
        answered: dict[str, str] = {}
        for _ in range(LOGIN_STEPS_MAX):
            flags = stage << 2 | (pdu.FINAL | to if to is not None else 0)
            head = pdu.login(
                flags=flags, isid=self.isid, tsih=self.tsih, itt=1, cmd_sn=self.cmd_sn, exp_stat_sn=self.exp_stat_sn
            )
            self.raw(pdu.whole(head, pdu.text(offer)))
            got = self.receive()
            if got.header.opcode != pdu.LOGIN_RESPONSE:
                raise AssertionError(f"a login was answered with opcode {got.header.opcode:#x}")
            status = int.from_bytes(got.header.raw[36:38], "big")
            if status:
                raise LoginError(status)
            answered.update(pdu.pairs(got.data))
            self.exp_stat_sn = got.header.word(24) + 1
            if to is None or got.header.flags & pdu.FINAL:
                self.tsih = int.from_bytes(got.header.raw[14:16], "big")
                self.parameters.update(answered)
                return answered
            offer = []
        raise AssertionError("the login does not end")

    # PDUs.

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.wire.sent_bytes += len(data)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EndedError(str(error)) from error

    def say_no_more(self) -> None:
        """Closes our half of the connection."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise EndedError(str(error)) from error

    def send(self, head: bytes, data: bytes = b"") -> None:
        """Sends a PDU with the digests in force."""
        self.raw(pdu.whole(head, data, self.digests))

    def _gather(self, count: int) -> None:
        """Has at least `count` bytes in the buffer. A timeout loses none."""
        while len(self._buffer) < count:
            try:
                some = self.socket.recv(1 << 18)
            except ConnectionResetError as error:
                raise EndedError(str(error)) from error
            if not some:
                raise EndedError("the target hung up")
            self.wire.received_bytes += len(some)
            self._buffer += some

    def receive(self) -> Received:
        """The next PDU, its digests checked. Raises TimeoutError, or EndedError."""
        self._gather(pdu.BHS_BYTES)
        head = Header(bytes(self._buffer[: pdu.BHS_BYTES]))
        assert head.raw[4] == 0, "additional header segments from a target"
        start = pdu.BHS_BYTES + (4 if self.digests.header else 0)
        end = start + (head.data_bytes + 3 & ~3)
        checked = self.digests.data and head.data_bytes > 0
        total = end + (4 if checked else 0)
        self._gather(total)
        padded = bytes(self._buffer[start:end])
        if self.digests.header:
            assert self._buffer[pdu.BHS_BYTES : start] == crc32c(head.raw).to_bytes(4, "little"), "header digest"
        if checked:
            assert self._buffer[end:total] == crc32c(padded).to_bytes(4, "little"), "data digest"
        del self._buffer[:total]
        if head.opcode != pdu.LOGIN_RESPONSE:
            self.max_cmd_sn = head.word(32)
        return Received(head, padded[: head.data_bytes])

    # Commands.

    def start(
        self,
        cdb: bytes,
        *,
        data: bytes = b"",
        read_bytes: int = 0,
        lun: int = 0,
        attribute: int = 1,
        immediate: bool = False,
    ) -> int:
        """Sends a command, with the data that may go unasked; its tag. Waits while the window is shut."""
        while not immediate and (self.max_cmd_sn - self.cmd_sn) & 0xFFFF_FFFF >= 1 << 31:
            self._pump()
        itt = self.next_itt
        self.next_itt = (self.next_itt + 1) % pdu.RESERVED_TAG
        first = min(len(data), int(self.parameters.get("FirstBurstLength", "65536")))
        now = min(first, self.target_max_bytes) if self.parameters.get("ImmediateData", "Yes") == "Yes" else 0
        unasked = first if self.parameters.get("InitialR2T", "Yes") == "No" else now
        flags = (0 if unasked > now else pdu.FINAL) | (0x20 if data else 0x40 if read_bytes else 0) | attribute
        head = pdu.header(
            pdu.COMMAND | (pdu.IMMEDIATE if immediate else 0),
            flags,
            lun=lun,
            itt=itt,
            words=(len(data) or read_bytes, self.cmd_sn, self.exp_stat_sn),
            tail=cdb,
        )
        self._tasks[itt] = _Task(cdb, lun, data)
        self.wire.commands += 1
        if not immediate:
            self.cmd_sn = (self.cmd_sn + 1) & 0xFFFF_FFFF
        self.send(head, data[:now])
        if unasked > now:
            self._data_out(itt, pdu.RESERVED_TAG, now, unasked)
        return itt

    def finish(self, itt: int) -> Answer:
        """Waits until a command ends."""
        while (answer := self._tasks[itt].answer) is None:
            self._pump()
        del self._tasks[itt]
        return answer

    def execute(self, cdb: bytes, *, data: bytes = b"", read_bytes: int = 0, lun: int = 0) -> Answer:
        """Runs a command to its end."""
        return self.finish(self.start(cdb, data=data, read_bytes=read_bytes, lun=lun))

    def must(self, cdb: bytes, *, data: bytes = b"", read_bytes: int = 0, lun: int = 0) -> bytes:
        """Runs a command that has to end in GOOD, past any unit attentions; its data-in."""
        for _ in range(8):
            answer = self.execute(cdb, data=data, read_bytes=read_bytes, lun=lun)
            if not answer.attention:
                break
        if not answer.good:
            raise CommandError(cdb, answer)
        return answer.data

    def ready(self, lun: int = 0) -> None:
        """TEST UNIT READY until the unit attentions are told."""
        self.must(bytes(6), lun=lun)

    def _data_out(self, itt: int, ttt: int, start: int, end: int) -> None:
        task = self._tasks[itt]
        sequence = 0
        while start < end:
            stop = min(end, start + self.target_max_bytes)
            flags = pdu.FINAL if stop == end else 0
            words = (ttt, 0, self.exp_stat_sn, 0, sequence, start)
            self.send(pdu.header(pdu.DATA_OUT, flags, lun=task.lun, itt=itt, words=words), task.data_out[start:stop])
            start, sequence = stop, sequence + 1

    def _pump(self) -> None:
        """Takes one PDU and does what it asks for."""
        got = self.receive()
        head = got.header
        task = self._tasks.get(head.itt)
        if head.opcode == pdu.NOP_IN and head.ttt != pdu.RESERVED_TAG and head.itt == pdu.RESERVED_TAG:
            words = (head.ttt, self.cmd_sn, self.exp_stat_sn)
            self.send(pdu.header(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, itt=pdu.RESERVED_TAG, words=words))
        elif task is not None and head.opcode == pdu.R2T:
            offset, wanted = head.word(40), head.word(44)
            self._data_out(head.itt, head.ttt, offset, min(offset + wanted, len(task.data_out)))
        elif task is not None and head.opcode == pdu.DATA_IN:
            offset = head.word(40)
            if len(task.data_in) < offset + len(got.data):
                task.data_in.extend(bytes(offset + len(got.data) - len(task.data_in)))
            task.data_in[offset : offset + len(got.data)] = got.data
            if head.flags & 1:
                self._end(task, head, b"")
        elif task is not None and head.opcode == pdu.RESPONSE:
            self._end(task, head, got.data)
        else:
            self._other.append(got)

    def _end(self, task: _Task, head: Header, data: bytes) -> None:
        self.exp_stat_sn = (head.word(24) + 1) & 0xFFFF_FFFF
        count = head.word(44)
        residual = count if head.flags & 0x02 else -count if head.flags & 0x04 else 0
        length = struct.unpack_from(">H", data)[0] if len(data) >= 2 else 0
        task.answer = Answer(head.raw[3], bytes(task.data_in), data[2 : 2 + length], residual)

    # Everything else.

    def wait_for(self, wanted: Callable[[Received], bool]) -> Received:
        """The next PDU of that kind that is about no command of ours."""
        while True:
            for at, got in enumerate(self._other):
                if wanted(got):
                    return self._other.pop(at)
            self._pump()

    def _control(
        self, opcode: int, flags: int, answer: int, *, lun: int = 0, words: tuple[int, ...], data: bytes = b""
    ) -> Received:
        itt = self.next_itt
        self.next_itt = (self.next_itt + 1) % pdu.RESERVED_TAG
        self.send(pdu.header(opcode | pdu.IMMEDIATE, flags, lun=lun, itt=itt, words=words), data)
        got = self.wait_for(lambda got: got.header.opcode in (answer, pdu.REJECT))
        self.exp_stat_sn = (got.header.word(24) + 1) & 0xFFFF_FFFF
        assert got.header.opcode == answer, f"rejected for reason {got.header.raw[2]:#x}"
        return got

    def task_management(self, function: int, *, lun: int = 0, itt: int = pdu.RESERVED_TAG, ref_cmd_sn: int = 0) -> int:
        """A task management function; the response."""
        words = (itt, self.cmd_sn, self.exp_stat_sn, ref_cmd_sn)
        got = self._control(pdu.TASK_MANAGEMENT, pdu.FINAL | function, pdu.TASK_RESPONSE, lun=lun, words=words)
        return got.header.raw[2]

    def text(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """A text negotiation, to its last answer."""
        offer, ttt, answered = pdu.text(pairs), pdu.RESERVED_TAG, b""
        while True:
            words = (ttt, self.cmd_sn, self.exp_stat_sn)
            got = self._control(pdu.TEXT, pdu.FINAL, pdu.TEXT_RESPONSE, words=words, data=offer)
            answered += got.data
            if got.header.flags & pdu.FINAL:
                return pdu.pairs(answered)
            offer, ttt = b"", got.header.ttt

    def ping(self, data: bytes = b"") -> bytes:
        """NOP-Out; what came back."""
        words = (pdu.RESERVED_TAG, self.cmd_sn, self.exp_stat_sn)
        return self._control(pdu.NOP_OUT, pdu.FINAL, pdu.NOP_IN, words=words, data=data).data

    def log_out(self) -> None:
        """Leaves as one should."""
        self._control(pdu.LOGOUT, pdu.FINAL, pdu.LOGOUT_RESPONSE, words=(0, self.cmd_sn, self.exp_stat_sn))
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
