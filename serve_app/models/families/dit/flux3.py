"""Flux.3 klein, base and distilled: text, image and references have blocks of their own before they share one stream.

Reads the authors' single file or diffusers'; run by diffusers' Flux3Transformer2DModel. Source: Black Forest Labs 2026,
FLUX.3; the numbers are those of diffusers' pipeline.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux3 import Flux3Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import IMAGE_TOKENS, Transformer, check_text, positions
from serve_app.models.families.shared.references import references_of, references_together, scaled_references
from serve_app.models.files.layout import Place, Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.transfer import to_device

SHIFT = 6.93
TIMES = 1000.0
AXES = 4
"""A head is in this many equal parts, rotated by plane, row, column, and the text's token or the reference."""
APART = 0.5
"""Distance of neighbouring latent cells in the positions of images."""

_MODES = ("image", "image_cond")
_MODULES = (
    *("x_embedders", "context_embedder", "timestep_embedder", "target_timestep_embedder", "early_stream_modulations"),
    *("single_stream_modulations", "mode_blocks", "txt_mode_blocks", "single_transformer_blocks", "norm_out"),
    "proj_out",
)
_BLOCK = {
    "q_proj": "attn.to_q",
    "k_proj": "attn.to_k",
    "v_proj": "attn.to_v",
    "attn_out": "attn.to_out.0",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
    "mlp_in": "ff.linear_in",
    "mlp_out": "ff.linear_out",
}
_ENDS = {
    "emb_in": "x_embedders",
    "txt_in": "context_embedder",
    "time_in.in_layer": "timestep_embedder.linear_1",
    "time_in.out_layer": "timestep_embedder.linear_2",
    "ref_time_in.in_layer": "target_timestep_embedder.linear_1",
    "ref_time_in.out_layer": "target_timestep_embedder.linear_2",
    "final_layer.image.linear": "proj_out",
}


@dataclass(frozen=True, slots=True, eq=False)
class Flux3Inputs:
    """Conditioning inputs for B rows. text: (B,T,D), with its padding. references: (B,C,h,w) each."""

    text: Tensor
    references: tuple[Tensor, ...] = ()

    def within(self, area: Area | None) -> Flux3Inputs:
        return self


