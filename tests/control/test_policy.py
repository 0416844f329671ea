"""Offload policy: the narrowest rule decides, at once, for good, and as hosts see it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import httpx
import pytest
from tests.appliance import Appliance
from tests.control import initiator as scsi
from tests.control.initiator import Initiator
from tests.control.io import qemu_io

from playhead.errors import PlayheadError
from playhead.policy import OFFLOADS, Rule, Rules, Scope, check_action

ONE = "iqn.2000-01.test:one"
TWO = "iqn.2000-01.test:two"
IQN = "iqn.2026-11.io.playhead:db"
OPCODES = {"ats": 0x89, "write-same": 0x93, "unmap": 0x42}


@pytest.fixture
def group(appliance: Appliance) -> Appliance:
    """A group `db` with volumes `data` and `wal`."""
    appliance.cli("group", "create", "db")
    appliance.cli("volume", "create", "db/data", "--size", "16M")
    appliance.cli("volume", "create", "db/wal", "--size", "16M")
    return appliance


def ask(appliance: Appliance, *scope: str) -> list[dict[str, Any]]:
    """What is in force for what `policy show` would be given, by way of the API: a process for each question takes its time."""
    words = ["--lun", *scope] if scope and not scope[0].startswith("--") else list(scope)
    query = {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    answer = httpx.get(f"http://{appliance.addresses['api']}/api/v1/policy/in-force", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["offloads"]
    return found


def in_force(appliance: Appliance, *scope: str) -> dict[str, str]:
    """Offload -> action."""
    return {offload["offload"]: offload["action"] for offload in ask(appliance, *scope)}


def decided_by(appliance: Appliance, offload: str, *scope: str) -> str:
    rule = next(o["rule"] for o in ask(appliance, *scope) if o["offload"] == offload)
    return rule["scope"] if rule else "default"


def login(appliance: Appliance, name: str = ONE) -> Initiator:
    """A session whose first attentions are over."""
    session = Initiator(appliance.ready["iscsi"], name, IQN)
    for lun in (0, 1):
        session.attentions(lun)
    return session


# Which rule decides.


def test_the_narrowest_rule_decides() -> None:
    scopes = [
        Scope(lun="g/v", initiator="i"),
        Scope(lun="g/v", host="h"),
        Scope(lun="g/v"),
        Scope(initiator="i"),
        Scope(host="h"),
        Scope(),
    ]
    for present in itertools.product((False, True), repeat=len(scopes)):
        rules = Rules(Rule(scope, "xcopy", "reject") for scope, there in zip(scopes, present, strict=True) if there)
        first = next((scope for scope, there in zip(scopes, present, strict=True) if there), None)
        found = rules.decide("xcopy", "g/v", "i", "h")
        assert (found.scope if found else None) == first
        assert rules.decide("odx", "g/v", "i", "h") is None


def test_rules_of_others_decide_nothing() -> None:
    others = [Scope(lun="g/w"), Scope(initiator="j"), Scope(host="k"), Scope(lun="g/v", initiator="j")]
    rules = Rules(Rule(scope, "ats", "reject") for scope in others)
    assert rules.decide("ats", "g/v", "i", "h") is None


def test_the_front_ends_table_decides_as_the_rules_do() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    members = {"h": ["a", "b"], "k": ["c"]}
    host_of = {initiator: host for host, initiators in members.items() for initiator in initiators}
    uuids = {"g/v": bytes(16), "g/w": bytes([1] * 16)}
    scopes = [
        Scope(lun, initiator, host)
        for lun in (None, "g/v", "g/w")
        for initiator, host in (
            (None, None),
            ("a", None),
            ("b", None),
            ("c", None),
            ("d", None),
            (None, "h"),
            (None, "k"),
        )
    ]
    for _ in range(300):
        rules = Rules(
            Rule(scope, "unmap", dice.choice(("support", "reject"))) for scope in scopes if dice.random() < 0.3
        )
        table = {(uuid, who): support for uuid, who, _, support in rules.native(members, uuids)}
        for lun, who in itertools.product(uuids, "abcd"):
            widest_first = [(None, None), (None, who), (uuids[lun], None), (uuids[lun], who)]
            found = [table[scope] for scope in widest_first if scope in table]
            rule = rules.decide("unmap", lun, who, host_of.get(who))
            assert (found[-1] if found else True) == (rule is None or rule.action == "support"), (seed, lun, who)


def test_ignore_is_refused_with_the_reason() -> None:
    with pytest.raises(PlayheadError) as refused:
        check_action("xcopy", "ignore")
    assert "journal" in refused.value.detail
    assert "xcopy=reject" in refused.value.next_step


# As an operator uses it.


def test_rules_are_set_shown_reset_and_kept(group: Appliance) -> None:
    assert set(in_force(group).values()) == {"support"}
    assert list(in_force(group)) == list(OFFLOADS)
    group.cli("host", "create", "esx", "--initiator", ONE)
    group.cli("policy", "set", "xcopy=reject", "odx=reject")
    group.cli("policy", "set", "xcopy=support", "--host", "esx")
    group.cli("policy", "set", "xcopy=reject", "--lun", "db/data")
    group.cli("policy", "set", "xcopy=support", "--lun", "db/data", "--initiator", ONE)
    for _ in range(2):
        assert decided_by(group, "xcopy") == "appliance"
        assert decided_by(group, "xcopy", "--initiator", ONE) == "host esx"
        assert decided_by(group, "xcopy", "--host", "esx") == "host esx"
        assert decided_by(group, "xcopy", "db/data") == "LUN db/data"
        assert decided_by(group, "xcopy", "db/data", "--initiator", ONE) == f"LUN db/data, initiator {ONE}"
        assert decided_by(group, "odx", "db/data", "--initiator", ONE) == "appliance"
        assert decided_by(group, "ats", "db/data", "--initiator", ONE) == "default"
        group.restart()
    group.cli("policy", "reset", "xcopy", "--lun", "db/data", "--initiator", ONE)
    assert decided_by(group, "xcopy", "db/data", "--initiator", ONE) == "LUN db/data"
    group.cli("policy", "reset")
    assert in_force(group)["odx"] == "support"
    assert len(group.cli("policy", "show")["rules"]) == 2
    assert group.cli("policy", "reset", "--all")["rules"] == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (("xcopy=ignore",), 5, "every image"),
        (("xcopy=off",), 5, "xcopy=reject"),
        (("vaai=reject",), 5, "write-same"),
        (("xcopy=reject", "--lun", "db/none"), 3, "db/none"),
        (("xcopy=reject", "--lun", "db"), 5, "GROUP/VOLUME"),
        (("xcopy=reject", "--host", "none"), 3, "none"),
        (("xcopy=reject", "--initiator", "esx"), 5, "iqn."),
        (("xcopy",), 2, "OFFLOAD=support"),
        (("xcopy=reject", "--initiator", ONE, "--host", "h"), 2, "not both"),
    ],
)
def test_what_cannot_be_set_is_refused_and_changes_nothing(
    small_appliance: Appliance, arguments: tuple[str, ...], exit_code: int, says: str
) -> None:
    done = small_appliance.run("policy", "set", *arguments)
    assert done.returncode == exit_code
    assert says in done.stderr
    assert small_appliance.cli("policy", "show")["rules"] == []


@pytest.fixture(scope="module")
def small_appliance(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One service for all refusals."""
    running = Appliance(tmp_path_factory.mktemp("policy") / "store")
    with running:
        running.cli("group", "create", "db")
        yield running
    assert not running.complaints()


