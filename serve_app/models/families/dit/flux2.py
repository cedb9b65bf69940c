"""Flux.2, dev and klein: blocks without pooled text, with three modulation layers shared by all of them.

Reads the authors' single file or diffusers'; run by the layers of diffusers' Flux2Transformer2DModel. Source: Black
Forest Labs 2025, FLUX.2; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.dit import flux_names
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    REFERENCE_TOKENS,
    SINGLES,
    TEXT_TOKENS,
    Passing,
    Transformer,
    attended,
    by_heads,
    by_token,
    check_text,
    passed,
    positions,
    stacked,
    there,
)
from serve_app.models.families.shared.references import (
    INDEX_TIMESTEP_ZERO,
    METHODS,
    check_method,
    reference_positions,
    references_of,
    references_together,
    scaled_references,
)
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.transfer import to_device

MU = 2.02
GUIDANCE = 3.5
"""Default guidance of a guidance-distilled network."""
TEXT = 512
"""Minimum length of a text; shorter ones are padded with zeros in front."""
THETA = 2000
AXES = 4
"""A head is in this many equal parts, rotated by plane, row, column, and the text's token."""
PATCH = 1
APART = 10.0
"""Distance of the planes of neighbouring references."""
TIMES = 1000.0

_MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
_MODULES = (
    *("x_embedder", "context_embedder", "time_guidance_embed", "transformer_blocks", "single_transformer_blocks"),
    *(*_MODULATIONS, "norm_out", "proj_out"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Flux2Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D); guidance: (B,), or None. references: (B,C,h,w) each; method: of their positions.
    """

    text: Tensor
    guidance: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    method: str = ""

    def within(self, area: Area | None) -> Flux2Inputs:
        return self


@dataclass(frozen=True, slots=True)
class Flux2(Transformer):
    """A backbone. width: of a token; doubles, singles: number of blocks of each kind.

    ratio: of a block's inner width. guided: it reads a guidance scale.
    """

    title = "Flux.2"
    trained_as = FluxFlow(MU)
    latent_format = FLUX2
    dtypes = (torch.bfloat16, torch.float16)

    width: int
    heads: int
    doubles: int
    singles: int
    text_width: int
    latent_channels: int = 128
    ratio: int = 3
    guided: bool = False

    @classmethod
    def probe(cls, tensors: Tensors) -> Flux2:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        if _by_diffusers(tensors):
            first, text = "x_embedder", "context_embedder"
            doubles, singles = "transformer_blocks.", "single_transformer_blocks."
            norm, inside = "single_transformer_blocks.0.attn.norm_k", "transformer_blocks.0.ff.linear_out"
            guidance = "time_guidance_embed.guidance_embedder.linear_1"
        else:
            first, text = "img_in", "txt_in"
            doubles, singles = "double_blocks.", "single_blocks."
            norm, inside = "single_blocks.0.norm.key_norm", "double_blocks.0.img_mlp.2"
            guidance = "guidance_in.in_layer"
        width, channels = tensors.shape(f"{first}.weight")
        head = tensors.shape(f"{norm}.{'scale' if f'{norm}.scale' in tensors.shapes else 'weight'}")[0]
        if head % (2 * AXES) or width % head:
            raise tensors.unsupported(
                f"has a Flux.2 backbone {width} wide with heads of {head}; supported are multiples of {2 * AXES}"
            )
        return cls(
            width,
            width // head,
            tensors.count(doubles),
            tensors.count(singles),
            tensors.shape(f"{text}.weight")[1],
            channels,
            tensors.shape(f"{inside}.weight")[1] // width,
            f"{guidance}.weight" in tensors.shapes,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table: dict[str, str | tuple[Place, ...]] = dict(flux_names.ends())
        table |= {f"{name}.lin": f"{name}.linear" for name in _MODULATIONS}
        for theirs, ours in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder")):
            for their, our in flux_names.TWO_LAYERS.items():
                table[f"{theirs}.{their}"] = f"time_guidance_embed.{ours}.{our}"
        for number in range(self.doubles):
            table |= flux_names.double_block(number, self.width, ("linear_in", "linear_out"))
        for number in range(self.singles):
            table |= flux_names.whole_single_block(number)
        # The file has the shift first, the network the scale.
        return table | {"final_layer.adaLN_modulation.1": (Place("norm_out.linear", swapped=True),)}

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def build(self) -> nn.Module:
        head = self.width // self.heads
        network: nn.Module = Flux2Transformer2DModel(
            in_channels=self.latent_channels,
            num_layers=self.doubles,
            num_single_layers=self.singles,
            attention_head_dim=head,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            mlp_ratio=float(self.ratio),
            axes_dims_rope=(head // AXES,) * AXES,
            rope_theta=THETA,
            guidance_embeds=self.guided,
        )
        return network

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Flux2Inputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's text encoder, or for unsupported references.
        """
        check_text(cond, self.text_width, self.title)
        rows = canvas.rows
        text = pad(to_device(cond, device).float(), (0, 0, max(0, TEXT - cond.shape[1]), 0))
        guidance: float | None = options.get("guidance", GUIDANCE)
        references = scaled_references(options, self.latent_format, rows, device)
        return Flux2Inputs(
            to_batch(text, rows),
            torch.full((rows,), float(guidance), device=device) if self.guided and guidance is not None else None,
            references,
            check_method(options.get("reference_latents_method", "index"), self.title, (*METHODS, INDEX_TIMESTEP_ZERO))
            if references
            else "",
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the references, and whether there is guidance."""
        shapes = tuple(reference.shape[1:] for reference in inputs.references)
        return tuple(x.shape[1:]), shapes, inputs.method, inputs.guidance is None

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, guidance, text, references and LoRAs."""
        dtype, inputs, size = network.x_embedder.weight.dtype, [r.inputs for r in rows], rows[0].x.shape[-2:]
        texts, references, method = [i.text.to(dtype) for i in inputs], inputs[0].references, inputs[0].method
        placed = reference_positions((size[0], size[1]), references, method, apart=APART, patch=PATCH)
        at = torch.cat([positions(size, patch=PATCH), *placed])
        of_text = pad(torch.arange(float(max(text.shape[1] for text in texts)))[:, None], (3, 0))
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": stacked(texts),
            "guidance": None if inputs[0].guidance is None else torch.cat([i.guidance for i in inputs]),
            "at": to_device(torch.cat([of_text, pad(at, (0, 1))]), rows[0].x.device),
            "mask": by_heads(attended(there(texts), len(at))),
        }
        return given | references_together(inputs, dtype) | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, level, guidance = given["x"], given["level"], given.get("guidance")
        time, text = self._time(network, level, guidance, x.dtype), network.context_embedder(given["text"])
        tokens = [one.flatten(2).transpose(1, 2) for one in (x, *references_of(given))]
        count, length, image = tokens[0].shape[1], text.shape[1], network.x_embedder(torch.cat(tokens, dim=1))
        shards = sharding(length, count, image.shape[1] - count)
        mask, (cos, sin) = shards.mask(given.get("mask")), network.pos_embed(given["at"])
        arguments = {
            "image_rotary_emb": (shards.shard(cos, dim=0), shards.shard(sin, dim=0)),
            "joint_attention_kwargs": None if mask is None else {"attention_mask": mask},
        }
        of_image, of_words, of_both = (getattr(network, name)(time) for name in _MODULATIONS)
        if rows[0].inputs.method == INDEX_TIMESTEP_ZERO:
            still, clean = self._time(network, level * 0, guidance, x.dtype), image.shape[1] - count
            of_image = by_token(of_image, count, network.double_stream_modulation_img(still), clean)
            of_both = by_token(of_both, length + count, network.single_stream_modulation(still), clean)
            of_image, of_both = shards.shard(of_image, IMAGE_TOKENS, REFERENCE_TOKENS), shards.shard(of_both)
        text, image = shards.shard(text, TEXT_TOKENS), shards.shard(image, IMAGE_TOKENS, REFERENCE_TOKENS)
        length, count = shards.count(TEXT_TOKENS), shards.count(IMAGE_TOKENS)
        doubles, singles = (Passing(rows, kind, given) for kind in (DOUBLES, SINGLES))
        modulated = {"temb_mod_img": of_image, "temb_mod_txt": of_words, **arguments}
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                call_block = partial(block, hidden_states=image, encoder_hidden_states=text, **modulated)
                text, image = doubles.through(number, call_block, text, image)
            both = torch.cat([text, image], dim=1)
            for number, block in enumerate(network.single_transformer_blocks):
                call_block = partial(
                    block, hidden_states=both, encoder_hidden_states=None, temb_mod=of_both, **arguments
                )
                [both] = singles.through(number, call_block, both)
        output = shards.gather(network.proj_out(network.norm_out(both[:, length : length + count], time)), IMAGE_TOKENS)
        made: Tensor = output.transpose(1, 2).reshape(len(output), -1, *x.shape[-2:])
        return made

    def _time(self, network: Any, level: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the modulation input, (R,width), of levels (R,) and guidance (R,)."""
        embed = network.time_guidance_embed
        # Time reaches the sinusoids in single precision, guidance rounded, as in ComfyUI.
        time: Tensor = embed.timestep_embedder(embed.time_proj(level * TIMES).to(dtype))
        if guidance is not None:
            time = time + embed.guidance_embedder(embed.time_proj(guidance.to(dtype) * TIMES).to(dtype))
        return time


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("single_transformer_blocks.")
