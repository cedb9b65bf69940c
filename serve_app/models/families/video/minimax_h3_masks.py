"""How MiniMax H3 keeps a region of a video and its sound: rows of a sequence with noise levels of their own.

A row has the largest share of its patch in the mask; what is kept reaches the network almost without noise. Source:
MiniMax 2026, MiniMax-H3; the numbers are ComfyUI's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from serve_app.models.families.video.minimax_h3_sequence import PATCH
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.training import AudioVideoFlow
from serve_app.sampling.forward import Canvas

KEPT_VIDEO, KEPT_SOUND = 0.999, 1.0
"""Times, 1 without noise, at which the network reads what it is given."""
STEPS, WHOLE = 256, 1 - 1e-3
"""Shares of a mask are rounded up to such parts of 1; from WHOLE on a row is sampled like one without a mask."""
LEAST_SIGMA, LEAST_KEPT = 1e-6, 1e-6


def shifted(sigma: Tensor, before: Tensor | float, after: Tensor | float) -> Tensor:
    """Return the levels of a schedule with another shift at the same time."""
    base = sigma / (before + sigma * (1 - before))
    return after * base / (1 + (after - 1) * base)


def video_shares(mask: Tensor) -> Tensor:
    """Return the share of each patch of a video's mask (B,C,T,h,w): (B,1,T,h/2,w/2), sides rounded up."""
    height, width = mask.shape[-2:]
    planes = pad(mask[:, 0], (0, width % PATCH, 0, height % PATCH), mode="replicate")
    return _rounded(max_pool2d(planes, PATCH))[:, None]


def sound_shares(mask: Tensor) -> Tensor:
    """Return the share of each latent of a sound's mask (B,D,2,n): (B,1,2,n)."""
    return _rounded(mask.amax(dim=1, keepdim=True))


def levels(shares: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the distinct shares of all rows, each (B,J), and the number of every row's (B,n).

    None: all of it is sampled.
    """
    if bool((shares >= WHOLE).all()):
        return None
    distinct, numbers = torch.unique(shares.flatten(1), return_inverse=True)
    return distinct.expand(len(shares), -1), numbers


def kept(canvas: Canvas, training: AudioVideoFlow, x: Tensor, sigma: float, mask: Tensor) -> Tensor:
    """Return what a run has in the place of what it keeps, (B,1,N).

    Where a patch is sampled though a cell of it is kept, x takes part in it. mask: the run's, (B,1,N).
    """
    video, sound = canvas.layout.parts(canvas.latents)
    noise, _ = canvas.layout.parts(canvas.noise)
    level = torch.tensor(max(sigma, LEAST_SIGMA), dtype=torch.float32)
    scale = training.shift / training.sound_shift
    of_sound = float(level / shifted(level, training.shift, training.sound_shift)) / scale
    injected = canvas.layout.pack(NestedTensor([KEPT_VIDEO * video + (1 - KEPT_VIDEO) * noise, sound * of_sound]))
    of_video, of_sounds = canvas.layout.parts(mask)
    height, width = of_video.shape[-2:]
    shares = video_shares(of_video).repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)[..., :height, :width]
    sampled = [part.expand_as(of) for part, of in ((shares, of_video), (sound_shares(of_sounds), of_sounds))]
    share = (canvas.layout.pack(NestedTensor(sampled)) - mask) / (1 - mask).clamp(min=LEAST_KEPT)
    return injected + torch.where(mask < 1, share.clamp(0, 1), 0.0) * (x - injected)


def _rounded(shares: Tensor) -> Tensor:
    return (shares * STEPS).ceil() / STEPS
