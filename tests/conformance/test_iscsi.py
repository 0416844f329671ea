"""libiscsi's own suites against the service: every test comes to what the expectations file says, and nothing hangs or falls over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.appliance import Appliance
from tests.conformance import iscsi_test_cu, suites
from tests.conformance.playhead import TWO_PORTALS, PlayheadTarget


@pytest.mark.serve(*TWO_PORTALS)
@pytest.mark.expect_log("iSCSI")
def test_libiscsis_suites_come_to_what_is_expected(appliance: Appliance) -> None:
    editions = [edition for edition in (suites.installed(), suites.newest_or_none()) if edition is not None]
    if not editions:
        pytest.skip("iscsi-test-cu is neither installed nor to be had")
    runs = [
        iscsi_test_cu.Run(edition, PlayheadTarget(appliance, f"suite{number}"))
        for number, edition in enumerate(editions)
    ]
    # Each has LUNs and targets of its own, and spends half of its time waiting.
    with ThreadPoolExecutor(len(runs)) as pool:
        all_outcomes = list(pool.map(iscsi_test_cu.Run.all, runs))
    wrong = []
    for edition, outcomes in zip(editions, all_outcomes, strict=True):
        print(f"libiscsi {edition.version}: {iscsi_test_cu.summary(outcomes)}")
        lines = iscsi_test_cu.differences(outcomes, iscsi_test_cu.expectations(edition.version))
        wrong += [f"{edition.version}: {line}" for line in lines]
    assert wrong == []
    # The service is as well as before, and what the suites wrote are journals without a fault.
    for group in appliance.cli("status")["groups"]:
        assert group["state"] == "serving"
        assert appliance.cli("journal", "verify", group["name"])["problems"] == []
