"""`comfy.sample`, `comfy.sampler_helpers` and `latent_preview` for node packs: sampling with a noise that is given.

Source: the facts of ComfyUI 0.33's modules of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.nested_tensor import NestedTensor, Samples
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.comfy.samplers import Callback, CFGGuider, KSampler
from serve_app.packs.comfy.utils import repeat_to_batch_size
from serve_app.sampling.noise import drawn
from serve_app.values import Noise


def prepare_noise(latent_image: Samples, seed: int, noise_inds: Sequence[int] | None = None) -> Samples:
    """Return the noise of a seed for latents; noise_inds: which of the seed's sequence each takes.

    Torch's own generator begins at the seed as well: packs draw on from it.
    """
    torch.manual_seed(seed)
    indices = None if noise_inds is None else [int(i) for i in noise_inds]
    return drawn(Noise(seed), latent_image, indices).to(latent_image.dtype)


def prepare_empty_noise(latent_image: Samples) -> Samples:
    """Return no noise for latents."""
    return drawn(Noise(0, added=False), latent_image).to(latent_image.dtype)


def cat_nested(tensors: Sequence[NestedTensor], dim: int = 0) -> NestedTensor:
    """Return these after each other along an axis, part by part."""
    return NestedTensor([torch.cat(parts, dim) for parts in zip(*(one.tensors for one in tensors), strict=True)])


def fix_empty_latent_channels(
    model: ModelPatcher, latent_image: Samples, downscale_ratio_spacial: int | None = None, *more: Any, **options: Any
) -> Samples:
    """Return latents with the model's channels where they are empty."""
    accepted: Samples = model.get_model_object("latent_format").accept(latent_image, downscale_ratio_spacial)
    return accepted


def sample(
    model: ModelPatcher,
    noise: Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
    noise_mask: Tensor | None = None,
    sigmas: Tensor | None = None,
    callback: Callback | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Sample as the nodes KSampler and KSamplerAdvanced do, or a window of a part of the schedule."""
    sampler = KSampler(model, steps, None, sampler_name, scheduler, denoise)
    return sampler.sample(
        noise,
        positive,
        negative,
        cfg,
        latent_image,
        start_step,
        last_step,
        force_full_denoise,
        noise_mask,
        sigmas,
        callback,
        disable_pbar,
        seed,
    )


def sample_custom(
    model: ModelPatcher,
    noise: Tensor,
    cfg: float,
    sampler: Any,
    sigmas: Tensor,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    noise_mask: Tensor | None = None,
    callback: Callback | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Sample over any sigmas with any sampler."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampled: Tensor = guider.sample(noise, latent_image, sampler, sigmas, noise_mask, callback, disable_pbar, seed)
    return sampled


sample._asks_for_runtime = sample_custom._asks_for_runtime = True  # type: ignore[attr-defined]


def prepare_mask(noise_mask: Tensor, shape: Sequence[int], device: Any) -> Tensor:
    """Return masks of pixels as (B,C,h,w), on a device."""
    planes = noise_mask.reshape(-1, 1, *noise_mask.shape[-2:]).float()
    resized = interpolate(planes, size=tuple(shape[-2:]), mode="bilinear").expand(-1, shape[1], -1, -1)
    return repeat_to_batch_size(resized, shape[0]).to(device)


def convert_cond(cond: Any) -> list[dict[str, Any]]:
    """Return a conditioning's entries as dicts, with the cond among the options."""
    return [{**options, "cross_attn": text, "model_conds": {}} for text, options in cond]


def get_additional_models(conds: Any, dtype: Any) -> tuple[list[Any], int]:
    """Return nothing: what is loaded beside a model is the runtime's affair."""
    return [], 0


def cleanup_additional_models(models: Any) -> None:
    """Do nothing, likewise."""


class LatentPreviewMethod(Enum):
    """The preview method of sampling steps."""

    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"

    @classmethod
    def from_string(cls, value: str) -> LatentPreviewMethod | None:
        """Return the method of a name, None for an unknown one."""
        return next((method for method in cls if method.value == value), None)


def get_previewer(device: Any, latent_format: Any) -> None:
    """Return None: the server itself sends previews to clients."""


def prepare_callback(
    model: ModelPatcher, steps: int, x0_output_dict: dict[str, Any] | None = None
) -> Callable[[int, Tensor, Tensor, int], None]:
    """Return what is called after each step; x0_output_dict: where it leaves the estimate as "x0"."""

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        if x0_output_dict is not None:
            x0_output_dict["x0"] = x0

    return callback


SAMPLE: Mapping[str, Any] = {
    made.__name__: made
    for made in (
        prepare_noise,
        prepare_empty_noise,
        fix_empty_latent_channels,
        sample,
        sample_custom,
        prepare_mask,
        convert_cond,
        get_additional_models,
        cleanup_additional_models,
    )
}
"""What `comfy.sample` has, of today and of before."""

HELPERS: Mapping[str, Any] = {
    made.__name__: made for made in (prepare_mask, convert_cond, get_additional_models, cleanup_additional_models)
}
"""What `comfy.sampler_helpers` has."""

PREVIEW: Mapping[str, Any] = {made.__name__: made for made in (LatentPreviewMethod, get_previewer, prepare_callback)}
"""What of `latent_preview` is about sampling."""

NESTED_TENSOR: Mapping[str, Any] = {"NestedTensor": NestedTensor, "cat_nested": cat_nested}
