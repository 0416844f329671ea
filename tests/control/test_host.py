"""Hosts: who sees which LUN, what they prove themselves with, where they are sent; as libiscsi finds it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import httpx
import pytest
from tests.appliance import Appliance, playhead
from tests.control import initiator as scsi
from tests.control import io
from tests.control.initiator import Credentials, Initiator, RefusedError

from playhead.errors import PlayheadError
from playhead.host import HostRow, Mapping, check_chap
from playhead.masking import Masking, Place

ONE = "iqn.2000-01.test:one"
TWO = "iqn.2000-01.test:two"
IQN = "iqn.2026-11.io.playhead:db"
SECRET = "sixteen-bytes-xx"
OTHER_SECRET = "other-sixteen-xx"


@pytest.fixture
def group(appliance: Appliance) -> Appliance:
    """A group `db` with volumes `data` and `wal`, and hosts `one` and `two`."""
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "16M")
    appliance.cli("volume", "create", "db/wal", "--size", "16M")
    appliance.cli("host", "create", "one", "--initiator", ONE)
    appliance.cli("host", "create", "two", "--initiator", TWO)
    return appliance


def login(appliance: Appliance, name: str, iqn: str = IQN, credentials: Credentials | None = None) -> Initiator:
    """A session whose first attentions are over."""
    session = Initiator(appliance.ready["iscsi"], name, iqn, credentials)
    for lun in session.luns():
        session.attentions(lun)
    return session


def discovered(appliance: Appliance, name: str, credentials: Credentials | None = None) -> list[str]:
    with Initiator(appliance.ready["iscsi"], name, credentials=credentials) as session:
        return session.targets()


# The tables.


def masking(*mappings: Mapping, hidden: bool = False, places: tuple[Place, ...] = ()) -> Masking:
    hosts = [HostRow("one", 0, ("i1", "i1b"), None), HostRow("two", 0, ("i2",), None)]
    disks = places or (Place("g/a", "t", 0), Place("g/b", "t", 1), Place("g/i/a", "t:i", 0), Place("g/i/b", "t:i", 1))
    return Masking(disks, hosts, mappings, hidden=hidden)


def test_an_images_disk_is_seen_by_who_sees_its_volume_unless_mapped_itself() -> None:
    mapped = masking(Mapping("g/a", "one", 7, True))
    everyone = Place("g/i/b", "t:i", 1)
    image = Place("g/i/a", "t:i", 0)
    assert mapped.hosts(everyone) is None
    assert mapped.hosts(image) == ["one"]
    assert mapped.native() == {
        ("t", 0): [("i1", 7, True), ("i1b", 7, True)],
        ("t:i", 0): [("i1", 7, True), ("i1b", 7, True)],
    }
    own = masking(Mapping("g/a", "one", 7, True), Mapping("g/i/a", "two", 0, False))
    assert own.hosts(image) == ["two"]
    assert own.native()["t:i", 0] == [("i2", 0, False)]
    assert masking(hidden=True).native() == {("t", 0): [], ("t", 1): [], ("t:i", 0): [], ("t:i", 1): []}


def test_two_disks_never_claim_one_number_for_an_initiator() -> None:
    mappings = (Mapping("g/a", "one", 0, False), Mapping("g/i/b", "one", 0, False))
    assert masking(*mappings).native()["t:i", 0] == []
    assert masking(*mappings).native()["t:i", 1] == [("i1", 0, False), ("i1b", 0, False)]
    assert [(host, other.path) for host, _, other in masking(*mappings).shadowed(Place("g/i/a", "t:i", 0))] == [
        ("one", "g/i/b")
    ]


def test_taken_numbers_are_those_of_other_disks_wherever_the_mapping_counts() -> None:
    assert set(masking().taken("one", "g/a")) == {1}
    assert set(masking(Mapping("g/i/b", "one", 9, False)).taken("one", "g/a")) == {1, 9}
    assert set(masking(Mapping("g/b", "two", 1, False)).taken("one", "g/a")) == set()


# Masking, live.


def test_a_mapped_volume_is_seen_by_its_hosts_alone_under_their_number(group: Appliance) -> None:
    assert group.cli("host", "map", "one", "db/data", "--lun", "5")["lun"] == 5
    with login(group, ONE) as one, login(group, TWO) as two:
        assert one.luns() == [1, 5]
        assert two.luns() == [1]
        assert one.write(5, 0, bytes([1] * 512)).good
        assert two.test_unit_ready(0).ascq == two.test_unit_ready(5).ascq == scsi.NO_SUCH_LUN
    disk = group.disk("db/data")
    assert (disk["hosts"], disk["nbd_url"]) == (["one"], None)
    group.restart()
    with login(group, ONE) as one, login(group, TWO) as two:
        assert one.luns() == [1, 5]
        assert two.luns() == [1]


def test_changes_reach_live_sessions_of_those_concerned(group: Appliance) -> None:
    with login(group, ONE) as one, login(group, TWO) as two:
        group.cli("host", "map", "one", "db/data")
        assert scsi.LUNS_CHANGED in two.attentions(1)
        assert two.luns() == [1]
        assert two.test_unit_ready(0).ascq == scsi.NO_SUCH_LUN
        # The list of this one is as it was.
        assert one.attentions(0) == one.attentions(1) == []
        group.cli("host", "map", "two", "db/data", "--lun", "0")
        assert scsi.LUNS_CHANGED in two.attentions(1)
        two.attentions(0)
        assert two.write(0, 0, bytes(512)).good
        assert one.attentions(1) == []
        group.cli("host", "map", "two", "db/data", "--lun", "0", "--read-only")
        assert scsi.MODE_CHANGED in two.attentions(0)
        assert two.write_protected(0)
        assert two.write(0, 0, bytes(512)).ascq == scsi.WRITE_PROTECTED
        assert one.write(0, 0, bytes(512)).good
        group.cli("host", "remove-initiator", "two", TWO)
        assert two.test_unit_ready(0).ascq in (scsi.NO_SUCH_LUN, scsi.LUNS_CHANGED)
        assert two.luns() == [1]
        group.cli("host", "delete", "one", "--force")
        group.cli("host", "delete", "two", "--force")
        assert scsi.LUNS_CHANGED in two.attentions(1)
        assert two.luns() == [0, 1]


def test_an_image_of_a_mapped_volume_is_not_for_everybody(group: Appliance) -> None:
    for volume in ("data", "wal"):
        group.cli("host", "map", "one", f"db/{volume}")
    image = group.cli("image", "open", "db/old")
    assert [disk["hosts"] for disk in image["volumes"]] == [["one"], ["one"]]
    assert image["nbd_url"] is None
    assert discovered(group, ONE) == [IQN, f"{IQN}:old"]
    assert discovered(group, TWO) == []
    with pytest.raises(RefusedError):
        Initiator(group.ready["iscsi"], TWO, f"{IQN}:old")
    group.cli("host", "map", "two", "db/old/data", "--lun", "3")
    assert discovered(group, TWO) == [f"{IQN}:old"]
    with login(group, TWO, f"{IQN}:old") as two:
        assert two.luns() == [3]
    with login(group, ONE, f"{IQN}:old") as one:
        assert one.luns() == [1]
    group.cli("image", "close", "db/old")
    assert group.cli("host", "show", "two")["mappings"] == []
    group.expect("login refused")


def test_unmapped_volumes_may_be_hidden(tmp_path: Path) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text('unmapped_volumes = "hidden"\n')
    appliance = Appliance(tmp_path / "store", "--config", str(config))
    with appliance:
        appliance.cli("group", "create", "db")
        volume = appliance.cli("volume", "create", "db/data", "--size", "16M")
        assert (volume["hosts"], volume["nbd_url"]) == ([], None)
        appliance.cli("host", "create", "one", "--initiator", ONE)
        assert discovered(appliance, ONE) == []
        appliance.cli("host", "map", "one", "db/data")
        assert discovered(appliance, ONE) == [IQN]
        assert discovered(appliance, TWO) == []
    assert not appliance.complaints()


def test_numbers_do_not_collide(group: Appliance) -> None:
    refused = group.refusal("host", "map", "one", "db/data", "--lun", "1")
    assert (refused.exit_code, refused.code) == (4, "conflict")
    assert "db/wal" in refused.problem["detail"]
    group.cli("host", "map", "one", "db/data", "--lun", "2")
    assert group.cli("host", "map", "one", "db/wal")["lun"] == 1
    assert group.cli("host", "map", "one", "db/data", "--read-only")["lun"] == 2, "it keeps its number"
    assert group.cli("volume", "create", "db/new", "--size", "1M")["lun"] == 3, "2 is taken for a host"
    group.cli("host", "map", "one", "db/wal", "--lun", "0")
    left = group.cli("host", "unmap", "one", "db/data")["warnings"]
    assert any("every initiator" in warning for warning in left)
    assert any("db/wal" in warning for warning in left)
    with login(group, ONE) as one:
        assert one.luns() == [0, 3]


def test_a_volume_can_be_write_protected_for_everybody(group: Appliance) -> None:
    with login(group, ONE) as one:
        assert one.write(0, 0, bytes([1] * 512)).good
        assert group.cli("volume", "set", "db/data", "--read-only")["read_only"] is True
        assert one.attentions(0) == [scsi.MODE_CHANGED]
        assert one.write_protected(0)
        assert not one.write_protected(1)
        assert one.write(0, 0, bytes(512)).ascq == scsi.WRITE_PROTECTED
        assert one.compare_and_write(0, 0, bytes([1] * 512), bytes(512)).ascq == scsi.WRITE_PROTECTED
        assert one.read(0, 0, 1) == bytes([1] * 512)
    group.restart()
    assert group.disk("db/data")["read_only"] is True
    with login(group, ONE) as one:
        assert one.write(0, 0, bytes(512)).ascq == scsi.WRITE_PROTECTED
        group.cli("volume", "set", "db/data", "--writable")
        assert one.attentions(0) == [scsi.MODE_CHANGED]
        assert one.write(0, 0, bytes(512)).good


def test_hosts_of_a_rewound_group_are_told(group: Appliance) -> None:
    with login(group, ONE) as one:
        assert one.write(0, 0, bytes([1] * 512)).good
        group.cli("bookmark", "create", "db/before")
        assert one.write(0, 0, bytes([2] * 512)).good
        group.cli("group", "rewind", "db", "--to", "before")
        assert one.attentions(0) == [scsi.MEDIUM_CHANGED]
        assert one.read(0, 0, 1) == bytes([1] * 512)


# Names.


def test_an_initiator_belongs_to_one_host(group: Appliance) -> None:
    refused = group.refusal("host", "add-initiator", "two", ONE.upper())
    assert refused.code == "conflict"
    assert "remove-initiator one" in refused.problem["next_step"]
    group.cli("host", "remove-initiator", "one", ONE)
    assert group.cli("host", "add-initiator", "two", ONE.upper())["initiators"] == [ONE, TWO]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/hosts", {"name": "a b"}, 422, "host name"),
        ("POST", "/hosts", {"name": "x", "initiators": ["esx1"]}, 422, "iqn."),
        ("POST", "/hosts", {"name": "x", "initiators": ["iqn.2000-01.a,b"]}, 422, "initiator"),
        ("POST", "/hosts", {"name": "x", "initiators": ["eui.12"]}, 422, "initiator"),
        ("POST", "/hosts", {"name": "one"}, 409, "exists"),
        ("POST", "/hosts", {"name": "x", "initiators": [ONE]}, 409, "belongs to host one"),
        ("GET", "/hosts/none", None, 404, "host list"),
        ("DELETE", "/hosts/none", None, 404, "host list"),
        ("DELETE", f"/hosts/one/initiators/{TWO}", None, 404, "one"),
        ("POST", "/hosts/one/mappings", {"path": "db/none"}, 404, "db/none"),
        ("POST", "/hosts/one/mappings", {"path": "db"}, 422, "GROUP/VOLUME"),
        ("POST", "/hosts/one/mappings", {"path": "db/v", "lun": 256}, 422, "lun"),
        ("POST", "/hosts/none/mappings", {"path": "db/v"}, 404, "none"),
        ("DELETE", "/hosts/one/mappings?path=db/v", None, 404, "not mapped"),
        ("PUT", "/hosts/none/chap", {"user": "u", "secret": SECRET}, 404, "none"),
        ("PUT", "/hosts/one/chap", {"user": "", "secret": SECRET}, 422, "user"),
        ("PUT", "/hosts/one/chap", {"user": "u", "secret": "elevenbytes"}, 422, "12"),
        ("PUT", "/hosts/one/chap", {"user": "u", "secret": SECRET, "mutual_user": "t"}, 422, "both"),
        ("PUT", f"/targets/{IQN}/redirection", {"address": "10.0.0.1"}, 422, "3260"),
        ("PUT", f"/targets/{IQN}/redirection", {"address": "a,b:3260"}, 422, "portal"),
        ("PUT", f"/targets/{IQN}/redirection", {"address": "10.0.0.1:0"}, 422, "port"),
        ("PUT", "/targets/iqn.none/redirection", {"address": "10.0.0.1:3260"}, 404, "target list"),
    ],
)
def test_what_makes_no_sense_is_refused(
    service: Appliance, method: str, path: str, body: dict[str, object] | None, status: int, says: str
) -> None:
    answer = httpx.request(method, f"http://{service.addresses['api']}/api/v1{path}", json=body)
    problem = answer.json()
    assert answer.status_code == status, problem
    assert says in f"{problem['detail']} {problem['next_step']}"
    assert SECRET not in answer.text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One service for all refusals: none of them may leave a trace."""
    running = Appliance(tmp_path_factory.mktemp("host") / "store")
    with running:
        running.cli("group", "create", "db")
        running.cli("volume", "create", "db/v", "--size", "1M")
        running.cli("host", "create", "one", "--initiator", ONE)
        before = running.cli("host", "list")
        yield running
        assert running.cli("host", "list") == before
    assert not running.complaints()


