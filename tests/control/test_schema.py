"""Whatever the schema allows to be asked gets an answer that the schema describes, and never a 500."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from tests.appliance import Appliance

from playhead.api.app import schema as document

EXAMPLES = int(os.environ.get("PLAYHEAD_FUZZ_EXAMPLES", "15"))

schema: Any = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A service with something in it to find."""
    running = Appliance(tmp_path_factory.mktemp("fuzz") / "store")
    with running:
        running.cli("group", "create", "db")
        running.cli("volume", "create", "db/v", "--size", "1M")
        yield running
    assert not running.complaints()


# One test each, with a name of its own.
OPERATIONS: list[Any] = [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.label for operation in OPERATIONS])
def test_every_operation_keeps_to_the_schema(operation: Any, service: Appliance) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    def holds(case: Any) -> None:
        response = case.call(base_url=f"http://{service.addresses['api']}", timeout=60)
        checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
        # No space is an honest answer of a machine that has none; everything else of 500 and up is a defect.
        if response.status_code != 507:
            case.validate_response(response, checks=checks)

    holds()
