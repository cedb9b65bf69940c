"""The weights a replica holds: recipes made real, least recently used out first, within a budget of bytes.

Several recipes can share weights: those that differ only in where the text encoder stops. A model is in use as long as
a caller holds it; what is in use is not let go.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from serve_app import log
from serve_app.errors import ConfigError
from serve_app.models.backbone import Backbone
from serve_app.models.checkpoint import Checkpoint
from serve_app.models.embeddings import Embeddings
from serve_app.models.families import Architecture, TextArchitecture, UNetArchitecture, VaeArchitecture
from serve_app.models.packing import pack
from serve_app.models.text_encoder import Clip, TextEncoder
from serve_app.models.upscaler import Upscaler, UpscalerArchitecture, UpscalerFile
from serve_app.models.vae import Vae
from serve_app.store.catalog import Catalog
from serve_app.values import ClipSkip, Part, Recipe

Model: TypeAlias = Backbone | TextEncoder | Vae | Upscaler
M = TypeVar("M", Backbone, TextEncoder, Vae, Upscaler)

_log = log.get("models")


_FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def number_format(name: str, part: Part, device: torch.device) -> torch.dtype:
    """Return the dtype of a part's weights. name: fp32, fp16, bf16, or auto, which is fp32 on a CPU.

    On a GPU auto is fp16; but bf16, else fp32, for a VAE, because in fp16 some published VAEs overflow.
    Errors: ConfigError for another name, or for one that the device cannot do.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if name == "auto" and device.type == "cpu":
        name = "fp32"
    elif name == "auto":
        name = ("bf16" if has_bf16 else "fp32") if part == "vae" else "fp16"
    if name not in _FORMATS:
        raise ConfigError(f"number format '{name}' of the {part} is unknown; allowed are auto, {', '.join(_FORMATS)}")
    if name == "bf16" and not has_bf16:
        raise ConfigError(f"this GPU does not do bf16, which is set for the {part}; allowed are auto, fp32, fp16")
    return _FORMATS[name]


@dataclass(slots=True)
class _Held:
    """One part's weights. lent: the model that callers have, as long as one of them holds it."""

    name: str
    nbytes: int
    architecture: Architecture | UpscalerArchitecture
    network: nn.Module
    lent: weakref.ref[Model] | None = None

    @property
    def in_use(self) -> bool:
        return self.lent is not None and self.lent() is not None


