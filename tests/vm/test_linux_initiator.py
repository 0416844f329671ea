"""The Linux kernel's iSCSI and NBD initiators on the appliance's disks, with file systems, present and past."""

from __future__ import annotations

import random
import re
import time

import pytest

from .appliance import Appliance
from .initiator import (
    Files,
    FileSystem,
    Transport,
    attached,
    check_file_system,
    contents,
    make_file_system,
    mount_options,
    mounted,
    session,
)
from .machine import Machine
from .relay import Relay

MIB = 1 << 20
DISK_BYTES = 512 * MIB
"""mkfs.xfs makes nothing below 300 MiB. Disks are sparse."""

EVERY_WAY: list[tuple[Transport, FileSystem]] = [
    ("iscsi", "ext4"),
    ("iscsi", "xfs"),
    ("nbd", "ext4"),
    ("nbd", "xfs"),
]

# A bank whose clerk moves money in place and counts each committed transfer in a file outside the disk under test.
BANK_ACCOUNTS = 400
BANK_BALANCE = 1000
OPEN_BANK = f"""
sqlite3 {{folder}}/bank >/dev/null <<'SQL'
PRAGMA page_size = 4096;
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, padding TEXT);
WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < {BANK_ACCOUNTS})
INSERT INTO account SELECT id, {BANK_BALANCE}, hex(randomblob(200)) FROM ids;
CREATE TABLE transfer (id INTEGER PRIMARY KEY);
SQL
sync
"""
# DELETE mode needs synchronous=EXTRA to keep what it acknowledged: the journal's deletion must be durable too.
WORK_IN_BANK = f"""
(
    echo "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA;"
    for ((number = 1; ; number++)); do
        one=$((RANDOM % {BANK_ACCOUNTS} + 1)) other=$((RANDOM % {BANK_ACCOUNTS} + 1)) sum=$((RANDOM % 50))
        echo "BEGIN IMMEDIATE; UPDATE account SET balance = balance - $sum WHERE id = $one;"
        echo "UPDATE account SET balance = balance + $sum WHERE id = $other;"
        echo "INSERT INTO transfer VALUES ($number); COMMIT; SELECT 'done', $number;"
    done
) | stdbuf --output=L sqlite3 -batch -bail {{folder}}/bank >/run/transfers 2>&1 &
echo $! >/run/clerk
"""


def acknowledged(machine: Machine) -> int:
    """How many transfers the bank's clerk in the guest was told are committed."""
    done = re.findall(r"^done\|(\d+)$", machine.check("cat /run/transfers"), re.MULTILINE)
    return int(done[-1]) if done else 0


@pytest.fixture
def seed() -> int:
    """The seed of this test's data, printed so that a failure can be repeated."""
    chosen = random.randrange(1 << 32)
    print(f"seed {chosen}")
    return chosen


@pytest.mark.parametrize(("transport", "kind"), EVERY_WAY)
def test_a_file_system_and_its_past_are_whole(
    machine: Machine, appliance: Appliance, seed: int, transport: Transport, kind: FileSystem
) -> None:
    before = Files(seed, count=40, largest_bytes=100_000)
    after = Files(seed + 1, count=25, largest_bytes=100_000)
    disk = appliance.create_disk(f"{transport}-{kind}", DISK_BYTES)
    with attached(machine, disk, transport) as device:
        make_file_system(machine, device, kind)
        with mounted(machine, device) as folder:
            before.unpack(machine, folder)
            assert contents(machine, folder) == before.digests
            # Frozen, the disk is complete without its log, so that a read-only image needs no replay.
            machine.check(f"fsfreeze --freeze {folder}")
            appliance.bookmark(disk, "before")
            machine.check(f"fsfreeze --unfreeze {folder}")

            # Some files are overwritten, some deleted, and the file system gives back what they took.
            after.unpack(machine, folder)
            kept = after.digests
            machine.check(f"cd {folder}; rm {' '.join(set(before.digests) - set(kept))}")
            trimmed = machine.check(f"sync; fstrim --verbose {folder}")
            assert int(trimmed.split("(")[1].split()[0]) > 0, trimmed
        check_file_system(machine, device, kind)

        with mounted(machine, device) as folder:
            assert contents(machine, folder) == kept

            with (
                appliance.image(disk, "before", writable=False) as image,
                attached(machine, image, transport) as past,
            ):
                assert machine.check(f"blockdev --getro {past}").strip() == "1"
                with mounted(machine, past, mount_options(kind, writable=False)) as past_folder:
                    assert contents(machine, past_folder) == before.digests

            with (
                appliance.image(disk, "before", writable=True) as image,
                attached(machine, image, transport) as past,
            ):
                with mounted(machine, past, mount_options(kind, writable=True)) as past_folder:
                    assert contents(machine, past_folder) == before.digests
                    machine.check(f"rm -r {past_folder}/folder0; cp -r {past_folder}/folder1 {past_folder}/new")
                check_file_system(machine, past, kind)

            assert contents(machine, folder) == kept
        check_file_system(machine, device, kind)


