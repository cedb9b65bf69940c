"""What a model file holds, read off its tensors' names and shapes: no hub, no shipped config, no tensor read.

One dataclass a part of Stable Diffusion 1.x (Rombach et al. 2022, arXiv:2112.10752) in its published single-file
layout, of any width and depth. Pure: it knows neither files nor torch; `checkpoint` reads, `layout` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from serve_app.errors import ModelFileError

Shape: TypeAlias = tuple[int, ...]

NORM_GROUPS = 32
"""Every group norm of these networks has so many groups, so every width is a multiple of it."""

HEADS = 8
"""SD 1.x backbones have this many attention heads at every width."""

HEAD_WIDTH = 64
"""A CLIP text encoder's heads are this wide."""

VOCABULARY = 49408
"""Tokens CLIP knows."""

_OTHERS = {
    "label_emb.": "SDXL",
    "joint_blocks.": "SD 3",
    "double_blocks.": "Flux",
    "conditioner.": "SDXL",
    "cond_stage_model.model.": "SD 2 (OpenCLIP)",
    "blocks.0.self_attn.": "Wan",
    "down_blocks.": "diffusers",
    "lora_": "LoRA",
}
_SUPPORTED = "supported are single files in the SD 1.x layout"


class Tensors:
    """The tensors of one part: names without the part's prefix, with shapes, and where they come from for errors."""

    def __init__(self, shapes: Mapping[str, Shape], where: str) -> None:
        self.shapes = shapes
        self.where = where
        self._prefixes = {name[: i + 1] for name in shapes for i, char in enumerate(name) if char == "."}

    def has(self, prefix: str) -> bool:
        """Whether any name starts with the prefix, which ends with a dot."""
        return prefix in self._prefixes

    def count(self, prefix: str) -> int:
        """Return how many of prefix0., prefix1., … there are without a gap."""
        number = 0
        while self.has(f"{prefix}{number}."):
            number += 1
        return number

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape. Errors: ModelFileError if it is absent, naming the family it looks like."""
        if name in self.shapes:
            return self.shapes[name]
        raise self.unsupported(f"holds no tensor '{name}'{self.family()}")

    def unsupported(self, found: str) -> ModelFileError:
        """Return the error that says what was found, where, and what is supported."""
        return ModelFileError(f"{self.where} {found}; {_SUPPORTED}")

    def family(self) -> str:
        """Return " (it looks like …)" when the names are those of a family that is not supported, else ""."""
        names = {family for mark, family in _OTHERS.items() if any(mark in name for name in self.shapes)}
        return f" (it looks like {' or '.join(sorted(names))})" if names else ""


@dataclass(frozen=True, slots=True)
class UNetArchitecture:
    """A backbone. channels, res_blocks, depths: one entry a level, finest first; depth 0 is a level without attention.

    depths count transformer layers; `middle_depth` those between the two halves. context_dim: width of the text's rows.
    """

    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context_dim: int
    latent_channels: int = 4

    @classmethod
    def probe(cls, tensors: Tensors) -> UNetArchitecture:
        """Read the architecture off a backbone's tensors. Errors: ModelFileError for another family's."""
        if tensors.has("label_emb."):
            raise tensors.unsupported("has a backbone with a class or size embedding (it looks like SDXL)")
        width, in_channels = tensors.shape("input_blocks.0.0.weight")[:2]
        latent_channels = tensors.shape("out.2.weight")[0]
        if in_channels != latent_channels:
            kind = "an inpainting or editing model" if in_channels > latent_channels else "an upscaler"
            raise tensors.unsupported(f"has a backbone of {in_channels} input channels, {kind}")
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
        middle_depth = tensors.count("middle_block.1.transformer_blocks.")
        found = cls(
            tuple(channels), tuple(res_blocks), tuple(depths), middle_depth, _context_dim(tensors), latent_channels
        )
        found._check(tensors)
        return found

    def _check(self, tensors: Tensors) -> None:
        width = tensors.shape("input_blocks.0.0.weight")[0]
        time_width = tensors.shape("time_embed.0.weight")
        if self.channels[0] != width or time_width != (4 * width, width):
            raise tensors.unsupported(
                f"has a backbone {self.channels[0]} wide at its first level, {width} at its input and a time embedding "
                f"of {time_width}"
            )
        if odd := [c for c in self.channels if c % NORM_GROUPS]:
            raise tensors.unsupported(f"has a backbone {odd[0]} wide, not a multiple of {NORM_GROUPS}")
        if self.depths[-1] not in (0, self.middle_depth):
            raise tensors.unsupported(
                f"has {self.depths[-1]} transformer layers at its last level and {self.middle_depth} in its middle"
            )


def _context_dim(tensors: Tensors) -> int:
    projection = tensors.shape("middle_block.1.proj_in.weight")
    if len(projection) == 2:
        raise tensors.unsupported("has a backbone with linear projections around attention (it looks like SD 2)")
    return tensors.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1]


@dataclass(frozen=True, slots=True)
class VaeArchitecture:
    """A KL autoencoder. channels: one entry a level, finest first; each level but the last halves the resolution."""

    channels: tuple[int, ...]
    res_blocks: int
    latent_channels: int
    image_channels: int
    quantized: bool

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def probe(cls, tensors: Tensors) -> VaeArchitecture:
        """Read the architecture off a VAE's tensors, named as in the single file or as in diffusers.

        Errors: ModelFileError for another layout.
        """
        image_channels = tensors.shape("encoder.conv_in.weight")[1]
        down, block = ("down_blocks", "resnets") if tensors.has("encoder.down_blocks.") else ("down", "block")
        levels = [f"encoder.{down}.{i}" for i in range(tensors.count(f"encoder.{down}."))]
        if any(tensors.has(f"{level}.attn.") or tensors.has(f"{level}.attentions.") for level in levels):
            raise tensors.unsupported("has a VAE with attention inside its levels")
        return cls(
            channels=tuple(tensors.shape(f"{level}.{block}.0.conv2.weight")[0] for level in levels),
            res_blocks=tensors.count(f"encoder.{down}.0.{block}."),
            latent_channels=tensors.shape("decoder.conv_in.weight")[1],
            image_channels=image_channels,
            quantized=tensors.has("quant_conv."),
        )


@dataclass(frozen=True, slots=True)
class TextArchitecture:
    """A CLIP text encoder (Radford et al. 2021, arXiv:2103.00020)."""

    layers: int
    width: int
    hidden_width: int
    positions: int

    @property
    def heads(self) -> int:
        """How many attention heads share the width."""
        return self.width // HEAD_WIDTH

    @classmethod
    def probe(cls, tensors: Tensors) -> TextArchitecture:
        """Read the architecture off a text encoder's tensors. Errors: ModelFileError for another layout."""
        vocabulary, width = tensors.shape("embeddings.token_embedding.weight")
        if vocabulary != VOCABULARY:
            raise tensors.unsupported(f"has a text encoder of {vocabulary} tokens, not CLIP's {VOCABULARY}")
        if width % HEAD_WIDTH:
            raise tensors.unsupported(f"has a text encoder {width} wide, not a multiple of {HEAD_WIDTH}")
        return cls(
            layers=tensors.count("encoder.layers."),
            width=width,
            hidden_width=tensors.shape("encoder.layers.0.mlp.fc1.weight")[0],
            positions=tensors.shape("embeddings.position_embedding.weight")[0],
        )


Architecture: TypeAlias = UNetArchitecture | VaeArchitecture | TextArchitecture