def test_the_api_refuses_ignore_too(small_appliance: Appliance) -> None:
    url = f"http://{small_appliance.addresses['api']}/api/v1/policy"
    answer = httpx.patch(url, json={"offloads": {"xcopy": "reject", "ats": "ignore"}})
    assert answer.status_code == 422
    assert "cannot be configured" in answer.json()["detail"]
    assert httpx.get(url).json() == {"rules": []}


def test_rules_go_with_their_lun(group: Appliance) -> None:
    group.cli("image", "open", "db/old")
    group.cli("policy", "set", "ats=reject", "--lun", "db/old/data")
    group.cli("policy", "set", "ats=reject", "--lun", "db/wal")
    assert in_force(group, "db/old/data")["ats"] == "reject"
    assert in_force(group, "db/data")["ats"] == "support"
    group.cli("image", "close", "db/old")
    group.cli("volume", "delete", "db/wal", "--delete-base")
    assert group.cli("policy", "show")["rules"] == []


# As hosts see it.


def test_a_live_session_hears_of_a_change_and_finds_what_is_said(group: Appliance) -> None:
    with login(group) as one, login(group, TWO) as two:
        for opcode in OPCODES.values():
            assert one.supports(0, opcode)
        group.cli(
            "policy", "set", "ats=reject", "write-same=reject", "unmap=reject", "--lun", "db/data", "--initiator", ONE
        )
        # Without unmap the LUN is thick, which READ CAPACITY(16) says.
        assert one.attentions(0) == [scsi.CAPACITY_CHANGED, scsi.INQUIRY_CHANGED]
        assert one.attentions(1) == two.attentions(0) == two.attentions(1) == []
        for opcode in OPCODES.values():
            assert not one.supports(0, opcode)
            assert one.supports(1, opcode)
            assert two.supports(0, opcode)
        block = bytes([7] * 512)
        for refused in (
            one.compare_and_write(0, 0, bytes(512), block),
            one.write_same(0, 0, 8, block),
            one.unmap(0, 0, 8),
        ):
            assert (refused.status, refused.ascq) == (scsi.CHECK_CONDITION, scsi.INVALID_OPCODE)
        assert one.write(0, 0, block).good
        assert two.compare_and_write(0, 0, block, bytes([8] * 512)).good
        assert one.read(0, 0, 1) == bytes([8] * 512)
        group.cli("policy", "reset", "--all")
        assert one.attentions(0) == [scsi.CAPACITY_CHANGED, scsi.INQUIRY_CHANGED]
        assert one.write_same(0, 0, 8, block).good
        counted = {o["offload"]: o for o in group.cli("policy", "show", "db/data", "--initiator", ONE)["offloads"]}
        assert {name: counted[name]["rejected"] for name in OPCODES} == dict.fromkeys(OPCODES, 1)
        assert counted["write-same"]["served"] == 1
        assert counted["write-same"]["saved_bytes"] == 7 * 512


