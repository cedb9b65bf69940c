"""MiniMax H3: a video and its sound from a text, frames to keep, and references, as one sequence with full attention.

Published files have ComfyUI's names: whole, or pruned, with a table of a curve in place of the network that embeds
times. Run by the layers of diffusers' MiniMaxH3Transformer3DModel. Source: MiniMax 2026, MiniMax-H3; the numbers are
ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.control.model_control import all_at_work
from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    Passing,
    Transformer,
    check_text,
    from_tokens,
    passed,
    to_tokens,
)
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.families.text.minimax_h3_text import TAGS, TEXT_TAG, VISION_TAG
from serve_app.models.families.video.minimax_h3_blocks import (
    ROPE,
    Modulated,
    block_names,
    modulation_of,
    through_block,
    turns_of,
)
from serve_app.models.families.video.minimax_h3_masks import (
    KEPT_SOUND,
    KEPT_VIDEO,
    LEAST_SIGMA,
    kept,
    levels,
    shifted,
    sound_shares,
    video_shares,
)
from serve_app.models.families.video.minimax_h3_sequence import (
    PATCH,
    STEREO,
    Given,
    Segment,
    Size,
    even,
    segments,
)
from serve_app.models.families.video.minimax_h3_sparse import Tiles, is_sparse, sequenced, sparse_attention, tiles_of
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.guidance import SkippedBlocks
from serve_app.recipe.layers import SparseAttention
from serve_app.recipe.training import AudioVideoFlow, Training
from serve_app.sampling.forward import Area, Canvas, Injection, to_batch
from serve_app.sampling.latents.latent_formats import MINIMAX_H3
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.noise import noise
from serve_app.sampling.transfer import to_device

TIMES = 1000.0
"""Timesteps of the noise levels 0…1."""
TRAINING = AudioVideoFlow(12.0, sound_shift=3.0)
TIME_WIDTH = 256
SOUND_TAG = 2
OF_VIDEO, OF_SOUND, OF_GIVEN_VIDEO, OF_GIVEN_SOUND, TIMES_OF_ALL = range(5)
"""The columns of times that every forward has, and how many these are; those of masked rows follow."""

_ENDS = {
    "video_patch_proj": "proj_in",
    "audio_patch_proj": "audio_proj_in",
    "condition_proj": "context_embedder",
    "time_embedder.proj_in": "time_embedder.linear_1",
    "time_embedder.proj_out": "time_embedder.linear_2",
    "adaln_t_table": "adaln_t_table",
    "token_refiner.final_norm": "token_refiner.final_norm",
    "final_layer.norm": "norm_out.norm",
    "final_layer.adaln_proj.linear": "norm_out.linear",
    "final_layer.video_out": "proj_out",
    "final_layer.audio_out": "audio_proj_out",
}
_TABLE = "adaln_t_table"
_GATE = "to_gate_compress"
_KEPT = {"minimax_visual_cond_noise_aug": KEPT_VIDEO, "minimax_audio_cond_noise_aug": KEPT_SOUND}
_TIME_OF = {"video": OF_VIDEO, "sound": OF_SOUND, "given video": OF_GIVEN_VIDEO, "given sound": OF_GIVEN_SOUND}
_TAG_OF = {"video": VISION_TAG, "sound": SOUND_TAG, "given video": VISION_TAG, "given sound": SOUND_TAG}


@dataclass(frozen=True, slots=True, eq=False)
class MiniMaxH3Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D); tags: (start, end, kind) of each run of its tokens. shapes: of video and sound without the batch.
    read_at: the times at which the network reads given videos and sounds. given: what the video is made from, with rows
    of its latents, (B,n,4C) and (B,n,D), or None. video_levels, sound_levels: of masks, shares (B,J) of sigma, and
    which of them each row of the sequence has, (B,n); None without a mask.
    """

    text: Tensor
    tags: tuple[tuple[int, int, int], ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    read_at: tuple[float, float]
    given: tuple[Given, ...] = ()
    given_video: Tensor | None = None
    given_sound: Tensor | None = None
    video_levels: tuple[Tensor, Tensor] | None = None
    sound_levels: tuple[Tensor, Tensor] | None = None

    def within(self, area: Area | None) -> MiniMaxH3Inputs:
        """Return the inputs; a run of several parts has no areas."""
        return self

    @property
    def size(self) -> Size:
        return even(self.shapes[0][1:])

    @property
    def segments(self) -> Sequence[Segment]:
        return segments(self.text.shape[1], self.given, self.size, self.shapes[1][-1])


@dataclass(frozen=True, slots=True)
class MiniMaxH3(Transformer):
    """A backbone. width: of a row; inside: of feed-forward layers.

    time_inside, time_width: of the network that embeds times; curve: points of the table in its place, 0 without.
    gated: attention has a gate for the coarse branch of "vsa", as FastH3's.
    """

    title = "MiniMax H3"
    latent_format = MINIMAX_H3
    dtypes = (torch.bfloat16,)

    width: int
    layers: int
    refiners: int
    heads: int
    head: int
    inside: int
    text_width: int
    time_width: int
    time_inside: int = 0
    curve: int = 0
    channels: int = 24
    sound_channels: int = 32
    gated: bool = False

    steady = (SkippedBlocks, SparseAttention)

    @property
    def sharded_heads(self) -> int:
        return self.heads

    @classmethod
    def probe(cls, tensors: Tensors) -> MiniMaxH3:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, cells = tensors.shape("video_patch_proj.weight")
        head = tensors.shape("blocks.0.attn.q_norm.weight")[0]
        if head < 6 * ROPE:
            raise tensors.unsupported(f"has heads of MiniMax H3 {head} wide; supported are {6 * ROPE} and more")
        curve, time_width = tensors.shapes.get(_TABLE, (0, 0))
        time_inside = 0
        if not curve:
            time_width, time_inside = tensors.shape("time_embedder.proj_out.weight")
        return cls(
            width,
            tensors.count("blocks."),
            tensors.count("token_refiner.blocks."),
            tensors.shape("blocks.0.attn.qkv_proj.weight")[0] // 3 // head,
            head,
            tensors.shape("blocks.0.mlp.fc1.weight")[0] // 2,
            tensors.shape("condition_proj.weight")[1],
            time_width,
            time_inside,
            curve,
            cells // PATCH**2,
            tensors.shape("audio_patch_proj.weight")[1],
            "blocks.0.attn.to_gate_compress.weight" in tensors.shapes,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        blocks = [(f"blocks.{number}", f"transformer_blocks.{number}") for number in range(self.layers)]
        blocks += [
            (f"token_refiner.blocks.{number}", f"token_refiner.refiner_blocks.{number}")
            for number in range(self.refiners)
        ]
        for theirs, ours in blocks:
            table |= block_names(theirs, ours, self.heads * self.head)
        return table

    def build(self) -> nn.Module:
        network = MiniMaxH3Transformer3DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.head,
            hidden_size=self.width,
            num_layers=self.layers,
            num_refiner_layers=self.refiners,
            ffn_dim=self.inside,
            in_channels=self.channels,
            audio_in_channels=self.sound_channels,
            text_dim=self.text_width,
            time_embed_hidden_dim=self.time_inside or 1,
            time_embed_dim=self.time_width,
        )
        # Tables that are in no file: `call_inputs` computes what it needs.
        network.rope = nn.Identity()
        if self.curve:
            network.time_embedder = nn.Identity()
            network.adaln_t_table = nn.Parameter(torch.empty(self.curve, self.time_width))
        for block in network.transformer_blocks if self.gated else ():
            block.attn.to_gate_compress = nn.Linear(self.width, self.heads * self.head, bias=False)
        built: nn.Module = network
        return built

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return TRAINING

    def single(self, name: str) -> bool:
        layer = name.partition(".")[0]
        of_curve = bool(self.curve) and (".adaln_proj." in name or name.startswith("norm_out.linear."))
        return of_curve or layer in ("proj_in", "audio_proj_in", "time_embedder", _TABLE, "proj_out", "audio_proj_out")

    def format_of(self, training: Training) -> LatentFormat:
        """Return its latents' format: a run has the sound on the video's schedule, and so much larger.

        Errors: NodeError for a training without a schedule of the sound.
        """
        if not isinstance(training, AudioVideoFlow):
            raise NodeError(
                f"{self.title} samples a video and its sound on two schedules; MiniMaxH3SigmaShift sets both"
            )
        video, sound = self.latent_format.parts
        return replace(video, others=(replace(sound, scale=training.shift / training.sound_shift),))

    def injection(self, canvas: Canvas, training: Training) -> Injection | None:
        return partial(kept, canvas, training) if isinstance(training, AudioVideoFlow) else None

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> MiniMaxH3Inputs:
        """Return the text, and what the video is made from: ComfyUI's options.

        Errors: NodeError for a conditioning of another family's text encoder, for given latents that do not fit, or for
        latents to sample without a sound.
        """
        check_text(cond, self.text_width, self.title)
        if not canvas.layout.joint:
            raise NodeError(f"{self.title} samples a video with its sound, and these latents have no sound")
        (video, sound), rows = canvas.layout.shapes, canvas.rows
        size = even(video[1:])
        found = [self._given(one, size) for one in _given_latents(options)]
        of_video, of_sound = (float(options.get(key, share)) for key, share in _KEPT.items())

        def together(
            cut: Callable[[Tensor], Tensor], latents: Sequence[Tensor], share: float, seed: int
        ) -> Tensor | None:
            own = [_noised(cut(to_device(one, device).float()), share, seed) for one in latents]
            return to_batch(torch.cat(own, dim=1), rows) if own else None

        masks = [None, None] if canvas.mask is None else canvas.layout.parts(canvas.mask)
        return MiniMaxH3Inputs(
            to_batch(to_device(cond, device).float(), rows),
            _runs(options.get(TAGS), cond.shape[1]),
            (video, sound),
            (of_video, of_sound),
            tuple(given for given, _, _ in found),
            together(video_rows, [z for _, z, _ in found if z is not None], of_video, canvas.seed),
            together(_sound_rows, [z for _, _, z in found if z is not None], of_sound, canvas.seed + 1),
            None if masks[0] is None else levels(video_shares(masks[0])),
            None if masks[1] is None else levels(sound_shares(masks[1])),
        )

    def _given(
        self, one: tuple[int | None, Tensor | None, Tensor | None], size: Size
    ) -> tuple[Given, Tensor | None, Tensor | None]:
        """Return what latents are given. Errors: NodeError for latents of another model or of another size."""
        frame, video, sound = one
        for latents, axes, channels in ((video, 5, self.channels), (sound, 4, self.sound_channels)):
            if latents is not None and (latents.ndim != axes or latents.shape[1] != channels):
                raise NodeError(
                    f"{self.title} is given latents {tuple(latents.shape)} to make a video from; a video's are (1,"
                    f"{self.channels},frames,height,width), a sound's (1,{self.sound_channels},2,length)"
                )
        own = None if video is None else even(video.shape[2:])
        if frame is not None and own is not None and own[1:] != size[1:]:
            raise NodeError(
                f"a guide of {self.title} is {own[1]}×{own[2]} latent cells, and the video to make is "
                f"{size[1]}×{size[2]}: they must be equal"
            )
        return Given(frame, own, 0 if sound is None else sound.shape[-1]), video, sound

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return what determines the sequence, and how many levels of masks there are."""
        masks = (inputs.video_levels, inputs.sound_levels)
        levels = tuple(None if mask is None else mask[0].shape[1] for mask in masks)
        return inputs.shapes, inputs.text.shape[1], inputs.tags, inputs.read_at, inputs.given, levels

    def cells(self, x: Tensor, inputs: Any) -> int:
        return x.shape[0] * PATCH**2 * int(sum(segment.length for segment in inputs.segments))

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, given latents, masks and LoRAs."""
        inputs = [r.inputs for r in rows]

        def together(own: Sequence[Tensor | None]) -> Tensor | None:
            there = [tensor for tensor in own if tensor is not None]
            return torch.cat(there) if there else None

        tensors: dict[Any, Tensor | None] = {
            "x": torch.cat([r.x for r in rows]),
            "level": torch.cat([r.timestep for r in rows]) / TIMES,
            "text": torch.cat([i.text for i in inputs]),
            "shifts": to_device(
                torch.tensor([shifts(r.training) for r in rows for _ in range(r.count)]), rows[0].x.device
            ),
            "at": to_device(torch.cat([segment.at for segment in inputs[0].segments]).float(), rows[0].x.device),
            "given video": together([i.given_video for i in inputs]),
            "given sound": together([i.given_sound for i in inputs]),
        }
        for kind, masks in (
            ("video", [i.video_levels for i in inputs]),
            ("sound", [i.sound_levels for i in inputs]),
        ):
            for number, what in enumerate(("shares", "numbers")):
                tensors[f"{kind} {what}"] = together([None if mask is None else mask[number] for mask in masks])
        if any(patch.method == "vsa" for patch in _sparse(rows) if patch is not None):
            lengths = tuple(segment.length for segment in inputs[0].segments)
            for name, tensor in tiles_of(lengths, inputs[0].size)._asdict().items():
                tensors[OfTiles(name)] = to_device(tensor, rows[0].x.device)
        return tensors | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        inputs: MiniMaxH3Inputs = rows[0].inputs
        dtype = network.token_refiner.final_norm.weight.dtype
        video, sound = LatentLayout(inputs.shapes).parts(given["x"])
        sigma = given["level"].float().clamp(min=LEAST_SIGMA)
        shift, sound_shift = given["shifts"].unbind(1)
        sound_sigma = shifted(sigma, shift, sound_shift)
        # The run has the sound on the video's schedule, larger than it is.
        sound = sound * (sound_sigma / sigma)[:, None, None, None]
        embedded = {
            "text": network.token_refiner(network.context_embedder(given["text"].to(dtype))),
            "video": network.proj_in(video_rows(video.float())).to(dtype),
            "sound": network.audio_proj_in(_sound_rows(sound.float())).to(dtype),
        }
        for kind, embed in (("given video", network.proj_in), ("given sound", network.audio_proj_in)):
            if kind in given:
                embedded[kind] = embed(given[kind]).to(dtype)
        sequence = torch.cat(list(_in_order(inputs.segments, embedded)), dim=1)
        times = self._times(sigma, sound_sigma, inputs.read_at, given)
        embedded_times = self._embedded(network, times, dtype)
        plan = _plan(inputs, given)
        shards = sharding(*(part.end - part.start for part in plan))
        cos, sin = (shards.shard(one, dim=0) for one in turns_of(given["at"], dtype))
        sequence, plan = shards.shard(sequence), _own(plan, shards)
        passing, attention = Passing(rows, DOUBLES, given), _attention(rows, given, shards)
        call = SequenceCall(inputs.segments, embedded_times.view(*times.shape, -1), plan, (cos, sin))
        controls = all_at_work(rows, call, inputs.shapes[0][1:]) if any(r.controls for r in rows) else []
        for control in controls:
            control.before(DOUBLES, sequence)
        for number, block in enumerate(network.transformer_blocks):
            (sequence,) = passing.through(
                number,
                partial(through_block, block, sequence, embedded_times, plan, (cos, sin), partial(attention, number)),
                sequence,
            )
            for control in controls:
                control.after(DOUBLES, number, sequence)
        modulation = network.norm_out.linear(embedded_times)
        by_time = modulation.view(*times.shape, 1, 2, self.width)
        *_, of_sound, of_video = plan
        velocity = shards.gather(network.proj_out(_last(network, sequence, by_time, of_video)), len(plan) - 1)
        own_sound = network.audio_proj_out(_last(network, sequence, by_time, of_sound))
        sound_velocity = shards.gather(own_sound, len(plan) - 2)
        return self._output(velocity, sound_velocity, sound, sound_sigma, shift / sound_shift, inputs)

    def _times(self, sigma: Tensor, sound_sigma: Tensor, read_at: tuple[float, float], given: Inputs) -> Tensor:
        """Return all times of rows (R,M), 1 without noise, in the order of OF_VIDEO and so on, then those of masks."""
        time, sound_time = 1 - sigma, 1 - sound_sigma
        times = [torch.stack([time, sound_time, time.clamp(min=read_at[0]), sound_time.clamp(min=read_at[1])], dim=1)]
        for kind, level, share in (("video", sigma, KEPT_VIDEO), ("sound", sound_sigma, KEPT_SOUND)):
            if (shares := given.get(f"{kind} shares")) is not None:
                most = (1 - level).clamp(min=share)[:, None]
                times.append(torch.minimum(1 - shares * level[:, None], most))
        return torch.cat(times, dim=1)

    def _embedded(self, network: Any, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what modulations are made of, (R·M,time_width), for times (R,M)."""
        flat = times.flatten()
        if not self.curve:
            of_times: Tensor = network.time_embedder(network.time_proj(flat))
            return silu(of_times.to(dtype))
        table = network.adaln_t_table
        at = flat.clamp(0, 1) * (len(table) - 1)
        before = at.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[before], table[before + 1], (at - before)[:, None])

    def _output(
        self,
        velocity: Tensor,
        sound_velocity: Tensor,
        sound: Tensor,
        sound_sigma: Tensor,
        scale: Tensor,
        inputs: MiniMaxH3Inputs,
    ) -> Tensor:
        """Return the velocities (R,1,N) towards noise, of the sound on the video's schedule."""
        (channels, frames, height, width), size = inputs.shapes[0], inputs.size
        count = len(velocity)
        by_frame = velocity.reshape(count * frames, -1, velocity.shape[2])
        video = from_tokens(by_frame, *size[1:])[..., :height, :width].view(count, frames, channels, height, width)
        of_sound = sound_velocity.view(count, STEREO, -1, sound_velocity.shape[2]).permute(0, 3, 1, 2)
        scale, level = (one[:, None, None, None] for one in (scale, sound_sigma))
        carried = (1 - scale) * sound - (1 + (scale - 1) * level) * of_sound
        return LatentLayout(inputs.shapes).pack(NestedTensor([-video.movedim(1, 2), carried]))


@dataclass(frozen=True, slots=True, eq=False)
class SequenceCall:
    """Inputs of model controls in a forward of R rows. times: embedded, (R,M,time_width); turns: as `turns_of`."""

    segments: Sequence[Segment]
    times: Tensor
    plan: Sequence[Modulated]
    turns: tuple[Tensor, Tensor]


def shifts(training: Training | None) -> tuple[float, float]:
    """Return the shifts of a video's and its sound's schedules. training: as `Rows.training`."""
    flow = training if isinstance(training, AudioVideoFlow) else TRAINING
    return flow.shift, flow.sound_shift


def _given_latents(options: Mapping[str, Any]) -> list[tuple[int | None, Tensor | None, Tensor | None]]:
    """Return the keyframes and references of a conditioning: the image they begin with, video and sound."""
    frames = [
        (int(one["resolved_frame_index"]), one.get("latent"), one.get("audio_latent"))
        for one in options.get("minimax_keyframes") or ()
    ]
    return frames + [(None, one.get("latent"), one.get("audio_latent")) for one in options.get("minimax_refs") or ()]


def _runs(tags: Tensor | None, count: int) -> tuple[tuple[int, int, int], ...]:
    """Return the runs (start, end, kind) of a text's tokens of one kind. tags: (T,), None: all are text."""
    if tags is None or tags.is_meta:
        return ((0, count, TEXT_TAG),)
    kinds = [int(kind) for kind in tags.flatten().tolist()][:count]
    kinds += [TEXT_TAG] * (count - len(kinds))
    ends = [at for at in range(1, len(kinds) + 1) if at == len(kinds) or kinds[at] != kinds[at - 1]]
    return tuple((start, end, kinds[start]) for start, end in zip([0, *ends], ends, strict=False))


def _noised(rows: Tensor, share: float, seed: int) -> Tensor:
    """Return the rows of given latents, (1,n,W), with the noise of the time at which the network reads them."""
    if share >= 1:
        return rows
    return share * rows + (1 - share) * to_device(noise(rows.shape[1:], seed), rows.device)


def video_rows(latents: Tensor) -> Tensor:
    """Return a video's latents (B,C,T,h,w) as rows (B,n,4C), frame by frame."""
    by_frame = to_tokens(latents.movedim(2, 1).flatten(0, 1))
    return by_frame.reshape(len(latents), -1, by_frame.shape[2])


def _sound_rows(latents: Tensor) -> Tensor:
    """Return a sound's latents (B,D,2,n) as rows (B,2n,D), channel by channel."""
    return latents.flatten(2).transpose(1, 2)


def _in_order(parts: Sequence[Segment], embedded: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the rows of each segment. embedded: the rows of each kind, one after another."""
    used = dict.fromkeys(embedded, 0)
    for part in parts:
        yield embedded[part.kind][:, used[part.kind] : used[part.kind] + part.length]
        used[part.kind] += part.length


def _plan(inputs: MiniMaxH3Inputs, given: Inputs) -> list[Modulated]:
    """Return the modulations of a sequence in order; the sound's and the video's are the last two."""
    numbers = {"sound": given.get("sound numbers"), "video": given.get("video numbers")}
    masked = {
        "video": TIMES_OF_ALL,
        "sound": TIMES_OF_ALL + (given["video shares"].shape[1] if "video shares" in given else 0),
    }
    plan, start = [], 0
    for part in inputs.segments:
        end = start + part.length
        if part.kind == "text":
            plan += [Modulated(first, last, OF_VIDEO, kind) for first, last, kind in inputs.tags]
        else:
            of_row = numbers.get(part.kind)
            plan.append(
                Modulated(
                    start,
                    end,
                    _TIME_OF[part.kind] if of_row is None else of_row + masked[part.kind],
                    _TAG_OF[part.kind],
                )
            )
        start = end
    return plan


def _own(plan: list[Modulated], shards: Sharding) -> list[Modulated]:
    """Return the modulations of a rank's rows. shards: of the rows, a stream for each modulation."""
    if shards.of_attention is None:
        return plan
    own, start = [], 0
    for stream, part in enumerate(plan):
        end = start + shards.count(stream)
        time = part.time if isinstance(part.time, int) else shards.shard(part.time, stream)
        own.append(Modulated(start, end, time, part.kind))
        start = end
    return own


class OfTiles(NamedTuple):
    """Name of a call's input: a tensor of the tiles of its sequence, as `Tiles`."""

    what: str


def _sparse(rows: Sequence[Rows]) -> list[SparseAttention | None]:
    """Return the last patch of sparse attention of each piece of rows."""
    return [next((p for p in reversed(r.layers) if isinstance(p, SparseAttention)), None) for r in rows]


def _attention(rows: Sequence[Rows], given: Inputs, shards: Sharding) -> Callable[..., Tensor]:
    """Return what attention computes for a block by number, for rows that each have a patch of it or none.

    shards: of the sequence; over several ranks attention is dense.
    """
    patches = _sparse(rows)
    lengths = [segment.length for segment in rows[0].inputs.segments]
    tiles = Tiles(*(given[OfTiles(name)] for name in Tiles._fields)) if OfTiles("source") in given else None
    begins = [sum(r.count for r in rows[:number]) for number in range(len(rows) + 1)]

    def attention(number: int, attn: Any, inner: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if shards.of_attention is not None or not any(is_sparse(patch, number, q) for patch in patches):
            with attention_over(shards.of_attention):
                return attention_output(q, k, v)
        found = []
        for patch, start, end in zip(patches, begins, begins[1:], strict=False):
            own = q[start:end], k[start:end], v[start:end]
            if patch is None or not is_sparse(patch, number, q):
                found.append(attention_output(*own))
                continue
            vsa = patch.method == "vsa"
            gate = attn.to_gate_compress(inner[start:end]).view_as(own[0]) if vsa and hasattr(attn, _GATE) else None
            found.append(sparse_attention(patch, *own, sequenced(lengths, tiles if vsa else None), gate))
        return torch.cat(found)

    return attention


def _last(network: Any, sequence: Tensor, by_time: Tensor, part: Modulated) -> Tensor:
    """Return the rows of a part, modulated for the output layers, float32. by_time: (R,M,1,2,W)."""
    normed = network.norm_out.norm(sequence[:, part.start : part.end])
    part = part._replace(kind=0)
    modulated: Tensor = normed * (1 + modulation_of(by_time, part, 1)) + modulation_of(by_time, part, 0)
    return modulated.float()
