"""A LUN as a host knows it: who it is, what it says it can do, and what it turned out to do."""

from __future__ import annotations

import enum

from playhead.lab import advertised
from playhead.lab.advertised import ILLEGAL_REQUEST, Advertised, Primitive
from playhead.lab.session import ATTENTIONS_MAX, Answer, CommandError, ProtocolError, Session

INQUIRY_CHANGED = (6, 0x3F03)


class Claim(enum.Enum):
    """What the host believes of a primitive on a device; it finds out by using it."""

    UNKNOWN = "unknown"
    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"


class Device:
    """One LUN of one session."""

    def __init__(self, session: Session, lun: int) -> None:
        """Asks the LUN what it is. Raises CommandError, ProtocolError."""
        self.session, self.lun = session, lun
        self.who = f"LUN {lun} of {session.who}"
        self.claims = dict.fromkeys(Primitive, Claim.UNKNOWN)
        self.probes = 0
        self.advertised = self._probe()

    @property
    def naa(self) -> bytes:
        """The designator of the unit in EXTENDED COPY."""
        return self.advertised.designator

    def execute(self, command: bytes, *, data: bytes = b"", read_bytes: int = 0) -> Answer:
        """Runs a command past unit attentions. One that says that INQUIRY data has changed makes the host look again."""
        answer, changed = self._past_attentions(command, data, read_bytes)
        if changed:
            self.claims = dict.fromkeys(Primitive, Claim.UNKNOWN)
            self.advertised = self._probe()
        return answer

    def must(self, command: bytes, *, data: bytes = b"", read_bytes: int = 0) -> bytes:
        """Runs a command that has to end in GOOD."""
        answer = self.execute(command, data=data, read_bytes=read_bytes)
        if not answer.good:
            raise CommandError(command, answer, self.who)
        return answer.data

    def offload(self, primitive: Primitive, command: bytes, data: bytes) -> bool:
        """Tries a primitive and learns from it. False: the host has to do the work itself."""
        answer = self.execute(command, data=data)
        if answer.good:
            self.claims[primitive] = Claim.SUPPORTED
        elif answer.key_code[0] == ILLEGAL_REQUEST:
            self.claims[primitive] = Claim.NOT_SUPPORTED
        return answer.good

    def may_try(self, primitive: Primitive) -> bool:
        """Whether the device is worth asking."""
        return self.claims[primitive] is not Claim.NOT_SUPPORTED

    def _past_attentions(self, command: bytes, data: bytes, read_bytes: int) -> tuple[Answer, bool]:
        """The answer, and whether INQUIRY data has changed meanwhile."""
        changed = False
        for _ in range(ATTENTIONS_MAX):
            answer = self.session.execute(command, data=data, read_bytes=read_bytes, lun=self.lun)
            if not answer.attention:
                return answer, changed
            changed = changed or answer.key_code == INQUIRY_CHANGED
        raise ProtocolError(f"{self.who} raises unit attentions without end")

    def _probe(self) -> Advertised:
        self.probes += 1
        return advertised.ask(lambda command, read: self._past_attentions(command, b"", read)[0], self.who)
