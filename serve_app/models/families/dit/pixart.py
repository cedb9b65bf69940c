"""PixArt-α and Σ: self-attention among image tokens and cross-attention to a text.

Reads the authors' names or diffusers'; run by the layers of diffusers' PixArtTransformer2DModel. Source: Chen et al.
2023, arXiv:2310.00426; Chen et al. 2024, arXiv:2403.04692; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn

from serve_app.models.families.family import Located, Rows
from serve_app.models.families.shared.dit import (
    PATCH,
    Transformer,
    check_text,
    from_tokens,
    grid,
    lora_names,
    stacked,
    there,
    thirds,
    whole_patches,
)
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Discrete, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import SD, SDXL
from serve_app.sampling.transfer import to_device

HEADS = 16
"""Number of attention heads of all published models."""
SQUARE = 64
"""Unit of positions: squares of this many latent cells along a side."""
THETA = 10000.0
PIXELS_A_CELL = 8

_BESIDE = ("x_embedder.proj.weight", "pos_embed.proj.weight")
"""Tensors that LTX-Video lacks, whose files share a mark."""
_SIZED = ("ar_embedder.mlp.0.weight", "adaln_single.emb.aspect_ratio_embedder.linear_1.weight")
_POSITIONS, _UNREAD = "pos_embed", ("pos_embed", "y_embedder.y_embedding")
_MODULES = (
    *("pos_embed.proj", "caption_projection", "adaln_single", "transformer_blocks", "scale_shift_table", "proj_out"),
)
_EMBEDDERS = {"t_embedder": "timestep", "csize_embedder": "resolution", "ar_embedder": "aspect_ratio"}
_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
    **{f"y_embedder.y_proj.fc{number}": f"caption_projection.linear_{number}" for number in (1, 2)},
    **{
        f"{theirs}.mlp.{2 * layer}": f"adaln_single.emb.{ours}_embedder.linear_{layer + 1}"
        for theirs, ours in _EMBEDDERS.items()
        for layer in (0, 1)
    },
}
_BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}


@dataclass(frozen=True, slots=True, eq=False)
class PixArtInputs:
    """Conditioning inputs for B rows. text: (B,T,D).

    size: the picture's height and width in pixels, None: those of x.
    """

    text: Tensor
    size: tuple[int, int] | None = None

    def within(self, area: Area | None) -> PixArtInputs:
        return self


@dataclass(frozen=True, slots=True)
class PixArt(Transformer):
    """A backbone, Σ's. width: of a token; stretch: divisor of positions, 0: derived from x."""

    title = "PixArt"
    dispatches = False
    trained_as = Discrete(even=True)
    latent_format = SDXL

    width: int
    layers: int
    text_width: int
    stretch: int = 0

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if (found := cls.of_kind(files[0])) is not None:
            prefix, tensors = found
            sized, concats = (any(name in tensors.shapes for name in names) for names in (_SIZED, _BESIDE))
            if concats and sized == cls.sized():
                read = {name: shape for name, shape in tensors.shapes.items() if name not in _UNREAD}
                yield Located(cls.probe(tensors), Tensors(read, tensors.where), prefix=prefix)

    @classmethod
    def sized(cls) -> bool:
        """Whether it reads the picture's size."""
        return False

    @classmethod
    def probe(cls, tensors: Tensors) -> PixArt:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        by_diffusers = _by_diffusers(tensors)
        patches, text, blocks = (
            ("pos_embed.proj.weight", "caption_projection.linear_1.weight", "transformer_blocks.")
            if by_diffusers
            else ("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.")
        )
        width, channels = tensors.shape(patches)[:2]
        if width % (6 * HEADS) or channels != SDXL.channels:
            raise tensors.unsupported(
                f"has a PixArt backbone {width} wide, fed {channels} channels; supported are multiples of {6 * HEADS} "
                f"wide, fed {SDXL.channels}"
            )
        table = tensors.shapes.get(_POSITIONS, (1, 0, width))[1]
        return cls(
            width,
            tensors.count(blocks),
            tensors.shape(text)[1],
            isqrt(table) * PATCH // SQUARE,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        for number in range(self.layers):
            theirs, ours = f"blocks.{number}", f"transformer_blocks.{number}"
            table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _BLOCK.items()}
            table[f"{theirs}.attn.qkv"] = thirds(self.width, *(f"{ours}.attn1.to_{kind}" for kind in "qkv"))
            table[f"{theirs}.cross_attn.kv_linear"] = thirds(self.width, *(f"{ours}.attn2.to_{kind}" for kind in "kv"))
        return table

    def build(self) -> nn.Module:
        network = PixArtTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=self.width // HEADS,
            in_channels=SDXL.channels,
            out_channels=2 * SDXL.channels,
            num_layers=self.layers,
            cross_attention_dim=self.width,
            caption_channels=self.text_width,
            use_additional_conditions=self.sized(),
        )
        # Without its table of positions, which are computed for each size.
        patches = nn.Module()
        patches.proj = network.pos_embed.proj
        network.pos_embed = patches
        built: nn.Module = network
        return built

    def lora_names(self, parameters: Sequence[str]) -> Table:
        names = dict(lora_names(parameters, self.table()))
        by_peft = {name: found for name, found in names.items() if name.startswith("base_model.model.")}
        return names | {f"unet.{name}": found for name, found in by_peft.items()}

    @property
    def sharded_heads(self) -> int:
        return HEADS

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> PixArtInputs:
        """Return the text, and the size of the picture if the conditioning has one: ComfyUI's options.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        check_text(cond, self.text_width, self.title)
        height, width = options.get("height"), options.get("width")
        size = None if height is None or width is None else (int(height), int(width))
        return PixArtInputs(to_batch(to_device(cond, device).float(), canvas.rows), size)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, its length and LoRAs."""
        dtype, device = network.proj_out.weight.dtype, rows[0].x.device
        texts = [r.inputs.text.to(dtype) for r in rows]
        known = there(texts)
        return {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]).float(),
            "text": stacked(texts),
            # Attention is faster without a mask.
            "mask": None if known is None else known[:, None],
            "places": to_device(self.places(rows[0].x.shape[-2:]), device).to(dtype),
            "sizes": to_device(self.sizes(rows), device) if self.sized() else None,
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = given["x"]
        image = network.pos_embed.proj(whole_patches(x)).flatten(2).transpose(1, 2) + given["places"]
        time = self.time(network.adaln_single.emb, given, x.dtype)
        modulated = network.adaln_single.linear(nn.functional.silu(time))
        text, mask = network.caption_projection(given["text"]), given.get("mask")
        shards = sharding(image.shape[1])
        image, of_text = shards.shard(image), [(block.attn2, None) for block in network.transformer_blocks]
        with attention_over(shards.of_attention, apart=of_text):
            for block in network.transformer_blocks:
                image = block(image, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=modulated)
        shift, scale = (network.scale_shift_table[None] + time[:, None]).chunk(2, dim=1)
        made = shards.gather(network.proj_out(network.norm_out(image) * (1 + scale) + shift), 0)
        # The other channels are a variance, which samplers ignore.
        return from_tokens(made, *x.shape[-2:], channels_last=True)[:, : SDXL.channels]

    def time(self, embed: Any, given: Inputs, dtype: torch.dtype) -> Tensor:
        """Return the modulation input (R,width) of rows' levels and picture sizes."""
        # Time reaches the sinusoids in single precision.
        time: Tensor = embed.timestep_embedder(embed.time_proj(given["level"]).to(dtype))
        if "sizes" not in given:
            return time
        numbers = given["sizes"]
        waves = embed.additional_condition_proj(numbers.flatten()).view(len(numbers), 3, -1).to(dtype)
        sizes, ratio = embed.resolution_embedder(waves[:, :2]), embed.aspect_ratio_embedder(waves[:, 2])
        return time + torch.cat([sizes.flatten(1), ratio], dim=1)

    def sizes(self, rows: Sequence[Rows]) -> Tensor:
        """Return the height, width and ratio of each row's picture, (R,3)."""
        sizes = []
        for r in rows:
            height, width = r.inputs.size or (PIXELS_A_CELL * side for side in r.x.shape[-2:])
            sizes += [(float(height), float(width), height / width)] * r.count
        return torch.tensor(sizes)

    def places(self, size: Sequence[int]) -> Tensor:
        """Return the sinusoidal positions of tokens, (1,n,width), for latents of a size (h,w)."""
        middle = sum(size) // 2
        squares = max(1, round(middle / SQUARE))
        stretch = self.stretch or squares
        rows, columns = (torch.arange(count) / (count / (squares * SQUARE // PATCH)) / stretch for count in grid(*size))
        waves = THETA ** -(torch.arange(self.width // 4) / (self.width / 4))
        of_rows, of_columns = (
            torch.cat([(axis[:, None] * waves).sin(), (axis[:, None] * waves).cos()], dim=1) for axis in (rows, columns)
        )
        spread = (len(rows), len(columns), -1)
        both = torch.cat([of_columns[None].expand(*spread), of_rows[:, None].expand(*spread)], dim=-1)
        return both.reshape(1, -1, self.width)


@dataclass(frozen=True, slots=True)
class PixArtAlpha(PixArt):
    """α's, at 1024 pixels, which reads the picture's size."""

    latent_format = SD

    @classmethod
    def sized(cls) -> bool:
        return True


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("transformer_blocks.")
