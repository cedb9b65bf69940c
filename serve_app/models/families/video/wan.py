"""Wan 2.1 and 2.2: videos from a text, a first image, a first and a last one, or frames to keep or follow (Fun, VACE),
a camera's path (Fun) or other videos and images as tokens of their own (Bernini).

Reads the authors' single file; run by the layers of diffusers' WanTransformer3DModel. Source: Wan team 2025,
arXiv:2503.20314; Jiang et al. 2025 (VACE), arXiv:2503.07598; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from torch import Tensor, addcmul, nn
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.concat import frames_and_mask
from serve_app.models.families.shared.dit import (
    DOUBLES,
    PATCH,
    Passing,
    Transformer,
    angles,
    by_heads,
    check_text,
    from_tokens,
    grid,
    lora_names,
    passed,
    positions,
    stacked,
    there,
    whole_patches,
)
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.families.shared.references import scaled_references
from serve_app.models.families.video.wan_camera import CELL, CameraAdapter
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import made_and_rotated, turns_of
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.layers import ScaledPositions
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.guidance.windows import Window
from serve_app.sampling.latents.latent_formats import WAN, WAN_22
from serve_app.sampling.transfer import to_device
from serve_app.store.models.kinds import ROLES
from serve_app.values import ClipVisionOutput

SHIFT = 8.0
THETA = 10000.0
HEAD = 128
"""Width of every head."""
AXES = (44, 42, 42)
"""Numbers of a head rotated by frame, row and column."""
VACE_FRAMES, VACE_MASK = 32, 64
"""Channels of what VACE is shown: frames to change and frames to keep, and which pixels of a cell are which."""

_FLAT = "lora_unet_"
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_OF_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_ENDS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "ref_conv": "ref_conv",
    "vace_patch_embedding": "vace_patch_embedding",
    "control_adapter": "control_adapter",
}


@dataclass(frozen=True, slots=True, eq=False)
class VaceControl:
    """One VACE input for B rows. frames: (B,E,F,h,w), scaled, with their masks; strength: (B,1,1)."""

    frames: Tensor
    strength: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class WanInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). concat: (B,E,F,h,w), concatenated with x. seen: (B,N,V), image features. noisy: (B,F), noise level of
    each frame as a share of sigma; None: 1. reference: (B,C,h,w), a frame before the first, scaled. vace: inputs of
    VACE. camera: (B,E,F,H,W), the rays of a camera's path by pixel. context: (B,C,f,h,w) each, scaled, further videos
    and images to attend to. placed: changes of the tokens' positions.
    """

    text: Tensor
    concat: Tensor | None = None
    seen: Tensor | None = None
    noisy: Tensor | None = None
    reference: Tensor | None = None
    vace: tuple[VaceControl, ...] = ()
    camera: Tensor | None = None
    context: tuple[Tensor, ...] = ()
    placed: ScaledPositions | None = None

    def within(self, area: Area | None) -> WanInputs:
        """Return the inputs for an area of the canvas, in all frames."""
        if area is None:
            return self
        concat, reference = (None if rows is None else crop(rows, area) for rows in (self.concat, self.reference))
        vace = tuple(replace(one, frames=crop(one.frames, area)) for one in self.vace)
        pixels = (area[0] * CELL, area[1] * CELL, area[2] * CELL, area[3] * CELL)
        camera = None if self.camera is None else crop(self.camera, pixels)
        return replace(self, concat=concat, reference=reference, vace=vace, camera=camera)

    def in_window(self, window: Window, kept: Sequence[int]) -> WanInputs:
        """Return the inputs for a context window: of all that has the video's frames, those of the window."""

        def own(rows: Tensor) -> Tensor:
            return window.cut(rows, kept) if rows.shape[2] == window.total else rows

        concat, camera = (None if rows is None else own(rows) for rows in (self.concat, self.camera))
        vace = tuple(replace(one, frames=own(one.frames)) for one in self.vace)
        noisy = None if self.noisy is None else self.noisy[:, list(window.read)]
        context = tuple(map(own, self.context))
        return replace(self, concat=concat, camera=camera, vace=vace, noisy=noisy, context=context)


