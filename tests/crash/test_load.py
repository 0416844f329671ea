"""The crash test's own client and memory, proven on another server: what they say of Playhead stands on them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .load import BLOCK_BYTES, Doing, Memory, Writer, block_bytes, whole_disk
from .nbd_client import FLUSH, WRITE, LostError, NbdClient

BLOCKS = 4096


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """nbdkit with a file, and its port."""
    (tmp_path / "disk").write_bytes(bytes(BLOCKS * BLOCK_BYTES))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(tmp_path / "disk")]
    server = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command])
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    yield server, port
    server.kill()
    server.wait()


def test_a_killed_server_leaves_exactly_what_memory_says(peer: tuple[subprocess.Popen[bytes], int]) -> None:
    """A plain file behind nbdkit keeps what it acknowledged, so here the memory must fit."""
    server, port = peer
    address = ("127.0.0.1", port, "")
    memory = Memory([0] * BLOCKS)
    half = BLOCKS // 2
    writers = [
        Writer(address, memory, part * half, half, part, range(part * 10**6 + 1, (part + 1) * 10**6))
        for part in range(2)
    ]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    for writer in writers:
        writer.stop.set()
    for writer in writers:
        writer.join(timeout=30)
        assert writer.failure is None
        assert writer.acknowledged > 0
        assert writer.flushes > 0
    assert not memory.doubtful
    assert memory.check(0, whole_disk(address)) == []
    server.kill()
    server.wait()
    with pytest.raises(LostError):
        NbdClient(*address)


def test_memory_sees_lost_torn_and_foreign_blocks() -> None:
    """One wrong block of each kind."""
    memory = Memory([5] * 8, [Doing(4, 2, 9)])
    disk = [block_bytes(5, block) for block in range(8)]
    assert memory.check(0, b"".join(disk)) == []
    disk[4] = block_bytes(9, 4)
    assert memory.check(0, b"".join(disk)) == []
    assert len(memory.settle_doubts(b"".join(disk))) == 1, "half of a request"
    disk[4] = block_bytes(5, 4)
    disk[0], disk[1], disk[2] = bytes(BLOCK_BYTES), block_bytes(5, 3), block_bytes(5, 2)[:256] + bytes(256)
    assert len(memory.check(0, b"".join(disk))) == 3
    memory.doubtful.append(Doing(6, 2, 9))
    disk[6:8] = [block_bytes(9, 6), block_bytes(9, 7)]
    assert memory.settle_doubts(b"".join(disk)) == []
    assert memory.stamps[6:8] == [9, 9]


def test_requests_are_matched_with_their_answers(peer: tuple[subprocess.Popen[bytes], int]) -> None:
    """Several under way, whatever order they come back in."""
    client = NbdClient("127.0.0.1", peer[1], "")
    assert client.size_bytes == BLOCKS * BLOCK_BYTES
    sent = {client.send(WRITE, b * BLOCK_BYTES, BLOCK_BYTES, block_bytes(1, b)).cookie for b in range(30)}
    sent.add(client.send(FLUSH).cookie)
    client.push()
    assert {client.answer()[0].cookie for _ in range(31)} == sent
    assert client.under_way == 0
    assert client.read(7 * BLOCK_BYTES, BLOCK_BYTES) == block_bytes(1, 7)
    client.close()
