"""The laboratory's parts that need no target: addresses, CHAP, sense in words, and where a probe may write."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import Any, cast

import pytest

from playhead.errors import PlayheadError
from playhead.lab import address, pdu
from playhead.lab.advertised import Advertised
from playhead.lab.chap import Chap, ChapError, Proof, binary
from playhead.lab.device import Device
from playhead.lab.scratch import RANGE_BLOCKS_MIN, lay_out
from playhead.lab.sense import words
from playhead.lab.session import Answer

IQN = "iqn.2026-11.org.example:disks"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"iscsi://10.0.0.1:3261/{IQN}/7", ("10.0.0.1:3261", IQN, 7, None, None)),
        (f"iscsi://array/{IQN}/0", ("array:3260", IQN, 0, None, None)),
        (f"iscsi://me@[fd00::1]:3260/{IQN}/0", ("[fd00::1]:3260", IQN, 0, "me", None)),
        (f"iscsi://me%se%cret@array/{IQN}/0", ("array:3260", IQN, 0, "me", "se%cret")),
    ],
)
def test_addresses(text: str, found: tuple[Any, ...]) -> None:
    lun = address.parse(text)
    assert (lun.address.text, lun.target, lun.lun, lun.user, lun.secret) == found
    assert "cret" not in lun.text
    assert "cret" not in repr(lun)


@pytest.mark.parametrize(
    "text",
    ["", "iscsi://", f"iscsi://h/{IQN}", f"iscsi://h/{IQN}/x", f"iscsi://h/{IQN}/-1", f"http://h/{IQN}/0", "iscsi://h/disk/0",
     f"iscsi://fd00::1/{IQN}/0", f"iscsi://h:0x1/{IQN}/0", f"iscsi://h/{IQN}/0/1", f"iscsi://h/iqn.{'x' * 300}/0"],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(PlayheadError) as refused:
        address.parse(text)
    assert refused.value.next_step


def test_a_proof_is_the_hash_of_identifier_secret_and_challenge() -> None:
    chap = Chap("me", "secret", "it", "other", algorithms="7,5")
    proof = Proof(chap, {"CHAP_A": "7", "CHAP_I": "9", "CHAP_C": "0x00ff10"})
    said = dict(proof.pairs())
    assert said["CHAP_R"] == "0x" + hashlib.sha256(b"\x09secret\x00\xff\x10").hexdigest()
    ours = binary(said["CHAP_C"])
    right = hashlib.sha256(bytes((int(said["CHAP_I"]),)) + b"other" + ours).hexdigest()
    assert proof.is_proved_by({"CHAP_N": "it", "CHAP_R": "0x" + right})
    assert not proof.is_proved_by({"CHAP_N": "another", "CHAP_R": "0x" + right})
    assert not proof.is_proved_by({"CHAP_N": "it", "CHAP_R": "0x" + "0" * 64})
    assert "secret" not in repr(chap)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"CHAP_A": "6", "CHAP_I": "1", "CHAP_C": "0x00"},
        {"CHAP_A": "5", "CHAP_I": "256", "CHAP_C": "0x00"},
        {"CHAP_A": "5", "CHAP_I": "x", "CHAP_C": "0x00"},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": ""},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0xzz"},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0b!!"},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0x" + "00" * 2000},
    ],
)
def test_a_challenge_that_makes_no_sense_is_said(asked: dict[str, str]) -> None:
    with pytest.raises(ChapError):
        Proof(Chap("me", "secret", algorithms="5"), asked)


def test_large_binaries() -> None:
    assert (binary("0x1ff"), binary("0bAf8="), binary("0X00")) == (b"\x01\xff", b"\x01\xff", b"\0")


def test_sense_in_words() -> None:
    fixed = bytes((0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0))
    assert words(Answer(2, b"", fixed)) == "05/20/00 ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE"
    assert words(Answer(2, b"", bytes((0x72, 0xE, 0x1D, 0, 0, 0, 0, 0)))).startswith("0e/1d/00 MISCOMPARE")
    assert words(Answer(2, b"", b"")) == "00/00/00 NO SENSE"
    assert words(Answer(2, b"", fixed[:6])) == "05/00/00 ILLEGAL REQUEST"
    assert (words(Answer(0, b"")), words(Answer(8, b"")), words(Answer(0x55, b""))) == ("GOOD", "BUSY", "status 0x55")


def test_text_that_is_not_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        pdu.pairs(b"a=\xff\0")


class _Named:
    """As much of a device as a layout looks at."""

    who = "LUN 0"

    def __init__(self, found: Advertised) -> None:
        self.advertised = found


BLANK = Advertised(
    vendor="", product="", revision="", block_count=1 << 20, block_bytes=512, third_party_copy=False, pages=(), designator=b"",
    copy_commands=None, compare_and_write=0, unmap=0, unmap_descriptors=0, unmap_granularity=0, unmap_alignment=0, write_same=0,
    unmaps=False, write_same_unmaps=False, managed=False, reads_zeros=False,
)  # fmt: skip


def test_a_layout_never_leaves_the_range_that_was_consented_to() -> None:
    rng = random.Random(7)
    aligned = 0
    for _ in range(5000):
        found = dataclasses.replace(
            BLANK,
            block_bytes=rng.choice((512, 4096)),
            unmap_granularity=rng.choice((0, 1, 8, 16, 2048, 1 << 14, 1 << 20)),
            unmap_alignment=rng.choice((0, 0, 3, 5000)),
        )
        start = rng.randrange(found.block_count - RANGE_BLOCKS_MIN)
        count = rng.choice((RANGE_BLOCKS_MIN, rng.randrange(RANGE_BLOCKS_MIN, found.block_count)))
        if start + count > found.block_count:
            continue
        layout = lay_out(cast(Device, _Named(found)), start, count)
        assert start <= layout.start
        assert layout.start + layout.count <= start + count
        assert layout.area > 0
        assert layout.area % layout.unit == 0
        assert layout.area * found.block_bytes <= max(1 << 20, layout.unit * found.block_bytes)
        if layout.aligned and found.unmap_granularity > 1:
            aligned += 1
            assert (layout.destination - found.unmap_alignment) % found.unmap_granularity == 0
    assert aligned > 500
