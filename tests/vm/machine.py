"""A virtual machine to run commands in: QEMU without hardware acceleration, over a throw-away overlay of the image.

The guest reaches the host's 127.0.0.1 as 10.0.2.2 (QEMU's user network). Commands and files travel over a virtio-serial
port to the loop in `guest/init`, which documents the messages; the serial console only records what the kernel says.

Everything has a time limit: a guest that does not answer raises MachineError with the end of the console, and the
machine is then good for nothing but to be closed. QEMU dies with this process, however this process ends.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .image import ROOT, Image, ensure_image, host_packages

HOST_ADDRESS = "10.0.2.2"
"""The host's 127.0.0.1, as the guest sees it."""

BOOT_TIMEOUT_S = 120.0
DEFAULT_TIMEOUT_S = 60.0
ANSWER_MARGIN_S = 20.0
"""How much longer than the guest's own limit the host waits: the guest kills the command first and says so."""

TIMEOUT_STATUS = (124, 137)
"""What the guest's `timeout` exits with when the command was ended, by TERM or by KILL."""

MEMORY_MIB = 768
OUTPUT_LIMIT_BYTES = 256 << 20
SCRIPT_LIMIT_BYTES = 100_000
"""Linux passes no longer argument to a process; what is longer goes by `push`."""

HEADER_BYTES = 64
CONSOLE_TAIL_CHARACTERS = 4000

log = logging.getLogger(__name__)


class MachineError(Exception):
    """The machine did not start, did not answer or answered nonsense; the message ends with the console's tail."""


class CommandError(Exception):
    """A command failed in the guest: the command, its exit status and its output."""


@dataclass(frozen=True)
class Output:
    """What a command in the guest did."""

    status: int
    """Exit status; 124 or 137 when its time was up."""

    data: bytes
    """stdout and stderr as they came."""

    @property
    def text(self) -> str:
        """The output as text."""
        return self.data.decode(errors="replace")


