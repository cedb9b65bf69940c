"""Loads a recipe's part from files onto the device, and makes LoRA sets and merges.

It stores nothing: `residency` does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.control.controlnet_file import ControlFile, ControlModule
from serve_app.models.control.dit_control import DitControlNetwork
from serve_app.models.control.dit_control_file import DitControlFile, SideFile, open_control, open_model_patch
from serve_app.models.control.model_control import ModelPatch
from serve_app.models.families.family import (
    AudioVaeFamily,
    BackboneFamily,
    Family,
    ImageModelFamily,
    LatentUpscalerFamily,
    StyleFamily,
    VaeFamily,
    VisionFamily,
)
from serve_app.models.families.text_family import TextFamily, TextResources
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.file_tensor import FileTensor, noting_reads
from serve_app.models.files.layout import reverse, translate
from serve_app.models.files.parts import PART_NAMES
from serve_app.models.image_model import ImageModel
from serve_app.models.kernels.compiled_blocks import reason_against
from serve_app.models.kernels.packing import (
    move_to,
    move_weights,
    parameter_shape,
    replace_parameters,
    weights_of,
)
from serve_app.models.latent_upscaler import LatentUpscaler
from serve_app.models.lora.adapters import Adapter, Other, WeightScale
from serve_app.models.lora.layers import LoraSet, parameters, with_merged
from serve_app.models.lora.layouts import read
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.models.quantization.half_precision_text import ITEMSIZE, keep, round_weights
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.upscaler import Upscaler, UpscalerFile
from serve_app.models.vae import Vae
from serve_app.models.vision import ImageEncoder, StyleModel
from serve_app.models.weights.deallocation import free_network
from serve_app.models.weights.dtypes import dtype_of
from serve_app.models.weights.load_progress import LoadProgress, unread_bytes
from serve_app.models.weights.mixture import Adapted, Mixture, added
from serve_app.models.weights.recipes import Change, WeightFiles
from serve_app.models.weights.sharded_blocks import ShardedBlocks
from serve_app.models.weights.streaming import Streaming
from serve_app.models.weights.upload import Ring, uploading
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.training import Discrete, Training
from serve_app.recipe.weights import (
    DEFAULT_DTYPE,
    ComputedIn,
    EightBit,
    Lora,
    Merge,
    Rounded,
    Scale,
    Towards,
    WeightChange,
)
from serve_app.store.models.catalog import Catalog

_log = log.get("models")

Stream: TypeAlias = Callable[[nn.Module, torch.dtype | None, str], Streaming | ShardedBlocks]
"""Moves blocks of a network from its file to where they are kept, to run in a dtype. The name is for errors."""

UNSAID = Discrete()
"""Training of parts that are no backbones."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A part on the device. key: of its weights. family: None where the module itself identifies it.

    module: a network, or a whole upscaler. trained_as: what a backbone's file says of its training. remarks: what users
    should know of the weights. streaming: of a network that is not all on the device. shared: the network that `module`
    has some of its tensors from, if it is another's with changes. options: of a backbone's forwards. sources: as
    `source`; empty for none.
    """

    key: Hashable
    name: str
    part: Part
    module: Any
    family: Family | None = None
    trained_as: Training = UNSAID
    remarks: tuple[str, ...] = ()
    streaming: Streaming | ShardedBlocks | None = None
    shared: Any = None
    options: ForwardOptions | None = None
    sources: Sequence[FileTensor | None] = ()

    def source(self, number: int) -> FileTensor | None:
        """Return where a file has a weight's numbers, None if none has. number: in `weights_of` what is on the GPU."""
        return self.sources[number] if self.sources else None

    def close(self) -> None:
        """Free the memory of the weights, but of those that are shared, whoever still has references to them."""
        if self.streaming is not None:
            self.streaming.close()
        network = self.module if isinstance(self.module, nn.Module) else self.module.model
        free_network(network, self.name, self.shared)

    def model(self, lexicon: TextResources) -> Any:
        """Return the object for callers: a LoadedNetwork, Encoder, Vae, ImageEncoder, ControlNet and so on."""
        match self.family:
            case BackboneFamily() as family:
                return LoadedNetwork(
                    self.key,
                    family,
                    self.module,
                    self.trained_as,
                    streamed=self.streaming is not None,
                    options=self.options,
                    shards=self.streaming if isinstance(self.streaming, ShardedBlocks) else None,
                )
            case TextFamily() as family:
                return family.encoder(self.module, lexicon)
            case VaeFamily() as family:
                return Vae(family, self.module)
            case AudioVaeFamily() as family:
                return AudioVae(family, self.module)
            case LatentUpscalerFamily() as family:
                return LatentUpscaler(family, self.module)
            case ImageModelFamily() as family:
                return ImageModel(family, self.module)
            case VisionFamily() as family:
                return ImageEncoder(family, self.module)
            case StyleFamily() as family:
                return StyleModel(family, self.module)
        if self.part == "controlnet":
            module: ControlModule | DitControlNetwork = self.module
            return module.control_net(self.key, self.name)
        if self.part == "model_patch":
            return ModelPatch(self.name, self.module)
        return Upscaler(self.module)


