"""Logging set-up: one line an event to standard error, as text or as JSON, each with the job and task it belongs to.

What a line quotes cannot pass for another line, nor control a terminal (`printable.py`).
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

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


def get(name: str) -> logging.Logger:
    """Return the project's logger for a floor, e.g. get("scheduler")."""
    return logging.getLogger(f"serve_app.{name}")


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """Let every line from here, and from what is started in here, say what it is about: job=…, task=…."""
    token = _about.set({**(_about.get() or {}), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def configure(form: Form = "text", level: int = logging.INFO) -> None:
    """Send the project's log lines to standard error. Called once a process, by the entry point."""
    logger = logging.getLogger("serve_app")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def escape(name: str) -> None:
    """Escape what another package's logger writes, as Serve's, which writes down paths as clients sent them."""
    logging.getLogger(name).addFilter(_escaped)


def _escaped(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


class TextFormatter(logging.Formatter):
    """Lines for people: the ids stand after the message as key=value pairs."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without a traceback."""
        ids = "".join(f" {name}={value}" for name, value in (_about.get() or {}).items())
        return printable(super().formatMessage(record) + ids)

    def formatException(self, ei: Any) -> str:
        """Return a traceback, whose lines are indented: none of a message in it begins as a log line does."""
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """Lines for collectors: one object each, with `at`, `level`, `logger`, `message`, the ids, and a traceback."""

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
