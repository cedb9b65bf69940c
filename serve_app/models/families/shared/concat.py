"""Channels concatenated with x, for backbones made for inpainting or editing.

Pure functions of a conditioning's options, which are ComfyUI's. Sources: Rombach et al. 2022, arXiv:2112.10752
(inpainting); Brooks et al. 2023, arXiv:2211.09800 (editing).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from serve_app.errors import NodeError
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.transfer import to_device

EDIT_CHANNELS = 4
MASK_CHANNELS = 4
"""Channels of a video's mask: one for each image of a latent frame."""

_BLACK = (0.8223, -0.6876, 0.6364, 0.1380)
"""The scaled latents of a black image, for an inpainting backbone without an image."""


def image_to_edit(options: Mapping[str, Any], latents: Tensor, scaled_as: LatentFormat | None = None) -> Tensor:
    """Return the options' "concat_latent_image" (unscaled) for latents (B,C,h,w), zeros if there is none.

    scaled_as: the format to scale it by; None: unscaled.
    """
    given: Tensor | None = options.get("concat_latent_image")
    if given is None:
        given = torch.zeros_like(latents)
    image = _fitted(to_device(given, latents.device).float(), latents)
    return image if scaled_as is None else scaled_as.to_model(image)


def mask_as_channels(options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, factor: int) -> Tensor:
    """Return a mask in pixels with the pixels of each latent cell as its channels, (B,factor²,h,w), row by row.

    latents: (B,C,h,w). mask: (B,1,h,w) of the run, or None. The options' "concat_mask" takes precedence; without
    either, everything is to be painted.
    """
    mask = options.get("concat_mask", mask)
    if mask is None:
        mask = torch.ones_like(latents[:, :1])
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) if mask.ndim == 3 else mask.mean(dim=1, keepdim=True)
    height, width = latents.shape[-2:]
    pixels = _resized(to_device(mask, latents.device).float(), height * factor, width * factor)
    return _spread(torch.nn.functional.pixel_unshuffle(pixels, factor), latents.shape[0])


def mask_and_image(
    options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, latent_format: LatentFormat
) -> Tensor:
    """Return the mask and the masked image, (B,1+C,h,w).

    latents: (B,C,h,w) that the run starts from, scaled. mask: (B,1,h,w) of the run, or None. The options'
    "concat_latent_image" (unscaled) and "concat_mask" take precedence.
    """
    mask = options.get("concat_mask", mask)
    if mask is None:
        black = to_device(torch.tensor(_BLACK), latents.device).view(1, -1, 1, 1)
        return torch.cat([torch.ones_like(latents[:, :1]), black.expand_as(latents)], dim=1)
    given: Tensor | None = options.get("concat_latent_image")
    image = latents if given is None else latent_format.to_model(to_device(given, latents.device).float())
    mask = mask[:, :1] if mask.ndim == latents.ndim else mask
    mask = to_device(mask.reshape(-1, 1, *mask.shape[-2:]), latents.device).float()
    if mask.shape[-2:] != latents.shape[-2:]:
        mask = _resized(mask, *latents.shape[-2:])
    return torch.cat([_spread(mask.round(), latents.shape[0]), _fitted(image, latents)], dim=1)


def frames_and_mask(
    options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, channels: int, latent_format: LatentFormat
) -> Tensor:
    """Return the channels to concatenate with latents (B,C,F,h,w) of a video, (B,channels,F,h,w).

    They are the options' "concat_latent_image" (unscaled, C channels a video, else zeros) and, if there is room, a mask
    in four channels, 1 where to keep it. mask: (B,1,F,h,w) of the run, or None. The options' "concat_mask" (1 or 4
    channels, 0 where to keep) takes precedence; the mask's channels come first, or at "concat_mask_index". Errors:
    NodeError for images or masks of other numbers of frames or channels.
    """
    batch, of_video = latents.shape[:2]
    given: Tensor | None = options.get("concat_latent_image")
    if given is None:
        return latents.new_zeros(batch, channels, *latents.shape[2:])
    videos = torch.split(_frames_resized(to_device(given, latents.device).float(), latents), of_video, dim=1)
    image = _spread(torch.cat([latent_format.to_model(video) for video in videos], dim=1), batch)
    if image.shape[2] < latents.shape[2]:
        raise NodeError(
            f"the images to concatenate with the latents have {image.shape[2]} latent frames, and the latents have "
            f"{latents.shape[2]}"
        )
    if image.shape[1] == channels:
        return image
    known = channels - MASK_CHANNELS
    if image.shape[1] < known:
        raise NodeError(
            f"the images to concatenate with the latents have {image.shape[1]} channels, and this model reads {known} "
            "with their mask"
        )
    mask = options.get("concat_mask", mask)
    if mask is None:
        kept = latents.new_zeros(batch, MASK_CHANNELS, *latents.shape[2:])
    else:
        kept = mask if mask.shape[1] == MASK_CHANNELS else mask.mean(dim=1, keepdim=True)
        kept = _frames_resized(1.0 - to_device(kept, latents.device).float(), latents)
        kept = pad(kept, (0, 0) * 2 + (0, max(0, latents.shape[2] - kept.shape[2])))
        kept = _spread(kept.expand(-1, MASK_CHANNELS, -1, -1, -1), batch)
    at = options.get("concat_mask_index", 0)
    image = image[:, :known]
    return torch.cat([image[:, :at], kept, image[:, at:]], dim=1)


