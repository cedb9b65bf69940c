"""Counters and durations of jobs for metrics, from the published events."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from serve_app.events import Event

UNREAD = 10_000
"""The most durations that are kept unread."""


@dataclass(slots=True)
class JobCounters:
    """Counts since this scheduler began. ended: jobs by how they ended. nodes: by `cached` and `executing`.

    waits_s, runs_s: from submission to start and from start to end of each job, until `read`.
    """

    ended: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=UNREAD))
    runs_s: deque[float] = field(default_factory=lambda: deque(maxlen=UNREAD))
    since_s: dict[str, float] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Count an event. Jobs of an earlier epoch have no durations here."""
        match event.kind:
            case "queued":
                self.since_s[event.job_id] = event.at_s
            case "started":
                self._note(event, self.waits_s)
                self.since_s[event.job_id] = event.at_s
            case "cached":
                self.nodes["cached"] += len(event.data["nodes"])
            case "executing":
                self.nodes["executing"] += 1
            case "success" | "error" | "cancelled":
                self.ended[event.kind] += 1
                # A cancelled job may never have run.
                if event.kind == "cancelled":
                    self.since_s.pop(event.job_id, None)
                else:
                    self._note(event, self.runs_s)

    def _note(self, event: Event, durations: deque[float]) -> None:
        since_s = self.since_s.pop(event.job_id, None)
        if since_s is not None:
            durations.append(max(0.0, event.at_s - since_s))


def read(durations: deque[float]) -> Iterator[float]:
    """Yield and remove the unread durations."""
    while durations:
        yield durations.popleft()
