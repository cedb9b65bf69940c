"""The weights a replica holds: recipes made real, least recently used out first, within a budget of bytes.

Several recipes can share weights: those that differ only in where the text encoder stops, or in their LoRAs. A model is
in use as long as a caller holds it; what is in use is not let go.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TypeAlias, TypeVar, cast

import torch
from torch import nn

from serve_app import log
from serve_app.errors import ConfigError
from serve_app.models.adapters import Adapters, parameters, with_merged
from serve_app.models.backbone import Backbone
from serve_app.models.checkpoint import Checkpoint
from serve_app.models.controlnet import ControlNetwork
from serve_app.models.controlnet_file import ControlFile
from serve_app.models.embeddings import Embeddings
from serve_app.models.families import (
    Architecture,
    DualTextArchitecture,
    TextArchitecture,
    TinyVaeArchitecture,
    UNetArchitecture,
    VaeArchitecture,
)
from serve_app.models.lora import Adapter
from serve_app.models.lora_layouts import names_of, read
from serve_app.models.networks import network
from serve_app.models.packing import settle
from serve_app.models.steering import ControlNet
from serve_app.models.t2i_adapter import AdapterArchitecture, AdapterNetwork
from serve_app.models.text_encoder import Clip, DualTextEncoder, TextEncoder
from serve_app.models.upscaler import Upscaler, UpscalerArchitecture, UpscalerFile
from serve_app.models.vae import Vae
from serve_app.sampling.denoiser import trained
from serve_app.sampling.levels import Levels
from serve_app.store.catalog import Catalog
from serve_app.values import ClipSkip, Difference, Discrete, EightBit, FreeU, Lora, Part, Recipe, Rounded, Training

Model: TypeAlias = Backbone | TextEncoder | DualTextEncoder | Vae | Upscaler | ControlNet
M = TypeVar("M", Backbone, Vae, Upscaler, ControlNet)

_Files: TypeAlias = tuple[Checkpoint | UpscalerFile | ControlFile, Sequence[Checkpoint]]
"""A part's file, and those beside it."""

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
    """One part's weights, or what a set of LoRAs makes of them. own_bytes: beside those of `base` and `adapters`.

    training: what a backbone's file says it was trained on. base: the key of the part whose tensors this one shares.
    lent: the models that callers have, as long as one of them holds it.
    """

    name: str
    own_bytes: int
    architecture: Architecture | UpscalerArchitecture | AdapterArchitecture
    network: nn.Module
    training: Training
    base: Hashable = None
    adapters: Adapters | None = None
    lent: weakref.WeakValueDictionary[Hashable, Model] = field(default_factory=weakref.WeakValueDictionary)

    @property
    def nbytes(self) -> int:
        return self.own_bytes + (self.adapters.nbytes if self.adapters is not None else 0)

    @property
    def needed_bytes(self) -> int:
        return self.own_bytes + (self.adapters.needed_bytes if self.adapters is not None else 0)

    @property
    def in_use(self) -> bool:
        return len(self.lent) > 0