class Loader:
    """Loads parts onto one device.

    dtype: of all parts but VAEs and upscalers, as `dtype_of` reads it; vae_dtype: of VAEs and latent
    upscalers. Text encoders always compute in float32, as ComfyUI's; their weights are rounded to dtype, for auto to
    float16. fp8_matmul: whether fp8 layers of backbones multiply in fp8, where files allow it; None: where files mark
    their layers. options: of backbones' forwards. Errors: ConfigError for dtypes; of what reads files: ModelFileError.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: str,
        vae_dtype: str,
        fp8_matmul: bool | None = False,
        options: ForwardOptions | None = None,
    ) -> None:
        self.device = device
        self._options = options or ForwardOptions()
        self._fp8_matmul = fp8_matmul
        self._dtypes: dict[Part, str] = {
            "backbone": dtype,
            "clip": dtype,
            "vae": vae_dtype,
            "audio_vae": "fp32",
            "latent_upscaler": vae_dtype,
            "depth_estimator": dtype,
            "geometry_estimator": dtype,
            "background_remover": dtype,
            "frame_interpolator": dtype,
            "controlnet": dtype,
            "clip_vision": dtype,
            "style_model": dtype,
            "model_patch": dtype,
            "upscaler": "fp32",
        }
        for part, name in self._dtypes.items():
            dtype_of(name, part, device)
        self._text_dtype = torch.float16 if dtype == "auto" else dtype_of(dtype, "clip", device)
        self.ring = Ring(device) if device.type == "cuda" else None
        self.under_way: LoadProgress | None = None
        """How far the part is read that a thread loads at the moment."""

    def nbytes(self, recipe: Recipe, files: WeightFiles) -> int:
        """Return how many bytes a part will take."""
        match _open(recipe, files.paths):
            case UpscalerFile() as file, _:
                return file.elements() * self._dtype(recipe).itemsize
            case (ControlFile() | SideFile()) as file, _:
                return file.elements() * self._side_dtype(file).itemsize
            case Checkpoint() as file, others:
                dtype = self._dtype(recipe, file.family(recipe.part, others, recipe.loaded_as))
                return file.nbytes(
                    recipe.part,
                    others,
                    dtype=dtype,
                    rounded=_rounded(recipe),
                    loaded_as=recipe.loaded_as,
                    mixed=bool(files.changes),
                    sixteen_bits=self._keeps(recipe),
                )
        raise AssertionError

    def outline(self, recipe: Recipe, files: WeightFiles) -> tuple[Family, nn.Module]:
        """Return a part's family, and its network as it is on the device but without numbers, on the meta device.

        Nothing but headers is read, and scales of quantized weights. LoRAs and merges are left out.
        """
        file, others = _open(recipe, files.paths)
        assert isinstance(file, Checkpoint)
        family, module = file.load(recipe.part, others, _rounded(recipe), recipe.loaded_as)
        staying = [*widened(module, family), *(keep(module) if self._keeps(recipe) else ())]
        meta = torch.device("meta")

        def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=meta)

        move_weights(module.modules(), send, meta, self._dtype(recipe, family), {*map(id, staying)})
        self._choose_products(recipe, module)
        return family, module

    def load(self, recipe: Recipe, files: WeightFiles, stream: Stream | None = None) -> Loaded:
        """Return a part on the device, except the blocks that `stream` moves, for a backbone or text encoder.

        Errors: of `stream`.
        """
        name = f"{recipe.part} {recipe.folder}/{' + '.join((recipe.name, *recipe.extra_files))}"
        loaded = Loaded(files.key, name, recipe.part, None, options=self._options)
        file, _ = _open(recipe, files.paths)
        match file:
            case UpscalerFile():
                # Some upscalers compute a convolution's weight during the forward, which a packed convolution lacks.
                return replace(loaded, module=file.load(self.device, self._dtype(recipe), self.ring))
            case ControlFile() | SideFile():
                dtype = self._side_dtype(file)
                module: nn.Module = file.load(self.device, dtype, self.ring)
                move_to(module, self.device, dtype, self.ring)
                return replace(loaded, module=module)
        training = file.training() if recipe.part == "backbone" else UNSAID
        mixed = mixture(recipe, files)
        self.under_way = LoadProgress(recipe.name, unread_bytes(mixed.module.modules()))
        try:
            with noting_reads(self.under_way.add):
                return self._on_device(replace(loaded, trained_as=training), recipe, files, mixed, stream)
        finally:
            self.under_way = None

    def _on_device(
        self, loaded: Loaded, recipe: Recipe, files: WeightFiles, mixed: Mixture, stream: Stream | None
    ) -> Loaded:
        """Return what is loaded with a mixture's network on the device, as `load`."""
        dtype = self._dtype(recipe, mixed.family)
        is_text = recipe.part == "clip"
        module = mixed.module
        if files.changes:
            device, ring = (self.device, self.ring) if stream is None else (torch.device("cpu"), None)
            with uploading(device, ring) as send:
                module = mixed.build(send, self._text_dtype if is_text else dtype)
        if is_text:
            round_weights(module, self._text_dtype)
        staying = [*widened(module, mixed.family), *(keep(module) if self._keeps(recipe) else ())]
        streaming = None
        if stream is None:
            sources = self._sources(module.modules())
            compiles = recipe.part == "backbone" and self._options.compiled and reason_against(module) is None
            # Inductor has no code for packed weights.
            move_to(module, self.device, dtype, self.ring, staying, packs=not compiles)
        else:
            streaming, sources = self._streamed(module, dtype, staying, stream, loaded.name)
        self._choose_products(recipe, module)
        remarks = tuple(mixed.remarks)
        return replace(
            loaded,
            module=module,
            family=mixed.family,
            remarks=remarks,
            streaming=streaming,
            sources=sources,
        )

    def _choose_products(self, recipe: Recipe, module: nn.Module) -> None:
        """Have a backbone's fp8 layers multiply in fp8 where the device and the file allow it."""
        if self._fp8_matmul is not False and recipe.part == "backbone":
            for layer in module.modules():
                if isinstance(layer, QuantizedLinear):
                    layer.in_eight_bits = self._fp8_matmul or layer.quantized.may_multiply is True

    def _sources(self, layers: Iterable[nn.Module]) -> Sequence[FileTensor | None]:
        """Return where files have the numbers of layers' weights, which are not on a GPU yet but will be."""
        if self.ring is None:
            return ()
        return [tensor if isinstance(tensor, FileTensor) else None for tensor in weights_of(layers)]

    def _streamed(
        self, module: nn.Module, dtype: torch.dtype, staying: Sequence[nn.Parameter], stream: Stream, name: str
    ) -> tuple[Streaming | ShardedBlocks, Sequence[FileTensor | None]]:
        """Return what streams of a network or is sharded, and the sources of the weights that are not."""
        if stay := {id(parameter) for parameter in staying}:
            # Few of its weights have another dtype: they are converted here.
            replace_parameters(module.modules(), lambda p: p.data if id(p) in stay else p.data.to(dtype))
        converted = None if stay else dtype
        streaming = stream(module, converted, name)
        sources = self._sources(streaming.resident)
        try:
            with uploading(self.device, self.ring) as send:
                move_weights(streaming.resident, send, self.device, converted)
            streaming.allocate_slots()
        except BaseException:
            streaming.close()
            raise
        return streaming, sources

    def lora_bytes(self, recipe: Recipe, files: WeightFiles, of_set: WeightFiles) -> int:
        """Return how many bytes a LoRA set will take beyond its part; nothing needs to be loaded for that."""
        file, others = _open(recipe, files.paths)
        assert isinstance(file, Checkpoint)
        family = file.family(recipe.part, others, recipe.loaded_as)
        empty = family.empty().to(self._dtype(recipe, family))
        stack, _ = _stack(recipe.part, of_set.changes, family, empty, shapes_alone=True)
        loras = LoraSet(files.key, empty, stack)
        return loras.needed_bytes if recipe.part == "backbone" else loras.merged_bytes

    def lora_set(
        self, recipe: Recipe, base: Loaded, files: WeightFiles, may_take: Callable[[int], bool]
    ) -> tuple[LoraSet, str, tuple[str, ...]]:
        """Return a recipe's LoRA set on its part, its name, and remarks on tensors that fit nowhere.

        may_take: as `LoraSet`.
        """
        assert base.family is not None
        stack, remarks = _stack(recipe.part, files.changes, base.family, base.module)
        stored_as = self._text_dtype if recipe.part == "clip" else None
        bypassing = sum(isinstance(change.patch, Lora) and change.patch.bypass for change in files.changes)
        made = LoraSet(
            files.key,
            base.module,
            stack,
            may_take=may_take,
            stored_as=stored_as,
            bypassing=bypassing,
            ring=self.ring,
        )
        return made, f"{base.name} + {' + '.join(_shown(change.patch) for change in files.changes)}", remarks

    def merged(self, base: Loaded, loras: LoraSet) -> Loaded:
        """Return a part with a set's merged weights where the set changes it, and shared ones elsewhere."""
        loras.merge_all()
        return replace(base, module=with_merged(base.module, loras), shared=base.module)

    def _keeps(self, recipe: Recipe) -> bool:
        """Whether a part's weights stay in sixteen bits though it computes in more."""
        return recipe.part == "clip" and self._text_dtype.itemsize == ITEMSIZE

    def _side_dtype(self, file: ControlFile | SideFile) -> torch.dtype:
        return dtype_of(self._dtypes["controlnet"], "controlnet", self.device, file.dtypes)

    def _dtype(self, recipe: Recipe, family: Family | None = None) -> torch.dtype:
        if recipe.part == "clip":
            return torch.float32
        preferred = (torch.float16,) if family is None else family.dtypes
        asked, part = recipe.last(ComputedIn), recipe.part
        if isinstance(family, AudioVaeFamily):
            return torch.float32
        name = self._dtypes[part] if asked is None or asked.dtype == DEFAULT_DTYPE else asked.dtype
        return dtype_of(name, part, self.device, preferred)


