"""A cache of the latest successful jobs as clients see them: most are requested right after their end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from serve_app.events import data_bytes
from serve_app.graph.files import FEW_NODES
from serve_app.scheduler.protocol.client import JobView

KEPT = 512
KEPT_BYTES = 32 * 1024 * 1024


class RecentSuccesses:
    """A cache of at most KEPT jobs and KEPT_BYTES, none of more than FEW_NODES nodes."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, tuple[JobView, int]] = OrderedDict()
        self._bytes = 0

    def add(self, view: JobView) -> None:
        """Add a job that has succeeded, if it is small."""
        if len(view.prompt) > FEW_NODES:
            return
        size = data_bytes([view.prompt, view.extra_data, view.outputs, view.failure.to_json()])
        self._views[view.job_id] = view, size
        self._bytes += size
        while len(self._views) > KEPT or self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._views)))

    def get(self, job_id: str) -> JobView | None:
        """Return a cached job, or None."""
        kept = self._views.get(job_id)
        return None if kept is None else kept[0]

    def of(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's jobs."""
        return [job_id for job_id, (view, _) in self._views.items() if view.tenant == tenant]

    def forget(self, job_ids: Iterable[str] | None) -> None:
        """Remove these, or all."""
        for job_id in list(self._views if job_ids is None else job_ids):
            if job_id in self._views:
                self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        self._bytes -= self._views.pop(job_id)[1]
