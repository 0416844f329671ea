"""The host-based splitter under a Linux kernel: file systems made and used over its NBD client, on a file and on a block device of the
appliance's host, which is a plain disk again when Playhead is gone.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.appliance import Appliance
from tests.blockdev import itself, loop_device
from tests.splitter.fabric import check_equal_to, synchronised

from .initiator import (
    Files,
    FileSystem,
    attached,
    check_file_system,
    contents,
    make_file_system,
    mount_options,
    mounted,
)
from .machine import Machine
from .playhead import disk_of

DISK_BYTES = 64 << 20


@pytest.mark.parametrize(
    ("where", "kind"),
    [(loop_device, "ext4"), pytest.param(itself, "xfs", marks=pytest.mark.soak)],
    ids=["device-ext4", "file-xfs"],
)
def test_a_disk_of_the_host_is_followed_and_is_a_plain_disk_afterwards(
    machine: Machine, own_appliance: Appliance, source: random.Random, tmp_path: Path, where: object, kind: FileSystem
) -> None:
    assert callable(where)
    seed = source.getrandbits(32)
    before, after = Files(seed, count=40, largest_bytes=100_000), Files(seed + 1, count=25, largest_bytes=100_000)
    kept = after.digests
    file = tmp_path / "disk.raw"
    with file.open("wb") as empty:
        empty.truncate(DISK_BYTES)
    with where(file) as production:
        own_appliance.cli("group", "create", "db")
        own_appliance.cli("attach", "db/data", str(production))
        disk = disk_of(synchronised(own_appliance))
        with attached(machine, disk, "nbd") as device:
            make_file_system(machine, device, kind)
            with mounted(machine, device) as folder:
                before.unpack(machine, folder)
                machine.check(f"sync -f {folder}")
                own_appliance.cli("bookmark", "create", "db/before")
                after.unpack(machine, folder)
                machine.check(f"cd {folder}; rm {' '.join(set(before.digests) - set(kept))}; sync -f .; fstrim .")
                assert contents(machine, folder) == kept
            check_file_system(machine, device, kind)
        synchronised(own_appliance)
        check_equal_to(own_appliance, production, "now")

        image = own_appliance.cli("image", "open", "db/then", "--at", "before", "--writable")
        with attached(machine, disk_of(image["volumes"][0]), "nbd") as past:
            with mounted(machine, past, mount_options(kind, writable=True)) as folder:
                assert contents(machine, folder) == before.digests
            check_file_system(machine, past, kind)
        own_appliance.cli("image", "close", "db/then")
        check_equal_to(own_appliance, production, "still")
        own_appliance.cli("detach", "db/data", "--drop-history")
        # Nobody holds it any more.
        os.close(os.open(production, os.O_RDWR | (os.O_EXCL if production.is_block_device() else 0)))
    with Machine(disks=[file]) as other:
        check_file_system(other, "/dev/disk1", kind)
        with mounted(other, "/dev/disk1") as folder:
            assert contents(other, folder) == kept
