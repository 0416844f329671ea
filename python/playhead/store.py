"""The store: the one directory in which everything of an appliance lies, and the lock that keeps it to one process.

STORE/lock            held with flock while a service runs; holds its process id
STORE/catalogue.db    what exists, and CHAP secrets (SQLite, mode 0600)
STORE/reservations/   persistent reservations of hosts (mode 0700)
STORE/token           the API's token, if it needs one (mode 0600)
STORE/groups/NAME/    the journal of a group, and the bases Playhead made itself
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from playhead.errors import PlayheadError
from playhead.node import store_error

MAX_TOKEN_BYTES = 4096


class Store:
    """A locked store. Raises if another process has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.groups.mkdir(mode=0o750, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise store_error(error, path, "the store cannot be opened at") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            by = f"by process {holder}" if holder.isdigit() else "by another process"
            raise PlayheadError(
                "store-in-use", f"store {path} is in use {by}", "stop that one first, or give another --store"
            ) from error
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            # The process id is a courtesy to the next one who tries; a full disk must not keep the volumes from being served.
            pass

    @property
    def groups(self) -> Path:
        return self.path / "groups"

    @property
    def catalogue(self) -> Path:
        return self.path / "catalogue.db"

    def reservations(self) -> Path:
        """The directory in which the iSCSI front end keeps reservations that survive a restart."""
        path = self.path / "reservations"
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise store_error(error, path, "reservations cannot be kept in") from error
        return path

    def token(self) -> str:
        """The API's token; made at the first call."""
        path = self.path / "token"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return read_token(path)
        except OSError as error:
            raise store_error(error, path, "the token cannot be written to") from error
        token = secrets.token_urlsafe(32)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        return token

    def close(self) -> None:
        """Lets another process have the store."""
        os.close(self._lock)


def read_token(path: Path) -> str:
    """The token in a file that nobody but its owner may read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_TOKEN_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise store_error(error, path, "the token cannot be read from") from error
    if mode & 0o077:
        raise PlayheadError("permission", f"token file {path} can be read by others", f"chmod 600 {path}")
    if not text:
        raise PlayheadError(
            "invalid", f"token file {path} is empty", "remove it: the service makes a new one at its next start"
        )
    return text
