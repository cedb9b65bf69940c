"""Patches of a UNet's attention, by row: tiles, merged queries, recorded maps, none at all, or guided (NAG).

Projections take all rows at once, as LoRAs require; what lies between them is computed for groups of rows with equal
patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, sqrt
from typing import Any, TypeAlias

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.unet_patches.token_merging import merging
from serve_app.recipe.layers import HyperTile, TokenMerging
from serve_app.sampling.guidance.layers import AttentionMap, Drawn, Opposed, WithoutAttention
from serve_app.sampling.transfer import to_device

Back: TypeAlias = Callable[[Tensor], Tensor]
"""From the attention output of changed queries to an output for all tokens."""


_OF_ATTENTION = (AttentionMap, Drawn, Opposed, WithoutAttention)


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows with equal patches, anywhere in the batch. rows: (r,), their indices, on the network's device."""

    rows: Tensor
    patches: tuple[Any, ...]


@contextmanager
def with_attention(network: Any, rows: Sequence[tuple[int, Sequence[Any]]], size: tuple[int, int]) -> Iterator[None]:
    """Patch attention while the network runs. rows, size: as `unet_layers.with_layers`."""
    if not any(isinstance(patch, _OF_ATTENTION) for _, patches in rows for patch in patches):
        # Nor may anything be copied to the device then: a forward of such rows may be recorded.
        yield
        return
    spans = _spans(rows, next(network.parameters()).device)
    with ExitStack() as stack:
        for name, block in network.named_modules():
            if not isinstance(block, BasicTransformerBlock):
                continue
            here = _Place(name.startswith("mid_block."), name == _FIRST_IN_MIDDLE)
            inside = [span for span in spans if any(map(here.acts_inside, span.patches))]
            if inside:
                block.attn1.__dict__["forward"] = partial(_forward, block.attn1, spans, here, size)
                stack.callback(block.attn1.__dict__.pop, "forward", None)
            opposed = [(span, p) for span in spans for p in span.patches if isinstance(p, Opposed)]
            if opposed:
                stack.callback(block.attn1.register_forward_hook(partial(_led, opposed)).remove)
        yield


_FIRST_IN_MIDDLE = "mid_block.attentions.0.transformer_blocks.0"


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer's position: in the middle block, and if so whether it is the first there."""

    in_middle: bool
    first: bool

    def acts_inside(self, patch: Any) -> bool:
        """Whether a patch acts between the projections of the layer."""
        if isinstance(patch, WithoutAttention):
            return self.in_middle
        return self.first if isinstance(patch, AttentionMap) else isinstance(patch, Drawn)


def _spans(rows: Sequence[tuple[int, Sequence[Any]]], device: torch.device) -> list[_Span]:
    """Return rows grouped by patches: those of one run draw together, though others' rows lie between them."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    first = 0
    for count, patches in rows:
        alike.setdefault(tuple(patches), []).extend(range(first, first + count))
        first += count
    # A copy to the GPU in each layer would synchronise there.
    return [_Span(to_device(torch.tensor(rows), device), patches) for patches, rows in alike.items()]


def _forward(
    attention: Any, spans: Sequence[_Span], here: _Place, size: tuple[int, int], x: Tensor, *_: Any, **__: Any
) -> Tensor:
    """Return self-attention's output for x (R,n,D). size: (h,w) of the latents."""
    q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    made = torch.empty_like(v)
    drawn = _draws(spans, x, size)
    for span in spans:
        rows = span.rows
        patches = [patch for patch in span.patches if here.acts_inside(patch)]
        # The output of the first one is no image any more, so that others skip it.
        changes = [drawn[id(patch)] for patch in patches if isinstance(patch, Drawn)]
        change = next((change for change in changes if change is not None), None)
        own, back = (q.index_select(0, rows), k.index_select(0, rows), v.index_select(0, rows)), None
        if change is not None:
            own, back = change(own, rows)
        if any(isinstance(patch, WithoutAttention) for patch in patches):
            out = own[2]
        else:
            maps = [patch for patch in patches if isinstance(patch, AttentionMap)]
            out = _attend(*own, attention.heads, maps)
        made.index_copy_(0, rows, out if back is None else back(out))
    for layer in attention.to_out:
        made = layer(made)
    return made


Change: TypeAlias = "Callable[[tuple[Tensor, Tensor, Tensor], Tensor], tuple[tuple[Tensor, Tensor, Tensor], Back]]"
"""From queries, keys and values (B,n,D) of some rows to changed ones, and the inverse."""


