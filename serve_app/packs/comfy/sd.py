"""`comfy.sd` for node packs: CLIP and VAE as objects, and loading by a path. Each is a recipe that the runtime runs.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.packs import folder_paths
from serve_app.packs.comfy.clip_tokens import ClipModel, Tokens, model_of, text_of
from serve_app.packs.comfy.model_management import get_torch_device
from serve_app.packs.comfy.model_patcher import LoadedLora, ModelPatcher
from serve_app.packs.comfy.utils import TensorFile
from serve_app.packs.missing import MissingMemberError, MissingNameError
from serve_app.packs.waiting import run_on_loop, runtime
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip, LoadedAs, T5Padding
from serve_app.recipe.weights import Lora
from serve_app.values import Conditioning, Text, Tiling


class CLIP:
    """A CLIP on a link, for packs."""

    def __init__(self, recipe: Recipe | None = None, *arguments: Any, **options: Any) -> None:
        if not isinstance(recipe, Recipe):
            raise MissingNameError("comfy.sd.CLIP(target)")
        self.recipe = recipe

    @property
    def patcher(self) -> ModelPatcher:
        """The object that has devices and clones."""
        made = ModelPatcher(None)
        made.recipe = self.recipe
        return made

    def clone(self, *arguments: Any, **options: Any) -> CLIP:
        """Return a copy."""
        return type(self)(self.recipe)

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> list[str]:
        """Add a LoRA, as `ModelPatcher.add_patches`."""
        patcher = self.patcher
        changed = patcher.add_patches(patches, strength_patch, strength_model)
        assert patcher.recipe is not None
        self.recipe = patcher.recipe
        return changed

    def clip_layer(self, layer_idx: int) -> None:
        """Stop at a hidden layer, −1 the last."""
        self.recipe = self.recipe.with_patch(ClipSkip(layer_idx))

    def set_tokenizer_option(self, option_name: str, value: Any) -> None:
        """Set the padding of T5's tokens. Errors: MissingMemberError for other options."""
        before = self.recipe.last(T5Padding) or T5Padding(0, 0)
        numbers = {"min_padding": before.pads, "min_length": before.length}
        if option_name not in numbers:
            raise MissingMemberError(f"comfy.sd.CLIP.set_tokenizer_option({option_name!r})")
        numbers[option_name] = int(value)
        self.recipe = self.recipe.with_patch(T5Padding(numbers["min_padding"], numbers["min_length"]))

    def tokenize(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, Any]:
        """Return each encoder's tokens, by its name. Errors: MissingMemberError for images and templates."""
        if given := sorted(name for name, value in options.items() if value):
            raise MissingMemberError(f"comfy.sd.CLIP.tokenize(…, {given[0]}=…)")
        found: list[Any] = []

        def look() -> Mapping[str, Any] | None:
            if not found:
                found.append(run_on_loop(runtime("CLIP.tokenize").tokens(self.recipe, text), "CLIP.tokenize"))
            of_text: Mapping[str, Any] | None = found[0]
            if of_text is None or return_word_ids:
                return of_text
            return {key: [[pair[:2] for pair in chunk] for chunk in chunks] for key, chunks in of_text.items()}

        return {key: Tokens(text, partial(_of_key, look, key)) for key in self._keys()}

    def _keys(self) -> tuple[str, ...]:
        family = run_on_loop(runtime("CLIP.tokenize").family(self.recipe), "CLIP.tokenize")
        if members := tuple(getattr(family, "members", {})):
            return members
        return (getattr(family, "kind", None) or getattr(family, "name", "l").lower(),)

    @property
    def cond_stage_model(self) -> ClipModel:
        """The encoders, which take tokens."""
        return model_of(self._keys(), lambda text: self._pair(self._encoded(text)))

    @property
    def layer_idx(self) -> int | None:
        """The hidden layer to stop at, None the usual one."""
        skip = self.recipe.last(ClipSkip)
        return None if skip is None else skip.stop_at

    @staticmethod
    def _pair(encoded: Conditioning) -> tuple[Tensor, Any]:
        [(cond, options)] = encoded
        return cond, options.get("pooled_output")

    def encode_from_tokens_scheduled(
        self,
        tokens: Mapping[str, Any],
        unprojected: bool = False,
        add_dict: Mapping[str, Any] | None = None,
        show_pbar: bool = True,
    ) -> list[list[Any]]:
        """Return the conditioning of what `tokenize` gave. add_dict: more options of its entries."""
        return [[cond, {**options, **(add_dict or {})}] for cond, options in self._encoded(text_of(tokens))]

    def encode_from_tokens(
        self, tokens: Mapping[str, Any], return_pooled: Any = False, return_dict: bool = False
    ) -> Any:
        """Return the cond; (cond, pooled) with return_pooled; all that is known as a dict with return_dict."""
        [(cond, options)] = self._encoded(text_of(tokens))
        if return_dict:
            return {"cond": cond, **options}
        return (cond, options.get("pooled_output")) if return_pooled else cond

    def encode(self, text: str) -> Any:
        """Return a text's cond."""
        return self.encode_from_tokens(self.tokenize(text))

    def _encoded(self, text: Text) -> Conditioning:
        return run_on_loop(runtime("CLIP.encode").encode_text(self.recipe, text), "CLIP.encode")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.sd.CLIP.{name}")


