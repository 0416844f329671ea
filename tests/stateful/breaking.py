"""What can be wrong with a session. Each scenario opens connections of its own and, if the target still speaks to it, makes sure that it
answers; that it hangs up is its right, that it is silent is a failure.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from tests.stateful.attacker import Attacker, settle
from tests.stateful.commands import some

from playhead.lab import cdb, pdu
from playhead.lab.cdb import BLOCK_BYTES
from playhead.lab.session import EndedError, Session

COMMANDS_MAX = 24
REGISTER_AND_IGNORE, CLEAR = 6, 3
KEY = 0x706C6179
LINGER_NONE = struct.pack("ii", 1, 0)


def restore(session: Session, lun: int) -> None:
    """Takes reservations, stops, odd mode pages and access states away."""
    session.task_management(pdu.LUN_RESET, lun=lun)
    steps = [
        (struct.pack(">BB3xIB", 0x5F, action, 24, 0), struct.pack(">QQ8x", KEY if action == CLEAR else 0, KEY))
        for action in (REGISTER_AND_IGNORE, CLEAR)
    ]
    # SET TARGET PORT GROUPS: the one there is, active and optimized.
    steps.append((struct.pack(">BB4xIBB", 0xA4, 0x0A, 8, 0, 0), struct.pack(">4xBBH", 0, 0, 1)))
    for command, data in steps:
        for _ in range(4):
            if not session.execute(command, data=data, lun=lun).attention:
                break


def commands(by: Attacker) -> None:
    """Nothing wrong with the session: random commands, many under way, and every one is answered."""
    with by.session() as session:
        lun, resets = by.lun(), len(by.ground.resets)
        tags = []
        for _ in range(by.rng.randrange(1, COMMANDS_MAX)):
            asked = some(by)
            tags.append(
                session.start(
                    asked.cdb,
                    data=asked.data,
                    read_bytes=asked.read_bytes,
                    lun=lun,
                    attribute=by.rng.choice((0, 1, 1, 2, 3)),
                )
            )
        for itt in tags:
            answer = by.finish(session, itt, resets)
            by.count("reset away" if answer is None else "good" if answer.good else "refused")
        settle(session)


def calm(by: Attacker) -> None:
    """Makes the LUNs usable again, so that others get further than a refusal."""
    with by.session({}) as session:
        for lun in by.ground.luns:
            by.ground.resets.append(by.number)
            restore(session, lun)


def lengths(by: Attacker) -> None:
    """Announced lengths and directions that are not those of the command, or of the data that comes."""
    rng = by.rng
    with by.session() as session:
        for _ in range(rng.randrange(1, 6)):
            asked = some(by)
            announced = max(
                0, (len(asked.data) or asked.read_bytes) + rng.choice((-512, -1, 1, 512, 1 << 20, 0xFFFF_0000))
            )
            sent = asked.data[: rng.choice((0, len(asked.data), len(asked.data) // 2))][:8192]
            flags = rng.choice((0, pdu.FINAL)) | rng.choice((0, 0x20, 0x40, 0x60)) | rng.randrange(8)
            _command(session, flags, by.lun(), announced & 0xFFFF_FFFF, asked.cdb, sent)
        settle(session)


def bursts(by: Attacker) -> None:
    """Data-Out that is out of place: tags, numbers, offsets, too much, too little, none at all."""
    rng = by.rng
    with by.session(
        {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "4096", "FirstBurstLength": "1024"}
    ) as session:
        for _ in range(rng.randrange(1, 5)):
            blocks = rng.choice((1, 8, 16))
            lun, itt = by.lun(), session.next_itt
            _command(
                session, pdu.FINAL | 0x20, lun, blocks * BLOCK_BYTES, cdb.write_16(rng.randrange(1024), blocks), b""
            )
            ttt, offset, wanted = _asked_for(session, itt)
            for _ in range(rng.randrange(3)):
                field = rng.choice(("none", "itt", "ttt", "sn", "offset", "long", "short", "early", "lun"))
                data = bytes(min(wanted, 4096))
                words = [ttt, 0, 0, 0, 0, offset]
                flags = pdu.FINAL
                if field == "ttt":
                    words[0] = rng.choice((pdu.RESERVED_TAG, ttt + 1, 0))
                elif field == "sn":
                    words[4] = rng.choice((1, 7, 0xFFFF_FFFF))
                elif field == "offset":
                    words[5] = rng.choice((1, 512, 1 << 31, 0xFFFF_FFFF))
                elif field == "long":
                    data += bytes(512)
                elif field == "short":
                    data = data[: len(data) // 2]
                elif field == "early":
                    data, flags = data[: len(data) // 2], 0
                head = pdu.header(
                    pdu.DATA_OUT, flags, lun=lun + (field == "lun"), itt=itt + (field == "itt"), words=tuple(words)
                )
                session.send(head, data)
        settle(session)


def half_a_burst(by: Attacker) -> None:
    """A write that stops in the middle: aborted, reset, logged out from under, or cut off."""
    rng = by.rng
    with by.session(
        {"InitialR2T": "Yes", "ImmediateData": "Yes", "FirstBurstLength": "1024", "MaxBurstLength": "4096"}
    ) as session:
        lun, itt = by.lun(), session.next_itt
        _command(session, pdu.FINAL | 0x20, lun, 8192, cdb.write_16(rng.randrange(1024), 16), bytes(1024))
        ttt, offset, _ = _asked_for(session, itt)
        if ttt != pdu.RESERVED_TAG:
            session.send(pdu.header(pdu.DATA_OUT, 0, lun=lun, itt=itt, words=(ttt, 0, 0, 0, 0, offset)), bytes(1024))
        end = rng.choice(("task", "set", "clear", "lun", "warm", "cold", "out", "cut", "cut"))
        if end == "cut":
            session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            return
        if end == "out":
            session.log_out()
            return
        function = {"task": 1, "set": 2, "clear": 4, "lun": 5, "warm": 6, "cold": 7}[end]
        by.task_management(session, function, lun=lun, itt=itt, ref_cmd_sn=session.cmd_sn - 1)
        # Data for what is no more.
        session.send(
            pdu.header(pdu.DATA_OUT, pdu.FINAL, lun=lun, itt=itt, words=(ttt, 0, 0, 0, 1, offset + 1024)), bytes(1024)
        )
        settle(session)


def aborts(by: Attacker) -> None:
    """Task management among live commands, of every kind and about every tag."""
    rng = by.rng
    with by.session() as session:
        first = session.next_itt
        for _ in range(rng.randrange(1, 10)):
            asked = some(by)
            session.start(asked.cdb, data=asked.data, read_bytes=asked.read_bytes, lun=by.lun())
            if rng.random() < 0.5:
                function = rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 6, 8, 9, 127))
                itt = rng.choice((rng.randrange(first, session.next_itt), pdu.RESERVED_TAG, 0xDEAD))
                lun = rng.choice((by.lun(), 77))
                by.task_management(session, function, lun=lun, itt=itt, ref_cmd_sn=session.cmd_sn - rng.randrange(3))
        settle(session)


def numbers(by: Attacker) -> None:
    """CmdSN repeated, skipped, far off; tags used twice; statuses acknowledged that were never sent."""
    rng = by.rng
    with by.session() as session:
        for _ in range(rng.randrange(1, 8)):
            shift = rng.choice((0, 0, 0, -1, 1, 5, 127, 128, 1000, 1 << 31))
            words = (BLOCK_BYTES, session.cmd_sn + shift, rng.choice((session.exp_stat_sn, 0, rng.getrandbits(32))))
            itt = session.next_itt - rng.randrange(2)
            head = pdu.header(pdu.COMMAND, pdu.FINAL | 0x41, lun=by.lun(), itt=itt, words=words, tail=cdb.read_16(0, 1))
            session.next_itt += 1
            session.cmd_sn += shift == 0
            session.send(head)
        settle(session)


def digests(by: Attacker) -> None:
    """A wrong digest, of a header or of data."""
    rng = by.rng
    with by.session({"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}) as session:
        head = pdu.header(
            pdu.COMMAND,
            pdu.FINAL | 0x21,
            lun=by.lun(),
            itt=session.next_itt,
            words=(512, session.cmd_sn, 0),
            tail=cdb.write_16(0, 1),
        )
        whole = bytearray(pdu.whole(head, bytes(512), session.digests))
        whole[rng.choice((rng.randrange(48), 48 + rng.randrange(4), 52 + rng.randrange(512), len(whole) - 1))] ^= (
            1 << rng.randrange(8)
        )
        session.raw(bytes(whole))
        # A length that changed makes the target wait for the rest: it is not silent, it listens.
        session.say_no_more()
        while True:
            session.receive()


def headers(by: Attacker) -> None:
    """PDUs of any opcode with any fields, additional segments, text that is none, SNACK, logins after login."""
    rng = by.rng
    with by.session() as session:
        for _ in range(rng.randrange(1, 5)):
            head = bytearray(rng.randbytes(48))
            head[0] = rng.choice((0, 1, 2, 3, 4, 5, 6, 0x10, 0x3F, rng.randrange(64))) | rng.choice((0, 0x40))
            if rng.random() < 0.7:
                struct.pack_into(">I", head, 24, session.cmd_sn & 0xFFFF_FFFF)
            ahs = rng.randbytes(rng.choice((0, 0, 4, 1020)))
            data = rng.choice(
                (b"", b"SendTargets=All\0", b"MaxRecvDataSegmentLength=1\0", rng.randbytes(rng.randrange(2000)))
            )
            session.raw(pdu.whole(bytes(head), data, session.digests, ahs))
        session.say_no_more()
        while True:
            session.receive()


def texts(by: Attacker) -> None:
    """Text negotiation with parts, wrong tags and keys for other times."""
    rng = by.rng
    with by.session({"MaxRecvDataSegmentLength": "512"}) as session:
        for _ in range(rng.randrange(1, 6)):
            pairs = rng.sample(
                [
                    "SendTargets=All",
                    "SendTargets=",
                    "SendTargets=iqn.x",
                    "HeaderDigest=CRC32C",
                    "X-a=b",
                    "=",
                    "novalue",
                    "InitiatorName=iqn.z",
                ],
                rng.randrange(4),
            )
            flags = rng.choice((pdu.FINAL, 0, pdu.CONTINUE, pdu.FINAL | pdu.CONTINUE))
            words = (rng.choice((pdu.RESERVED_TAG, pdu.RESERVED_TAG, 0, 1, 2)), session.cmd_sn, 0)
            data = b"".join(pair.encode() + b"\0" for pair in pairs)
            session.send(pdu.header(pdu.TEXT | pdu.IMMEDIATE, flags, itt=session.next_itt, words=words), data)
            session.next_itt += 1
        settle(session)


def deaf(by: Attacker) -> None:
    """Much is asked for and nothing is taken; then it is gone."""
    with by.session() as session:
        for _ in range(by.rng.randrange(1, 60)):
            _command(session, pdu.FINAL | 0x41, by.lun(), 1 << 20, cdb.read_16(0, 2048), b"")
        session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)


def noise(by: Attacker) -> None:
    """Bytes, before login or after."""
    rng = by.rng
    with by.stranger() if rng.random() < 0.5 else by.session() as session:
        session.raw(rng.randbytes(rng.randrange(1, 5000)))
        session.say_no_more()
        while True:
            session.receive()


def reinstatement(by: Attacker) -> None:
    """The same ISID again while the older session works: that one ends, this one lives."""
    isid = by.rng.randrange(1, 4)
    with by.session(isid=isid) as older:
        asked = some(by)
        older.start(asked.cdb, data=asked.data, read_bytes=asked.read_bytes, lun=by.lun())
        with by.session(isid=isid) as newer:
            settle(newer)
        with contextlib.suppress(EndedError):
            settle(older)


def _command(session: Session, flags: int, lun: int, announced: int, command: bytes, data: bytes) -> None:
    """A command as it is told, unlike `Session.start`."""
    words = (announced, session.cmd_sn, session.exp_stat_sn)
    head = pdu.header(pdu.COMMAND, flags, lun=lun, itt=session.next_itt, words=words, tail=command)
    session.next_itt += 1
    session.cmd_sn += 1
    session.send(head, data)


def _asked_for(session: Session, itt: int) -> tuple[int, int, int]:
    """Tag, offset and length of the R2T for a command; the reserved tag if it ended instead."""
    while True:
        got = session.receive()
        if got.header.itt == itt and got.header.opcode == pdu.R2T:
            return got.header.ttt, got.header.word(40), got.header.word(44)
        if got.header.itt == itt and got.header.opcode == pdu.RESPONSE:
            return pdu.RESERVED_TAG, 0, 512