def control_file(catalog: Catalog, recipe: Recipe) -> ControlFile | DitControlFile:
    """Return a ControlNet's file, opened. Errors: ModelFileError."""
    return open_control(Checkpoint(catalog.paths(recipe.folder, recipe.name, recipe.part)[0]))


def _open(
    recipe: Recipe, paths: Sequence[Path]
) -> tuple[Checkpoint | UpscalerFile | ControlFile | SideFile, Sequence[Checkpoint]]:
    """Return a part's file, and its extra files."""
    others = [Checkpoint(path) for path in paths[1:]]
    if recipe.part == "upscaler":
        return UpscalerFile(paths[0]), others
    file = Checkpoint(paths[0])
    if recipe.part == "model_patch":
        return open_model_patch(file), others
    return (open_control(file, others) if recipe.part == "controlnet" else file), others


def widened(network: nn.Module, family: Family) -> list[nn.Parameter]:
    """Return the parameters of a network that its family keeps in float32, converted where they are stored narrower."""
    single = [parameter for name, parameter in network.named_parameters() if family.single(name)]
    for parameter in single:
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)
    return single


def _rounded(recipe: Recipe) -> EightBit | None:
    rounded = recipe.last(Rounded)
    return None if rounded is None else rounded.to


def mixture(recipe: Recipe, files: WeightFiles) -> Mixture:
    """Return the weights of a recipe's files with all changes of `files`. Errors: ModelFileError."""
    file, others = _open(recipe, files.paths)
    if not isinstance(file, Checkpoint):
        raise ModelFileError(f"weights of '{recipe.name}', a model of the kind {recipe.part}, are not merged or saved")
    family, module = file.load(recipe.part, others, _rounded(recipe), recipe.loaded_as)
    made = Mixture(" + ".join(one.where for one in (file, *others)), family, module)
    for change in files.changes:
        match change.patch:
            case Merge(other=other, shares=shares):
                beneath = mixture(other, change.files)
                made.add(added(made, beneath, shares))
                made.remarks += beneath.remarks
            case _:
                [(adapters, strength)], remarks = _stack(recipe.part, [change], family, module)
                made.add(Adapted(adapters, strength))
                made.remarks += remarks
    return made


