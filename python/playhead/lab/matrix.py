"""The matrix: splitters x {support, reject, ignore} x {ats, xcopy, write-same, unmap} x the host's switch, by real sessions of a data mover.

In each cell the target is filled, the operation done, and then every block of the replica is held against production.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from playhead.errors import PlayheadError
from playhead.lab import content
from playhead.lab.advertised import Primitive
from playhead.lab.arrangement import SOURCE, TARGET, Arrangement, Journaled, LunPlace, Treatment
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.device import Claim, Device
from playhead.lab.operations import GUARD_BLOCKS, OPERATION_OF, SWITCHED_OFF, Places, Work, prepare, read, write
from playhead.lab.session import Session, SessionError, Wire
from playhead.lab.settings import MIB, HostSettings

HOSTS = ("iqn.1998-01.com.example:host-a", "iqn.1998-01.com.example:host-b")
LOOKER = "iqn.1998-01.com.example:looker"
BEYOND_BYTES = 2 * MIB
"""Of a LUN, after region and guards; nothing may touch it."""
ISIDS = itertools.count(1)
PRIMITIVES = tuple(OPERATION_OF)


class Outcome(enum.Enum):
    """What became of a cell."""

    EXECUTED = "executed"
    """The array did it, and the replica is production, block for block."""
    FELL_BACK = "fell-back"
    """The array refused, the host did it, and the replica is production."""
    BY_HOST = "by-host"
    """The host's switch is off: it did not ask. The replica is production."""
    CORRUPT = "corrupt"
    """The replica is not production, and nobody was told."""
    WRONG = "wrong"
    """Production itself is not what it should be."""
    IMPOSSIBLE = "impossible"
    """There can be no such cell; the detail says why."""


@dataclass(frozen=True)
class Cell:
    """One place of the matrix."""

    splitter: str
    array: str
    primitive: Primitive
    treatment: Treatment
    switch: bool
    """Whether the host's switch for the primitive is on."""

    @property
    def expected(self) -> Outcome:
        """What must come of it, if it can be at all."""
        if not self.switch:
            return Outcome.BY_HOST
        return {
            Treatment.SUPPORT: Outcome.EXECUTED,
            Treatment.REJECT: Outcome.FELL_BACK,
            Treatment.IGNORE: Outcome.CORRUPT,
        }[self.treatment]


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    cell: Cell
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    commands: int = 0
    wire_bytes: int = 0
    journal_records: int = 0
    journal_bytes: int = 0
    differing_blocks: int = 0

    @property
    def as_expected(self) -> bool:
        return self.outcome in (self.cell.expected, Outcome.IMPOSSIBLE)


def cells(arrangement: Arrangement) -> Iterator[Cell]:
    """All of one arrangement."""
    for primitive in PRIMITIVES:
        for treatment in Treatment:
            for switch in (True, False):
                yield Cell(arrangement.splitter, arrangement.array, primitive, treatment, switch)


