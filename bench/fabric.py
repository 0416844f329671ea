"""What the fabric-based splitter adds to a write: 4 KiB, one at a time, to tgtd directly and by way of Playhead, in turns.

    python -m bench.fabric [--rounds 7] [--count 4000]

Both ways are measured in every round, so that a machine that gets slower gets slower for both; the answer is the median of the rounds'
differences. The client is crates/initiator/examples/latency.rs; its own cost is in both numbers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.appliance import Appliance, wait_until  # noqa: E402
from tests.splitter import tgtd  # noqa: E402
from tests.splitter.tgtd import Tgtd  # noqa: E402

SIZE_BYTES = 64 << 20
AIM_US = 60.0


def client() -> Path:
    """Builds it."""
    command = [
        "cargo",
        "build",
        "--release",
        "--locked",
        "-p",
        "playhead-initiator",
        "--example",
        "latency",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "examples" / "latency"


def median_us(binary: Path, url: str, count: int) -> float:
    portal, iqn, lun = url.removeprefix("iscsi://").split("/")
    command = [str(binary), portal, iqn, lun, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=4000)
    given = parser.parse_args()
    binary = client()
    with tempfile.TemporaryDirectory(
        prefix="playhead-bench-", dir=os.environ.get("TMPDIR")
    ) as name:
        folder = Path(name)
        with Tgtd(folder, SIZE_BYTES) as array, Appliance(folder / "store") as appliance:
            appliance.cli("array", "add", "san", "--portal", array.portal)
            appliance.cli("group", "create", "bench")
            where = ("--array", "san", "--target", tgtd.TARGET, "--lun", str(tgtd.LUN))
            url = appliance.cli("volume", "create", "bench/data", *where)["iscsi_url"]
            shown = ("volume", "show", "bench/data")
            wait_until(
                lambda: appliance.cli(*shown)["splitter"]["state"] == "synchronised", "synchronised"
            )
            direct, through = [], []
            for _ in range(given.rounds):
                direct.append(median_us(binary, array.url, given.count))
                through.append(median_us(binary, url, given.count))
                print(
                    f"direct {direct[-1]:.1f} us, through the splitter {through[-1]:.1f} us",
                    flush=True,
                )
    added = [b - a for a, b in zip(direct, through, strict=True)]
    print(
        f"median of {given.rounds} rounds: direct {statistics.median(direct):.1f} us, through {statistics.median(through):.1f} us, "
        f"added {statistics.median(added):.1f} us (aim: at most {AIM_US:.0f})"
    )


if __name__ == "__main__":
    main()
