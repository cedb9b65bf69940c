"""Log lines for the page's terminal: a client's own jobs, in the words of ComfyUI's log.

The server's log itself is on the hosts of the cluster and contains others' jobs. Pure. Source: comfyui 0.33.0
`server.py`, `execution.py` and `main.py` for the words, `app/logger.py` for the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from serve_app.events import Event, Failure

SIZE = {"cols": 80, "rows": 24}
"""The size of the page's terminal."""


def log_entries(event: Event, started_s: float | None) -> list[dict[str, str]]:
    """Return an event's entries in the log. started_s: when its job started, Unix time."""
    at = datetime.fromtimestamp(event.at_s).isoformat()
    return [{"t": at, "m": f"{line}\n"} for line in _lines(event, started_s)]


def _lines(event: Event, started_s: float | None) -> Iterator[str]:
    data: dict[str, Any] = dict(event.data)
    match event.kind:
        case "queued":
            yield "got prompt"
        case "blocked":
            yield f"node {data['node']} ({data['class_type']}) is passed over: {data['message']}"
        case "error":
            failure = Failure.from_json(data)
            yield f"!!! Exception during processing !!! {failure.message}"
            yield from (line.rstrip("\n") for line in failure.traceback)
        case "cancelled":
            yield "Processing interrupted"
        case "success":
            yield "Prompt executed" + ("" if started_s is None else f" in {event.at_s - started_s:.2f} seconds")
