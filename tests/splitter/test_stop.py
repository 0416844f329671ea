"""The service is stopped while arrays do not answer: it is over in time however many volumes wait, and what could not be flushed is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.appliance import Appliance
from tests.splitter import tgtd
from tests.splitter.fabric import compare, open_head, session, synchronised
from tests.splitter.tgtd import Tgtd

SIZE_BYTES = 4 << 20
AT_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
GROUPS = ("a", "b")
IN_EACH = 6
"""One after another these would wait for twice as long as `packaging/playhead.service` lets a stop take, which is what `Appliance.stop` waits."""

pytestmark = pytest.mark.skipif(not tgtd.is_installed(), reason="tgtd is not installed")


@pytest.mark.expect_log("array")
@pytest.mark.parametrize("leave", [Tgtd.kill, Tgtd.hang], ids=["gone", "hung"])
def test_volumes_of_arrays_that_do_not_answer_wait_together(
    tmp_path: Path, appliance: Appliance, leave: Callable[[Tgtd], None]
) -> None:
    (tmp_path / "well").mkdir()
    with Tgtd(tmp_path, SIZE_BYTES, luns=IN_EACH * len(GROUPS)) as array, Tgtd(tmp_path / "well", SIZE_BYTES) as well:
        appliance.cli("array", "add", "san", "--portal", array.portal)
        appliance.cli("array", "add", "well", "--portal", well.portal)
        paths = [f"{group}/v{at}" for group in GROUPS for at in range(IN_EACH)]
        files = dict(zip(paths, array.files, strict=True))
        for group in GROUPS:
            appliance.cli("group", "create", group)
        for lun, path in enumerate(paths, array.lun):
            appliance.cli("volume", "create", path, "--array", "san", "--target", array.target, "--lun", str(lun))
        appliance.cli("volume", "create", "a/well", "--array", "well", "--target", well.target, "--lun", str(well.lun))
        for path in (*paths, "a/well"):
            volume = synchronised(appliance, path)
            with session(volume) as host:
                host.attentions(volume["lun"])
                assert host.write(volume["lun"], AT_BYTES // 512, b"\x11" * PIECE_BYTES).good
        leave(array)
        appliance.stop()
        # What it had in memory alone is lost to the array.
        array.kill()
        for file in files.values():
            with file.open("r+b") as lossy:
                lossy.seek(AT_BYTES)
                lossy.write(bytes(PIECE_BYTES))
        lines = [json.loads(line) for line in appliance.said().splitlines()]
        unclean = {line["volume"] for line in lines if line["event"] == "splitter did not close cleanly"}
        assert unclean == set(paths)
        array.start()
        appliance.start()
        for path in paths:
            synchronised(appliance, path)
        for group in GROUPS:
            open_head(appliance, f"{group}/after")
        for path, file in files.items():
            compare(file, appliance.iscsi_url(path.replace("/", "/after/")))
