"""One hostile initiator: where it may play, and how it finds out whether the target is still well."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from playhead.lab import pdu
from playhead.lab.session import Answer, EndedError, LoginError, Session

ANSWER_TIMEOUT_S = 30.0
"""Whoever has heard nothing for so long has found a hang."""
PATIENCE_S = 1.0
"""After which it is asked whether a reset explains the silence."""
KEYS: list[dict[str, str]] = [
    {},
    {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"},
    {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "8192", "FirstBurstLength": "4096"},
    {"InitialR2T": "Yes", "MaxOutstandingR2T": "4", "MaxBurstLength": "4096", "FirstBurstLength": "2048"},
    {"MaxRecvDataSegmentLength": "512", "DataDigest": "CRC32C"},
    {"ImmediateData": "No", "FirstBurstLength": "65536"},
]


@dataclass(frozen=True)
class Forbidden:
    """What attackers know of and must not get at: the witness' LUN, mapped to a host that proves itself."""

    initiator: str
    iqn: str
    lun: int
    naa: bytes


@dataclass(frozen=True)
class Ground:
    """The target that is attacked: its LUNs are nobody else's."""

    address: str
    iqn: str
    luns: tuple[int, ...]
    naas: tuple[bytes, ...]
    block_count: int
    forbidden: Forbidden
    resets: list[int] = field(default_factory=list)
    """One entry for everything that may end other sessions' tasks unanswered (SAM-5: TAS is 0): who did it."""


class Attacker:
    """A source of sessions; everything it does comes from `rng`."""

    def __init__(self, ground: Ground, number: int, seed: str) -> None:
        self.ground, self.number = ground, number
        self.rng = random.Random(f"{seed}/{number}")
        self.initiator = f"iqn.2026-11.org.example:attacker-{number}"
        self.counts: dict[str, int] = {}

    @contextlib.contextmanager
    def session(self, keys: dict[str, str] | None = None, isid: int | None = None) -> Iterator[Session]:
        """A session with chosen or random keys. Being hung up on is no failure: hanging is."""
        chosen = self.rng.choice(KEYS) if keys is None else keys
        isid = self.rng.randrange(1, 1 << 16) if isid is None else isid
        with contextlib.suppress(EndedError, LoginError):
            with Session(
                self.ground.address,
                self.ground.iqn,
                initiator=self.initiator,
                isid=isid,
                keys=chosen,
                timeout_s=ANSWER_TIMEOUT_S,
            ) as session:
                yield session
            self.count("survived")
            return
        self.count("ended")

    @contextlib.contextmanager
    def stranger(self) -> Iterator[Session]:
        """A connection that is not logged in."""
        with (
            contextlib.suppress(EndedError),
            Session(
                self.ground.address, self.ground.iqn, initiator=self.initiator, timeout_s=ANSWER_TIMEOUT_S, log_in=False
            ) as session,
        ):
            yield session

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def lun(self) -> int:
        return self.rng.choice(self.ground.luns)

    def lba(self) -> int:
        """Mostly one that exists."""
        edge = self.ground.block_count
        if self.rng.random() < 0.8:
            return self.rng.randrange(edge - 256)
        return self.rng.choice((0, edge - 1, edge, self.rng.getrandbits(64)))

    def task_management(self, session: Session, function: int, *, lun: int, itt: int, ref_cmd_sn: int) -> int:
        """A task management function; others are warned of it."""
        if function > 1:
            self.ground.resets.append(self.number)
        return session.task_management(function, lun=lun, itt=itt, ref_cmd_sn=ref_cmd_sn)

    def finish(self, session: Session, itt: int, resets_before: int) -> Answer | None:
        """The end of a well-formed command. `None`: somebody's reset took it away."""
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                session.socket.settimeout(PATIENCE_S)
                return session.finish(itt)
            except TimeoutError:
                if len(self.ground.resets) > resets_before:
                    return None
                assert time.monotonic() < end, f"no answer to a well-formed command on session {session.isid.hex()}"
            finally:
                session.socket.settimeout(ANSWER_TIMEOUT_S)


def settle(session: Session) -> list[int]:
    """Pings until the answer comes; the reasons of the rejects on the way. Raises EndedError if the target hangs up."""
    itt = session.next_itt
    session.next_itt += 1
    words = (pdu.RESERVED_TAG, session.cmd_sn, session.exp_stat_sn)
    session.send(pdu.header(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, itt=itt, words=words), b"still there?")
    rejects: list[int] = []
    while True:
        got = session.wait_for(lambda _: True)
        if got.header.opcode == pdu.NOP_IN and got.header.itt == itt:
            return rejects
        if got.header.opcode == pdu.REJECT:
            rejects.append(got.header.raw[2])
