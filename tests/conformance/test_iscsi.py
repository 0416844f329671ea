"""libiscsi's own suite against the service: every test comes to what the expectations file says, and nothing hangs or falls over."""

from __future__ import annotations

import shutil

import pytest
from tests.appliance import Appliance
from tests.conformance import iscsi_test_cu


@pytest.mark.skipif(shutil.which("iscsi-test-cu") is None, reason="iscsi-test-cu is not installed")
@pytest.mark.expect_log("iSCSI")
def test_libiscsis_suite_comes_to_what_is_expected(appliance: Appliance) -> None:
    appliance.cli("group", "create", "suite")
    appliance.cli("volume", "create", "suite/lun", "--size", "1GiB")
    outcomes = iscsi_test_cu.run(appliance.disk("suite/lun")["iscsi_url"])
    counts = {kind: list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    assert iscsi_test_cu.differences(outcomes, iscsi_test_cu.expectations()) == []
    # The service is as well as before, and what the suite wrote is a journal without a fault.
    assert appliance.cli("status")["groups"][0]["state"] == "serving"
    assert appliance.cli("journal", "verify", "suite")["problems"] == []
