"""Removes orphaned files: unrecorded outputs of ended jobs, old previews, abandoned uploads, half-written files.

Only files that are certainly ours are removed: by a reserved name with the reserved content, or by a name that only
this server gives. Synchronous, and slow with a slow store; callers use a thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

from serve_app import log
from serve_app.config.results import ResultsConfig
from serve_app.errors import FileMissingError
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.atomic_write import UNFINISHED
from serve_app.store.files.reserved import Reservation, is_own
from serve_app.store.files.store import AREAS, Area, FileRef, WholeStore
from serve_app.store.page.assets import FOLDER, NAME, KnownFiles
from serve_app.store.retention.named_files import NeededFiles, StoredPath, ref_of
from serve_app.store.tenants.tenants import named_by_tenant
from serve_app.store.work import run_states
from serve_app.store.work.node_results import trim

SETTLED_S = 90.0
"""How long after a job's end nothing of it is still on its way: longer than a silent replica is waited for."""
BATCH_SIZE = 200
"""Reservations that are looked at in one go."""
UNFINISHED_S = 3600.0
"""No file takes so long to write."""
PREVIEW = re.compile(r"_[a-z]{12}_[0-9]{5,}_[^/]*$")
_HALF = re.compile(r"\.[0-9a-f]{32}" + re.escape(UNFINISHED))
_log = log.get("store")


class Sweep:
    """Removes orphaned files of a store. temp_age_s: the largest age of previews. deleted: called with each removed
    file.
    """

    def __init__(
        self, jobs: Jobs, store: WholeStore, temp_age_s: float, deleted: Callable[[FileRef], None] = lambda ref: None
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._temp_age_s = temp_age_s
        self._deleted = deleted

    def unrecorded(self, ended_before_s: float, kept: Iterable[FileRef]) -> list[Reservation]:
        """Remove unrecorded files of ended jobs; return the reservations that are settled by that.

        kept: files that a job with equal results may still record; by tenants' names.
        """
        reservations = self._jobs.unsettled(ended_before_s, BATCH_SIZE)
        recorded = self._jobs.shown([reservation.job_id for reservation in reservations])
        unrecorded = [
            (reservation, [(ref, digests) for ref, digests in reservation.files() if ref not in recorded])
            for reservation in reservations
        ]
        kept = _among({named_by_tenant(ref) for _, left in unrecorded for ref, _ in left}, kept)
        done = []
        for reservation, left in unrecorded:
            if any(named_by_tenant(ref) in kept for ref, _ in left):
                continue
            for ref, digests in left:
                self._remove(reservation.job_id, ref, digests)
            done.append(reservation)
        return done

    def previews(self, started_s: float | None, kept: Iterable[FileRef]) -> int:
        """Remove previews that are too old, or at a server's start all from before `started_s`; return their number."""
        before_s = time.time() - self._temp_age_s if started_s is None else started_s
        return self._aged("temp", PREVIEW, before_s, kept)

    def run_states(self) -> int:
        """Remove states of runs that nobody has gone on with; return their number."""
        before_s = time.time() - self._temp_age_s
        old = [ref for ref, at_s in self._store.files("work", run_states.FOLDER) if at_s < before_s]
        for ref in old:
            self._store.delete(ref)
        return len(old)

    def results(self, results: ResultsConfig) -> int:
        """Remove results of nodes that are too old or too many; return their number."""
        return trim(self._store, results.max_bytes, results.age_s)

    def abandoned_uploads(self) -> int:
        """Remove uploads without an asset, which a process left behind as it ended."""
        before_s, known = time.time() - UNFINISHED_S, self._jobs.query(0, KnownFiles())
        found = [(r, at_s) for r, at_s in self._store.files("input") if named_by_tenant(r).subfolder == FOLDER]
        # No two uploads have one name, so whose one is makes no difference.
        old = [r for r, at_s in found if at_s < before_s and NAME.fullmatch(r.filename) and r.filename not in known]
        self.delete(old)
        return len(old)

    def delete(self, refs: Iterable[FileRef]) -> None:
        """Remove files that the database has dropped."""
        for ref in refs:
            self._delete(ref)

    def doomed(self, files: tuple[StoredPath, ...]) -> None:
        """Remove files of deleted jobs, except those in use by another job or an asset."""
        needed = self._jobs.query(0, NeededFiles(files))
        for ref in (ref_of(place) for place in files if place not in needed):
            if not self._jobs.is_output(ref):
                self._delete(ref)

    def half_written(self) -> int:
        """Remove files that a killed process left half written; return their number."""
        before_s = time.time() - UNFINISHED_S
        return sum(self._aged(area, _HALF, before_s, ()) for area in (*AREAS, "work"))

    def _aged(self, area: Area, pattern: re.Pattern[str], before_s: float, kept: Iterable[FileRef]) -> int:
        found = self._store.files(area)
        aged = [ref for ref, at_s in found if at_s < before_s and pattern.search(ref.filename)]
        kept = _among({named_by_tenant(ref) for ref in aged}, kept)
        old = [ref for ref in aged if named_by_tenant(ref) not in kept]
        for ref in old:
            self._delete(ref)
        return len(old)

    def _delete(self, ref: FileRef) -> None:
        self._store.delete(ref)
        self._deleted(ref)

    def _remove(self, job_id: str, ref: FileRef, digests: frozenset[str]) -> None:
        try:
            if not is_own(self._store, ref, digests):
                _log.info(
                    "%s stays: job %s was to save under this name, but the content is another's", ref.path, job_id
                )
                return
        except FileMissingError:
            return
        # Looked up last and only for files that are there: it reads what every job has shown.
        if not self._jobs.is_output(ref):
            self._delete(ref)
            _log.info("%s is removed: job %s saved it and ended before that was recorded", ref.path, job_id)


def _among(files: set[FileRef], kept: Iterable[FileRef]) -> set[FileRef]:
    """Return which of the files are among the kept ones, which are iterated, as there may be many more."""
    return {ref for ref in kept if ref in files} if files else set()
