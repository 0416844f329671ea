"""The data path, in Rust. Bytes of user data never pass through here: Python decides, Rust moves them.

Every call that may block releases the GIL. Errors are `NativeError` with a stable `code` (see docs/errors.md).
LSNs are byte offsets in a group's log; times are nanoseconds since the Unix epoch; sizes are bytes unless a name says blocks.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, TypedDict

class NativeError(Exception):
    code: str
    message: str

class PointDict(TypedDict):
    lsn: int
    time_ns: int

class WindowDict(TypedDict):
    edge: PointDict
    head: PointDict

class ArrayLunDict(TypedDict):
    number: int
    device_type: int
    vendor: str
    product: str
    revision: str
    block_count: int
    block_bytes: int
    reads_zeros: bool
    names: list[str]

class VolumeDict(TypedDict):
    number: int
    name: str
    uuid: str
    block_count: int
    base: list[str]
    adopted: bool
    created_lsn: int

class ImageDict(TypedDict):
    name: str
    point: PointDict
    writable: bool
    created_ns: int
    scratch_bytes: int | None
    alert: str | None

class BookmarkDict(TypedDict):
    name: str
    kind: Literal["crash", "application"]
    point: PointDict

class RewindDict(TypedDict):
    at: PointDict
    to: PointDict
    undo_lsn: int

class RecordDict(TypedDict):
    lsn: int
    time_ns: int
    epoch: int
    timeline: int
    volume: int
    opcode: str
    lba: int
    count: int
    payload_bytes: int
    detail: str

PolicyRule = tuple[bytes | None, str | None, str, bool]
"""The LUN's uuid or any, the initiator or any, the offload, whether it is supported."""

ChapTuple = tuple[str, bytes, str | None, bytes | None]
"""User and secret of the initiator; user and secret of the target, if it is asked to prove itself too."""

class OffloadCountDict(TypedDict):
    target: str
    lun: str
    initiator: str
    offload: Literal["ats", "xcopy", "write-same", "unmap", "odx"]
    served: int
    rejected: int
    saved_bytes: int

class TrafficDict(TypedDict):
    target: str
    lun: str
    read_bytes: int
    written_bytes: int
    read_errors: int
    write_errors: int

class ArrayLinkDict(TypedDict):
    initiator: str
    state: str
    portal: str | None
    reason: str | None
    sessions: int

class Array:
    def __init__(
        self,
        portals: list[tuple[str, int]],
        initiator: str,
        isid: bytes,
        target: str | None,
        as_host: bool,
        chap_tuple: tuple[str, bytes, str | None, bytes | None] | None,
        digests: bool,
    ) -> None: ...
    def targets(self) -> list[tuple[str, list[str]]]: ...
    def luns(self) -> list[ArrayLunDict]: ...
    def lun(self, number: int) -> ArrayLunDict | None: ...
    def links(self) -> list[ArrayLinkDict]: ...

