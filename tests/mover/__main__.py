"""`python -m tests.mover`: every case on an appliance of its own, as a table. `--save` writes docs/data-mover.md.

The words around the table are in `page.md`; the figures are of the run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.appliance import Appliance
from tests.mover.lab import Lab, cases
from tests.mover.report import table

from playhead.lab.settings import MIB

PAGE = Path(__file__).with_name("page.md")
TARGET = Path(__file__).parents[2] / "docs" / "data-mover.md"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--region-mib", type=int, default=256, help="how much is cloned, zeroed and reclaimed")
    arguments.add_argument("--save", action="store_true", help=f"write {TARGET.name}")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, Appliance(Path(folder) / "store") as appliance:
        lab = Lab(appliance, chosen.region_mib * MIB)
        found = [lab.run(case) for case in cases(larger_pieces=True)]
        lab.close()
        assert not appliance.complaints(), appliance.complaints()
    print(table(found))
    if chosen.save:
        facts = f"{datetime.now(UTC):%Y-%m-%d}, {chosen.region_mib} MiB, {os.cpu_count()} cores"
        TARGET.write_text(PAGE.read_text().replace("{facts}", facts).replace("{table}", table(found)))
    return 0 if all(measured.right for measured in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
