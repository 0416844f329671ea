"""Hypervisors' offloads under every policy: the blocks are the same, only the cost differs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.appliance import Appliance
from tests.mover.lab import OPERATIONS, Lab, cases
from tests.mover.report import table

from playhead.lab.advertised import Primitive
from playhead.lab.device import Claim
from playhead.lab.settings import MIB

REGION_BYTES = 32 * MIB


@pytest.fixture
def lab(appliance: Appliance) -> Iterator[Lab]:
    lab = Lab(appliance, REGION_BYTES)
    yield lab
    lab.close()


def test_blocks_do_not_depend_on_who_moves_them(lab: Lab) -> None:
    found = [lab.run(case) for case in cases()]
    print("\n" + table(found))
    for measured in found:
        case = measured.case
        assert measured.right, case
        if case.switch:
            expected = Claim.SUPPORTED if case.policy == "support" else Claim.NOT_SUPPORTED
            assert measured.claim is expected, case
    for operation in OPERATIONS:
        supported, rejected, switched_off = (m for m in found if m.case.operation == operation)
        if operation != "reclaim":
            assert supported.content == rejected.content == switched_off.content
        if operation.startswith("clone"):
            assert supported.wire_bytes * 100 < min(rejected.wire_bytes, switched_off.wire_bytes)
        if operation in ("clone", "zero", "reclaim"):
            # A reference, not data: an offload costs the journal next to nothing.
            assert supported.journal_bytes < 1024 * max(1, supported.commands)
    # Falling back costs one refused command, not one for each piece.
    clone = [m for m in found if m.case.operation == "clone"]
    assert clone[1].commands == clone[2].commands + 1


def test_a_policy_set_on_the_command_line_reaches_a_host_that_is_logged_in(lab: Lab) -> None:
    device, probes = lab.target, lab.target.probes
    for action, claim in (("reject", Claim.NOT_SUPPORTED), ("support", Claim.SUPPORTED)):
        for operation, primitive in OPERATIONS.items():
            if operation == "clone, other group":
                continue
            rule = f"{primitive.value}={action}"
            lab.appliance.cli("policy", "set", rule, "--lun", "prod/target")
            case = next(c for c in cases([operation]) if c.policy == action)
            # Nobody sets it anew below: what the host finds is the rule of the command line.
            work, wanted = lab.prepare(case)
            work()
            assert lab.look(case) == wanted
            assert device.claims[primitive] is claim
            assert device.advertised.says(primitive) is (action == "support")
    # Once for each change that was one: supporting what nobody had rejected is none.
    assert device.probes == probes + 2 * len(set(OPERATIONS.values()))
    assert set(device.claims) == set(Primitive)