def _draws(spans: Sequence[_Span], x: Tensor, size: tuple[int, int]) -> dict[int, Change | None]:
    """Return the change of each drawing patch in a layer, by identity: it draws once for all its rows."""
    drawing = {id(p): p for span in spans for p in span.patches if isinstance(p, Drawn)}
    return {key: _change(drawn, x, size) for key, drawn in drawing.items()}


def _change(drawn: Drawn, x: Tensor, size: tuple[int, int]) -> Change | None:
    if isinstance(drawn.patch, HyperTile):
        return _tiling(drawn.patch, drawn.generator, x.shape[1], size)
    return _merging(drawn.patch, drawn.generator, x, size)


def _merging(patch: TokenMerging, generator: torch.Generator, x: Tensor, size: tuple[int, int]) -> Change | None:
    tokens = x.shape[1]
    # Only at the latents' own resolution.
    if ceil(sqrt(size[0] * size[1] // tokens)) > 1:
        return None
    merge = merging(size, int(tokens * patch.ratio), generator)
    if merge is None:
        return None

    def change(own: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Back]:
        q, k, v = own
        merged, back = merge(x.index_select(0, rows), q)
        return (merged, k, v), back

    return change


def _tiling(patch: HyperTile, generator: torch.Generator, tokens: int, size: tuple[int, int]) -> Change | None:
    """Return the tiling of a layer with a number of tokens, or None if the layer is not tiled.

    Queries are cut into tiles, keys and values into as many runs of rows, and height and width are swapped, as in
    ComfyUI; for non-square latents, and for keys, the paper differs. Source: tfernd's HyperTile.
    """
    height, width = size
    deepest = min(patch.depth, height.bit_length())
    depths = [d for d in range(deepest + 1) if (height / 2**d) * (width / 2**d) == tokens]
    if not depths:
        return None
    least = patch.size * (2 ** depths[0] if patch.scaled else 1)
    h, w = round(sqrt(tokens * (width / height))), round(sqrt(tokens / (width / height)))
    down, across = (_divisions(side, least, patch.choices, generator) for side in (h, w))
    tiles = down * across
    if tiles == 1:
        return None

    def change(own: tuple[Tensor, Tensor, Tensor], _rows: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Back]:
        q, k, v = own
        cut = q.view(len(q), down, h // down, across, w // across, -1).transpose(2, 3)
        k, v = (t.reshape(len(t) * tiles, -1, t.shape[2]) for t in (k, v))
        return (cut.reshape(len(q) * tiles, -1, q.shape[2]), k, v), back

    def back(out: Tensor) -> Tensor:
        cut = out.view(-1, down, across, h // down, w // across, out.shape[2]).transpose(2, 3)
        return cut.reshape(len(cut), -1, out.shape[2])

    return change


def _divisions(side: int, least: int, choices: int, generator: torch.Generator) -> int:
    """Return a number of parts of at least `least` for a side, drawn from `choices`, fewest last."""
    least = min(least, side)
    parts = [side // length for length in range(least, side + 1) if side % length == 0][:choices]
    if len(parts) == 1:
        return parts[0]
    # The last choice is never drawn, as in ComfyUI.
    return parts[int(torch.randint(0, len(parts) - 1, (1,), generator=generator))]


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, maps: Sequence[AttentionMap]) -> Tensor:
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    if maps:
        shares = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        for each in maps:
            each.received = shares.mean(dim=1).sum(dim=1)
        out = shares.to(v.dtype) @ v
    else:
        out = scaled_dot_product_attention(q, k, v)
    joined: Tensor = out.transpose(1, 2).flatten(2)
    return joined


def _led(opposed: Sequence[tuple[_Span, Opposed]], _module: Any, _given: Any, out: Tensor) -> Tensor:
    """Guide the positive's rows of the attention output (R,n,D) away from the negative's of its tie.

    Source: Chen et al. 2025, arXiv:2505.21179, equations 7 to 10.
    """
    negatives = {(p.tie, p.patch): span for span, p in opposed if not p.positive}
    led = out.clone()
    for span, patch in opposed:
        if not patch.positive or (other := negatives.get((patch.tie, patch.patch))) is None:
            continue
        positive, negative = led.index_select(0, span.rows), out.index_select(0, other.rows)
        guided = positive * patch.patch.scale - negative * (patch.patch.scale - 1.0)
        lengths = [t.norm(p=1, dim=-1, keepdim=True).clamp(min=1e-6) for t in (guided, positive)]
        ratio = lengths[0] / lengths[1]
        guided = guided * (ratio.clamp(max=patch.patch.tau) / ratio)
        led.index_copy_(0, span.rows, torch.lerp(positive, guided, patch.patch.alpha))
    return led
