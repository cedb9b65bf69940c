"""HunyuanVideo 1 and 1.5: videos from a text, and 1.5 from first images too; also what is tuned from 1.5 (Capybara).

Blocks of Flux.1 over video tokens, with a text that is refined first. Reads the authors' layout and ComfyUI's; run by
diffusers' layers. Source: Kong et al. 2024, arXiv:2412.03603; Wu et al. 2025, arXiv:2511.18870; the numbers are
ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTokenRefiner
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15ByT5TextProjection,
    HunyuanVideo15ImageProjection,
)
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.families.dit import flux_names
from serve_app.models.families.family import Rows
from serve_app.models.families.hunyuan_video.names import all_names
from serve_app.models.families.shared.concat import image_and_kept
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    SINGLES,
    TEXT_TOKENS,
    Passing,
    Transformer,
    angles,
    check_text,
    passed,
    pooled_text,
    positions,
    whole_patches,
)
from serve_app.models.families.shared.fused_blocks import fused
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO, HUNYUAN_VIDEO_15
from serve_app.sampling.transfer import to_device
from serve_app.values import ClipVisionOutput

SHIFT = 7.0
GUIDANCE = 6.0
"""Default guidance of a guidance-distilled network."""
THETA = 256.0
AXES = (16, 56, 56)
"""Numbers of a head rotated by frame, row and column."""
HEAD = sum(AXES)
GLYPHS_INSIDE = 2048
"""Width of the layers between glyphs' states and tokens."""
OF_TEXT, OF_GLYPHS, OF_IMAGE = range(3)
"""Numbers of the kinds of conditioning in the network's table."""
GLYPHS = "conditioning_byt5small"
"""ComfyUI's name of the states of a text's quoted parts among a conditioning's options."""