class Hosts:
    """Two hosts and a looker, logged in to one arrangement for all its cells."""

    def __init__(self, arrangement: Arrangement, region_bytes: int) -> None:
        self.arrangement = arrangement
        self._sessions: dict[tuple[str, str, str], Session] = {}
        try:
            source, target = arrangement.production(SOURCE), arrangement.production(TARGET)
            self.looker = self._device(LOOKER, target)
            self.medium = self._device(LOOKER, arrangement.medium(TARGET))
            self.places = Places(
                self._device(HOSTS[0], source),
                self._device(HOSTS[0], target),
                self._device(HOSTS[1], target),
                content.real(region_bytes),
            )
            write(self._device(LOOKER, source), GUARD_BLOCKS, self.places.content)
        except BaseException:
            self.close()
            raise

    def _device(self, initiator: str, place: LunPlace) -> Device:
        key = (initiator, place.address, place.target)
        session = self._sessions.get(key)
        if session is None:
            # Another ISID for each: to an array behind a splitter, two with one are one that came back, and the older is ended.
            session = Session(place.address, place.target, initiator=initiator, isid=next(ISIDS))
            self._sessions[key] = session
        session.ready(place.lun)
        return Device(session, place.lun)

    def close(self) -> None:
        """Logs everybody out, or hangs up."""
        for session in self._sessions.values():
            with contextlib.suppress(SessionError, TimeoutError):
                session.log_out()
            session.close()

    def awake(self) -> None:
        """The hosts show a sign of life, and hear of a rule that has changed: each with its next command."""
        for device in (self.places.source, self.places.target, self.places.other_host):
            device.must(bytes(6))

    def wire(self) -> Wire:
        """What the two hosts have moved so far."""
        total = Wire()
        for (initiator, *_), session in self._sessions.items():
            if initiator in HOSTS:
                total.commands += session.wire.commands
                total.sent_bytes += session.wire.sent_bytes
                total.received_bytes += session.wire.received_bytes
        return total

    def compare(self) -> tuple[int, int | None, bytes]:
        """Blocks of the replica that are not production's, the first of them, and production's region and guards."""
        place = self.arrangement.replica(TARGET)
        with Session(place.address, place.target, initiator=LOOKER, isid=next(ISIDS)) as session:
            session.ready(place.lun)
            replica = Device(session, place.lun)
            count = self.looker.advertised.block_count
            if replica.advertised.block_count != count:
                raise PlayheadError("internal", f"{replica.who} has another size than production")
            differing, first, kept = 0, None, []
            for lba in range(0, count, GUARD_BLOCKS):
                blocks = min(GUARD_BLOCKS, count - lba)
                ours, theirs = read(self.medium, lba, blocks), read(replica, lba, blocks)
                if ours != theirs:
                    unlike = [at for at in range(blocks) if _block(ours, at) != _block(theirs, at)]
                    differing += len(unlike)
                    first = lba + unlike[0] if first is None else first
                kept.append(ours)
            return differing, first, b"".join(kept)[: self.places.all_blocks * BLOCK_BYTES]

    def run(self, cell: Cell) -> Measured:
        """One cell. Raises PlayheadError if it cannot be measured."""
        why = self.arrangement.impossible(cell.primitive, cell.treatment)
        if why:
            return Measured(cell, Outcome.IMPOSSIBLE, why)
        self.arrangement.treat(cell.primitive, cell.treatment)
        settings = HostSettings() if cell.switch else SWITCHED_OFF[cell.primitive]
        work = prepare(cell.primitive, settings, self.places, self.looker)
        if self.compare()[0]:
            raise PlayheadError("internal", f"{cell}: the replica was not production before it began")
        self.awake()
        for device in (self.places.source, self.places.target, self.places.other_host):
            device.claims[cell.primitive] = Claim.UNKNOWN
        wire, journal = self.wire(), self.arrangement.journaled()
        started = time.perf_counter()
        work.do()
        seconds = time.perf_counter() - started
        return self._judge(cell, work, seconds, wire, journal)

    def _judge(self, cell: Cell, work: Work, seconds: float, wire: Wire, journal: Journaled) -> Measured:
        spent = self.wire()
        differing, first, found = self.compare()
        # Afterwards: a splitter may have to read production back before the replica is whole.
        captured = self.arrangement.journaled()
        claim = self.places.target.claims[cell.primitive]
        taken = claim is Claim.SUPPORTED
        wanted = work.wanted if taken else work.wanted_untaken
        detail = ""
        if found != wanted:
            outcome, detail = Outcome.WRONG, "production is not what the operation makes of it"
        elif differing:
            outcome, detail = Outcome.CORRUPT, f"{differing} blocks of the replica differ, the first at LBA {first}"
        elif not cell.switch:
            outcome = Outcome.BY_HOST
        else:
            outcome = Outcome.EXECUTED if taken else Outcome.FELL_BACK
        return Measured(
            cell=cell,
            outcome=outcome,
            detail=detail,
            seconds=seconds,
            commands=spent.commands - wire.commands,
            wire_bytes=spent.bytes - wire.bytes,
            journal_records=captured.records - journal.records,
            journal_bytes=captured.bytes - journal.bytes,
            differing_blocks=differing,
        )


def _block(data: bytes, at: int) -> bytes:
    return data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]


def lun_bytes(region_bytes: int) -> int:
    """How large the LUNs are."""
    return region_bytes + 2 * GUARD_BLOCKS * BLOCK_BYTES + BEYOND_BYTES


def run(arrangement: Arrangement, region_bytes: int, done: Callable[[Measured], None]) -> list[Measured]:
    """All cells of one arrangement; `done` hears of each."""
    hosts = Hosts(arrangement, region_bytes)
    try:
        found = []
        for cell in cells(arrangement):
            measured = hosts.run(cell)
            done(measured)
            found.append(measured)
        return found
    finally:
        hosts.close()
