"""Further directories of model files, named by files in the form of ComfyUI's `extra_model_paths.yaml`.

Source: the behaviour of ComfyUI 0.33.0's option `--extra-model-paths-config`. Files in these directories are read and
listed, never written or deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import ConfigError
from serve_app.store.models.catalog import FOLDERS, OLD_NAMES


@dataclass(frozen=True, slots=True)
class ExtraPath:
    """A directory of a folder such as "loras". first: it is searched before the others."""

    folder: str
    directory: Path
    first: bool


def read_extra_paths(file: Path) -> list[ExtraPath]:
    """Return the directories that a YAML file names, in its order. They need not exist. Errors: ConfigError."""
    try:
        sections = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"extra_model_paths: {file} cannot be read: {error}") from error
    if not isinstance(sections, Mapping | None):
        raise ConfigError(f"extra_model_paths: {file} is no mapping of sections, such as comfyui: {{base_path: …}}")
    named = ((str(name), section) for name, section in (sections or {}).items() if section is not None)
    return [path for name, section in named for path in _section(file, name, section)]


def directories_with(extra: Iterable[ExtraPath]) -> Mapping[str, tuple[str, ...]]:
    """Return every folder's directories: those below the folder of models by their names, extra ones absolute."""
    found = {folder: list(directories) for folder, directories in FOLDERS.items()}
    for path in extra:
        name = OLD_NAMES.get(path.folder, path.folder)
        for folder in (name, *(one for one in ("unet_gguf", "clip_gguf") if FOLDERS[one] == FOLDERS.get(name))):
            if folder in found and (directory := str(path.directory)) not in found[folder]:
                found[folder].insert(0 if path.first else len(found[folder]), directory)
    return {folder: tuple(directories) for folder, directories in found.items()}


def _section(file: Path, name: str, section: Any) -> Iterator[ExtraPath]:
    if not isinstance(section, Mapping):
        raise ConfigError(f"extra_model_paths: {file}: {name} is no mapping of folders to paths")
    base = section.get("base_path", "")
    first = section.get("is_default", False)
    for folder, paths in section.items():
        if folder in ("base_path", "is_default"):
            continue
        if not isinstance(paths, str) or not isinstance(base, str):
            raise ConfigError(f"extra_model_paths: {file}: {name}.{folder} and base_path must be text, not {paths!r}")
        above = Path(os.path.abspath(file)).parent / Path(os.path.expandvars(base)).expanduser()
        for line in filter(None, map(str.strip, paths.split("\n"))):
            yield ExtraPath(str(folder), Path(os.path.normpath(above / line)), bool(first))
