"""How people write points, times, sizes, names and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from playhead import names
from playhead.errors import PlayheadError
from playhead.node import Settings, load, parse_address, parse_portals
from playhead.point import parse_time_ns, resolve, show_time
from playhead.sizes import parse_size, parse_span_ns, show_size, show_span_ns


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("2026-11-23T16:00:00.5Z", 1795449600500000000),
        ("2026-11-23 18:00:00.5+02:00", 1795449600500000000),
        ("2026-11-23T14:30:00.5-01:30", 1795449600500000000),
        ("2016-12-31T23:59:60Z", 1483228800000000000),
        ("not a time", None),
        ("2026-11-23", None),
    ],
)
def test_times(text: str, time_ns: int | None) -> None:
    assert parse_time_ns(text) == time_ns


def test_a_shown_time_is_read_back_to_the_nanosecond() -> None:
    for time_ns in (0, 1, 999_999_999, 1_795_449_600_123_456_789, (1 << 63) - 1):
        assert parse_time_ns(show_time(time_ns)) == time_ns


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T16:00:00",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-01-01T00:00:00Z",
    ],
)
def test_times_that_mean_nothing_here(text: str) -> None:
    with pytest.raises(PlayheadError) as refused:
        parse_time_ns(text)
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("10G", 10 << 30),
        ("10GiB", 10 << 30),
        ("10 gb", 10**10),
        ("1.5T", 3 << 39),
        ("64T", 64 << 40),
        ("0.5k", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "10X", "1e3", "0.0001k", "1" * 30, "\uff11G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(PlayheadError):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert show_size(0) == "0 B"
    assert show_size(1536) == "1.5 KiB"
    assert show_size(64 << 40) == "64.0 TiB"
    assert show_size(1 << 60) == "1048576.0 TiB"


@pytest.mark.parametrize(
    ("text", "span_ns"),
    [
        ("30s", 30_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("2d", 172_800_000_000_000),
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
    ],
)
def test_spans(text: str, span_ns: int) -> None:
    assert parse_span_ns(text) == span_ns


@pytest.mark.parametrize("text", ["", "5", "m5", "-5m", "5 m", "5y"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(PlayheadError):
        parse_span_ns(text)


def test_spans_for_people() -> None:
    assert show_span_ns(0) == "0ms"
    assert show_span_ns(90_000_000_000) == "1m 30s"
    assert show_span_ns(86_400_000_000_000) == "1d"
    assert show_span_ns(3_601_000_000_000) == "1h"


def test_names() -> None:
    assert names.check_group("db-1.prod") == "db-1.prod"
    assert names.check_volume("Data_1") == "Data_1"
    for bad in ("", "1db", "-db", "Db", "a_b", "a/b", "a b", "x" * 64, "ä", "db\n"):
        with pytest.raises(PlayheadError):
            names.check_group(bad)
    for reserved in ("head", "NOW", "edge"):
        with pytest.raises(PlayheadError):
            names.check_bookmark(reserved)


def test_a_bookmark_is_looked_for_last() -> None:
    point = {"lsn": 7, "time_ns": 70}
    asked: list[object] = []

    def at(value: int) -> object:
        asked.append(value)
        return point

    def ask(text: str) -> object:
        return resolve(
            text,
            group="db",
            head=lambda: point,  # type: ignore[arg-type, return-value]
            edge=lambda: {"lsn": 0, "time_ns": 0},
            at_lsn=at,  # type: ignore[arg-type]
            at_time=at,  # type: ignore[arg-type]
            bookmarks=lambda: [{"name": "mark", "kind": "crash", "point": point}],  # type: ignore[typeddict-item]
            now_ns=lambda: 10_000_000_000,
        )

    for text in ("12", "-4s", "1970-01-01T00:00:03Z", "mark", "head"):
        assert ask(text) == point
    assert asked == [12, 6_000_000_000, 3_000_000_000]
    with pytest.raises(PlayheadError):
        ask("other")


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:1", "127.0.0.1", 1), ("[::1]:0", "::1", 0), ("http://host:80/", "host", 80)]
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text, "api")
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "::1:1", "host:99999", "host:-1", "host:x"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(PlayheadError):
        parse_address(text, "api")


def test_loopback_is_known_from_elsewhere() -> None:
    for text, loopback in (
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("192.0.2.1:1", False),
    ):
        assert parse_address(text, "api").is_loopback is loopback


def test_flags_win_over_the_environment() -> None:
    found = load(
        {"nbd": "off", "iscsi": None},
        {"PLAYHEAD_NBD": "127.0.0.1:1", "PLAYHEAD_ISCSI": "127.0.0.1:2", "PLAYHEAD_STORE": "/s"},
    )
    assert found.nbd is None
    assert [portal.port for portal in found.iscsi] == [2]
    assert str(found.store) == "/s"
    assert found.api == Settings().api


def test_portals_are_one_or_several_however_they_are_given(tmp_path: Path) -> None:
    def texts(flags: dict[str, object], environ: dict[str, str], toml: str | None = None) -> list[str]:
        config = None
        if toml is not None:
            config = tmp_path / "playhead.toml"
            config.write_text(toml)
        return [portal.text for portal in load(flags, environ, config).iscsi]

    both = ["10.0.0.1:3260", "[fd00::1]:860"]
    assert texts({"iscsi": ()}, {}) == ["127.0.0.1:3260"]
    assert texts({"iscsi": tuple(both)}, {"PLAYHEAD_ISCSI": "off"}) == both
    assert texts({"iscsi": ()}, {"PLAYHEAD_ISCSI": " 10.0.0.1:3260, [fd00::1]:860"}) == both
    assert texts({}, {}, 'iscsi = ["10.0.0.1:3260", "[fd00::1]:860"]') == both
    assert texts({}, {}, 'iscsi = "10.0.0.1:3260,[fd00::1]:860"') == both
    assert texts({"iscsi": ("127.0.0.1:0", "127.0.0.1:0")}, {}) == ["127.0.0.1:0", "127.0.0.1:0"]
    for off in ("off", ["OFF"]):
        assert load({"iscsi": off}, {}).iscsi == ()


@pytest.mark.parametrize(
    "value", [[], ["off", "127.0.0.1:1"], "127.0.0.1:1,", ["127.0.0.1:1"] * 2, ["127.0.0.1:0"] * 65, [1], 3260, [[]]]
)
def test_portals_that_are_none(value: object) -> None:
    with pytest.raises(PlayheadError) as refused:
        parse_portals(value)
    assert "iscsi" in str(refused.value)
    assert refused.value.next_step
