"""The fabric-based splitter between two Linux kernels: the initiator of one, the target (LIO) of the other, and Playhead on the way."""

from __future__ import annotations

import hashlib
import random

import pytest
from tests.appliance import Appliance
from tests.conformance import suites
from tests.splitter.fabric import Load, check_equal, protect, synchronised
from tests.splitter.suite import differences

from .initiator import (
    Files,
    FileSystem,
    check_file_system,
    contents,
    make_file_system,
    mount_options,
    mounted,
    session,
)
from .lio import Lio
from .machine import Machine
from .playhead import disk_of

LARGE_BYTES = 8 << 20


@pytest.mark.expect_log("hosts are told to wait")
@pytest.mark.expect_log("array")
@pytest.mark.parametrize("kind", ["xfs", pytest.param("ext4", marks=pytest.mark.soak)])
def test_a_file_system_on_a_lun_of_linux_is_followed(
    machine: Machine, array: Lio, own_appliance: Appliance, source: random.Random, kind: FileSystem
) -> None:
    seed = source.getrandbits(32)
    before, after = Files(seed, count=40, largest_bytes=100_000), Files(seed + 1, count=25, largest_bytes=100_000)
    disk = disk_of(protect(own_appliance, array))
    with session(machine, [disk]) as [device]:
        # It is LIO's own disk that the host sees.
        assert "LIO-ORG" in machine.check(f"sg_inq {device}")
        make_file_system(machine, device, kind)
        with mounted(machine, device) as folder:
            before.unpack(machine, folder)
            # In use and not frozen: its image has a log to replay. What mkfs has unmapped is being read back, since LIO does not promise that it
            # reads as zeros; until then there is no point that is consistent.
            machine.check(f"sync -f {folder}")
            synchronised(own_appliance)
            own_appliance.cli("bookmark", "create", "db/before")
            after.unpack(machine, folder)
            kept = after.digests
            machine.check(f"cd {folder}; rm {' '.join(set(before.digests) - set(kept))}; sync -f .")
            trimmed = machine.check(f"fstrim --verbose {folder}")
            assert int(trimmed.split("(")[1].split()[0]) > 0, trimmed
            # A moment without the array is a moment to wait, for a host that knows nothing of it.
            large = source.randbytes(LARGE_BYTES)
            machine.push(large, "/tmp/large")
            copy = f"dd if=/tmp/large of={folder}/large bs=64k oflag=direct conv=fsync"
            machine.check(f"rm -f /run/copied; {{ {copy}; echo $? >/run/copied; }} >/run/copy-said 2>&1 &")
            array.disable()
            array.enable()
            copied = machine.check("until [ -s /run/copied ]; do sleep 0.1; done; cat /run/copied /run/copy-said")
            assert copied.startswith("0\n"), copied
            assert "hosts are told to wait" in own_appliance.said()
            kept["large"] = hashlib.sha256(large).hexdigest()
            assert contents(machine, folder) == kept
        check_file_system(machine, device, kind)
        synchronised(own_appliance)
        check_equal(own_appliance, array, "now")

        image = own_appliance.cli("image", "open", "db/then", "--at", "before", "--writable")
        with session(machine, [disk_of(image["volumes"][0])]) as [past]:
            with mounted(machine, past, mount_options(kind, writable=True)) as folder:
                assert contents(machine, folder) == before.digests
            check_file_system(machine, past, kind)
        own_appliance.cli("image", "close", "db/then")
        check_file_system(machine, device, kind)
    synchronised(own_appliance)
    check_equal(own_appliance, array, "still")


QUICK = [
    "TestUnitReady",
    "Inquiry",
    "ReadCapacity16",
    "ModeSense6",
    "ExtendedCopy",
    "ReceiveCopyResults",
    "OrWrite",
    "PrinReadKeys",
    "ProutRegister",
    "ProutReserve",
    "ProutClear",
    "ProutPreempt",
    "ReadCapacity10",
    "Sanitize",
    "Write16.Simple",
    "WriteSame16.UnmapUnaligned",
    "iSCSIResiduals",
    "iSCSITMF",
]
"""Families and tests of libiscsi's suite that are quick under emulation; with --soak all of them."""

PATIENCE = 5.0
"""How many times as long as on a machine that is not emulated a test may take."""

_READS_FIRST = "LIO does not know the command; Playhead reads a CDB that may change blocks first, and refuses itself what is wrong in it"
_RESETS = "LIO has no target reset; Playhead makes it one of the LUN"
_LATE = "LIO lets go of a RESERVE some time after the logout; whether the suite's three tries wait long enough is chance, directly too"
DIFFERENT: dict[str, tuple[str, str]] = {
    "OrWrite.BeyondEol": ("passed", _READS_FIRST),
    "OrWrite.Protect": ("passed", _READS_FIRST),
    "Sanitize.BlockEraseReserved": ("passed", _READS_FIRST),
    "Sanitize.CryptoEraseReserved": ("passed", _READS_FIRST),
    "Sanitize.OverwriteReserved": ("passed", _READS_FIRST),
    "Sanitize.InvalidServiceAction": ("passed", _READS_FIRST),
    "WriteVerify12.BeyondEol": ("passed", _READS_FIRST),
    "WriteVerify12.WriteProtect": ("passed", _READS_FIRST),
    "Reserve6.TargetColdReset": ("passed", _RESETS),
    "Reserve6.TargetWarmReset": ("passed", _RESETS),
    "iSCSIdatasn.iSCSIDataSnInvalid": ("passed", "the host's session is Playhead's, which checks DataSN; LIO does not"),
}
"""What tests come to by way of Playhead that come to something else on LIO alone, and why. The same table is in docs/splitters-fabric.md."""

CHANCE = {"Reserve6.Logout": _LATE, "Reserve6.ITNexusLoss": _LATE}
"""Tests that come to either."""


@pytest.mark.expect_log("iSCSI")
@pytest.mark.expect_log("array")
def test_libiscsis_suite_comes_to_what_it_comes_to_on_linux_alone(
    array: Lio, own_appliance: Appliance, soak: bool
) -> None:
    if suites.installed() is None:
        pytest.skip("iscsi-test-cu is not installed")
    found = differences(own_appliance, array, [] if soak else QUICK, PATIENCE)
    others = {test: outcomes for test, outcomes in found.items() if test not in CHANCE}
    assert {test: outcomes for test, outcomes in others.items() if test not in DIFFERENT} == {}
    assert {test: through for test, (_, through) in others.items()} == {test: DIFFERENT[test][0] for test in others}
    # And whatever it was that it did to the LUN is in the journal.
    synchronised(own_appliance, "suite/lun")
    check_equal(own_appliance, array, "after", "suite")


@pytest.mark.expect_log("hosts are told to wait")
@pytest.mark.expect_log("array")
def test_a_target_of_linux_that_goes_and_comes_under_load(array: Lio, own_appliance: Appliance) -> None:
    volume = protect(own_appliance, array)
    loads = [Load(volume, seed) for seed in (1, 2)]
    for load in loads:
        load.start()
    try:
        # Its portal group is taken away, which ends the sessions in order.
        loads[0].wait_for(50)
        array.disable()
        array.enable()
        loads[1].wait_for(50)
        # Its power goes, and it boots again with the same disk.
        array.kill()
        array.start()
        for load in loads:
            load.wait_for(50)
    finally:
        for load in loads:
            load.end()
    synchronised(own_appliance)
    check_equal(own_appliance, array, "after")
    assert any(load.refused for load in loads)
