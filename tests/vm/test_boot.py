"""A machine that boots with Playhead: systemd is process 1, and starts the units of `packaging/`, installed by the commands of `docs/`.

Its disk is attached and mounted from fstab on its ublk device, another volume on the kernel's NBD client. What an operator is promised of
boots, shutdowns, power cuts, and of others who write to the disk meanwhile. Each boot takes an emulated processor a minute or two.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .appliance import free_port
from .image import PARTITION_BYTES, ensure_image
from .initiator import Files, check_file_system, contents, mounted
from .inside import API_PORT, ENVIRONMENT, PYTHON, Service, carried
from .machine import Machine
from .playhead import is_calm
from .test_ublk import WRITER, acknowledged, complaints_of, image, synchronised, volume, wait_for_more

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("qemu-system-x86_64", "ldd", "tune2fs")),
        reason="QEMU, ldd or tune2fs is not installed",
    ),
]

ROOT = Path(__file__).resolve().parent.parent.parent
STORE = "/var/lib/playhead"
STORE_BYTES = 2 << 30
PRODUCTION_BYTES = 48 << 20
LOG_BYTES = 32 << 20
BY_ID = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_disk"
PRODUCTION = f"{BY_ID}3"
DEVICE = "/dev/ublkb0"
BOOT_LIMIT_S = 400.0
SHUTDOWN_LIMIT_S = 300.0
"""For the emulation. systemd complains of whatever does not stop by itself within its 90 s."""
DISCOVERED = "production was, or may have been, changed while it was not protected; all of it is compared"

OF_OURS = re.compile(r"ublk|nbd|EXT4-fs|I/O error|blocked for|BUG|Call Trace")
"""Of what the kernel complains of while a machine boots, what is about disks, or about a program that hangs."""
MASKED = re.compile(r"multipathd|iscsi")
INSTALL = "mkdir -p /etc/sysusers.d"
WAIT = "disk=$(systemd-escape --path --suffix=device /dev/disk/by-id/DISK)"
GRANT = "cp packaging/udev/60-playhead-ublk.rules /etc/udev/rules.d/"

# The program as a package has it, and where its data is; what is not of Playhead is masked, for it takes time.
PREPARE = f"""
systemctl mask -q multipathd.socket multipathd.service open-iscsi.service iscsid.socket iscsid.service e2scrub_reap.service getty-static.service
mkdir -p /etc/playhead /opt/playhead {STORE} /srv /mnt/log
cat >/usr/bin/playhead <<'END'
#!/bin/sh
export {ENVIRONMENT}
exec {PYTHON} -B -m playhead "$@"
END
chmod +x /usr/bin/playhead
cat >/etc/playhead/playhead.toml <<'END'
iscsi = "off"
api = "0.0.0.0:{API_PORT}"
space_low_bytes = 1048576
log_format = "json"
END
mkfs.ext4 -q -F {BY_ID}2
cat >/etc/fstab <<'END'
{BY_ID}1 /opt/playhead ext4 ro 0 0
{BY_ID}2 {STORE} ext4 defaults 0 2
END
systemctl daemon-reload
systemctl start opt-playhead.mount var-lib-playhead.mount
"""

SLOW_DISK = 'ACTION=="add", SUBSYSTEM=="block", KERNEL=="nvme*", ATTRS{serial}=="disk3*", PROGRAM="/bin/sleep 45"\n'


def documented(page: str, first: str) -> str:
    """The commands of a page of `docs/` that begin with the line `first`."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^( *){re.escape(first)}\n(?:\1[^\s`].*\n)*", text, re.MULTILINE)
    assert found, f"docs/{page} has no commands that begin with {first!r}"
    return found[0].replace("\n" + found[1], "\n").lstrip()


def fstab_line(device: str) -> str:
    """The line for a device in the documentation."""
    [line] = re.findall(rf"^{device} .*$", (ROOT / "docs" / "splitters.md").read_text(), re.MULTILINE)
    return str(line)


