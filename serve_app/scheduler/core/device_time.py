"""How long each task has had its replica's device: those that run on a replica at a time share it equally.

So what the tasks of a replica have had adds up to the time in which it ran any. Pure; a moment is what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.graph.plan import TaskId

LONGEST_S = 10.0
"""More does not pass between two moments: the scheduler is told of each second, so the clock has been set."""


@dataclass(slots=True)
class _Device:
    """shared_s: how long any task has had it that has run there all the time, up to since_s. began_s: what that was
    when each of those that run began.
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
        self._devices: dict[str, _Device] = {}

    def advance(self, at_s: float) -> None:
        """Take in that it is so late. at_s: Unix time, of a clock that may be set meanwhile."""
        if self._at_s is not None:
            self._now_s += min(LONGEST_S, max(0.0, at_s - self._at_s))
        self._at_s = at_s

    def start(self, replica_id: str, task_id: TaskId) -> None:
        """Take in that a task runs on a replica from now on."""
        device = self._devices.setdefault(replica_id, _Device())
        device.advance(self._now_s)
        device.began_s[task_id] = device.shared_s

    def end(self, replica_id: str, task_id: TaskId) -> float | None:
        """Take in that a task needs its replica's device no more; return how long it has had it, None if it has not."""
        device = self._devices.get(replica_id)
        if device is None or task_id not in device.began_s:
            return None
        device.advance(self._now_s)
        had_s = device.shared_s - device.began_s.pop(task_id)
        if not device.began_s:
            del self._devices[replica_id]
        return had_s
