"""Metrics: what Prometheus finds, and that it may not find it without the token."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.appliance import Appliance, wait_until
from tests.control import initiator as scsi
from tests.control.initiator import Initiator

ONE = "iqn.2000-01.test:one"
IQN = "iqn.2026-11.io.playhead:db"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(appliance: Appliance) -> Samples:
    """(name, labels) -> value, read by Prometheus' own parser."""
    answer = httpx.get(f"http://{appliance.addresses['api']}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_what_an_administrator_watches_is_there(appliance: Appliance) -> None:
    assert value(scrape(appliance), "playhead_store_free_bytes") > 0
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "16M")
    before = scrape(appliance)
    assert value(before, "playhead_group_up", group="db") == 1
    with Initiator(appliance.ready["iscsi"], ONE, IQN) as one:
        one.attentions(0)
        block = bytes([3] * 512)
        assert one.write(0, 0, block * 8).good
        assert one.write_same(0, 0, 64, block).good
        assert one.compare_and_write(0, 0, block, bytes(512)).good
        appliance.cli("policy", "set", "unmap=reject")
        one.attentions(0)
        assert one.unmap(0, 0, 8).ascq == scsi.INVALID_OPCODE
        after = scrape(appliance)
        assert value(after, "playhead_sessions", protocol="iscsi", on=IQN) == 1
    labels = {"lun": "db/data", "initiator": ONE}
    assert value(after, "playhead_offload_served_total", offload="write-same", **labels) == 1
    assert value(after, "playhead_offload_saved_bytes_total", offload="write-same", **labels) == 63 * 512
    assert value(after, "playhead_offload_served_total", offload="ats", **labels) == 1
    assert value(after, "playhead_offload_rejected_total", offload="unmap", **labels) == 1
    assert value(after, "playhead_lun_written_bytes_total", lun="db/data") >= 8 * 512
    assert value(after, "playhead_iscsi_authentication_failures_total") == 0
    for name in ("playhead_group_head_lsn", "playhead_group_window_bytes", "playhead_journal_written_bytes_total"):
        assert value(after, name, group="db") > value(before, name, group="db")
    assert value(after, "playhead_group_window_seconds", group="db") > 0
    assert value(after, "playhead_group_journal_bytes", group="db") > 0


def test_splitters_are_watched(appliance: Appliance, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/own", "--size", "1M")
    appliance.cli("attach", "db/data", str(file))
    labels = {"volume": "db/data", "kind": "host"}

    def is_synchronised() -> bool:
        return ("playhead_splitter_state", frozenset({**labels, "state": "synchronised"}.items())) in scrape(appliance)

    wait_until(is_synchronised, "db/data is synchronised")
    samples = scrape(appliance)
    assert value(samples, "playhead_splitter_lag_bytes", **labels) == 0
    assert value(samples, "playhead_splitter_lag_seconds", **labels) == 0
    states = [(dict(of), number) for (name, of), number in samples.items() if name == "playhead_splitter_state"]
    assert states == [({**labels, "state": "synchronised"}, 1)]
    assert appliance.cli("status")["alerts"] == []


def test_copies_are_watched(appliance: Appliance, tmp_path: Path) -> None:
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "16M")
    appliance.cli("copy", "add", "db/near", "--directory", str(tmp_path / "near"))
    labels = {"group": "db", "copy": "near"}

    def level() -> bool:
        found = appliance.cli("copy", "show", "db/near")
        return (found["state"], found["lag_bytes"]) == ("synchronised", 0)

    wait_until(level, "db/near is level")
    samples = scrape(appliance)
    for name, number in (("consistent", 1), ("alert", 0), ("lag_bytes", 0), ("lag_seconds", 0)):
        assert value(samples, f"playhead_copy_{name}", **labels) == number, name
    assert value(samples, "playhead_copy_state", state="synchronised", **labels) == 1
    # There is no synchronisation that has anything left.
    assert ("playhead_copy_left_bytes", frozenset(labels.items())) not in samples
    shown = appliance.cli("copy", "show", "db/near")
    assert value(samples, "playhead_copy_journal_bytes", **labels) == shown["journal_bytes"] > 0
    assert 0 < value(samples, "playhead_copy_free_bytes", **labels) < 1 << 60
    # Behind, by exactly what was journaled meanwhile.
    appliance.cli("copy", "pause", "db/near")
    wait_until(lambda: appliance.cli("copy", "show", "db/near")["state"] == "paused", "db/near is paused")
    with Initiator(appliance.ready["iscsi"], ONE, IQN) as one:
        one.attentions(0)
        assert one.write(0, 0, bytes([5] * 4096)).good
    samples, shown = scrape(appliance), appliance.cli("copy", "show", "db/near")
    head = appliance.cli("group", "head", "db")["lsn"]
    assert (
        value(samples, "playhead_copy_lag_bytes", **labels) == shown["lag_bytes"] == head - shown["durable_lsn"] > 4096
    )
    assert value(samples, "playhead_copy_lag_seconds", **labels) > 0
    assert value(samples, "playhead_copy_alert", **labels) == 1
    assert value(samples, "playhead_copy_state", state="paused", **labels) == 1
    states = [dict(of) for (name, of) in samples if name == "playhead_copy_state"]
    assert states == [{**labels, "state": "paused"}]
    appliance.cli("copy", "remove", "db/near")
    assert not [name for name, _ in scrape(appliance) if name.startswith("playhead_copy_")]


def test_beyond_loopback_metrics_want_the_token(tmp_path: Path) -> None:
    with Appliance(tmp_path / "store", "--api", "0.0.0.0:0", "--advertise", "127.0.0.1") as appliance:
        url = f"http://127.0.0.1:{appliance.ready['api'].rpartition(':')[2]}/metrics"
        assert httpx.get(url).status_code == 401
        token = (tmp_path / "store" / "token").read_text().strip()
        assert httpx.get(url, headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_a_disk_that_is_nearly_full_is_told_to_administrators_and_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text('space_low_bytes = "1K"\n')
    appliance = Appliance(tmp_path / "store", "--config", str(config))
    with appliance:
        appliance.cli("group", "create", "db")
        appliance.cli("volume", "create", "db/data", "--size", "16M")
        appliance.cli("copy", "add", "db/near", "--directory", str(tmp_path / "near"))
        wait_until(lambda: appliance.cli("copy", "show", "db/near")["state"] == "synchronised", "db/near is level")
        assert appliance.cli("status")["alerts"] == []
        assert value(scrape(appliance), "playhead_group_alert", group="db") == 0
        assert appliance.cli("copy", "show", "db/near")["alert"] is None
    # No disk has that much free: nearly full, as far as this node is concerned.
    config.write_text('space_low_bytes = "4096T"\n')
    with appliance, Initiator(appliance.ready["iscsi"], ONE, IQN) as one:
        wait_until(lambda: scsi.SPACE_LOW in one.attentions(0), "the hosts are told")
        alerts = appliance.cli("status")["alerts"]
        assert [alert.partition(":")[0] for alert in alerts] == ["group db", "copy db/near"]
        assert all("nearly full" in alert for alert in alerts)
        shown = appliance.cli("copy", "show", "db/near")
        assert "nearly full" in shown["alert"]
        assert shown["free_bytes"] > 0
        samples = scrape(appliance)
        assert value(samples, "playhead_group_alert", group="db") == 1
        assert value(samples, "playhead_copy_alert", group="db", copy="near") == 1
        assert one.write(0, 0, bytes(512)).good
    assert not appliance.complaints()
