"""The service's log: lines on stderr, for people or as JSON. The data path writes the same two formats from Rust
(crates/python/src/log.rs)."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from playhead import _native

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _human(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    time = event.pop("timestamp")
    level = event.pop("level")
    text = str(event.pop("event"))
    error = event.pop("exception", None)
    fields = "".join(f" {key}={_plain(value)}" for key, value in event.items())
    line = f"{time} {level:<7} {text}{fields}"
    line = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in line)
    return f"{line}\n{error}" if error else line


def _plain(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c == "=" for c in text) else text


def start(level: str, form: str) -> None:
    """Sends this process's log, Python's and Rust's, to stderr."""
    _native.log_to_stderr(level, form == "json")
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.JSONRenderer() if form == "json" else _human
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS[level])
    # One line per request is the web server's habit; ours are written where something is decided.
    logging.getLogger("uvicorn.access").disabled = True
    for chatty in ("uvicorn", "uvicorn.error", "asyncio", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(max(LEVELS[level], logging.WARNING))


def get(name: str) -> Any:
    """The logger of a noun."""
    return structlog.stdlib.get_logger(name)
