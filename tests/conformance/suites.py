"""The editions of libiscsi's suite that the conformance runs use: the machine's own package, and the newest that Debian publishes.

The newest needs a newer libc than the machine may have. It is fetched as binary packages, with everything it is linked to, by apt itself
with a configuration, lists and package cache of its own under the cache directory (`PLAYHEAD_CACHE`, by default `.work/cache` of the
repository), unpacked there and run by the dynamic linker that came along. Nothing is installed; root is not needed. The archive is the one
this machine's own Debian packages come from.

``python3 -m tests.conformance.suites`` prints the suites that this machine has, fetching the newest if need be.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGE = "libiscsi-bin"
NEWEST_RELEASE = "trixie"
"""The Debian release whose package is the newest: testing and unstable have the same upstream version."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_LIMIT_S = 300

_FAMILY = re.compile(r"^ALL\.([A-Za-z0-9]+)$", re.MULTILINE)
_TEST = re.compile(r"^ALL\.([A-Za-z0-9]+)\.(\S+)$", re.MULTILINE)


class SuiteError(Exception):
    """The newest suite cannot be had; the message says what failed."""


@dataclass(frozen=True)
class Suite:
    """One edition of the suite."""

    version: str
    """Of upstream: 1.19.0."""

    command: tuple[str, ...]
    """What to start it with; its arguments follow."""

    @functools.cache  # noqa: B019 - there are two of them
    def tests(self) -> dict[str, list[str]]:
        """Family -> its tests, in their order."""
        # The same names without the family test follow under other suites ("SCSI.", "LINUX."); ALL has every one.
        listed = subprocess.run([*self.command, "--list"], capture_output=True, text=True, check=False)
        text = listed.stdout + listed.stderr
        found: dict[str, list[str]] = {family: [] for family in _FAMILY.findall(text)}
        for family, test in _TEST.findall(text):
            found.setdefault(family, []).append(test)
        return found


def installed() -> Suite | None:
    """The suite of the machine's own package, if it is installed."""
    program = shutil.which("iscsi-test-cu")
    if program is None:
        return None
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", PACKAGE], capture_output=True, text=True, check=False
    )
    return Suite(_upstream(asked.stdout) or "installed", (program,))


@functools.cache
def newest() -> Suite:
    """The newest suite, fetched now if it is not in the cache. Raises SuiteError if it cannot be."""
    cache = Path(os.environ.get("PLAYHEAD_CACHE", REPOSITORY / ".work" / "cache"))
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"{PACKAGE}-{NEWEST_RELEASE}"
    with (cache / f"{PACKAGE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(prefix=f"{PACKAGE}-", dir=cache) as scratch:
                _fetch(Path(scratch)).rename(home)
    program = home / "usr/bin/iscsi-test-cu"
    libraries = sorted({library.parent for library in home.rglob("lib*.so*")})
    linkers = [path for path in sorted(home.rglob("ld-linux*.so*")) if os.access(path, os.X_OK)]
    if not linkers or not program.exists():
        raise SuiteError(f"{home} holds no dynamic linker or no iscsi-test-cu: remove it and try again")
    path = ":".join(str(folder) for folder in libraries)
    version = (home / "version").read_text().strip()
    return Suite(version, (str(linkers[0]), "--library-path", path, str(program)))


def newest_or_none() -> Suite | None:
    """The newest suite, or None with a word on stderr where it cannot be had: no apt, or no network."""
    try:
        return newest()
    except SuiteError as error:
        print(f"the newest suite is left out: {error}", file=sys.stderr)
        return None


def _fetch(scratch: Path) -> Path:
    """Fetches the package and all it depends on, and unpacks them. Returns the folder, complete."""
    lists, archives, tree = scratch / "lists", scratch / "archives", scratch / "tree"
    for folder in (lists / "partial", archives / "partial", tree):
        folder.mkdir(parents=True)
    (scratch / "sources").write_text(f"deb [signed-by={KEYRING}] {_archive()} {NEWEST_RELEASE} main\n")
    # A package database in which nothing is installed: everything the suite is linked to comes along.
    (scratch / "status").touch()
    apt = [
        "apt-get",
        "--quiet",
        "--yes",
        "-o",
        f"Dir::Etc::SourceList={scratch / 'sources'}",
        "-o",
        "Dir::Etc::SourceParts=-",
    ]
    apt += [
        "-o",
        f"Dir::State={scratch}",
        "-o",
        f"Dir::State::Lists={lists}",
        "-o",
        f"Dir::State::Status={scratch / 'status'}",
    ]
    apt += ["-o", f"Dir::Cache={scratch}", "-o", f"Dir::Cache::Archives={archives}", "-o", f"Dir::Log={scratch}"]
    # Only the binary packages' list is needed, and apt's own user cannot enter a private folder.
    apt += ["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "--no-install-recommends", PACKAGE])
    packages = sorted(archives.glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(tree)])
    [suite] = [package for package in packages if package.name.startswith(f"{PACKAGE}_")]
    (tree / "version").write_text(_upstream(suite.name.split("_")[1]) + "\n")
    return tree


def _archive() -> str:
    """The address of the Debian archive this machine installs from."""
    if shutil.which("apt-get") is None:
        raise SuiteError("apt-get not found: the newest suite comes as a Debian package")
    wanted = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    asked = subprocess.run(wanted, capture_output=True, text=True, check=False)
    addresses = asked.stdout.split()
    if not addresses:
        raise SuiteError(
            "apt knows no Debian archive on this machine: run apt-get update, or use the installed suite alone"
        )
    return addresses[0]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=APT_LIMIT_S,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise SuiteError(f"{command[0]} {command[-1]} failed with {done.returncode}:\n{done.stdout[-2000:]}")


def _upstream(version: str) -> str:
    """The upstream part of a Debian version: 1.20.0 of 1.20.0-4+b2."""
    return re.sub(r"%3a|^\d+:", "", version).partition("-")[0]


def main() -> int:
    """Prints what there is."""
    own = installed()
    print(f"installed: {own.version if own else 'none'}")
    try:
        suite = newest()
    except SuiteError as error:
        print(f"suites: {error}", file=sys.stderr)
        return 1
    print(f"newest: {suite.version}: {' '.join(suite.command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
