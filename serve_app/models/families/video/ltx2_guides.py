"""The guides of LTX-2's videos, as its transformer reads them: the last tokens, which belong elsewhere in the video.

Source: HaCohen et al. 2026, arXiv:2601.03233; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.sampling.latents.token_spans import GUIDE_ENTRIES, GUIDE_SPANS


class Guides:
    """The guides of a video, the same for all rows of a batch.

    spans: first and last frame, row and column in pixels of the last n cells, (n,3,2). kept: numbers of all cells that
    are tokens, as those between the cells of a small reference are not; None: all. heed: of each guide's token, the
    logarithm of how much it and the rest of the video heed each other, (G,); None: as all others.
    """

    def __init__(self, spans: Tensor, kept: Tensor | None, heed: Tensor | None) -> None:
        self.spans, self.kept, self.heed = spans, kept, heed
        parts = (b"" if part is None else part.numpy().tobytes() for part in (spans, kept, heed))
        self.key = sha256(b"|".join(parts)).digest()
        """Equal for equal guides."""

    @classmethod
    def of(cls, options: Mapping[str, Any], size: Sequence[int], mask: Tensor | None) -> Guides | None:
        """Return the guides that a conditioning names; None for none.

        size: (T,h,w) of the latents; mask: (T,h,w), below 0 for cells that are no tokens. Errors: NodeError for guides
        of a video of another size.
        """
        given: Tensor | None = options.get(GUIDE_SPANS)
        if given is None or not given.shape[2]:
            return None
        spans, cells = given[0].movedim(0, 1), size[1] * size[2]
        if len(spans) % cells or len(spans) > size[0] * cells:
            raise NodeError(
                f"the conditioning has guides of {len(spans):,} cells, and the video's frames are {cells:,} cells: "
                "LTXVCropGuides takes guides off before a video is enlarged"
            )
        there = torch.ones(size[0] * cells, dtype=torch.bool) if mask is None else mask.flatten() >= 0
        own = there[-len(spans) :]
        kept = None if bool(there.all()) else there.nonzero().flatten()
        return cls(spans, kept, _heed(options.get(GUIDE_ENTRIES) or (), own))


def _heed(entries: Sequence[Mapping[str, Any]], own: Tensor) -> Tensor | None:
    """Return `Guides.heed`. own: of each of the guides' cells, whether it is a token."""
    if not any(entry["strength"] != 1.0 or entry.get("pixel_mask") is not None for entry in entries):
        return None
    counts = [entry["pre_filter_count"] for entry in entries]
    if sum(counts) != len(own):
        raise NodeError(f"the guides have {sum(counts):,} cells by their entries and {len(own):,} by their places")
    weights = []
    for entry, cells in zip(entries, torch.split(own, counts), strict=True):
        weight = torch.full((int(cells.sum()),), float(entry["strength"]))
        if entry.get("pixel_mask") is not None:
            weight *= _by_token(entry["pixel_mask"].float(), entry["latent_shape"])
        weights.append(weight)
    heed = torch.cat(weights)
    least = torch.finfo(heed.dtype).min
    return None if bool((heed == 1).all()) else torch.where(heed > 0, heed.log(), least)


def _by_token(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask (1,1,F,H,W) by latent cell, of a size (T,h,w), flat: the first frame, then equal groups of frames.

    Frames beyond whole groups are left out; fewer than there are cells in time are repeated.
    """
    cells = interpolate(mask[0].movedim(1, 0), size=tuple(size[1:]), mode="area")[:, 0]
    first, rest, count = cells[:1], cells[1:], size[0] - 1
    if not count:
        return first.flatten()
    if not len(rest):
        return first.expand(size[0], -1, -1).flatten()
    if (group := len(rest) // count) < 1:
        rest = interpolate(rest.flatten(1).T[None], size=count, mode="nearest")[0].T
        rest = torch.unflatten(rest, 1, tuple(size[1:]))
    else:
        rest = torch.unflatten(rest[: count * group], 0, (count, group)).mean(dim=1)
    return torch.cat([first, rest]).flatten()
