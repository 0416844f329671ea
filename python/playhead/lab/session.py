"""A session over one connection: login with any keys and CHAP, commands one by one or many at once, and what it cost on the wire.

One thread uses a session at a time. Whatever the target sends that is not about the command waited for is kept for the one it is about.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crc32c import crc32c

from playhead.errors import PlayheadError
from playhead.lab import pdu
from playhead.lab.chap import Chap, ChapError, Proof
from playhead.lab.pdu import Digests, Header, Received

GOOD, CHECK_CONDITION, BUSY, CONFLICT, TASK_SET_FULL = 0x00, 0x02, 0x08, 0x18, 0x28
LOGIN_STEPS_MAX = 16
TEXT_STEPS_MAX = 64
ATTENTIONS_MAX = 16
KEPT_MAX = 4096
"""PDUs about nothing we asked that are kept for whoever waits for them."""

INITIATOR = "iqn.2026-11.io.playhead.lab:initiator"
"""What it calls itself unless told otherwise."""

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


class SessionError(PlayheadError):
    """A session that cannot go on. The text names the target."""


class EndedError(SessionError):
    """The target hung up."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreachable", detail, "look at the target's log")


class ProtocolError(SessionError):
    """The target said something that iSCSI does not have there."""

    def __init__(self, detail: str) -> None:
        super().__init__("io", detail, "report it to whoever makes the target")


class LoginError(SessionError):
    """The target refused a login; `status` is class and detail (RFC 7143 11.13.5)."""

    def __init__(self, status: int, who: str = "the target") -> None:
        code, why, step = LOGIN_STATUS.get(status, ("unreachable", "it gave no reason we know", "look at its log"))
        super().__init__(code, f"{who} refused the login with status {status:#06x}: {why}", step)
        self.status = status


LOGIN_STATUS = {
    0x0101: ("unreachable", "it has moved for now", "probe it at its new address"),
    0x0102: ("unreachable", "it has moved", "probe it at its new address"),
    0x0201: ("unauthorised", "authentication failed", "check user and secret"),
    0x0202: ("unauthorised", "this initiator is not allowed there", "allow it, or give --initiator"),
    0x0203: ("not-found", "there is no such target for this initiator", "check the IQN, or give --initiator"),
    0x0300: ("unreachable", "the target failed", "look at its log"),
    0x0301: ("unreachable", "it is not available now", "try again later"),
    0x0302: ("unreachable", "it is out of resources", "try again later"),
}


class UntrustedError(SessionError):
    """The target did not prove who it is (mutual CHAP)."""

    def __init__(self, detail: str) -> None:
        super().__init__("unauthorised", detail, "check the target's user and secret")


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
        if self.sense[0] & 0x7F < 0x72 and len(self.sense) < 14:
            return self.sense[2] & 0xF, 0
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


class CommandError(PlayheadError):
    """A command ended otherwise than GOOD."""

    def __init__(self, cdb: bytes, answer: Answer, who: str = "the target") -> None:
        key, code = answer.key_code
        detail = f"{who}: command {cdb.hex()} ended with status {answer.status:#04x}, sense {key:x}/{code:04x}"
        super().__init__("io", detail, "look at the target's log")
        self.answer = answer


@dataclass
class _Task:
    cdb: bytes
    lun: int
    data_out: bytes
    read_bytes: int = 0
    data_in: bytearray = field(default_factory=bytearray)
    answer: Answer | None = None


