"""Problem details (RFC 9457): how a refusal looks to programs."""

from __future__ import annotations

from typing import Any

from playhead._native import NativeError
from playhead.errors import KINDS, PlayheadError


def from_native(error: NativeError) -> PlayheadError:
    """The data path's error as one of ours. Its text has cause and next step already."""
    return PlayheadError(error.code, error.message)


def problem_of(error: BaseException) -> dict[str, Any]:
    """The members of an `application/problem+json` body."""
    if isinstance(error, NativeError):
        error = from_native(error)
    if not isinstance(error, PlayheadError):
        error = PlayheadError(
            "internal", f"{type(error).__name__}: {error}", "the service's log has more; please report it"
        )
    return {
        "type": f"urn:playhead:error:{error.code}",
        "title": KINDS[error.code].title,
        "status": KINDS[error.code].status,
        "code": error.code,
        "detail": error.detail,
        "next_step": error.next_step,
    }
