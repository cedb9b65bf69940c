"""Where the models, classes and saved workflows of a ComfyUI run: here, in a pool that is that ComfyUI, or nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from serve_app.errors import ModelFileError, ServeAppError
from serve_app.execution.call import PACKS
from serve_app.graph.model_files import LOADERS
from serve_app.graph.saved.classes import needed_classes
from serve_app.models.files.tensor_pickle import load_tensors
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import UNSUPPORTED
from serve_app.packs.loading import Packs
from serve_app.store.models.catalog import FOLDERS, Catalog
from serve_app.store.models.check import ModelCheck
from serve_app.store.models.files import ModelFolder

Place: TypeAlias = Literal["here", "pool", "nowhere"]
HERE: Place = "here"
WORST_FIRST: tuple[Place, ...] = ("nowhere", "pool", HERE)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of PyTorch's own format, in which older models are published."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model, pack or saved workflow, where it runs, and why not here. name: a model's as FOLDER/NAME."""

    kind: Literal["model", "pack", "workflow"]
    name: str
    place: Place
    why: str = ""


def models(catalog: Catalog, elsewhere: Place) -> Iterator[Found]:
    """Yield every model file. elsewhere: where one runs that this server cannot use."""
    check = ModelCheck(catalog)
    parts = {folder: part for inputs in LOADERS.values() for part, folder in inputs.values()}
    for folder in FOLDERS:
        if folder.endswith("_gguf"):  # other names of folders that are listed too
            names = [name for name in catalog.names(folder) if name.lower().endswith(".gguf")]
        else:
            names = catalog.names(folder)
        for name in names:
            why = check.refusal(parts[folder], folder, name) if folder in parts else None
            yield Found("model", f"{folder}/{name}", "here" if why is None else elsewhere, why or "")


def pickles(root: Path, directories: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Path]]:
    """Yield the files in PyTorch's format in folders where only others are listed: FOLDER/NAME and path.

    directories: of every folder, as `Catalog`.
    """
    files = ModelFolder(root)
    catalog = Catalog(files, directories)
    for folder, of_folder in directories.items():
        if folder.endswith("_gguf") or folder == "diffusers":
            continue
        seen = set(catalog.names(folder))
        for directory in of_folder:
            for name in sorted(set(files.names(directory, PICKLES)) - seen):
                seen.add(name)
                yield f"{folder}/{name}", root / directory / name


def convert(source: Path, target: Path) -> None:
    """Write the tensors of a file in PyTorch's format as a safetensors file. It runs no code of the file's.

    Errors: ModelFileError if it holds anything else.
    """
    from safetensors.torch import save_file
    from torch import Tensor

    found = load_tensors(source)
    inside = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(inside, Mapping) or not any(isinstance(value, Tensor) for value in inside.values()):
        raise ModelFileError(f"'{source.name}' holds no tensors by name")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    # Copies, as tensors that share memory are no safetensors file's.
    save_file({k: v.contiguous().clone() for k, v in inside.items() if isinstance(v, Tensor)}, unfinished)
    unfinished.replace(target)


class Classes:
    """Where node classes run. packs: those that were loaded. pool: whether there is a pool that is the ComfyUI."""

    def __init__(self, packs: Packs, *, pool: bool) -> None:
        self._own = specs().keys()
        self._packs = packs
        self._elsewhere: Place = "pool" if pool else "nowhere"

    def place(self, name: str) -> tuple[Place, str]:
        """Return where a class runs, and why not here."""
        spec = self._packs.specs.get(name)
        if name in self._own or (spec is not None and not spec.lacks):
            return "here", ""
        if name in UNSUPPORTED:
            return self._elsewhere, f"{name}: {UNSUPPORTED[name]}"
        if spec is not None:
            return self._elsewhere, f"{name} uses {', '.join(spec.lacks[:3])}"
        if self._packs.failures or self._packs.left_out:
            return self._elsewhere, f"{name} is in no pack that could be loaded"
        return "nowhere", f"{name} is in none of the packs"

    def packs(self) -> Iterator[Found]:
        """Yield every pack."""
        of: dict[str, list[str]] = {pack: [] for pack in (*self._packs.superseded, *self._packs.left_out)}
        for name, spec in self._packs.specs.items():
            of.setdefault(spec.python_module.removeprefix(PACKS), []).append(name)
        for pack, names in sorted(of.items()):
            whys = [why for place, why in map(self.place, names) if place != "here"]
            whys += [f"{name}: {why}" for name, why in self._packs.left_out.get(pack, {}).items()]
            place: Place = self._elsewhere if whys else "here"
            yield Found("pack", pack, place, "; ".join(whys))
        for pack, why in sorted(self._packs.failures.items()):
            yield Found("pack", pack, self._elsewhere, why)

    def workflows(self, folder: Path) -> Iterator[Found]:
        """Yield every workflow that users of a ComfyUI have saved."""
        for path in sorted(folder.glob("user/*/workflows/**/*.json")):
            name = str(path.relative_to(folder))
            try:
                places = [self.place(each) for each in sorted(needed_classes(json.loads(path.read_text("utf-8"))))]
            except (OSError, ValueError, ServeAppError) as error:
                yield Found("workflow", name, "nowhere", f"it cannot be read: {error}")
                continue
            worst = next((place for place in WORST_FIRST if any(place == each for each, _ in places)), HERE)
            yield Found("workflow", name, worst, "; ".join(why for place, why in places if place == worst and why))
