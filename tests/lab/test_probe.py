"""`playhead lab probe`: what it says of targets that are known, and that it writes nothing it was not allowed to."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.appliance import Appliance, playhead
from tests.conformance.places import Place
from tests.conformance.tgtd import TgtdTarget
from tests.lab.liar import BLOCK, IQN, Liar

from playhead.lab import cdb
from playhead.lab.session import Session

START, COUNT = 1000, 512


def probe(url: str, *options: str, exit_code: int = 0, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The report, as programs see it."""
    done = playhead("lab", "probe", url, *options, "-o", "json", env=env)
    assert done.returncode == exit_code, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {each["offload"]: each["outcome"] for each in report["offloads"]}


def refusal(*arguments: str, exit_code: int, env: dict[str, str] | None = None) -> str:
    """The one line."""
    done = playhead("lab", "probe", *arguments, env=env)
    assert done.returncode == exit_code, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def url(appliance: Appliance) -> str:
    appliance.cli("group", "create", "g")
    appliance.cli("volume", "create", "g/v", "--size", "16MiB")
    return appliance.iscsi_url("g/v")


def test_playhead_does_what_it_says_and_policy_is_seen(appliance: Appliance, url: str) -> None:
    before = probe(url)
    assert set(outcomes(before).values()) == {"not-tried"}
    assert all(each["says"] for each in before["offloads"])
    records = appliance.cli("journal", "show", "g")["records"]

    done = probe(url, "--consent-to-write-lba", f"{START}:{COUNT}")
    assert set(outcomes(done).values()) == {"supported"}, done
    assert not any(each["contradicts"] for each in done["offloads"])
    assert done["written"]["lba"] >= START
    assert done["written"]["lba"] + done["written"]["count"] <= START + COUNT
    assert appliance.cli("journal", "show", "g")["records"] > records

    appliance.cli("policy", "set", *(f"{name}=reject" for name in outcomes(done)))
    refused = probe(url, "--consent-to-write-lba", f"{START}:{COUNT}")
    assert set(outcomes(refused).values()) == {"rejected"}
    assert not any(each["says"] for each in refused["offloads"])
    for each in refused["offloads"]:
        assert each["tried"][0]["detail"].startswith("05/20/00"), each


def test_without_consent_nothing_is_written_and_with_it_nothing_else(appliance: Appliance, url: str) -> None:
    head = appliance.cli("group", "head", "g")["lsn"]
    probe(url)
    assert appliance.cli("group", "head", "g")["lsn"] == head
    disk = appliance.disk("g/v")
    blocks = 4096
    data = os.urandom(blocks * BLOCK)
    with Session(appliance.addresses["iscsi"], disk["iqn"]) as session:
        session.ready()
        session.must(cdb.write_16(0, blocks), data=data)
        probe(url, "--consent-to-write-lba", f"{START}:{COUNT}", "--restore")
        assert session.must(cdb.read_16(0, blocks), read_bytes=len(data)) == data
        probe(url, "--consent-to-write-lba", f"{START}:{COUNT}")
        found = session.must(cdb.read_16(0, blocks), read_bytes=len(data))
    start, end = START * BLOCK, (START + COUNT) * BLOCK
    assert found[:start] == data[:start]
    assert found[end:] == data[end:]
    assert found[start:end] != data[start:end]


def test_tgtd_is_found_out() -> None:
    with TgtdTarget() as tgtd:
        done = probe(tgtd.arguments(Place.PLAIN)[0], "--scratch", "I-CONSENT")
    found = {each["offload"]: each for each in done["offloads"]}
    # Its VPD page B0 has a limit for COMPARE AND WRITE, which it does not know.
    assert (found["ats"]["outcome"], found["xcopy"]["outcome"]) == ("rejected", "rejected")
    assert "VPD B0: " in found["ats"]["because"]
    assert found["unmap"]["outcome"] == "supported"
    forms = {form["form"]: form for form in found["write-same"]["tried"]}
    assert forms["WRITE SAME(16), no data (NDOB)"]["outcome"] == "failed"
    assert forms["WRITE SAME(16), no data (NDOB)"]["detail"].startswith("03/")
    assert forms["WRITE SAME(16), a pattern"]["outcome"] == "supported"
    assert not done["unsafe"]


@pytest.mark.parametrize(
    ("way", "outcome", "unsafe"),
    [
        ("nothing", "does-nothing", {"ats", "xcopy", "write-same"}),
        ("wrong", "wrong", {"ats", "xcopy", "write-same", "unmap"}),
        ("outside", "wrong", {"ats", "xcopy", "write-same", "unmap"}),
        ("reject badly", "wrong", {"ats"}),
        ("reject", "rejected", set()),
        ("medium", "failed", set()),
        ("hang up", "failed", set()),
    ],
)
def test_a_target_that_lies_is_found_out(way: str, outcome: str, unsafe: set[str]) -> None:
    with Liar(ats=way, xcopy=way, write_same=way, unmap=way) as liar:
        options = [f"--consent-to-write-lba={START}:{COUNT}"]
        options += [f"--offload={name}" for name in ("ats", "xcopy", "write-same", "unmap")]
        done = probe(liar.url, *options, exit_code=13 if unsafe else 0)
        assert set(outcomes(done).values()) == {outcome}, done
        assert {each["offload"] for each in done["offloads"] if each["unsafe"]} == unsafe
        assert done["unsafe"] is bool(unsafe)
        if way != "outside":
            assert liar.written <= set(range(START, START + COUNT))


