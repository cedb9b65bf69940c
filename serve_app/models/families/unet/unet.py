"""Stable Diffusion's UNet, of any width and depth: the common part of SD 1.x, SD 2.x and SDXL.

Its size is read off a backbone's names and shapes in the single file's layout or in diffusers'; run as diffusers'
UNet2DConditionModel. Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm, log
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.control import ActiveControl, Controlled, control_residuals
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.families.unet.unet_blocks import slimmed
from serve_app.models.families.unet.unet_functions import FUNCTIONS, transformers, with_functions
from serve_app.models.families.unet.unet_names import DIFFUSERS, lora_names, single_file
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.unet_patches.grounding import ActiveGrounding, with_boxes
from serve_app.models.unet_patches.unet_layers import with_layers
from serve_app.recipe.layers import FreeU
from serve_app.recipe.training import Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.transfer import to_device

NORM_GROUPS = 32
"""Groups of every group norm of these networks, so every width is a multiple of it."""

HEADS = 8
"""Attention heads of SD 1.x backbones at every width."""

HEAD_WIDTH = 64
"""Width of the heads of backbones since SD 2."""

CELL = 8
"""Pixels a latent cell covers along one side."""

SIZE_WIDTH = 256
"""Width of the embedding of each size that SDXL reads."""

CONCAT_CHANNELS = {0: "x alone", 4: "an image to edit", 5: "a mask and the masked image"}
"""The channels concatenated with x, by their number."""

REPEATED = 2
"""Limit on the length to which texts are repeated, as a multiple of the longest."""

SKIPS, FEATURES = "skips", "features"
"""Where controls add to the encoder: to what it passes on to the decoder, or inside its levels."""

_VECTORS = ("label_emb.0.0.weight", "class_embedding.linear_1.weight", "add_embedding.linear_1.weight")
"""The layer that reads SDXL's vector, in each layout."""


@dataclass(frozen=True, slots=True, eq=False)
class UnetInputs:
    """Conditioning inputs for B rows.

    context: (B,T,D), the text. vector: (B,A), added to the time embedding. concat: (B,C,h,w), concatenated with x.
    """

    context: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None
    controls: tuple[ActiveControl, ...] = ()
    boxes: ActiveGrounding | None = None

    def within(self, area: Area | None) -> UnetInputs:
        """Return the inputs for an area of the canvas."""
        if area is None or self.concat is None:
            return self
        return replace(self, concat=crop(self.concat, area))


