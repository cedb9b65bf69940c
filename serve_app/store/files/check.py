"""Compares the database with the store, while no server uses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import FileMissingError
from serve_app.events import ENDINGS
from serve_app.store.database.changes import JobQuery, JobRow
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import is_own, shown
from serve_app.store.files.store import FileRef, Store
from serve_app.store.tenants.tenants import placed

PAGE = 500
"""Jobs that are read at once."""


@dataclass(frozen=True, slots=True)
class FileDifference:
    """One difference. mended: whether it was repaired."""

    what: str
    mended: bool = False


def check(jobs: Jobs, store: Store, *, mend: bool = False) -> Iterator[FileDifference]:
    """Yield differences: inconsistent ends, missing outputs, unrecorded files.

    mend: remove unrecorded files if their job certainly made them. Previews are not checked, as they are temporary.
    """
    folders: dict[tuple[str, str], frozenset[str]] = {}

    def there(ref: FileRef) -> bool:
        """Each folder is listed once, since a bucket would need a request for each file."""
        place = ref.area, ref.subfolder
        if place not in folders:
            folders[place] = frozenset(store.names(ref.area, ref.subfolder))
        return ref.filename in folders[place]

    recorded: set[FileRef] = set()
    for row in _rows(jobs):
        yield from (FileDifference(f"job {row.job_id} {wrong}") for wrong in _contradictions(row))
        for node_id, ui in row.outputs.items():
            for ref in (placed(ref, row.tenant) for ref in shown(ui) if ref.area == "output"):
                recorded.add(ref)
                if not there(ref):
                    yield FileDifference(
                        f"{ref.area}/{ref.path} is missing: node {node_id} of job {row.job_id} saved it"
                    )
    for reservation in jobs.unsettled(float("inf"), None):
        for ref, digests in reservation.files():
            if ref in recorded or not there(ref):
                continue
            what = f"{ref.area}/{ref.path} is in no record; its name was given to job {reservation.job_id}"
            try:
                own = is_own(store, ref, digests)
            except FileMissingError:
                continue
            if own and mend:
                store.delete(ref)
            whose = "which saved it" if own else "but its content is another's, so it stays"
            yield FileDifference(f"{what}, {whose}", mended=own and mend)


def _rows(jobs: Jobs) -> Iterator[JobRow]:
    yield from jobs.unfinished()
    for state in ("queued", "running", *sorted(ENDINGS)):
        offset = 0
        while rows := jobs.page(JobQuery((state,), "created", offset=offset, limit=PAGE))[0]:
            offset += len(rows)
            yield from (row for row in rows if row.ended_seq is not None)


def _contradictions(row: JobRow) -> Iterator[str]:
    if row.ended != (row.state in ENDINGS) or row.ended != (row.ended_seq is not None):
        yield f"is {row.state!r}, but its end is {row.ended_s} with cursor {row.ended_seq}"
    if row.state == "success" and (left := [node for node in row.targets if node not in row.outputs]):
        yield f"ended in success without an output of node {', '.join(left)}"
    if (row.state == "running") and row.started_s is None:
        yield "runs, but never started"
