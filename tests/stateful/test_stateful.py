"""A siege: broken sessions of every kind at once, while an honest host works next door. `PLAYHEAD_SEED` replays the attackers' choices,
`PLAYHEAD_SIEGE_S` sets how long.
"""

from __future__ import annotations

import os
import secrets

import pytest
from tests.appliance import Appliance
from tests.stateful.siege import Siege

SHORT_S, SOAK_S = 20.0, 1800.0


@pytest.mark.expect_log("iSCSI")
def test_broken_sessions_harm_nobody_but_themselves(appliance: Appliance, soak: bool) -> None:
    seed = os.environ.get("PLAYHEAD_SEED") or secrets.token_hex(4)
    print(f"PLAYHEAD_SEED={seed}")
    siege = Siege(appliance, seed)
    siege.run(float(os.environ.get("PLAYHEAD_SIEGE_S") or (SOAK_S if soak else SHORT_S)))
    print(siege.summary())
    assert not siege.failures, "\n".join(siege.failures)
    # Warnings about initiators are part of it; errors, panics and tracebacks are not.
    assert not [line for line in appliance.said().splitlines() if '"level": "error"' in line or "panicked" in line]