class Host:
    """A machine with a system, a store and a production that stay while it is off."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._system = folder / "system"
        self.production = folder / "production"
        self.left = 0
        """The head of the group at a moment when production and replica were the same."""
        self.files = Files(random.randrange(1 << 32), count=40, largest_bytes=100_000)
        self._disks = [carried(folder), folder / "store", self.production]
        subprocess.run(["cp", "--sparse=always", ensure_image().root, self._system], check=True)
        # The root is cut off from power too.
        journal = ["tune2fs", "-O", "has_journal", f"{self._system}?offset={PARTITION_BYTES}"]
        subprocess.run(journal, check=True, capture_output=True)
        for disk, size_bytes in zip(self._disks[1:], (STORE_BYTES, PRODUCTION_BYTES), strict=True):
            with disk.open("wb") as empty:
                empty.truncate(size_bytes)

    def put(self, data: bytes, path: str) -> None:
        """Writes a file of its system while it is off."""
        file, commands = self._folder / "file", self._folder / "commands"
        file.write_bytes(data)
        folder, _, name = path.rpartition("/")
        commands.write_text(f"cd {folder}\nwrite {file} {name}\n")
        command = ["debugfs", "-w", "-f", str(commands), f"{self._system}?offset={PARTITION_BYTES}"]
        subprocess.run(command, check=True, capture_output=True)

    @contextmanager
    def on(
        self, kernel_options: str = "", *, power_cut: bool = False, expected: str = ""
    ) -> Iterator[tuple[Machine, Service]]:
        """Boots it, and in the end shuts it down, in time and without a complaint but one that is `expected`; or cuts its power."""
        port = free_port()
        with Machine(
            disks=self._disks, forwarded={port: API_PORT}, system=self._system, kernel_options=kernel_options
        ) as machine:
            service = Service(machine, port, self._folder, STORE)
            yield machine, service
            if power_cut:
                return
            check_calm(machine, expected)
            machine.run("systemctl poweroff")
            machine.wait_for_end(SHUTDOWN_LIMIT_S)
            assert "systemd-shutdown" not in machine.console_tail(), machine.console_tail()


def warnings_of_systemd(machine: Machine, boot: int) -> list[str]:
    """What systemd complained of in a boot, but for the units that `PREPARE` masks while they run."""
    said = machine.check(f"journalctl -q -b {boot} -p warning -o cat _PID=1").splitlines()
    return [line for line in said if not MASKED.search(line)]


def check_calm(machine: Machine, expected: str) -> None:
    """Neither kernel nor systemd nor Playhead complained, but Playhead of what is `expected`."""
    machine.check("systemctl is-system-running --wait || { systemctl --failed; exit 1; }", BOOT_LIMIT_S)
    said = machine.check("journalctl -q -b -u playhead -o cat _TRANSPORT=stdout").splitlines()
    said = [line for line in said if not is_calm(line)]
    if expected:
        assert any(expected in line for line in said), f"nothing was said of {expected!r}"
        said = [line for line in said if expected not in line]
    said += [line for line in complaints_of(machine) if OF_OURS.search(line)]
    said += warnings_of_systemd(machine, 0)
    assert not said, "\n".join(said)


def check_order(machine: Machine) -> None:
    """At the shutdown before this boot what is mounted went before what serves it, and nothing had to be ended by force."""
    said = machine.check("journalctl -q -b -1 -o cat _PID=1").splitlines()
    said = said[max(n for n, line in enumerate(said) if line.startswith("Stopped target multi-user.target")) :]
    for steps in (
        ("Unmounted srv.mount", "Stopping playhead.service", "Stopped playhead.service"),
        ("Unmounted mnt-log.mount", "Stopped playhead-attach@nbd1.service", "Stopping playhead.service"),
    ):
        found = [step for line in said for step in steps if line.startswith(step)]
        assert found == list(steps), "\n".join(said)
    assert warnings_of_systemd(machine, -1) == []


def mounted_from_fstab(machine: Machine) -> None:
    """Everything that is to be started is, and the devices are mounted."""
    machine.check(
        "systemctl is-system-running --wait || { systemctl --failed; journalctl -q -b -u playhead -o cat; exit 1; }\n"
        f'[ "$(findmnt -n -o SOURCE /srv)" = {DEVICE} ]; [ "$(findmnt -n -o SOURCE /mnt/log)" = /dev/nbd1 ]',
        BOOT_LIMIT_S,
    )


def compared(service: Service, since: int) -> bool:
    """Whether anything had to be compared since a point."""
    at: int | None = since
    while at is not None:
        page = service.rest.get("groups", "db", "journal", "records", from_lsn=at)
        if any(record["opcode"].startswith("RESYNC") for record in page["records"]):
            return True
        at = page["next_lsn"]
    return False


def head(service: Service) -> int:
    return int(service.rest.get("groups", "db", "head")["lsn"])


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """What is mounted writes nothing: a file system does so by itself, its journal's beginning say."""
    is_mounted = machine.run("mountpoint -q /srv").status == 0
    if is_mounted:
        machine.check("fsfreeze --freeze /srv")
    yield
    if is_mounted:
        machine.check("fsfreeze --unfreeze /srv")