@dataclass(frozen=True, slots=True)
class Wan(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; text_width: of a text row.

    fed: channels of x with those concatenated. image_width: of image features, None if it reads none; places: number of
    features with learnt positions. reference_channels: of a reference, 0 if it reads none. vace: number of VACE blocks;
    vace_channels: of their input. camera: channels of a camera's rays, 0 if it reads none.
    """

    title = "Wan"
    trained_as = Flow(SHIFT)
    latent_format = WAN
    dtypes = (torch.float16, torch.bfloat16)

    width: int
    layers: int
    inside: int
    text_width: int
    fed: int = 16
    image_width: int | None = None
    places: int | None = None
    reference_channels: int = 0
    vace: int = 0
    vace_channels: int = 0
    camera: int = 0

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        kind = ROLES["backbone"].kind(tensors.shapes)
        made = tensors.shape("head.head.weight")[0]
        return kind is not None and kind.known and made == cls.latent_format.channels * PATCH**2

    @classmethod
    def probe(cls, tensors: Tensors) -> Wan:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, fed = tensors.shape("patch_embedding.weight")[:2]
        if width % HEAD:
            raise tensors.unsupported(f"has a Wan backbone {width} wide; supported are multiples of {HEAD}")
        layers, vace = tensors.count("blocks."), tensors.count("vace_blocks.")
        if vace and (vace > layers or layers % vace):
            raise tensors.unsupported(
                f"has {vace} blocks of VACE for {layers} of Wan; supported is a number that divides those"
            )
        return cls(
            width,
            layers,
            tensors.shape("blocks.0.ffn.0.weight")[0],
            tensors.shape("text_embedding.0.weight")[1],
            fed,
            _side(tensors, "img_emb.proj.0.bias", 0),
            _side(tensors, "img_emb.emb_pos", 1),
            _side(tensors, "ref_conv.weight", 1) or 0,
            vace,
            _side(tensors, "vace_patch_embedding.weight", 1) or 0,
            (_side(tensors, "control_adapter.conv.weight", 1) or 0) // CELL**2,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(_ENDS)
        for kind, count in (("blocks", self.layers), ("vace_blocks", self.vace)):
            for block in (f"{kind}.{number}" for number in range(count)):
                for theirs, ours, names in (
                    ("self_attn", "attn1", _ATTENTION),
                    ("cross_attn", "attn2", _ATTENTION | _OF_IMAGE),
                ):
                    table |= {f"{block}.{theirs}.{a}": f"{block}.{ours}.{b}" for a, b in names.items()}
                table |= {
                    f"{block}.norm3": f"{block}.norm2",
                    f"{block}.ffn.0": f"{block}.ffn.net.0.proj",
                    f"{block}.ffn.2": f"{block}.ffn.net.2",
                    f"{block}.modulation": f"{block}.scale_shift_table",
                    f"{block}.before_proj": f"{block}.before_proj",
                    f"{block}.after_proj": f"{block}.after_proj",
                }
        return table

    @property
    def sharded_heads(self) -> int:
        return self.width // HEAD

    def build(self) -> nn.Module:
        heads = self.width // HEAD
        network = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=HEAD,
            in_channels=self.fed,
            out_channels=self.latent_format.channels,
            text_dim=self.text_width,
            ffn_dim=self.inside,
            num_layers=self.layers,
            image_dim=self.image_width,
            added_kv_proj_dim=None if self.image_width is None else self.width,
            pos_embed_seq_len=self.places,
        )
        if self.reference_channels:
            network.ref_conv = nn.Conv2d(self.reference_channels, self.width, PATCH, PATCH)
        if self.camera:
            network.control_adapter = CameraAdapter(self.camera, self.width, PATCH)
        if self.vace:
            patch = (1, PATCH, PATCH)
            network.vace_patch_embedding = nn.Conv3d(self.vace_channels, self.width, patch, patch)
            network.vace_blocks = nn.ModuleList(
                WanTransformerBlock(self.width, self.inside, heads, cross_attn_norm=True) for _ in range(self.vace)
            )
            network.vace_blocks[0].before_proj = nn.Linear(self.width, self.width)
            for block in network.vace_blocks:
                block.after_proj = nn.Linear(self.width, self.width)
        for layer in network.modules():
            if isinstance(layer, FP32LayerNorm):
                # Torch's own norm also computes in single precision, without a copy of all tokens in it.
                layer.__class__ = nn.LayerNorm
        built: nn.Module = network
        return built

    def lora_names(self, parameters: Sequence[str]) -> Table:
        names = dict(lora_names(parameters, self.table()))
        # Wan Fun's own trainer adds an underscore to the prefix.
        flat = {name: changed for name, changed in names.items() if name.startswith(_FLAT)}
        return names | {f"{_FLAT}_{name.removeprefix(_FLAT)}": changed for name, changed in flat.items()}

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> WanInputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's text encoder, or for images, frames or masks that do
        not fit the latents or the network.
        """
        check_text(cond, self.text_width, self.title)
        rows, concat = canvas.rows, self._concat(options, canvas)
        return WanInputs(
            to_batch(to_device(cond, device).float(), rows),
            None if concat is None else to_device(concat, device),
            self._seen(options.get("clip_vision_output"), rows, device),
            self._noisy(canvas, device),
            self._reference(options, canvas, device),
            self._vace_controls(options, canvas, device) if self.vace else (),
            self._rays(options, canvas, device) if self.camera else None,
            self._context(options, canvas, device),
            options.get(ScaledPositions.OPTION),
        )

    def _concat(self, options: Mapping[str, Any], canvas: Canvas) -> Tensor | None:
        """Return what is concatenated with x, (B,E,F,h,w), if the network reads any."""
        extra = self.fed - self.latent_format.channels
        return frames_and_mask(options, canvas.latents, canvas.mask, extra, self.latent_format) if extra else None

    def _seen(self, output: ClipVisionOutput | None, rows: int, device: torch.device) -> Tensor | None:
        if output is None or self.image_width is None:
            return None
        states = output.penultimate_hidden_states
        if states.shape[-1] != self.image_width:
            raise NodeError(
                f"the CLIP vision output is {states.shape[-1]} wide, and this {self.title} reads one "
                f"{self.image_width} wide"
            )
        if self.places is not None and states.shape[1] > self.places:
            raise NodeError(
                f"the CLIP vision output has {states.shape[1]} tokens, and this {self.title} has places for "
                f"{self.places}"
            )
        return to_batch(to_device(states, device).float(), rows)

    def _noisy(self, canvas: Canvas, device: torch.device) -> Tensor | None:
        """Return each frame's noise level as a share of sigma, for a network with a timestep for each frame."""
        return None

    def _reference(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> Tensor | None:
        """Return the first frame of the last reference, if the network reads one."""
        references = scaled_references(options, self.latent_format, canvas.rows, device)
        if not self.reference_channels or not references:
            return None
        reference, size = references[-1][:, :, 0], canvas.latents.shape[-2:]
        if reference.shape[-2:] != size:
            raise NodeError(
                f"the reference is {tuple(reference.shape[-2:])} latent cells, and the latents to sample are "
                f"{tuple(size)}: {self.title} has it for a frame before the first"
            )
        return reference

    def _rays(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> Tensor | None:
        """Return the rays of a camera's path. Errors: NodeError for those of a video of another size."""
        rays: Tensor | None = options.get("camera_conditions")
        if rays is None:
            return None
        frames, height, width = canvas.latents.shape[2:]
        wanted = (self.camera, frames, height * CELL, width * CELL)
        if rays.shape[1:] != wanted:
            raise NodeError(
                f"the camera's path is {tuple(rays.shape[1:])} channels, latent frames, rows, columns of pixels, and "
                f"the video to sample takes {wanted}: width, height and length of both nodes must be equal"
            )
        return to_batch(to_device(rays, device).float(), canvas.rows)

    def _context(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> tuple[Tensor, ...]:
        """Return further videos and images. Errors: NodeError for latents of another VAE, or a network without any."""
        given: Sequence[Tensor] = options.get("context_latents") or ()
        if given and (self.fed != self.latent_format.channels or self.reference_channels):
            raise NodeError(
                f"{len(given)} videos or images are given as context, which only a {self.title} of texts alone reads; "
                f"this one reads {self.fed} channels"
            )
        for one in given:
            self.latent_format.check(one.shape)
        scaled = (self.latent_format.to_model(to_device(one, device).float()) for one in given)
        return tuple(to_batch(one, canvas.rows) for one in scaled)

    def _vace_controls(
        self, options: Mapping[str, Any], canvas: Canvas, device: torch.device
    ) -> tuple[VaceControl, ...]:
        x, rows = canvas.latents, canvas.rows
        given: Sequence[Tensor] | None = options.get("vace_frames")
        frames = [x.new_zeros(1, VACE_FRAMES, *x.shape[2:])] if given is None else given
        masks: Sequence[Tensor] = options.get("vace_mask") or [x.new_ones(1, VACE_MASK, *x.shape[2:])] * len(frames)
        strengths: Sequence[float] = options.get("vace_strength") or [1.0] * len(frames)
        if not len(frames) == len(masks) == len(strengths):
            raise NodeError(
                f"VACE is given {len(frames)} videos with {len(masks)} masks and {len(strengths)} strengths; each has "
                "one of both"
            )
        controls = []
        for one, mask, strength in zip(frames, masks, strengths, strict=True):
            if one.shape[2:] != x.shape[2:]:
                raise NodeError(
                    f"VACE is given {tuple(one.shape[2:])} latent frames, rows and columns, and the latents to sample "
                    f"have {tuple(x.shape[2:])}"
                )
            videos = torch.split(to_device(one, device).float(), x.shape[1], dim=1)
            scaled = [*map(self.latent_format.to_model, videos), to_device(mask, device).float()]
            if (channels := sum(part.shape[1] for part in scaled)) != self.vace_channels:
                raise NodeError(f"VACE is given {channels} channels, and this {self.title} reads {self.vace_channels}")
            both = to_batch(torch.cat(scaled, dim=1), rows)
            controls.append(VaceControl(both, torch.full((rows, 1, 1), float(strength), device=device)))
        return tuple(controls)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x, image features, reference and context, and which other inputs there are."""
        parts = (inputs.seen, inputs.reference, *inputs.context)
        shapes = (None if part is None else part.shape[1:] for part in parts)
        there = inputs.noisy is None, inputs.camera is None
        return tuple(x.shape[1:]), *shapes, *there, len(inputs.vace), inputs.placed

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length, images and LoRAs."""
        dtype, inputs, size = network.proj_out.weight.dtype, [r.inputs for r in rows], rows[0].x.shape[2:]
        texts, first = [i.text.to(dtype) for i in inputs], inputs[0]
        x = torch.cat([r.x for r in rows])
        level = torch.cat([r.timestep for r in rows])[:, None]

        def together(name: str) -> Tensor | None:
            own = [getattr(i, name) for i in inputs]
            return None if own[0] is None else torch.cat(own).to(dtype)

        tensors: dict[Any, Tensor | None] = {
            "x": x.to(dtype),
            "level": level if first.noisy is None else level * torch.cat([i.noisy for i in inputs]),
            "text": stacked(texts),
            "mask": by_heads(there(texts)),
            "at": to_device(self._positions(size, first), x.device),
            "concat": together("concat"),
            "seen": together("seen"),
            "reference": together("reference"),
            "camera": together("camera"),
        }
        for number, own in enumerate(zip(*(i.context for i in inputs), strict=True)):
            tensors[OfContext(number)] = torch.cat(own).to(dtype)
        by_number = zip(*(i.vace for i in inputs), strict=True)
        for number, controls in enumerate(by_number):
            tensors[OfVace("frames", number)] = torch.cat([one.frames for one in controls]).to(dtype)
            tensors[OfVace("strength", number)] = torch.cat([one.strength for one in controls]).to(dtype)
        return tensors | passed(rows)

    def _positions(self, size: Sequence[int], inputs: Any) -> Tensor:
        """Return the positions of all tokens, as `_angles` takes them. size: of x, (F,h,w)."""
        # A reference is a frame before the first.
        own = (size[0] + (inputs.reference is not None), *size[1:])
        return _of_videos([own, *(one.shape[2:] for one in inputs.context)], inputs.placed)

    def embedded(self, network: Any, given: Inputs) -> tuple[Tensor, int]:
        """Return all tokens (R,n,W), and where those of x end."""
        x = given["x"]
        fed = torch.cat([x, given["concat"]], dim=1) if "concat" in given else x
        patches = network.patch_embedding(whole_patches(fed))
        image = tokens_of(patches + network.control_adapter(given["camera"]) if "camera" in given else patches)
        if "reference" in given:
            image = torch.cat([tokens_of(network.ref_conv(whole_patches(given["reference"]))), image], dim=1)
        context = [tensor for name, tensor in given.items() if isinstance(name, OfContext)]
        further = [tokens_of(network.patch_embedding(whole_patches(one))) for one in context]
        return (torch.cat([image, *further], dim=1) if further else image), image.shape[1]

    def beside(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Callable[[Any], Attend]:
        """Return what is called with each block before it runs, and says how its tokens attend to each other."""
        return lambda block: attention_output

    def read(self, network: Any, text: Tensor, mask: Tensor | None, seen: Tensor | None) -> list[Read]:
        """Return what blocks read. text: (R,T,D), with a mask of real keys, None: all; seen: image features (R,N,V)."""
        embed = network.condition_embedder
        read: list[Read] = [(embed.text_embedder(text), mask)]
        if self.image_width is not None:
            # Without image features, the text is used, as in ComfyUI.
            read.append(read[0] if seen is None else (_of_images(embed.image_embedder, seen), None))
        return read

    def times(self, network: Any, level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the embeddings (R,G,W) of levels (R,G), and what they make for blocks, (R,G,6,W)."""
        embed = network.condition_embedder
        # Time reaches the sinusoids in single precision, as in ComfyUI.
        time = embed.time_embedder(embed.timesteps_proj(level.flatten()).to(dtype)).view(*level.shape, -1)
        return time, embed.time_proj(embed.act_fn(time)).unflatten(2, (6, -1))

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, size = given["x"], given["x"].shape[2:]
        image, own = self.embedded(network, given)
        shards = sharding(image.shape[1])
        image = shards.shard(image)
        # Of all tokens, or of each frame's.
        time, by_block = self.times(network, given["level"], x.dtype)
        read = self.read(network, given["text"], given.get("mask"), given.get("seen"))
        turns = shards.shard(turns_of(token_angles(given["at"])), dim=0)
        tell = partial(through_block, time=by_block, read=read, turns=turns, shards=shards)
        beside = self.beside(network, rows, given)
        hints = [given[OfVace("frames", number)] for number in range(len(rows[0].inputs.vace))]
        hint_tokens = [tokens_of(network.vace_patch_embedding(whole_patches(hint))) for hint in hints]
        vace_tokens = [*map(shards.shard, hint_tokens)]
        beginning = image if vace_tokens else None
        every = self.layers // self.vace if self.vace else 0
        passing = Passing(rows, DOUBLES, given)
        for number, block in enumerate(network.blocks):
            (image,) = passing.through(number, partial(tell, block, image, attend=beside(block)), image)
            if not every or number % every:
                continue
            of_vace = network.vace_blocks[number // every]
            for i, hint in enumerate(vace_tokens):
                vace_tokens[i] = tell(of_vace, of_vace.before_proj(hint) + beginning if number == 0 else hint)
                image = addcmul(image, of_vace.after_proj(vace_tokens[i]), given[OfVace("strength", i)])
        shift, scale = (_by_token(part, shards) for part in _modulation(network, time[:, :, None]))
        made = shards.gather(network.proj_out(addcmul(shift, network.norm_out(image), 1 + scale)), 0)
        by_frame = made[:, own - size[0] * prod(grid(size[1], size[2])) : own].reshape(
            len(x) * size[0], -1, made.shape[2]
        )
        frames = from_tokens(by_frame, size[1], size[2], channels_last=True)
        return frames.view(-1, size[0], *frames.shape[1:]).movedim(1, 2)


@dataclass(frozen=True, slots=True)
class Wan22(Wan):
    """Wan 2.2 of 5 B, for texts and images, with a timestep for each frame.

    Masked-out frames reach it without noise.
    """

    title = "Wan 2.2"
    kind = "Wan"
    latent_format = WAN_22
    keeps_clean = True

    def _noisy(self, canvas: Canvas, device: torch.device) -> Tensor | None:
        return None if canvas.mask is None else to_device(canvas.mask.mean(dim=(1, 3, 4)), device)


def _side(tensors: Tensors, name: str, axis: int) -> int | None:
    """Return the size of a tensor's side; None if it is missing."""
    shape = tensors.shapes.get(name)
    return None if shape is None else shape[axis]


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values (R,n,H,d) to what is found, (R,n,W)."""
Read: TypeAlias = "tuple[Tensor, Tensor | None]"
"""Tokens (R,T,W) that others attend to, and a mask of real keys (R,1,1,T); None: all."""


class OfContext(NamedTuple):
    """Name of a call's input: one of the videos and images of a context, (R,C,f,h,w)."""

    number: int


def _of_videos(sizes: Sequence[Sequence[int]], placed: ScaledPositions | None) -> Tensor:
    """Return the positions of videos' tokens, (n,3): frame, row, column; of several (n,4), with which video it is.

    sizes: latent frames, rows and columns of each; the first is the video to sample.
    """
    videos = [torch.cat([positions(size[1:], frame) for frame in range(size[0])]) for size in sizes]
    if placed is not None:
        videos = [at * torch.tensor(placed.scale) + torch.tensor(placed.shift) for at in videos]
    if len(videos) > 1:
        videos = [pad(at, (0, 1), value=float(number)) for number, at in enumerate(videos)]
    return torch.cat(videos)


def token_angles(at: Tensor) -> Tensor:
    """Return the rotary angles of positions; the number of a video turns all of a head."""
    turned = angles(at[:, :3], AXES, THETA)
    return turned if at.shape[1] == 3 else turned + angles(at[:, 3:], (HEAD,), THETA)


class OfVace(NamedTuple):
    """Name of a VACE input of a call: "frames", (R,E,F,h,w), or their "strength", (R,1,1)."""

    what: str
    number: int


def through_block(
    block: Any,
    image: Tensor,
    time: Tensor,
    read: Sequence[Read],
    turns: Tensor,
    shards: Sharding,
    attend: Attend = attention_output,
) -> Tensor:
    """Return a block's output for tokens (R,n,W). time: (R,G,6,W).

    read: the text (R,T,W), and image features if the network reads them; each with a mask of real keys, (R,1,1,m),
    None: all. turns: of `turns_of`. shards: of the tokens. attend: how these attend to each other.
    """
    shift, scale, gate, inner_shift, inner_scale, inner_gate = (
        _by_token(part, shards) for part in _modulation(block, time)
    )
    # Videos are long: each separate sum and product would be another pass over all tokens.
    with attention_over(shards.of_attention):
        found = _self_attended(block.attn1, addcmul(shift, block.norm1(image), 1 + scale), turns, attend)
    image = addcmul(image, found, gate)
    del found
    image = image + _cross_attended(block.attn2, block.norm2(image), read)
    return addcmul(image, block.ffn(addcmul(inner_shift, block.norm3(image), 1 + inner_scale)), inner_gate)


def _self_attended(attn: Any, tokens: Tensor, turns: Tensor, attend: Attend) -> Tensor:
    """Return what tokens (R,n,W) find in each other."""

    def heads(kind: str) -> Tensor:
        return _heads(getattr(attn, f"norm_{kind}")(getattr(attn, f"to_{kind}")(tokens)))

    q, k = made_and_rotated(heads, turns)
    found: Tensor = attn.to_out[0](attend(q, k, _heads(attn.to_v(tokens))))
    return found


def _cross_attended(attn: Any, tokens: Tensor, read: Sequence[Read]) -> Tensor:
    """Return what tokens (R,n,W) find in a text, and in image features if there are any."""
    q = _heads(attn.norm_q(attn.to_q(tokens)))
    (text, of_text), *seen = read
    found = attention_output(q, _heads(attn.norm_k(attn.to_k(text))), _heads(attn.to_v(text)), of_text)
    for features, mask in seen:
        k = attn.norm_added_k(attn.add_k_proj(features))
        found = found + attention_output(q, _heads(k), _heads(attn.add_v_proj(features)), mask)
    out: Tensor = attn.to_out[0](found)
    return out


def _modulation(layer: Any, time: Tensor) -> tuple[Tensor, ...]:
    """Return a layer's shifts, scales and gates, (R,G,W) each. time: (R,G,K,W) or (R,G,1,W)."""
    return torch.unbind(layer.scale_shift_table + time, dim=2)


def _by_token(of_groups: Tensor, shards: Sharding) -> Tensor:
    """Return vectors of groups of tokens (R,G,W) for each of a rank's tokens (R,n,W); of one group unchanged."""
    (count,), groups = shards.lengths, of_groups.shape[1]
    if groups == 1:
        return of_groups
    each = -(-count // groups)
    if shards.of_attention is None:
        return of_groups.repeat_interleave(each, dim=1)[:, :count]
    return of_groups[:, shards.shard(torch.arange(count, device=of_groups.device) // each, dim=0)]


def _heads(tokens: Tensor) -> Tensor:
    """Return tokens (R,n,W) by heads, (R,n,H,d)."""
    return torch.unflatten(tokens, 2, (-1, HEAD))


def _of_images(embedder: Any, seen: Tensor) -> Tensor:
    """Return tokens (R,N,W) of image features (R,N,V)."""
    if embedder.pos_embed is not None:
        seen = seen + embedder.pos_embed[:, : seen.shape[1]]
    tokens: Tensor = embedder.norm2(embedder.ff(embedder.norm1(seen)))
    return tokens


def tokens_of(cells: Tensor) -> Tensor:
    """Return patches (R,W,…) as tokens (R,n,W)."""
    return cells.flatten(2).transpose(1, 2)
