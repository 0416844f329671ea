"""What programs see of each noun: the JSON of the API and of the CLI's `-o json`. Documented in docs/rest.md.

Sizes are bytes, LSNs are positions in a group's journal, times are RFC 3339 in UTC with nanoseconds; a unit ends the name wherever
the type does not tell it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from playhead.point import show_time
from playhead.policy import Action, OffloadName

if TYPE_CHECKING:
    from playhead._native import PointDict
    from playhead.host import Chap, HostRow
    from playhead.policy import Rule


class Point(BaseModel):
    """An instant of a group."""

    lsn: int
    time: str

    @classmethod
    def of(cls, point: PointDict) -> Point:
        return cls(lsn=point["lsn"], time=show_time(point["time_ns"]))


class Disk(BaseModel):
    """A volume of production or of an image, as hosts reach it. A URL is null when that front end is off, or would not show it."""

    path: str = Field(description="GROUP/VOLUME, or GROUP/IMAGE/VOLUME")
    name: str
    group: str
    uuid: str
    size_bytes: int
    read_only: bool
    lun: int = Field(description="Its own number; a host it is mapped to may find it under another")
    iqn: str
    hosts: list[str] | None = Field(
        description="The hosts that see it; null: every initiator, and NBD clients; empty: nobody"
    )
    iscsi_url: str | None
    nbd_url: str | None


class FabricPath(BaseModel):
    """A host's session with an array, by way of Playhead."""

    initiator: str = Field(description="The name it is logged in under")
    state: str = Field(description="up; connecting, logging-in or waiting while it is not")
    portal: str | None
    reason: str | None = Field(description="Why it is not up")
    sessions: int = Field(description="Logins so far: more than one after the array was lost")


class Fabric(BaseModel):
    """Where production on another array is."""

    array: str
    target: str
    lun: int
    identity: Literal["own", "new"] = Field(description="own: hosts find the array's names; new: the volume's")
    paths: list[FabricPath]


class Splitter(BaseModel):
    """How a volume stands to its production, which lives elsewhere."""

    kind: Literal["host", "fabric"] = Field(
        description="`host`: production is a file or block device of this host; `fabric`: a LUN of another array"
    )
    production: str = Field(description="Where it is")
    state: Literal["initialising", "resynchronising", "tracking", "stopped", "synchronised", "production-lost"]
    reason: str | None = Field(description="What is in the way, if something is")
    lag_bytes: int = Field(description="Production that may differ from the volume")
    lag_s: float | None = Field(description="How long it may; null: it does not")
    since: str | None
    resync_done_bytes: int
    resync_total_bytes: int = Field(
        description="What this resynchronisation had to compare so far; 0: none is under way"
    )
    marked_bytes: int = Field(description="What a crash now would make to compare")
    fabric: Fabric | None = Field(description="Of the kind `fabric`, else null")


class Ublk(BaseModel):
    """A volume as a block device of the appliance's own host."""

    device: str = Field(description="Like /dev/ublkb0; the same after every restart")
    serving: bool = Field(description="If not, what is asked of the device waits")
    reason: str | None = Field(description="Why it is not served")


class Volume(Disk):
    """A volume of production."""

    number: int = Field(description="Its number in the journal's records")
    base: list[str] = Field(description="The plain files or device that hold its blocks as of the trailing edge")
    adopted: bool
    physical_block_bytes: int = Field(
        description="What hosts are told is a physical block: 512, their own block, or 4096"
    )
    created_lsn: int
    ublk: Ublk | None = Field(description="Null: it is no block device of the appliance's host")
    splitter: Splitter | None = Field(description="Null: Playhead is the array, and production is the volume itself")


class ArrayLun(BaseModel):
    """A LUN of an array, as Playhead itself is shown it."""

    number: int
    vendor: str
    product: str
    size_bytes: int
    block_bytes: int
    is_disk: bool
    names: list[str] = Field(description="Its own names (VPD page 83h), in hexadecimal")
    volume: str | None = Field(description="The volume whose production it is")


class ArrayTarget(BaseModel):
    """A target of an array."""

    iqn: str
    portals: list[str]
    luns: list[ArrayLun]
    reason: str | None = Field(description="Why its LUNs are not known")


class Array(BaseModel):
    """Other storage whose LUNs can be protected. Secrets are never shown."""

    name: str
    portals: list[str]
    initiator: str = Field(description="As whom Playhead itself logs in: the array must show it the LUNs")
    names: Literal["host", "own"] = Field(description="Under whose names hosts' sessions log in")
    digests: bool
    chap_user: str | None
    mutual_user: str | None
    volumes: list[str] = Field(description="Those with production there")


