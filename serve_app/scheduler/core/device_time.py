"""Accounts the device time of tasks: the tasks that run on a replica at a time share its device equally.

So the device times of a replica's tasks add up to the time in which it ran any. Pure: time comes as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.graph.plan import TaskId

LONGEST_S = 10.0
"""The longest plausible time between two calls: they come every second, so beyond it the clock was set."""


@dataclass(slots=True)
class _Device:
    """One device. shared_s: the device time, up to since_s, of a task that had run there from the beginning. began_s:
    the value of shared_s at which each running task began.
    """

    shared_s: float = 0.0
    since_s: float = 0.0
    began_s: dict[TaskId, float] = field(default_factory=dict)

    def advance(self, now_s: float) -> None:
        if self.began_s:
            self.shared_s += (now_s - self.since_s) / len(self.began_s)
        self.since_s = now_s


class DeviceTime:
    """The running tasks of every replica."""

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._now_s = 0.0
        self.devices: dict[str, _Device] = {}

    def advance(self, at_s: float) -> None:
        """Move the time on. at_s: Unix time, of a clock that may be set at any moment."""
        if self._at_s is not None:
            self._now_s += min(LONGEST_S, max(0.0, at_s - self._at_s))
        self._at_s = at_s

    def start(self, replica_id: str, task_id: TaskId) -> None:
        """Start accounting for a task on a replica."""
        device = self.devices.setdefault(replica_id, _Device())
        device.advance(self._now_s)
        device.began_s[task_id] = device.shared_s

    def end(self, replica_id: str, task_id: TaskId) -> float | None:
        """Stop accounting for a task; return its device time, None if it is not running there."""
        device = self.devices.get(replica_id)
        if device is None or task_id not in device.began_s:
            return None
        device.advance(self._now_s)
        had_s = device.shared_s - device.began_s.pop(task_id)
        if not device.began_s:
            del self.devices[replica_id]
        return had_s