@dataclass(slots=True)
class LoadCounters:
    """What weights have come and gone since a replica began, and what it holds. seconds: spent loading."""

    loads: int = 0
    seconds: float = 0.0
    evictions: int = 0
    held_bytes: int = 0


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
        self.counters = LoadCounters()
        self._dtypes: dict[Part, torch.dtype] = {
            "backbone": number_format(dtype, "backbone", device),
            "clip": number_format(dtype, "clip", device),
            "vae": number_format(vae_dtype, "vae", device),
            "upscaler": torch.float32,
            "controlnet": number_format(dtype, "controlnet", device),
        }
        self._catalog = catalog
        self._embeddings = Embeddings(catalog)
        self._budget_bytes = budget_bytes
        self._held: dict[Hashable, _Held] = {}
        # What sets of LoRAs need that have been asked for, resident or not: reading that off their files takes a while.
        self._sets_bytes: dict[Hashable, int] = {}
        self._names: tuple[str, ...] = ()
        self._lock = Lock()

    def backbone(self, recipe: Recipe) -> Backbone:
        """Return the recipe's backbone, loading it if it is not resident."""
        return self._get(recipe, Backbone)

    def levels(self, recipe: Recipe) -> Levels:
        """Return the noise levels of the recipe's backbone, without loading it."""
        return trained(_training(recipe) or Checkpoint(self._find(recipe)[0][0]).training())[0]

    def clip(self, recipe: Recipe) -> Clip:
        """Return the recipe's text encoder and the layer it stops at; the last ClipSkip counts."""
        skips = [patch for patch in recipe.patches if isinstance(patch, ClipSkip)]
        encoder = self._any(recipe)
        # What a recipe's files hold is known only once they are read.
        if not isinstance(encoder, TextEncoder | DualTextEncoder):
            raise TypeError(f"{recipe} was asked for as a text encoder")
        return Clip(encoder, skips[-1].stop_at if skips else None)

    def vae(self, recipe: Recipe) -> Vae:
        """Return the recipe's VAE, loading it if it is not resident."""
        return self._get(recipe, Vae)

    def upscaler(self, recipe: Recipe) -> Upscaler:
        """Return the recipe's upscaler, loading it if it is not resident."""
        return self._get(recipe, Upscaler)

    def control_net(self, recipe: Recipe) -> ControlNet:
        """Return the ControlNet or T2I-Adapter of a recipe that `based` gave, loading it if it is not resident."""
        return self._get(recipe, ControlNet)

    def based(self, control_net: Recipe, backbone: Recipe) -> Recipe:
        """Return a ControlNet's recipe with the backbone whose weights its file changes, or with none.

        backbone: what it steers, whose weights a control-LoRA changes. Errors: ModelFileError.
        """
        file = ControlFile(Checkpoint(self._find(control_net)[0][0]))
        changed = _difference(control_net) if file.has_differences else None
        if file.needs_base:
            changed = Difference(backbone)
        own = tuple(patch for patch in control_net.patches if not isinstance(patch, Difference))
        return replace(control_net, patches=own if changed is None else (*own, changed))

    def resident(self) -> tuple[str, ...]:
        """Return "part folder/name" of what is held, least recently used first. Never waits for a load."""
        return self._names

    def fits(self, *recipes: Recipe) -> bool:
        """Whether the recipes' weights can be had together within the budget now.

        True if they are resident, if letting go of what nobody uses makes room, or if nothing is in use: what exceeds
        the budget by itself is loaded all the same. Errors: ModelFileError.
        """
        wanted: dict[Hashable, Callable[[], int]] = {}
        for recipe in recipes:
            paths, key = self._find(recipe)
            wanted[key] = partial(lambda recipe, paths: self._nbytes(recipe, _open(recipe, paths)), recipe, paths)
            if loras := _loras(recipe):
                files, set_key = self._find_loras(key, loras)
                wanted[set_key] = partial(self._set_bytes, recipe, paths, loras, files)
        with self._lock:
            in_use = sum(held.needed_bytes for held in self._held.values() if held.in_use)
            absent = [needed_bytes for key, needed_bytes in wanted.items() if key not in self._held]
            if not absent or not in_use:
                return True
            idle = sum(held.needed_bytes for key, held in self._held.items() if key in wanted and not held.in_use)
            return in_use + idle + sum(needed_bytes() for needed_bytes in absent) <= self._budget_bytes

    def _find(self, recipe: Recipe) -> tuple[list[Path], Hashable]:
        names = (recipe.name, *recipe.beside)
        paths = [path for name in names for path in self._catalog.paths(recipe.folder, name, recipe.part)]
        if (changed := _difference(recipe)) is not None:
            paths += self._find(changed.backbone)[0]
        return paths, (recipe.part, _rounded(recipe), *map(_version, paths))

    def _find_loras(self, part: Hashable, loras: Sequence[Lora]) -> tuple[list[Path], Hashable]:
        """Return the LoRAs' files, and the key of what they make of a part."""
        paths = [self._catalog.path("loras", lora.name) for lora in loras]
        files = tuple((_version(path), lora.strength) for path, lora in zip(paths, loras, strict=True))
        return paths, (part, files)

    def _set_bytes(self, recipe: Recipe, paths: Sequence[Path], loras: Sequence[Lora], files: Sequence[Path]) -> int:
        """Return what a set of LoRAs needs beside its part, neither of which has to be resident."""
        # Strengths do not matter, and there is no end of them.
        key = (recipe.part, *map(_version, (*paths, *files)))
        if key not in self._sets_bytes:
            file, *beside = map(Checkpoint, paths)
            architecture = file.architecture(recipe.part, beside)
            empty = network(architecture).to(self._dtypes[recipe.part])
            adapters = Adapters(key, empty, _stack(recipe.part, loras, files, architecture, empty))
            self._sets_bytes[key] = adapters.needed_bytes if recipe.part == "backbone" else adapters.merged_bytes
        return self._sets_bytes[key]

    def _nbytes(self, recipe: Recipe, files: _Files) -> int:
        file, beside = files
        match file:
            case Checkpoint():
                elements = file.elements(recipe.part, beside)
            case UpscalerFile():
                elements = file.elements(recipe.part)
            case ControlFile():
                elements = file.elements()
        return elements * self._dtypes[recipe.part].itemsize

    def _get(self, recipe: Recipe, kind: type[M]) -> M:
        model = self._any(recipe)
        if not isinstance(model, kind):
            raise TypeError(f"{recipe} was asked for as {kind.__name__}")
        return model

    def _any(self, recipe: Recipe) -> Model:
        paths, key = self._find(recipe)
        with self._lock:
            try:
                held = self._resident(key, lambda: self._load(recipe, _open(recipe, paths)))
                if loras := _loras(recipe):
                    held = self._with_loras(recipe, key, held, loras)
            finally:
                self.counters.held_bytes = self._held_bytes()
                self._names = tuple(held.name for held in self._held.values())
            told = _training(recipe), tuple(patch for patch in recipe.patches if isinstance(patch, FreeU))
            model = held.lent.get(told)
            if model is None:
                model = self._model(key, held, *told)
                held.lent[told] = model
                if held.base is not None:
                    self._held[held.base].lent[id(held), told] = model
            return model

    def _resident(self, key: Hashable, load: Callable[[], _Held]) -> _Held:
        """Return what is held, or load it; it is then the most recently used."""
        held = self._held.pop(key, None)
        if held is None:
            began = perf_counter()
            held = load()
            self.counters.loads += 1
            self.counters.seconds += perf_counter() - began
        self._held[key] = held
        return held

    def _with_loras(self, recipe: Recipe, key: Hashable, base: _Held, loras: tuple[Lora, ...]) -> _Held:
        """Return what LoRAs make of a part: thin layers beside a backbone, a text encoder with merged weights."""
        paths, set_key = self._find_loras(key, loras)

        def load() -> _Held:
            name = f"{base.name} + {' + '.join(f'{lora.name} {lora.strength:g}' for lora in loras)}"
            stack = _stack(recipe.part, loras, paths, base.architecture, base.network)
            # ComfyUI keeps text encoders in fp16 on every device, and so rounds what it merges.
            stored_as = torch.float16 if recipe.part == "clip" else None
            adapters = Adapters(set_key, base.network, stack, may_take=self._has_room, stored_as=stored_as)
            if recipe.part == "backbone":
                self._make_room(adapters.nbytes, keep=key)
                return _Held(name, 0, base.architecture, base.network, base.training, key, adapters)
            self._make_room(adapters.merged_bytes, keep=key)
            network = with_merged(base.network, adapters)
            return _Held(name, adapters.merged_bytes, base.architecture, network, base.training, key)

        held = self._resident(set_key, load)
        # The part comes after what was made of it, which is no use without it.
        self._held[key] = self._held.pop(key)
        return held

    def _load(self, recipe: Recipe, files: _Files) -> _Held:
        nbytes = self._nbytes(recipe, files)
        self._make_room(nbytes)
        file, beside = files
        training: Training = Discrete()
        architecture: Architecture | UpscalerArchitecture | AdapterArchitecture
        dtype = self._dtypes[recipe.part]
        if isinstance(file, Checkpoint):
            architecture, network = file.load(recipe.part, beside, _rounded(recipe))
            if recipe.part == "backbone":
                training = file.training()
            settle(network, self.device, dtype)
        elif isinstance(file, ControlFile):
            network = file.load(self.device, dtype)
            architecture = network.architecture
            settle(network, self.device, dtype)
        else:
            # Some upscalers work out a convolution's weight as they run, which a packed one has not got.
            architecture, network = file.load(recipe.part, self.device, dtype)
        name = f"{recipe.part} {recipe.folder}/{' + '.join((recipe.name, *recipe.beside))}"
        held = _Held(name, nbytes, architecture, network, training)
        _log.info("loaded %s: mb=%d held_mb=%d", held.name, nbytes >> 20, (self._held_bytes() + nbytes) >> 20)
        return held

    def _model(self, key: Hashable, held: _Held, training: Training | None, features: tuple[FreeU, ...]) -> Model:
        vectors, network = self._embeddings.vectors, held.network
        match held.architecture:
            case UNetArchitecture() if isinstance(network, ControlNetwork):
                return ControlNet(key, held.name, network)
            case AdapterArchitecture():
                return ControlNet(key, held.name, cast(AdapterNetwork, network))
            case UNetArchitecture() as architecture:
                return Backbone(
                    key,
                    architecture,
                    network,
                    trained_as=held.training,
                    training=training,
                    adapters=held.adapters,
                    features=features,
                )
            case TextArchitecture() as architecture:
                return TextEncoder(architecture, network, vectors)
            case DualTextArchitecture() as architecture:
                towers = cast(nn.ModuleDict, network)
                return DualTextEncoder(
                    TextEncoder(architecture.l, towers["l"], vectors, paired=True),
                    TextEncoder(architecture.g, towers["g"], vectors, paired=True),
                )
            case VaeArchitecture() | TinyVaeArchitecture() as architecture:
                return Vae(architecture, network)
            case UpscalerArchitecture() as architecture:
                return Upscaler(architecture)

    def release(self) -> None:
        """Let go of everything that is not in use."""
        with self._lock:
            self._make_room(self._budget_bytes + 1)

    def _make_room(self, nbytes: int, keep: Hashable = None) -> None:
        """Let go of what is used least recently until nbytes fit the budget, or until all that is left is in use."""
        if self._held_bytes() + nbytes > self._budget_bytes:
            for adapters in [held.adapters for held in self._held.values()]:
                if adapters is not None:
                    adapters.unmerge()
        unused = [key for key, held in self._held.items() if not held.in_use and key != keep]
        while unused and self._held_bytes() + nbytes > self._budget_bytes:
            key = unused.pop(0)
            for going in [key, *(other for other, held in self._held.items() if held.base == key)]:
                if (held := self._held.pop(going, None)) is not None:
                    _log.info("let go of %s: mb=%d", held.name, held.nbytes >> 20)
                    self.counters.evictions += 1
                    # A network may hold cycles; without collecting, its memory would come back at some later time.
                    del held
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _has_room(self, nbytes: int) -> bool:
        """Whether so many bytes are free without letting go of anything."""
        with self._lock:
            return self._held_bytes() + nbytes <= self._budget_bytes

    def _held_bytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())