@dataclass(frozen=True, slots=True, eq=False)
class UnetCall:
    """Inputs of one forward of a UNet for R rows, which its ControlNets read too.

    x: (R,C,h,w), scaled, without concatenated channels. timestep: (R,). context: (R,T,D); mask: (R,T), True for real
    tokens. vector: (R,A).
    """

    x: Tensor
    timestep: Tensor
    context: Tensor
    mask: Tensor | None = None
    vector: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Unet(OneCall):
    """A UNet. channels, res_blocks, depths: one entry a level, finest first; depth 0 is a level without attention.

    depths count transformer layers; `middle_depth` those between the two halves. context_dim: width of the text's rows.
    linear: linear layers around attention, and heads HEAD_WIDTH wide, as in SD 2 and SDXL. concat_channels:
    concatenated with x (5 for inpainting, 4 for editing). vector_dim: width of SDXL's pooled text and sizes.
    """

    vae_prefix = "first_stage_model."
    kind = "Stable Diffusion"
    functions = FUNCTIONS
    steady: ClassVar[tuple[type, ...]] = (FreeU,)
    sizes: ClassVar[int] = 0
    """Number of sizes that follow the pooled text."""

    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context_dim: int
    latent_channels: int = 4
    linear: bool = False
    concat_channels: int = 0
    vector_dim: int = 0

    @classmethod
    @abstractmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        """Whether a UNet with these text and vector widths is of this family; 0: without a vector."""

    @abstractmethod
    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor | None:
        """Return the addition to the time embedding, (N,A) float32."""

    @abstractmethod
    def concat(
        self, options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, trained_as: Training
    ) -> Tensor | None:
        """Return the channels to concatenate with x, (B,C,h,w). latents, mask: of the run."""

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        pooled = self.vector_dim - self.sizes * SIZE_WIDTH
        options = {"pooled_output": torch.empty(1, pooled, device="meta")} if self.vector_dim else {}
        return torch.empty(1, tokens, self.context_dim, device="meta"), options

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each level."""
        return tuple(max(1, width // HEAD_WIDTH) if self.linear else HEADS for width in self.channels)

    @property
    def skip_widths(self) -> list[int]:
        """Widths of the encoder's outputs: its first convolution, each residual block and each downsampling."""
        last = len(self.channels) - 1
        widths = [self.channels[0]]
        for level, (width, blocks) in enumerate(zip(self.channels, self.res_blocks, strict=True)):
            widths += [width] * (blocks + (level != last))
        return widths

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return cls.has_widths(*_reads(tensors))

    @classmethod
    def probe(cls, tensors: Tensors) -> Unet:
        """Read the network's size off a backbone's tensors, named as in the single file or as in diffusers.

        Errors: ModelFileError for another family's.
        """
        if tensors.has("down_blocks."):
            return cls._probe_diffusers(tensors)
        width = tensors.shape("input_blocks.0.0.weight")[0]
        channels, res_blocks, depths = [width], [0], [0]
        for index in range(1, tensors.count("input_blocks.")):
            block = f"input_blocks.{index}"
            if tensors.has(f"{block}.0.op."):
                channels.append(channels[-1])
                res_blocks.append(0)
                depths.append(0)
                continue
            channels[-1] = tensors.shape(f"{block}.0.out_layers.3.weight")[0]
            depth = tensors.count(f"{block}.1.transformer_blocks.")
            if res_blocks[-1] and depth != depths[-1]:
                raise tensors.unsupported(
                    f"has {depth} layers of attention in {block}, {depths[-1]} before it in the level"
                )
            res_blocks[-1] += 1
            depths[-1] = depth
        return _checked(
            tensors,
            cls(
                tuple(channels),
                tuple(res_blocks),
                tuple(depths),
                tensors.count("middle_block.1.transformer_blocks."),
                tensors.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
                tensors.shape("out.2.weight")[0],
                linear=len(tensors.shape("middle_block.1.proj_in.weight")) == 2,
                concat_channels=tensors.shape("input_blocks.0.0.weight")[1] - tensors.shape("out.2.weight")[0],
                vector_dim=_reads(tensors)[1],
            ),
            tensors.shape("time_embed.0.weight"),
        )

    @classmethod
    def _probe_diffusers(cls, tensors: Tensors) -> Unet:
        levels = [f"down_blocks.{level}" for level in range(tensors.count("down_blocks."))]
        middle = "mid_block.attentions.0"
        latent_channels = tensors.shape("conv_out.weight")[0]
        return _checked(
            tensors,
            cls(
                tuple(tensors.shape(f"{level}.resnets.0.conv1.weight")[0] for level in levels),
                tuple(tensors.count(f"{level}.resnets.") for level in levels),
                tuple(tensors.count(f"{level}.attentions.0.transformer_blocks.") for level in levels),
                tensors.count(f"{middle}.transformer_blocks."),
                tensors.shape(f"{middle}.transformer_blocks.0.attn2.to_k.weight")[1],
                latent_channels,
                linear=len(tensors.shape(f"{middle}.proj_in.weight")) == 2,
                concat_channels=tensors.shape("conv_in.weight")[1] - latent_channels,
                vector_dim=_reads(tensors)[1],
            ),
            tensors.shape("time_embedding.linear_1.weight"),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and tensors.has("down_blocks."):
            return DIFFUSERS
        return dict(single_file(self.res_blocks, self.depths, has_vector=self.vector_dim > 0))

    def build(self) -> nn.Module:
        down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.depths]
        up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(self.depths)]
        # diffusers reads the middle's depth from the last level's, which is free when that level has no attention.
        depths = (*self.depths[:-1], self.middle_depth)
        unet = UNet2DConditionModel(
            in_channels=self.latent_channels + self.concat_channels,
            out_channels=self.latent_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=self.channels,
            layers_per_block=self.res_blocks,
            transformer_layers_per_block=tuple(max(depth, 1) for depth in depths),
            cross_attention_dim=self.context_dim,
            # The argument's name is historical: for this class it is the number of heads.
            attention_head_dim=self.heads,
            use_linear_projection=self.linear,
            class_embed_type="projection" if self.vector_dim else None,
            projection_class_embeddings_input_dim=self.vector_dim or None,
            norm_num_groups=NORM_GROUPS,
        )
        return slimmed(unet)

    def lora_names(self, parameters: Sequence[str]) -> dict[str, str]:
        return lora_names(parameters, self.table())

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> UnetInputs:
        """Return the text, and the family's further inputs.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        if cond.shape[-1] != self.context_dim:
            raise NodeError(
                f"the conditioning is {cond.shape[-1]} wide, and this backbone reads text {self.context_dim} wide: "
                "they are of different families"
            )
        vector = self.vector(options, canvas, role)
        concat = self.concat(options, canvas.latents, canvas.mask, trained_as)
        return UnetInputs(
            to_batch(to_device(cond, device).float(), canvas.rows),
            vector=None if vector is None else to_batch(to_device(vector, device), canvas.rows),
            concat=None if concat is None else to_device(concat, device),
            controls=options.get("control") or (),
            boxes=options.get("gligen"),
        )

    def is_steady(self, row: Rows) -> bool:
        """Whether the same is computed for a row in every forward; grounding boxes are handled by layers."""
        return super(Unet, self).is_steady(row) and not row.inputs.boxes

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, in text and its length, in LoRAs and controls."""
        dtype, inputs = next(network.parameters()).dtype, [r.inputs for r in rows]
        x = torch.cat([r.x for r in rows]).to(dtype)
        context, mask = stack_contexts([i.context for i in inputs])
        vectors = [i.vector for i in inputs if i.vector is not None]
        vector = torch.cat(vectors).to(dtype) if vectors else None
        call = UnetCall(x, torch.cat([r.timestep for r in rows]), context.to(dtype), mask, vector)
        added = residuals([Controlled(r.count, r.sigma, r.inputs.controls, r.exclusive) for r in rows], call)
        concats = [i.concat for i in inputs if i.concat is not None]
        fed = torch.cat([x, torch.cat(concats).to(dtype)], dim=1) if concats else x
        tensors = {"x": fed, "timestep": call.timestep, "context": call.context, "vector": vector, "mask": mask}
        return tensors | added

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        """Return the network's output. Rows may differ in patches of layers, boxes, and functions of packs."""
        layers, boxes = [(r.count, r.layers) for r in rows], [(r.count, r.inputs.boxes) for r in rows]
        size = (given["x"].shape[-2], given["x"].shape[-1])
        with (
            with_layers(network, layers, size),
            with_boxes(transformers(network), boxes, size),
            with_functions(network, rows),
        ):
            output: Tensor = network(
                given["x"],
                given["timestep"],
                given["context"],
                class_labels=given.get("vector"),
                encoder_attention_mask=given.get("mask"),
                return_dict=False,
                **arguments(given),
            )[0]
        return output


