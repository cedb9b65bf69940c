"""Krea 2: one stream of text and image; its text is several layers of a text encoder's states.

A small network fuses each token's states first. Run by the layers of diffusers' Krea2Transformer2DModel. Source: Krea
2026, Krea 2; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm, Krea2Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, rms_norm

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    IMAGE_TOKENS,
    PATCH,
    TEXT_TOKENS,
    Transformer,
    attended,
    by_heads,
    by_token,
    check_text,
    from_tokens,
    lora_names,
    positions,
    stacked,
    there,
    to_tokens,
)
from serve_app.models.families.shared.references import (
    INDEX_TIMESTEP_ZERO,
    reference_positions,
    references_of,
    references_together,
    scaled_references,
)
from serve_app.models.files.layout import Place, Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.sampling.transfer import to_device

MU = 1.15
THETA = 1000.0
FUSING = 2
"""Number of blocks that fuse a token's states, and of blocks that refine the result."""

_MODULES = ("img_in", "time_embed", "time_mod_proj", "txt_in", "text_fusion", "transformer_blocks", "final_layer")
_ENDS = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.0.scale": "txt_in.norm.weight",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
    "last.norm.scale": "final_layer.norm.weight",
    "last.modulation.lin": "final_layer.scale_shift_table",
}
_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "attn.qknorm.qnorm.scale": "attn.norm_q.weight",
    "attn.qknorm.knorm.scale": "attn.norm_k.weight",
    "mlp": "ff",
    "prenorm.scale": "norm1.weight",
    "postnorm.scale": "norm2.weight",
}