class Session:
    """A logged-in session. Use `raw` and `receive` to step outside the rules."""

    def __init__(
        self,
        address: str,
        target: str | None,
        *,
        initiator: str = INITIATOR,
        isid: int = 1,
        keys: dict[str, str] | None = None,
        chap: Chap | None = None,
        timeout_s: float = 30.0,
        log_in: bool = True,
    ) -> None:
        """Connects to `HOST:PORT` and logs in, unless told not to; without `target` it is a discovery session. Whatever the target is
        waited for longer than `timeout_s` raises TimeoutError."""
        host, _, port = address.rpartition(":")
        self.who = f"{target or 'discovery'} at {address}"
        try:
            self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise EndedError(f"nothing answers at {address} ({error})") from error
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
        self.first_burst_bytes = 65536
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
        self.target_max_bytes = self._number("MaxRecvDataSegmentLength", 8192)
        self.first_burst_bytes = self._number("FirstBurstLength", 65536)

    def _number(self, key: str, default: int) -> int:
        """A length the target answered with (RFC 7143 13: 512 to 2^24 - 1)."""
        text = self.parameters.get(key, str(default))
        if text == "Irrelevant":
            return default
        if not text.isascii() or not text.isdigit() or not 512 <= int(text) < 1 << 24:
            raise ProtocolError(f"{self.who} answered {key}={text[:40]!r}")
        return int(text)

    def _prove(self, names: list[tuple[str, str]], chap: Chap) -> None:
        offered = self._stage(pdu.SECURITY, None, [*names, ("AuthMethod", "CHAP,None")])
        if offered.get("AuthMethod") == "None":
            if chap.target_secret is not None:
                raise UntrustedError(f"{self.who} was to prove itself and offers no authentication")
            self._stage(pdu.SECURITY, pdu.OPERATIONAL, [])
            return
        asked = self._stage(pdu.SECURITY, None, [("CHAP_A", chap.algorithms)])
        try:
            proof = Proof(chap, asked)
            answered = self._stage(pdu.SECURITY, pdu.OPERATIONAL, proof.pairs())
            proved = proof.is_proved_by(answered)
        except ChapError as error:
            raise ProtocolError(f"{self.who}: {error}") from error
        if not proved:
            raise UntrustedError(f"{self.who} did not prove who it is; it answered as {answered.get('CHAP_N')!r}")

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
                raise ProtocolError(f"{self.who} answered a login with opcode {got.header.opcode:#x}")
            status = int.from_bytes(got.header.raw[36:38], "big")
            if status:
                raise LoginError(status, self.who)
            answered.update(self._pairs(got.data))
            self.exp_stat_sn = got.header.word(24) + 1
            if to is None or got.header.flags & pdu.FINAL:
                self.tsih = int.from_bytes(got.header.raw[14:16], "big")
                self.parameters.update(answered)
                return answered
            offer = []
        raise ProtocolError(f"{self.who} does not end the login")

    def _pairs(self, data: bytes) -> list[tuple[str, str]]:
        try:
            return pdu.pairs(data)
        except ValueError as error:
            raise ProtocolError(f"{self.who} sent text that is none") from error

    # PDUs.

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.wire.sent_bytes += len(data)
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise EndedError(f"{self.who} hung up ({error})") from error

    def say_no_more(self) -> None:
        """Closes our half of the connection."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise EndedError(f"{self.who} hung up ({error})") from error

    def send(self, head: bytes, data: bytes = b"") -> None:
        """Sends a PDU with the digests in force."""
        self.raw(pdu.whole(head, data, self.digests))

    def _gather(self, count: int) -> None:
        """Has at least `count` bytes in the buffer. A timeout loses none."""
        while len(self._buffer) < count:
            try:
                some = self.socket.recv(1 << 18)
            except TimeoutError:
                raise
            except OSError as error:
                raise EndedError(f"{self.who} hung up ({error})") from error
            if not some:
                raise EndedError(f"{self.who} hung up")
            self.wire.received_bytes += len(some)
            self._buffer += some

    def receive(self) -> Received:
        """The next PDU, its digests checked. Raises TimeoutError, or EndedError."""
        self._gather(pdu.BHS_BYTES)
        head = Header(bytes(self._buffer[: pdu.BHS_BYTES]))
        if head.raw[4]:
            raise ProtocolError(f"{self.who} sent additional header segments")
        start = pdu.BHS_BYTES + (4 if self.digests.header else 0)
        end = start + (head.data_bytes + 3 & ~3)
        checked = self.digests.data and head.data_bytes > 0
        total = end + (4 if checked else 0)
        self._gather(total)
        padded = bytes(self._buffer[start:end])
        if self.digests.header and self._buffer[pdu.BHS_BYTES : start] != crc32c(head.raw).to_bytes(4, "little"):
            raise ProtocolError(f"{self.who} sent a header digest that is wrong")
        if checked and self._buffer[end:total] != crc32c(padded).to_bytes(4, "little"):
            raise ProtocolError(f"{self.who} sent a data digest that is wrong")
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
        end = self._deadline()
        while not immediate and (self.max_cmd_sn - self.cmd_sn) & 0xFFFF_FFFF >= 1 << 31:
            self._pump(end)
        itt = self.next_itt
        self.next_itt = (self.next_itt + 1) % pdu.RESERVED_TAG
        first = min(len(data), self.first_burst_bytes)
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
        self._tasks[itt] = _Task(cdb, lun, data, read_bytes)
        self.wire.commands += 1
        if not immediate:
            self.cmd_sn = (self.cmd_sn + 1) & 0xFFFF_FFFF
        self.send(head, data[:now])
        if unasked > now:
            self._data_out(itt, pdu.RESERVED_TAG, now, unasked)
        return itt

    def finish(self, itt: int) -> Answer:
        """Waits until a command ends."""
        end = self._deadline()
        while (answer := self._tasks[itt].answer) is None:
            self._pump(end)
        del self._tasks[itt]
        return answer

    def execute(self, cdb: bytes, *, data: bytes = b"", read_bytes: int = 0, lun: int = 0) -> Answer:
        """Runs a command to its end."""
        return self.finish(self.start(cdb, data=data, read_bytes=read_bytes, lun=lun))

    def must(self, cdb: bytes, *, data: bytes = b"", read_bytes: int = 0, lun: int = 0) -> bytes:
        """Runs a command that has to end in GOOD, past any unit attentions; its data-in."""
        for _ in range(ATTENTIONS_MAX):
            answer = self.execute(cdb, data=data, read_bytes=read_bytes, lun=lun)
            if not answer.attention:
                break
        if not answer.good:
            raise CommandError(cdb, answer, self.who)
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

    def _deadline(self) -> float | None:
        """When a wait that begins now has lasted too long."""
        timeout_s = self.socket.gettimeout()
        return None if timeout_s is None else time.monotonic() + timeout_s

    def _pump(self, end: float | None = None) -> None:
        """Takes one PDU and does what it asks for. A target that talks of other things until `end` has not answered."""
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"{self.who} did not answer in time")
        got = self.receive()
        head = got.header
        task = self._tasks.get(head.itt)
        if head.opcode == pdu.NOP_IN and head.ttt != pdu.RESERVED_TAG and head.itt == pdu.RESERVED_TAG:
            words = (head.ttt, self.cmd_sn, self.exp_stat_sn)
            self.send(pdu.header(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, itt=pdu.RESERVED_TAG, words=words))
        elif task is not None and head.opcode == pdu.R2T:
            offset, wanted = head.word(40), head.word(44)
            if offset + wanted > len(task.data_out):
                raise ProtocolError(f"{self.who} asks for {offset + wanted} bytes of {len(task.data_out)}")
            self._data_out(head.itt, head.ttt, offset, offset + wanted)
        elif task is not None and head.opcode == pdu.DATA_IN:
            offset = head.word(40)
            if offset + len(got.data) > task.read_bytes:
                raise ProtocolError(
                    f"{self.who} sends {offset + len(got.data)} bytes where {task.read_bytes} were asked for"
                )
            if len(task.data_in) < offset + len(got.data):
                task.data_in.extend(bytes(offset + len(got.data) - len(task.data_in)))
            task.data_in[offset : offset + len(got.data)] = got.data
            if head.flags & 1:
                self._end(task, head, b"")
        elif task is not None and head.opcode == pdu.RESPONSE:
            self._end(task, head, got.data)
        else:
            if len(self._other) >= KEPT_MAX:
                raise ProtocolError(f"{self.who} sends PDUs that are about nothing it was asked")
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
        end = self._deadline()
        while True:
            for at, got in enumerate(self._other):
                if wanted(got):
                    return self._other.pop(at)
            self._pump(end)

    def _control(
        self, opcode: int, flags: int, answer: int, *, lun: int = 0, words: tuple[int, ...], data: bytes = b""
    ) -> Received:
        itt = self.next_itt
        self.next_itt = (self.next_itt + 1) % pdu.RESERVED_TAG
        self.send(pdu.header(opcode | pdu.IMMEDIATE, flags, lun=lun, itt=itt, words=words), data)
        got = self.wait_for(lambda got: got.header.opcode in (answer, pdu.REJECT))
        self.exp_stat_sn = (got.header.word(24) + 1) & 0xFFFF_FFFF
        if got.header.opcode != answer:
            raise ProtocolError(f"{self.who} rejected opcode {opcode:#04x} for reason {got.header.raw[2]:#04x}")
        return got

    def task_management(self, function: int, *, lun: int = 0, itt: int = pdu.RESERVED_TAG, ref_cmd_sn: int = 0) -> int:
        """A task management function; the response."""
        words = (itt, self.cmd_sn, self.exp_stat_sn, ref_cmd_sn)
        got = self._control(pdu.TASK_MANAGEMENT, pdu.FINAL | function, pdu.TASK_RESPONSE, lun=lun, words=words)
        return got.header.raw[2]

    def text(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """A text negotiation, to its last answer."""
        offer, ttt, answered = pdu.text(pairs), pdu.RESERVED_TAG, b""
        for _ in range(TEXT_STEPS_MAX):
            words = (ttt, self.cmd_sn, self.exp_stat_sn)
            got = self._control(pdu.TEXT, pdu.FINAL, pdu.TEXT_RESPONSE, words=words, data=offer)
            answered += got.data
            if got.header.flags & pdu.FINAL:
                return self._pairs(answered)
            offer, ttt = b"", got.header.ttt
        raise ProtocolError(f"{self.who} does not end the text")

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
