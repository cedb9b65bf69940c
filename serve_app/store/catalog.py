"""The model files, in ComfyUI's folder layout under one directory. Reads names, sizes and times, never contents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve_app.errors import ModelFileError, did_you_mean

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "loras": ("loras",),
    "vae": ("vae",),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "embeddings": ("embeddings",),
    "vae_approx": ("vae_approx",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": ("gligen",),
    "upscale_models": ("upscale_models",),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
    "diffusers": ("diffusers",),
}
"""Every folder of model files, and the directories it is made of; the first that has a file wins."""

OLD_NAMES: Mapping[str, str] = {"clip": "text_encoders", "unet": "diffusion_models"}
"""Folder names that older workflows and node packs use."""

# The other formats ComfyUI lists (.ckpt, .pt, .bin, .pth) are pickles: reading one runs code from it.
SUFFIXES = (".safetensors", ".sft")

TENSOR_PICKLES: Mapping[str, tuple[str, ...]] = {"upscale_models": (".pth", ".pt")}
"""Folders whose models are mostly published as pickles of nothing but tensors, which are read without running code."""

TINY_VAES = ("taesd", "taesdxl")
"""VAEs by the name of their family: an encoder and a decoder, each in a file of vae_approx."""

DIFFUSERS_PARTS: Mapping[str, tuple[str, ...]] = {
    "backbone": ("unet/diffusion_pytorch_model",),
    "clip": ("text_encoder/model", "text_encoder_2/model"),
    "vae": ("vae/diffusion_pytorch_model",),
}
"""The files of a part in a folder in diffusers' layout, without what follows. Those after the first may be absent."""

DIFFUSERS_MARK = "model_index.json"
_DIFFUSERS_ENDS = (".fp16.safetensors", ".safetensors")

DEPTH_LIMIT = 16
"""How many subfolders deep files are looked for."""


class Catalog:
    """What model files there are. Every call looks at the disk, so a file copied in is there at once."""

    def __init__(self, models_dir: Path) -> None:
        self._root = Path(models_dir)

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's models, sorted, subfolders with forward slashes.

        They are its files; in "diffusers" the folders with a model's parts; in "vae" the TAESDs beside the files.
        Errors: ModelFileError for a folder the layout does not have.
        """
        suffixes = (DIFFUSERS_MARK,) if folder == "diffusers" else _suffixes(folder)
        found = {name for directory in self._directories(folder) for name in _walk(directory, suffixes)}
        if folder == "diffusers":
            found = {name.removesuffix(f"/{DIFFUSERS_MARK}") for name in found if "/" in name}
        elif folder == "vae":
            halves = set(self.names("vae_approx"))
            found |= {n for n in TINY_VAES if {f"{n}_encoder.safetensors", f"{n}_decoder.safetensors"} <= halves}
        return sorted(found)

    def path(self, folder: str, name: str) -> Path:
        """Return where a model file is. Errors: ModelFileError for one that is absent or of another format."""
        where = f"{folder} file {name[:300]!r}"
        if not name.lower().endswith(_suffixes(folder)):
            raise ModelFileError(f"{where} has a format that is not read; allowed: {', '.join(_suffixes(folder))}")
        found = self._find(folder, name)
        if found is None:
            near = did_you_mean(name, self.names(folder))
            raise ModelFileError(f"{where} is not in {self._root}{near}")
        return found

    def paths(self, folder: str, name: str, part: str) -> list[Path]:
        """Return the files of a part of a model: one, or more of a folder in diffusers' layout. Errors: as `path`."""
        if folder != "diffusers":
            return [self.path(folder, name)]
        found = self._diffusers(name, part)
        if not found:
            wanted = DIFFUSERS_PARTS[part][0] + _DIFFUSERS_ENDS[-1]
            raise ModelFileError(f"diffusers folder {name[:300]!r} in {self._root} has no {wanted}")
        return found

    def _diffusers(self, name: str, part: str) -> list[Path]:
        found: list[Path] = []
        for stem in DIFFUSERS_PARTS[part]:
            candidates = (self._find("diffusers", f"{name}/{stem}{end}") for end in _DIFFUSERS_ENDS)
            found += [path for path in candidates if path is not None][:1]
        return found

    def fingerprint(self, folder: str, name: str) -> str:
        """Return text that changes when the file's content does; "absent" if there is no such file.

        It never fails for a missing file: the node that reads the file says so, with its id.
        """
        if folder == "diffusers":
            return " ".join(self._fingerprint(path) for part in DIFFUSERS_PARTS for path in self._diffusers(name, part))
        if folder == "vae" and name in TINY_VAES:
            halves = (self._find("vae_approx", f"{name}_{half}.safetensors") for half in ("encoder", "decoder"))
            return " ".join(map(self._fingerprint, halves))
        return self._fingerprint(self._find(folder, name))

    def _fingerprint(self, path: Path | None) -> str:
        try:
            stat = path.stat() if path is not None else None
        except OSError:
            stat = None
        return f"{stat.st_size}-{stat.st_mtime_ns}" if stat is not None else "absent"

    def directories(self, folder: str) -> list[str]:
        """Return the directories a folder is made of. Errors: ModelFileError for an unknown folder."""
        return [str(directory) for directory in self._directories(folder)]

    def directory_index(self, folder: str, name: str) -> int:
        """Return which of the folder's directories a file is read from. Errors: as `path`."""
        path = self.path(folder, name)
        return next(i for i, directory in enumerate(self._directories(folder)) if path == directory / name)

    def _find(self, folder: str, name: str) -> Path | None:
        parts = name.split("/")
        if "\0" in name or name.startswith("/") or ".." in parts:
            return None
        candidates = (directory / name for directory in self._directories(folder))
        return next((path for path in candidates if _is_file(path)), None)

    def _directories(self, folder: str) -> list[Path]:
        known = FOLDERS.get(OLD_NAMES.get(folder, folder))
        if known is None:
            near = did_you_mean(folder, FOLDERS)
            raise ModelFileError(
                f"there is no folder {folder[:100]!r} of model files{near}; there are {', '.join(FOLDERS)}"
            )
        return [self._root / name for name in known]


def _suffixes(folder: str) -> tuple[str, ...]:
    return SUFFIXES + TENSOR_PICKLES.get(folder, ())


def _walk(directory: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield model files below a directory. Links are followed, except to a folder that holds them."""
    stack: list[tuple[Path, str, tuple[str, ...]]] = [(directory, "", ())]
    while stack:
        current, prefix, above = stack.pop()
        real = os.path.realpath(current)
        if real in above or len(above) > DEPTH_LIMIT:
            continue
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        stack.append((current / entry.name, f"{prefix}{entry.name}/", (*above, real)))
                    elif entry.name.lower().endswith(suffixes) and entry.is_file():
                        yield prefix + entry.name
        except OSError:  # a folder that is absent or may not be read has no files for us
            continue


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