def image_and_kept(
    options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, latent_format: LatentFormat
) -> Tensor:
    """Return images and which latent frames to keep, for latents (B,C,F,h,w) of a video, (B,C+1,F,h,w).

    The images are the options' "concat_latent_image" (unscaled), zeros without. mask: (B,1,F,h,w) of the run, or None;
    the options' "concat_mask" (0 where to keep) takes precedence; without either nothing is kept. Errors: NodeError as
    `frames_and_mask`.
    """
    batch = latents.shape[0]
    given: Tensor | None = options.get("concat_latent_image")
    image = torch.zeros_like(latents)
    if given is not None:
        image = latent_format.to_model(_frames_resized(to_device(given, latents.device).float(), latents))
        image = _spread(image, batch)
        if image.shape[1:3] != latents.shape[1:3]:
            raise NodeError(
                f"the images to concatenate with the latents have {image.shape[1]} channels and {image.shape[2]} "
                f"latent frames, and the latents have {latents.shape[1]} and {latents.shape[2]}"
            )
    mask = options.get("concat_mask", mask)
    if mask is None:
        return torch.cat([image, torch.zeros_like(latents[:, :1])], dim=1)
    kept = _frames_resized(1.0 - to_device(mask[:, :1], latents.device).float(), latents)
    kept = pad(kept, (0, 0) * 2 + (0, latents.shape[2] - kept.shape[2]))
    return torch.cat([image, _spread(kept, batch)], dim=1)


def _frames_resized(frames: Tensor, latents: Tensor) -> Tensor:
    """Return frames (N,C,F,h,w) at the size of latents.

    Errors: NodeError without a time axis, or for more frames than latents have.
    """
    if frames.ndim != latents.ndim:
        given = ",".join(map(str, frames.shape))
        raise NodeError(
            f"the tensor to concatenate with the latents is ({given}); a video's is (batch,channels,time,height,width)"
        )
    batch, channels, count = frames.shape[:3]
    if count > latents.shape[2]:
        raise NodeError(
            f"the tensor to concatenate with the latents has {count} latent frames, and the latents have "
            f"{latents.shape[2]}"
        )
    resized = _resized(frames.movedim(2, 1).flatten(0, 1), *latents.shape[-2:])
    return resized.view(batch, count, channels, *latents.shape[-2:]).movedim(1, 2)


def _fitted(image: Tensor, latents: Tensor) -> Tensor:
    if image.shape[1:] != latents.shape[1:]:
        image = _resized(image, *latents.shape[-2:])
    return _spread(image, latents.shape[0])


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image cropped to the centre in the proportions of a size, at that size."""
    rows, columns = image.shape[-2:]
    have, want = columns / rows, width / height
    x = round((columns - columns * (want / have)) / 2) if have > want else 0
    y = round((rows - rows * (have / want)) / 2) if have < want else 0
    return interpolate(image[..., y : rows - y, x : columns - x], size=(height, width), mode="bilinear")


def _spread(rows: Tensor, batch: int) -> Tensor:
    """Return `batch` rows picked at even distances."""
    count = rows.shape[0]
    if batch <= 1 or count == batch:
        return rows[:batch]
    if batch < count:
        picked = [min(round(i * (count - 1) / (batch - 1)), count - 1) for i in range(batch)]
    else:
        picked = [min(floor((i + 0.5) * count / batch), count - 1) for i in range(batch)]
    return rows[picked]
