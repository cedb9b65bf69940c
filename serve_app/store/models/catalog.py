"""The catalog of model files in ComfyUI's folder layout, by folder and name, on a disk or in a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from serve_app.errors import InvalidSubmissionError, ModelFileError, did_you_mean
from serve_app.store.files.store import FileStat
from serve_app.store.models.files import DEPTH_LIMIT, ModelFiles, ModelFolder
from serve_app.store.models.header import checked

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
    "latent_upscale_models": ("latent_upscale_models",),
    "geometry_estimation": ("geometry_estimation",),
    "background_removal": ("background_removal",),
    "frame_interpolation": ("frame_interpolation",),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
    "diffusers": ("diffusers",),
    "unet_gguf": ("unet", "diffusion_models"),
    "clip_gguf": ("text_encoders", "clip"),
}
"""Every folder of model files with its directories; the first directory that has a file wins."""

OLD_NAMES: Mapping[str, str] = {"clip": "text_encoders", "unet": "diffusion_models"}
"""Folder names that older workflows and node packs use."""

# The other formats ComfyUI lists (.ckpt, .pt, .bin, .pth) are pickles: reading one runs code from it.
SUFFIXES = (".safetensors", ".sft")

TENSOR_PICKLES: Mapping[str, tuple[str, ...]] = {"upscale_models": (".pth", ".pt"), "embeddings": (".pt", ".bin")}
"""Folders whose models are mostly published as pickles of nothing but tensors, which are read without running code."""

GGUF: Mapping[str, tuple[str, ...]] = {"unet_gguf": (".gguf",), "clip_gguf": (*SUFFIXES, ".gguf")}
"""The folders' names by which nodes of GGUF files list them, and the suffixes that they list."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Suffixes of the pictures of models that users keep beside them."""

DRAWING = ("checkpoints", "diffusion_models", "diffusers")
"""Folders of which one must have a model before any image can be generated."""

TINY_VAES = ("taesd", "taesdxl", "taesd3", "taef1", "taef2")
"""VAEs by the name of their family: an encoder and a decoder, each in a file of vae_approx."""
TINY_VIDEO_VAES = ("taehv", "lighttaew2_2", "lighttaew2_1", "lighttaehy1_5", "taeltx_2", "taeh3")
"""Tiny VAEs of videos, each one file of vae_approx, by its name without the suffix."""
PIXEL_SPACE = "pixel_space"
"""The VAE of models that work on pixels. Its file comes with the server."""
_PIXEL_SPACE_FILE = Path(__file__).with_name("pixel_space.safetensors")

DIFFUSERS_PARTS: Mapping[str, tuple[str, ...]] = {
    "backbone": ("unet/diffusion_pytorch_model",),
    "clip": ("text_encoder/model", "text_encoder_2/model"),
    "vae": ("vae/diffusion_pytorch_model",),
}
"""The files of a part in a folder in diffusers' layout, without what follows. Those after the first may be absent."""

DIFFUSERS_MARK = "model_index.json"
NAME_BYTES = 200
"""The longest part of a new file's name, which file systems accept with its prefix and suffix."""
_PLAIN = re.compile(r'\w[^\\:*?"<>|\x00-\x1f\x7f]*')
_DIFFUSERS_ENDS = (".fp16.safetensors", ".safetensors")


