"""Transfer of a task's files: inputs from the store to a ComfyUI, outputs from there to the store.

An output file gets a new name in the store, as every other; clients see that name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from serve_app.comfyui.client import Client
from serve_app.errors import FileMissingError
from serve_app.graph.graph import Link
from serve_app.graph.plan import Task
from serve_app.store.files.store import AREAS, Area, FileRef, Store
from serve_app.store.tenants.tenants import store_of

_FILE = re.compile(r"[^\n]{0,500}\.[A-Za-z0-9]{1,8}(?: \[(?:input|output|temp)\])?")
"""Constants that may be file names."""
_COUNTED = re.compile(r"(?P<start>.+?)_(?P<counter>[0-9]{5,})_?(?P<rest>[^/]*)")
"""A file name with a counter, as ComfyUI and its packs make them."""
_PATHS = ("fullpath",)
"""Keys of node outputs whose values are paths of ComfyUI's host."""


class Saver(Protocol):
    """Saves one node's files; as `nodes.files.NodeFiles`."""

    async def save(self, area: Area, prefix: str, suffix: str, contents: list[bytes]) -> list[dict[str, Any]]: ...


class FileTransfer:
    """Transfers files between the store and one ComfyUI process.

    folders: of a process on this host; files in them are read directly.
    """

    def __init__(self, client: Client, store: Store, folders: Store | None = None) -> None:
        self._client = client
        self._store = store
        self._folders = folders
        self._there: dict[FileRef, str] = {}

    async def send_inputs(self, task: Task) -> None:
        """Upload every stored file that a constant names, unless ComfyUI has its current version."""
        refs = {FileRef.parse(text) for text in task_texts(task) if _FILE.fullmatch(text)}
        # All are looked up at once, since a bucket is slow, but uploaded one by one, since each is in memory meanwhile.
        store = store_of(self._store, task.tenant)
        tags = await asyncio.gather(*(_tag(store, ref) for ref in refs))
        for ref, tag in zip(refs, tags, strict=True):
            if tag is not None and self._there.get(ref) != tag:
                with contextlib.suppress(FileMissingError):  # removed just now; the node reports it
                    await self._client.write(ref, await asyncio.to_thread(_content, store, ref))
                    self._there[ref] = tag

    async def store_outputs(self, ui: Mapping[str, Any], saver: Saver) -> dict[str, Any]:
        """Save a node's output files; return its ui dict with their new names.

        Errors: FileMissingError for a missing file; as `Saver.save`.
        """
        shown = dict.fromkeys(ref for ref in _refs(ui) if ref not in self._there)
        groups: dict[tuple[Area, str, str], dict[str, list[FileRef]]] = {}
        for ref in shown:
            start, rest = _parts(ref.filename)
            # A file that ComfyUI writes to its input folder is no upload of a client.
            area: Area = "temp" if ref.area == "input" else ref.area
            groups.setdefault((area, ref.subfolder, start), {}).setdefault(rest, []).append(ref)
        names: dict[FileRef, dict[str, Any]] = {}
        for (area, subfolder, start), by_rest in groups.items():
            for number, (rest, refs) in enumerate(by_rest.items()):
                contents = [await self._read(ref) for ref in refs]
                # Files of one prefix share a counter, so those with another suffix have a prefix of their own.
                prefix = start if number == 0 else f"{start}_{re.sub('[^A-Za-z0-9]+', '', rest) or number}"
                path = f"{subfolder}/{prefix}" if subfolder else prefix
                names |= zip(refs, await saver.save(area, path, rest, contents), strict=True)
        renamed = _renamed(ui, names)
        assert isinstance(renamed, dict)
        return renamed

    async def _read(self, ref: FileRef) -> bytes:
        if self._folders is not None:
            # A link that leads out of them is read over HTTP.
            with contextlib.suppress(FileMissingError):
                return await asyncio.to_thread(_content, self._folders, ref)
        return await self._client.read(ref)


async def _tag(store: Store, ref: FileRef) -> str | None:
    """Return the tag of a stored file; None for a missing file or another text."""
    try:
        return (await asyncio.to_thread(store.stat, ref)).etag
    except FileMissingError:
        return None


def _content(store: Store, ref: FileRef) -> bytes:
    with store.open(ref) as file:
        return file.read()


def task_texts(task: Task) -> set[str]:
    """Return the texts in the inputs of a task's nodes."""
    return {text for node in task.nodes.values() for text in _texts(node.inputs)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple) and not isinstance(value, Link):
        for item in value:
            yield from _texts(item)


def _refs(value: Any) -> Iterator[FileRef]:
    """Yield the files that are named anywhere in a node's output."""
    if isinstance(value, Mapping):
        if (ref := _ref(value)) is not None:
            yield ref
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _ref(value: Mapping[str, Any]) -> FileRef | None:
    name, area, subfolder = value.get("filename"), value.get("type"), value.get("subfolder") or ""
    if not isinstance(name, str) or not name or area not in AREAS or not isinstance(subfolder, str):
        return None
    return FileRef(next(known for known in AREAS if known == area), subfolder, name)


def _renamed(value: Any, names: Mapping[FileRef, Mapping[str, Any]]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {key: _renamed(item, names) for key, item in value.items() if key not in _PATHS}
    ref = _ref(value)
    return kept if ref is None or ref not in names else {**kept, **names[ref]}


def _parts(filename: str) -> tuple[str, str]:
    """Return (start, end) of a file's name: what is before its counter and after it, or before and after its dot."""
    if counted := _COUNTED.fullmatch(filename):
        return counted["start"], counted["rest"]
    stem, dot, ending = filename.rpartition(".")
    return (stem, dot + ending) if stem else (filename, "")


def prune(folders: Sequence[Path], most_bytes: int) -> None:
    """Remove the oldest files of folders until the total is at most `most_bytes`."""
    files = []
    for folder in folders:
        for where, _, names in os.walk(folder):
            for path in (Path(where, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.lstat()
                    files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
