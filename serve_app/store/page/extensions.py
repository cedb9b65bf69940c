"""Finds the web folder of each node pack, which browsers may read, from the pack's source text.

Packs run in workers only, so nothing here imports one: WEB_DIRECTORY is read where it is a plain string at the top of
the pack, and `[tool.comfy] web` from its pyproject.toml. Source: the rules of ComfyUI 0.3.64's `nodes.py`.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from serve_app.errors import FileMissingError


class Extensions:
    """The web folders of a folder of packs; None for no packs. Every call reads the disk."""

    def __init__(self, packs_dir: Path | None) -> None:
        self._packs_dir = packs_dir

    def scripts(self) -> list[str]:
        """Return the URL paths of all scripts, which the web page loads."""
        return sorted(
            f"/extensions/{name}/{file.relative_to(directory).as_posix()}"
            for name, directory in self._directories().items()
            for file in directory.rglob("*.js")
        )

    def path(self, name: str, file: str) -> Path:
        """Return where a pack's page file is. Errors: FileMissingError, also for what lies outside its folder."""
        directory = self._directories().get(name)
        found = None if directory is None or "\0" in file else (directory / file).resolve()
        if directory is None or found is None or not found.is_relative_to(directory) or not found.is_file():
            raise FileMissingError(f"no page file {file[:300]!r} belongs to the node pack {name[:100]!r}")
        return found

    def _directories(self) -> dict[str, Path]:
        if self._packs_dir is None or not self._packs_dir.is_dir():
            return {}
        packs = (path for path in sorted(self._packs_dir.iterdir()) if (path / "__init__.py").is_file())
        return {
            pack.name: (pack / web).resolve()
            for pack in packs
            if not pack.name.endswith(".disabled") and (web := _web(pack)) is not None and (pack / web).is_dir()
        }


def _web(pack: Path) -> str | None:
    """Return the folder of a pack's pages, relative to it, or None."""
    try:
        project = tomllib.loads((pack / "pyproject.toml").read_text())
        web = project.get("tool", {}).get("comfy", {}).get("web")
        if isinstance(web, str):
            return web
    except (OSError, ValueError, AttributeError):
        pass
    try:
        module = ast.parse((pack / "__init__.py").read_text())
    except (OSError, ValueError, SyntaxError):
        return None
    for statement in module.body:
        names = [ast.unparse(target) for target in statement.targets] if isinstance(statement, ast.Assign) else []
        if "WEB_DIRECTORY" in names and isinstance(statement.value, ast.Constant):  # type: ignore[attr-defined]
            return statement.value.value if isinstance(statement.value.value, str) else None  # type: ignore[attr-defined]
    return None