class Machine:
    """One running guest. Use it as a context manager; it is not for several threads at once."""

    def __init__(
        self,
        image: Image | None = None,
        memory_mib: int = MEMORY_MIB,
        *,
        disks: Sequence[Path] = (),
        forwarded: Mapping[int, int] | None = None,
        system: Path | None = None,
        kernel_options: str = "",
    ) -> None:
        """`disks` are raw files of the host that stay when the machine ends: the guest has them as /dev/disk1 and so on, discards included,
        and what it has written the host reads in the file at once. `forwarded` are ports of the host's 127.0.0.1, each with the guest's.

        `system` is a copy of the image's root that is booted instead, by systemd, and that stays too. `kernel_options` are added to the
        kernel's command line.
        """
        self._image = image if image is not None else ensure_image()
        self._memory_mib = memory_mib
        self._disks = tuple(disks)
        self._forwarded = dict(forwarded or {})
        self._system = system
        self._kernel_options = kernel_options
        self._folder: Path | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._last_id = 0

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Output:
        """Runs a bash script in the guest, for at most `timeout_s`, and returns its status and output.

        What it starts in the background must have its output elsewhere. Raises MachineError if the guest does not
        answer.
        """
        script = command.encode()
        if len(script) > SCRIPT_LIMIT_BYTES:
            raise ValueError(f"a script of {len(script)} bytes; push longer ones as a file")
        started = time.monotonic()
        output = self._ask("run", script, timeout_s)
        log.debug("%.2f s, status %d: %s", time.monotonic() - started, output.status, command)
        return output

    def check(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Runs a bash script with `set -eu -o pipefail` and returns its output; raises CommandError if it fails."""
        output = self.run("set -eu -o pipefail\n" + command, timeout_s)
        if output.status != 0:
            ended = f" (its {timeout_s:g} s were up)" if output.status in TIMEOUT_STATUS else ""
            raise CommandError(
                f"exit status {output.status}{ended} from\n{command}\n--- output\n{output.text}"
                f"\n--- kernel\n{self.kernel_log()[-CONSOLE_TAIL_CHARACTERS:]}"
            )
        return output.text

    def push(self, data: bytes, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Writes `data` to the guest's file `path`, replacing it."""
        self._ask("put", data, timeout_s)
        self.check(f'mv "$UPLOAD" {shlex.quote(path)}')

    def pull(self, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """The contents of the guest's file `path`; raises CommandError if it cannot be read."""
        output = self.run(f"exec cat -- {shlex.quote(path)}", timeout_s)
        if output.status != 0:
            raise CommandError(f"cannot read {path} in the guest: {output.text}")
        return output.data

    def kernel_log(self) -> str:
        """The guest kernel's messages since boot or the last `clear_kernel_log`."""
        return self.run("dmesg").text

    def kernel_complaints(self) -> list[str]:
        """The kernel's messages of level warning or worse since boot or the last `clear_kernel_log`."""
        return self.run("dmesg --level=emerg,alert,crit,err,warn").text.splitlines()

    def clear_kernel_log(self) -> None:
        """Forgets the kernel's messages so far."""
        self.check("dmesg --clear")

    def wait_for_end(self, timeout_s: float) -> None:
        """Returns when the machine has switched itself off, or was about to boot again. Raises MachineError if it does not by then."""
        assert self._qemu is not None
        try:
            self._qemu.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._broken(f"the machine did not switch itself off within {timeout_s:g} s") from None

    def close(self) -> None:
        """Ends QEMU, as a power cut would, and removes what the machine kept on the host. The guest's overlay is gone with it."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(timeout=30)
            self._qemu = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def console_tail(self) -> str:
        """The end of what the guest's kernel wrote to the serial console, and of what QEMU itself complained of."""
        if self._folder is None:
            return ""
        tail = ""
        for name in ("console", "qemu"):
            path = self._folder / name
            if path.exists():
                text = path.read_bytes().decode(errors="replace")
                tail += f"\n--- {name}\n{text[-CONSOLE_TAIL_CHARACTERS:]}"
        return tail

    def _start(self) -> None:
        missing = [t for t in ("qemu-system-x86_64", "setpriv") if shutil.which(t) is None]
        if missing:
            raise MachineError(f"{missing} not found: apt-get install {' '.join(host_packages())}")
        self._folder = Path(tempfile.mkdtemp(prefix="playhead-vm-"))
        with (self._folder / "qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._command(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        self._agent = self._connect(self._folder / "agent", deadline)
        self._answer(0, deadline)

    def _command(self, folder: Path) -> list[str]:
        init = "/usr/local/sbin/bench-init" if self._system is None else "/lib/systemd/systemd"
        # quiet: the console is emulated byte by byte and slow. Warnings still go there, for the day of no answer.
        kernel = f"root={ROOT} rw init={init} console=ttyS0 quiet loglevel=5"
        # On a busy host the emulation pauses for seconds; the guest's watchdogs would take that for its own fault.
        kernel += " panic=1 mitigations=off nowatchdog tsc=reliable rcupdate.rcu_cpu_stall_suppress=1"
        kernel += f" {self._kernel_options}"
        root = f"snapshot=on,file={self._image.root}" if self._system is None else f"file={self._system}"
        drive = f"if=none,id=root,format=raw,{root}"
        agent = f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"
        disks: list[str] = []
        for number, file in enumerate(self._disks, 1):
            disks += ["-drive", f"if=none,id=disk{number},format=raw,discard=unmap,file={file}"]
            disks += ["-device", f"nvme,drive=disk{number},serial=disk{number}"]
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in self._forwarded.items())
        return [
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1"),
            *("-m", str(self._memory_mib)),
            *("-kernel", str(self._image.kernel), "-append", kernel),
            *("-drive", drive, "-device", "nvme,drive=root,serial=root"),
            *disks,
            *("-netdev", f"user,id=net,ipv6=off{forwards}", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", agent, "-device", "virtserialport,chardev=agent,name=playhead.agent"),
            *("-serial", f"file:{folder / 'console'}"),
        ]

    def _connect(self, path: Path, deadline: float) -> socket.socket:
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                agent.connect(str(path))
                return agent
            except OSError:
                if time.monotonic() > deadline or not self._alive():
                    agent.close()
                    raise MachineError(f"QEMU did not start{self.console_tail()}") from None
                time.sleep(0.05)

    def _alive(self) -> bool:
        return self._qemu is not None and self._qemu.poll() is None

    def _ask(self, kind: str, body: bytes, timeout_s: float) -> Output:
        if self._agent is None:
            raise MachineError("the machine is closed, or did not answer before")
        self._last_id += 1
        # `timeout` takes 0 for "no limit", so a whole second is the least.
        seconds = max(1, round(timeout_s))
        header = f"{kind} {self._last_id} {seconds} {len(body)}".encode().ljust(HEADER_BYTES - 1)
        deadline = time.monotonic() + timeout_s + ANSWER_MARGIN_S
        try:
            self._agent.settimeout(deadline - time.monotonic())
            self._agent.sendall(header + b"\n" + body)
        except OSError as error:
            raise self._broken(f"the guest took no command ({error})") from error
        return self._answer(self._last_id, deadline)

    def _answer(self, expected_id: int, deadline: float) -> Output:
        words = self._receive(HEADER_BYTES, deadline).split()
        if len(words) != 3 or not all(word.isdigit() for word in words):
            raise self._broken(f"the guest answered {words!r}")
        answered_id, status, length = (int(word) for word in words)
        if answered_id != expected_id or length > OUTPUT_LIMIT_BYTES:
            raise self._broken(f"the guest answered {words!r} to command {expected_id}")
        return Output(status=status, data=self._receive(length, deadline))

    def _receive(self, length: int, deadline: float) -> bytes:
        assert self._agent is not None
        data = bytearray()
        while len(data) < length:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._broken("the guest did not answer in time")
            self._agent.settimeout(left_s)
            try:
                piece = self._agent.recv(min(1 << 20, length - len(data)))
            except TimeoutError:
                continue
            except OSError as error:
                raise self._broken(f"lost the guest ({error})") from error
            if not piece:
                raise self._broken("QEMU ended")
            data += piece
        return bytes(data)

    def _broken(self, reason: str) -> MachineError:
        """The error to raise when the conversation with the guest is lost for good."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        return MachineError(reason + self.console_tail())
