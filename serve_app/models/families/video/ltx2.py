"""LTX-2.0, 2.3 and 2.5: a video and its sound, sampled together, from a text, with frames to keep or to follow.

Reads the authors' single file, whose metadata says what its tensors do not; run by the layers of diffusers'
LTX2VideoTransformer3DModel and of its text connectors. Source: HaCohen et al. 2026, arXiv:2601.03233; the numbers are
ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention, LTX2VideoTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    Passing,
    Transformer,
    check_text,
    lengths,
    passed,
    stacked,
    within,
)
from serve_app.models.families.video.ltx2_blocks import (
    Blocks,
    Stilled,
    Times,
    Tokens,
    finished,
    perturbed,
    rotations,
)
from serve_app.models.families.video.ltx2_connectors import PLACES, Connector, connected
from serve_app.models.families.video.ltx2_guides import Guides
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.guidance import PerturbedStreams, SkippedBlocks
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import LTX2
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.latents.token_spans import token_spans
from serve_app.sampling.transfer import to_device

SHIFT = 2.37
HEADS = 32
"""Heads of both streams, where the metadata names no other number."""
SPAN = (20.0, 2048.0, 2048.0)
"""Seconds, rows and columns whose positions fill the rotation's range."""
AUDIO_CHANNELS, AUDIO_BINS = 8, 16
AUDIO_STEP_S = 4 * 160 / 16000
"""Seconds of sound that a latent covers."""
FRAME_RATE = 25.0
"""Frames in a second where a conditioning says nothing."""
TIME_SCALE = 1000.0
"""A time reaches its sinusoids multiplied by this."""
QK_EPS = 1e-5
"""Epsilon of the norms of queries and keys."""
CONNECTOR_HEADS = 30
MARK = "keyframes_abs_pos_embedding"
"""What LTX-2.5 adds to cells that are of one image."""
BASE, BESIDES_TEXT = 6, 9
"""Rows of a block's modulation, without and with those of its queries for the text."""

_TOP = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "transformer_blocks": "transformer_blocks",
    "caption_projection": "caption_projection",
    "audio_caption_projection": "audio_caption_projection",
    "scale_shift_table": "scale_shift_table",
    "audio_scale_shift_table": "audio_scale_shift_table",
    "proj_out": "proj_out",
    "audio_proj_out": "audio_proj_out",
    MARK: MARK,
}
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")


@dataclass(frozen=True, slots=True, eq=False)
class Ltx2Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D), before the connectors. layout: of x. frame_rate: frames in a second. noisy: of each video token, its
    noise level as a share of sigma: (B,F) where those of a frame are equal, (B,F·h·w) else, without cells that are no
    tokens; audio_noisy: (B,T) of the sound; None: 1. reference: tokens of a sound whose speaker the sound has, (B,n,c).
    """

    text: Tensor
    layout: LatentLayout
    frame_rate: float = FRAME_RATE
    noisy: Tensor | None = None
    audio_noisy: Tensor | None = None
    guides: Guides | None = None
    reference: Tensor | None = None

    def within(self, area: Area | None) -> Ltx2Inputs:
        """Return the inputs, which are for the whole canvas only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and LTX-2 reads texts for the whole video")
        return self


@dataclass(frozen=True, slots=True)
class Stream:
    """One of the two streams. width: of a token; heads: of its self-attention."""

    width: int
    heads: int


