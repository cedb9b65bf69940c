"""Seconds from a server's start until it takes a job, and from SIGTERM until it has ended."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server

NAME = "startup"


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Start and stop every contender in turn, each in an empty directory."""
    start: dict[str, list[float]] = {c.kind: [] for c in contenders}
    stop: dict[str, list[float]] = {c.kind: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as directory:
                server = Server(contender, Path(directory))
                start[contender.kind].append(server.started_s)
                stop[contender.kind].append(server.stop())
    series = [Series(NAME, "start to first accepted job", kind, "s", values) for kind, values in start.items()]
    series += [Series(NAME, "SIGTERM to exit", kind, "s", values) for kind, values in stop.items()]
    ours = series[0]
    aims = [Ratio(NAME, "start, in seconds", ours.values, "<= 20")]
    aims += [Ratio(NAME, "stop, in seconds", stop[ours.contender], "<= 10")]
    return series, aims + [ratio(NAME, f"start over {s.contender}'s", ours, s) for s in series[1 : len(contenders)]]
