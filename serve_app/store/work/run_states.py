"""Where the states of jobs' sampler runs are kept: files in the area `work`, which every replica reads."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from serve_app import log
from serve_app.store.files.store import FileRef, Store

_log = log.get("replica")

FOLDER = "run-states"
VERSION = 1
"""Of the files' content."""


class JobStates:
    """The states of one job's runs."""

    def __init__(self, store: Store, job_id: str) -> None:
        self.store = store
        self.folder = f"{FOLDER}/{_digest(job_id)}"
        self.over = False
        """Whether the job has ended: what is still being written is deleted too."""

    def of(self, node_id: str, run: int, recipe: str) -> RunStateFiles:
        """Return the files of a node's run. run: its number in the node; recipe: what determines its result."""
        return RunStateFiles(self, f"{_digest(node_id)}-{run}", f"v{VERSION}-{_digest(recipe)}")

    def delete(self) -> None:
        """Delete all of them: the job has ended. Errors: StoreError, or a disk's OSError."""
        self.over = True
        for name in [*self.store.names("work", self.folder)]:
            self.store.delete(FileRef("work", self.folder, name))


class RunStateFiles:
    """The state of one run, as `engine.run_state.StateFiles`. Names: RUN_RECIPE_FIRST.safetensors."""

    def __init__(self, job: JobStates, run: str, recipe: str) -> None:
        self._job, self._store, self._folder = job, job.store, job.folder
        self._run, self._recipe = run, recipe

    def read(self, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        left = max_bytes
        for ref in sorted(self._files(), key=lambda ref: ref.filename):
            if ref.filename.startswith(f"{self._run}_{self._recipe}_"):
                left -= self._store.stat(ref).size
                if left < 0:
                    break
                with self._store.open(ref) as file:
                    found.append(file.read())
            else:
                _log.warning("the state of a run is of another version or another workflow, so the run starts again")
                self._store.delete(ref)
        return found

    def write(self, first: int, part: bytes) -> None:
        name = f"{self._run}_{self._recipe}_{first:08}.safetensors"
        self._store.write(FileRef("work", self._folder, name), part)
        if self._job.over:
            self.delete()

    def delete(self) -> None:
        for ref in [*self._files()]:
            self._store.delete(ref)

    def _files(self) -> Iterator[FileRef]:
        for name in self._store.names("work", self._folder):
            if name.startswith(f"{self._run}_"):
                yield FileRef("work", self._folder, name)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:24]