class Weights:
    """Recipes made real on one device. Every method may be called from any thread; loading blocks its caller.

    dtype: the number format of backbones and text encoders, as `number_format` reads it; vae_dtype: that of VAEs.
    Errors: ConfigError for those; of `backbone`, `clip` and `vae`: ModelFileError.
    """

    def __init__(
        self,
        catalog: Catalog,
        device: torch.device,
        *,
        dtype: str = "auto",
        vae_dtype: str = "auto",
        budget_bytes: int = 8 * 2**30,
    ) -> None:
        self.device = device
        self._dtypes: dict[Part, torch.dtype] = {
            "backbone": number_format(dtype, "backbone", device),
            "clip": number_format(dtype, "clip", device),
            "vae": number_format(vae_dtype, "vae", device),
            "upscaler": torch.float32,
        }
        self._catalog = catalog
        self._embeddings = Embeddings(catalog)
        self._budget_bytes = budget_bytes
        self._held: dict[Hashable, _Held] = {}
        self._names: tuple[str, ...] = ()
        self._lock = Lock()

    def backbone(self, recipe: Recipe) -> Backbone:
        """Return the recipe's backbone, loading it if it is not resident."""
        return self._get(recipe, Backbone)

    def clip(self, recipe: Recipe) -> Clip:
        """Return the recipe's text encoder and the layer it stops at; the last ClipSkip counts."""
        skips = [patch for patch in recipe.patches if isinstance(patch, ClipSkip)]
        return Clip(self._get(recipe, TextEncoder), skips[-1].stop_at if skips else -1)

    def vae(self, recipe: Recipe) -> Vae:
        """Return the recipe's VAE, loading it if it is not resident."""
        return self._get(recipe, Vae)

    def upscaler(self, recipe: Recipe) -> Upscaler:
        """Return the recipe's upscaler, loading it if it is not resident."""
        return self._get(recipe, Upscaler)

    def resident(self) -> tuple[str, ...]:
        """Return "part folder/name" of what is held, least recently used first. Never waits for a load."""
        return self._names

    def fits(self, recipe: Recipe) -> bool:
        """Whether the recipe's weights can be had within the budget now.

        True if they are resident, if letting go of what nobody uses makes room, or if nothing is in use: what exceeds
        the budget by itself is loaded all the same. Errors: ModelFileError.
        """
        path, key = self._find(recipe)
        with self._lock:
            in_use = sum(held.nbytes for held in self._held.values() if held.in_use)
            return (
                key in self._held or not in_use or in_use + self._nbytes(recipe, _open(recipe, path)) <= self._budget_bytes
            )

    def _find(self, recipe: Recipe) -> tuple[Path, Hashable]:
        path = self._catalog.path(recipe.folder, recipe.name)
        stat = path.stat()
        # A file that is replaced under its name is another model.
        return path, (recipe.part, str(path), stat.st_mtime_ns, stat.st_size)

    def _nbytes(self, recipe: Recipe, file: Checkpoint | UpscalerFile) -> int:
        return file.elements(recipe.part) * self._dtypes[recipe.part].itemsize

    def _get(self, recipe: Recipe, kind: type[M]) -> M:
        path, key = self._find(recipe)
        with self._lock:
            try:
                held = self._held.pop(key, None) or self._load(recipe, _open(recipe, path))
                self._held[key] = held
            finally:
                self._names = tuple(held.name for held in self._held.values())
            model = held.lent() if held.lent is not None else None
            if model is None:
                model = self._model(key, held)
                held.lent = weakref.ref(model)
            if not isinstance(model, kind):
                raise TypeError(f"{recipe} was asked for as {kind.__name__}")
            return model

    def _load(self, recipe: Recipe, file: Checkpoint | UpscalerFile) -> _Held:
        nbytes = self._nbytes(recipe, file)
        self._make_room(nbytes)
        architecture, network = file.load(recipe.part, self.device, self._dtypes[recipe.part])
        # Some upscalers work out a convolution's weight as they run, which a packed one has not got.
        if recipe.part != "upscaler":
            pack(network)
        held = _Held(f"{recipe.part} {recipe.folder}/{recipe.name}", nbytes, architecture, network)
        _log.info("loaded %s: mb=%d held_mb=%d", held.name, nbytes >> 20, (self._held_bytes() + nbytes) >> 20)
        return held

    def _model(self, key: Hashable, held: _Held) -> Model:
        match held.architecture:
            case UNetArchitecture() as architecture:
                return Backbone(key, architecture, held.network)
            case TextArchitecture() as architecture:
                return TextEncoder(architecture, held.network, self._embeddings.vectors)
            case VaeArchitecture() as architecture:
                return Vae(architecture, held.network)
            case UpscalerArchitecture() as architecture:
                return Upscaler(architecture)

    def _make_room(self, nbytes: int) -> None:
        """Let go of what is used least recently until nbytes fit the budget, or until all that is left is in use."""
        unused = [key for key, held in self._held.items() if not held.in_use]
        while unused and self._held_bytes() + nbytes > self._budget_bytes:
            held = self._held.pop(unused.pop(0))
            _log.info("let go of %s: mb=%d", held.name, held.nbytes >> 20)
            # A network may hold cycles; without collecting, its memory would come back at some later time.
            del held
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _held_bytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())


def _open(recipe: Recipe, path: Path) -> Checkpoint | UpscalerFile:
    return UpscalerFile(path) if recipe.part == "upscaler" else Checkpoint(path)