@dataclass(frozen=True, slots=True)
class Ltx2(Transformer):
    """A backbone. text_width: of a text row; gated: attention is gated by head; modulates_text: as LTX-2.3's.

    times_text: the text's modulation follows the level. biases: of the feed-forward layers of each stream. marks: cells
    of the first image are marked, as LTX-2.5's. projects_text: the network widens texts itself, as LTX-2.0's, which
    reads one text for both streams. halves: a head's numbers are rotated in pairs of its halves, else of neighbours.
    double: rotation frequencies are computed in double precision. middle: positions are those of tokens' middles;
    causal: the first latent frame is one frame. cross_time_scale: multiplies times of gates between the streams.
    """

    title = "LTX-2"
    latent_format = LTX2
    keeps_clean = True
    dtypes = (torch.bfloat16,)
    steady = (SkippedBlocks, PerturbedStreams)

    video: Stream
    audio: Stream
    layers: int
    text_width: int
    video_connector: Connector
    audio_connector: Connector
    gated: bool
    modulates_text: bool
    times_text: bool
    biases: tuple[bool, bool]
    marks: bool
    projects_text: bool
    halves: bool
    double: bool
    middle: bool
    causal: bool
    cross_time_scale: float

    @property
    def sharded_heads(self) -> int:
        return gcd(self.video.heads, self.audio.heads)

    @classmethod
    def probe(cls, tensors: Tensors) -> Ltx2:
        """Read the network's size off its tensors and metadata. Errors: ModelFileError for an unsupported variant."""
        config = tensors.config("transformer")
        if not config:
            raise tensors.unsupported(
                "holds an LTX-2 backbone without the 'config' in its metadata that says how its positions are made; "
                "a file as published has it"
            )
        block = "transformer_blocks.0."
        if "caption_projection.linear_1.weight" in tensors.shapes and config.get("caption_proj_before_connector"):
            raise tensors.unsupported("projects its texts before its connectors, which is not supported")
        heads = int(config.get("connector_num_attention_heads", CONNECTOR_HEADS))
        video = Connector.probe(tensors, "video_embeddings_connector", heads)
        audio_heads = int(config.get("audio_connector_num_attention_heads", heads))
        audio = Connector.probe(tensors, "audio_embeddings_connector", audio_heads)
        projects = "caption_projection.linear_1.weight" in tensors.shapes
        return cls(
            Stream(tensors.shape("patchify_proj.weight")[0], int(config.get("num_attention_heads", HEADS))),
            Stream(tensors.shape("audio_patchify_proj.weight")[0], int(config.get("audio_num_attention_heads", HEADS))),
            tensors.count("transformer_blocks."),
            video.width if projects else video.width + audio.width,
            video,
            audio,
            gated=f"{block}attn1.to_gate_logits.weight" in tensors.shapes,
            modulates_text=tensors.shape(f"{block}scale_shift_table")[0] == BESIDES_TEXT,
            times_text="prompt_adaln_single.linear.weight" in tensors.shapes,
            biases=(f"{block}ff.net.2.bias" in tensors.shapes, f"{block}audio_ff.net.2.bias" in tensors.shapes),
            marks=MARK in tensors.shapes,
            projects_text=projects,
            halves=config.get("rope_type", "interleaved") == "split",
            double=config.get("frequencies_precision", "float32") == "float64",
            middle=bool(config.get("use_middle_indices_grid", False)),
            causal=bool(config.get("causal_temporal_positioning", False)),
            cross_time_scale=float(config.get("av_ca_timestep_scale_multiplier", 1.0)),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(_TOP)
        blocks: list[tuple[str, str, Sequence[str]]] = [
            (f"transformer_blocks.{number}", f"transformer_blocks.{number}", _ATTENTIONS)
            for number in range(self.layers)
        ]
        for theirs, ours in PLACES.items():
            table |= {theirs: ours, f"{theirs}.transformer_1d_blocks": f"{ours}.transformer_blocks"}
            count = max(self.video_connector.layers, self.audio_connector.layers)
            blocks += [
                (f"{theirs}.transformer_1d_blocks.{number}", f"{ours}.transformer_blocks.{number}", ("attn1",))
                for number in range(count)
            ]
        for in_file, in_network, attentions in blocks:
            for attention in attentions:
                for norm in ("q", "k"):
                    table[f"{in_file}.{attention}.{norm}_norm"] = f"{in_network}.{attention}.norm_{norm}"
            for stream in ("video", "audio"):
                crossing = f"{in_network}.{stream}_a2v_cross_attn_scale_shift_table"
                table[f"{in_file}.scale_shift_table_a2v_ca_{stream}"] = crossing
        return table

    def build(self) -> nn.Module:
        rope = "split" if self.halves else "interleaved"
        network = LTX2VideoTransformer3DModel(
            in_channels=self.latent_format.channels,
            out_channels=self.latent_format.channels,
            num_attention_heads=self.video.heads,
            attention_head_dim=self.video.width // self.video.heads,
            cross_attention_dim=self.video.width,
            audio_in_channels=AUDIO_CHANNELS * AUDIO_BINS,
            audio_out_channels=AUDIO_CHANNELS * AUDIO_BINS,
            audio_num_attention_heads=self.audio.heads,
            audio_attention_head_dim=self.audio.width // self.audio.heads,
            audio_cross_attention_dim=self.audio.width,
            num_layers=self.layers,
            caption_channels=self.text_width,
            rope_type=rope,
            gated_attn=self.gated,
            audio_gated_attn=self.gated,
            cross_attn_mod=self.modulates_text,
            audio_cross_attn_mod=self.modulates_text,
            use_prompt_embeddings=self.projects_text,
            use_prompt_adaln_single=self.times_text,
            ff_bias=self.biases[0],
            audio_ff_bias=self.biases[1],
            use_keyframes_abs_pos_embedding=self.marks,
        )
        for name, connector in (("video_connector", self.video_connector), ("audio_connector", self.audio_connector)):
            network.add_module(name, connector.build(rope))
        for layer in network.modules():
            if isinstance(layer, LTX2Attention):
                layer.norm_q.eps = layer.norm_k.eps = QK_EPS
        built: nn.Module = network
        return built

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return FluxFlow(SHIFT)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Ltx2Inputs:
        check_text(cond, self.text_width, self.title)
        guides = self._guides(options, canvas)
        noisy, audio_noisy = self._noisy(canvas, None if guides is None else guides.kept)
        return Ltx2Inputs(
            to_batch(to_device(cond, device).float(), canvas.rows),
            canvas.layout,
            float(options.get("frame_rate", FRAME_RATE)),
            noisy if noisy is None else to_device(noisy, device),
            audio_noisy if audio_noisy is None else to_device(audio_noisy, device),
            guides,
            self._reference(options, canvas, device),
        )

    def _reference(self, options: Mapping[str, Any], canvas: Canvas, device: torch.device) -> Tensor | None:
        """Return the tokens of a reference for a sound. Errors: NodeError where there is no sound, or for others."""
        given = options.get("ref_audio")
        if given is None:
            return None
        if not canvas.layout.joint:
            raise NodeError("the conditioning has a reference for the sound, and the video is sampled without a sound")
        tokens: Tensor = given["tokens"]
        if tokens.shape[2] != AUDIO_CHANNELS * AUDIO_BINS:
            raise NodeError(
                f"the reference's tokens are {tokens.shape[2]} wide; LTX-2's sounds have tokens of "
                f"{AUDIO_CHANNELS * AUDIO_BINS}"
            )
        return to_batch(to_device(tokens, device), canvas.rows)

    def _guides(self, options: Mapping[str, Any], canvas: Canvas) -> Guides | None:
        """Return the guides behind a video. Errors: NodeError for those of a video of another size."""
        video = canvas.layout.parts(canvas.latents)[0]
        mask = None if canvas.mask is None else canvas.layout.parts(canvas.mask)[0][0, 0].cpu()
        return Guides.of(options, video.shape[2:], mask)

    def _noisy(self, canvas: Canvas, kept: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the noise levels of the tokens of a canvas' parts, as `Ltx2Inputs` has them. kept: as `Guides`."""
        if canvas.mask is None:
            return None, None
        mask = to_batch(canvas.mask, canvas.rows)
        video, *audio = canvas.layout.parts(mask)
        return noise_levels(video, kept), audio[0][:, 0, :, 0] if audio else None

    def group_key(self, x: Tensor, inputs: Ltx2Inputs) -> Hashable:
        """Return the shapes of x and of noise levels, the frame rate, guides, and the length of filled texts."""
        guides = None if inputs.guides is None else inputs.guides.key
        optional = (inputs.noisy, inputs.audio_noisy, inputs.reference)
        shapes = (None if tensor is None else tensor.shape[1:] for tensor in optional)
        return tuple(x.shape[1:]), inputs.layout, *shapes, inputs.frame_rate, guides, self._filled(inputs.text.shape[1])

    def cells(self, x: Tensor, inputs: Ltx2Inputs) -> int:
        return sum(
            part[:, 0].numel() // (AUDIO_BINS if number else 1) for number, part in enumerate(inputs.layout.parts(x))
        )

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        return torch.empty(1, tokens, self.text_width, device="meta"), {}

    def _filled(self, tokens: int) -> int:
        """Return the length of a text with registers."""
        return self.video_connector.filled(tokens)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length, and LoRAs."""
        dtype, inputs = network.proj_out.weight.dtype, [r.inputs for r in rows]
        first: Ltx2Inputs = inputs[0]
        x = torch.cat([r.x for r in rows])
        video, *audio = first.layout.parts(x)
        texts = [i.text for i in inputs]
        level = torch.cat([r.timestep for r in rows])[:, None] * TIME_SCALE
        sound = audio[0] if audio else video.new_zeros(len(x), AUDIO_CHANNELS, 0, AUDIO_BINS)
        filled = self._filled(max(text.shape[1] for text in texts))
        text = stacked(texts)
        noisy, audio_noisy, reference = (
            None if getattr(first, name) is None else torch.cat([getattr(i, name) for i in inputs])
            for name in ("noisy", "audio_noisy", "reference")
        )
        audio_level, audio_at = level if audio_noisy is None else level * audio_noisy, self._audio_at(sound.shape[2])
        if reference is not None:
            count = reference.shape[1]
            levels = audio_level.expand(-1, sound.shape[2])
            audio_level = torch.cat([levels.new_zeros(len(levels), count), levels], dim=1)
            before = self._audio_at(count)
            audio_at = torch.cat([before - before[-1, 0, 1] - AUDIO_STEP_S, audio_at])
        guides = first.guides
        return {
            "video": video.to(dtype),
            "audio": sound.to(dtype),
            "level": level if noisy is None else level * noisy,
            "audio level": audio_level,
            "reference": None if reference is None else reference.to(dtype),
            "text": pad(text, (0, 0, 0, filled - text.shape[1])).to(dtype),
            "is text": within(lengths(texts), filled, x.device),
            "at": to_device(self._positions(video.shape[2:], first.frame_rate, guides), x.device),
            "audio at": to_device(audio_at, x.device),
            "kept": None if guides is None or guides.kept is None else to_device(guides.kept, x.device),
            "heed": None if guides is None or guides.heed is None else to_device(guides.heed.to(dtype), x.device),
            **passed(rows),
            **perturbed(rows, 0 if reference is None else reference.shape[1], sound.shape[2]),
        }

    def _positions(self, size: Sequence[int], frame_rate: float, guides: Guides | None) -> Tensor:
        """Return where each video token begins and ends, in seconds, rows and columns: (n,3,2)."""
        at = token_spans(size, self.latent_format, causal=self.causal)
        if guides is not None:
            at[-len(guides.spans) :] = guides.spans
            at = at if guides.kept is None else at[guides.kept]
        seconds = at.float()
        seconds[:, 0] *= 1.0 / frame_rate
        return seconds

    def _audio_at(self, count: int) -> Tensor:
        """Return the seconds in which each token of a sound begins and ends, (n,1,2)."""
        steps = (torch.arange(count + 1, dtype=torch.float32) * 4 + 1 - 4).clip(min=0) * 160 / 16000
        return torch.stack([steps[:-1], steps[1:]], dim=-1)[:, None]

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        size, sounds = given["video"].shape[2:], given["audio"].shape[2]
        blocks = Blocks(self.halves, given.get("apart"))
        audio_width = self.audio.width
        crossing = given["at"][:, :1], given["audio at"]
        cells, kept = given["video"].flatten(2).transpose(1, 2), given.get("kept")
        embedded = network.proj_in(cells)
        if self.marks:
            # A latent frame of one image is the first; of guides ComfyUI marks none.
            first = embedded[:, : size[1] * size[2]] + network.get_parameter(MARK)
            embedded = torch.cat([first, embedded[:, size[1] * size[2] :]], dim=1)
        video = Tokens(
            embedded if kept is None else embedded[:, kept],
            self._turns(given["at"], self.video, self.video.width, self.middle),
            self._turns(crossing[0], self.audio, audio_width, True),
            given.get("heed"),
        )
        heard, reference = given["audio"].transpose(1, 2).flatten(2), given.get("reference")
        audio = Tokens(
            network.audio_proj_in(heard if reference is None else torch.cat([reference, heard], dim=1)),
            self._turns(given["audio at"], self.audio, audio_width, self.middle),
            self._turns(crossing[1], self.audio, audio_width, True),
            seen=given.get("seen"),
        )
        levels = given["level"], given["audio level"]
        times = Times(
            network, levels, (video.shards, audio.shards), self.cross_time_scale / TIME_SCALE, video.tokens.dtype
        )
        texts = self._texts(network, given, blocks)
        passing = Passing(rows, DOUBLES, given)
        for number, block in enumerate(network.transformer_blocks):
            stilled = given.get(Stilled(number))
            through = partial(blocks.apply, block, video, audio, times, texts, stilled)
            video.tokens, audio.tokens = passing.through(number, through, video.tokens, audio.tokens)
        made = finished(network.norm_out, network.scale_shift_table, network.proj_out, video.tokens, times.video[1])
        made = video.shards.gather(made, 0)
        if kept is not None:
            made = torch.zeros_like(cells).index_copy(1, kept, made)
        frames = torch.unflatten(made.transpose(1, 2), 2, tuple(size))
        if not sounds:
            return frames
        made = finished(
            network.audio_norm_out,
            network.audio_scale_shift_table,
            network.audio_proj_out,
            audio.tokens,
            times.audio[1],
        )
        made = audio.shards.gather(made, 0)
        sound = torch.unflatten(made[:, -sounds:], 2, (AUDIO_CHANNELS, AUDIO_BINS)).transpose(1, 2)
        layout: LatentLayout = rows[0].inputs.layout
        return layout.pack(NestedTensor([frames, sound]))

    def _turns(self, at: Tensor, stream: Stream, width: int, middle: bool) -> Tensor:
        """Return the rotations of tokens' heads, (n,H,d/2) complex. at: where they begin and end, (n,K,2)."""
        spot = at.mean(dim=-1) if middle else at[..., 0]
        span = to_device(torch.tensor(SPAN[: at.shape[1]]), at.device)
        return rotations(spot / span, stream.heads, width, double=self.double)

    def _texts(self, network: Any, given: Inputs, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Return the text as each stream reads it, (R,L,W)."""
        text = given["text"]
        widths = self.video_connector.width, self.audio_connector.width
        of_each = (text, text) if self.projects_text else torch.split(text, list(widths), dim=2)
        connectors = network.video_connector, network.audio_connector
        video, audio = (connected(blocks, *each, given["is text"]) for each in zip(connectors, of_each, strict=True))
        if self.projects_text:
            return network.caption_projection(video), network.audio_caption_projection(audio)
        return video, audio


def noise_levels(mask: Tensor, kept: Tensor | None) -> Tensor:
    """Return the noise levels of a video's tokens: of each frame (B,F) where they are equal, else of each, (B,n).

    mask: (B,1,F,h,w). kept: as `Guides`.
    """
    if kept is not None:
        return mask[:, 0].flatten(1)[:, kept.to(mask.device)]
    if bool((mask[:1, :1] != mask[:1, :1, :, :1, :1]).any()):
        return mask[:, 0].flatten(1)
    return mask[:, 0, :, 0, 0]