_GUIDANCE_SCALE = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class HunyuanVideoInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). pooled: (B,P), or None. guidance: (B,), or None. concat: (B,E,F,h,w), concatenated with x. glyphs:
    (B,G,V), states of quoted text. seen: (B,N,S), image features.
    """

    text: Tensor
    pooled: Tensor | None = None
    guidance: Tensor | None = None
    concat: Tensor | None = None
    glyphs: Tensor | None = None
    seen: Tensor | None = None

    def within(self, area: Area | None) -> HunyuanVideoInputs:
        """Return the inputs for an area of the canvas, in all frames."""
        if area is None or self.concat is None:
            return self
        return replace(self, concat=crop(self.concat, area))


@dataclass(frozen=True, slots=True)
class HunyuanVideo(Transformer):
    """A backbone. width: of a token; doubles, singles, refiners: number of blocks of each kind; text_width: of a text.

    fed: channels of x with those concatenated. pooled_width: of the pooled text, 0 if it reads none. patch: cells of a
    token along each side. guided: it reads a guidance scale.
    """

    title = "HunyuanVideo"
    trained_as = Flow(SHIFT)
    latent_format = HUNYUAN_VIDEO
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)

    width: int
    doubles: int
    singles: int
    text_width: int
    fed: int
    pooled_width: int = 0
    patch: int = 2
    guided: bool = False
    refiners: int = 2

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return "vision_in.proj.0.weight" not in tensors.shapes

    @classmethod
    def probe(cls, tensors: Tensors) -> HunyuanVideo:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, fed, *patch = tensors.shape("img_in.proj.weight")
        if len(patch) != 3:
            raise tensors.unsupported("has a backbone of HunyuanImage, a family that is not supported")
        if tensors.has("time_r_in."):
            raise tensors.unsupported(
                "has a HunyuanVideo backbone that is distilled for few steps and reads the next step's level; "
                "supported are those that read one level"
            )
        made = tensors.shape("final_layer.linear.weight")[0] // prod(patch)
        channels = cls.latent_format.channels
        if width % HEAD or patch[0] != 1 or patch[1] != patch[2] or made != channels or fed not in cls._known():
            raise tensors.unsupported(
                f"has a {cls.title} backbone {width} wide with patches {patch} that reads {fed} channels and makes "
                f"{made}; supported are multiples of {HEAD}, patches of one frame, and "
                f"{' or '.join(map(str, cls._known()))} channels that make {channels}"
            )
        return cls(
            width,
            tensors.count("double_blocks."),
            tensors.count("single_blocks."),
            tensors.shape("txt_in.input_embedder.weight")[1],
            fed,
            tensors.shapes.get("vector_in.in_layer.weight", (0, 0))[1],
            patch[1],
            tensors.has("guidance_in."),
            tensors.count("txt_in.individual_token_refiner.blocks."),
        )

    @classmethod
    def _known(cls) -> tuple[int, ...]:
        """Return how many channels the network may read."""
        return (cls.latent_format.channels,)

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(all_names(self.width, self.doubles, self.singles, self.refiners))

    def lora_names(self, parameters: Sequence[str]) -> Table:
        return flux_names.lora_names(parameters, self.table(), self.singles)

    def build(self) -> nn.Module:
        return fused(_Network(self))

    @property
    def sharded_heads(self) -> int:
        return self.width // HEAD

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> HunyuanVideoInputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's text encoder or image encoder.
        """
        check_text(cond, self.text_width, self.title)
        rows = canvas.rows
        guidance: float | None = options.get("guidance", GUIDANCE)
        pooled = pooled_text(options, self.pooled_width, self.title) if self.pooled_width else None
        return HunyuanVideoInputs(
            to_batch(to_device(cond, device).float(), rows),
            None if pooled is None else to_batch(to_device(pooled, device), rows),
            torch.full((rows,), float(guidance), device=device) if self.guided and guidance is not None else None,
            *self._beside(options, canvas, device),
        )

    def _beside(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return what is concatenated, glyphs and image features."""
        return None, None, None

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of all inputs: texts of several lengths would need a mask over the video."""
        beside = (inputs.text, inputs.concat, inputs.glyphs, inputs.seen)
        shapes = tuple(None if one is None else tuple(one.shape[1:]) for one in beside)
        return tuple(x.shape[1:]), shapes, inputs.guidance is None

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, guidance, text and LoRAs."""
        dtype, inputs = network.proj_out.weight.dtype, [r.inputs for r in rows]
        x = torch.cat([r.x for r in rows])

        def together(name: str, of: torch.dtype | None = None) -> Tensor | None:
            own = [getattr(i, name) for i in inputs]
            return None if own[0] is None else torch.cat(own).to(of or dtype)

        size = x.shape[2:]
        at = torch.cat([positions(size[1:], frame, patch=self.patch) for frame in range(size[0])])
        return {
            "x": x.to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "guidance": together("guidance", torch.float32),
            **{name: together(name) for name in ("text", "pooled", "concat", "glyphs", "seen")},
            "at": to_device(at, x.device),
            **passed(rows),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = given["x"]
        size = x.shape[2:]
        fed = torch.cat([x, given["concat"]], dim=1) if "concat" in given else x
        image = network.x_embedder(whole_patches(fed) if self.patch > 1 else fed)
        grid, image = image.shape[2:], image.flatten(2).transpose(1, 2)
        time = network.time_text_embed(given["level"], given.get("pooled"), given.get("guidance"), x.dtype)
        text = network.text(given, x.dtype)
        shards = sharding(text.shape[1], image.shape[1])
        of_text = given["at"].new_zeros(text.shape[1], 3)
        at = shards.shard(torch.cat([of_text, given["at"]]), dim=0)
        text, image = shards.shard(text, TEXT_TOKENS), shards.shard(image, IMAGE_TOKENS)
        shared = {"temb": silu(time), "image_rotary_emb": turns_of(angles(at, AXES, THETA))}
        doubles, singles = (Passing(rows, kind, given) for kind in (DOUBLES, SINGLES))
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                call = partial(block, hidden_states=image, encoder_hidden_states=text, **shared)
                text, image = doubles.through(number, call, text, image)
            if self.singles:
                both = torch.cat([text, image], dim=1)
                for number, block in enumerate(network.single_transformer_blocks):
                    [both] = singles.through(number, partial(block, hidden_states=both, **shared), both)
                image = both[:, shards.count(TEXT_TOKENS) :]
        made = shards.gather(network.proj_out(network.norm_out(image, time)), IMAGE_TOKENS)
        cut = made.view(len(x), *grid, -1, self.patch, self.patch).permute(0, 4, 1, 2, 5, 3, 6)
        cells: Tensor = cut.flatten(5, 6).flatten(3, 4)
        return cells[..., : size[1], : size[2]]


@dataclass(frozen=True, slots=True)
class HunyuanVideo15(HunyuanVideo):
    """A backbone of 1.5, that reads first images, features of an image and the glyphs of quoted text.

    glyphs: width of states of quoted text, 0 if it reads none. image_width: of image features.
    """

    title = "HunyuanVideo 1.5"
    kind = "HunyuanVideo"
    latent_format = HUNYUAN_VIDEO_15
    dtypes = (torch.float16, torch.bfloat16)

    glyphs: int = 0
    image_width: int = 0
    kinds: bool = True

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return "vision_in.proj.0.weight" in tensors.shapes

    @classmethod
    def _known(cls) -> tuple[int, ...]:
        return (2 * cls.latent_format.channels + 1,)

    @classmethod
    def probe(cls, tensors: Tensors) -> HunyuanVideo15:
        found = super(HunyuanVideo15, cls).probe(tensors)
        assert isinstance(found, HunyuanVideo15)
        return replace(
            found,
            glyphs=tensors.shapes.get("byt5_in.fc1.weight", (0, 0))[1],
            image_width=tensors.shape("vision_in.proj.0.weight")[0],
            kinds=tensors.has("cond_type_embedding."),
        )

    def _beside(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> tuple[Tensor | None, ...]:
        concat = to_device(image_and_kept(options, canvas.latents, canvas.mask, self.latent_format), device)
        glyphs = options.get(GLYPHS) if self.glyphs else None
        output: ClipVisionOutput | None = options.get("clip_vision_output")
        seen = None if output is None else output.last_hidden_state
        for what, states, width in (("glyphs", glyphs, self.glyphs), ("image features", seen, self.image_width)):
            if states is not None and states.shape[-1] != width:
                raise NodeError(f"the {what} are {states.shape[-1]} wide; {self.title} reads {width}")
        beside = (None if one is None else to_batch(to_device(one, device), canvas.rows) for one in (glyphs, seen))
        return concat, *beside


class _Network(nn.Module):
    """The layers of a backbone, named as diffusers'."""

    def __init__(self, family: HunyuanVideo) -> None:
        super().__init__()
        width, heads = family.width, family.width // HEAD
        patch = (1, family.patch, family.patch)
        self.x_embedder = nn.Conv3d(family.fed, width, patch, patch)
        self.context_embedder = HunyuanVideoTokenRefiner(family.text_width, heads, HEAD, family.refiners)
        self.time_text_embed = _Embedding(width, family.pooled_width, family.guided)
        self.transformer_blocks = nn.ModuleList(FluxTransformerBlock(width, heads, HEAD) for _ in range(family.doubles))
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(width, heads, HEAD) for _ in range(family.singles)
        )
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, family.latent_format.channels * prod(patch))
        if isinstance(family, HunyuanVideo15):
            if family.glyphs:
                self.context_embedder_2 = HunyuanVideo15ByT5TextProjection(family.glyphs, GLYPHS_INSIDE, width)
            self.image_embedder = HunyuanVideo15ImageProjection(family.image_width, width)
            if family.kinds:
                self.cond_type_embed = nn.Embedding(3, width)

    def text(self, given: Inputs, dtype: torch.dtype) -> Tensor:
        """Return the tokens of a text, and before them those of glyphs and of an image, (R,T,W)."""
        refiner, text = self.context_embedder, given["text"]
        embed = refiner.time_text_embed
        # The mean of many tokens is beyond half precision.
        mean = text.float().mean(dim=1).to(dtype)
        time = embed.timestep_embedder(embed.time_proj(given["level"]).to(dtype)) + embed.text_embedder(mean)
        tokens = [self._of_kind(refiner.token_refiner(refiner.proj_in(text), time), OF_TEXT)]
        if "glyphs" in given:
            glyphs = self._of_kind(self.context_embedder_2(given["glyphs"]), OF_GLYPHS)
            # Without kinds they follow the text, as in HunyuanImage.
            tokens.insert(0 if hasattr(self, "cond_type_embed") else 1, glyphs)
        if "seen" in given:
            tokens.insert(0, self._of_kind(self.image_embedder(given["seen"]), OF_IMAGE))
        return torch.cat(tokens, dim=1)

    def _of_kind(self, tokens: Tensor, kind: int) -> Tensor:
        return tokens + self.cond_type_embed.weight[kind] if hasattr(self, "cond_type_embed") else tokens


class _Embedding(nn.Module):
    """Embeds time, pooled text and guidance."""

    def __init__(self, width: int, pooled_width: int, guided: bool) -> None:
        super().__init__()
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, width)
        if pooled_width:
            self.text_embedder = PixArtAlphaTextProjection(pooled_width, width, act_fn="silu")
        if guided:
            self.guidance_embedder = TimestepEmbedding(256, width)

    def forward(self, level: Tensor, pooled: Tensor | None, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the modulation input (R,W). level, guidance: (R,) float32; pooled: (R,P)."""
        # Time reaches the sinusoids in single precision, as in ComfyUI.
        made: Tensor = self.timestep_embedder(self.time_proj(level).to(dtype))
        if guidance is not None:
            made = made + self.guidance_embedder(self.time_proj(guidance * _GUIDANCE_SCALE).to(dtype))
        return made if pooled is None else made + self.text_embedder(pooled)
