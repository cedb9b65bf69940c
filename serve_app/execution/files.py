"""STORE for one node of one job: reading files by a widget's value, and saving under ComfyUI's names.

The names are `folder_paths.get_save_image_path`'s of ComfyUI 0.33.0. Counters are reserved through the caller, since
many replicas save into one folder at once. Files are created, never overwritten, so other writers to the folder lose
nothing either.
"""

from __future__ import annotations

import contextvars
import hashlib
import os
import posixpath
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import re2

from serve_app import tracing
from serve_app.errors import FileMissingError, NodeError
from serve_app.execution.executing import check_cancelled
from serve_app.execution.runtime import Saved
from serve_app.openmp import end_team
from serve_app.store.files.input_folders import files_below
from serve_app.store.files.reserved import BATCH, LONGEST_KEY, Contents, named
from serve_app.store.files.store import Area, Content, FileRef, Store
from serve_app.threads import Threads

T = TypeVar("T")

_THREADS = Threads("files", min(32, (os.cpu_count() or 1) + 4), end_team)

_UNNAMED = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates, which neither file systems nor databases accept."""

Reserve = Callable[[str, int, Contents], Awaitable[tuple[int, bool]]]
"""(key, at_least, contents) -> the first of as many consecutive counters, which only this node of this job gets, and
whether an earlier attempt was given them.

at_least 0 asks for those that follow; it is answered 0 where nobody knows yet what there is.
"""


class NodeFiles:
    """Implements runtime.NodeStore over a store.

    at_s: the Unix time for %year% and the like. With the job's own time, a retry in another second makes the same
    names; None is the time of saving.
    """

    def __init__(self, store: Store, job_id: str, node_id: str, reserve: Reserve, at_s: float | None = None) -> None:
        self._store = store
        self._reserve = reserve
        self._at_s = at_s
        digest = hashlib.sha256(f"{job_id}/{node_id}".encode(errors="replace")).digest()
        self._own = "".join(chr(ord("a") + byte % 26) for byte in digest[:12])
        self._saved: set[str] = set()

    async def read(self, name: str) -> bytes:
        """Return a file's bytes. Errors: FileMissingError."""
        return await _in_thread(self._read, FileRef.parse(name))

    async def below(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder of the input area, relative to it, sorted."""
        return await _in_thread(files_below, self._store, folder)

    async def save(
        self,
        area: Area,
        prefix: str,
        suffix: str,
        contents: Sequence[Saved],
        *,
        width: int = 0,
        height: int = 0,
        mark: str = "_",
    ) -> list[dict[str, Any]]:
        """Store the contents under PREFIX_00001_SUFFIX and on; see runtime.NodeStore.

        Errors: NodeError for a prefix that leaves the area, and for a second save under one prefix, which a retry could
        not tell from the first; StoreError, OSError.
        """
        subfolder, filename = self._split(prefix, width, height)
        if area == "temp":
            # No reservation: the name is unique to this node, and a retry overwrites its own files.
            filename = f"{filename}_{self._own}"
        key = posixpath.join(area, subfolder, filename)
        if len(key) > LONGEST_KEY:
            raise NodeError(
                f"filename_prefix {prefix[:300]!r} makes a path of {len(key)} characters; {LONGEST_KEY} are allowed"
            )
        if key in self._saved:
            raise NodeError(f"it saves twice under {prefix[:300]!r}; all files under one prefix are saved together")
        self._saved.add(key)

        ending = "|".join(mark + one for one in suffix.split("|"))
        try:
            with tracing.span("store", area=area, files=len(contents)):
                if area == "temp":
                    refs = named(key, ending, 1, len(contents))
                    await _in_thread(self._create, refs, contents, True)
                else:
                    refs = await self._create_next(area, subfolder, filename, ending, contents)
        except FileMissingError as error:
            raise NodeError(f"it cannot save under {prefix[:300]!r}: {error}") from error
        return [{"filename": ref.filename, "subfolder": subfolder, "type": area} for ref in refs]

    async def _create_next(
        self, area: Area, subfolder: str, filename: str, ending: str, saved: Sequence[Saved]
    ) -> list[FileRef]:
        """Store the contents under the next free names, and return them."""
        key = posixpath.join(area, subfolder, filename)
        what, contents = await _in_thread(_described, ending, saved)
        first, again = await self._reserve(key, 0, what)
        while True:
            refs = named(key, ending, first, len(what))
            if first and await _in_thread(self._create, refs, contents, again):
                return refs
            highest = await _in_thread(self._highest, area, subfolder, filename)
            first, again = await self._reserve(key, highest + 1, what)

    def _create(self, refs: Sequence[FileRef], contents: Sequence[Saved], again: bool) -> bool:
        """Store the contents under new names; False if another writer's file has one of them.

        again: an earlier attempt had these names, so an existing file is its own and stays: computed in another batch
        its pixels may differ in the last bit.
        """
        for ref, data in zip(refs, contents, strict=True):
            try:
                self._store.write(ref, _made(data), replace=ref.area == "temp")
            except FileExistsError:
                if not again:
                    return False
        return True

    def _read(self, ref: FileRef) -> bytes:
        with self._store.open(ref) as file:
            return file.read()

    def _split(self, prefix: str, width: int, height: int) -> tuple[str, str]:
        """Return (subfolder, start of the file name) of a prefix, its tokens filled in. Errors: as `save`."""
        if _UNNAMED.search(prefix):
            raise NodeError(f"filename_prefix {prefix[:300]!r} has a character that no file's name can have")
        at = time.localtime(self._at_s)
        tokens = {"width": str(width), "height": str(height), "year": str(at.tm_year)} | {
            name: f"{value:02}"
            for name, value in (
                ("month", at.tm_mon),
                ("day", at.tm_mday),
                ("hour", at.tm_hour),
                ("minute", at.tm_min),
                ("second", at.tm_sec),
            )
        }
        filled = re.sub("%(" + "|".join(tokens) + ")%", lambda found: tokens[found[1]], prefix)
        # Workflows written on Windows separate folders with backslashes.
        path = posixpath.normpath(filled.replace("\\", "/"))
        if path.startswith("/") or path.split("/")[0] == "..":
            raise NodeError(f"filename_prefix {prefix[:300]!r} leaves the folder that files are saved to")
        subfolder, filename = posixpath.split(path)
        return subfolder, "ComfyUI" if filename == "." else filename

    def _highest(self, area: Area, subfolder: str, filename: str) -> int:
        # By RE2: with a repeated token, others take time exponential in the digits of a name.
        literals = "[0-9]+".join(map(re2.escape, filename.split(BATCH)))
        try:
            pattern = re2.compile(f"{literals}_([0-9]{{1,15}})[_.]")
        except re2.error as error:
            raise NodeError(f"filename_prefix {filename[:300]!r} is too long") from error
        counters = (pattern.match(name) for name in self._store.names(area, subfolder))
        return max((int(found[1]) for found in counters if found), default=0)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread, in this call's context: it may use the current call."""
    return await _THREADS.call(contextvars.copy_context().run, function, *arguments)


def _described(ending: str, saved: Sequence[Saved]) -> tuple[Contents, list[Content]]:
    contents = [_made(one) for one in saved]
    return Contents.of(ending, contents), contents


def _made(saved: Saved) -> Content:
    """Return the content to save. Errors: NodeError once the call is cancelled."""
    if not callable(saved):
        return saved
    check_cancelled()
    return saved()
