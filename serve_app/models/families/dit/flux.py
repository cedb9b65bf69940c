"""Flux.1: dev, schnell and their derivatives, for inpainting (Fill), canny or depth, and editing (Kontext).

Reads the authors' single file or diffusers'; run by the layers of diffusers' FluxTransformer2DModel. Source: Black
Forest Labs 2024, FLUX.1; the numbers are ComfyUI's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.control.control import ActiveControl
from serve_app.models.control.model_control import text_tokens
from serve_app.models.families.dit import flux_names
from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.attention_bias import AttentionBias, added_logits, attention_bias
from serve_app.models.families.shared.concat import image_to_edit, mask_as_channels
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    REFERENCE_TOKENS,
    SINGLES,
    TEXT_TOKENS,
    Passing,
    Transformer,
    added_after,
    angles,
    attended,
    by_heads,
    check_text,
    control_answers,
    from_tokens,
    grid,
    lengths,
    passed,
    pooled_text,
    positions,
    stacked,
    there,
    to_tokens,
    within,
)
from serve_app.models.families.shared.fused_blocks import fused
from serve_app.models.families.shared.one_call import present
from serve_app.models.families.shared.references import (
    check_method,
    reference_positions,
    references_of,
    references_together,
    scaled_references,
)
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.ranks.sharding import sharding
from serve_app.models.unequal_texts import JointAttention
from serve_app.recipe.training import Flow, FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

MU = 1.15
GUIDANCE = 3.5
"""Default guidance of a guidance-distilled network."""
AXES = (2, 7, 7)
"""Sixteenths of a head rotated by plane, row and column."""
THETA = 10000.0
TIMES = 1000.0
EXTRA_CHANNELS = {0: "x alone", 16: "x and an image", 80: "x, a masked image and its mask"}
"""The channels concatenated with x, by their number."""

_MARKS = ("double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_attn.norm.key_norm.weight")
_DIFFUSERS_MARKS: tuple[str, ...] = ("single_transformer_blocks.0.attn.norm_k.weight",)
_OTHERS = ("distilled_guidance_layer.", "double_stream_modulation_img.", "controlnet_blocks.")
_READS_POOLED = ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight")
_MODULES = (
    *("x_embedder", "context_embedder", "time_text_embed", "transformer_blocks", "single_transformer_blocks"),
    *("norm_out", "proj_out"),
)


@dataclass(frozen=True, slots=True, eq=False)
class FluxInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D); pooled: (B,P); guidance: (B,), or None. concat: (B,C,h,w), concatenated with x. references: (B,C,h,w)
    each, scaled; method: of their positions. controls: active ControlNets. bias: of attention, or None.
    """

    text: Tensor
    pooled: Tensor
    guidance: Tensor | None = None
    concat: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    method: str = ""
    controls: tuple[ActiveControl, ...] = ()
    bias: AttentionBias | None = None

    def within(self, area: Area | None) -> FluxInputs:
        """Return the inputs for an area of the canvas; references stay whole."""
        if area is None or self.concat is None:
            return self
        return replace(self, concat=crop(self.concat, area))


@dataclass(frozen=True, slots=True, eq=False)
class FluxCall:
    """Inputs of one forward for R rows, which its ControlNets read too.

    x: (R,C,h,w), without concatenated channels. level: (R,). text: (R,T,D); there: mask of real tokens, (R,T), None:
    all. pooled: (R,P). guidance: (R,), or None.
    """

    x: Tensor
    level: Tensor
    text: Tensor
    there: Tensor | None
    pooled: Tensor
    guidance: Tensor | None

    @classmethod
    def of(cls, given: Inputs) -> FluxCall:
        """Return the call of tensors with these names."""
        x, level, text, pooled = (given[name] for name in ("x", "level", "text", "pooled"))
        return cls(x, level, text, given.get("there"), pooled, given.get("guidance"))

    def time(self, embed: Any, dtype: torch.dtype) -> Tensor:
        """Return the modulation input, (R,width): embeddings of time, guidance and pooled text.

        embed: a network's `time_text_embed`.
        """
        # Time reaches the sinusoids in single precision, guidance rounded, as in ComfyUI.
        time: Tensor = embed.timestep_embedder(embed.time_proj(self.level * TIMES).to(dtype))
        if self.guidance is not None and hasattr(embed, "guidance_embedder"):
            guidance = self.guidance.to(dtype) * TIMES
            time = time + embed.guidance_embedder(embed.time_proj(guidance).to(dtype))
        return time + embed.text_embedder(self.pooled.to(dtype)) if hasattr(embed, "text_embedder") else time