@pytest.mark.parametrize(("transport", "kind"), [EVERY_WAY[0], EVERY_WAY[3]])
def test_a_database_at_work_is_whole_in_every_image(
    machine: Machine, appliance: Appliance, transport: Transport, kind: FileSystem
) -> None:
    disk = appliance.create_disk(f"bank-{transport}-{kind}", DISK_BYTES)
    done_by: dict[str, tuple[int, int]] = {}
    with attached(machine, disk, transport) as device:
        make_file_system(machine, device, kind)
        with mounted(machine, device) as folder:
            machine.check(OPEN_BANK.format(folder=folder))
            machine.check(WORK_IN_BANK.format(folder=folder))
            for number in range(2):
                time.sleep(0.5)
                least = acknowledged(machine)
                appliance.bookmark(disk, f"moment{number}")
                # The clerk may be told of a commit a moment after the disk has it.
                done_by[f"moment{number}"] = (least, acknowledged(machine) + 1)
            machine.check("kill $(cat /run/clerk); while pgrep sqlite3; do sleep 0.1; done")
            last = acknowledged(machine)
        check_file_system(machine, device, kind)
    print(f"transfers at the bookmarks: {done_by}, in the end {last}")
    assert len(set(done_by.values())) == len(done_by), "the clerk did nothing between the bookmarks"

    for bookmark, (least, most) in done_by.items():
        with (
            appliance.image(disk, bookmark, writable=True) as image,
            attached(machine, image, transport) as past,
        ):
            with mounted(machine, past) as folder:
                query = "PRAGMA integrity_check; SELECT sum(balance) FROM account; "
                query += "SELECT count(*) FROM transfer; SELECT max(id) FROM transfer;"
                answer = machine.check(f"sqlite3 {folder}/bank '{query}'").split()
            check_file_system(machine, past, kind)
        count = int(answer[2])
        assert answer == ["ok", str(BANK_ACCOUNTS * BANK_BALANCE), str(count), str(count)]
        assert least <= count <= most, f"{bookmark} has {count} transfers, not {least} to {most}"


@pytest.mark.parametrize("transport", ["iscsi", "nbd"])
def test_discarded_and_zeroed_ranges_read_as_zeros(
    machine: Machine, appliance: Appliance, seed: int, transport: Transport
) -> None:
    expected = bytearray(random.Random(seed).randbytes(16 * MIB))
    disk = appliance.create_disk(f"{transport}-discard", 64 * MIB)
    with attached(machine, disk, transport) as device:
        machine.push(bytes(expected), "/tmp/pattern")
        machine.check(f"dd if=/tmp/pattern of={device} bs=1M oflag=direct; rm /tmp/pattern")
        for option, first, length in (
            ("", 4 * MIB, 4 * MIB),
            ("--zeroout", 10 * MIB, MIB),
            ("", 12 * MIB + 4096, 3 * 4096),
            ("--zeroout", 14 * MIB + 512, 7 * 512),
        ):
            machine.check(f"blkdiscard {option} --offset {first} --length {length} {device}")
            expected[first : first + length] = bytes(length)
        machine.check(f"dd if={device} of=/tmp/read bs=1M count=16 iflag=direct")
        assert machine.pull("/tmp/read") == bytes(expected)
        machine.check("rm /tmp/read")
        assert "0" not in machine.check(f"lsblk -nbo DISC-MAX {device}").split()

        machine.check(f"blkdiscard {device}")
        machine.check(f"cmp -n {16 * MIB} {device} /dev/zero")