class Image(BaseModel):
    """A group's volumes as of one point. The URLs and the size are those of its first volume; `volumes` has every one's."""

    path: str
    name: str
    group: str
    copy_name: str | None = Field(description="The copy it is read from; null: production")
    point: Point
    writable: bool
    scratch_bytes: int | None = Field(
        description="Taken on the copy's disk by what was written to it; null if that is in the group's own journal, or nothing can be"
    )
    alert: str | None
    created: str
    iqn: str
    size_bytes: int | None
    iscsi_url: str | None
    nbd_url: str | None
    volumes: list[Disk]


class Bookmark(BaseModel):
    """A named point."""

    path: str
    name: str
    group: str
    kind: Literal["crash", "application"]
    lsn: int
    time: str


class Policy(BaseModel):
    """How much past a group keeps; null is no limit of that kind."""

    window_ns: int | None = Field(default=None, ge=0, le=(1 << 63) - 1)
    limit_bytes: int | None = Field(default=None, ge=0, le=(1 << 63) - 1)
    reserve_bytes: int = Field(
        default=0, ge=0, le=(1 << 63) - 1, description="Journal kept allocated ahead of need, so that flushes are fast"
    )
    on_journal_failure: Literal["stop", "track"] = Field(
        default="stop",
        description="For volumes whose production lives elsewhere, while the journal cannot be written: hosts are stopped, or it is tracked"
        " what production does, and resynchronised later",
    )


class Rewind(BaseModel):
    """Production went back to a point."""

    group: str
    at: Point = Field(description="When it was done")
    to: Point = Field(description="Where production went back to")
    undo_lsn: int = Field(description="Rewinding to this LSN undoes it")
    warnings: list[str] = []


class Window(BaseModel):
    """What can be restored: every point from the edge to the head."""

    edge: Point
    head: Point


class Group(BaseModel):
    """A consistency group."""

    name: str
    id: str | None
    state: Literal["serving", "failed"]
    reason: str | None = Field(description="Why it failed")
    next_step: str | None = Field(description="What to do about it")
    iqn: str
    policy: Policy
    window: Window | None
    volumes: list[str]
    images: list[str]
    bookmark_count: int
    rewind_count: int
    journal_bytes: int | None
    index_bytes: int | None
    lag_bytes: int | None = Field(description="Journal that a power loss now could take: not yet flushed by any host")
    free_bytes: int | None = Field(description="Free on the disk of its journal")
    alert: str | None
    created: str


CopyState = Literal[
    "initialising", "catching-up", "synchronised", "paused", "unreachable", "resynchronising", "diverged", "failed"
]


class Copy(BaseModel):
    """A copy of a group on another disk."""

    path: str
    name: str
    group: str
    directory: str
    state: CopyState
    reason: str | None = Field(description="Why, where the state does not say it")
    since: str = Field(description="When it came into this state")
    consistent: bool = Field(
        description="Whether it holds the group as of one point, at which every volume was in step with its production: only then it can be "
        "promoted without `allow_inconsistent`"
    )
    received_lsn: int | None
    durable_lsn: int | None = Field(description="Everything before it survives power loss there")
    lag_bytes: int | None = Field(description="Journal that it does not have durably")
    lag_s: float | None = Field(description="Age of the oldest record that it does not have durably")
    left_bytes: int | None = Field(description="Of a synchronisation: blocks that may still differ")
    total_bytes: int | None = Field(description="Of a synchronisation: blocks that were to be looked at")
    moved_bytes: int | None = Field(description="Of a synchronisation: data that had to be moved so far")
    window: Window | None = Field(description="What can be restored from it; null while it is not consistent")
    window_ns: int | None
    limit_bytes: int | None
    images: list[str]
    journal_bytes: int | None
    free_bytes: int | None = Field(description="Free on the copy's disk; null while it cannot be asked")
    alert: str | None
    created: str


class Journal(BaseModel):
    """The engine's own numbers of a group's journal, since it was opened."""

    group: str
    directory: str
    window: Window
    durable_lsn: int
    folded_lsn: int = Field(description="The bases hold everything before this LSN")
    journal_bytes: int
    segment_count: int
    ready_bytes: int = Field(description="Segments made ahead of need; the reserve of the policy is their goal")
    index_bytes: int
    records: int
    bytes_written: int
    flushes: int
    syncs: int
    recovery: dict[str, int]
    alert: str | None


class Record(BaseModel):
    """A journal record without its payload. `lba` and `count` are in blocks of 512 bytes."""

    lsn: int
    time: str
    epoch: int
    timeline: int
    volume: int
    opcode: str
    lba: int
    count: int
    payload_bytes: int
    detail: str


