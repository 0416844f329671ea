"""The guest's root image: a small Debian with the kernel's own iSCSI and NBD initiators.

Built once by mmdebstrap and kept in the cache (`PLAYHEAD_CACHE`, by default `.work/cache` of the repository) under a
name that is a hash of the recipe, so a changed recipe is a new image and an old one is never half updated. Debian's
cloud kernel has NVMe and ext4 built in: it mounts the image without an initramfs, and its modules (iscsi_tcp, nbd, ublk, xfs)
lie in the image. `guest/init` is process 1, and udev runs only in tests that start it; systemd is there for the tests that boot with it.

`python3 tests/vm/image.py` builds the image if need be and prints where it is; `--packages` prints the Debian packages
that building and running it takes, one per line.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
INIT = HERE / "guest" / "init"
AGENT = HERE / "guest" / "agent.service"
ADD_KERNEL = HERE / "guest" / "add-kernel"
HOST_PACKAGES = HERE / "packages.txt"

SUITE = "bookworm"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
"""Has the kernel: Debian 12's own, 6.1, is built without ublk."""
IMAGE_BYTES = 1 << 30
PARTITION_BYTES = 1 << 20
"""Where the root's partition begins. It has one so that the kernel finds it by identity: the numbers of NVMe disks are drawn at each boot."""
DISK_SIGNATURE = 0x504C4159
ROOT = f"PARTUUID={DISK_SIGNATURE:08x}-01"
"""The root, for the kernel's command line."""
BUILD_TIMEOUT_S = 900
INITIATOR_IQN = "iqn.2025-01.example.guest:initiator"

GUEST_PACKAGES = (
    "ddpt",
    "dmsetup",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "mount",
    "multipath-tools",
    "nbd-client",
    "open-iscsi",
    "procps",
    "sg3-utils",
    "sqlite3",
    "systemd",
    "udev",
    "util-linux",
    "xfsprogs",
)

# What the guest never reads.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


class ImageError(Exception):
    """The image cannot be built; the message says what is missing or what failed."""


@dataclass(frozen=True)
class Image:
    """A built image. Nothing writes to it: machines boot it through a throw-away overlay."""

    root: Path
    """A raw disk, whose one partition is the root file system, ext4."""

    kernel: Path
    """The kernel that belongs to it."""


def cache_dir() -> Path:
    """Where built images are kept."""
    return Path(os.environ.get("PLAYHEAD_CACHE", REPOSITORY / ".work" / "cache"))


def host_packages() -> list[str]:
    """The Debian packages of the host that building and running the image takes."""
    return HOST_PACKAGES.read_text().split()


def recipe_key() -> str:
    """A short hash of everything that decides what is in the image."""
    digest = hashlib.sha256()
    for part in (SUITE, str(IMAGE_BYTES), ROOT, INITIATOR_IQN, *GUEST_PACKAGES, *LEFT_OUT):
        digest.update(part.encode() + b"\0")
    for part_of_it in (INIT, AGENT, ADD_KERNEL):
        digest.update(part_of_it.read_bytes())
    return digest.hexdigest()[:16]


def ensure_image() -> Image:
    """The image of the present recipe, built now if it is not in the cache.

    Raises ImageError naming what is missing or the tail of what failed. Two processes that ask at once build it once.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"vm-{recipe_key()}"
    image = Image(root=home / "root.raw", kernel=home / "vmlinuz")
    with _lock(cache / "vm.lock"):
        if not home.exists():
            _require_tools()
            with tempfile.TemporaryDirectory(prefix="vm-build-", dir=cache) as scratch:
                finished = _build(Path(scratch))
                finished.rename(home)
    return image


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _require_tools() -> None:
    missing = [tool for tool in ("mmdebstrap", "mke2fs") if shutil.which(tool) is None]
    if missing:
        raise ImageError(f"{' and '.join(missing)} not found: apt-get install {' '.join(host_packages())}")
    if os.geteuid() != 0:
        raise ImageError(
            "building the guest's image needs root (mmdebstrap keeps file owners); "
            "run python3 tests/vm/image.py once as root with the same PLAYHEAD_CACHE"
        )


def _build(scratch: Path) -> Path:
    """Builds into a folder of `scratch` and returns it, complete."""
    tree = scratch / "tree"
    finished = scratch / "finished"
    finished.mkdir()
    mirror = os.environ.get("PLAYHEAD_DEBIAN_MIRROR", DEFAULT_MIRROR)
    command = ["mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"]
    command += [f"--include={','.join(GUEST_PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    command += [f"--customize-hook={ADD_KERNEL}"]
    security = os.environ.get("PLAYHEAD_DEBIAN_SECURITY_MIRROR", DEFAULT_SECURITY_MIRROR)
    _run([*command, SUITE, str(tree), mirror, f"deb {security} {SUITE}-security main"])

    init = tree / "usr/local/sbin/bench-init"
    shutil.copy(INIT, init)
    init.chmod(0o755)
    units = tree / "etc/systemd/system"
    shutil.copy(AGENT, units)
    wanted = units / "sysinit.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / AGENT.name).symlink_to(f"../{AGENT.name}")
    initiator = tree / "etc/iscsi/initiatorname.iscsi"
    initiator.write_text(f"InitiatorName={INITIATOR_IQN}\n")
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise ImageError(f"expected one kernel in the image, found {[k.name for k in kernels]}")
    shutil.copy(kernels[0], finished / "vmlinuz")

    root = finished / "root.raw"
    with root.open("wb") as disk:
        disk.write(_partition_table())
        disk.truncate(PARTITION_BYTES + IMAGE_BYTES)
    features = ["-F", "-O", "^has_journal", "-E", f"lazy_itable_init=1,offset={PARTITION_BYTES}"]
    _run(["mke2fs", "-q", "-t", "ext4", *features, "-d", str(tree), str(root), str(IMAGE_BYTES >> 10)])
    finished.chmod(0o755)
    return finished


def _partition_table() -> bytes:
    """A master boot record with one Linux partition: signature at 440, entries from 446 on."""
    sectors = (PARTITION_BYTES // 512, IMAGE_BYTES // 512)
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", *sectors)
    return struct.pack("<440xIH", DISK_SIGNATURE, 0) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT_S,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise ImageError(f"{command[0]} was not done after {BUILD_TIMEOUT_S} s") from expired
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed with {done.returncode}:\n{done.stdout[-4000:]}")


def main() -> int:
    """Builds the image, or prints the packages it takes."""
    arguments = argparse.ArgumentParser(description="Build the guest image of the VM tests.")
    arguments.add_argument("--packages", action="store_true", help="print the host's packages")
    if arguments.parse_args().packages:
        print("\n".join(host_packages()))
        return 0
    try:
        print(ensure_image().root)
    except ImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
