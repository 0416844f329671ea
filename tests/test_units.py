"""The systemd units of packaging/: systemd itself finds no fault with them, alone and together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"
VERIFY_LIMIT_S = 60.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = [PACKAGING / "playhead.service", PACKAGING / "systemd" / "playhead-attach@.service"]
    for unit in units:
        # What they start need not be installed on this machine.
        text = re.sub(r"^(Exec\w+=)/\S+", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name.replace("@", "@nbd0")).write_text(text)
    started = sorted(map(str, tmp_path.iterdir()))
    (tmp_path / "playhead.service.d").mkdir()
    shutil.copy(PACKAGING / "systemd" / "playhead-ublk.conf", tmp_path / "playhead.service.d" / "ublk.conf")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *started],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=VERIFY_LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
