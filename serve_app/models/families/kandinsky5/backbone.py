"""Kandinsky 5: images, and videos from a text or a first image.

Image tokens attend to each other and then to a text that is refined first. Files have the authors' names, which are
diffusers' too; run by the layers of diffusers' Kandinsky5Transformer3DModel. Source: Arkhipkin et al. 2025,
arXiv:2511.14993; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_kandinsky import (
    Kandinsky5OutLayer,
    Kandinsky5TextEmbeddings,
    Kandinsky5TransformerDecoderBlock,
    Kandinsky5TransformerEncoderBlock,
)
from torch import Tensor, addcmul, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.concat import image_and_kept
from serve_app.models.families.shared.dit import (
    DOUBLES,
    PATCH,
    WHOLE_EPS,
    Passing,
    Transformer,
    angles,
    check_text,
    grid,
    passed,
    pooled_text,
    positions,
    whole_patches,
)
from serve_app.models.families.shared.fused_blocks import attention_output, modulated
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import normed_and_rotated, turns_of
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.latents.latent_formats import FLUX, HUNYUAN_VIDEO
from serve_app.sampling.transfer import to_device

THETA = 10000.0
AXES = (16, 24, 24)
"""Numbers of every 64 of a head that are rotated by frame, row and column."""
HEADS = (64, 128)
PRO_WIDTH, IMAGE_WIDTH = 4096, 2560
APART, FAR_APART, MANY_CELLS = 2.0, 3.16, 14080
"""What rows and columns of a video are divided by, and for the largest network from this number of cells on."""

_MODULES = (
    *("time_embeddings", "text_embeddings", "pooled_text_embeddings", "visual_embeddings"),
    *("text_transformer_blocks", "visual_transformer_blocks", "out_layer"),
)
_FIRST = "visual_transformer_blocks.0"


@dataclass(frozen=True, slots=True, eq=False)
class Kandinsky5Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). pooled: (B,P). concat: (B,C+1,F,h,w), concatenated with x, or None. begin: (B,C,f,h,w), scaled, in
    the place of x's first frames, or None.
    """

    text: Tensor
    pooled: Tensor
    concat: Tensor | None = None
    begin: Tensor | None = None

    def within(self, area: Area | None) -> Kandinsky5Inputs:
        """Return the inputs for an area of the canvas, in all frames."""
        if area is None:
            return self
        concat, begin = (None if one is None else crop(one, area) for one in (self.concat, self.begin))
        return replace(self, concat=concat, begin=begin)


