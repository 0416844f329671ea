"""A volume as a block device of the machine that Playhead runs on: here the guest, whose kernel has ublk.

The service runs inside, as an ordinary user with the rights of `packaging/` and no more, before a disk of the guest. Whoever has the device
mounted is not to notice that the service was killed, or stopped, and started again.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from playhead.errors import PlayheadError

from .appliance import free_port
from .conftest import EXPECTED_OF_THE_KERNEL
from .initiator import Files, check_file_system, contents, make_file_system, mount_options, mounted
from .inside import API_PORT, Inside, Service, carried
from .machine import Machine
from .playhead import is_calm

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None or shutil.which("ldd") is None, reason="QEMU or ldd is not installed"
)

STORE_BYTES = 2 << 30
PRODUCTION_BYTES = 48 << 20
ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGING = ROOT / "packaging"
DEVICE = "/dev/ublkb0"
STEP_LIMIT_S = 60.0
HAND_OVER_LIMIT_S = 120.0

# Every record is synced before the next; a call that fails ends it.
WRITER = """
number=0
while [ ! -e /run/enough ]; do
    number=$((number + 1))
    { printf '%4095d\\n' $number >>"$1" && sync "$1"; } || { echo $number >/run/failed; exit 1; }
    echo $number >/run/acknowledged
done
touch /run/ended
"""

# The store, the service's user, and udev with our rules: /dev/ublk* get their groups from it.
PREPARE = """
echo playhead:x:990:990::/srv:/bin/false >>/etc/passwd
echo playhead:x:990: >>/etc/group
mkfs.ext4 -q -F /dev/disk2
mount /dev/disk2 /srv
chown playhead: /srv
cp /run/ublk.rules /etc/udev/rules.d/60-playhead-ublk.rules
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --sysname-match='ublk*' --sysname-match='nvme*'
udevadm settle
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Inside]]:
    """Playhead in a machine of its own, with /dev/disk3 for production."""
    folder = tmp_path_factory.mktemp("inside")
    disks = [carried(folder), folder / "store", folder / "production"]
    for disk, size_bytes in zip(disks[1:], (STORE_BYTES, PRODUCTION_BYTES), strict=True):
        with disk.open("wb") as empty:
            empty.truncate(size_bytes)
    port = free_port()
    with Machine(disks=disks, forwarded={port: API_PORT}) as machine:
        if machine.run("test -e /dev/ublk-control").status != 0:
            pytest.skip("the guest's kernel has no ublk")
        machine.push((PACKAGING / "udev" / "60-playhead-ublk.rules").read_bytes(), "/run/ublk.rules")
        machine.check(PREPARE)
        machine.clear_kernel_log()
        inside = Inside(machine, "/dev/disk1", port, folder)
        inside.start()
        yield machine, inside


def volume(inside: Service) -> dict[str, Any]:
    found: dict[str, Any] = inside.rest.get("groups", "db", "volumes", "data")
    return found


def complaints_of(machine: Machine) -> list[str]:
    """What the guest's kernel says and nobody expects."""
    lines = machine.kernel_complaints()
    return [line for line in lines if not any(expected in line for expected in EXPECTED_OF_THE_KERNEL)]


def synchronised(inside: Service) -> None:
    deadline = time.monotonic() + STEP_LIMIT_S
    while (splitter := volume(inside)["splitter"])["state"] != "synchronised":
        assert time.monotonic() < deadline, splitter
        time.sleep(0.2)


@contextmanager
def image(machine: Machine, inside: Service, name: str, at: str, *, writable: bool) -> Iterator[str]:
    """A block device of the guest with the volume as of a point."""
    inside.rest.post("groups", "db", "images", body={"name": name, "at": at, "writable": writable})
    with nbd(machine, f"db/{name}/data"):
        yield "/dev/nbd0"
    inside.rest.delete("groups", "db", "images", name)


@contextmanager
def nbd(machine: Machine, export: str) -> Iterator[str]:
    machine.check(f"nbd-client 127.0.0.1 10809 /dev/nbd0 -N {export} -timeout 60 -b 512")
    yield "/dev/nbd0"
    machine.check("nbd-client -d /dev/nbd0")


def acknowledged(machine: Machine) -> int:
    return int(machine.check("cat /run/acknowledged"))


