"""The bench itself: what a test is told about the guest is true, and nothing hangs."""

from __future__ import annotations

import os
import time

import pytest

from .machine import CommandError, Machine, MachineError


def test_a_command_gives_its_status_and_all_it_said(machine: Machine) -> None:
    output = machine.run("echo out; echo err >&2; exit 7")
    assert (output.status, output.text) == (7, "out\nerr\n")
    big = machine.run("seq 200000")
    assert big.data == b"".join(b"%d\n" % number for number in range(1, 200_001))


def test_files_travel_unharmed(machine: Machine) -> None:
    data = bytes(range(256)) + os.urandom(1_000_000)
    machine.push(data, "/tmp/a file")
    assert machine.pull("/tmp/a file") == data
    machine.check("rm '/tmp/a file'")
    with pytest.raises(CommandError, match="No such file"):
        machine.pull("/tmp/a file")


def test_a_command_that_hangs_is_ended_and_the_next_one_runs(machine: Machine) -> None:
    started = time.monotonic()
    assert machine.run("trap '' TERM; while true; do sleep 1; done", timeout_s=1).status == 137
    assert time.monotonic() - started < 30  # that it ends at all, not how fast
    assert machine.check("echo still here") == "still here\n"


def test_a_failure_shows_the_command_its_output_and_the_kernel_log(machine: Machine) -> None:
    with pytest.raises(CommandError) as failure:
        machine.check("echo '<4>made up for this test' >/dev/kmsg; echo oh no; false; echo not reached")
    for part in ("exit status 1", "oh no\n", "made up for this test"):
        assert part in str(failure.value)
    assert "\nnot reached" not in str(failure.value)
    assert any("made up for this test" in line for line in machine.kernel_complaints())
    machine.clear_kernel_log()


def test_a_dead_guest_is_an_error_with_its_console() -> None:
    with Machine(memory_mib=256) as doomed, pytest.raises(MachineError, match="sysrq triggered crash"):
        doomed.run("sysctl -qw kernel.sysrq=1; echo c >/proc/sysrq-trigger")