def test_two_sessions_share_one_logical_unit(machine: Machine, appliance: Appliance, seed: int) -> None:
    files = Files(seed, count=30, largest_bytes=200_000)
    disk = appliance.create_disk("two-sessions", DISK_BYTES)
    with (
        attached(machine, disk, "iscsi") as one,
        attached(machine, disk, "iscsi") as other,
    ):
        assert one != other
        name = "sg_vpd --page=0x83 --quiet"
        assert machine.check(f"{name} {one}") == machine.check(f"{name} {other}")

        # Both write at once, block by block in turn, and each reads all of it.
        writers = [
            f'for block in $(seq {first} 2 31); do printf "%04096d" $block'
            f" | dd of={device} bs=4k seek=$block oflag=direct; done &\n"
            for first, device in ((0, one), (1, other))
        ]
        machine.check("".join(writers) + "wait")
        expected = b"".join(b"%04096d" % block for block in range(32))
        for device in (one, other):
            machine.check(f"dd if={device} of=/tmp/read bs=4k count=32 iflag=direct")
            assert machine.pull("/tmp/read") == expected

        # The kernel's multipath over both, each path in its turn for a single request.
        sectors = disk.size_bytes // 512
        paths = f"1 1 round-robin 0 2 1 {one} 1 {other} 1"
        machine.check(f"dmsetup create two-paths --table '0 {sectors} multipath 0 0 {paths}'")
        make_file_system(machine, "/dev/mapper/two-paths", "ext4")
        with mounted(machine, "/dev/mapper/two-paths") as folder:
            files.unpack(machine, folder)
            machine.check(f"sync; fstrim {folder}")
            assert contents(machine, folder) == files.digests
        check_file_system(machine, "/dev/mapper/two-paths", "ext4")
        machine.check("dmsetup remove two-paths")


def test_a_killed_path_costs_no_write(machine: Machine, appliance: Appliance, seed: int) -> None:
    files = Files(seed, count=30, largest_bytes=200_000)
    disk = appliance.create_disk("killed-path", DISK_BYTES)
    with (
        Relay(disk.iscsi_port) as relay,
        session(machine, [disk]) as [steady],
        session(machine, [disk], port=relay.port, patience_s=1) as [killed],
    ):
        paths = f"1 queue_if_no_path 0 1 1 round-robin 0 2 1 {steady} 1 {killed} 1"
        machine.check(f"dmsetup create killed-path --table '0 {disk.size_bytes // 512} multipath {paths}'")
        make_file_system(machine, "/dev/mapper/killed-path", "ext4")
        with mounted(machine, "/dev/mapper/killed-path") as folder:
            # Written without a pause while the path goes, comes back and is used again.
            writer = f"""
                for number in $(seq 400); do
                    [ -e /run/enough ] && break
                    dd if=/dev/urandom of={folder}/written$number bs=16k count=1 oflag=direct status=none
                    sha256sum < {folder}/written$number
                done >/run/written 2>/run/writer-failed &
                echo $! >/run/writer
            """
            machine.check("rm -f /run/enough" + writer)
            relay.cut()
            failed = "until dmesg | grep -q 'Failing path'; do sleep 0.1; done"
            machine.check(failed)
            files.unpack(machine, folder)
            relay.mend()
            machine.check(
                f"until [ $(cat /sys/block/{killed.rpartition('/')[2]}/device/state) = running ]; do sleep 0.1; done\n"
                f"dmsetup message killed-path 0 reinstate_path $(cat /sys/block/{killed.rpartition('/')[2]}/dev)\n"
                "dmsetup status killed-path | grep -v ' F '; touch /run/enough\n"
                "while kill -0 $(cat /run/writer) 2>/dev/null; do sleep 0.1; done; test ! -s /run/writer-failed"
            )
            # What the kernel said of the path is what this test is about.
            machine.clear_kernel_log()
            found = contents(machine, folder)
            said = [line.split()[0] for line in machine.check("cat /run/written").splitlines()]
            written = {f"written{number}": digest for number, digest in enumerate(said, 1)}
            assert len(written) > 0
            assert found == files.digests | written
        check_file_system(machine, "/dev/mapper/killed-path", "ext4")
        machine.check("dmsetup remove killed-path")


def test_every_disk_has_a_name_and_says_what_it_can(machine: Machine, appliance: Appliance) -> None:
    disks = [appliance.create_disk(f"named{number}", 64 * MIB) for number in range(2)]
    with (
        attached(machine, disks[0], "iscsi") as one,
        attached(machine, disks[1], "iscsi") as other,
    ):
        names = {machine.check(f"sg_vpd --page=0x83 --quiet {device}") for device in (one, other)}
        assert len(names) == 2, names
        capacity = machine.check(f"sg_readcap --long {one}")
        assert f"Last LBA={64 * MIB // 512 - 1} " in capacity
        assert "lbpme=1" in capacity
        machine.check(f"sg_turs {one}; sg_inq {one}; sg_luns {one}; sg_sync {one}")