class Lun:
    """A disk that a front end can export: a volume of production or of an image."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def block_count(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    def set_read_only(self, read_only: bool) -> None: ...
    @property
    def on_array(self) -> bool: ...

class Group:
    @staticmethod
    def create(dir: str, name: str, segment_bytes: int | None = None) -> Group: ...
    @staticmethod
    def open(dir: str) -> Group: ...
    @property
    def name(self) -> str: ...
    @property
    def id(self) -> str: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def add_sparse_volume(self, name: str, size_bytes: int) -> VolumeDict: ...
    def adopt_volume(self, name: str, path: str) -> VolumeDict: ...
    def remove_volume(self, name: str, delete_base: bool) -> None: ...
    def volumes(self) -> list[VolumeDict]: ...
    def volume_lun(self, name: str, physical_block_bytes: int = 4096) -> Lun: ...
    def head(self) -> PointDict: ...
    def window(self) -> WindowDict: ...
    def flush(self) -> int: ...
    def bookmark(self, name: str, kind: str) -> PointDict: ...
    def bookmarks(self) -> list[BookmarkDict]: ...
    def point_at_lsn(self, lsn: int) -> PointDict: ...
    def point_at_time(self, time_ns: int) -> PointDict: ...
    def check_consistent(self, lsn: int) -> None: ...
    def open_image(self, name: str, lsn: int, writable: bool, force: bool = False) -> ImageDict: ...
    def close_image(self, name: str) -> None: ...
    def images(self) -> list[ImageDict]: ...
    def image_volumes(self, image: str) -> list[VolumeDict]: ...
    def image_lun(self, image: str, volume: str, physical_block_bytes: int = 4096) -> Lun: ...
    def rewind(self, lsn: int) -> RewindDict: ...
    def undo_rewind(self) -> RewindDict: ...
    def rewinds(self) -> list[RewindDict]: ...
    def set_policy(self, window_ns: int | None, limit_bytes: int | None, reserve_bytes: int) -> None: ...
    def forget_copy(self, copy: str) -> None: ...
    def trim_to(self, lsn: int) -> PointDict: ...
    def settle(self, progress: Callable[[int, int], bool]) -> None: ...

class SplitterDict(TypedDict):
    state: Literal["initialising", "resynchronising", "tracking", "stopped", "synchronised", "production-lost"]
    reason: str | None
    lag_bytes: int
    since_ns: int | None
    resync_total_bytes: int
    marked_bytes: int

class HostSplitter:
    """A file or block device of this host, and the volume that is its replica."""

    @staticmethod
    def open(
        group: Group,
        volume: str,
        path: str,
        map_path: str,
        on_journal_failure: Literal["stop", "track"],
        physical_block_bytes: int,
    ) -> HostSplitter: ...
    def disk(self) -> Lun: ...
    def status(self) -> SplitterDict: ...
    def set_on_journal_failure(self, word: Literal["stop", "track"]) -> None: ...
    def compare_all(self) -> None: ...
    def close(self) -> None: ...

class FabricSplitter:
    """A LUN of another array, and the volume that is its replica."""

    @staticmethod
    def open(
        group: Group,
        volume: str,
        target: Array,
        number: int,
        identity: Literal["own", "new"],
        reads_zeros: bool,
        map_path: str,
        on_journal_failure: Literal["stop", "track"],
    ) -> FabricSplitter: ...
    def disk(self) -> Lun: ...
    def status(self) -> SplitterDict: ...
    def set_on_journal_failure(self, word: Literal["stop", "track"]) -> None: ...
    def compare_all(self) -> None: ...
    def close(self) -> None: ...

def host_device_size(path: str, name: str) -> int:
    """The size in bytes of a file or block device that could be attached."""

class StandingDict(TypedDict):
    state: Literal[
        "initialising",
        "catching-up",
        "synchronised",
        "paused",
        "unreachable",
        "resynchronising",
        "diverged",
        "failed",
    ]
    reason: str | None
    since_ns: int
    consistent: bool
    received_lsn: int | None
    durable_lsn: int | None
    head: PointDict | None
    lag_bytes: int | None
    lag_ns: int | None
    received_bytes: int
    opened: int
    left_bytes: int | None
    total_bytes: int | None
    moved_bytes: int | None

class ComparisonDict(TypedDict):
    point: PointDict
    total_bytes: int
    hashed_bytes: int
    differing_blocks: int
    differences: list[tuple[str, int, int]]

class Copy:
    """A copy of a group that a thread of the engine keeps up. Without a source it is opened for its images alone."""

    @staticmethod
    def keep(
        source: Group | None, dir: str, name: str, window_ns: int | None, limit_bytes: int | None, paused: bool
    ) -> Copy: ...
    def stop(self) -> None: ...
    def pause(self, paused: bool) -> None: ...
    def set_policy(self, window_ns: int | None, limit_bytes: int | None) -> None: ...
    def group(self) -> Group | None: ...
    def standing(self) -> StandingDict: ...
    def verify(self, source: Group, lsn: int, progress: Callable[[int, int], bool]) -> ComparisonDict: ...

def promote_copy(dir: str, allow_inconsistent: bool) -> None: ...

class IscsiServer:
    """Listens from its construction on; who connects waits until `open`. `patience_s` limits how long a removal or a stop waits for I/O
    under way; the thing is removed in any case."""

    def __init__(self, host: str, port: int) -> None: ...
    def listen(self, host: str, port: int) -> None: ...
    def open(self) -> None: ...
    @property
    def portals(self) -> list[tuple[str, int]]: ...
    def set_reservation_directory(self, path: str | PathLike[str]) -> None: ...
    def forget_reservations(self, uuid: str) -> None: ...
    def add_target(self, iqn: str) -> None: ...
    def remove_target(self, iqn: str, patience_s: float) -> None: ...
    def set_lun(self, iqn: str, number: int, lun: Lun) -> None: ...
    def remove_lun(self, iqn: str, number: int, patience_s: float) -> None: ...
    def set_policy(self, rules: list[PolicyRule]) -> None: ...
    def offload_counts(self) -> list[OffloadCountDict]: ...
    def traffic(self) -> list[TrafficDict]: ...
    def authentication_failures(self) -> int: ...
    def set_masking(self, table: dict[tuple[str, int], list[tuple[str, int, bool]]]) -> None:
        """(target, own number) -> [(initiator, number there, read-only)]. Absent: everyone, under its own number; empty: nobody.
        Where two LUNs claim one number, the one in the table wins. Initiators that see another list than before are told."""

    def set_credentials(self, required: bool, discovery: ChapTuple | None, initiators: dict[str, ChapTuple]) -> None:
        """For logins from now on. An initiator with credentials must prove itself; `required`: one without is refused."""

    def set_redirect(self, iqn: str, address: str | None, permanent: bool) -> None: ...
    def changed(self, iqn: str) -> None: ...
    def space_low(self, iqn: str) -> None: ...
    def mode_changed(self, iqn: str, number: int) -> None: ...
    def sessions(self) -> list[dict[str, Any]]: ...
    def stop(self, patience_s: float) -> int: ...

class NbdServer:
    """Listens from its construction on; who connects waits until `open`."""

    def __init__(self, host: str, port: int) -> None: ...
    def open(self) -> None: ...
    @property
    def address(self) -> tuple[str, int]: ...
    def heed_reservations(self, iscsi: IscsiServer) -> None: ...
    def add_export(self, name: str, lun: Lun, description: str = "") -> None: ...
    def remove_export(self, name: str, patience_s: float) -> None: ...
    def set_policy(self, rules: list[PolicyRule]) -> None: ...
    def connections(self) -> list[dict[str, Any]]: ...
    def stop(self, patience_s: float) -> int: ...

class BlockDeviceDict(TypedDict):
    name: str
    number: int
    since_ns: int
    serving: bool
    requests: int
    read_bytes: int
    written_bytes: int

class UblkServer:
    """LUNs as block devices of this host, by name. Needs nothing of the kernel until the first is served."""

    def __init__(self) -> None: ...
    def heed_reservations(self, iscsi: IscsiServer) -> None: ...
    def set_policy(self, rules: list[PolicyRule]) -> None: ...
    def serve(self, name: str, number: int, lun: Lun) -> None: ...
    def let_go(self, name: str, patience_s: float) -> None: ...
    def remove(self, name: str, number: int, uuid: str) -> None: ...
    def devices(self) -> list[BlockDeviceDict]: ...
    def stop(self, patience_s: float) -> int: ...

class LabSplitter:
    """The laboratory's splitter, which can be told to miss offloads: in an array, in a host, or in the fabric before an array. It makes its own
    files, its own journal and that array, in a folder that holds the laboratory's mark and nothing else; `playhead.lab` alone uses it."""

    def __init__(self, dir: str | PathLike[str], place: str, names: list[str], block_count: int) -> None: ...
    def miss(self, offloads: list[str]) -> None: ...
    def production(self, name: str) -> Lun: ...
    def beyond(self, name: str) -> tuple[str, int, str, int] | None:
        """Host, port, iSCSI name and number of production past the splitter, where there is such a way."""

    def replica(self, name: str) -> Lun:
        """As of now; another LUN at each call."""

    def journal(self) -> tuple[int, int]:
        """Records, and bytes."""

    def close(self) -> None: ...
    @staticmethod
    def mark() -> tuple[str, str]:
        """Name and content of the file that makes a folder the laboratory's."""

def dump(dir: str, from_lsn: int, visit: Callable[[RecordDict], bool]) -> None: ...
def verify(dir: str) -> dict[str, Any]: ...
def log_to_stderr(level: str, json: bool) -> None: ...
def version() -> str: ...
