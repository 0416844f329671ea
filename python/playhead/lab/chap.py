"""CHAP as an initiator does it (RFC 1994, RFC 7143 12.1.3): what we prove, and what the target has to. No sockets here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass, field

HASHES = {"5": hashlib.md5, "6": hashlib.sha1, "7": hashlib.sha256, "8": hashlib.sha3_256}
"""CHAP algorithms (RFC 7143 12.1.3 and IANA's list)."""
CHALLENGE_BYTES = 16
CHALLENGE_BYTES_MAX = 1024
IDENTIFIER = 77


class ChapError(ValueError):
    """What the target sent of CHAP is not what the protocol has."""


@dataclass(frozen=True)
class Chap:
    """Credentials: ours, and what the target must prove if it is to."""

    name: str
    secret: str = field(repr=False)
    target_name: str | None = None
    target_secret: str | None = field(default=None, repr=False)
    algorithms: str = "7,6,5"


def binary(text: str) -> bytes:
    """A large binary value: `0x` and hexadecimal digits, or `0b` and base64 (RFC 7143 6.1)."""
    try:
        if text[:2] in ("0x", "0X"):
            digits = text[2:]
            found = bytes.fromhex(digits.rjust(len(digits) + len(digits) % 2, "0"))
        elif text[:2] in ("0b", "0B"):
            found = base64.b64decode(text[2:], validate=True)
        else:
            raise ChapError(f"{text[:40]!r} is neither 0x… nor 0b…")
    except binascii.Error as error:
        raise ChapError(f"{text[:40]!r} is not base64") from error
    except ValueError as error:
        raise ChapError(f"{text[:40]!r} is not hexadecimal") from error
    return found


class Proof:
    """One exchange: our answer to the target's challenge, and our challenge to it."""

    def __init__(self, chap: Chap, asked: dict[str, str]) -> None:
        """`asked` is what the target said: CHAP_A, CHAP_I, CHAP_C. Raises ChapError."""
        self._chap = chap
        algorithm = asked.get("CHAP_A", "")
        if algorithm not in HASHES or algorithm not in chap.algorithms.split(","):
            raise ChapError(f"CHAP_A={algorithm!r} is none of {chap.algorithms}")
        self._digest = HASHES[algorithm]
        identifier = asked.get("CHAP_I", "")
        if not identifier.isascii() or not identifier.isdigit() or int(identifier) > 255:
            raise ChapError(f"CHAP_I={identifier[:20]!r} is not 0 to 255")
        challenge = binary(asked.get("CHAP_C", ""))
        if not 0 < len(challenge) <= CHALLENGE_BYTES_MAX:
            raise ChapError(f"CHAP_C has {len(challenge)} bytes")
        self._response = self._hash(int(identifier), chap.secret, challenge)
        self._ours = os.urandom(CHALLENGE_BYTES)
        if self._ours == challenge:
            raise ChapError("the target's challenge is ours")

    def _hash(self, identifier: int, secret: str, challenge: bytes) -> bytes:
        return self._digest(bytes((identifier,)) + secret.encode() + challenge).digest()

    def pairs(self) -> list[tuple[str, str]]:
        """What we answer."""
        proof = [("CHAP_N", self._chap.name), ("CHAP_R", "0x" + self._response.hex())]
        if self._chap.target_secret is not None:
            proof += [("CHAP_I", str(IDENTIFIER)), ("CHAP_C", "0x" + self._ours.hex())]
        return proof

    def is_proved_by(self, answered: dict[str, str]) -> bool:
        """Whether the target has proved itself; true if it need not. Raises ChapError."""
        chap = self._chap
        if chap.target_secret is None:
            return True
        right = self._hash(IDENTIFIER, chap.target_secret, self._ours)
        same = hmac.compare_digest(binary(answered.get("CHAP_R", "")).rjust(len(right), b"\0"), right)
        return same and chap.target_name in (None, answered.get("CHAP_N"))