class Catalog:
    """The model files of a directory, or of `files`. Errors of a bucket: StoreError.

    directories: of every folder, in the order in which they are searched; `extra_paths` adds absolute ones.
    """

    def __init__(self, files: Path | ModelFiles, directories: Mapping[str, tuple[str, ...]] = FOLDERS) -> None:
        self.files: ModelFiles = ModelFolder(files) if isinstance(files, Path) else files
        self._directories_of = directories

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's models, sorted, subfolders with forward slashes.

        They are its files; in "diffusers" the folders with a model's parts. Errors: ModelFileError for a folder the
        layout does not have.
        """
        suffixes = (DIFFUSERS_MARK,) if folder == "diffusers" else _suffixes(folder)
        found = {name for directory in self._directories(folder) for name in self.files.names(directory, suffixes)}
        if folder == "diffusers":
            found = {name.removesuffix(f"/{DIFFUSERS_MARK}") for name in found if "/" in name}
        return sorted(found)

    def choices(self, folder: str) -> list[str]:
        """Return what a loader offers of a folder: its models, and VAEs that are no file there. Errors: as `names`."""
        if folder != "vae":
            return self.names(folder)
        approximate = self.names("vae_approx")
        halves = set(approximate)
        tiny = (n for n in TINY_VAES if {f"{n}_encoder.safetensors", f"{n}_decoder.safetensors"} <= halves)
        return [*self.names(folder), *filter(is_tiny_video_vae, approximate), *tiny, PIXEL_SPACE]

    def path(self, folder: str, name: str) -> Path:
        """Return the path of a model file on this host; one in a bucket is fetched if needed.

        Errors: ModelFileError for a file that is absent or of another format.
        """
        if (folder, name) == ("vae", PIXEL_SPACE):
            return _PIXEL_SPACE_FILE
        return self.files.path(self._existing(folder, name))

    def sibling(self, folder: str, name: str) -> Path | None:
        """Return the path of another file among a folder's models, or None."""
        found = self._find(folder, name)
        return None if found is None else self.files.path(found)

    def open(self, folder: str, name: str) -> BinaryIO:
        """Open a model file without fetching it, to read a small part. Errors: as `path`."""
        return self.files.open(self._existing(folder, name))

    def picture(self, folder: str, index: int, name: str) -> BinaryIO | None:
        """Open the preview image of a model in the folder's directory of that index, or return None. It has the model's
        name with an image's suffix or ".preview" and one. Errors: ModelFileError for an unknown folder.
        """
        directories = self._directories(folder)
        parts = name.split("/")
        if "\0" in name or name.startswith("/") or ".." in parts or not 0 <= index < len(directories):
            return None
        stem = f"{directories[index]}/{PurePosixPath(name).with_suffix('')}" if parts[-1] else ""
        found = (stem + end + suffix for end in ("", ".preview") for suffix in PICTURES)
        there = next((picture for picture in found if stem and self.files.stat(picture) is not None), None)
        return None if there is None else self.files.open(there)

    def stat(self, folder: str, name: str) -> FileStat:
        """Return a model file's size, time and tag. Errors: as `path`."""
        found = self.files.stat(self._existing(folder, name))
        if found is None:  # taken away just now
            raise self._absent(folder, name)
        return found

    def fetch(self, folder: str, name: str) -> None:
        """Fetch all files of a model to this host. Errors: as `path`, but none for absent files."""
        for found in self._all(folder, name):
            if found is not None and found.lower().endswith(_suffixes(folder)):
                self.files.path(found)

    def _existing(self, folder: str, name: str) -> str:
        if not name.lower().endswith(_suffixes(folder)):
            allowed = ", ".join(_suffixes(folder))
            raise ModelFileError(f"{_shown(folder, name)} has a format that is not read; allowed: {allowed}")
        found = self._find(folder, name)
        if found is None:
            raise self._absent(folder, name)
        return found

    def _absent(self, folder: str, name: str) -> ModelFileError:
        near = did_you_mean(name, self.choices(folder))
        return ModelFileError(f"{_shown(folder, name)} is not in {self.files}{near}")

    def paths(self, folder: str, name: str, part: str) -> list[Path]:
        """Return the files of a part of a model: one, or more of a folder in diffusers' layout. Errors: as `path`."""
        if folder != "diffusers":
            return [self.path(folder, name)]
        found = self._diffusers(name, part)
        if not found:
            wanted = DIFFUSERS_PARTS[part][0] + _DIFFUSERS_ENDS[-1]
            raise ModelFileError(f"diffusers folder {name[:300]!r} in {self.files} has no {wanted}")
        return list(map(self.files.path, found))

    def _diffusers(self, name: str, part: str) -> list[str]:
        found: list[str] = []
        for stem in DIFFUSERS_PARTS[part]:
            candidates = (self._find("diffusers", f"{name}/{stem}{end}") for end in _DIFFUSERS_ENDS)
            found += [path for path in candidates if path is not None][:1]
        return found

    def put(self, folder: str, name: str, data: Iterable[bytes]) -> None:
        """Store a new safetensors file in a folder, whole or not at all; `data` is read to its end.

        Errors: InvalidSubmissionError for a name that cannot be and for what is no such file; ModelFileError for an
        unknown folder; FileExistsError; OSError; StoreError; what data raises.
        """
        own_directories = [found for found in self._directories(folder) if not found.startswith("/")]
        parts = name.split("/")
        plain = all(_PLAIN.fullmatch(part) and len(part.encode(errors="replace")) <= NAME_BYTES for part in parts)
        if len(parts) > DEPTH_LIMIT or not plain:
            raise InvalidSubmissionError(
                f"{_shown(folder, name)} cannot be a name: parts between slashes begin with a letter, digit or _, have "
                f'none of \\ : * ? " < > | and at most {NAME_BYTES} bytes'
            )
        if folder == "diffusers" or not name.lower().endswith(SUFFIXES):
            allowed = ", ".join(SUFFIXES)
            raise InvalidSubmissionError(f"{_shown(folder, name)} cannot be uploaded; allowed are files in {allowed}")
        if self._find(folder, name) is not None:
            raise FileExistsError(name)
        own = OLD_NAMES.get(folder, folder)
        directory = own if own in own_directories else own_directories[0]
        try:
            self.files.put(f"{directory}/{name}", checked(data))
        except ModelFileError as error:
            raise InvalidSubmissionError(f"{_shown(folder, name)} {error}") from error

    def delete(self, folder: str, name: str) -> None:
        """Remove a model file. Errors: as `path`, also for one in an extra directory; OSError."""
        found = self._existing(folder, name)
        if found.startswith("/"):
            raise ModelFileError(f"{_shown(folder, name)} is in a folder of extra_model_paths, which is only read")
        self.files.delete(found)

    def fingerprint(self, folder: str, name: str) -> str:
        """Return a tag that changes with the file's content; "absent" without a file.

        A missing file is reported by the node that reads it, with its id.
        """
        return " ".join(map(self._fingerprint, self._all(folder, name)))

    def _all(self, folder: str, name: str) -> list[str | None]:
        """Return every file of a model, None for one that is absent."""
        if folder == "diffusers":
            return [found for part in DIFFUSERS_PARTS for found in self._diffusers(name, part)]
        if (folder, name) == ("vae", PIXEL_SPACE):
            return []
        if folder == "vae" and name in TINY_VAES:
            return [self._find("vae_approx", f"{name}_{half}.safetensors") for half in ("encoder", "decoder")]
        return [self._find("vae_approx" if folder == "vae" and is_tiny_video_vae(name) else folder, name)]

    def _fingerprint(self, name: str | None) -> str:
        found = self.files.stat(name) if name is not None else None
        return found.etag if found is not None else "absent"

    def directories(self, folder: str) -> list[str]:
        """Return names for the directories a folder is made of: clients do not learn where they are on the host.

        Errors: ModelFileError for an unknown folder.
        """
        directories = enumerate(self._directories(folder))
        return [f"extra/{index}" if found.startswith("/") else f"models/{found}" for index, found in directories]

    def directory_index(self, folder: str, name: str) -> int:
        """Return which of the folder's directories a file is read from. Errors: as `path`."""
        found = self._existing(folder, name)
        return next(i for i, directory in enumerate(self._directories(folder)) if found == f"{directory}/{name}")

    def _find(self, folder: str, name: str) -> str | None:
        parts = name.split("/")
        if "\0" in name or name.startswith("/") or ".." in parts:
            return None
        candidates = (f"{directory}/{name}" for directory in self._directories(folder))
        return next((found for found in candidates if self.files.stat(found) is not None), None)

    def _directories(self, folder: str) -> tuple[str, ...]:
        known = self._directories_of.get(OLD_NAMES.get(folder, folder))
        if known is None:
            near = did_you_mean(folder, FOLDERS)
            raise ModelFileError(
                f"there is no folder {folder[:100]!r} of model files{near}; there are {', '.join(FOLDERS)}"
            )
        return known


def is_tiny_video_vae(name: str) -> bool:
    """Whether a VAE's name is a file of vae_approx, as VAELoader has it."""
    return name.rpartition(".")[0] in TINY_VIDEO_VAES


def no_models(folder: Path | str = "models") -> str:
    """Return the message to users while the folders of DRAWING are empty. folder: of models, as they know it."""
    return (
        f"no model can draw yet: put a checkpoint into {folder}/checkpoints, such as "
        f"{folder}/checkpoints/sd15.safetensors; `serve-app up --demo` brings a tiny one"
    )


def _suffixes(folder: str) -> tuple[str, ...]:
    return GGUF.get(folder, SUFFIXES + TENSOR_PICKLES.get(folder, ()))


def _shown(folder: str, name: str) -> str:
    return f"{folder} file {name[:300]!r}"