@dataclass(frozen=True, slots=True)
class Flux3(Transformer):
    """A backbone. width: of a token; layers: number of blocks of each mode; singles: of shared blocks.

    ratio: of a block's inner width. flow_map: it reads the level that a step ends at, as the distilled one does.
    """

    title = "Flux.3"
    trained_as = Flow(SHIFT, 1.0)
    latent_format = FLUX2
    dtypes = (torch.bfloat16, torch.float16)
    steady = ()

    width: int
    heads: int
    layers: int
    singles: int
    text_width: int
    latent_channels: int = 128
    ratio: int = 3
    flow_map: bool = False

    @classmethod
    def probe(cls, tensors: Tensors) -> Flux3:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        ours = _by_diffusers(tensors)
        modes, singles = (
            ("mode_blocks", "single_transformer_blocks") if ours else ("content_mode_blocks", "single_blocks")
        )
        first, norm, last = (
            ("attn.to_q", "attn.norm_k.weight", "ff.linear_out")
            if ours
            else (
                "q_proj",
                "norm.key_norm.scale",
                "mlp_out",
            )
        )
        width, channels = tensors.shape("x_embedders.image.weight" if ours else "emb_in.image.weight")
        head = tensors.shape(f"{singles}.0.{norm}")[0]
        if head % (2 * AXES) or tensors.shape(f"{singles}.0.{first}.weight")[0] % head:
            raise tensors.unsupported(
                f"has a Flux.3 backbone {width} wide with heads of {head}; supported are multiples of {2 * AXES}"
            )
        return cls(
            width,
            width // head,
            tensors.count(f"{modes}.image."),
            tensors.count(f"{singles}."),
            tensors.shape("context_embedder.weight" if ours else "txt_in.weight")[1],
            channels,
            tensors.shape(f"{singles}.0.{last}.weight")[1] // width,
            tensors.has("target_timestep_embedder." if ours else "ref_time_in."),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        for number in range(self.layers):
            for mode in _MODES:
                table |= inside(f"content_mode_blocks.{mode}.{number}", f"mode_blocks.{mode}.{number}", _BLOCK)
            table |= inside(f"txt_mode_blocks.{number}", f"txt_mode_blocks.{number}", _BLOCK)
        for number in range(self.singles):
            table |= inside(f"single_blocks.{number}", f"single_transformer_blocks.{number}", _BLOCK)
        for kind in ("early_stream_modulations", "single_stream_modulations"):
            table |= {f"{kind}.{mode}.lin": f"{kind}.{mode}.linear" for mode in (*_MODES, "txt")}
        # The file has the shift first, the network the scale.
        return table | {"final_layer.image.adaLN_modulation.1": (Place("norm_out.linear", swapped=True),)}

    def build(self) -> nn.Module:
        head = self.width // self.heads
        network: nn.Module = Flux3Transformer2DModel(
            in_channels=self.latent_channels,
            cond_in_channels=self.latent_channels,
            num_layers=self.layers,
            num_single_layers=self.singles,
            attention_head_dim=head,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            mlp_ratio=float(self.ratio),
            axes_dims_rope=(head // AXES,) * AXES,
            flow_map=self.flow_map,
        )
        return network

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Flux3Inputs:
        """Return the text and the reference latents.

        Errors: NodeError for a conditioning of another family's text encoder, or for latents of another format.
        """
        check_text(cond, self.text_width, self.title)
        text = to_batch(to_device(cond, device).float(), canvas.rows)
        return Flux3Inputs(text, scaled_references(options, self.latent_format, canvas.rows, device))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x, the text and the references: the network attends to all tokens, without a mask."""
        return tuple(x.shape[1:]), inputs.text.shape[1], tuple(one.shape[1:] for one in inputs.references)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, references and LoRAs."""
        dtype, inputs, device = network.proj_out.weight.dtype, [r.inputs for r in rows], rows[0].x.device
        text, references = torch.cat([i.text.to(dtype) for i in inputs]), inputs[0].references
        placed = [_positions(one, -1 - number) for number, one in enumerate(references)]
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "ends at": torch.cat([_ends_at(r) for r in rows]) if self.flow_map else None,
            "text": text,
            "text at": to_device(pad(torch.arange(float(text.shape[1]))[:, None], (3, 0)), device),
            "at": to_device(_positions(rows[0].x, 0), device),
            "references at": to_device(torch.cat(placed), device) if placed else None,
        }
        return given | references_together(inputs, dtype)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, references = given["x"], [*map(_tokens, references_of(given))]
        time, still = self._times(network, given)
        streams = {"txt": (network.context_embedder(given["text"]), given["text at"], network.txt_mode_blocks, still)}
        modes = {"image": (_tokens(x), given["at"], time)}
        if references:
            modes["image_cond"] = torch.cat(references, dim=1), given["references at"], still
        for mode, (tokens, at, level) in modes.items():
            streams[mode] = network.x_embedders[mode](tokens), at, network.mode_blocks[mode], level
        shards = sharding(*(tokens.shape[1] for tokens, *_ in streams.values()))
        modulated, turns, modulations = [], [], []
        for number, (mode, (tokens, at, blocks, level)) in enumerate(streams.items()):
            of_mode, early = sharding(tokens.shape[1]), network.early_stream_modulations[mode](silu(level))
            own, turned = of_mode.shard(tokens), network.pos_embed(shards.shard(at, number, dim=0))
            with attention_over(of_mode.of_attention):
                for block in blocks:
                    own = block(own, early, turned)
            modulated.append(own)
            turns.append(turned)
            modulations.append(network.single_stream_modulations[mode](silu(level)).expand(-1, own.shape[1], -1))
        text, image, of_image = modulated[0], torch.cat(modulated[1:], dim=1), torch.cat(modulations[1:], dim=1)
        cos, sin = (torch.cat(both) for both in zip(*turns, strict=True))
        with attention_over(shards.of_attention):
            for block in network.single_transformer_blocks:
                text, image = block(image, text, of_image, modulations[0], (cos, sin))
        made = network.proj_out(network.norm_out(image[:, : shards.count(IMAGE_TOKENS)], time))
        output: Tensor = shards.gather(made, IMAGE_TOKENS).transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])
        return output

    def _times(self, network: Any, given: Inputs) -> tuple[Tensor, Tensor]:
        """Return the embedded levels (R,1,W) of the image, and of text and references, which have no noise."""
        dtype = given["x"].dtype

        def embedded(level: Tensor, embed: Any) -> Tensor:
            made: Tensor = embed(network.time_proj(level.to(dtype) * TIMES).to(dtype))[:, None]
            return made

        levels = given["level"], torch.zeros_like(given["level"])
        time, still = (embedded(level, network.timestep_embedder) for level in levels)
        if not self.flow_map:
            return time, still
        ends = embedded(given["ends at"], network.target_timestep_embedder)
        return time + ends, still + ends


def _tokens(latents: Tensor) -> Tensor:
    """Return latents (B,C,h,w) as tokens (B,hw,C)."""
    return latents.flatten(2).transpose(1, 2)


def _positions(latents: Tensor, last: int) -> Tensor:
    """Return the positions (hw,4) of latents' tokens. last: 0 for the image, -1, -2, … for references."""
    return pad(positions(latents.shape[-2:], patch=1) * APART, (0, 1), value=float(last))


def _ends_at(rows: Rows) -> Tensor:
    """Return the level (B,) at which a step from the rows' level ends: the next lower one of their run, at last 0."""
    if rows.sigmas is None:
        return torch.zeros_like(rows.timestep)
    # A level reaches the network rounded to single precision.
    lower = torch.where(rows.sigmas < rows.sigma * (1 - 1e-6), rows.sigmas, 0).amax()
    return lower.to(rows.timestep).expand_as(rows.timestep)


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("single_transformer_blocks.")