def _of_key(look: Callable[[], Mapping[str, Any] | None], key: str) -> Any:
    of_text = look()
    return None if of_text is None else of_text[key]


class VAE:
    """A VAE on a link, for packs. sd: the tensors of a file, from `load_torch_file`."""

    def __init__(
        self, sd: Any = None, device: Any = None, config: Any = None, dtype: Any = None, metadata: Any = None
    ) -> None:
        self.recipe = sd if isinstance(sd, Recipe) else Recipe("vae", *place_of(sd, "vae"))
        self.device = get_torch_device()
        self.output_device = torch.device("cpu")
        self.vae_dtype = torch.float32

    @property
    def patcher(self) -> ModelPatcher:
        """What packs ask for devices."""
        made = ModelPatcher(None)
        made.recipe = self.recipe
        return made

    def _family(self) -> Any:
        return run_on_loop(runtime("VAE").family(self.recipe), "VAE")

    @property
    def latent_channels(self) -> int:
        channels: int = self._family().latent_channels
        return channels

    @property
    def downscale_ratio(self) -> int:
        ratio: int = self._family().factor
        return ratio

    upscale_ratio = downscale_ratio

    def spacial_compression_decode(self) -> int:
        """Return pixels that a latent cell covers along one side."""
        return self.downscale_ratio

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> int | None:
        """Return how many images of a video a latent covers, None for images alone."""
        return self._family().frames or None

    def throw_exception_if_invalid(self) -> None:
        """Do nothing: a file that is none fails when it is used."""

    def decode(self, samples: Tensor, vae_options: Any = None) -> Tensor:
        """Return images (B,H,W,C) from latents."""
        return run_on_loop(runtime("VAE.decode").decode(self.recipe, samples), "VAE.decode")

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Return images from latents, tile by tile, which are square here; all numbers are of latent cells."""
        family = self._family()
        size = max(tile_x or 64, tile_y or 64) * family.factor
        frames, shared_frames = ((moments or 0) * family.frames for moments in (tile_t, overlap_t))
        tiling = Tiling(size, (16 if overlap is None else overlap) * family.factor, frames, shared_frames)
        return run_on_loop(runtime("VAE.decode_tiled").decode(self.recipe, samples, tiling), "VAE.decode_tiled")

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Return latents from images (B,H,W,C)."""
        return run_on_loop(runtime("VAE.encode").encode(self.recipe, pixel_samples[..., :3]), "VAE.encode")

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Return latents from images, tile by tile, which are square here; all numbers are of pixels and images."""
        size = max(tile_x or 512, tile_y or 512)
        tiling = Tiling(size, 64 if overlap is None else overlap, tile_t or 0, overlap_t or 0)
        return run_on_loop(
            runtime("VAE.encode_tiled").encode(self.recipe, pixel_samples[..., :3], tiling), "VAE.encode_tiled"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "recipe":
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.sd.VAE.{name}")


class CLIPType(Enum):
    """The model types of text encoders."""

    STABLE_DIFFUSION = 1
    STABLE_CASCADE = 2
    SD3 = 3
    STABLE_AUDIO = 4
    HUNYUAN_DIT = 5
    FLUX = 6
    MOCHI = 7
    LTXV = 8
    HUNYUAN_VIDEO = 9
    PIXART = 10
    COSMOS = 11
    LUMINA2 = 12
    WAN = 13
    HIDREAM = 14
    CHROMA = 15
    ACE = 16
    OMNIGEN2 = 17
    QWEN_IMAGE = 18
    HUNYUAN_IMAGE = 19
    FLUX2 = 25


def place_of(given: Any, *folders: str) -> tuple[str, str]:
    """Return (folder, name) of a model file, given by its path or by its tensors from `load_torch_file`.

    folders: where it may be. Errors: MissingNameError for tensors of no file, NodeError for a file elsewhere.
    """
    path = given.path if isinstance(given, TensorFile) else given
    if not isinstance(path, str | Path):
        raise MissingNameError("loading a model of tensors in memory, which are of no file,")
    for folder in folders:
        for directory in folder_paths.get_folder_paths(folder):
            if Path(path).is_relative_to(directory):
                return folder, Path(path).relative_to(directory).as_posix()
    raise NodeError(f"{Path(path).name} is in none of the folders {', '.join(folders)}, where the server loads it from")


def load_checkpoint_guess_config(
    ckpt_path: Any,
    output_vae: bool = True,
    output_clip: bool = True,
    output_clipvision: bool = False,
    embedding_directory: Any = None,
    output_model: bool = True,
    **options: Any,
) -> tuple[ModelPatcher | None, CLIP | None, VAE | None, None]:
    """Return (model, clip, vae, clip vision) of a checkpoint; the last is always None."""
    place = place_of(ckpt_path, "checkpoints")
    model = ModelPatcher.of(Recipe("backbone", *place)) if output_model else None
    clip = CLIP(Recipe("clip", *place)) if output_clip else None
    return model, clip, VAE(Recipe("vae", *place)) if output_vae else None, None


def load_checkpoint(
    config_path: Any = None, ckpt_path: Any = None, output_vae: bool = True, output_clip: bool = True, **options: Any
) -> tuple[ModelPatcher | None, CLIP | None, VAE | None]:
    """Return (model, clip, vae) of a checkpoint; the file is read for what it is."""
    return load_checkpoint_guess_config(ckpt_path, output_vae, output_clip)[:3]


def load_diffusion_model(unet_path: Any, model_options: Any = None, **options: Any) -> ModelPatcher:
    """Return a diffusion model of a file of its own. Errors: MissingMemberError for a dtype of eight bits."""
    if dtype := (model_options or {}).get("dtype"):
        raise MissingMemberError(f"comfy.sd.load_diffusion_model(…, {{'dtype': {dtype}}})")
    return ModelPatcher.of(Recipe("backbone", *place_of(unet_path, "diffusion_models")))


def load_unet(unet_path: Any, dtype: Any = None) -> ModelPatcher:
    """Return a diffusion model of a file of its own."""
    return load_diffusion_model(unet_path)


def load_clip(
    ckpt_paths: Sequence[Any],
    embedding_directory: Any = None,
    clip_type: CLIPType = CLIPType.STABLE_DIFFUSION,
    model_options: Any = None,
    **options: Any,
) -> CLIP:
    """Return text encoders of files of their own."""
    (folder, name), *beside = [place_of(path, "text_encoders") for path in ckpt_paths]
    recipe = Recipe("clip", folder, name, extra_files=tuple(other for _, other in beside))
    usual = clip_type is CLIPType.STABLE_DIFFUSION
    return CLIP(recipe if usual else recipe.with_patch(LoadedAs(clip_type.name.lower())))


def load_lora_for_models(
    model: ModelPatcher | None,
    clip: CLIP | None,
    lora: Any,
    strength_model: float,
    strength_clip: float,
    lora_metadata: Any = None,
) -> tuple[ModelPatcher | None, CLIP | None]:
    """Return both with a LoRA, given as the tensors of a file in the folder "loras"."""
    _, name = place_of(lora, "loras")
    model, clip = None if model is None else model.clone(), None if clip is None else clip.clone()
    if model is not None and model.recipe is not None and strength_model:
        model.recipe = model.recipe.with_patch(Lora(name, strength_model))
    if clip is not None and strength_clip:
        clip.recipe = clip.recipe.with_patch(Lora(name, strength_clip))
    return model, clip


def load_lora(lora: Any, to_load: Any = None, log_missing: bool = True) -> LoadedLora:
    """Return a LoRA, given as the tensors of a file in the folder "loras", for `add_patches`."""
    return LoadedLora(place_of(lora, "loras")[1])


def model_lora_keys_unet(model: Any, key_map: Any = None) -> Any:
    """Return the map as it is: the runtime knows which names in a file are of which layers."""
    return {} if key_map is None else key_map


model_lora_keys_clip = model_lora_keys_unet

LORA: Mapping[str, Any] = {
    "load_lora": load_lora,
    "model_lora_keys_unet": model_lora_keys_unet,
    "model_lora_keys_clip": model_lora_keys_clip,
}
"""What `comfy.lora` has."""

NAMES: Mapping[str, Any] = {
    function.__name__: function
    for function in (
        CLIP,
        VAE,
        CLIPType,
        load_checkpoint,
        load_checkpoint_guess_config,
        load_diffusion_model,
        load_unet,
        load_clip,
        load_lora_for_models,
    )
}
"""What `comfy.sd` has."""
