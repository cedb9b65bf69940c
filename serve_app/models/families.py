"""What a model file holds, read off its tensors' names and shapes: no hub, no shipped config, no tensor read.

One dataclass a part of Stable Diffusion 1.x, 2.x (Rombach et al. 2022, arXiv:2112.10752) and SDXL (Podell et al. 2023,
arXiv:2307.01952), of any width and depth. Pure: it knows neither files nor torch; `checkpoint` reads, `layout` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from serve_app.models.tensors import Tensors as Tensors
from serve_app.sampling.latents import LatentFormat, PreviewMap

NORM_GROUPS = 32
"""Every group norm of these networks has so many groups, so every width is a multiple of it."""

HEADS = 8
"""SD 1.x backbones have this many attention heads at every width."""

HEAD_WIDTH = 64
"""The heads of text encoders, and of backbones since SD 2, are this wide."""

VOCABULARY = 49408
"""Tokens CLIP knows."""

SIZE_WIDTH = 256
"""Each size that SDXL is told is an embedding this wide."""

# The preview maps are least-squares fits to decoded images. Source: keturn 2022, "Decoding latents to RGB without
# upscaling", Hugging Face forum 23204; the numbers are those that ComfyUI 0.3.64 shows its previews with.
SD_LATENTS = LatentFormat(
    channels=4,
    scale=0.18215,
    preview=PreviewMap(
        (
            (0.3512, 0.2297, 0.3227),
            (0.3250, 0.4974, 0.2350),
            (-0.2829, 0.1762, 0.2721),
            (-0.2120, -0.2616, -0.7177),
        )
    ),
    tiny="taesd",
)
"""Of SD 1.x and 2.x. Source of the scale: Rombach et al. 2022, arXiv:2112.10752, Appendix G."""

SDXL_LATENTS = LatentFormat(
    channels=4,
    scale=0.13025,
    preview=PreviewMap(
        (
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
        ),
        (0.1084, -0.0175, -0.0011),
    ),
    tiny="taesdxl",
)
"""Source of the scale: Podell et al. 2023, arXiv:2307.01952, and the VAE published with it."""

CONCAT_CHANNELS = {0: "x alone", 4: "an image to edit", 5: "a mask and the masked image"}
"""What backbones are fed beside x, by its channels."""

ADDED_VECTOR = "add_embedding.linear_1.weight"
"""Where diffusers keeps the layer that reads SDXL's vector."""

# ComfyUI tells OpenCLIP's encoders apart by a layer that only the larger one has.
_H_LAYERS, _L_LAYERS_LIMIT = 30, 22
_UNCLIP = {(1024, 1536), (1024, 2048)}


@dataclass(frozen=True, slots=True)
class UNetArchitecture:
    """A backbone. channels, res_blocks, depths: one entry a level, finest first; depth 0 is a level without attention.

    depths count transformer layers; `middle_depth` those between the two halves. context_dim: width of the text's rows.
    linear: linear layers around attention, and heads HEAD_WIDTH wide, as in SD 2 and SDXL. concat_channels: what is fed
    beside x (5 for inpainting, 4 for editing). vector_dim: width of the pooled text and sizes that SDXL is told.
    """

    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context_dim: int
    latent_channels: int = 4
    linear: bool = False
    concat_channels: int = 0
    vector_dim: int = 0

    @property
    def heads(self) -> tuple[int, ...]:
        """How many attention heads each level has."""
        return tuple(max(1, width // HEAD_WIDTH) if self.linear else HEADS for width in self.channels)

    @property
    def sizes(self) -> int:
        """How many sizes are told beside the pooled text: 6 for SDXL, 5 for its refiner."""
        if not self.vector_dim:
            return 0
        # The refiner reads one text encoder, so the pooled text is as wide as the text's rows.
        return 5 if self.vector_dim - 5 * SIZE_WIDTH == self.context_dim else 6

    @property
    def latent_format(self) -> LatentFormat:
        """The latents it samples."""
        return SDXL_LATENTS if self.vector_dim else SD_LATENTS

    @classmethod
    def probe(cls, tensors: Tensors) -> UNetArchitecture:
        """Read the architecture off a backbone's tensors, named as in the single file or as in diffusers.

        Errors: ModelFileError for another family's.
        """
        if tensors.has("down_blocks."):
            return _probe_diffusers_unet(tensors)
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
                vector_dim=tensors.shape("label_emb.0.0.weight")[1] if tensors.has("label_emb.") else 0,
            ),
            tensors.shape("time_embed.0.weight"),
        )


