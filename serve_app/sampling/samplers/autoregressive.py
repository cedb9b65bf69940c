"""The sampler of videos that are made block by block: each block of frames is denoised after all that are before it.

Sources: Huang et al. 2025 (Self-Forcing), arXiv:2506.08009; Causal Forcing, github.com/thu-ml/Causal-Forcing; the noise
is ComfyUI's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.lazy_sum import Latents, value
from serve_app.sampling.noise import seeded
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler
from serve_app.sampling.transfer import to_device

NAME = "ar_video"
"""The sampler's name in ComfyUI, whose KSampler does not list it."""
FRAMES = 2
"""The axis of a video's frames."""
SEEDS_OF_BLOCK = 1000
"""How far the seeds of two blocks' noise are apart."""


def ar_video(
    x: Latents, sigmas: Tensor, *, seed: int, first: Tensor | None = None, num_frame_per_block: int = 1
) -> Sampler:
    """Denoise a video's blocks one after another, each with fresh noise at every level, as a consistency model's.

    x: (B,C,T,h,w), at sigmas[0]. seed: of the noise. first: (1,C,t,h,w), scaled, frames that the video begins with.
    num_frame_per_block: latent frames of a block; the last may have fewer. Errors: NodeError for a beginning of
    another size or longer than the video.
    """
    noise, levels = value(x), sigmas.tolist()
    done: list[Tensor] = []
    if first is not None:
        if first.shape[FRAMES + 1 :] != noise.shape[FRAMES + 1 :] or first.shape[FRAMES] > noise.shape[FRAMES]:
            raise NodeError(
                f"the video begins with {tuple(first.shape[FRAMES:])} latent frames, rows and columns, and the latents "
                f"to sample have {tuple(noise.shape[FRAMES:])}"
            )
        done.append(to_device(first, noise.device).to(noise.dtype).expand(len(noise), -1, -1, -1, -1))
    begun, total = sum(frames.shape[FRAMES] for frames in done), noise.shape[FRAMES]
    starts = range(begun, total, num_frame_per_block)
    evaluations, evaluated = len(starts) * (len(levels) - 1), 0
    for number, start in enumerate(starts):
        block = noise[:, :, start : start + num_frame_per_block]
        for i, (sigma, following) in enumerate(pairwise(levels)):
            whole = torch.cat([*done, block], dim=FRAMES)
            blocks = tuple(frames.shape[FRAMES] for frames in (*done, block))
            step = evaluated * (len(levels) - 1) // evaluations
            denoised = value((yield Evaluation(whole, sigma, step, substep=evaluated, blocks=blocks)))
            evaluated, block = evaluated + 1, denoised[:, :, start:]
            if following:
                source = seeded(noise.device, seed + SEEDS_OF_BLOCK * number + i)
                fresh = torch.randn(block.shape, generator=source, device=noise.device)
                block = (1 - following) * block + following * fresh
        done.append(block)
    return torch.cat(done, dim=FRAMES)