@dataclass(frozen=True, slots=True)
class Kandinsky5(Transformer):
    """A backbone of videos. width: of a token; blocks, refiners: of video and of text; hidden_width: inside a block.

    fed: channels of x with those concatenated. text_width, pooled_width, time_width: of its inputs.
    """

    title = "Kandinsky 5"
    trained_as = Flow(10.0)
    latent_format = HUNYUAN_VIDEO
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)

    width: int
    head: int
    hidden_width: int
    blocks: int
    refiners: int
    fed: int
    text_width: int
    pooled_width: int
    time_width: int

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return tensors.shape("visual_embeddings.in_layer.weight")[1] != PATCH**2 * cls.latent_format.channels

    @classmethod
    def probe(cls, tensors: Tensors) -> Kandinsky5:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, fed = tensors.shape("visual_embeddings.in_layer.weight")
        head = tensors.shape(f"{_FIRST}.self_attention.query_norm.weight")[0]
        if head not in HEADS or width % head or fed // PATCH**2 not in cls._known():
            raise tensors.unsupported(
                f"has a {cls.title} backbone {width} wide with heads of {head} and {fed // PATCH**2} input channels; "
                f"supported are heads of {' or '.join(map(str, HEADS))}, and "
                f"{' or '.join(map(str, cls._known()))} channels"
            )
        return cls(
            width,
            head,
            tensors.shape(f"{_FIRST}.feed_forward.in_layer.weight")[0],
            tensors.count("visual_transformer_blocks."),
            tensors.count("text_transformer_blocks."),
            fed // PATCH**2,
            tensors.shape("text_embeddings.in_layer.weight")[1],
            tensors.shape("pooled_text_embeddings.in_layer.weight")[1],
            tensors.shape("time_embeddings.in_layer.weight")[0],
        )

    @classmethod
    def _known(cls) -> tuple[int, ...]:
        """Return how many channels the network may read."""
        return (2 * cls.latent_format.channels + 1,)

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in _MODULES}

    @property
    def sharded_heads(self) -> int:
        return self.width // self.head

    def build(self) -> nn.Module:
        return _Network(self)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Any,
    ) -> Kandinsky5Inputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's encoder, or for first frames of another size.
        """
        check_text(cond, self.text_width, self.title)
        rows = canvas.rows
        return Kandinsky5Inputs(
            to_batch(to_device(cond, device).float(), rows),
            to_batch(to_device(pooled_text(options, self.pooled_width, self.title), device), rows),
            *self._beside(options, canvas, device),
        )

    def _beside(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return what is concatenated, and first frames."""
        said = {name: value for name, value in options.items() if name == "concat_mask"}
        concat = to_device(image_and_kept(said, canvas.latents, canvas.mask, self.latent_format), device)
        begin: Tensor | None = options.get("time_dim_replace")
        if begin is None:
            return concat, None
        x = canvas.latents
        if (
            begin.ndim != 5
            or begin.shape[1] > x.shape[1]
            or begin.shape[2] > x.shape[2]
            or begin.shape[3:] != x.shape[3:]
        ):
            raise NodeError(
                f"the first frames are ({','.join(map(str, begin.shape))}), and the latents "
                f"({','.join(map(str, x.shape))}); rows and columns must be equal, and channels and frames no more"
            )
        return concat, to_batch(self.latent_format.to_model(to_device(begin, device).float()), canvas.rows)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of all inputs: texts of several lengths would need a mask."""
        beside = (inputs.text, inputs.concat, inputs.begin)
        return tuple(x.shape[1:]), tuple(None if one is None else tuple(one.shape[1:]) for one in beside)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and LoRAs."""
        dtype, inputs = network.visual_embeddings.in_layer.weight.dtype, [r.inputs for r in rows]
        x = torch.cat([r.x for r in rows])

        def together(name: str) -> Tensor | None:
            own = [getattr(i, name) for i in inputs]
            return None if own[0] is None else torch.cat(own).to(dtype)

        frames, size = x.shape[2] if x.ndim == 5 else 1, x.shape[-2:]
        at = torch.cat([positions(size, frame) for frame in range(frames)])
        return {
            "x": x.to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            **{name: together(name) for name in ("text", "pooled", "concat", "begin")},
            "at": to_device(at / torch.tensor([1.0, *(self._apart(size),) * 2]), x.device),
            **passed(rows),
        }

    def _apart(self, size: Sequence[int]) -> float:
        """Return what rows and columns of latents of a size (h,w) are divided by."""
        if self.width == IMAGE_WIDTH:
            return 1.0
        return FAR_APART if self.width == PRO_WIDTH and size[0] * size[1] >= MANY_CELLS else APART

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = given["x"] if given["x"].ndim == 5 else given["x"][:, :, None]
        size = x.shape[2:]
        if (begin := given.get("begin")) is not None:
            rest = x[:, : begin.shape[1], begin.shape[2] :]
            x = torch.cat([torch.cat([begin, rest], dim=2), x[:, begin.shape[1] :]], dim=1)
        if "concat" in given:
            x = torch.cat([x, given["concat"]], dim=1)
        time = silu(network.time(given["level"], x.dtype) + network.pooled_text_embeddings(given["pooled"]))
        text = network.text_embeddings(given["text"])
        of_text = turns_of(angles(torch.arange(text.shape[1], device=x.device)[:, None], (self.head,), THETA))
        for block in network.text_transformer_blocks:
            text = _refined(block, text, time, of_text)
        axes = tuple(self.head // HEADS[0] * share for share in AXES)
        cells = _tokens(whole_patches(x))
        shards = sharding(cells.shape[1])
        turns = turns_of(angles(shards.shard(given["at"], dim=0), axes, THETA))
        image = network.visual_embeddings.in_layer(shards.shard(cells))
        passing = Passing(rows, DOUBLES, given)
        for number, block in enumerate(network.visual_transformer_blocks):
            [image] = passing.through(number, partial(_seen, block, image, text, time, turns, shards), image)
        last = network.out_layer
        shift, scale = last.modulation.out_layer(time)[:, None].chunk(2, dim=-1)
        made = shards.gather(last.out_layer(modulated(last.norm, image, shift, scale)), 0)
        cut = made.view(len(x), size[0], *grid(*size[1:]), -1, PATCH, PATCH).permute(0, 4, 1, 2, 5, 3, 6)
        latents: Tensor = cut.flatten(5, 6).flatten(3, 4)[..., : size[1], : size[2]]
        return latents.reshape(given["x"].shape)


@dataclass(frozen=True, slots=True)
class Kandinsky5Image(Kandinsky5):
    """A backbone of images."""

    title = "Kandinsky 5 Image"
    kind = "Kandinsky 5"
    trained_as = Flow(3.0)
    latent_format = FLUX

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return not super(Kandinsky5Image, cls).recognises(tensors)

    @classmethod
    def _known(cls) -> tuple[int, ...]:
        return (cls.latent_format.channels,)

    def _beside(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> tuple[Tensor | None, ...]:
        return None, None

    def _apart(self, size: Sequence[int]) -> float:
        return 1.0


class _Network(nn.Module):
    """The layers of a backbone, named as diffusers'."""

    def __init__(self, family: Kandinsky5) -> None:
        super().__init__()
        self._width = family.width
        sizes = (family.width, family.time_width, family.hidden_width, family.head)
        self.time_embeddings = _Linear(family.width, family.time_width)
        self.time_embeddings.out_layer = nn.Linear(family.time_width, family.time_width)
        self.text_embeddings = Kandinsky5TextEmbeddings(family.text_width, family.width)
        self.pooled_text_embeddings = Kandinsky5TextEmbeddings(family.pooled_width, family.time_width)
        self.visual_embeddings = _Linear(family.fed * PATCH**2, family.width)
        self.text_transformer_blocks = nn.ModuleList(
            Kandinsky5TransformerEncoderBlock(*sizes) for _ in range(family.refiners)
        )
        self.visual_transformer_blocks = nn.ModuleList(
            Kandinsky5TransformerDecoderBlock(*sizes) for _ in range(family.blocks)
        )
        channels = family.latent_format.channels
        self.out_layer = Kandinsky5OutLayer(family.width, family.time_width, channels, (1, PATCH, PATCH))
        for module in self.modules():
            if isinstance(module, nn.RMSNorm):
                module.eps = WHOLE_EPS

    def time(self, level: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the embedding (R,W) of levels (R,)."""
        embed = self.time_embeddings
        turned = angles(level[:, None], (self._width,), THETA).float()
        sinusoids = torch.cat([turned.cos(), turned.sin()], dim=-1).to(dtype)
        made: Tensor = embed.out_layer(silu(embed.in_layer(sinusoids)))
        return made


class _Linear(nn.Module):
    """A linear layer by the name that files have."""

    out_layer: nn.Linear

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(inside, out)


def _tokens(x: Tensor) -> Tensor:
    """Return latents (B,C,F,h,w) with even sides as tokens (B,n,4C), the channels of a cell together."""
    cut = torch.unflatten(torch.unflatten(x, 4, (-1, PATCH)), 3, (-1, PATCH))
    return cut.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)


def _refined(block: Any, text: Tensor, time: Tensor, turns: Tensor) -> Tensor:
    """Return a text (R,T,W) after a block of it. time: (R,t), activated; turns: as `turns_of`."""
    of_self, of_feed = block.text_modulation.out_layer(time)[:, None].chunk(2, dim=-1)
    text = _added(text, block.self_attention_norm, of_self, partial(_self_attended, block.self_attention, turns=turns))
    return _added(text, block.feed_forward_norm, of_feed, block.feed_forward)


def _seen(block: Any, image: Tensor, text: Tensor, time: Tensor, turns: Tensor, shards: Sharding) -> Tensor:
    """Return this rank's tokens of an image (R,n,W) after a block of it, which also attends to a text (R,T,W)."""
    of_self, of_cross, of_feed = block.visual_modulation.out_layer(time)[:, None].chunk(3, dim=-1)
    attended = partial(_self_attended, block.self_attention, turns=turns)
    with attention_over(shards.of_attention):
        image = _added(image, block.self_attention_norm, of_self, attended)
    image = _added(image, block.cross_attention_norm, of_cross, partial(_cross_attended, block.cross_attention, text))
    return _added(image, block.feed_forward_norm, of_feed, block.feed_forward)


def _added(x: Tensor, norm: Any, parts: Tensor, layer: Any) -> Tensor:
    """Return tokens with what a layer makes of them. parts: shift, scale and gate, (R,1,3W)."""
    shift, scale, gate = parts.chunk(3, dim=-1)
    return addcmul(x, layer(modulated(norm, x, shift, scale)), gate)


def _self_attended(attn: Any, x: Tensor, *, turns: Tensor) -> Tensor:
    layers = {"q": attn.to_query, "k": attn.to_key, "v": attn.to_value}

    def heads(kind: str) -> Tensor:
        made: Tensor = layers[kind](x).unflatten(-1, (attn.num_heads, -1))
        return made

    q, k = normed_and_rotated(heads, (attn.query_norm, attn.key_norm), turns)
    made: Tensor = attn.out_layer(attention_output(q, k, heads("v")))
    return made


def _cross_attended(attn: Any, text: Tensor, x: Tensor) -> Tensor:
    q = attn.query_norm(attn.to_query(x).unflatten(-1, (attn.num_heads, -1)))
    k, v = (to(text).unflatten(-1, (attn.num_heads, -1)) for to in (attn.to_key, attn.to_value))
    made: Tensor = attn.out_layer(attention_output(q, attn.key_norm(k), v))
    return made