class Records(BaseModel):
    """A stretch of the journal. `next_lsn` is where to go on, or null at the end."""

    records: list[Record]
    next_lsn: int | None


class Job(BaseModel):
    """Long work. `done_bytes` of `total_bytes`; both 0 until that is known."""

    id: str
    kind: str
    object: str
    state: Literal["running", "done", "failed", "cancelled"]
    done_bytes: int
    total_bytes: int
    started: str
    finished: str | None
    problem: dict[str, Any] | None = Field(description="As in an error's body, if it failed")
    result: dict[str, Any] | None


class Session(BaseModel):
    """A host's session or connection, or a block device of the appliance's own host."""

    protocol: Literal["iscsi", "nbd", "ublk"]
    peer: str
    name: str = Field(description="The IQN, export or volume it is on; empty for discovery or before one is chosen")
    details: dict[str, Any]


class Redirection(BaseModel):
    """Where those who log in to a target are sent instead (RFC 7143 11.13.5, class 1)."""

    model_config = ConfigDict(extra="forbid")
    address: str = Field(max_length=300, description="ADDRESS:PORT of the other portal")
    permanent: bool = Field(default=False, description="They may remember it")


class Target(BaseModel):
    """What is exported under one IQN."""

    iqn: str
    group: str
    image: str | None = Field(description="Null: production")
    redirection: Redirection | None
    disks: list[Disk]
    sessions: list[Session]


class ChapUser(BaseModel):
    """Credentials without their secrets, which are never shown."""

    user: str
    mutual_user: str | None = Field(description="What the target proves itself with, if it is asked to")

    @classmethod
    def of(cls, chap: Chap) -> ChapUser:
        return cls(user=chap.user, mutual_user=chap.mutual_user)


class HostMapping(BaseModel):
    """A disk as one host sees it."""

    path: str
    host: str
    lun: int
    read_only: bool
    iqn: str | None = Field(description="Null while its group is not in service")
    iscsi_url: str | None


class Host(BaseModel):
    """The initiators of one machine or cluster."""

    name: str
    initiators: list[str]
    chap: ChapUser | None
    mappings: list[HostMapping]
    created: str

    @classmethod
    def of(cls, host: HostRow, mappings: list[HostMapping]) -> Host:
        return cls(
            name=host.name,
            initiators=list(host.initiators),
            chap=ChapUser.of(host.chap) if host.chap else None,
            mappings=mappings,
            created=show_time(host.created_ns),
        )


class Unmapped(BaseModel):
    """What taking a mapping away has led to."""

    warnings: list[str]


class OffloadRule(BaseModel):
    """One decision. What is null is any; `scope` says the same for people."""

    lun: str | None
    initiator: str | None
    host: str | None
    offload: OffloadName
    action: Action
    scope: str

    @classmethod
    def of(cls, rule: Rule) -> OffloadRule:
        scope = rule.scope
        return cls(
            lun=scope.lun, initiator=scope.initiator, host=scope.host, offload=rule.offload, action=rule.action, scope=scope.text
        )  # fmt: skip


class OffloadPolicy(BaseModel):
    """All rules, widest first. Where none fits, the offload is supported."""

    rules: list[OffloadRule]


class OffloadInForce(BaseModel):
    """What is done with one offload, by which rule (null: the default), and what it has led to since the LUN was exported."""

    offload: OffloadName
    action: Action
    rule: OffloadRule | None
    served: int
    rejected: int
    saved_bytes: int = Field(description="Data that did not have to cross the wire")


class PolicyInForce(BaseModel):
    """What somebody gets of a LUN. Null: of any, for anybody without rules of his own."""

    lun: str | None
    initiator: str | None
    host: str | None = Field(description="As asked, or the host of the initiator")
    offloads: list[OffloadInForce]


class OffloadCount(BaseModel):
    """What became of one offload that one initiator used on one LUN."""

    lun: str
    initiator: str
    offload: OffloadName
    served: int
    rejected: int
    saved_bytes: int


class Service(BaseModel):
    """The service itself."""

    version: str
    store: str
    store_free_bytes: int
    store_size_bytes: int
    iscsi: str | None
    """The first of `iscsi_portals`, which URLs name."""
    iscsi_portals: list[str]
    """Every address at which every target is reached; empty when iSCSI is off."""
    nbd: str | None
    api: str
    started: str
    pid: int


class Status(BaseModel):
    """One page about everything."""

    service: Service
    groups: list[Group]
    copies: list[Copy]
    sessions: list[Session]
    jobs: list[Job]
    alerts: list[str]