# CHAP.


def test_secrets_are_long_enough_and_not_the_same_both_ways() -> None:
    for user, secret, mutual_user, mutual_secret in (
        ("u", "a" * 11, None, None),
        ("u", "a" * 256, None, None),
        ("u", "a" * 12 + "\n", None, None),
        ("", SECRET, None, None),
        ("u", SECRET, "t", None),
        ("u", SECRET, "t", SECRET),
        ("u", SECRET, "t", "short"),
    ):
        with pytest.raises(PlayheadError) as refused:
            check_chap("host h", user, secret, mutual_user, mutual_secret)
        assert refused.value.next_step
        assert SECRET not in str(refused.value)
    assert SECRET not in repr(check_chap("host h", "u", SECRET, "t", OTHER_SECRET))
    assert check_chap("host h", "u", "ä" * 6, None, None)


def set_chap(appliance: Appliance, *arguments: str, secrets: str) -> None:
    """Gives secrets on stdin, as a script does."""
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "playhead", *arguments],
        input=secrets, text=True, capture_output=True, check=False, timeout=60, env={**os.environ, **appliance.env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout


@pytest.mark.expect_log("login refused|failed to authenticate")
def test_a_host_with_credentials_must_prove_itself(group: Appliance) -> None:
    set_chap(group, "host", "chap", "one", "--user", "u1", secrets=f"{SECRET}\n")
    assert group.cli("host", "show", "one")["chap"] == {"user": "u1", "mutual_user": None}
    for wrong in (None, Credentials("u1", OTHER_SECRET), Credentials("u2", SECRET)):
        with pytest.raises(RefusedError):
            login(group, ONE, credentials=wrong)
    for _ in range(2):
        login(group, ONE, credentials=Credentials("u1", SECRET)).close()
        login(group, TWO).close()
        group.restart()
    group.cli("host", "chap", "one", "--none")
    login(group, ONE).close()


@pytest.mark.expect_log("login refused|failed to authenticate")
def test_the_target_proves_itself_too(group: Appliance) -> None:
    set_chap(
        group, "host", "chap", "one", "--user", "u1", "--mutual-user", "array", secrets=f"{SECRET}\n{OTHER_SECRET}\n"
    )
    login(group, ONE, credentials=Credentials("u1", SECRET, "array", OTHER_SECRET)).close()
    login(group, ONE, credentials=Credentials("u1", SECRET)).close()
    with pytest.raises(RefusedError):
        login(group, ONE, credentials=Credentials("u1", SECRET, "array", "another-secret-xx"))
    api = f"http://{group.addresses['api']}/api/v1"
    crossed = httpx.put(f"{api}/hosts/two/chap", json={"user": "u2", "secret": OTHER_SECRET})
    assert crossed.status_code == 422
    assert "other direction" in crossed.json()["detail"]


@pytest.mark.expect_log("login refused|failed to authenticate")
def test_discovery_has_credentials_of_its_own(group: Appliance) -> None:
    assert discovered(group, ONE) == [IQN]
    set_chap(group, "target", "discovery-chap", "--user", "browse", secrets=f"{SECRET}\n")
    with pytest.raises(RefusedError):
        discovered(group, ONE)
    assert discovered(group, ONE, Credentials("browse", SECRET)) == [IQN]
    login(group, ONE).close()
    group.cli("target", "discovery-chap", "--none")
    assert discovered(group, ONE) == [IQN]


def test_chap_may_be_required_of_all(tmp_path: Path) -> None:
    config = tmp_path / "playhead.toml"
    config.write_text('auth = "chap"\n')
    appliance = Appliance(tmp_path / "store", "--config", str(config))
    appliance.expect("login refused|failed to authenticate")
    with appliance:
        appliance.cli("group", "create", "db")
        appliance.cli("volume", "create", "db/data", "--size", "16M")
        with pytest.raises(RefusedError):
            login(appliance, ONE)
        appliance.cli("host", "create", "one", "--initiator", ONE)
        with pytest.raises(RefusedError):
            login(appliance, ONE, credentials=Credentials("u1", SECRET))
        secret = tmp_path / "secret"
        secret.write_text(SECRET)
        assert "chmod 600" in appliance.run("host", "chap", "one", "--user", "u1", "--secret-file", str(secret)).stderr
        secret.chmod(0o600)
        appliance.cli("host", "chap", "one", "--user", "u1", "--secret-file", str(secret))
        login(appliance, ONE, credentials=Credentials("u1", SECRET)).close()
        assert discovered(appliance, ONE, Credentials("u1", SECRET)) == [IQN]
    assert not appliance.complaints()


def test_secrets_are_nowhere_but_in_the_catalogue(group: Appliance) -> None:
    set_chap(group, "host", "chap", "one", "--user", "u1", "--mutual-user", "t", secrets=f"{SECRET}\n{OTHER_SECRET}\n")
    short = "elevenbytes"
    done = playhead("host", "chap", "one", "--user", "u", "--secret-file", "/dev/null", env=group.env)
    assert done.returncode == 5
    api = f"http://{group.addresses['api']}/api/v1"
    httpx.put(f"{api}/hosts/one/chap", json={"user": "u1", "secret": short, "mutual_user": 5})
    for path in ("/hosts", "/hosts/one", "/status", "/targets", "/openapi.json"):
        assert SECRET not in httpx.get(api + path).text
    files = [group.store / name for name in ("catalogue.db", "catalogue.db-wal", "catalogue.db-shm")]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    group.cli("host", "chap", "one", "--none")
    group.stop()
    log = group.said()
    assert not any(secret in log for secret in (SECRET, OTHER_SECRET, short))
    assert SECRET.encode() not in files[0].read_bytes()


# Redirection.


def test_logins_are_sent_elsewhere(group: Appliance, tmp_path: Path) -> None:
    other = Appliance(tmp_path / "other")
    url = group.iscsi_url("db/data")
    with other, login(group, ONE) as staying:
        other.cli("group", "create", "db")
        there = other.cli("volume", "create", "db/only", "--size", "16M")["nbd_url"]
        redirected = group.cli("target", "redirect", IQN, other.ready["iscsi"])
        assert redirected["redirection"] == {"address": other.ready["iscsi"], "permanent": False}
        io.write(url, 0x11, "0", "64k")
        io.check(there, 0x11, "0", "64k")
        assert staying.test_unit_ready(0).good
        assert staying.read(0, 0, 1) == bytes(512)
    group.restart()
    with other:
        io.write(url, 0x22, "0", "64k")
        io.check(there, 0x22, "0", "64k")
        group.cli("target", "redirect", IQN, "--none")
        io.write(url, 0x33, "0", "64k")
        io.check(there, 0x22, "0", "64k")
    assert not other.complaints()


# The catalogue.


def test_a_catalogue_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store")
    with appliance:
        appliance.cli("group", "create", "db")
        appliance.cli("volume", "create", "db/data", "--size", "1M")
    with sqlite3.connect(tmp_path / "store" / "catalogue.db") as db:
        db.execute("ALTER TABLE groups DROP COLUMN on_journal_failure")
        for table in ("fabric_volumes", "arrays", "splitters", "mappings", "initiators"):
            db.execute(f"DROP TABLE {table}")
        for table in ("offload_rules", "hosts", "discovery", "redirections"):
            db.execute(f"DROP TABLE {table}")
        db.execute("DROP INDEX one_volume_per_block_device")
        for column in ("read_only", "physical_block_bytes", "ublk"):
            db.execute(f"ALTER TABLE exports DROP COLUMN {column}")
        db.execute("DROP TABLE copy_images")
        db.execute("DROP TABLE copies")
        db.execute("ALTER TABLE groups DROP COLUMN directory")
        db.execute("PRAGMA user_version = 1")
    db.close()
    (tmp_path / "store" / "catalogue.db").chmod(0o644)
    with appliance:
        assert appliance.cli("volume", "list")[0]["path"] == "db/data"
        appliance.cli("host", "create", "one", "--initiator", ONE)
        assert stat.S_IMODE((tmp_path / "store" / "catalogue.db").stat().st_mode) == 0o600


def test_what_a_crash_left_of_disks_that_are_gone_is_forgotten(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path / "store")
    with appliance:
        appliance.cli("group", "create", "db")
        appliance.cli("volume", "create", "db/data", "--size", "1M")
        appliance.cli("host", "create", "one", "--initiator", ONE)
        appliance.cli("host", "map", "one", "db/data")
    with sqlite3.connect(tmp_path / "store" / "catalogue.db") as db:
        db.execute("INSERT INTO mappings VALUES ('db/gone', 'one', 4, 0)")
        db.execute("INSERT INTO offload_rules VALUES ('db/gone', NULL, NULL, 'ats', 0)")
    db.close()
    with appliance:
        assert [m["path"] for m in appliance.cli("host", "show", "one")["mappings"]] == ["db/data"]
        assert appliance.cli("policy", "show")["rules"] == []
