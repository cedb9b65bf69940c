"""Encodes IMAGE tensors to files, and resizes them: float (B,H,W,C) in 0…1, as ComfyUI's nodes pass them.

Rounding and interpolation are ComfyUI's (SaveImage, `common_upscale`), so that the same workflow gives the same pixels.
Files are read in `media.loading`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import interpolate

Crop = Literal["disabled", "center"]

PNG_LEVEL, QUICK_PNG_LEVEL = 4, 1
"""How hard zlib works at a picture that is kept, and at one that is only looked at."""

PREVIEW_SIDE = 512
"""The longer side of a preview."""


def to_preview(picture: Any) -> bytes:
    """Return a JPEG preview of a Pillow image or (h,w,3) in 0…255."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = ImageOps.contain(image.convert("RGB"), (PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def to_png(image: Tensor, text: Mapping[str, str], compress_level: int) -> bytes:
    """Return a PNG of one image (H,W,3|4), values outside 0…1 clipped, with the text as text chunks."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(_bytes(image)).save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


def to_animated_png(frames: Tensor, text: Mapping[str, str], *, duration_ms: int, compress_level: int) -> bytes:
    """Return an animated PNG of frames (B,H,W,3|4), the text in ComfyUI's `comf` chunks behind the pixels."""
    info = PngInfo()
    for key, value in text.items():
        info.add(b"comf", key.encode("latin-1") + b"\0" + value.encode("latin-1"), after_idat=True)
    return _animated(frames, "PNG", duration=duration_ms, compress_level=compress_level, pnginfo=info)


def to_animated_webp(
    frames: Tensor, text: Mapping[str, str], *, duration_ms: int, lossless: bool, quality: int, method: int
) -> bytes:
    """Return an animated WebP of frames (B,H,W,3|4).

    text: goes into EXIF, "prompt" as the camera's model, the rest as its make and the tags before it.
    quality: 0…100. method: 0…6, slower and smaller.
    """
    exif = Image.Exif()
    make, model = 0x010F, 0x0110
    others = [f"{key}:{value}" for key, value in text.items() if key != "prompt"]
    exif.update({make - i: value for i, value in enumerate(others)})
    if "prompt" in text:
        exif[model] = f"prompt:{text['prompt']}"
    return _animated(frames, "WEBP", duration=duration_ms, lossless=lossless, quality=quality, method=method, exif=exif)


def vision_pixels(
    images: Tensor, size: int, mean: Sequence[float], spread: Sequence[float], *, crop: bool = True
) -> Tensor:
    """Return images (B,H,W,C) in 0…1 normalised for image encoders, (B,3,size,size).

    mean, spread: of each colour. crop: the central square, else the whole image squeezed into a square. As in ComfyUI.
    """
    planes = images[..., :3].movedim(-1, 1).float()
    height, width = planes.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        sides = (round(scale * height), round(scale * width)) if crop else (size, size)
        planes = interpolate(planes, size=sides, mode="bicubic", antialias=True)
        top, left = ((side - size) // 2 for side in planes.shape[-2:])
        planes = planes[..., top : top + size, left : left + size]
    # Quantised to 256 levels, which resizing leaves.
    planes = (planes * 255).clamp(0, 255).round() / 255
    middle, wide = (torch.tensor(numbers, device=planes.device)[:, None, None] for numbers in (mean, spread))
    return (planes - middle) / wide


def resize(images: Tensor, width: int, height: int, method: str, crop: Crop = "disabled") -> Tensor:
    """Return the images (B,H,W,C) at (B,height,width,C); latents are resized the same way.

    method: nearest-exact, bilinear, area, bicubic (not antialiased), bislerp, or lanczos (8-bit, antialiased). crop
    "center" first cuts the longer side to the new aspect.
    """
    x = images.movedim(-1, 1)
    if crop == "center":
        x = _cut_to_aspect(x, width / height)
    if method == "bislerp":
        out = _bislerp(_bislerp(x.float(), -1, width), -2, height).to(images.dtype)
    elif method == "lanczos":
        out = _lanczos(x, width, height)
    else:
        out = torch.nn.functional.interpolate(x, size=(height, width), mode=method)
    return out.movedim(1, -1)


def _animated(frames: Tensor, kind: str, **options: Any) -> bytes:
    first, *others = (Image.fromarray(_bytes(frame)) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=others, **options)
    return buffer.getvalue()


def _bytes(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    # ComfyUI truncates and does not round: 0.999 becomes 254.
    return np.clip(image.detach().float().cpu().numpy() * 255.0, 0, 255).astype(np.uint8)


def _unit(image: Image.Image) -> Tensor:
    values = np.asarray(image).astype(np.float32)
    values /= 255.0  # In place: a second copy would be the largest allocation.
    return torch.from_numpy(values)


def _cut_to_aspect(x: Tensor, aspect: float) -> Tensor:
    height, width = x.shape[-2:]
    given = width / height
    left = round((width - width * (aspect / given)) / 2) if given > aspect else 0
    top = round((height - height * (given / aspect)) / 2) if given < aspect else 0
    return x[..., top : height - top, left : width - left]


def _lanczos(x: Tensor, width: int, height: int) -> Tensor:
    """Resize each image by Pillow's filter; channel counts without a Pillow mode are resized channel by channel."""
    resized = []
    for image in _bytes(x.movedim(1, -1)):
        planes = [image] if image.shape[-1] in (3, 4) else list(np.moveaxis(image, -1, 0))
        scaled = [_unit(Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS)) for p in planes]
        resized.append(scaled[0].movedim(-1, 0) if image.shape[-1] in (3, 4) else torch.stack(scaled))
    return torch.stack(resized).to(x.device, x.dtype)


def _bislerp(x: Tensor, dim: int, size: int) -> Tensor:
    """Resize one dimension of (B,C,H,W), interpolating channel vectors spherically.

    The angle is interpolated spherically and the length linearly; nearly parallel vectors are taken from the first,
    nearly opposite ones mixed. Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    old = x.shape[dim]
    at = ((torch.arange(size, device=x.device) + 0.5) * (old / size) - 0.5).clamp(0, old - 1)
    low = at.floor().long()
    shape = [1, 1, 1, 1]
    shape[dim] = size
    t = (at - low).reshape(shape).to(x.dtype)
    a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=old - 1))
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = (torch.where(n == 0, 0.0, v / n) for v, n in ((a, length_a), (b, length_b)))
    cosine = (unit_a * unit_b).sum(dim=1, keepdim=True)
    angle = torch.acos(cosine)
    turned = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    turned = turned * (length_a * (1 - t) + length_b * t)
    turned = torch.where(cosine > 1 - 1e-5, a, turned)
    return torch.where(cosine < 1e-5 - 1, a * (1 - t) + b * t, turned)
