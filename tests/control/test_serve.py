"""`playhead serve` as a process: its start, its end, and what it refuses to start on."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from tests.appliance import Appliance, ServeError, playhead


def refused(appliance: Appliance) -> ServeError:
    """A start that must fail, with one line that says why."""
    with pytest.raises(ServeError) as caught:
        appliance.start()
    lines = [line for line in caught.value.stderr.splitlines() if line.startswith("playhead: ")]
    assert len(lines) == 1, caught.value.stderr
    assert "Traceback" not in caught.value.stderr
    return ServeError(caught.value.exit_code, lines[0])


def test_it_says_where_it_is(appliance: Appliance) -> None:
    assert set(appliance.ready) == {"event", "api", "iscsi", "iscsi_portals", "nbd"}
    for name in ("iscsi", "nbd"):
        host, _, port = appliance.ready[name].rpartition(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=10).close()
    assert appliance.cli("status")["service"]["pid"] == appliance.pid


def test_a_second_start_on_the_store_is_refused_and_harms_nothing(appliance: Appliance) -> None:
    error = refused(Appliance(appliance.store, log=appliance.store.with_name("second.log")))
    assert error.exit_code == 10
    assert str(appliance.store) in error.stderr
    assert str(appliance.pid) in error.stderr
    assert appliance.cli("group", "list") == []


@pytest.mark.parametrize("front_end", ["iscsi", "nbd", "api"])
def test_a_taken_port_is_refused(appliance: Appliance, tmp_path: Path, front_end: str) -> None:
    other = Appliance(tmp_path / "other")
    other.addresses[front_end] = appliance.addresses[front_end]
    error = refused(other)
    assert error.exit_code == 10
    assert appliance.addresses[front_end] in error.stderr


@pytest.mark.serve("--iscsi", "127.0.0.1:0", "--iscsi", "127.0.0.2:0")
def test_every_portal_is_served_and_told_of(appliance: Appliance) -> None:
    portals = appliance.ready["iscsi_portals"]
    assert [tuple_of(portal)[0] for portal in portals] == ["127.0.0.1", "127.0.0.2"]
    for portal in portals:
        socket.create_connection(tuple_of(portal), timeout=10).close()
    service = appliance.cli("status")["service"]
    assert (service["iscsi"], service["iscsi_portals"]) == (portals[0], portals)
    assert ", ".join(portals) in appliance.run("status").stdout


@pytest.mark.parametrize("dead", ["192.0.2.1:3260", "127.0.0.1:{taken}", "no.such.host.invalid:3260"])
def test_a_portal_that_cannot_be_is_refused_by_name(tmp_path: Path, dead: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = dead.format(taken=other.getsockname()[1])
        error = refused(Appliance(tmp_path / "store", "--iscsi", "127.0.0.1:0", "--iscsi", address))
    assert error.exit_code != 0
    assert tuple_of(address)[0] in error.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_stop_even_with_clients(appliance: Appliance, number: signal.Signals) -> None:
    appliance.cli("group", "create", "db")
    idle = [
        socket.create_connection(tuple_of(appliance.ready[name]), timeout=10)
        for name in ("iscsi", "nbd")
        for _ in range(3)
    ]
    process = appliance.process
    assert process is not None
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 0
    # The default deadline, and what a busy machine adds: the bound is what is tested, not the speed.
    assert time.monotonic() - began < 25
    for connection in idle:
        connection.close()
    appliance.process = None
    appliance.start()
    assert [group["name"] for group in appliance.cli("group", "list")] == ["db"]


def tuple_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_the_supervisor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        supervisor.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with Appliance(tmp_path / "store"):
            assert b"READY=1" in supervisor.recv(4096).split(b"\n")
        assert supervisor.recv(4096) == b"STOPPING=1"


def test_it_takes_all_the_files_it_may_have(appliance: Appliance) -> None:
    soft, hard = resource.prlimit(appliance.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_a_newer_catalogue_is_refused_and_left_alone(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store")
    with appliance:
        appliance.cli("group", "create", "db")
    catalogue = tmp_path / "store" / "catalogue.db"
    with sqlite3.connect(catalogue) as db:
        db.execute("PRAGMA user_version = 4711")
    db.close()
    before = catalogue.read_bytes()
    error = refused(appliance)
    assert error.exit_code == 9
    assert "4711" in error.stderr
    assert "newer" in error.stderr or "new as" in error.stderr
    assert catalogue.read_bytes() == before


def test_a_damaged_catalogue_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "catalogue.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    error = refused(Appliance(store))
    assert error.exit_code == 9
    assert "catalogue" in error.stderr


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = refused(Appliance(tmp_path / "file" / "store", log=tmp_path / "log"))
    assert error.exit_code == 9
    assert "--store" in error.stderr


def test_what_a_crash_left_half_created_or_half_deleted_is_cleared(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store")
    with appliance:
        for name in ("whole", "coming", "going"):
            appliance.cli("group", "create", name)
    with sqlite3.connect(tmp_path / "store" / "catalogue.db") as db:
        db.execute("UPDATE groups SET state = 'creating' WHERE name = 'coming'")
        db.execute("UPDATE groups SET state = 'deleting' WHERE name = 'going'")
    db.close()
    with appliance:
        assert [group["name"] for group in appliance.cli("group", "list")] == ["whole"]
        assert [path.name for path in (tmp_path / "store" / "groups").iterdir()] == ["whole"]
        appliance.cli("group", "create", "coming")


def test_settings_come_from_file_environment_and_flags_in_this_order(tmp_path: Path) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text('iscsi = "127.0.0.1:0"\nnbd = "off"\nlog_level = "debug"\niqn_prefix = "iqn.2000-01.test.file"\n')
    appliance = Appliance(tmp_path / "store", "--config", str(config), "--nbd", "off")
    with appliance:
        assert appliance.ready["nbd"] is None
        assert appliance.cli("group", "create", "db")["iqn"] == "iqn.2000-01.test.file:db"
        assert appliance.cli("volume", "create", "db/v", "--size", "1M")["nbd_url"] is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("iscsi = 3260", "iscsi"),
        ('colour = "red"', "colour"),
        ("= nonsense", "TOML"),
        ("segment_bytes = 100", "segment_bytes"),
        ('log_level = "loud"', "log_level"),
        ("stop_deadline_s = -1", "stop_deadline_s"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, content: str, says: str) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text(content + "\n")
    done = playhead("serve", "--config", str(config), "--store", str(tmp_path / "store"))
    assert done.returncode == 5
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_log_for_people_has_one_form_in_python_and_rust(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store", "--log-format", "human")
    appliance.start()
    host, port = tuple_of(appliance.ready["nbd"])
    with socket.create_connection((host, port), timeout=10) as stranger:
        stranger.sendall(b"\n2026-01-01T00:00:00.000000Z error forged\n" * 10)
        # Hung up on, one way or the other; by then there may be nothing left to shut.
        with contextlib.suppress(OSError):
            stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):
                pass
    appliance.stop()
    lines = appliance.said().splitlines()
    form = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (debug|info|warning|error) +\S.* logger=\S+")
    assert all(form.fullmatch(line) for line in lines), lines
    loggers = {line.rpartition("logger=")[2] for line in lines}
    assert "appliance" in loggers
    assert any(logger.startswith("target.nbd") for logger in loggers)
    assert not any("error forged" in line.partition("logger=")[0][:40] for line in lines)


def test_the_log_is_json_lines(appliance: Appliance) -> None:
    appliance.cli("group", "create", "db")
    for line in appliance.said().splitlines():
        entry = json.loads(line)
        assert {"timestamp", "level", "event", "logger"} <= set(entry)