def check_equal(machine: Machine, service: Service) -> None:
    """The newest point is production, byte for byte."""
    synchronised(service)
    with frozen(machine), image(machine, service, "now", "head", writable=False) as now:
        machine.check(f"cmp {now} {PRODUCTION}")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Installed, its disk attached and in fstab, and switched off."""
    host = Host(tmp_path_factory.mktemp("host"))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(ROOT / "packaging", "packaging")
    with host.on() as (machine, service):
        machine.push(archive.getvalue(), "/root/packaging.tar")
        machine.check(f"cd /root; tar -xf packaging.tar\n{PREPARE}", BOOT_LIMIT_S)
        # The kernel's module first, as who looks whether there is one does.
        machine.check("modprobe ublk_drv; udevadm settle; cd /root\n" + documented("cli.md", INSTALL), BOOT_LIMIT_S)
        service.wait()
        wait_for = documented("splitters.md", WAIT).replace("/dev/disk/by-id/DISK", PRODUCTION)
        machine.check(f"cd /root\n{documented('splitters.md', GRANT)}\n{wait_for}", BOOT_LIMIT_S)
        service.wait()
        service.rest.post("groups", body={"name": "db"})
        service.rest.post("groups", "db", "volumes", "data", "attach", body={"path": PRODUCTION})
        service.rest.patch("groups", "db", "volumes", "data", body={"ublk": True})
        service.rest.post("groups", "db", "volumes", body={"name": "log", "size_bytes": LOG_BYTES})
        attach = documented("splitters.md", "mkdir -p /etc/playhead/attach").replace("nbd0", "nbd1")
        attach = attach.replace("db/data", "db/log").partition("mount ")[0]
        machine.check("cd /root\n" + attach, BOOT_LIMIT_S)
        lines = fstab_line(DEVICE), fstab_line("/dev/nbd0").replace("nbd0", "nbd1").replace("/srv", "/mnt/log")
        table = "\n".join(lines)
        machine.check(f"cat >>/etc/fstab <<'END'\n{table}\nEND\nmkfs.ext4 -q -F {DEVICE}; mkfs.ext4 -q -F /dev/nbd1")
        machine.check("systemctl daemon-reload; systemctl start remote-fs.target; findmnt /srv; findmnt /mnt/log", 120)
        synchronised(service)
        host.left = head(service)
        for folder in ("/srv", "/mnt/log"):
            host.files.unpack(machine, folder)
    return host


def test_a_boot_mounts_what_a_shutdown_left_in_order(host: Host) -> None:
    """Of what was written before the shutdown much was in the page cache alone."""
    with host.on() as (machine, service):
        mounted_from_fstab(machine)
        check_order(machine)
        assert contents(machine, "/srv") == contents(machine, "/mnt/log") == host.files.digests
        assert volume(service)["splitter"]["state"] == "synchronised"
        assert not compared(service, host.left)
        check_equal(machine, service)
        host.left = head(service)


def test_a_power_cut_under_writes_leaves_all_that_was_synced(host: Host, source: random.Random) -> None:
    """The file system is repaired by the boot itself, and the journal's newest point is what is on the disk."""
    files = Files(source.getrandbits(32), count=20, largest_bytes=100_000)
    with host.on(power_cut=True) as (machine, service):
        mounted_from_fstab(machine)
        check_order(machine)
        assert not compared(service, host.left)
        files.unpack(machine, "/srv")
        machine.check("sync -f /srv")
        machine.push(WRITER.encode(), "/run/writer")
        machine.check("echo 0 >/run/acknowledged; bash /run/writer /srv/log </dev/null >/run/said 2>&1 &")
        wait_for_more(machine)
        synced = acknowledged(machine)
        host.left = head(service)
    with host.on() as (machine, service):
        mounted_from_fstab(machine)
        written = machine.check("tr -d ' ' </srv/log").split()
        numbers = [int(number) for number in written if number.isdigit()]
        # The last one may be there in part.
        assert numbers[:synced] == list(range(1, synced + 1)), (numbers, synced)
        machine.check("rm /srv/log")
        found = contents(machine, "/srv")
        assert {path: found.get(path) for path in files.digests} == files.digests
        machine.check("systemctl stop srv.mount")
        check_file_system(machine, DEVICE, "ext4")
        check_equal(machine, service)
        host.left = head(service)
        machine.check("systemctl start srv.mount")


def test_what_another_system_did_to_the_disk_is_found(host: Host) -> None:
    """It mounted the disk, as file systems remember at their beginning."""
    with Machine(disks=[host.production]) as other, mounted(other, "/dev/disk1") as folder:
        other.check(f"echo there >{folder}/second")
    with host.on(expected=DISCOVERED) as (machine, service):
        mounted_from_fstab(machine)
        assert machine.check("cat /srv/second") == "there\n"
        check_equal(machine, service)
        assert compared(service, host.left)
        host.left = head(service)


def test_what_was_written_in_the_same_boot_before_the_service_is_found(host: Host) -> None:
    """In the middle alone, where only the kernel's counts tell."""
    middle = "bs=4096 seek=6000 count=1 conv=notrunc,fsync"
    with host.on("systemd.unit=sysinit.target", expected=DISCOVERED) as (machine, service):
        machine.check(
            "systemctl start sysinit.target; udevadm settle\n"
            f"dd if=/dev/urandom of=/root/block bs=4096 count=1; dd if=/root/block of={PRODUCTION} {middle}",
            BOOT_LIMIT_S,
        )
        machine.check("systemctl start multi-user.target", BOOT_LIMIT_S)
        mounted_from_fstab(machine)
        check_equal(machine, service)
        assert compared(service, host.left)
        host.left = head(service)
        machine.check(f"cmp /root/block <(dd if={DEVICE} bs=4096 skip=6000 count=1)")


def test_a_boot_waits_for_a_disk_that_comes_late(host: Host) -> None:
    """Later than the service would have opened it, and sooner than systemd gives it up."""
    host.put(SLOW_DISK.encode(), "/etc/udev/rules.d/40-slow.rules")
    with host.on() as (machine, service):
        mounted_from_fstab(machine)
        assert not compared(service, host.left)
