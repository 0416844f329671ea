"""An iSCSI initiator for tests: libiscsi, an ordinary client that knows nothing of us, called in this process so that a session can be kept."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from types import TracebackType
from typing import Self

TIMEOUT_S = 30
DISCOVERY, NORMAL = 1, 2
CHECK_CONDITION = 2
NO_DATA, DATA_IN, DATA_OUT = 0, 1, 2

LUNS_CHANGED = 0x3F0E
INQUIRY_CHANGED = 0x3F03
MODE_CHANGED = 0x2A01
CAPACITY_CHANGED = 0x2A09
MEDIUM_CHANGED = 0x2800
SPACE_LOW = 0x3807
INVALID_OPCODE = 0x2000
NO_SUCH_LUN = 0x2500
WRITE_PROTECTED = 0x2700


class _Sense(ctypes.Structure):
    _fields_ = [
        ("error_type", ctypes.c_ubyte),
        ("key", ctypes.c_int),
        ("ascq", ctypes.c_int),
        ("flags", ctypes.c_ubyte),
        ("bit_pointer", ctypes.c_ubyte),
        ("field_pointer", ctypes.c_uint16),
    ]


class _Data(ctypes.Structure):
    _fields_ = [("size", ctypes.c_int), ("data", ctypes.POINTER(ctypes.c_ubyte))]


class _Task(ctypes.Structure):
    """The head of `struct scsi_task`."""

    _fields_ = [
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense", _Sense),
        ("datain", _Data),
    ]


class _Out(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_char_p)]


class _Found(ctypes.Structure):
    pass


_Found._fields_ = [
    ("next", ctypes.POINTER(_Found)),
    ("target_name", ctypes.c_char_p),
    ("portals", ctypes.c_void_p),
]


def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("iscsi")
    assert name, "libiscsi is missing: `make setup` installs it"
    library = ctypes.CDLL(name)
    library.iscsi_create_context.restype = ctypes.c_void_p
    library.iscsi_get_error.restype = ctypes.c_char_p
    library.iscsi_discovery_sync.restype = ctypes.POINTER(_Found)
    library.scsi_create_task.restype = ctypes.POINTER(_Task)
    library.iscsi_scsi_command_sync.restype = ctypes.POINTER(_Task)
    return library


class RefusedError(Exception):
    """The login did not succeed."""


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    status: int
    """SAM status; 2 is CHECK CONDITION."""

    ascq: int
    """Additional sense code and qualifier, 0 if there is no sense data."""

    data: bytes

    @property
    def good(self) -> bool:
        return self.status == 0


@dataclass(frozen=True)
class Credentials:
    """What to prove oneself with, and what the target is expected to."""

    user: str
    secret: str
    mutual_user: str | None = None
    mutual_secret: str | None = None


class Initiator:
    """One session, from login to logout."""

    def __init__(
        self,
        portal: str,
        name: str,
        target: str | None = None,
        credentials: Credentials | None = None,
        isid: int | None = None,
    ) -> None:
        """Logs in to a target, or for discovery. Raises RefusedError. `isid`, of 24 bits, is what its ISID has in place of chance."""
        self._library = _library()
        library = self._library
        self._context = ctypes.c_void_p(library.iscsi_create_context(name.encode()))
        library.iscsi_set_timeout(self._context, TIMEOUT_S)
        library.iscsi_set_noautoreconnect(self._context, 1)
        library.iscsi_set_session_type(self._context, NORMAL if target else DISCOVERY)
        if isid is not None:
            library.iscsi_set_isid_random(self._context, isid, 0)
        if target:
            library.iscsi_set_targetname(self._context, target.encode())
        if credentials:
            library.iscsi_set_initiator_username_pwd(
                self._context, credentials.user.encode(), credentials.secret.encode()
            )
            if credentials.mutual_user and credentials.mutual_secret:
                library.iscsi_set_target_username_pwd(
                    self._context, credentials.mutual_user.encode(), credentials.mutual_secret.encode()
                )
        if library.iscsi_connect_sync(self._context, portal.encode()) or library.iscsi_login_sync(self._context):
            error = self.error
            library.iscsi_destroy_context(self._context)
            raise RefusedError(error)

    @property
    def error(self) -> str:
        return bytes(self._library.iscsi_get_error(self._context) or b"").decode()

    def close(self) -> None:
        self._library.iscsi_logout_sync(self._context)
        self._library.iscsi_destroy_context(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def targets(self) -> list[str]:
        """What discovery shows."""
        head = self._library.iscsi_discovery_sync(self._context)
        found, at = [], head
        while at:
            found.append(bytes(at.contents.target_name).decode())
            at = at.contents.next
        if head:
            self._library.iscsi_free_discovery_data(self._context, head)
        return sorted(found)

    def command(self, lun: int, cdb: bytes, *, read_bytes: int = 0, data: bytes = b"") -> Answer:
        """Sends one command and waits for its end."""
        direction = DATA_OUT if data else DATA_IN if read_bytes else NO_DATA
        task = self._library.scsi_create_task(len(cdb), cdb, direction, len(data) or read_bytes)
        out = _Out(len(data), data)
        done = self._library.iscsi_scsi_command_sync(
            self._context, lun, task, ctypes.byref(out) if data else ctypes.c_void_p()
        )
        assert done, f"no answer: {self.error}"
        found = done.contents
        size = max(found.datain.size, 0) if found.datain.data else 0
        checked = found.status == CHECK_CONDITION
        answer = Answer(found.status, found.sense.ascq if checked else 0, bytes(found.datain.data[:size]))
        self._library.scsi_free_scsi_task(task)
        return answer

    # Commands by name.

    def test_unit_ready(self, lun: int) -> Answer:
        return self.command(lun, bytes(6))

    def attentions(self, lun: int) -> list[int]:
        """Takes the unit attentions that wait: their codes, in order."""
        found: list[int] = []
        while len(found) < 20:
            answer = self.test_unit_ready(lun)
            if answer.good or answer.ascq == NO_SUCH_LUN:
                return found
            found.append(answer.ascq)
        raise AssertionError(f"no end of attentions: {found}")

    def luns(self) -> list[int]:
        """What REPORT LUNS lists."""
        data = self.command(0, bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0)), read_bytes=4096).data
        count = int.from_bytes(data[:4], "big") // 8
        return [int.from_bytes(data[8 * i : 8 * i + 2], "big") & 0x3FFF for i in range(1, count + 1)]

    def write(self, lun: int, lba: int, data: bytes) -> Answer:
        cdb = bytes((0x2A, 0)) + lba.to_bytes(4, "big") + b"\0" + (len(data) // 512).to_bytes(2, "big") + b"\0"
        return self.command(lun, cdb, data=data)

    def read(self, lun: int, lba: int, blocks: int) -> bytes:
        cdb = bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
        answer = self.command(lun, cdb, read_bytes=512 * blocks)
        assert answer.good, answer
        return answer.data

    def compare_and_write(self, lun: int, lba: int, expected: bytes, new: bytes) -> Answer:
        cdb = bytes((0x89, 0)) + lba.to_bytes(8, "big") + bytes((0, 0, 0, len(new) // 512, 0, 0))
        return self.command(lun, cdb, data=expected + new)

    def write_same(self, lun: int, lba: int, blocks: int, block: bytes) -> Answer:
        cdb = bytes((0x93, 0)) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)
        return self.command(lun, cdb, data=block)

    def unmap(self, lun: int, lba: int, blocks: int) -> Answer:
        descriptor = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
        header = (len(descriptor) + 6).to_bytes(2, "big") + len(descriptor).to_bytes(2, "big") + bytes(4)
        data = header + descriptor
        return self.command(lun, bytes((0x42, 0, 0, 0, 0, 0, 0)) + len(data).to_bytes(2, "big") + b"\0", data=data)

    def supports(self, lun: int, opcode: int) -> bool:
        """What REPORT SUPPORTED OPERATION CODES says of one."""
        cdb = bytes((0xA3, 0x0C, 1, opcode, 0, 0, 0, 0, 1, 0, 0, 0))
        answer = self.command(lun, cdb, read_bytes=256)
        assert answer.good, answer
        return answer.data[1] & 7 == 3

    def write_protected(self, lun: int) -> bool:
        """The WP bit of MODE SENSE(6)."""
        return bool(self.command(lun, bytes((0x1A, 0, 0x3F, 0, 255, 0)), read_bytes=255).data[2] & 0x80)
