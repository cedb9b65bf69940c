"""Content of node packs for the web page: example workflows, subgraph blueprints, translations.

All of it lies in folders of fixed names, so nothing here imports a pack. Source: those that ComfyUI 0.33.0 reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve_app.errors import FileMissingError

WORKFLOWS = ("example_workflows", "example", "examples", "workflow", "workflows")
"""Folders of a pack that may hold example workflows."""
SUBGRAPHS = "subgraphs"
LOCALES = "locales"
TRANSLATED = ("nodeDefs", "commands", "settings")
"""Files of a language beside main.json, each a member of what that has."""


class PackContent:
    """The content of a folder of packs; None for no packs. Every call reads the disk."""

    def __init__(self, packs_dir: Path | None) -> None:
        self._packs_dir = packs_dir

    def workflows(self) -> dict[str, list[str]]:
        """Return the names of the example workflows by pack, of the packs that have some."""
        found: dict[str, list[str]] = {}
        for folder in WORKFLOWS:
            for pack, file in self._files(f"{folder}/*.json"):
                found.setdefault(pack, []).append(file.stem)
        return found

    def workflow(self, pack: str, file: str) -> Path:
        """Return the path of a file among a pack's example workflows, such as a thumbnail. Errors: FileMissingError."""
        for folder in WORKFLOWS:
            for owner, path in self._files(f"{folder}/*"):
                if owner == pack and path.name == file and path.is_file():
                    return path
        raise FileMissingError(f"no example workflow {file[:300]!r} belongs to the node pack {pack[:100]!r}")

    def subgraphs(self) -> list[tuple[str, Path]]:
        """Return the subgraph blueprints, each with its pack and file."""
        return list(self._files(f"{SUBGRAPHS}/*.json"))

    def translations(self) -> dict[str, Any]:
        """Return the page's translations by language; later packs add to earlier ones.

        A file that is no JSON object counts as empty.
        """
        found: dict[str, Any] = {}
        for _, directory in self._files(f"{LOCALES}/*/"):
            words = _object(directory / "main.json")
            words |= {name: more for name in TRANSLATED if (more := _object(directory / f"{name}.json"))}
            if words:
                found[directory.name] = _merged(found.get(directory.name, {}), words)
        return found

    def _files(self, pattern: str) -> Iterator[tuple[str, Path]]:
        if self._packs_dir is None or not self._packs_dir.is_dir():
            return
        for pack in sorted(self._packs_dir.iterdir()):
            if pack.is_dir() and not pack.name.endswith(".disabled"):
                for path in sorted(pack.glob(pattern)):
                    if path.resolve().is_relative_to(pack.resolve()):
                        yield pack.name, path


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(base[name], value) for name, value in over.items() if _are_objects(base.get(name), value)}
    return base | over | both


def _are_objects(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
