"""Logins that go wrong."""

from __future__ import annotations

from tests.stateful.attacker import ANSWER_TIMEOUT_S, Attacker, settle
from tests.stateful.commands import some

from playhead.lab import pdu
from playhead.lab.chap import Chap
from playhead.lab.session import EndedError, LoginError, ProtocolError, Session, UntrustedError

TEXTS = (
    "AuthMethod=CHAP", "AuthMethod=None", "AuthMethod=KRB5,CHAP,None", "CHAP_A=5", "CHAP_A=6,7", "CHAP_A=x", "CHAP_N=somebody", "CHAP_R=0x00",
    "CHAP_R=0b!!", "CHAP_I=1", "CHAP_I=999", "CHAP_C=0x", "CHAP_C=0x0102030405060708", "HeaderDigest=CRC32C", "DataDigest=Never",
    "MaxRecvDataSegmentLength=1", "MaxBurstLength=99999999999", "FirstBurstLength=512", "InitialR2T=Maybe", "MaxConnections=0",
    "ErrorRecoveryLevel=2", "DefaultTime2Wait=5",
    "OFMarker=Yes", "X-org.example.key=" + "v" * 300, "=", "novalue", "SessionType=Discovery", "SessionType=Party",
    "TargetName=iqn.nobody", "InitiatorAlias=a", "TargetAddress=1.2.3.4", "SendTargets=All", "iSCSIProtocolLevel=9", "TaskReporting=FastAbort",
)  # fmt: skip

ANSWERED_WITHOUT_LUN = (0x03, 0x12, 0xA0)
"""REQUEST SENSE, INQUIRY and REPORT LUNS (SPC-4 6.4, 6.33, 6.39)."""


def stages(by: Attacker) -> None:
    """Login requests in any order, with any flags, names missing, keys twice; all of them answered until the target has had enough."""
    rng = by.rng
    with by.stranger() as session:
        names = [f"InitiatorName={by.initiator}", f"TargetName={by.ground.iqn}"]
        itt, tsih = 1, 0
        for step in range(rng.randrange(1, 8)):
            pairs = (names if step == 0 and rng.random() < 0.9 else []) + rng.sample(TEXTS, rng.randrange(5))
            flags = rng.choice((0x00, 0x04, 0x81, 0x87, 0x83, 0x40, 0x44, rng.randrange(256)))
            if rng.random() < 0.1:
                itt, tsih = rng.randrange(3), rng.randrange(3)
            versions = (0, 0) if rng.random() < 0.95 else (rng.randrange(256), rng.randrange(256))
            head = pdu.login(flags=flags, isid=session.isid, tsih=tsih, itt=itt, cmd_sn=1, versions=versions)
            session.raw(pdu.whole(head, b"".join(pair.encode() + b"\0" for pair in pairs)))
            got = session.receive()
            assert got.header.opcode in (pdu.LOGIN_RESPONSE, pdu.REJECT), got
            if got.header.opcode == pdu.LOGIN_RESPONSE and int.from_bytes(got.header.raw[36:38], "big"):
                by.count("login refused")
                # Whoever is refused is hung up on.
                while True:
                    session.receive()
            if got.header.flags & 0x83 == 0x83:
                # In: by accident a session like any other, if there are no digests to get wrong.
                by.count("logged in by chance")
                return


def impostors(by: Attacker) -> None:
    """CHAP with a name or a secret that is wrong, at a target that may not even ask for it."""
    rng = by.rng
    chap = Chap(
        rng.choice(("somebody", "", "x" * 300, by.initiator)),
        rng.choice(("wrong-secret-42", "", "x" * 300)),
        target_secret=rng.choice((None, "whatever-it-is")),
        algorithms=rng.choice(("5", "7,5", "6", "8,7,6,5")),
    )
    try:
        with Session(
            by.ground.address, by.ground.iqn, initiator=by.initiator, chap=chap, timeout_s=ANSWER_TIMEOUT_S
        ) as session:
            settle(session)
    except (LoginError, UntrustedError, EndedError, ProtocolError):
        by.count("login refused")


def trespass(by: Attacker) -> None:
    """To a target that is mapped to somebody else: in one's own name, where there is nothing; in the owner's, without the proof."""
    rng = by.rng
    forbidden = by.ground.forbidden
    chap = rng.choice((None, Chap("witness", "not-the-secret"), Chap("witness", "", target_secret="x")))
    name = rng.choice((by.initiator, forbidden.initiator))
    isid = rng.choice((1, 2))
    try:
        with Session(
            by.ground.address, forbidden.iqn, initiator=name, isid=isid, chap=chap, timeout_s=ANSWER_TIMEOUT_S
        ) as session:
            assert name != forbidden.initiator, "somebody is in without proof"
            for asked in (some(by), some(by)):
                if asked.cdb[0] in ANSWERED_WITHOUT_LUN:
                    continue
                answer = session.execute(asked.cdb, data=asked.data, read_bytes=asked.read_bytes, lun=forbidden.lun)
                assert not answer.good, f"{asked.cdb.hex()} reached a LUN that is not mapped"
    except (LoginError, EndedError):
        by.count("kept out")


def crowds(by: Attacker) -> None:
    """Many connections that say little or nothing, and go."""
    strangers = [
        Session(by.ground.address, None, timeout_s=ANSWER_TIMEOUT_S, log_in=False)
        for _ in range(by.rng.randrange(1, 20))
    ]
    for session in strangers:
        try:
            session.raw(by.rng.randbytes(by.rng.randrange(48)))
        except EndedError:
            by.count("ended")
    for session in strangers:
        session.close()