def _stack(
    part: Part, changes: Sequence[Change], family: Family, module: nn.Module, *, shapes_alone: bool = False
) -> tuple[list[tuple[dict[str, Adapter], float]], tuple[str, ...]]:
    """Return the tensors of each LoRA or scaling for a network, its strength, and remarks on what fits nowhere.

    shapes_alone: the tensors of LoRAs stay in their files.
    """
    of_network = parameters(module)
    stack: list[tuple[dict[str, Adapter], float]] = []
    remarks: list[str] = []
    for change in changes:
        match change.patch:
            case Lora(strength=strength):
                names = family.lora_names(of_network)
                found = read(Checkpoint(change.files.paths[0]), names, part, shapes_alone=shapes_alone)
                stack.append((found.adapters, strength))
                remarks += [found.remark] if found.remark else []
            case Towards(other=other, strength=strength):
                beneath = mixture(other, change.files)
                theirs = set(beneath.names)
                fits = [n for n in of_network if n in theirs and beneath.shape(n) == parameter_shape(module, n)]
                stack.append(({name: Other(partial(beneath.tensor, name)) for name in fits}, strength))
                if len(fits) < len(of_network):
                    of = f"{len(fits)} of the {len(of_network)} weights of this {PART_NAMES[part]}"
                    remarks.append(f"'{other.name}' has {of}; the others stay as they are")
            case Scale(factors=factors):
                scaled = {
                    name: WeightScale(by)
                    for name, known_as in _comfyui_names(part, family, of_network)
                    for end, by in factors
                    if known_as.rpartition(".")[0].endswith(end)
                }
                stack.append((dict(scaled), 1.0))
                remarks += [] if scaled else [f"no layer of this {PART_NAMES[part]} is one that attention is scaled in"]
    return stack, tuple(remarks)


def _comfyui_names(part: Part, family: Family, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a network's names and ComfyUI's, which for a backbone are the published file's."""
    published = reverse(family.table()) if part == "backbone" else {}
    for name in names:
        yield name, (translate(name, published) or "") if published else name


def _shown(patch: WeightChange) -> str:
    return f"{patch.name} {patch.strength:g}" if isinstance(patch, Lora) else type(patch).__name__.lower()
