"""LTX-Video 0.9 to 0.9.8: videos from a text, with frames to keep or to follow.

Reads the authors' names, and what their metadata says of positions; run by layers of diffusers'
LTX2VideoTransformer3DModel. Source: HaCohen et al. 2025, arXiv:2501.00103; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.transformer_ltx2 import LTX2AdaLayerNormSingle, LTX2Attention
from torch import Tensor, addcmul, nn
from torch.nn.functional import pad, silu

from serve_app.errors import NodeError
from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.dit import DOUBLES, Passing, Transformer, by_heads, check_text, passed
from serve_app.models.families.video.ltx2 import (
    FRAME_RATE,
    HEADS,
    QK_EPS,
    SHIFT,
    SPAN,
    TIME_SCALE,
    Stream,
    noise_levels,
)
from serve_app.models.families.video.ltx2_blocks import (
    EPS,
    Blocks,
    finished,
    modulation,
    normed,
    own_levels,
    rotations,
)
from serve_app.models.families.video.ltx2_guides import Guides
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import LTX_VIDEO
from serve_app.sampling.latents.token_spans import token_spans
from serve_app.sampling.transfer import to_device

_MODULES = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "caption_projection": "caption_projection",
    "transformer_blocks": "transformer_blocks",
    "scale_shift_table": "scale_shift_table",
    "proj_out": "proj_out",
}


@dataclass(frozen=True, slots=True, eq=False)
class LtxVideoInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D); there: mask of real tokens, (B,T), None: all. frame_rate: frames in a second. noisy: of each token,
    its noise level as a share of sigma: (B,F) where those of a frame are equal, else (B,n); None: 1.
    """

    text: Tensor
    there: Tensor | None
    frame_rate: float = FRAME_RATE
    noisy: Tensor | None = None
    guides: Guides | None = None

    def within(self, area: Area | None) -> LtxVideoInputs:
        """Return the inputs, which are for the whole canvas only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and LTX-Video reads texts for the whole video")
        return self


@dataclass(frozen=True, slots=True)
class LtxVideo(Transformer):
    """A backbone. text_width: of a text row; causal: the first latent frame is one frame."""

    title = "LTX-Video"
    latent_format = LTX_VIDEO
    keeps_clean = True
    dtypes = (torch.bfloat16,)

    video: Stream
    layers: int
    text_width: int
    causal: bool = False

    @classmethod
    def probe(cls, tensors: Tensors) -> LtxVideo:
        """Read the network's size off its tensors and metadata."""
        config = tensors.config("transformer")
        return cls(
            Stream(tensors.shape("patchify_proj.weight")[0], int(config.get("num_attention_heads", HEADS))),
            tensors.count("transformer_blocks."),
            tensors.shape("caption_projection.linear_1.weight")[1],
            bool(config.get("causal_temporal_positioning", False)),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(_MODULES)
        for number in range(self.layers):
            for attention in ("attn1", "attn2"):
                layer = f"transformer_blocks.{number}.{attention}"
                table |= {f"{layer}.q_norm": f"{layer}.norm_q", f"{layer}.k_norm": f"{layer}.norm_k"}
        return table

    @property
    def sharded_heads(self) -> int:
        return self.video.heads

    def build(self) -> nn.Module:
        return _Network(self)

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return FluxFlow(SHIFT)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> LtxVideoInputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a text of another family's encoder, or guides of a video of another size.
        """
        check_text(cond, self.text_width, self.title)
        mask = options.get("attention_mask")
        real = None if mask is None else mask.reshape(len(cond), -1).bool()
        # A forward that is only counted has no numbers: it is counted with the padding.
        if real is not None and not real.is_meta:
            # What all rows are padded with is left out.
            cond, real = (part[:, : max(1, int(real.sum(dim=1).max()))] for part in (cond, real))
            real = None if bool(real.all()) else real
        own = None if canvas.mask is None else canvas.mask[0, 0].cpu()
        guides = Guides.of(options, canvas.latents.shape[2:], own)
        noisy = None
        if canvas.mask is not None:
            noisy = noise_levels(to_batch(canvas.mask, canvas.rows), None if guides is None else guides.kept)
        return LtxVideoInputs(
            to_batch(to_device(cond, device).float(), canvas.rows),
            None if real is None else to_batch(to_device(real, device), canvas.rows),
            float(options.get("frame_rate", FRAME_RATE)),
            None if noisy is None else to_device(noisy, device),
            guides,
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and of noise levels, the frame rate and guides."""
        guides = None if inputs.guides is None else inputs.guides.key
        noisy = None if inputs.noisy is None else inputs.noisy.shape[1:]
        return tuple(x.shape[1:]), noisy, inputs.frame_rate, guides

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length, and LoRAs."""
        dtype, inputs = network.proj_out.weight.dtype, [r.inputs for r in rows]
        x, guides = torch.cat([r.x for r in rows]), inputs[0].guides
        longest = max(i.text.shape[1] for i in inputs)
        texts = [pad(i.text, (0, 0, 0, longest - i.text.shape[1])) for i in inputs]
        real = [i.text.new_ones(i.text.shape[:2], dtype=torch.bool) if i.there is None else i.there for i in inputs]
        there = torch.cat([pad(one, (0, longest - one.shape[1])) for one in real])
        level = torch.cat([r.timestep for r in rows])[:, None] * TIME_SCALE
        noisy = None if inputs[0].noisy is None else torch.cat([i.noisy for i in inputs])
        whole = all(i.there is None and i.text.shape[1] == longest for i in inputs)
        return {
            "x": x.to(dtype),
            "level": level if noisy is None else level * noisy,
            "text": torch.cat(texts).to(dtype),
            "there": None if whole else by_heads(there),
            "at": to_device(self._positions(x.shape[2:], inputs[0].frame_rate, guides), x.device),
            "kept": None if guides is None or guides.kept is None else to_device(guides.kept, x.device),
            "heed": None if guides is None or guides.heed is None else to_device(guides.heed.to(dtype), x.device),
            **passed(rows),
        }

    def _positions(self, size: Sequence[int], frame_rate: float, guides: Guides | None) -> Tensor:
        """Return where each token begins, as a share of what positions span: (n,3)."""
        at = token_spans(size, self.latent_format, causal=self.causal)
        if guides is not None:
            at[-len(guides.spans) :] = guides.spans
            at = at if guides.kept is None else at[guides.kept]
        return at[..., 0].float() * torch.tensor([1.0 / frame_rate, 1.0, 1.0]) / torch.tensor(SPAN)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, kept = given["x"], given.get("kept")
        cells = x.flatten(2).transpose(1, 2)
        seen = cells if kept is None else cells[:, kept]
        shards = sharding(seen.shape[1])
        tokens = network.proj_in(shards.shard(seen))
        time, parts = network.time(own_levels(given["level"], shards), tokens.dtype)
        text = network.caption_projection(given["text"])
        turns = rotations(shards.shard(given["at"], dim=0), self.video.heads, self.video.width, double=False)
        through = partial(
            _through,
            text=text,
            time=parts,
            turns=turns,
            shards=shards,
            there=given.get("there"),
            heed=given.get("heed"),
        )
        passing = Passing(rows, DOUBLES, given)
        for number, block in enumerate(network.transformer_blocks):
            [tokens] = passing.through(number, partial(through, block, tokens), tokens)
        made = finished(network.norm_out, network.scale_shift_table, network.proj_out, tokens, time)
        made = shards.gather(made, 0)
        if kept is not None:
            made = torch.zeros_like(cells).index_copy(1, kept, made)
        return made.transpose(1, 2).reshape(x.shape)


class _Network(nn.Module):
    """The layers of a backbone."""

    def __init__(self, family: LtxVideo) -> None:
        super().__init__()
        width, channels = family.video.width, family.latent_format.channels
        self.proj_in = nn.Linear(channels, width)
        self.time_embed = LTX2AdaLayerNormSingle(width)
        self.caption_projection = PixArtAlphaTextProjection(family.text_width, width)
        self.transformer_blocks = nn.ModuleList(_Block(width, family.video.heads) for _ in range(family.layers))
        self.norm_out = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, channels)

    def time(self, level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the time (R,G,W) and the blocks' modulation (R,G,6·W) of levels (R,G)."""
        embed = self.time_embed.emb
        time = embed.timestep_embedder(embed.time_proj(level.flatten()).to(dtype))
        time = torch.unflatten(time, 0, tuple(level.shape))
        return time, self.time_embed.linear(silu(time))


class _Block(nn.Module):
    """The layers of a block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        shared = {"heads": heads, "kv_heads": heads, "dim_head": width // heads, "norm_eps": QK_EPS}
        self.attn1, self.attn2 = LTX2Attention(width, **shared), LTX2Attention(width, **shared)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))


def _through(
    block: Any,
    tokens: Tensor,
    *,
    text: Tensor,
    time: Tensor,
    turns: Tensor,
    shards: Sharding,
    there: Tensor | None,
    heed: Tensor | None,
) -> Tensor:
    """Return this rank's tokens (R,n,W) after a block.

    there: of the text, (R,1,1,T); heed: of guides, as in `Tokens`.
    """
    blocks = Blocks(halves=False)
    shift, scale, gate, *fed = modulation(block.scale_shift_table, time, tokens, slice(0, 6))
    found = blocks.attention(
        block.attn1, addcmul(shift, normed(tokens), 1 + scale), turns=turns, shards=shards, heed=heed
    )
    tokens = addcmul(tokens, found, gate)
    tokens = tokens + blocks.attention(block.attn2, tokens, text, seen=there)
    shift, scale, gate = fed
    return addcmul(tokens, block.ff(addcmul(shift, normed(tokens), 1 + scale)), gate)