@dataclass(frozen=True, slots=True, eq=False)
class Krea2Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,L·D). references: (B,C,h,w) each; timestep_zero: references have the timestep of no noise.
    """

    text: Tensor
    references: tuple[Tensor, ...] = ()
    timestep_zero: bool = False

    def within(self, area: Area | None) -> Krea2Inputs:
        return self


@dataclass(frozen=True, slots=True)
class Attention:
    """The sizes of a stack of blocks. width: of a token; key_heads: heads of keys and values; inside: hidden layers."""

    width: int
    heads: int
    key_heads: int
    inside: int


@dataclass(frozen=True, slots=True)
class Krea2(Transformer):
    """A backbone. layers: number of blocks; states: number of a text encoder's states for each token."""

    title = "Krea 2"
    trained_as = FluxFlow(MU)
    latent_format = WAN
    dtypes = (torch.bfloat16, torch.float16)

    image: Attention
    text: Attention
    layers: int
    states: int
    latent_channels: int = 16

    @classmethod
    def probe(cls, tensors: Tensors) -> Krea2:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        theirs = _by_diffusers(tensors)
        blocks, fusing, first = (
            ("transformer_blocks", "text_fusion", "img_in") if theirs else ("blocks", "txtfusion", "first")
        )
        image = _attention(tensors, f"{blocks}.0", theirs)
        head = image.width // image.heads
        if head % 16:
            raise tensors.unsupported(f"has a Krea 2 backbone with heads of {head}, no multiple of 16")
        return cls(
            image,
            _attention(tensors, f"{fusing}.layerwise_blocks.0", theirs),
            tensors.count(f"{blocks}."),
            tensors.shape(f"{fusing}.projector.weight")[1],
            tensors.shape(f"{first}.weight")[1] // PATCH**2,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        for number in range(self.layers):
            theirs, ours = f"blocks.{number}", f"transformer_blocks.{number}"
            table |= inside(theirs, ours, _BLOCK)
            table[f"{theirs}.mod.lin"] = (Place(f"{ours}.scale_shift_table", shape=(6, self.image.width)),)
        for kind in ("layerwise_blocks", "refiner_blocks"):
            for number in range(FUSING):
                table |= inside(f"txtfusion.{kind}.{number}", f"text_fusion.{kind}.{number}", _BLOCK)
        return table

    def build(self) -> nn.Module:
        head = self.image.width // self.image.heads
        network: nn.Module = Krea2Transformer2DModel(
            in_channels=self.latent_channels * PATCH**2,
            num_layers=self.layers,
            attention_head_dim=head,
            num_attention_heads=self.image.heads,
            num_key_value_heads=self.image.key_heads,
            intermediate_size=self.image.inside,
            text_hidden_dim=self.text.width,
            num_text_layers=self.states,
            text_num_attention_heads=self.text.heads,
            text_num_key_value_heads=self.text.key_heads,
            text_intermediate_size=self.text.inside,
            num_layerwise_text_blocks=FUSING,
            num_refiner_text_blocks=FUSING,
            axes_dims_rope=(head // 4, head // 8 * 3, head // 8 * 3),
            rope_theta=THETA,
        )
        for parent in [*network.modules()]:
            for name, child in parent.named_children():
                if isinstance(child, Krea2RMSNorm):
                    setattr(parent, name, Norm(child.dim, child.eps))
        return network

    def lora_names(self, parameters: Sequence[str]) -> Table:
        names = lora_names(parameters, self.table())
        # Some files omit the index in attention's output module: only one has weights.
        return names | {name.removesuffix(".0"): ours for name, ours in names.items() if name.endswith("attn.to_out.0")}

    @property
    def sharded_heads(self) -> int:
        return self.image.heads

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Krea2Inputs:
        """Return the text, and references if any method for them is set: ComfyUI's options.

        Errors: NodeError for a conditioning of another family's text encoder, or for latents of several images.
        """
        check_text(cond, self.states * self.text.width, self.title)
        method: str | None = options.get("reference_latents_method")
        rows = canvas.rows
        references = scaled_references(options if method is not None else {}, self.latent_format, rows, device)
        for latents in (canvas.latents, *references):
            if latents.shape[2] != 1:
                raise NodeError(f"{self.title} samples single images; the latents hold {latents.shape[2]}")
        return Krea2Inputs(
            to_batch(to_device(cond, device).float(), rows),
            tuple(reference[:, :, 0] for reference in references),
            bool(references) and method == INDEX_TIMESTEP_ZERO,
        )

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        return torch.empty(1, tokens, self.states * self.text.width, device="meta"), {}

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the references, and whether those have a timestep of their own."""
        return tuple(x.shape[1:]), tuple(one.shape[1:] for one in inputs.references), inputs.timestep_zero

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, references and LoRAs."""
        dtype, inputs, size = network.img_in.weight.dtype, [r.inputs for r in rows], rows[0].x.shape[-2:]
        texts, references = [i.text.to(dtype) for i in inputs], inputs[0].references
        at = torch.cat([positions(size), *reference_positions((size[0], size[1]), references, "index")])
        known, text = there(texts), stacked(texts)
        given = {
            "x": torch.cat([r.x[:, :, 0] for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": text,
            "text mask": by_heads(known),
            "mask": by_heads(attended(known, len(at))),
            "at": to_device(pad(at, (0, 0, text.shape[1], 0)), text.device),
        }
        return given | references_together(inputs, dtype)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, states = given["x"], given["text"]
        tokens = [*map(to_tokens, (x, *references_of(given)))]
        count, image = tokens[0].shape[1], network.img_in(torch.cat(tokens, dim=1))
        states = states.view(*states.shape[:2], self.states, -1)
        text = network.txt_in(network.text_fusion(states, given.get("text mask")))
        length, (cos, sin), level = text.shape[1], network.rotary_emb(given["at"]), given["level"]
        shards = sharding(length, count, image.shape[1] - count)
        time = network.time_embed(level, x.dtype)
        modulation = network.time_mod_proj(gelu(time, approximate="tanh"))
        if rows[0].inputs.timestep_zero:
            still = network.time_mod_proj(gelu(network.time_embed(level * 0, x.dtype), approximate="tanh"))
            modulation = by_token(modulation[:, 0], length + count, still[:, 0], image.shape[1] - count)
            modulation = shards.shard(modulation)
        both, mask = shards.shard(torch.cat([text, image], dim=1)), shards.mask(given.get("mask"))
        turns = shards.shard(cos, dim=0), shards.shard(sin, dim=0)
        with attention_over(shards.of_attention):
            for block in network.transformer_blocks:
                both = block(both, modulation, turns, mask)
        length, count = shards.count(TEXT_TOKENS), shards.count(IMAGE_TOKENS)
        output = shards.gather(network.final_layer(both[:, length : length + count], time), IMAGE_TOKENS)
        return from_tokens(output, *x.shape[-2:])[:, :, None]


class Norm(nn.Module):
    """A norm with scale 1 + weight (D,), added in single precision, as in ComfyUI."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), (x.shape[-1],), self.weight.float() + 1, self.eps).to(x.dtype)


def _attention(tensors: Tensors, block: str, theirs: bool) -> Attention:
    """Read the sizes of a stack off one of its blocks. theirs: it has diffusers' names."""
    q, k, norm, hidden = (
        ("attn.to_q", "attn.to_k", "attn.norm_q.weight", "ff.gate")
        if theirs
        else ("attn.wq", "attn.wk", "attn.qknorm.qnorm.scale", "mlp.gate")
    )
    outputs, width = tensors.shape(f"{block}.{q}.weight")
    head = tensors.shape(f"{block}.{norm}")[0]
    key_heads = tensors.shape(f"{block}.{k}.weight")[0] // head
    return Attention(width, outputs // head, key_heads, tensors.shape(f"{block}.{hidden}.weight")[0])


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("text_fusion.")