def wait_for_more(machine: Machine) -> None:
    """The writer goes on."""
    machine.check(
        "before=$(cat /run/acknowledged)\n"
        'while [ "$(cat /run/acknowledged)" -lt $((before + 3)) ]; do [ ! -e /run/failed ]; sleep 0.2; done',
        STEP_LIMIT_S,
    )


def test_a_mounted_disk_outlives_its_server(service: tuple[Machine, Inside], source: random.Random, soak: bool) -> None:
    machine, inside = service
    seed = source.getrandbits(32)
    before, after = Files(seed, count=30, largest_bytes=60_000), Files(seed + 1, count=20, largest_bytes=60_000)
    inside.rest.post("groups", body={"name": "db"})
    inside.rest.post("groups", "db", "volumes", "data", "attach", body={"path": "/dev/disk3"})
    shown = inside.rest.patch("groups", "db", "volumes", "data", body={"ublk": True})
    assert shown["ublk"] == {"device": DEVICE, "serving": True, "reason": None}
    assert "ublk" in {session["protocol"] for session in inside.rest.get("sessions")}
    make_file_system(machine, DEVICE, "ext4")
    with mounted(machine, DEVICE) as folder:
        before.unpack(machine, folder)
        machine.check(f"sync -f {folder}")
        inside.rest.post("groups", "db", "bookmarks", body={"name": "then", "kind": "crash"})
        after.unpack(machine, folder)
        gone = " ".join(set(before.digests) - set(after.digests))
        machine.check(f"cd {folder}; rm -f {gone}; sync -f .; fstrim .")
        with pytest.raises(PlayheadError) as refused:
            inside.rest.patch("groups", "db", "volumes", "data", body={"ublk": False})
        assert refused.value.code == "busy"

        machine.push(WRITER.encode(), "/run/writer")
        machine.check(f"echo 0 >/run/acknowledged; bash /run/writer {folder}/log </dev/null >/run/said 2>&1 &")
        for signal in ("KILL", "TERM") * (5 if soak else 1):
            wait_for_more(machine)
            inside.end(signal)
            # Nothing is acknowledged that nobody has captured; nothing fails.
            waits = acknowledged(machine)
            machine.check(f"sleep 1; [ $(cat /run/acknowledged) = {waits} ]; [ ! -e /run/failed ]; [ -b {DEVICE} ]")
            inside.start()
            wait_for_more(machine)
        machine.check(
            "touch /run/enough; until [ -e /run/ended ] || [ -e /run/failed ]; do sleep 0.1; done; [ ! -e /run/failed ]"
        )
        written = machine.check(f"echo 3 >/proc/sys/vm/drop_caches; tr -d ' ' <{folder}/log").split()
        assert [int(number) for number in written] == list(range(1, acknowledged(machine) + 1))
        machine.check(f"rm {folder}/log")
        assert contents(machine, folder) == after.digests
    check_file_system(machine, DEVICE, "ext4")

    synchronised(inside)
    with image(machine, inside, "now", "head", writable=False) as now:
        machine.check(f"cmp {now} /dev/disk3", STEP_LIMIT_S)
    with image(machine, inside, "past", "then", writable=True) as past:
        with mounted(machine, past, mount_options("ext4", writable=True)) as folder:
            assert contents(machine, folder) == before.digests
        check_file_system(machine, past, "ext4")

    complaints = complaints_of(machine)

    # What policy rejects fails in a way the kernel knows, and tells of: it leaves a discard be, and writes zeros itself.
    inside.rest.patch("policy", body={"offloads": {"unmap": "reject", "write-same": "reject"}})
    machine.check(
        f'seen() {{ head -c 1M {DEVICE} | sha256sum; }}; before=$(seen); blkdiscard -l 1M {DEVICE}; [ "$(seen)" = "$before" ]\n'
        f"blkdiscard -z -l 64K {DEVICE}; cmp -n 65536 {DEVICE} /dev/zero"
    )
    assert inside.rest.get("status")["alerts"] == []
    assert inside.rest.patch("groups", "db", "volumes", "data", body={"ublk": False})["ublk"] is None
    machine.check(f"[ ! -e {DEVICE} ]; [ ! -e /dev/ublkc0 ]")
    complaints += [line for line in inside.log().splitlines() if not is_calm(line)]
    assert not complaints, "\n".join(complaints)


