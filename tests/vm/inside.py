"""Playhead inside a guest: the service with its interpreter on a disk of its own, run by the guest's kernel and asked from the host.

The disk holds everything that the service loads, the C library and its loader too: the guest supplies the kernel alone, so that whatever
this machine's distribution is does not matter. Commands are sent from the host, where they are fast, to the API's port in the guest.
"""

from __future__ import annotations

import compileall
import http
import http.client
import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import playhead
from playhead.cli.client import Cli

from .machine import Machine, MachineError

API_PORT = 7480
START_LIMIT_S = 300.0
MOUNTED = "/opt/playhead"
STORE = "/srv/store"
LOG = "/srv/serve.log"
USER = "playhead"
# What the unit and the drop-in of packaging/systemd leave it.
AS_USER = (
    f"setpriv --reuid {USER} --regid {USER} --groups disk --no-new-privs --bounding-set -all,+sys_admin,+sys_resource"
    " --inh-caps -all,+sys_admin,+sys_resource --ambient-caps -all,+sys_admin,+sys_resource"
)
WARM = Path(__file__).parent / "guest" / "warm.py"

ENVIRONMENT = f"PYTHONHOME={MOUNTED} PYTHONPATH={MOUNTED}/site"
PYTHON = f"$(echo {MOUNTED}/libraries/ld-linux*) --library-path {MOUNTED}/libraries {MOUNTED}/bin/python"
"""The interpreter of the disk, for a shell, in `ENVIRONMENT`."""

# What the service never loads of the standard library.
LEFT_OUT = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "config-*",
    "site-packages",
    "_tkinter*",
    "*.opt-?.pyc",
    "*.a",
)
LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


def carried(folder: Path) -> Path:
    """An ext4 image in `folder` with Playhead and its interpreter."""
    tree, image = folder / "playhead", folder / "playhead.ext4"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    shutil.copytree(
        base / "lib" / version, tree / "lib" / version, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True
    )
    (tree / "bin").mkdir()
    interpreter = tree / "bin" / "python"
    shutil.copy2(Path(sys.executable).resolve(), interpreter)
    site = tree / "site"
    for name in _needed("playhead"):
        for file in importlib.metadata.distribution(name).files or ():
            if not file.parts[0].startswith(".."):
                _copy(Path(str(file.locate())), site / file)
    # The package itself is where its source is.
    shutil.copytree(Path(playhead.__file__).parent, site / "playhead", dirs_exist_ok=True)
    compileall.compile_dir(site, quiet=2, force=False)
    libraries = tree / "libraries"
    libraries.mkdir()
    binaries = [str(interpreter), *map(str, tree.rglob("*.so*"))]
    found = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    for library in set(LIBRARY.findall(found.stdout)):
        shutil.copy2(library, libraries)
    size_kib = sum(file.stat().st_size // 1024 + 4 for file in tree.rglob("*"))
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(image), str(size_kib * 5 // 4)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return image


def _needed(name: str) -> list[str]:
    """The distributions that one needs to run, itself included."""
    found: dict[str, None] = {}
    left = [name]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name)
        except importlib.metadata.PackageNotFoundError:
            # For another system, or an extra.
            continue
        found[name] = None
        left += [re.split(r"[\s;<>=!~\[(]", text, maxsplit=1)[0] for text in requires or () if "extra ==" not in text]
    return list(found)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


class Service:
    """A service in `machine`, asked from the host. The machine must forward `port` to `API_PORT`; `store` is where it keeps its token."""

    def __init__(self, machine: Machine, port: int, folder: Path, store: str = STORE) -> None:
        self._machine = machine
        self._port = port
        self._store = store
        self._token = folder / "token"
        self._token.touch(mode=0o600)
        self.rest = Cli(f"127.0.0.1:{port}", str(self._token))

    def wait(self) -> None:
        """Waits until it answers. It is asked from the host, for each process in the guest would hold it up."""
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise MachineError(f"the service in the guest did not start:\n{self.log()}")
            time.sleep(0.2)
        self._token.write_bytes(self._machine.pull(f"{self._store}/token"))

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.request("GET", "/api/v1/status")
            return connection.getresponse().status == http.HTTPStatus.UNAUTHORIZED
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def python(self, script: str) -> None:
        """Runs a script beside the service, as the guest's administrator."""
        self._machine.push(script.encode(), "/run/script.py")
        self._machine.check(f"{ENVIRONMENT} {PYTHON} -B /run/script.py")

    def log(self) -> str:
        """All that it has said."""
        return self._machine.pull(LOG).decode(errors="replace")


class Inside(Service):
    """A service with the rights of the unit, started and ended by the test, whose machine's disk `device` is the image of `carried`."""

    def __init__(self, machine: Machine, device: str, port: int, folder: Path) -> None:
        super().__init__(machine, port, folder)
        environment = f"{ENVIRONMENT} PLAYHEAD_SPACE_LOW_BYTES=1M"
        machine.push(WARM.read_bytes(), "/run/warm.py")
        machine.check(
            f"mkdir -p {MOUNTED} {STORE}; mount -o ro {device} {MOUNTED}; mkfifo /run/start\n"
            f"chown {USER}: {STORE} /run/start; touch {LOG}; chown {USER}: {LOG}; touch /run/playhead.pid; chown {USER}: /run/playhead.pid\n"
            f"{environment} setsid {AS_USER} {PYTHON} -B /run/warm.py <>/run/start >>{LOG} 2>&1 &"
        )

    def start(self) -> None:
        """Starts the service and waits until it answers."""
        options = f"--store {STORE} --iscsi off --nbd 127.0.0.1:10809 --api 0.0.0.0:{API_PORT} --log-format json"
        self._machine.check(f"echo serve {options} >/run/start")
        self.wait()

    def end(self, signal: str) -> None:
        """Sends it a signal; returns when it is gone."""
        self._machine.check(
            f"pid=$(cat /run/playhead.pid); kill -{signal} $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        )
