"""Playhead started from a warm interpreter: a process that has imported it once, and forks for each service and command that a test starts.

What starts so is a process like any other, with arguments, environment, exit code and death of its own; only the imports are
not repeated, which cost more than most tests do. `make demo`, the guest's tests and those of the package start it anew.

As a program: `python -m tests.warm FD`, with a socket on which it is asked. A message is JSON: `arguments`, `environment`, with three
descriptors along for the standard streams, is answered with the process's number; `ended`, the number of one that has ended, with its exit code.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

MESSAGE_BYTES_MAX = 1 << 18
ROOT = Path(__file__).parent.parent


class Process:
    """A running process, as `subprocess.Popen` is one."""

    def __init__(self, warm: Interpreter, pid: int, stdout: Any) -> None:
        self.pid = pid
        self.stdout = stdout
        self._warm = warm
        self._ends = os.pidfd_open(pid)
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended; negative is a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._exit_code

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for the end; the exit code."""
        if self._exit_code is None:
            poll = select.poll()
            poll.register(self._ends, select.POLLIN)
            if not poll.poll(None if timeout_s is None else int(timeout_s * 1000)):
                raise subprocess.TimeoutExpired("playhead", timeout_s or 0)
            self._exit_code = self._warm.ask({"ended": self.pid})
            os.close(self._ends)
        return self._exit_code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Interpreter:
    """The process that forks."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one = threading.Lock()
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with theirs:
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def ask(self, message: dict[str, Any], files: tuple[int, ...] = ()) -> int:
        with self._one:
            socket.send_fds(self._socket, [json.dumps(message).encode()], files)
            answer = self._socket.recv(MESSAGE_BYTES_MAX)
        assert answer, "the warm interpreter is gone"
        return int(answer)

    def start(self, arguments: tuple[str, ...], environment: dict[str, str], stderr: int) -> Process:
        """Starts `playhead` with `arguments`; its output is to be read from the process' `stdout`."""
        reader, writer = os.pipe()
        asked = {"arguments": arguments, "environment": environment}
        pid = self.ask(asked, (self._nothing, writer, stderr))
        os.close(writer)
        return Process(self, pid, os.fdopen(reader, encoding="utf-8"))

    def run(
        self, arguments: tuple[str, ...], environment: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs `playhead` with `arguments` to its end."""
        asked = {"arguments": arguments, "environment": environment}
        with _memory("stdout") as stdout, _memory("stderr") as stderr:
            pid = self.ask(asked, (self._nothing, stdout.fileno(), stderr.fileno()))
            process = Process(self, pid, None)
            try:
                exit_code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            stdout.seek(0)
            stderr.seek(0)
            said = stdout.read(), stderr.read()
        return subprocess.CompletedProcess(["playhead", *arguments], exit_code, *said)


def _memory(name: str) -> TextIO:
    return os.fdopen(os.memfd_create(name), "r+", encoding="utf-8")


@functools.cache
def interpreter() -> Interpreter:
    """The one of this process."""
    return Interpreter()


def _fork_on_demand(asked_on: socket.socket) -> bool:
    """Returns in every process that is asked for, and once nobody asks any more: then with False."""
    own = os.getpid()
    while True:
        message, files, _, _ = socket.recv_fds(asked_on, MESSAGE_BYTES_MAX, 3)
        if not message:
            return False
        asked = json.loads(message)
        if "ended" in asked:
            _, status = os.waitpid(asked["ended"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif answer := os.fork():
            for file in files:
                os.close(file)
        else:
            asked_on.close()
            _become(asked, files, own)
            return True
        asked_on.send(str(answer).encode())


def _become(asked: dict[str, Any], files: list[int], parent: int) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    # A test that dies must not leave a service behind.
    _die_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["playhead", *asked["arguments"]]


def _die_with_parent() -> None:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import uvicorn.lifespan.on
    import uvicorn.loops.asyncio
    import uvicorn.protocols.http.h11_impl  # noqa: F401

    import playhead.api.app
    import playhead.api.server
    import playhead.cli.serve  # noqa: F401
    from playhead.cli import main

    # Threads do not survive a fork.
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    if _fork_on_demand(socket.socket(fileno=int(sys.argv[1]))):
        main()


if __name__ == "__main__":
    _main()