def test_a_device_that_somebody_else_took_away_is_made_anew(service: tuple[Machine, Inside]) -> None:
    machine, inside = service
    inside.rest.post("groups", body={"name": "lost"})
    inside.rest.post("groups", "lost", "volumes", body={"name": "disk", "size_bytes": 1 << 20})

    def patch(wanted: bool) -> dict[str, Any]:
        shown: dict[str, Any] = inside.rest.patch("groups", "lost", "volumes", "disk", body={"ublk": wanted})
        return shown

    made = patch(True)
    device, number = made["ublk"]["device"], int(made["ublk"]["device"].removeprefix("/dev/ublkb"))
    machine.check(f"dd if=/dev/urandom of={device} bs=64k count=1 conv=fsync; head -c 64k {device} >/run/written")
    take_away = f"from playhead._native import UblkServer; UblkServer().remove('', {number}, {made['uuid']!r})"
    inside.python(take_away)
    deadline = time.monotonic() + STEP_LIMIT_S
    while (ublk := inside.rest.get("groups", "lost", "volumes", "disk")["ublk"])["serving"]:
        assert time.monotonic() < deadline, ublk
        time.sleep(0.2)
    assert "taken away" in ublk["reason"]
    assert any(device in alert for alert in inside.rest.get("status")["alerts"])
    assert patch(False)["ublk"] is None
    assert patch(True)["ublk"] == {"device": device, "serving": True, "reason": None}
    machine.check(f"head -c 64k {device} | cmp - /run/written")
    patch(False)
    inside.rest.delete("groups", "lost", "volumes", "disk", delete_base=True)


@pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")
def test_a_device_changes_hands_while_it_is_written(service: tuple[Machine, Inside], soak: bool) -> None:
    """Also by servers that let go of it and live on: the driver may then hand out requests that it has taken back already."""
    machine, _ = service
    cargo = ["cargo", "rustc", "--quiet", "--locked", "-p", "playhead-target", "--example", "ublk_hand_over"]
    # Static: the guest has its own C library.
    subprocess.run([*cargo, "--", "-C", "target-feature=+crt-static"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    machine.push((_target() / "debug" / "examples" / "ublk_hand_over").read_bytes(), "/run/hand_over")
    machine.check("chmod +x /run/hand_over")
    machine.clear_kernel_log()
    times = 50 if soak else 1
    for way, count in (("leave", 40 * times), ("hasty", 10 * times), ("kill", 10 * times)):
        print(machine.check(f"/run/hand_over {way} {count}", HAND_OVER_LIMIT_S * times))
    complaints = complaints_of(machine)
    assert not complaints, "\n".join(complaints)


def _target() -> Path:
    """Where cargo builds."""
    command = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return Path(json.loads(found.stdout)["target_directory"])


@pytest.mark.soak
def test_what_a_write_takes_compared_with_nbd(service: tuple[Machine, Inside], record_property: Any) -> None:
    """The figure of docs/splitters.md: direct writes of 4 KiB, one at a time, by either way to the same volume in turns."""
    machine, inside = service
    inside.rest.post("groups", body={"name": "speed"})
    inside.rest.post("groups", "speed", "volumes", body={"name": "disk", "size_bytes": PRODUCTION_BYTES})
    shown = inside.rest.patch("groups", "speed", "volumes", "disk", body={"ublk": True})
    times: dict[str, list[float]] = {}
    with nbd(machine, "speed/disk") as over_nbd:
        for _ in range(9):
            for device in (shown["ublk"]["device"], over_nbd):
                said = machine.check(f"dd if=/dev/zero of={device} bs=4k count=500 oflag=direct 2>&1 | tail -n 1")
                times.setdefault(device, []).append(float(said.split(", ")[-2].split()[0]))
    inside.rest.patch("groups", "speed", "volumes", "disk", body={"ublk": False})
    ublk_s, nbd_s = (statistics.median(found) for found in times.values())
    print(json.dumps({"ublk_us": ublk_s / 500 * 1e6, "nbd_us": nbd_s / 500 * 1e6, "ratio": ublk_s / nbd_s}))