def _probe_diffusers_unet(tensors: Tensors) -> UNetArchitecture:
    levels = [f"down_blocks.{level}" for level in range(tensors.count("down_blocks."))]
    middle = "mid_block.attentions.0"
    latent_channels = tensors.shape("conv_out.weight")[0]
    vectors = [name for name in ("class_embedding.linear_1.weight", ADDED_VECTOR) if name in tensors.shapes]
    return _checked(
        tensors,
        UNetArchitecture(
            tuple(tensors.shape(f"{level}.resnets.0.conv1.weight")[0] for level in levels),
            tuple(tensors.count(f"{level}.resnets.") for level in levels),
            tuple(tensors.count(f"{level}.attentions.0.transformer_blocks.") for level in levels),
            tensors.count(f"{middle}.transformer_blocks."),
            tensors.shape(f"{middle}.transformer_blocks.0.attn2.to_k.weight")[1],
            latent_channels,
            linear=len(tensors.shape(f"{middle}.proj_in.weight")) == 2,
            concat_channels=tensors.shape("conv_in.weight")[1] - latent_channels,
            vector_dim=tensors.shape(vectors[0])[1] if vectors else 0,
        ),
        tensors.shape("time_embedding.linear_1.weight"),
    )


def _checked(tensors: Tensors, found: UNetArchitecture, time_width: tuple[int, ...]) -> UNetArchitecture:
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
    if found.vector_dim and (pooled <= 0 or (found.context_dim, found.vector_dim) in _UNCLIP):
        raise tensors.unsupported(
            f"has a backbone that is told a vector {found.vector_dim} wide, as unCLIP and video are"
        )
    return found


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


TextKind: TypeAlias = Literal["l", "h", "g"]
"""Which published encoder it is made like: CLIP-L, or OpenCLIP's ViT-H or ViT-bigG."""


@dataclass(frozen=True, slots=True)
class TextArchitecture:
    """A CLIP text encoder (Radford et al. 2021, arXiv:2103.00020). projection: the pooled text's width, 0 without."""

    layers: int
    width: int
    hidden_width: int
    positions: int
    kind: TextKind = "l"
    projection: int = 0

    @property
    def heads(self) -> int:
        """How many attention heads share the width."""
        return self.width // HEAD_WIDTH

    @classmethod
    def probe(cls, tensors: Tensors, kind: TextKind | None = None) -> TextArchitecture:
        """Read the architecture off a text encoder's tensors, named as by transformers or by OpenCLIP.

        kind: None tells it by the number of layers. Errors: ModelFileError for another layout.
        """
        if tensors.has("transformer.resblocks."):
            table, positions, layers = "token_embedding.weight", "positional_embedding", "transformer.resblocks."
            hidden, projection = f"{layers}0.mlp.c_fc.weight", "text_projection"
        else:
            inside = "text_model." if tensors.has("text_model.") else ""
            table, positions = (
                f"{inside}embeddings.token_embedding.weight",
                f"{inside}embeddings.position_embedding.weight",
            )
            layers, projection = f"{inside}encoder.layers.", "text_projection.weight"
            hidden = f"{layers}0.mlp.fc1.weight"
        vocabulary, width = tensors.shape(table)
        if vocabulary != VOCABULARY:
            raise tensors.unsupported(f"has a text encoder of {vocabulary} tokens, not CLIP's {VOCABULARY}")
        if width % HEAD_WIDTH:
            raise tensors.unsupported(f"has a text encoder {width} wide, not a multiple of {HEAD_WIDTH}")
        depth = tensors.count(layers)
        kind = kind or ("g" if depth > _H_LAYERS else "h" if depth > _L_LAYERS_LIMIT else "l")
        # OpenCLIP's matrix is (width, projection), transformers' the other way round; those published are square.
        projected = tensors.shapes[projection][0] if kind != "l" and projection in tensors.shapes else 0
        return cls(depth, width, tensors.shape(hidden)[0], tensors.shape(positions)[0], kind, projected)


@dataclass(frozen=True, slots=True)
class DualTextArchitecture:
    """SDXL's two text encoders."""

    l: TextArchitecture  # noqa: E741
    g: TextArchitecture


@dataclass(frozen=True, slots=True)
class TinyVaeArchitecture:
    """The distilled autoencoder TAESD (Bohan 2023, github.com/madebyollin/taesd) for the latents of another one."""

    latent_format: LatentFormat
    image_channels: int = 3

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.latent_format.channels

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return self.latent_format.factor


Architecture: TypeAlias = (
    UNetArchitecture | VaeArchitecture | TinyVaeArchitecture | TextArchitecture | DualTextArchitecture
)