def _open(recipe: Recipe, paths: Sequence[Path]) -> _Files:
    beside = [Checkpoint(path) for path in paths[1:]]
    if recipe.part == "upscaler":
        return UpscalerFile(paths[0]), beside
    file = Checkpoint(paths[0])
    return (ControlFile(file, beside) if recipe.part == "controlnet" else file), beside


def _version(path: Path) -> Hashable:
    # A file that is replaced under its name is another model.
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def _training(recipe: Recipe) -> Training | None:
    """Return what the recipe takes its backbone to be trained on; None leaves it to the file. The last patch counts."""
    found = [patch for patch in recipe.patches if isinstance(patch, Training)]
    return found[-1] if found else None


def _rounded(recipe: Recipe) -> EightBit | None:
    """Return the format that the recipe's weights are rounded to."""
    found = [patch for patch in recipe.patches if isinstance(patch, Rounded)]
    return found[-1].to if found else None


def _loras(recipe: Recipe) -> tuple[Lora, ...]:
    return tuple(patch for patch in recipe.patches if isinstance(patch, Lora))


def _stack(
    part: Part, loras: Sequence[Lora], files: Sequence[Path], architecture: object, module: nn.Module
) -> list[tuple[dict[str, Adapter], float]]:
    """Return what each LoRA's file has for a part's network, and its strength."""
    names = names_of(architecture, parameters(module))
    return [(read(Checkpoint(path), names, part), lora.strength) for path, lora in zip(files, loras, strict=True)]


def _difference(recipe: Recipe) -> Difference | None:
    """Return which backbone's weights the recipe's file changes; the last patch counts."""
    found = [patch for patch in recipe.patches if isinstance(patch, Difference)]
    return found[-1] if found else None
