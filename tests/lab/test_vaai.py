"""The matrix, cell by cell: captured or rejected, the replica is production; ignored, it is corrupt; and the host's switch is the cure."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.appliance import playhead

from playhead import _native
from playhead.errors import PlayheadError
from playhead.lab import matrix, page, tools, vaai
from playhead.lab.arrangement import Treatment
from playhead.lab.fabric_splitter import FabricBeforeTgtd, FabricSplitter
from playhead.lab.host_splitter import HostSplitter
from playhead.lab.matrix import Measured, Outcome
from playhead.lab.missing_splitter import MissingInArray, MissingInFabric, MissingInHost
from playhead.lab.playhead_array import PlayheadArray
from playhead.lab.settings import MIB
from playhead.lab.vaai import arranged
from playhead.policy import check_action

REGION_BYTES = 3 * MIB
MISSING = {MissingInArray.array, MissingInHost.array, MissingInFabric.array}
"""With a splitter that can be told to miss offloads, wherever it sits."""
ARRAYS = {PlayheadArray.array, MissingInArray.array}
"""With the splitter in them."""
HOST = {HostSplitter.array, MissingInHost.array}
"""With the splitter in the host."""
FABRIC = {FabricSplitter.array, FabricBeforeTgtd.array, MissingInFabric.array}
"""With the splitter before them."""
NBD = {PlayheadArray.array, *HOST}
"""Those that hosts reach over NBD too."""
IMPOSSIBLE = {
    (FabricBeforeTgtd.array, "xcopy", "support"),
    (FabricBeforeTgtd.array, "ats", "support"),
}


@pytest.fixture(scope="module")
def found() -> vaai.Report:
    return vaai.run(list(vaai.ARRANGEMENTS), REGION_BYTES, True, lambda _: None)


@pytest.fixture(scope="module")
def report(found: vaai.Report) -> dict[str, Any]:
    """As programs see it."""
    seen: dict[str, Any] = json.loads(json.dumps(found.json()))
    assert seen["as_expected"]
    return seen


def test_the_page_is_written_from_the_cells(found: vaai.Report, tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    page.write(written, found.cells, found.tools, ["left-handed is not installed: wait"], REGION_BYTES)
    text = written.read_text()
    assert text.count("CORRUPT") >= 4 * len(MISSING)
    assert "\n\nNot run: left-handed is not installed: wait.\n" in text
    assert not re.search(r"\{(facts|summary|table|tools|left_out)\}", text)
    for array in ARRAYS | HOST | {MissingInFabric.array}:
        assert f": {array}\n" in text


def test_every_cell_is_what_it_must_be(report: dict[str, Any]) -> None:
    cells = report["cells"]
    there = FABRIC if shutil.which("tgtd") else FABRIC - {FabricBeforeTgtd.array}
    assert {cell["array"] for cell in cells if cell["splitter"] == "array"} == ARRAYS
    assert {cell["array"] for cell in cells if cell["splitter"] == "fabric"} == there
    assert {cell["array"] for cell in cells if cell["splitter"] == "host"} == HOST
    assert len(cells) == len(ARRAYS | HOST | there) * 4 * 3 * 2
    for cell in cells:
        assert cell["as_expected"], cell
        place = (cell["array"], cell["offload"], cell["treatment"])
        if place in IMPOSSIBLE or (cell["array"] not in MISSING and cell["treatment"] == "ignore"):
            assert cell["outcome"] == "impossible", cell
            assert cell["detail"]
        elif not cell["switch"]:
            # The workaround of 2010, too: what the host does not ask for cannot be ignored.
            assert cell["outcome"] == "by-host", cell
        else:
            wanted = {"support": "executed", "reject": "fell-back", "ignore": "corrupt"}
            assert cell["outcome"] == wanted[cell["treatment"]], cell
        assert (cell["differing_blocks"] > 0) == (cell["outcome"] == "corrupt")


def test_the_corruption_of_2010_is_there_wherever_the_splitter_sits(report: dict[str, Any]) -> None:
    corrupt = {(cell["splitter"], cell["offload"]) for cell in report["cells"] if cell["outcome"] == "corrupt"}
    assert corrupt == {
        (splitter, offload)
        for splitter in ("array", "host", "fabric")
        for offload in ("ats", "xcopy", "write-same", "unmap")
    }
    ignored = [cell for cell in report["cells"] if cell["treatment"] == "ignore" and cell["array"] in MISSING]
    # What is carried out whole is missed whole; locks are some sectors.
    for cell in ignored:
        if cell["switch"] and cell["offload"] in ("xcopy", "write-same"):
            assert cell["differing_blocks"] == REGION_BYTES // 512, cell
    # And with the host's switch off nothing of it is left.
    assert {cell["outcome"] for cell in ignored if not cell["switch"]} == {"by-host"}


def test_what_is_ignored_is_not_in_the_journal_and_what_is_captured_costs_next_to_nothing(
    report: dict[str, Any],
) -> None:
    for cell in report["cells"]:
        if cell["outcome"] == "corrupt":
            # All the host saw was GOOD. Locks are read and written by plain commands besides, but never taken by one.
            assert cell["journal_bytes"] == 0, cell
            assert cell["detail"]
        if cell["array"] == PlayheadArray.array and cell["outcome"] == "executed" and cell["offload"] != "ats":
            assert cell["wire_bytes"] < REGION_BYTES / 100, cell
            assert cell["journal_bytes"] < 1024 * cell["commands"], cell
        if cell["array"] == FabricSplitter.array and (cell["outcome"], cell["offload"]) == ("executed", "xcopy"):
            # What the array copied by itself crossed no wire, and is a reference in the journal.
            assert cell["wire_bytes"] < REGION_BYTES / 100, cell
            assert cell["journal_bytes"] < 1024 * cell["commands"], cell
        if cell["outcome"] in ("fell-back", "by-host") and cell["offload"] in ("xcopy", "write-same"):
            assert cell["wire_bytes"] > REGION_BYTES, cell
            assert cell["journal_bytes"] > REGION_BYTES, cell


def test_other_peoples_tools_find_the_same(report: dict[str, Any]) -> None:
    found = {(each["tool"], each["array"], each["treatment"]): each for each in report["tools"]}
    assert all(each["as_expected"] for each in found.values())
    there = [use for use in tools.USES if shutil.which(use.program) is not None]
    # Whoever has not got a tool is told where it is.
    assert {line.partition(" ")[0] for line in report["left_out"]} >= {
        tool for tool in tools.PACKAGES if shutil.which(tool) is None
    }
    for use in there:
        for array in MISSING if use.counted else {MissingInHost.array}:
            ignored, supported = found[use.tool, array, "ignore"], found[use.tool, array, "support"]
            assert (ignored["outcome"], ignored["differing_blocks"] > 0) == ("corrupt", True), ignored
            assert (supported["outcome"], supported["differing_blocks"]) == ("executed", 0), supported
        for array in NBD if not use.counted else ():
            assert found[use.tool, array, "support"]["outcome"] == "executed", use.tool
            assert found[use.tool, array, "reject"]["outcome"] == "by-host", use.tool


def test_a_tool_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "nbdcopy" else f"/usr/bin/{tool}")
    assert tools.not_installed() == ["nbdcopy is not installed: apt-get install libnbd-bin"]


def test_a_cell_that_is_not_as_expected_fails_the_run() -> None:
    cell = next(matrix.cells(_Named()))  # type: ignore[arg-type]
    assert vaai.Report(REGION_BYTES, [Measured(cell, Outcome.EXECUTED)]).as_expected
    for outcome in (Outcome.CORRUPT, Outcome.WRONG, Outcome.FELL_BACK):
        assert not vaai.Report(REGION_BYTES, [Measured(cell, outcome)]).as_expected


class _Named:
    splitter, array = "array", "none"


@pytest.mark.parametrize("place", ["array", "host", "fabric"])
def test_ignoring_exists_in_the_laboratorys_own_folders_alone(tmp_path: Path, place: str) -> None:
    name, text = _native.LabSplitter.mark()

    def refused(folder: Path) -> str:
        with pytest.raises(_native.NativeError) as refusal:
            _native.LabSplitter(folder, place, ["v"], 64)
        return str(refusal.value.message)

    assert "not a folder of the laboratory's own" in refused(tmp_path / "nowhere")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert name in refused(plain)
    (plain / name).write_text("mine\n")
    assert "says something else" in refused(plain)
    # A group of a store, whatever is put beside it.
    group = _native.Group.create(str(tmp_path / "group"), "g")
    group.add_sparse_volume("v", 1 << 20)
    group.close()
    (tmp_path / "group" / name).write_text(text)
    assert "it holds" in refused(tmp_path / "group")
    # And what the laboratory has made, it does not take a second time.
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / name).write_text(text)
    _native.LabSplitter(ours, place, ["v"], 64).close()
    assert "it holds" in refused(ours)
    with pytest.raises(_native.NativeError, match="no splitter"):
        _native.LabSplitter(tmp_path, "somewhere", ["v"], 64)


@pytest.mark.parametrize("word", ["ignore", "miss", ""])
def test_no_rule_of_the_product_is_to_ignore(word: str) -> None:
    with pytest.raises(PlayheadError, match=r"support|reject"):
        check_action("unmap", word)
    # And what the laboratory makes is named by nothing but the laboratory.
    package = Path(vaai.__file__).parents[1]
    outside = [path for path in package.rglob("*.py") if "lab" not in path.relative_to(package).parts]
    assert package / "cli" / "lab.py" in outside
    assert [path for path in outside if "LabSplitter" in path.read_text()] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--splitter", "nowhere"), "there is no splitter 'nowhere'"),
        (("--size", "1M"), "a size of"),
        (("--size", "3000001"), "a size of"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(arguments: tuple[str, ...], text: str) -> None:
    done = playhead("lab", "vaai", *arguments)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert text in done.stderr


def test_nothing_is_left_behind() -> None:
    with arranged(MissingInArray, REGION_BYTES) as arrangement:
        arrangement.treat(matrix.PRIMITIVES[0], Treatment.IGNORE)
        place = arrangement.production("target")
        assert place.url.startswith("iscsi://127.0.0.1:")
    with arranged(PlayheadArray, REGION_BYTES) as service:
        address = service.production("target").address
    done = playhead("lab", "probe", f"iscsi://{address}/iqn.2026-11.org.example:x/0", "--timeout", "2s")
    assert done.returncode == 6
