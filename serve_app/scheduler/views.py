"""Jobs as clients may see them: unfinished ones from the machine's records, ended ones from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.events import JobState
from serve_app.scheduler.client import JobView
from serve_app.scheduler.records import JobRecord
from serve_app.store.changes import JobRow
from serve_app.store.credentials import without_credentials


def live_view(job: JobRecord) -> JobView:
    """Return an unfinished job as it is now."""
    state: JobState
    state, percent = ("queued", 0) if job.started_s is None else ("running", job.percent)
    return _view(job.row, state, job.started_s, percent, job.outputs, job.cached)


def success_view(job: JobRecord, ended_s: float) -> JobView:
    """Return a job as its row says it once its success is durable."""
    view = _view(job.row, "success", job.started_s, 100, dict(job.outputs), job.cached)
    return replace(view, extra_data=without_credentials(job.row.extra_data), ended_s=ended_s)


def row_view(row: JobRow) -> JobView:
    """Return a job as the database has it."""
    percent = 100 if row.state == "success" else 0
    outputs = {node_id: ui for node_id, (_, ui) in row.outputs.items()}
    return _view(row, row.state, row.started_s, percent, outputs, row.cached)


def _view(
    row: JobRow,
    state: JobState,
    started_s: float | None,
    percent: int,
    outputs: Mapping[str, Any],
    cached: tuple[str, ...],
) -> JobView:
    return JobView(
        job_id=row.job_id,
        number=row.number,
        state=state,
        prompt=row.prompt,
        outputs_to_execute=row.targets,
        client_id=row.client_id,
        extra_data=row.extra_data,
        created_s=row.created_s,
        started_s=started_s,
        ended_s=row.ended_s,
        percent=percent,
        outputs=outputs,
        failure=row.failure,
        cached=cached,
    )
