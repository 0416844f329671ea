"""What is refused, as one family: a stable code, the object, the cause and the next step.

The code decides the HTTP status and the CLI's exit code; docs/errors.md lists them, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a code means to programs."""

    status: int
    """HTTP status (RFC 9110)."""

    exit_code: int
    """What the CLI exits with."""

    title: str
    """The same for every problem of this code (RFC 9457, 3.1.3)."""


EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_INVALID = 5
EXIT_UNREACHABLE = 6
EXIT_UNAUTHORISED = 7
EXIT_NO_SPACE = 8
EXIT_STORE = 9
EXIT_IN_USE = 10
EXIT_CANCELLED = 11
EXIT_PROBLEMS_FOUND = 12
EXIT_UNSAFE = 13

KINDS: dict[str, Kind] = {
    # asked for something that is not there
    "not-found": Kind(404, EXIT_NOT_FOUND, "No such object"),
    "gone": Kind(410, EXIT_NOT_FOUND, "The object is gone"),
    # something stands in the way
    "conflict": Kind(409, EXIT_CONFLICT, "Something stands in the way"),
    "busy": Kind(409, EXIT_CONFLICT, "The object is in use"),
    "outside-window": Kind(409, EXIT_CONFLICT, "Outside the protection window"),
    "inconsistent": Kind(409, EXIT_CONFLICT, "Not a consistent point"),
    "cancelled": Kind(409, EXIT_CANCELLED, "The work was cancelled"),
    # the request makes no sense
    "invalid": Kind(422, EXIT_INVALID, "The request makes no sense"),
    "out-of-range": Kind(422, EXIT_INVALID, "Beyond the end of the volume"),
    "bad-name": Kind(422, EXIT_INVALID, "Not a usable name"),
    "method-not-allowed": Kind(405, EXIT_INVALID, "The resource has no such method"),
    # who is asking
    "unauthorised": Kind(401, EXIT_UNAUTHORISED, "A token is needed"),
    "forbidden": Kind(403, EXIT_UNAUTHORISED, "Not from there"),
    # the machine under us
    "no-space": Kind(507, EXIT_NO_SPACE, "No space left"),
    "io": Kind(500, EXIT_STORE, "The storage failed"),
    "damaged": Kind(500, EXIT_STORE, "A file is damaged"),
    "newer-format": Kind(500, EXIT_STORE, "Written by a newer Playhead"),
    "failed": Kind(503, EXIT_STORE, "The group is not in service"),
    "missing-base": Kind(503, EXIT_STORE, "A base is missing"),
    "not-supported": Kind(501, EXIT_STORE, "Not offered by this system"),
    "permission": Kind(500, EXIT_STORE, "Not permitted by the system"),
    "store-in-use": Kind(503, EXIT_IN_USE, "The store is in use"),
    "address-in-use": Kind(503, EXIT_IN_USE, "The address is in use"),
    "address-not-available": Kind(503, EXIT_INVALID, "Not an address of this machine"),
    "stopping": Kind(503, EXIT_UNREACHABLE, "The service is stopping"),
    "array": Kind(502, EXIT_UNREACHABLE, "The array cannot be asked"),
    "unreachable": Kind(503, EXIT_UNREACHABLE, "The service cannot be reached"),
    "internal": Kind(500, EXIT_INTERNAL, "A defect in Playhead"),
}


class PlayheadError(Exception):
    """A refusal. `detail` names the object and the cause, `next_step` says what to do (it may be in the detail already)."""

    def __init__(self, code: str, detail: str, next_step: str = "") -> None:
        super().__init__(f"{detail}: {next_step}" if next_step else detail)
        self.code = code if code in KINDS else "internal"
        self.detail = detail
        self.next_step = next_step

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]


def not_found(what: str, next_step: str = "") -> PlayheadError:
    """There is no such thing."""
    return PlayheadError("not-found", what, next_step)


def conflict(what: str, next_step: str = "") -> PlayheadError:
    """Something stands in the way."""
    return PlayheadError("conflict", what, next_step)


def invalid(what: str, next_step: str = "") -> PlayheadError:
    """The request makes no sense."""
    return PlayheadError("invalid", what, next_step)
