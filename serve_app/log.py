"""Logging set-up: one line per event to standard error, as text or as JSON, with the ids of its job and task.

Quoted text is escaped, so that it can neither forge a line nor control a terminal (`printable.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from serve_app.printable import printable

Form: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


def get(name: str) -> logging.Logger:
    """Return the project's logger for a floor, e.g. get("scheduler")."""
    return logging.getLogger(f"serve_app.{name}")


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """Add ids to every line logged inside the context, and in tasks started there: job=…, task=…."""
    token = _about.set({**(_about.get() or {}), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def configure(form: Form = "text", level: Level = "info") -> None:
    """Send the project's log lines of a level, and those above it, to standard error.

    Called once a process, by the entry point.
    """
    logger = logging.getLogger("serve_app")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
        logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def escape(name: str) -> None:
    """Escape the messages of another package's logger, for example Serve's, which logs paths as clients sent them."""
    logging.getLogger(name).addFilter(_escaped)


def _escaped(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


class TextFormatter(logging.Formatter):
    """Formats lines for people: the ids follow the message as key=value pairs."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without a traceback."""
        ids = "".join(f" {name}={value}" for name, value in (_about.get() or {}).items())
        return printable(super().formatMessage(record) + ids)

    def formatException(self, ei: Any) -> str:
        """Return a traceback with indented lines, so that no message in it looks like a log line."""
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """Formats lines for log collectors: JSON objects with `at`, `level`, `logger`, `message`, the ids, and a
    traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return printable(json.dumps(line, ensure_ascii=False))
