"""Where the tokens of a video's latents begin and end, in frames and pixels, as rotary positions read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serve_app.sampling.latents.latents import LatentFormat

GUIDE_SPANS, GUIDE_ENTRIES = "keyframe_idxs", "guide_attention_entries"
"""Options of a conditioning: the spans (1,3,n,2) of the cells of guides behind a video, and a mapping for each guide.

A mapping has the guide's number of cells ("pre_filter_count"), its strength, a mask of its pixels (1,1,F,H,W) or None
("pixel_mask") and the size [T,h,w] of its latents ("latent_shape"), as ComfyUI's.
"""


def token_spans(size: Sequence[int], latent_format: LatentFormat, *, causal: bool) -> Tensor:
    """Return the first and the last frame, row and column of each latent cell, (n,3,2), whole numbers.

    size: (T,h,w) of the latents. causal: the first latent frame is of one frame.
    """
    starts = torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"), dim=-1).view(-1, 3)
    frames, factor = latent_format.frames, latent_format.factor
    spans = torch.stack([starts, starts + 1], dim=-1) * torch.tensor((frames, factor, factor))[:, None]
    if causal:
        spans[:, 0] = (spans[:, 0] + 1 - frames).clamp(min=0)
    return spans
