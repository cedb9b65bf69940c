"""`serve-app logs`: the log lines of the server's processes, by level, job, request and replica."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from serve_app.cli.lines import print_line
from serve_app.cli.server import ServerClient

MEMBERS = ("at", "level", "logger", "message", "traceback")
"""The members of a line that its text has apart from the ids."""


def print_logs(server: ServerClient, query: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the lines that a query finds, as `GET /logs` takes it, until the server ends the answer."""
    for text in server.stream("/logs", **query):
        print_line(text if as_json else log_line(json.loads(text)))
    return 0


def log_line(line: Mapping[str, Any]) -> str:
    """Return a line for people: local time, level, logger, message, the ids that the message lacks, traceback."""
    at = datetime.fromisoformat(line["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    ids = (f"{name}={value}" for name, value in line.items() if name not in MEMBERS)
    message = " ".join([line["message"], *(text for text in ids if text not in line["message"])])
    trace = f"\n{line['traceback']}" if "traceback" in line else ""
    return f"{at} {line['level']:7} {line['logger'].removeprefix('serve_app.')}: {message}{trace}"
