"""Logging set-up: one line per event to standard error, as text or as JSON, with the ids of its job and task.

Quoted text is escaped, so that it can neither forge a line nor control a terminal (`printable.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from serve_app.printable import printable

Form: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_process: dict[str, str] = {}


def announce(line: str) -> None:
    """Print a line to standard output, for whoever started the server and may have stopped reading."""
    try:
        print(line, flush=True)
    except OSError:
        # What print keeps of the line would fail again, and be the exit status, as the process ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


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


def ids() -> dict[str, str]:
    """Return the ids of the lines that are logged here: the process's, then those of `about`."""
    return {**_process, **(_about.get() or {})}


def configure(form: Form = "text", level: Level = "info", **process: str) -> None:
    """Send the project's log lines of a level, and those above it, to standard error.

    process: ids of every line, such as replica=…. Called once a process, by the entry point.
    """
    _process.update(process)
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
        pairs = "".join(f" {name}={value}" for name, value in ids().items())
        return printable(super().formatMessage(record) + pairs)

    def formatException(self, ei: Any) -> str:
        """Return a traceback with indented lines, so that no message in it looks like a log line."""
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """Formats lines for log collectors: JSON objects with `at`, `level`, `logger`, `message`, the ids, a record's
    `fields`, and a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ids(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return printable(json.dumps(line, ensure_ascii=False))
