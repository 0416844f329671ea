"""fio with the libiscsi engine, which Debian's own package lacks.

It is built from Debian's source package, once, and cached.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.paths import MissingError, cache_dir, program

# Only what the benchmarks use: fewer libraries found at configure time is fewer ways to build a
# different fio.
CONFIGURE = (
    "--enable-libiscsi",
    "--enable-libnbd",
    "--disable-native",
    "--disable-gfapi",
    "--disable-http",
    "--disable-numa",
    "--disable-pmem",
    "--disable-rados",
    "--disable-rbd",
    "--disable-rdma",
    "--disable-tcmalloc",
    "--disable-xnvme",
)
ENGINES = ("libiscsi", "nbd")


def fio() -> Path:
    """The path of a fio that has both engines, building it first if the cache has none (under a
    minute).

    Raises `MissingError` when a build tool is not installed or the source cannot be fetched.
    """
    home = cache_dir() / "fio"
    built = home / "fio"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(home, built)
    return built


def version(binary: Path) -> str:
    """What `fio --version` says."""
    return _run([str(binary), "--version"], cwd=binary.parent).strip()


def _build(home: Path, built: Path) -> None:
    source = home / "source"
    shutil.rmtree(source, ignore_errors=True)
    print("building fio from its source package (once)", file=sys.stderr, flush=True)
    _fetch(home)
    _run(["dpkg-source", "--no-check", "-x", str(_newest_dsc(home)), str(source)], cwd=home)
    _run(["./configure", *CONFIGURE], cwd=source)
    _run(["make", f"-j{os.cpu_count() or 1}", "fio"], cwd=source)
    engines = _run([str(source / "fio"), "--enghelp"], cwd=source).split()
    lacking = [engine for engine in ENGINES if engine not in engines]
    if lacking:
        raise MissingError(
            f"fio was built without {', '.join(lacking)}; "
            "next: apt-get install the packages of bench/packages.txt and run again"
        )
    shutil.copy2(source / "fio", home / "fio.new")
    (home / "fio.new").replace(built)
    shutil.rmtree(source)


def _fetch(home: Path) -> None:
    """Downloads fio's source package with an apt whose sources and lists are ours: /etc and
    /var/lib/apt stay as they are.
    """
    for folder in ("lists/partial", "archives/partial"):
        (home / "apt" / folder).mkdir(parents=True, exist_ok=True)
    sources = home / "apt" / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in _source_lines()))
    apt = [
        program("apt-get", "apt"),
        *("-o", "APT::Sandbox::User=root"),
        *("-o", f"Dir::Etc::SourceList={sources}"),
        *("-o", "Dir::Etc::SourceParts=-"),
        *("-o", f"Dir::State::Lists={home / 'apt' / 'lists'}"),
        *("-o", f"Dir::Cache={home / 'apt' / 'archives'}"),
    ]
    _run([*apt, "update"], cwd=home)
    _run([*apt, "source", "--download-only", "fio"], cwd=home)
    shutil.rmtree(home / "apt")


def _source_lines() -> list[str]:
    """deb-src lines for the archives this machine's binary packages come from, so that versions of
    libraries agree.
    """
    rows = _run(
        [
            program("apt-get", "apt"),
            "indextargets",
            "--format",
            "$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)",
            "Created-By: Packages",
        ],
        cwd=Path("/"),
    )
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    lines = []
    for row in rows.splitlines():
        origin, uri, codename, component, signed_by = row.split("|")
        if origin not in ("Debian", "Ubuntu") or component not in ("main", "universe"):
            continue
        # A key named in the machine's own sources; apt leaves the placeholder in place when none
        # is.
        key = signed_by if signed_by.startswith("/") else str(keyring) if keyring.exists() else ""
        trust = f"[signed-by={key}] " if key else ""
        lines.append(f"deb-src {trust}{uri} {codename} {component}")
    if not lines:
        raise MissingError("apt knows no Debian or Ubuntu archive; next: apt-get update")
    return sorted(set(lines))


def _newest_dsc(home: Path) -> Path:
    found = sorted(home.glob("fio_*.dsc"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingError("apt downloaded no source package of fio")
    return found[-1]


def _run(command: list[str], cwd: Path) -> str:
    """Runs a build step and returns its output; on failure its last lines are the error."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
    except FileNotFoundError as error:
        raise MissingError(
            f"{command[0]} is not installed; next: apt-get install what bench/packages.txt lists"
        ) from error
    if done.returncode != 0:
        raise MissingError(
            f"{' '.join(command)} failed:\n" + "\n".join(done.stdout.splitlines()[-15:])
        )
    return done.stdout


if __name__ == "__main__":
    print(fio())