def test_a_lock_that_two_hosts_get_is_found_out() -> None:
    class Blind(Liar):
        def _swap(self, lba: int, data: bytes) -> None:
            self.put(lba, data[BLOCK:])

    with Blind() as liar:
        done = probe(liar.url, "--scratch", "I-CONSENT", "--offload", "ats", exit_code=13)
    assert outcomes(done) == {"ats": "wrong"}
    assert "although the block was different" in done["offloads"][0]["tried"][1]["detail"]


def test_what_was_there_comes_back_even_from_a_target_that_hangs_up() -> None:
    with Liar(xcopy="hang up", write_same="nothing") as liar:
        liar.blocks[:] = data = os.urandom(len(liar.blocks))
        done = probe(liar.url, "--scratch", "I-CONSENT", "--restore", exit_code=13)
        assert done["restored"]
        assert bytes(liar.blocks) == data
        assert liar.written


@pytest.mark.expect_log("login refused|failed to authenticate")
def test_a_proof_is_given_and_asked_for(appliance: Appliance, url: str, tmp_path: Path) -> None:
    iqn = "iqn.1998-01.com.example:prober"
    secret = tmp_path / "secret"
    secret.write_text("twelve-letters-or-more\n")
    secret.chmod(0o600)
    mutual = tmp_path / "mutual"
    mutual.write_text("and-what-the-target-says\n")
    mutual.chmod(0o600)
    appliance.cli("host", "create", "prober", "--initiator", iqn)
    appliance.cli(
        "host", "chap", "prober", "--user", "me", "--secret-file", str(secret), "--mutual-user", "it",
        "--mutual-secret-file", str(mutual),
    )  # fmt: skip
    appliance.cli("host", "map", "prober", "g/v")
    ours = url.replace("iscsi://", "iscsi://me@")
    who = ("--initiator", iqn)
    env = {"PLAYHEAD_LAB_SECRET": "twelve-letters-or-more", "PLAYHEAD_LAB_MUTUAL_SECRET": "and-what-the-target-says"}
    assert probe(ours, *who, "--secret-file", str(secret))["product"]
    assert probe(ours, *who, "--mutual-user", "it", "--digests", env=env)["product"]
    assert "authentication failed" in refusal(ours, *who, exit_code=7, env={"PLAYHEAD_LAB_SECRET": "wrong-all-the-way"})
    assert "did not prove who it is" in refusal(
        ours, *who, "--mutual-user", "it", exit_code=7, env=env | {"PLAYHEAD_LAB_MUTUAL_SECRET": "something-else-here"}
    )
    assert "not allowed there" in refusal(url, "--initiator", iqn + "2", exit_code=7)
    assert "there is no secret" in refusal(ours, *who, exit_code=5)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/0",), 6, "nothing answers at 127.0.0.1:1"),
        (("nbd://127.0.0.1:1/x",), 5, "is not a LUN's address"),
        (("iscsi://u%hidden@127.0.0.1:1/x",), 5, "is not a LUN's address"),
        (("iscsi://127.0.0.1:1/x/0",), 5, "is not an iSCSI name"),
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/99999",), 5, "is not a LUN"),
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/0", "--scratch", "yes"), 5, "is no consent"),
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/0", "--consent-to-write-lba", "5"), 5, "START:COUNT"),
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/0", "--restore"), 2, "--restore wants"),
        (("iscsi://127.0.0.1:1/iqn.2026-11.org.example:x/0", "--timeout", "0s"), 5, "timeout"),
    ],
)
def test_what_cannot_be_probed_is_said_in_one_line(arguments: tuple[str, ...], exit_code: int, text: str) -> None:
    line = refusal(*arguments, exit_code=exit_code)
    assert text in line
    assert "hidden" not in line


def test_a_range_that_is_not_on_the_lun_or_too_small_is_refused() -> None:
    with Liar() as liar:
        for consent, text in (("8000:512", "beyond its end"), ("0:39", "too few")):
            assert text in refusal(liar.url, "--consent-to-write-lba", consent, exit_code=5)
        assert not liar.written


def test_a_target_that_says_nothing_or_nonsense_is_given_up() -> None:
    for said in (b"", b"\x23" + bytes(47), b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(48), b"\x3f" * 48):
        with socket.create_server(("127.0.0.1", 0)) as server:
            stay = threading.Event()

            def answer(server: socket.socket = server, said: bytes = said, stay: threading.Event = stay) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(said)
                    stay.wait(20)

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            url = f"iscsi://127.0.0.1:{server.getsockname()[1]}/{IQN}/0"
            done = playhead("lab", "probe", url, "--timeout", "2s")
            stay.set()
            thread.join(20)
            assert done.returncode in (6, 9), done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