def test_a_hosts_rule_is_for_each_of_its_initiators_from_the_moment_it_is_one(group: Appliance) -> None:
    group.cli("host", "create", "esx", "--initiator", ONE)
    group.cli("policy", "set", "ats=reject", "--host", "esx")
    with login(group) as one, login(group, TWO) as two:
        assert not one.supports(0, OPCODES["ats"])
        assert two.supports(0, OPCODES["ats"])
        group.cli("host", "add-initiator", "esx", TWO)
        assert scsi.INQUIRY_CHANGED in two.attentions(0)
        assert not two.supports(0, OPCODES["ats"])
        group.cli("policy", "set", "ats=support", "--initiator", ONE)
        assert scsi.INQUIRY_CHANGED in one.attentions(0)
        assert one.supports(0, OPCODES["ats"])
        group.cli("host", "delete", "esx")
        assert scsi.INQUIRY_CHANGED in two.attentions(0)
        assert two.supports(0, OPCODES["ats"])
    assert [rule["scope"] for rule in group.cli("policy", "show")["rules"]] == [f"initiator {ONE}"]


def test_policy_outlives_a_restart_on_the_wire(group: Appliance) -> None:
    group.cli("policy", "set", "unmap=reject")
    group.restart()
    with login(group) as one:
        assert not one.supports(0, OPCODES["unmap"])
        assert one.unmap(0, 0, 8).ascq == scsi.INVALID_OPCODE


def test_nbd_serves_what_the_rules_for_everybody_leave(group: Appliance) -> None:
    url = group.nbd_url("db/data")
    group.cli("policy", "set", "unmap=reject", "write-same=reject", "--initiator", ONE)
    qemu_io(url, "write -P 5 0 1M", "write -z 0 64k", "discard 64k 64k", "read -P 0 0 128k")
    group.cli("policy", "set", "unmap=reject", "write-same=reject", "--lun", "db/data")
    before = opcodes(group)
    # QEMU falls back: zeros are written as data, a discard is left out.
    qemu_io(url, "write -P 6 0 1M", "write -z 0 64k", "discard 64k 64k", "read -P 0 0 64k", "read -P 6 64k 64k")
    assert set(opcodes(group)[len(before) :]) == {"WRITE"}
    group.cli("policy", "set", "write-same=support", "--lun", "db/data")
    before = opcodes(group)
    qemu_io(url, "write -zu 0 64k")
    assert opcodes(group)[len(before) :] == ["ZERO"]


def opcodes(appliance: Appliance) -> list[str]:
    """Of all records of the journal, in order."""
    done = appliance.run("journal", "dump", "db", "-o", "json")
    return [line.split('"opcode": "')[1].split('"')[0] for line in done.stdout.splitlines() if '"opcode"' in line]
