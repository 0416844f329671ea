"""What a target does with each offload, held against what it says.

A form is one way to word an offload. Trying one: fill the scratch range, send the command, read the whole range back. What comes of it is one of
`Outcome`. An error that hosts fall back from is no fault; GOOD for work that was not done is: a host believes it and goes on.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from playhead.errors import PlayheadError
from playhead.lab import cdb
from playhead.lab.advertised import ILLEGAL_REQUEST, Advertised, Primitive
from playhead.lab.cdb import Segment
from playhead.lab.device import Device
from playhead.lab.scratch import Kept, Layout, Scratch
from playhead.lab.sense import words
from playhead.lab.session import CHECK_CONDITION, Answer, EndedError

MISCOMPARE = (0xE, 0x1D00)
ZERO_TOKEN = b"\xff\xff\x00\x01" + bytes(2) + b"\x01\xf8" + bytes(504)
"""The well-known token of zeros (SBC-4 table 140)."""
TOKEN_POLLS_MAX = 100
TOKEN_POLL_S = 0.1
IN_PROGRESS, DONE_BADLY = (0x10, 0x11, 0x12), (0x02, 0x04, 0x60)
"""Copy operation status (SPC-4 table 334): under way; ended with an error, or terminated."""


class Outcome(enum.Enum):
    """What became of a try."""

    SUPPORTED = "supported"
    """Carried out exactly; nothing else was touched."""
    REJECTED = "rejected"
    """ILLEGAL REQUEST, and nothing has changed: hosts do the work themselves."""
    FAILED = "failed"
    """Another error, or no answer, and nothing has changed: hosts may try again and again before they do the work themselves."""
    DOES_NOTHING = "does-nothing"
    """GOOD, and nothing was done."""
    WRONG = "wrong"
    """Blocks are not what they should be."""
    NOT_TRIED = "not-tried"


@dataclass(frozen=True)
class Tried:
    """One form of an offload, and what came of it."""

    form: str
    outcome: Outcome
    detail: str
    unsafe: bool = False
    """A host that believes the answer has lost data."""


@dataclass(frozen=True)
class Found:
    """What is known of one offload."""

    primitive: Primitive
    says: bool
    because: str
    tried: tuple[Tried, ...]

    @property
    def outcome(self) -> Outcome:
        """Of the form that hosts use first; a fault in any other form counts more."""
        for each in self.tried:
            if each.unsafe:
                return each.outcome
        return self.tried[0].outcome if self.tried else Outcome.NOT_TRIED

    @property
    def unsafe(self) -> bool:
        return any(each.unsafe for each in self.tried)

    @property
    def contradicts(self) -> bool:
        """It was tried, and is not what is said of it."""
        done = self.outcome is Outcome.SUPPORTED
        return self.outcome is not Outcome.NOT_TRIED and done is not self.says


Connect = Callable[[], Device]


class Probe:
    """The tries on one LUN. `connect` logs in; it is called again when the target has hung up on a command."""

    def __init__(self, connect: Connect, layout: Layout | None) -> None:
        """Without a layout nothing is written."""
        self._connect = connect
        self.device = connect()
        self.scratch = Scratch(layout, self.device.advertised.block_bytes) if layout else None

    @property
    def advertised(self) -> Advertised:
        return self.device.advertised

    def run(self, primitives: Iterable[Primitive], *, restore: bool = False) -> list[Found]:
        """Tries each; with `restore` writes back what was in the range, whatever happens. Raises PlayheadError."""
        scratch = self.scratch
        if scratch is None:
            return [self._found(primitive, ()) for primitive in primitives]
        kept = Kept(scratch, self.device) if restore else None
        try:
            found = [self._found(primitive, tuple(self._forms(primitive, scratch))) for primitive in primitives]
        finally:
            if kept:
                if not self._lives():
                    self._again()
                kept.restore(self.device)
        return found

    def close(self) -> None:
        self.device.session.close()

    def _found(self, primitive: Primitive, tried: tuple[Tried, ...]) -> Found:
        said = self.advertised
        return Found(primitive, said.says(primitive), said.because(primitive), tried)

    def _lives(self) -> bool:
        try:
            self.device.execute(bytes(6))
        except (EndedError, TimeoutError):
            return False
        return True

    def _again(self) -> None:
        self.device.session.close()
        self.device = self._connect()

    def _forms(self, primitive: Primitive, scratch: Scratch) -> list[Tried]:
        forms = {
            Primitive.ATS: self._ats,
            Primitive.XCOPY: self._xcopy,
            Primitive.WRITE_SAME: self._write_same,
            Primitive.UNMAP: self._unmap,
            Primitive.ODX: self._odx,
        }
        return forms[primitive](scratch)

    # One try.

    def _try(self, scratch: Scratch, form: str, act: Callable[[], Answer], wanted: Callable[[], bytes]) -> Tried:
        """Fills, acts, looks. `wanted` is the destination if the command is carried out."""
        scratch.fill(self.device)
        answer: Answer | None = None
        try:
            answer = act()
            said = words(answer)
        except EndedError:
            said = "the target hung up"
        except TimeoutError:
            said = "no answer in time"
        if answer is None:
            self._again()
        found, outside = scratch.look(self.device)
        if outside is not None:
            return Tried(form, Outcome.WRONG, f"{said}; blocks outside of it have changed, first LBA {outside}", True)
        right, old = wanted(), scratch.old
        if answer is not None and answer.good:
            if found == right:
                return Tried(form, Outcome.SUPPORTED, said)
            if found == old:
                return Tried(form, Outcome.DOES_NOTHING, f"{said}, and nothing has changed", True)
        elif found == old:
            rejected = answer is not None and answer.key_code[0] == ILLEGAL_REQUEST
            return Tried(form, Outcome.REJECTED if rejected else Outcome.FAILED, said)
        elif found == right:
            # A host that repeats it hurts nothing; one that was told that it does not hold a lock has it all the same.
            outcome = Outcome.FAILED if answer is None else Outcome.WRONG
            lock = answer is not None and form.startswith("COMPARE")
            return Tried(form, outcome, f"{said}, and it was carried out", lock)
        good = answer is not None and answer.good
        wrong = scratch.differences(found, right if good else old)
        first = scratch.layout.destination + scratch.first_difference(found, right if good else old)
        what = "are not what they should be" if good else "have changed all the same"
        return Tried(form, Outcome.WRONG, f"{said}; {wrong} blocks {what}, first LBA {first}", True)

    def _just(self, scratch: Scratch, form: str, command: bytes, data: bytes, wanted: bytes) -> Tried:
        """A form that is one command with nothing to decide."""
        return self._try(scratch, form, lambda: self.device.execute(command, data=data), lambda: wanted)

    # The offloads.

    def _ats(self, scratch: Scratch) -> list[Tried]:
        size, lba = scratch.block_bytes, scratch.layout.destination
        new = scratch.source_data[:size]

        def swap(compare: Callable[[], bytes]) -> Callable[[], Answer]:
            return lambda: self.device.execute(cdb.compare_and_write(lba, 1), data=compare() + new)

        equal = self._try(
            scratch, "COMPARE AND WRITE, equal", swap(lambda: scratch.old[:size]), lambda: new + scratch.old[size:]
        )
        if equal.outcome in (Outcome.REJECTED, Outcome.FAILED):
            return [equal]
        form, codes = "COMPARE AND WRITE, different", list[tuple[int, int]]()

        def differ() -> Answer:
            answer = swap(lambda: bytes(byte ^ 0xFF for byte in scratch.old[:size]))()
            codes.append(answer.key_code)
            return answer

        other = self._try(scratch, form, differ, lambda: new + scratch.old[size:])
        if other.outcome is Outcome.FAILED and codes == [MISCOMPARE]:
            return [equal, Tried(form, Outcome.SUPPORTED, other.detail)]
        if other.outcome in (Outcome.SUPPORTED, Outcome.DOES_NOTHING):
            # Two hosts would both believe that they hold the lock.
            return [equal, Tried(form, Outcome.WRONG, f"{other.detail} although the block was different", True)]
        return [equal, other]

    def _xcopy(self, scratch: Scratch) -> list[Tried]:
        naa, layout, form = self.advertised.designator, scratch.layout, "EXTENDED COPY(LID1)"
        if not naa:
            return [Tried(form, Outcome.NOT_TRIED, "the LUN has no NAA name in VPD page 83 to be called by")]
        segment = Segment(0, 1, layout.area, layout.source, layout.destination)
        command, parameters = cdb.extended_copy([naa, naa], [segment], block_bytes=scratch.block_bytes)
        return [self._just(scratch, form, command, parameters, scratch.source_data)]

    def _write_same(self, scratch: Scratch) -> list[Tried]:
        layout, size, tried = scratch.layout, scratch.block_bytes, list[Tried]()
        pattern = scratch.source_data[:size]
        forms: list[tuple[str, bytes, dict[str, bool]]] = [
            ("zeros", bytes(size), {}),
            ("a pattern", pattern, {}),
            ("no data (NDOB)", b"", {"no_data": True}),
        ]
        if self.advertised.write_same_unmaps:
            forms.append(("zeros, UNMAP", bytes(size), {"unmap": True}))
        for what, block, options in forms:
            command = cdb.write_same_16(layout.destination, layout.area, **options)
            wanted = (block or bytes(size)) * layout.area
            tried.append(self._just(scratch, f"WRITE SAME(16), {what}", command, block, wanted))
        return tried

    def _unmap(self, scratch: Scratch) -> list[Tried]:
        layout, form = scratch.layout, "UNMAP"
        command, parameters = cdb.unmap([(layout.destination, layout.area)])
        zeros = bytes(layout.area * scratch.block_bytes)
        once = self._just(scratch, form, command, parameters, zeros)
        if once.outcome is Outcome.DOES_NOTHING:
            # UNMAP is a request: a device may leave blocks mapped (SBC-4 4.7.3.4), and nobody is misled about their contents.
            why = "" if layout.aligned else "; the range is too small for the device's granularity"
            return [Tried(form, Outcome.DOES_NOTHING, f"{once.detail}, as UNMAP allows{why}")]
        if once.outcome is Outcome.WRONG and "outside" not in once.detail and once.detail.startswith("GOOD"):
            return [self._of_unmapped(scratch, once)]
        return [once]

    def _of_unmapped(self, scratch: Scratch, once: Tried) -> Tried:
        """Neither all zeros nor untouched: in part, or anything where the device does not promise zeros."""
        if not self.advertised.reads_zeros:
            return Tried(once.form, Outcome.SUPPORTED, "GOOD; LBPRZ=0: unmapped blocks hold anything")
        found, size = scratch.look(self.device)[0], scratch.block_bytes
        for at in range(0, len(found), size):
            if any(found[at : at + size]) and found[at : at + size] != scratch.old[at : at + size]:
                return once
        return Tried(once.form, Outcome.SUPPORTED, "GOOD; some blocks were left mapped, as UNMAP allows")

    def _odx(self, scratch: Scratch) -> list[Tried]:
        layout = scratch.layout
        target = [(layout.destination, layout.area)]

        def copy() -> Answer:
            command, parameters = cdb.populate_token([(layout.source, layout.area)], list_id=0x504C)
            answer = self.device.execute(command, data=parameters)
            if not answer.good:
                return answer
            answer = self._token_status(0x504C)
            if not answer.good:
                return answer
            try:
                token = cdb.rod_token_of(answer.data)
            except (ValueError, IndexError):
                return answer
            return self._use(token, target, 0x504D)

        made = self._try(scratch, "POPULATE TOKEN, WRITE USING TOKEN", copy, lambda: scratch.source_data)
        if made.outcome in (Outcome.REJECTED, Outcome.FAILED):
            return [made]
        zeros = bytes(layout.area * scratch.block_bytes)
        form = "WRITE USING TOKEN, the token of zeros"
        return [made, self._try(scratch, form, lambda: self._use(ZERO_TOKEN, target, 0x504E), lambda: zeros)]

    def _use(self, token: bytes, target: list[tuple[int, int]], list_id: int) -> Answer:
        command, parameters = cdb.write_using_token(token, target, list_id=list_id)
        answer = self.device.execute(command, data=parameters)
        return self._token_status(list_id) if answer.good else answer

    def _token_status(self, list_id: int) -> Answer:
        """The end of a token operation, waited for."""
        for _ in range(TOKEN_POLLS_MAX):
            answer = self.device.execute(cdb.receive_rod_token(list_id), read_bytes=2048)
            data = answer.data
            if not answer.good or len(data) < 32 or data[5] & 0x7F not in IN_PROGRESS:
                failed = answer.good and len(data) >= 32 and data[5] & 0x7F in DONE_BADLY
                return Answer(CHECK_CONDITION, data, data[32 : 32 + data[14]]) if failed else answer
            time.sleep(TOKEN_POLL_S)
        raise PlayheadError("io", f"{self.device.who}: a copy by token does not end", "look at the target's log")
