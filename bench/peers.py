"""The peers: other people's targets and the loopback ceiling, each serving one sparse file.

A peer has the settings its own manual gives for a file-backed disk, page cache on, no protection of
any kind.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench import ceiling
from bench.paths import MissingError, program
from bench.processes import cpu_seconds, free_port, listens, start, wait_until
from bench.scenarios import MIB
from bench.server import LUN_BYTES, Server


class FileServer(Server):
    """A server that reads and writes one plain file in place."""

    @property
    def lun(self) -> Path:
        """The file."""
        return self.directory / "lun.img"

    def new_lun(self) -> Path:
        """Creates the file, all holes."""
        with self.lun.open("wb") as lun:
            lun.truncate(LUN_BYTES)
        return self.lun

    def dirty_again(self, region_bytes: int) -> None:
        """Rewrites the region with itself, past the server, while nobody uses it.

        The first write to a clean page costs the file system more than the next, and a load that
        runs for long meets mostly pages that are dirty already. Without this, short runs would
        make a server that writes in place look slower than it is.
        """
        with self.lun.open("r+b", buffering=0) as lun:
            for offset in range(0, region_bytes, MIB):
                os.pwrite(lun.fileno(), os.pread(lun.fileno(), MIB, offset), offset)


class Tgtd(FileServer):
    """tgtd, user-space SCSI target: rdwr backing store, thin LUN, default number of I/O threads."""

    name = "tgtd"
    _target = "iqn.2026-01.bench:tgtd"
    # Of this process alone. A socket's path ends at 107 bytes, so it cannot lie beside the LUN.
    _control = str(os.getpid() % 30000 + 1000)
    _socket = f"/tmp/playhead-bench-{os.getpid()}-tgtd"

    def launch(self) -> dict[str, str]:
        """Starts a tgtd with a control socket of its own, beside any other tgtd of this machine."""
        port = free_port()
        lun = self.new_lun()
        command = [
            program("tgtd", "tgt"),
            "-f",
            "-C",
            self._control,
            "--iscsi",
            f"portal=127.0.0.1:{port}",
        ]
        self._process = start(command, self.log, {"TGT_IPC_SOCKET": self._socket})
        wait_until(lambda: listens(port), self._process, self.log)
        self._admin("--op", "new", "--mode", "target", "--tid", "1", "-T", self._target)
        unit = ("--mode", "logicalunit", "--tid", "1", "--lun", "1")
        self._admin("--op", "new", *unit, "--bstype", "rdwr", "-b", str(lun))
        self._admin("--op", "update", *unit, "--params", "thin_provisioning=1")
        self._admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        return {"iscsi": f"iscsi://127.0.0.1:{port}/{self._target}/1"}

    def halt(self) -> None:
        """Deletes the target first: tgtd obeys SIGTERM only when it has none left in use."""
        if self._process is not None and self._process.poll() is None:
            for words in (
                ("--op", "delete", "--mode", "target", "--tid", "1", "--force"),
                ("--op", "delete", "--mode", "system"),
            ):
                try:
                    self._admin(*words)
                except MissingError:
                    break
        super().halt()
        for path in Path("/tmp").glob(f"{Path(self._socket).name}*"):
            path.unlink(missing_ok=True)

    def version(self) -> str:
        """tgtd -V prints the bare number."""
        return "tgtd " + _first_line([program("tgtd", "tgt"), "-V"])

    def _admin(self, *words: str) -> None:
        command = [program("tgtadm", "tgt"), "-C", self._control, "--lld", "iscsi", *words]
        done = subprocess.run(
            command,
            env={**os.environ, "TGT_IPC_SOCKET": self._socket},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise MissingError(
                f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}"
            )


class QemuStorageDaemon(FileServer):
    """qemu-storage-daemon, NBD export of a file node; io_uring where the kernel has it, else its
    thread pool.
    """

    name = "qemu-storage-daemon"
    _aio = "not started"

    def launch(self) -> dict[str, str]:
        """Starts the daemon, falling back to threads when it refuses io_uring."""
        lun = self.new_lun()
        try:
            return self._launch(lun, "io_uring")
        except MissingError:
            return self._launch(lun, "threads")

    def _launch(self, lun: Path, aio: str) -> dict[str, str]:
        port = free_port()
        self._aio = aio
        command = [
            program("qemu-storage-daemon", "qemu-system-common"),
            *("--blockdev", f"driver=file,node-name=lun,filename={lun},aio={aio},cache.direct=off"),
            *("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
            *("--export", "type=nbd,id=lun,node-name=lun,name=lun,writable=on"),
        ]
        self._process = start(command, self.log)
        wait_until(lambda: listens(port), self._process, self.log)
        return {"nbd": f"nbd://127.0.0.1:{port}/lun"}

    def version(self) -> str:
        """The first line of --version, without the copyright, and the way of doing I/O."""
        line = _first_line([program("qemu-storage-daemon", "qemu-system-common"), "--version"])
        return line.split(" (")[0] + f", aio={self._aio}"


class Nbdkit(FileServer):
    """nbdkit with its file plugin."""

    name = "nbdkit"

    def launch(self) -> dict[str, str]:
        """Starts nbdkit in the foreground, with its default of 16 threads a connection."""
        port = free_port()
        lun = self.new_lun()
        command = [
            program("nbdkit", "nbdkit"),
            "-f",
            "-i",
            "127.0.0.1",
            "-p",
            str(port),
            "file",
            str(lun),
        ]
        self._process = start(command, self.log)
        wait_until(lambda: listens(port), self._process, self.log)
        return {"nbd": f"nbd://127.0.0.1:{port}/"}

    def version(self) -> str:
        """The first line of --version."""
        return _first_line([program("nbdkit", "nbdkit"), "--version"])


class Ceiling(FileServer):
    """The loopback ceiling (ceiling/ceiling.c): parses a PDU, does the pread or pwrite, answers."""

    name = "ceiling"

    def launch(self) -> dict[str, str]:
        """Starts the yardstick; it prints the port it got."""
        self._process = start([str(ceiling.binary()), str(self.new_lun())], self.log)
        wait_until(lambda: self.log.read_text().endswith("\n"), self._process, self.log)
        port = int(self.log.read_text().split()[1])
        return {"iscsi": f"iscsi://127.0.0.1:{port}/iqn.2026-01.bench:ceiling/1"}

    def version(self) -> str:
        """There is one only."""
        return "of this repository"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout + done.stderr).strip().split("\n")[0]


PEERS: tuple[type[FileServer], ...] = (Tgtd, Ceiling, QemuStorageDaemon, Nbdkit)


if __name__ == "__main__":
    # Starts and stops each peer once: a smoke test of this file.
    import sys

    for kind in PEERS:
        server = kind(Path(sys.argv[1]))
        print(
            server.name,
            server.launch(),
            server.version(),
            f"{cpu_seconds(server.pid):.2f} s of CPU",
        )
        began = time.monotonic()
        server.halt()
        server.wipe()
        print(f"  stopped in {time.monotonic() - began:.2f} s")
