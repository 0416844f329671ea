"""What one host is given, another does not see, name, read or copy: two initiators in the guest, each by its own name."""

from __future__ import annotations

import random

from .image import INITIATOR_IQN
from .initiator import session
from .machine import Machine
from .playhead import PlayheadAppliance
from .watched import BLOCK, MIB, Watched

STRANGER = "iqn.2025-01.example.guest:stranger"


def test_a_masked_unit_is_neither_seen_nor_copied_from_by_name(
    machine: Machine, playhead: PlayheadAppliance, source: random.Random
) -> None:
    private = playhead.create_disk("masked", 64 * MIB)
    shared = playhead.create_neighbour(private, "shared", 64 * MIB)
    playhead.mask(private, "owner", INITIATOR_IQN)
    with (
        session(machine, [private, shared]) as [secret, mine],
        session(machine, [shared], initiator=STRANGER) as [theirs],
    ):
        watched = Watched(machine, playhead, private, secret)
        watched.fill(source.randbytes(MIB))
        copied = Watched(machine, playhead, shared, mine)
        copied.fill(source.randbytes(MIB))

        # The stranger's session has the one LUN, and asking for the other by number finds nothing.
        listed = machine.check(f"sg_luns --quiet {theirs}").split()
        assert [int(lun, 16) >> 48 for lun in listed] == [shared.lun], listed
        host = machine.check(f"readlink -f /sys/block/{theirs.rpartition('/')[2]}/device").strip().rpartition("/")[2]
        number, channel, target, _ = host.split(":")
        machine.check(
            f"echo '{channel} {target} {private.lun}' > /sys/class/scsi_host/host{number}/scan; "
            f"test ! -e /sys/class/scsi_device/{number}:{channel}:{target}:{private.lun}"
        )

        # Nor by its name: the same EXTENDED COPY as its owner may send, to a LUN both of them see.
        name = bytes.fromhex(
            machine.check(f"sg_vpd --page=di --raw {secret} | od -An -v -tx1").replace(" ", "").replace("\n", "")
        )
        here = bytes.fromhex(
            machine.check(f"sg_vpd --page=di --raw {mine} | od -An -v -tx1").replace(" ", "").replace("\n", "")
        )
        machine.push(copy_list(naa(name), naa(here)), "/tmp/list")
        send = "sg_raw --send={length} --infile=/tmp/list {device} 83 00 00 00 00 00 00 00 00 00 00 00 00 {length:02x} 00 00"
        length = len(copy_list(naa(name), naa(here)))
        before = playhead.head(shared)
        refused = machine.run(send.format(length=length, device=theirs))
        # COPY ABORTED: there is no such unit as far as they can tell.
        assert refused.status != 0
        assert "unreachable copy target" in refused.text.lower(), refused.text
        assert playhead.head(shared) == before
        copied.check()

        copied.recorded(send.format(length=length, device=mine), "COPY")
        copied.put(0, bytes(watched.expected[: 64 * BLOCK]))
        copied.check()
        watched.check()


def naa(page: bytes) -> bytes:
    """The designation descriptor with the NAA name of the logical unit, from VPD page 83h (SPC-4 7.8.6)."""
    at = 4
    while at < len(page):
        end = at + 4 + page[at + 3]
        if page[at + 1] & 0x3F == 0x03:
            return page[at:end]
        at = end
    raise AssertionError(f"no NAA name of the unit in {page.hex()}")


def copy_list(source: bytes, sink: bytes) -> bytes:
    """The parameter list of an EXTENDED COPY (SPC-4 6.4) of the first 64 blocks from one named unit to another."""
    header = bytearray(16)
    header[3] = 64
    header[11] = 28
    units = b"".join(b"\xe4\x00\x00\x00" + name.ljust(24, b"\0") + bytes((0, 0, 2, 0)) for name in (source, sink))
    segment = bytearray(28)
    segment[0] = 0x02
    segment[3] = 0x18
    segment[7] = 1
    segment[11] = 64
    return bytes(header) + units + bytes(segment)
