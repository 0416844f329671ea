"""A LUN in use comes under protection by a path flip, and out of it again: multipathd of the host, LIO as the array, and a writer that never
stops. The commands are those of docs/splitters-fabric.md.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.appliance import Appliance
from tests.splitter.fabric import compare, protect, synchronised

from .appliance import Disk
from .initiator import check_file_system, make_file_system, mount_options, mounted, session
from .lio import Lio
from .machine import HOST_ADDRESS, Machine
from .playhead import disk_of

# One path at a time, never two: a write by the direct path while another goes by way of Playhead has no order that Playhead knows. In `overrides`,
# since what multipath-tools knows of an array (of LIO: group_by_prio, both paths at once) comes before `defaults`.
MULTIPATH = """
defaults {
    find_multipaths no
    user_friendly_names no
}
overrides {
    path_grouping_policy failover
    failback manual
    no_path_retry 30
}
blacklist {
    devnode "^nvme"
}
"""
START_MULTIPATH = """
unset DM_DISABLE_UDEV
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block
udevadm settle
multipathd
until multipathd show status; do sleep 0.1; done >/dev/null 2>&1
"""
STOP_MULTIPATH = """
unset DM_DISABLE_UDEV
multipath -F
multipathd shutdown
udevadm control --exit
"""

SLOTS = 64
# Writes a record into one slot of a file after the other, each synced before it is counted, and reads an older one back from time to time.
# A call that fails ends it, and says so.
WRITER = f"""
use strict; use IO::Handle;
my ($path, $said) = @ARGV;
sysopen(my $file, $path, 0x42) or die "open: $!";
open(my $log, '>', $said) or die "log: $!"; $log->autoflush(1);
sub record {{ my $n = shift; return substr(sprintf('%015d ', $n) x 256, 0, 4096) }}
for (my $n = 1; !-e '/run/enough'; $n++) {{
    sysseek($file, ($n % {SLOTS}) * 4096, 0) or die "seek: $!";
    (syswrite($file, record($n)) // -1) == 4096 or die "write $n: $!";
    $file->sync or die "sync $n: $!";
    print $log "$n\\n";
    select(undef, undef, undef, 0.02);
    if ($n > 5 && $n % 10 == 0) {{
        my @dd = ('dd', "if=$path", 'of=/run/read', 'bs=4096', 'count=1', 'iflag=direct', 'status=none');
        system(@dd, 'skip=' . (($n - 5) % {SLOTS})) == 0 or die 'read';
        open(my $read, '<', '/run/read') or die; local $/; <$read> eq record($n - 5) or die "record $n is not what was written";
    }}
}}
print $log "over\\n";
"""


class Writer:
    """The program in the guest."""

    def __init__(self, machine: Machine, folder: str) -> None:
        self._machine = machine
        machine.push(WRITER.encode(), "/run/writer.pl")
        machine.check(
            "rm -f /run/enough /run/written\n"
            f"perl /run/writer.pl {folder}/records /run/written >/run/writer-said 2>&1 &\n"
            "until [ -s /run/written ] || [ -s /run/writer-said ]; do sleep 0.1; done"
        )

    def acknowledged(self) -> int:
        """The last record that is certainly on the disk."""
        said = self._machine.check("cat /run/writer-said; tail -n 2 /run/written").split()
        assert said and all(word.isdigit() for word in said), said
        return int(said[-1])

    def goes_on(self) -> None:
        """It writes, at this moment."""
        before, deadline = self.acknowledged(), time.monotonic() + 60
        while self.acknowledged() < before + 5:
            assert time.monotonic() < deadline, f"the writer stands at {before}"
            time.sleep(0.1)

    def end(self) -> int:
        """Ends it, and gives its last record."""
        said = self._machine.check(
            "touch /run/enough; while [ $(tail -n 1 /run/written) != over ]; do sleep 0.1; [ ! -s /run/writer-said ]; done\n"
            "tail -n 2 /run/written"
        ).split()
        assert said[1] == "over", said
        return int(said[0])


def check_records(data: bytes, at_least: int) -> int:
    """The file is that of one moment not before record `at_least` was acknowledged: each slot has its last record. Gives the moment's last record."""
    records = [int(data[slot * 4096 :][:15]) for slot in range(SLOTS)]
    last = max(records)
    assert last >= at_least
    for slot, number in enumerate(records):
        assert data[slot * 4096 : (slot + 1) * 4096] == (b"%015d " % number) * 256, f"slot {slot} is torn"
        assert number == last - (last - slot) % SLOTS, f"slot {slot} has record {number}, the last one is {last}"
    return last


@contextmanager
def multipath(machine: Machine) -> Iterator[None]:
    """udev and multipathd run in the guest."""
    machine.push(MULTIPATH.encode(), "/etc/multipath.conf")
    machine.check(START_MULTIPATH)
    yield
    machine.check(STOP_MULTIPATH)


def map_of(machine: Machine, device: str) -> str:
    """The multipath device that multipathd has made of a disk, by itself."""
    kernel_name = device.rpartition("/")[2]
    return machine.check(
        f"until ls /sys/block/{kernel_name}/holders/dm-*; do sleep 0.1; done >/dev/null 2>&1\n"
        f"device=/dev/mapper/$(cat /sys/block/{kernel_name}/holders/dm-*/dm/name)\n"
        "until [ -b $device ]; do sleep 0.1; done; echo $device"
    ).strip()


def groups(machine: Machine, device: str) -> list[tuple[str, str]]:
    """The path groups of a map: whether it is the active one (A), and the path in it, of which there must not be two."""
    status = machine.check(f"dmsetup status {device}")
    found = re.findall(r"([AED]) 0 1 \d+ (\d+:\d+) A", status)
    names = dict(
        line.split()
        for line in machine.check(
            "grep -H . /sys/block/sd*/dev | sed 's,/sys/block/\\(.*\\)/dev:\\(.*\\),\\2 \\1,'"
        ).splitlines()
    )
    return [(state, f"/dev/{names[number]}") for state, number in found]


NODE = "iscsiadm -m node -T {iqn} -p {host}:{port}"


def join(machine: Machine, disk: Disk) -> str:
    """Logs in to a disk's target, for one more path to it, and gives that path."""
    node = NODE.format(iqn=disk.iqn, host=HOST_ADDRESS, port=disk.iscsi_port)
    # As of every session in the guest: see LOG_IN.
    window = f"{node} --op update -n node.conn[0].tcp.window_size -v 8388608"
    link = f"/dev/disk/by-path/ip-{HOST_ADDRESS}:{disk.iscsi_port}-iscsi-{disk.iqn}-lun-{disk.lun}"
    return machine.check(
        f"{{ {node} --op new; {window}; {node} --login; }} >/dev/null\n"
        f"until [ -b {link} ]; do sleep 0.1; done; readlink -f {link}"
    ).strip()


def leave(machine: Machine, disk: Disk, device: str) -> None:
    """Takes a path out of its map, and out of the host. When the first command ends, what was under way on the path has ended."""
    node = NODE.format(iqn=disk.iqn, host=HOST_ADDRESS, port=disk.iscsi_port)
    kernel_name = device.rpartition("/")[2]
    left = machine.check(
        f"multipathd del path {kernel_name}\n"
        f"cat /sys/block/{kernel_name}/inflight\n"
        f"{node} --logout >/dev/null\n"
        f"{node} --op delete"
    )
    assert left.split() == ["ok", "0", "0"]


def test_a_lun_in_use_is_protected_and_let_go_by_path_flips(
    machine: Machine, array: Lio, own_appliance: Appliance, tmp_path: Path
) -> None:
    own = Disk(array.port, array.target, array.lun, 0, "", array.file.stat().st_size)
    frozen = tmp_path / "frozen"
    with multipath(machine):
        old = join(machine, own)
        device = map_of(machine, old)
        make_file_system(machine, device, "ext4")
        with mounted(machine, device) as folder:
            writer = Writer(machine, folder)
            writer.goes_on()

            # In. The new path is found to be one to the same disk; then the old one goes, and what was written on it meanwhile is found.
            protected = disk_of(protect(own_appliance, array))
            new = join(machine, protected)
            assert map_of(machine, new) == device
            assert groups(machine, device) == [("A", old), ("E", new)]
            writer.goes_on()
            leave(machine, own, old)
            writer.goes_on()
            own_appliance.cli("volume", "resync", "db/data")
            synchronised(own_appliance)
            writer.goes_on()
            machine.check(f"fsfreeze --freeze {folder}")
            own_appliance.cli("bookmark", "create", "db/in")
            subprocess.run(["cp", "--sparse=always", array.file, frozen], check=True)
            machine.check(f"fsfreeze --unfreeze {folder}")
            at_first = writer.acknowledged()

            # Out, the same way back.
            old = join(machine, own)
            assert map_of(machine, old) == device
            assert groups(machine, device) == [("A", new), ("E", old)]
            writer.goes_on()
            before = writer.acknowledged()
            leave(machine, protected, new)
            behind = writer.acknowledged()
            own_appliance.cli("detach", "db/data", "--keep-history")
            writer.goes_on()
            last = writer.end()
        check_file_system(machine, device, "ext4")
        leave(machine, own, old)
    # Nothing had to be repeated, and nothing failed.
    assert "I/O error" not in machine.kernel_log()

    image = own_appliance.cli("image", "open", "db/then", "--at", "in")
    compare(frozen, image["iscsi_url"])
    own_appliance.cli("image", "close", "db/then")
    assert 0 < at_first <= before <= behind < last
    # The history that is kept ends where the paths flipped; the LUN has everything.
    assert check_records(records_at(machine, own_appliance, "head"), before) <= behind + 1
    with session(machine, [own]) as [device], mounted(machine, device) as folder:
        assert check_records(machine.pull(f"{folder}/records"), last) == last


def records_at(machine: Machine, own_appliance: Appliance, point: str) -> bytes:
    """The writer's file in a writable image, whose log is replayed and which must be clean then."""
    image = own_appliance.cli("image", "open", "db/past", "--at", point, "--writable")
    with session(machine, [disk_of(image["volumes"][0])]) as [past]:
        with mounted(machine, past, mount_options("ext4", writable=True)) as folder:
            data = machine.pull(f"{folder}/records")
        check_file_system(machine, past, "ext4")
    own_appliance.cli("image", "close", "db/past")
    return data
