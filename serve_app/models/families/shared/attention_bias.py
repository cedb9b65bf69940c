"""A bias on the attention between text and image tokens, from a conditioning's options.

Style models set it for their tokens. The options are ComfyUI's: "attention_mask" (N,L,L), added to the logits, of text
and an image of "attention_mask_img_shape" tokens, which is resized to the sampled image's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.models.families.shared.dit import grid
from serve_app.sampling.forward import to_batch
from serve_app.sampling.transfer import to_device

NEVER = torch.finfo(torch.float16).min
"""The bias that prevents attention: the lowest number of half precision, as infinities cannot be interpolated."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBias:
    """A bias on attention's logits, (B,T+n,T+n). text: T; size: rows and columns of the image's n tokens."""

    added: Tensor
    text: int
    size: tuple[int, int]

    def stretched(self, size: tuple[int, int]) -> AttentionBias:
        """Return it resized for an image of other rows and columns."""
        if size == self.size:
            return self
        return replace(self, added=self._along(self._along(self.added, size).mT, size).mT, size=size)

    def _along(self, added: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B,L,T+n) with its last dimension resized."""
        image = added[..., self.text :].reshape(*added.shape[:2], *self.size)
        return torch.cat([added[..., : self.text], interpolate(image, size=size, mode="bilinear").flatten(-2)], dim=-1)


def attention_bias(options: Mapping[str, Any], text: int, rows: int, device: torch.device) -> AttentionBias | None:
    """Return a conditioning's bias for a text's tokens and a number of rows; None if it has none.

    Errors: NodeError for one of another shape.
    """
    mask: Tensor | None = options.get("attention_mask")
    size: tuple[int, int] | None = options.get("attention_mask_img_shape")
    if mask is None or size is None:
        return None
    length = text + size[0] * size[1]
    if mask.shape[1:] != (length, length):
        raise NodeError(
            f"the conditioning's attention mask is of shape {'×'.join(map(str, mask.shape))}; {text} tokens of text "
            f"and an image of {size[0]}×{size[1]} tokens need N×{length}×{length}"
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, NEVER)
    return AttentionBias(to_batch(to_device(mask, device).float().clamp(min=NEVER), rows), text, size)


def added_logits(
    there: Tensor | None, text: int, size: Sequence[int], further: int, rows: Sequence[tuple[int, AttentionBias | None]]
) -> Tensor | None:
    """Return the bias on attention's logits over text and image, (R,1,L,L); None if no row has one.

    there: mask of real tokens of the text, (R,text), None: all. size: of the image in latent cells; further: number of
    tokens after the image's. rows: for each piece the number of rows and its bias.
    """
    device = next((bias.added.device for _, bias in rows if bias is not None), None)
    if device is None:
        return None
    image = grid(size[0], size[1])
    end = text + image[0] * image[1]
    added = torch.zeros(sum(count for count, _ in rows), 1, end + further, end + further, device=device)
    first = 0
    for count, bias in rows:
        if bias is not None:
            # A shorter text is followed by padding.
            own = torch.cat([torch.arange(bias.text, device=device), torch.arange(text, end, device=device)])
            added[first : first + count, 0, own[:, None], own] = bias.stretched(image).added
        first += count
    if there is not None:
        added[..., :text].masked_fill_(~there[:, None, None], NEVER)
    return added
