"""One appliance, two hosts, and the cases: every operation with its offload, with policy against it, and with the host's switch off."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from tests.appliance import Appliance

from playhead.lab import content
from playhead.lab.advertised import Primitive
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.device import Claim, Device
from playhead.lab.operations import GUARD_BLOCKS, SWITCHED_OFF, Places, prepare, read, write
from playhead.lab.session import Session, Wire
from playhead.lab.settings import MIB, HostSettings

HOSTS = ("iqn.1998-01.com.example:host-a", "iqn.1998-01.com.example:host-b")
LOOKER = "iqn.1998-01.com.example:looker"


@dataclass(frozen=True)
class Case:
    """An operation under a policy and a host's settings."""

    operation: str
    primitive: Primitive
    settings: HostSettings
    policy: str
    switch: bool
    """Whether the host's switch for the primitive is on."""

    @property
    def offloaded(self) -> bool:
        """Whether the array does the work."""
        return self.switch and self.policy == "support"


@dataclass(frozen=True)
class Measured:
    """What a case came to."""

    case: Case
    seconds: float
    commands: int
    wire_bytes: int
    records: int
    journal_bytes: int
    claim: Claim
    content: str
    """Digest of the blocks, guards included."""
    right: bool
    """They are what they should be."""


OPERATIONS = {
    "clone": Primitive.XCOPY,
    "clone, other group": Primitive.XCOPY,
    "zero": Primitive.WRITE_SAME,
    "lock": Primitive.ATS,
    "reclaim": Primitive.UNMAP,
}


def cases(operations: list[str] | None = None, *, larger_pieces: bool = False) -> list[Case]:
    """Every operation: supported, rejected by policy, switched off at the host; clones in 16 MiB pieces too if wanted."""
    found = []
    for operation in operations or OPERATIONS:
        primitive = OPERATIONS[operation]
        found.append(Case(operation, primitive, HostSettings(), "support", True))
        if larger_pieces and primitive is Primitive.XCOPY:
            found.append(Case(operation, primitive, HostSettings(max_hw_transfer_kib=16384), "support", True))
        found.append(Case(operation, primitive, HostSettings(), "reject", True))
        found.append(Case(operation, primitive, SWITCHED_OFF[primitive], "support", False))
    return found


class Lab:
    """A running appliance with LUNs `prod/source`, `prod/target` and `other/target`, and sessions that stay for all cases."""

    def __init__(self, appliance: Appliance, region_bytes: int) -> None:
        self.appliance = appliance
        self.region_blocks = region_bytes // BLOCK_BYTES
        self.lun_bytes = region_bytes + 4 * MIB
        for path in ("prod/source", "prod/target", "other/target"):
            group = path.split("/")[0]
            if group not in [g["name"] for g in appliance.cli("group", "list")]:
                appliance.cli("group", "create", group)
            appliance.cli("volume", "create", path, "--size", str(self.lun_bytes))
        self.sessions: list[Session] = []
        self.source = self._device(HOSTS[0], "prod/source")
        self.target = self._device(HOSTS[0], "prod/target")
        self.far = self._device(HOSTS[0], "other/target")
        self.other_host = self._device(HOSTS[1], "prod/target")
        self.looker = {path: self._device(LOOKER, path) for path in ("prod/source", "prod/target", "other/target")}
        self.content = content.real(region_bytes)
        write(self.looker["prod/source"], GUARD_BLOCKS, self.content)

    def _device(self, initiator: str, path: str) -> Device:
        disk = self.appliance.disk(path)
        for session in self.sessions:
            if (session.initiator, session.target) == (initiator, disk["iqn"]):
                break
        else:
            session = Session(self.appliance.addresses["iscsi"], disk["iqn"], initiator=initiator)
            self.sessions.append(session)
        session.ready(disk["lun"])
        return Device(session, disk["lun"])

    def close(self) -> None:
        """Logs every host out."""
        for session in self.sessions:
            session.log_out()

    # Policy.

    def set_policy(self, path: str, primitive: Primitive, action: str) -> None:
        """Puts a rule for a LUN in force while the sessions go on."""
        body = {"lun": path, "offloads": {primitive.value: action}}
        answer = httpx.patch(f"http://{self.appliance.addresses['api']}/api/v1/policy", json=body, timeout=30)
        assert answer.is_success, answer.text

    # Cases.

    def _place(self, case: Case) -> tuple[str, Device]:
        if case.operation == "clone, other group":
            return "other/target", self.far
        return "prod/target", self.target

    def prepare(self, case: Case) -> tuple[Callable[[], object], bytes]:
        """Fills the LUN; what is then to be done, and the blocks that must come of it."""
        path, device = self._place(case)
        places = Places(self.source, device, self.other_host, self.content)
        work = prepare(case.primitive, case.settings, places, self.looker[path])
        return work.do, work.wanted if case.offloaded else work.wanted_untaken

    def look(self, case: Case) -> bytes:
        """The blocks there are, guards included."""
        return read(self.looker[self._place(case)[0]], 0, self.region_blocks + 2 * GUARD_BLOCKS)

    def run(self, case: Case) -> Measured:
        """Runs one case and looks at what it left."""
        path, device = self._place(case)
        group = path.split("/")[0]
        self.set_policy(path, case.primitive, case.policy)
        work, wanted = self.prepare(case)
        # The rule has arrived: hosts hear of it with their next command.
        for each in (device, self.other_host):
            each.must(bytes(6))
        mover_sessions = [session for session in self.sessions if session.initiator in HOSTS]
        before = [Wire(**vars(session.wire)) for session in mover_sessions]
        journal = self.appliance.cli("journal", "show", group)
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        after = self.appliance.cli("journal", "show", group)
        spent = list(zip(before, [session.wire for session in mover_sessions], strict=True))
        found = self.look(case)
        return Measured(
            case=case,
            seconds=seconds,
            commands=sum(b.commands - a.commands for a, b in spent),
            wire_bytes=sum(b.bytes - a.bytes for a, b in spent),
            records=after["records"] - journal["records"],
            journal_bytes=after["bytes_written"] - journal["bytes_written"],
            claim=device.claims[case.primitive],
            content=content.digest(found),
            right=found == wanted,
        )
