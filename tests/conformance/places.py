"""Where each of the suite's tests runs: a test asks its question of one kind of logical unit only, and on any other it is skipped."""

from __future__ import annotations

import enum
from typing import Protocol


class Place(enum.Enum):
    """A kind of logical unit and of way to it."""

    PLAIN = "a thin LUN of 1 GiB, 512-byte blocks in physical blocks of 4 KiB"
    TWO_PORTALS = "the same LUN by two sessions, of as many portals as the target has"
    READ_ONLY = "a write-protected LUN"
    NATIVE = "a LUN whose physical blocks are its logical ones"
    CHAP = "a target that demands CHAP"
    NO_UNMAP = "a LUN that policy lets nobody unmap, so that it is not thin"
    HUGE = "a thin LUN of 64 TiB, so that overwriting it takes a while"


SIZE_BYTES = 1 << 30
HUGE_BYTES = 64 << 40
USER, SECRET = "suite", "no-secret-at-all"

WANTED = {
    "MultipathIO": Place.TWO_PORTALS,
    "ReadOnly": Place.READ_ONLY,
    # Asks for the status of block i+1 and wants an answer that starts at the next physical block, which only agrees with SBC-3 5.6 (the
    # answer starts at the block asked for) where physical blocks are logical ones.
    "GetLBAStatus.UnmapSingle": Place.NATIVE,
    "iSCSICHAP": Place.CHAP,
    # Wants an overwrite to last for more than four seconds, and looks once a minute whether it is over.
    "Sanitize.Reset": Place.HUGE,
}


DEFECTS = {
    ("1.20", "CompareAndWrite.InvalidDataOutSize"): (
        Place.NATIVE,
        "means to send a COMPARE AND WRITE whose count does not fit its data, but its hook waits for PDUs that are not SCSI commands: what is "
        "sent is right, and that it is refused cannot be wanted",
    ),
    ("", "WriteSame10.UnmapUntilEnd"): (
        Place.NO_UNMAP,
        "writes FFh with WRITE SAME and UNMAP and wants zeros back; SBC-3 4.7.3.4.4 lets blocks be unmapped only if they then read as the data",
    ),
}
"""Tests that no right answer satisfies, by the beginning of the suite's version: they run where the suite itself skips them. And why."""


def place(test: str, suite_version: str) -> Place:
    """Where ``FAMILY.TEST`` of this version of the suite runs."""
    for (version, defective), (where, _) in DEFECTS.items():
        if test == defective and suite_version.startswith(version):
            return where
    return WANTED.get(test) or WANTED.get(test.partition(".")[0]) or Place.PLAIN


class Target(Protocol):
    """A target under test."""

    name: str

    def arguments(self, place: Place) -> list[str]:
        """The end of the suite's command line: options, and the LUN's address, or two for two paths. Where the target has no such place, the
        plain LUN's."""
        ...
