"""Where results of nodes are kept for after a restart: files in the area `work`, by environment and signature.

The environment stands for all that changes values and is in no signature, such as the server's code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from serve_app.store.files.reserved import shown
from serve_app.store.files.store import FileRef, WholeStore
from serve_app.store.tenants.tenants import store_of

FOLDER = "results"
SIGNATURE = re.compile(r"[0-9a-f]{64}")
"""Signatures that mean the same in another process; those of rounds and of unhashable constants do not."""
_SUFFIX = ".safetensors"


class NodeResultFiles:
    """The files of one environment."""

    def __init__(self, store: WholeStore, environment: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{environment}"

    def signatures(self) -> set[str]:
        """Return those that have a result. Errors: StoreError, OSError; also of the other methods."""
        names = (name.removesuffix(_SUFFIX) for name in self._store.names("work", self._folder))
        return {name for name in names if SIGNATURE.fullmatch(name)}

    def read(self, signature: str) -> bytes:
        """Return a result's bytes. Errors: FileMissingError."""
        with self._store.open(self._ref(signature)) as file:
            return file.read()

    def write(self, signature: str, data: bytes) -> None:
        self._store.write(self._ref(signature), data)

    def delete(self, signature: str) -> None:
        self._store.delete(self._ref(signature))

    def trim(self, max_bytes: int, age_s: float) -> None:
        """As `trim`."""
        trim(self._store, max_bytes, age_s)

    def tags(self, ui: Mapping[str, object] | None, tenant: str) -> dict[str, str]:
        """Return the tags of the files that a ui dict names. Errors: FileMissingError."""
        store = store_of(self._store, tenant)
        return {f"{ref.area}/{ref.path}": store.stat(ref).etag for ref in shown(ui)}

    def _ref(self, signature: str) -> FileRef:
        return FileRef("work", self._folder, signature + _SUFFIX)


def trim(store: WholeStore, max_bytes: int, age_s: float) -> int:
    """Delete results of all environments that are older, then the oldest beyond max_bytes; return their number."""
    found = [(at_s, size, ref) for ref, size, at_s in store.inventory("work") if _is_result(ref)]
    left, before_s, deleted = max_bytes, time.time() - age_s, 0
    for at_s, size, ref in sorted(found, key=lambda each: -each[0]):
        left -= size
        if left < 0 or at_s < before_s:
            store.delete(ref)
            deleted += 1
    return deleted


def _is_result(ref: FileRef) -> bool:
    return ref.subfolder.split("/")[0] == FOLDER