def residuals(rows: Sequence[Controlled], call: UnetCall) -> dict[str, Tensor]:
    """Return the controls' outputs, (R,C,h,w) each, by place and index; {} if none is active."""
    sums = control_residuals(rows, call, call.x)
    return {f"{place} {i}": added for place, there in sums.items() for i, added in enumerate(there)}


def arguments(given: Inputs) -> dict[str, Any]:
    """Return diffusers' keyword arguments for the controls' outputs, as named by `residuals`."""
    skips, features = ([t for name, t in given.items() if name.startswith(f"{place} ")] for place in (SKIPS, FEATURES))
    made: dict[str, Any] = {}
    if skips:
        made["down_block_additional_residuals"] = tuple(skips[:-1])
        made["mid_block_additional_residual"] = skips[-1]
    if features:
        made["down_intrablock_additional_residuals"] = features
    return made


def stack_contexts(contexts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return contexts (R_i,T_i,D) as one (R,T,D), and a mask of real tokens, (R,T), or None if all are.

    Contexts of different lengths are repeated to a common length, as in ComfyUI, if that is not much longer than the
    longest: each token then counts equally often, which does not change attention, and a mask would keep a GPU from its
    faster kernels. Texts of a CLIP are multiples of its length. Others are padded to the longest with zeros.
    """
    lengths = [context.shape[1] for context in contexts]
    longest, width, common = max(lengths), contexts[0].shape[2], lcm(*lengths)
    if 0 < common <= REPEATED * longest:
        repeated = [c if c.shape[1] == common else c.repeat(1, common // c.shape[1], 1) for c in contexts]
        return torch.cat(repeated), None
    device = contexts[0].device
    zero = _zero(device, contexts[0].dtype)
    # One copy to a GPU for all rows; the mask is computed on the host.
    parts = [part for context in contexts for row in context for part in (row, zero.expand(longest - len(row), width))]
    counting = [len(row) for context in contexts for row in context]
    mask = torch.arange(longest)[None] < torch.tensor(counting)[:, None]
    return torch.cat(parts).view(len(counting), longest, width), to_device(mask, device)


@lru_cache(maxsize=64)
def _zero(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a cached zero (1,1), broadcast for any shape."""
    return torch.zeros(1, 1, device=device, dtype=dtype)


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding of each of N numbers, (N,width), cosines first."""
    half = width // 2
    frequencies = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = numbers[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _reads(tensors: Tensors) -> tuple[int, int]:
    """Return the widths of a UNet's text and vector inputs; 0 for none."""
    attention = "transformer_blocks.0.attn2.to_k.weight"
    texts = (f"middle_block.1.{attention}", f"mid_block.attentions.0.{attention}")
    text, vector = (
        next((tensors.shapes[name][1] for name in names if name in tensors.shapes), 0) for names in (texts, _VECTORS)
    )
    return text, vector


def _checked(tensors: Tensors, found: Unet, time_width: tuple[int, ...]) -> Unet:
    width = found.channels[0]
    if time_width != (4 * width, width):
        raise tensors.unsupported(
            f"has a backbone {width} wide at its first level and a time embedding of {time_width}"
        )
    if odd := [c for c in found.channels if c % NORM_GROUPS]:
        raise tensors.unsupported(f"has a backbone {odd[0]} wide, not a multiple of {NORM_GROUPS}")
    if found.depths[-1] not in (0, found.middle_depth):
        raise tensors.unsupported(
            f"has {found.depths[-1]} transformer layers at its last level and {found.middle_depth} in its middle"
        )
    if found.concat_channels not in CONCAT_CHANNELS:
        raise tensors.unsupported(
            f"has a backbone of {found.latent_channels + found.concat_channels} input channels for "
            f"{found.latent_channels} latent ones (such as depth models, video models and upscalers have)"
        )
    pooled = found.vector_dim - found.sizes * SIZE_WIDTH
    if found.vector_dim and pooled <= 0:
        raise tensors.unsupported(f"has a backbone with a vector input {found.vector_dim} wide, as video models are")
    return found
