"""Attaching disks in the guest with the kernel's own initiators, and asking the guest about file systems on them."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from .appliance import Disk
from .machine import HOST_ADDRESS, Machine

Transport = Literal["iscsi", "nbd"]
FileSystem = Literal["ext4", "xfs"]

# Opens a session and prints its number and the block device of each LUN. The node record is made by
# hand: SendTargets would name the host's 127.0.0.1, which in the guest is the guest. The window is larger than what the
# initiator has in flight: when it closes, QEMU's user network takes 5 s to notice that it has opened again.
LOG_IN = """
sessions() { grep -lsx '%(iqn)s' /sys/class/iscsi_session/session*/targetname | tr -dc '0-9\n' | sort -n; }
first=$(sessions | head -n 1 || true)
if [ -n "$first" ] && %(again)s; then
    iscsiadm -m session -r "$first" --op new
else
    interface='%(interface)s'
    if [ -n "$interface" ]; then
        iscsiadm -m iface -I "$interface" --op new
        iscsiadm -m iface -I "$interface" --op update -n iface.initiatorname -v "%(initiator)s"
    fi
    node=(iscsiadm -m node -T '%(iqn)s' -p %(portal)s ${interface:+-I "$interface"})
    "${node[@]}" --op new
    "${node[@]}" --op update -n node.session.timeo.replacement_timeout -v %(patience_s)d
    "${node[@]}" --op update -n node.conn[0].tcp.window_size -v 8388608
    "${node[@]}" --login
fi >/run/iscsiadm 2>&1 || { cat /run/iscsiadm; exit 1; }
number=$(sessions | tail -n 1)
found=$number
for lun in %(luns)s; do
    for attempt in {1..100}; do
        for device in "/sys/class/iscsi_session/session$number/device"/target*/*:$lun/block/*; do
            if [ -b "/dev/${device##*/}" ]; then
                found="$found /dev/${device##*/}"
                continue 3
            fi
        done
        sleep 0.1
    done
    echo "session $number has no block device for LUN $lun"
    exit 1
done
echo "$found"
"""

PATIENCE_S = 20
"""How long the kernel keeps requests for a session that is gone before it fails them."""


@contextmanager
def attached(machine: Machine, disk: Disk, transport: Transport) -> Iterator[str]:
    """Attaches `disk` in the guest and gives its block device's path; detaches it afterwards.

    Not after a failure: then it stays as it is, for the kernel log to tell of, and the machine must be dropped.
    Attaching a disk by iSCSI that is attached already opens one more session to the same LUN.
    """
    if transport == "iscsi":
        with _iscsi(machine, disk) as device:
            yield device
    else:
        with _nbd(machine, disk) as device:
            yield device


@contextmanager
def session(
    machine: Machine,
    disks: Sequence[Disk],
    *,
    initiator: str = "",
    port: int = 0,
    patience_s: int = PATIENCE_S,
    luns: bool = True,
) -> Iterator[list[str]]:
    """One iSCSI session to the target that all of `disks` are LUNs of; gives their block devices. Logs out afterwards, unless something failed.

    `initiator` is the name to log in by, if not the guest's own; `port` another way to the portal than the disk's own. Without `luns` it
    does not wait for block devices and gives none.
    """
    log_in = {
        "iqn": disks[0].iqn,
        "portal": f"{HOST_ADDRESS}:{port or disks[0].iscsi_port},1",
        "luns": " ".join(str(disk.lun) for disk in disks) if luns else "",
        "initiator": initiator,
        # A name of its own for every initiator: open-iscsi keeps records by it.
        "interface": initiator.rpartition(":")[2],
        "patience_s": patience_s,
        "again": "true" if not initiator and not port else "false",
    }
    number, *devices = machine.check(LOG_IN % log_in).split()
    yield devices
    machine.check(f"iscsiadm -m session -r {number} --logout")


def generic(machine: Machine, device: str) -> str:
    """The SCSI generic node of a disk, by which some tools insist on sending their commands."""
    return "/dev/" + machine.check(f"ls /sys/block/{device.rpartition('/')[2]}/device/scsi_generic").strip()


@contextmanager
def _iscsi(machine: Machine, disk: Disk) -> Iterator[str]:
    with session(machine, [disk]) as [device]:
        yield device


@contextmanager
def _nbd(machine: Machine, disk: Disk) -> Iterator[str]:
    connect = f"nbd-client {HOST_ADDRESS} {disk.nbd_port} $device -N {disk.nbd_export}"
    connect += " -timeout 30 -b 512 -C 2 >/run/nbd-client 2>&1 || { cat /run/nbd-client; exit 1; }"
    device = machine.check(
        "for device in /dev/nbd*; do\n"
        f"    nbd-client -c $device >/dev/null || {{ {connect}; echo $device; exit; }}\n"
        "done; exit 1"
    ).strip()
    yield device
    machine.check(f"nbd-client -d {device}")


@contextmanager
def mounted(machine: Machine, device: str, options: str = "defaults") -> Iterator[str]:
    """Mounts `device` in the guest, gives the folder, unmounts it afterwards unless something failed."""
    folder = f"/mnt/{device.rpartition('/')[2]}"
    machine.check(f"mkdir -p {folder}; mount -o {options} {device} {folder}")
    yield folder
    machine.check(f"umount {folder}")


def make_file_system(machine: Machine, device: str, kind: FileSystem) -> None:
    """Makes a file system on the whole device. Both tools discard it first."""
    # Of their own accord they make no XFS below 300 MiB, which takes an emulated array long to be compared.
    machine.check(f"mkfs.ext4 -q -F {device}" if kind == "ext4" else f"mkfs.xfs -q -f --unsupported {device}")


def check_file_system(machine: Machine, device: str, kind: FileSystem) -> None:
    """Fails unless the unmounted file system is clean, journal and all. Changes nothing."""
    machine.check(f"e2fsck -f -n {device}" if kind == "ext4" else f"xfs_repair -n {device}")


def mount_options(kind: FileSystem, writable: bool) -> str:
    """How to mount a second instance of a file system that is mounted already."""
    options = ["rw"] if writable else ["ro", "noload" if kind == "ext4" else "norecovery"]
    return ",".join(options + (["nouuid"] if kind == "xfs" else []))


def contents(machine: Machine, folder: str) -> dict[str, str]:
    """The SHA-256 of every file under `folder` in the guest, by its relative path, read from the disk."""
    listing = machine.check(
        f"echo 3 >/proc/sys/vm/drop_caches; cd {folder}\n"
        "find . -type f -not -path './lost+found/*' -print0 | xargs -0 -r sha256sum",
    )
    pairs = (line.split("  ./", 1) for line in listing.splitlines())
    return {path: digest for digest, path in pairs}


class Files:
    """A set of files of random sizes and contents, the same for the same seed."""

    def __init__(self, seed: int, count: int, largest_bytes: int) -> None:
        source = random.Random(seed)
        self._files = {
            f"folder{number % 5}/file{number}": source.randbytes(source.randrange(largest_bytes))
            for number in range(count)
        }

    @property
    def digests(self) -> dict[str, str]:
        """What `contents` gives for them."""
        return {path: hashlib.sha256(data).hexdigest() for path, data in self._files.items()}

    def unpack(self, machine: Machine, folder: str) -> None:
        """Writes them under `folder` in the guest, over what is there."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, data in self._files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        machine.push(archive.getvalue(), "/tmp/files.tar")
        machine.check(f"tar -x --overwrite -C {folder} -f /tmp/files.tar; rm /tmp/files.tar")