@dataclass(frozen=True, slots=True)
class Flux(Transformer):
    """A backbone. width: of a token; doubles, singles: number of blocks of each kind.

    text_width, pooled_width: of its inputs. extra_channels: concatenated with x. guided: it reads a guidance scale.
    """

    title = "Flux.1"
    latent_format = FLUX
    dtypes = (torch.bfloat16, torch.float16)

    width: int
    heads: int
    doubles: int
    singles: int
    text_width: int
    pooled_width: int
    latent_channels: int = 16
    extra_channels: int = 0
    guided: bool = True

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return any(name in tensors.shapes for name in _READS_POOLED) and not any(map(tensors.has, _OTHERS))

    @classmethod
    def probe(cls, tensors: Tensors) -> Flux:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        if _by_diffusers(tensors):
            first, last, text = "x_embedder", "proj_out", "context_embedder"
            pooled, guidance = (f"time_text_embed.{name}_embedder.linear_1" for name in ("text", "guidance"))
            doubles, singles = "transformer_blocks.", "single_transformer_blocks."
            norms: tuple[str, ...] = ("transformer_blocks.0.attn.norm_k.weight",)
        else:
            first, last, text = "img_in", "final_layer.linear", "txt_in"
            pooled, guidance = "vector_in.in_layer", "guidance_in.in_layer"
            doubles, singles, norms = "double_blocks.", "single_blocks.", _MARKS
        width, fed = tensors.shape(f"{first}.weight")
        head = next(tensors.shapes[name][0] for name in norms if name in tensors.shapes)
        channels = tensors.shape(f"{last}.weight")[0] // PATCH**2
        extra = fed // PATCH**2 - channels
        if head % 32 or width % head or extra not in EXTRA_CHANNELS:
            known = " or ".join(str(channels + more) for more in EXTRA_CHANNELS)
            raise tensors.unsupported(
                f"has a Flux backbone {width} wide with heads of {head} and {fed // PATCH**2} input channels; "
                f"supported are heads of a multiple of 32, and {known} channels"
            )
        return cls(
            width,
            width // head,
            tensors.count(doubles),
            tensors.count(singles),
            tensors.shape(f"{text}.weight")[1],
            tensors.shapes.get(f"{pooled}.weight", (0, 0))[1],
            channels,
            extra,
            f"{guidance}.weight" in tensors.shapes,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table = dict(flux_names.ends()) | dict(flux_names.embedders())
        for number in range(self.doubles):
            table |= flux_names.double_block(number, self.width)
        for number in range(self.singles):
            table |= flux_names.single_block(number, self.width, 4 * self.width)
        return table | dict(flux_names.modulation(self.doubles, self.singles))

    def build(self) -> nn.Module:
        network = FluxTransformer2DModel(
            in_channels=(self.latent_channels + self.extra_channels) * PATCH**2,
            out_channels=self.latent_channels * PATCH**2,
            num_layers=self.doubles,
            num_single_layers=self.singles,
            attention_head_dim=self.width // self.heads,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            pooled_projection_dim=self.pooled_width,
            guidance_embeds=self.guided,
            axes_dims_rope=self.axes,
        )
        return fused(network)

    @property
    def sharded_heads(self) -> int:
        return self.heads

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of a head rotated by each coordinate."""
        return tuple(self.width // self.heads // 16 * share for share in AXES)

    def lora_names(self, parameters: Sequence[str]) -> Table:
        return flux_names.lora_names(parameters, self.table(), self.singles)

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        """Return dev's training, or schnell's for a network without guidance."""
        return FluxFlow(MU) if self.guided else Flow(1.0, 1.0)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> FluxInputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's text encoder, or for unsupported references or
        attention bias.
        """
        check_text(cond, self.text_width, self.title)
        rows = canvas.rows
        guidance: float | None = options.get("guidance", GUIDANCE)
        if self.extra_channels and options.get("reference_latents"):
            raise NodeError(f"this {self.title} backbone reads {self._edited_images} and no reference latents")
        references = scaled_references(options, self.latent_format, rows, device)
        concat = self._concat(options, canvas)
        return FluxInputs(
            to_batch(to_device(cond, device).float(), rows),
            to_batch(to_device(pooled_text(options, self.pooled_width, self.title), device), rows),
            torch.full((rows,), float(guidance), device=device) if self.guided and guidance is not None else None,
            None if concat is None else to_device(concat, device),
            references,
            check_method(options.get("reference_latents_method", "offset"), self.title) if references else "",
            options.get("control") or (),
            attention_bias(options, cond.shape[1], rows, device),
        )

    @property
    def _edited_images(self) -> str:
        return EXTRA_CHANNELS[self.extra_channels]

    def _concat(self, options: Mapping[str, Any], canvas: Canvas) -> Tensor | None:
        if not self.extra_channels:
            return None
        image = image_to_edit(options, canvas.latents, self.latent_format)
        if self.extra_channels == self.latent_channels:
            return image
        mask = mask_as_channels(options, canvas.latents, canvas.mask, self.latent_format.factor)
        return torch.cat([image, mask], dim=1)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the references, and whether there are guidance and an attention bias.

        A bias is as large as attention's logits, and one row's makes the others have one too.
        """
        shapes = tuple(reference.shape[1:] for reference in inputs.references)
        return tuple(x.shape[1:]), shapes, inputs.method, inputs.guidance is None, inputs.bias is None

    def joint_attention(self, x: Tensor, inputs: Any) -> JointAttention:
        length = inputs.text.shape[1]
        images = sum(math.prod(grid(*image.shape[-2:])) for image in (x, *inputs.references))
        return JointAttention(length, length + images, self.width, self.doubles + self.singles)

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the cells of x and the references, and the equivalent of an attention bias in memory.

        A token's four cells take twelve widths in its blocks, in half precision; a number of the bias exists in single
        precision and again in half, which equals three of those.
        """
        cells = super(Flux, self).cells(x, inputs)
        if inputs.bias is None:
            return cells
        images = (x, *inputs.references)
        attended: int = inputs.bias.text + sum(math.prod(grid(*image.shape[-2:])) for image in images)
        return cells + x.shape[0] * attended**2 // self.width

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors.

        Rows may differ in level, guidance, text and its length, references, controls, LoRAs and attention biases.
        """
        dtype, inputs, size = network.x_embedder.bias.dtype, [r.inputs for r in rows], rows[0].x.shape[-2:]
        texts, concats = [i.text.to(dtype) for i in inputs], [i.concat for i in inputs if i.concat is not None]
        text, x = stacked(texts), torch.cat([r.x for r in rows]).to(dtype)
        behind, known = _behind(rows, text, there(texts), self.width)
        length = text.shape[1] + (0 if behind is None else behind.shape[1])
        of_image = positions(size)
        images = reference_positions((size[0], size[1]), inputs[0].references, inputs[0].method)
        at = self.placed(length, [of_image, *images])
        biases = [(r.count, r.inputs.bias) for r in rows]
        bias = added_logits(known, length, size, len(at) - length - len(of_image), biases)
        tensors = {
            "x": x,
            "level": torch.cat([r.timestep for r in rows]),
            "text": text,
            "there": there(texts),
            "pooled": torch.cat([i.pooled for i in inputs]),
            "guidance": None if inputs[0].guidance is None else torch.cat([i.guidance for i in inputs]),
            "behind": behind,
            "concat": torch.cat(concats).to(dtype) if concats else None,
            "at": to_device(at, x.device),
            "mask": by_heads(attended(known, len(at) - length)) if bias is None else bias.to(dtype),
        }
        given = present(tensors) | references_together(inputs, dtype)
        return given | control_answers(rows, x, partial(FluxCall.of, given)) | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        call, size = FluxCall.of(given), given["x"].shape[-2:]
        time = call.time(network.time_text_embed, call.x.dtype)
        text = network.context_embedder(call.text)
        if "behind" in given:
            text = torch.cat([text, given["behind"]], dim=1)
        images = [torch.cat([call.x, given["concat"]], dim=1) if "concat" in given else call.x, *references_of(given)]
        tokens = [*map(to_tokens, images)]
        all_tokens = torch.cat(tokens, dim=1)
        count = tokens[0].shape[1]
        shards = sharding(text.shape[1], count, all_tokens.shape[1] - count)
        text, image = (
            shards.shard(text, TEXT_TOKENS),
            network.x_embedder(shards.shard(all_tokens, IMAGE_TOKENS, REFERENCE_TOKENS)),
        )
        length, count = shards.count(TEXT_TOKENS), shards.count(IMAGE_TOKENS)
        shared = {
            "temb": silu(time),
            "image_rotary_emb": shards.shard(self.turns(given["at"]), dim=0),
            "attention_mask": shards.mask(given.get("mask")),
        }
        doubles, singles = (Passing(rows, kind, given) for kind in (DOUBLES, SINGLES))
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                call_block = partial(block, hidden_states=image, encoder_hidden_states=text, **shared)
                text, image = doubles.through(number, call_block, text, image)
                for residual in added_after(given, DOUBLES, number):
                    image[:, :count] += shards.shard(residual, IMAGE_TOKENS).to(image.dtype)
            both = torch.cat([text, image], dim=1)
            for number, block in enumerate(network.single_transformer_blocks):
                [both] = singles.through(number, partial(block, hidden_states=both, **shared), both)
                for residual in added_after(given, SINGLES, number):
                    both[:, length : length + count] += shards.shard(residual, IMAGE_TOKENS).to(both.dtype)
        image = both[:, length : length + count]
        return from_tokens(shards.gather(network.proj_out(network.norm_out(image, time)), IMAGE_TOKENS), *size)

    def placed(self, text: int, images: Sequence[Tensor]) -> Tensor:
        """Return the positions of tokens (n,3). text: number of its tokens; images: positions of theirs."""
        return torch.cat([torch.zeros(text, 3), *images])

    def turns(self, at: Tensor) -> Tensor:
        """Return the rotary positions of tokens at (n,3)."""
        return turns_of(angles(at, self.axes, THETA))


def _behind(
    rows: Sequence[Rows], text: Tensor, there: Tensor | None, width: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens that model controls append to a text (R,T,D): (R,t,width), or None.

    Also the mask of real tokens of both, (R,T+t), None: all. there: of the text, (R,T). The appended tokens share a
    position, so their order is irrelevant.
    """
    if not any(r.controls for r in rows):
        return None, there
    empty = text.new_zeros(1, 0, width)
    said = [torch.cat([empty.expand(r.count, -1, -1), *text_tokens(r)], dim=1).to(text.dtype) for r in rows]
    counts, behind = lengths(said), stacked(said)
    if there is not None or min(counts) < max(counts):
        of_text = torch.ones_like(text[..., 0], dtype=torch.bool) if there is None else there
        there = torch.cat([of_text, within(counts, max(counts), text.device)], dim=1)
    return behind, there


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("transformer_blocks.")
