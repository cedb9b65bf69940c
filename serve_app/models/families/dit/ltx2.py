"""LTX-2.0 and 2.3: a video and its sound, sampled together, from a text, with frames to keep or to follow.

Reads the authors' single file, whose metadata says what its tensors do not; run by the layers of diffusers'
LTX2VideoTransformer3DModel and of its text connectors. Source: HaCohen et al. 2026, arXiv:2601.03233; the numbers are
ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, pi
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d
from torch import Tensor, addcmul, nn
from torch.nn.functional import pad, rms_norm, silu

from serve_app.errors import NodeError
from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.dit import Transformer, check_text, lengths, stacked, within
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.nested_tensor import NestedTensor
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import LTX2
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.transfer import to_device

SHIFT = 2.37
THETA = 10000.0
HEADS = 32
"""Heads of both streams, where the metadata names no other number."""
PIXELS = (8, 32, 32)
"""Frames, rows and columns of pixels that a video token covers."""
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
EPS = 1e-6
REGISTERS_LEAST = 1024
"""Texts are filled up with registers to at least this length."""
CONNECTOR_SPAN = 4096.0
"""Tokens whose positions fill the rotation's range in the connectors."""
CONNECTOR_HEADS = 30
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
}
_CONNECTORS = {"video_embeddings_connector": "video_connector", "audio_embeddings_connector": "audio_connector"}
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")


@dataclass(frozen=True, slots=True, eq=False)
class Ltx2Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D), before the connectors. layout: of x. frame_rate: frames in a second. noisy: of each video token, its
    noise level as a share of sigma: (B,F) where those of a frame are equal, (B,F·h·w) else; audio_noisy: (B,T) of the
    sound; None: 1.
    """

    text: Tensor
    layout: LatentLayout
    frame_rate: float = FRAME_RATE
    noisy: Tensor | None = None
    audio_noisy: Tensor | None = None

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
class Connector:
    """The network that reads a text for one stream. width: of a token."""

    width: int
    heads: int
    layers: int
    registers: int
    gated: bool


@dataclass(frozen=True, slots=True)
class Ltx2(Transformer):
    """A backbone. text_width: of a text row; gated: attention is gated by head; modulates_text: as LTX-2.3's.

    projects_text: the network widens texts itself, as LTX-2.0's, which reads one text for both streams. halves: a
    head's numbers are rotated in pairs of its halves, else of neighbours. double: rotation frequencies are computed in
    double precision. middle: positions are those of tokens' middles; causal: the first latent frame is one frame.
    cross_time_scale: multiplies times of gates between the streams.
    """

    title = "LTX-2"
    latent_format = LTX2
    keeps_clean = True
    dtypes = (torch.bfloat16,)

    video: Stream
    audio: Stream
    layers: int
    text_width: int
    video_connector: Connector
    audio_connector: Connector
    gated: bool
    modulates_text: bool
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
        if "keyframes_abs_pos_embedding" in tensors.shapes or f"{block}ff.net.2.bias" not in tensors.shapes:
            raise tensors.unsupported("holds an LTX-2.5 backbone; supported are LTX-2.0 and 2.3")
        heads = int(config.get("connector_num_attention_heads", CONNECTOR_HEADS))
        video = _connector(tensors, "video_embeddings_connector", heads)
        audio_heads = int(config.get("audio_connector_num_attention_heads", heads))
        audio = _connector(tensors, "audio_embeddings_connector", audio_heads)
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
        for theirs, ours in _CONNECTORS.items():
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
        )
        for name, connector in (("video_connector", self.video_connector), ("audio_connector", self.audio_connector)):
            reads = LTX2ConnectorTransformer1d(
                num_attention_heads=connector.heads,
                attention_head_dim=connector.width // connector.heads,
                num_layers=connector.layers,
                num_learnable_registers=connector.registers,
                rope_type=rope,
                gated_attention=connector.gated,
            )
            network.add_module(name, reads)
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
        noisy, audio_noisy = self._noisy(canvas)
        return Ltx2Inputs(
            to_batch(to_device(cond, device).float(), canvas.rows),
            canvas.layout,
            float(options.get("frame_rate", FRAME_RATE)),
            noisy if noisy is None else to_device(noisy, device),
            audio_noisy if audio_noisy is None else to_device(audio_noisy, device),
        )

    def _noisy(self, canvas: Canvas) -> tuple[Tensor | None, Tensor | None]:
        """Return the noise levels of the tokens of a canvas' parts, as `Ltx2Inputs` has them."""
        if canvas.mask is None:
            return None, None
        mask = to_batch(canvas.mask, canvas.rows)
        video, *audio = canvas.layout.parts(mask)
        each = (
            video[:, :1].flatten(1) if bool((video[:1, :1] != video[:1, :1, :, :1, :1]).any()) else video[:, 0, :, 0, 0]
        )
        return each, audio[0][:, 0, :, 0] if audio else None

    def group_key(self, x: Tensor, inputs: Ltx2Inputs) -> Hashable:
        """Return the shapes of x's parts and of their noise levels, the frame rate, and the length of filled texts."""
        shapes = (None if noisy is None else noisy.shape[1:] for noisy in (inputs.noisy, inputs.audio_noisy))
        return tuple(x.shape[1:]), inputs.layout, *shapes, inputs.frame_rate, self._filled(inputs.text.shape[1])

    def cells(self, x: Tensor, inputs: Ltx2Inputs) -> int:
        return sum(
            part[:, 0].numel() // (AUDIO_BINS if number else 1) for number, part in enumerate(inputs.layout.parts(x))
        )

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        return torch.empty(1, tokens, self.text_width, device="meta"), {}

    def _filled(self, tokens: int) -> int:
        """Return the length of a text with registers."""
        registers = self.video_connector.registers
        return -(-max(REGISTERS_LEAST, tokens) // registers) * registers

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
        noisy, audio_noisy = (
            None if getattr(first, name) is None else torch.cat([getattr(i, name) for i in inputs])
            for name in ("noisy", "audio_noisy")
        )
        return {
            "video": video.to(dtype),
            "audio": sound.to(dtype),
            "level": level if noisy is None else level * noisy,
            "audio level": level if audio_noisy is None else level * audio_noisy,
            "text": pad(text, (0, 0, 0, filled - text.shape[1])).to(dtype),
            "is text": within(lengths(texts), filled, x.device),
            "at": to_device(self._positions(video.shape[2:], first.frame_rate), x.device),
            "audio at": to_device(self._audio_positions(sound.shape[2]), x.device),
        }

    def _positions(self, size: Sequence[int], frame_rate: float) -> Tensor:
        """Return where each video token begins and ends, in seconds, rows and columns: (n,3,2)."""
        starts = torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"), dim=-1).view(-1, 3)
        at = torch.stack([starts, starts + 1], dim=-1) * torch.tensor(PIXELS)[:, None]
        if self.causal:
            at[:, 0] = (at[:, 0] + 1 - PIXELS[0]).clamp(min=0)
        seconds = at.float()
        seconds[:, 0] *= 1.0 / frame_rate
        return seconds

    def _audio_positions(self, count: int) -> Tensor:
        """Return the seconds in which each token of a sound begins and ends, (n,1,2)."""
        steps = (torch.arange(count + 1, dtype=torch.float32) * 4 + 1 - 4).clip(min=0) * 160 / 16000
        return torch.stack([steps[:-1], steps[1:]], dim=-1)[:, None]

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        size, sounds = given["video"].shape[2:], given["audio"].shape[2]
        audio_width = self.audio.width
        crossing = given["at"][:, :1], given["audio at"]
        video = _Tokens(
            network.proj_in(given["video"].flatten(2).transpose(1, 2)),
            self._turns(given["at"], self.video, self.video.width, self.middle),
            self._turns(crossing[0], self.audio, audio_width, True),
        )
        audio = _Tokens(
            network.audio_proj_in(given["audio"].transpose(1, 2).flatten(2)),
            self._turns(given["audio at"], self.audio, audio_width, self.middle),
            self._turns(crossing[1], self.audio, audio_width, True),
        )
        levels = given["level"], given["audio level"]
        times = _Times(
            network, levels, (video.shards, audio.shards), self.cross_time_scale / TIME_SCALE, video.tokens.dtype
        )
        texts = self._texts(network, given)
        for block in network.transformer_blocks:
            self._block(block, video, audio, times, texts)
        made = _finished(network.norm_out, network.scale_shift_table, network.proj_out, video.tokens, times.video[1])
        frames = torch.unflatten(video.shards.gather(made, 0).transpose(1, 2), 2, tuple(size))
        if not sounds:
            return frames
        made = _finished(
            network.audio_norm_out,
            network.audio_scale_shift_table,
            network.audio_proj_out,
            audio.tokens,
            times.audio[1],
        )
        made = audio.shards.gather(made, 0)
        sound = torch.unflatten(made, 2, (AUDIO_CHANNELS, AUDIO_BINS)).transpose(1, 2)
        layout: LatentLayout = rows[0].inputs.layout
        return layout.pack(NestedTensor([frames, sound]))

    def _turns(self, at: Tensor, stream: Stream, width: int, middle: bool) -> Tensor:
        """Return the rotations of tokens' heads, (n,H,d/2) complex. at: where they begin and end, (n,K,2)."""
        spot = at.mean(dim=-1) if middle else at[..., 0]
        span = to_device(torch.tensor(SPAN[: at.shape[1]]), at.device)
        return _rotations(spot / span, stream.heads, width, double=self.double)

    def _texts(self, network: Any, given: Inputs) -> tuple[Tensor, Tensor]:
        """Return the text as each stream reads it, (R,L,W)."""
        text = given["text"]
        widths = self.video_connector.width, self.audio_connector.width
        of_each = (text, text) if self.projects_text else torch.split(text, list(widths), dim=2)
        video, audio = (
            self._connected(connector, own, given["is text"])
            for connector, own in zip((network.video_connector, network.audio_connector), of_each, strict=True)
        )
        if self.projects_text:
            return network.caption_projection(video), network.audio_caption_projection(audio)
        return video, audio

    def _connected(self, connector: Any, text: Tensor, is_text: Tensor) -> Tensor:
        """Return a text (R,L,W) after its connector, which fills it up with registers."""
        registers = connector.learnable_registers.to(text.dtype)
        whole = registers.repeat(text.shape[1] // len(registers), 1)
        tokens = torch.where(is_text[..., None], text, whole)
        at = torch.arange(text.shape[1], dtype=torch.float32, device=text.device)[:, None] / CONNECTOR_SPAN
        turns = _rotations(at, connector.num_attention_heads, text.shape[2], double=True)
        for block in connector.transformer_blocks:
            tokens = tokens + self._attention(block.attn1, _normed(tokens), turns=turns)
            tokens = tokens + block.ff(_normed(tokens))
        return _normed(tokens)

    def _block(self, block: Any, video: _Tokens, audio: _Tokens, times: _Times, texts: tuple[Tensor, Tensor]) -> None:
        """Apply a block to the tokens of both streams, in place of their tokens."""
        sounds = audio.tokens.shape[1] > 0
        streams = [(video, "", times.video, times.video_text, texts[0])]
        if sounds:
            streams.append((audio, "audio_", times.audio, times.audio_text, texts[1]))
        for stream, prefix, (time, _), of_text, text in streams:
            self._own_and_text(block, stream, prefix, time, of_text, text)
        if sounds:
            self._crossed(block, video, audio, times)
        for stream, prefix, (time, _), _of_text, _text in streams:
            parts = _modulation(getattr(block, f"{prefix}scale_shift_table"), time, stream.tokens, slice(3, 6))
            inner = addcmul(parts[0], _normed(stream.tokens), 1 + parts[1])
            stream.tokens = addcmul(stream.tokens, getattr(block, f"{prefix}ff")(inner), parts[2])

    def _own_and_text(
        self, block: Any, stream: _Tokens, prefix: str, time: Tensor, of_text: Tensor | None, text: Tensor
    ) -> None:
        """Let a stream's tokens attend to each other, then to the text."""
        table = getattr(block, f"{prefix}scale_shift_table")
        shift, scale, gate = _modulation(table, time, stream.tokens, slice(0, 3))
        inner = addcmul(shift, _normed(stream.tokens), 1 + scale)
        found = self._attention(getattr(block, f"{prefix}attn1"), inner, turns=stream.turns, shards=stream.shards)
        stream.tokens = addcmul(stream.tokens, found, gate)
        reads = getattr(block, f"{prefix}attn2")
        if of_text is None:
            stream.tokens = stream.tokens + self._attention(reads, _normed(stream.tokens), text)
            return
        shift, scale, gate = _modulation(table, time, stream.tokens, slice(6, 9))
        of_keys = getattr(block, f"{prefix}prompt_scale_shift_table")
        key_shift, key_scale = _modulation(of_keys, of_text, text, slice(0, 2))
        inner = addcmul(shift, _normed(stream.tokens), 1 + scale)
        found = self._attention(reads, inner, addcmul(key_shift, text, 1 + key_scale))
        stream.tokens = addcmul(stream.tokens, found, gate)

    def _crossed(self, block: Any, video: _Tokens, audio: _Tokens, times: _Times) -> None:
        """Let the video attend to the sound, then the sound to the video."""
        normed_audio = _normed(audio.tokens)
        of_video, of_audio = (getattr(block, f"{name}_a2v_cross_attn_scale_shift_table") for name in ("video", "audio"))
        seen = _crossing(of_video, times.video_crossing, video.tokens)
        found = _crossing(of_audio, times.audio_crossing, audio.tokens)
        made = self._attention(
            block.audio_to_video_attn,
            addcmul(seen[1], _normed(video.tokens), 1 + seen[0]),
            addcmul(found[1], normed_audio, 1 + found[0]),
            turns=video.crossing,
            key_turns=audio.crossing,
            shards=video.shards,
            key_shards=audio.shards,
        )
        gate = _gate(of_video, times.video_gate)
        video.tokens = addcmul(video.tokens, made, gate)
        made = self._attention(
            block.video_to_audio_attn,
            addcmul(found[3], normed_audio, 1 + found[2]),
            addcmul(seen[3], _normed(video.tokens), 1 + seen[2]),
            turns=audio.crossing,
            key_turns=video.crossing,
            shards=audio.shards,
            key_shards=video.shards,
        )
        audio.tokens = addcmul(audio.tokens, made, _gate(of_audio, times.audio_gate))

    def _attention(
        self,
        layer: Any,
        tokens: Tensor,
        read: Tensor | None = None,
        turns: Tensor | None = None,
        key_turns: Tensor | None = None,
        shards: Sharding | None = None,
        key_shards: Sharding | None = None,
    ) -> Tensor:
        """Return what tokens (R,n,W) find in those they read (R,m,W'), by default themselves.

        shards: of the tokens, if those that they read are sharded too, by `key_shards` or by default alike.
        """
        source = tokens if read is None else read
        q, k, v = layer.norm_q(layer.to_q(tokens)), layer.norm_k(layer.to_k(source)), layer.to_v(source)
        q, k, v = (torch.unflatten(part, 2, (layer.heads, -1)) for part in (q, k, v))
        if turns is not None:
            q, k = self._rotated(q, turns), self._rotated(k, turns if key_turns is None else key_turns)
        with attention_over(None if shards is None else shards.of_attention, key_shards):
            found = attention_output(q, k, v)
        if layer.to_gate_logits is not None:
            gates = 2.0 * torch.sigmoid(layer.to_gate_logits(tokens))
            found = (torch.unflatten(found, 2, (layer.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
        out: Tensor = layer.to_out[0](found)
        return out

    def _rotated(self, x: Tensor, turns: Tensor) -> Tensor:
        """Return queries or keys (R,n,H,d) rotated. turns: (n,H,d/2)."""
        if self.halves:
            pairs = torch.complex(*x.float().chunk(2, dim=-1)) * turns
            return torch.cat([pairs.real, pairs.imag], dim=-1).type_as(x)
        pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)).contiguous()) * turns
        return torch.view_as_real(pairs).flatten(-2).type_as(x)


class _Tokens:
    """The tokens of a stream within a forward, this rank's shard of them: `shards`.

    turns: of self-attention; crossing: of attention to the other stream.
    """

    def __init__(self, tokens: Tensor, turns: Tensor, crossing: Tensor) -> None:
        self.shards = sharding(tokens.shape[1])
        self.tokens = self.shards.shard(tokens)
        self.turns, self.crossing = (self.shards.shard(one, dim=0) for one in (turns, crossing))


class _Times:
    """What a forward's blocks are modulated by: (R,G,K·W) each, G groups of tokens.

    video, audio: for a stream's blocks, with the time itself (R,G,W) for its end. A gate between streams opens by the
    highest level of the other one. levels: of the video's groups and the sound's, (R,G) each; shards: of their tokens.
    """

    def __init__(
        self,
        network: Any,
        levels: tuple[Tensor, Tensor],
        shards: tuple[Sharding, Sharding],
        cross_time_scale: float,
        dtype: torch.dtype,
    ) -> None:
        most, audio_most = (level.amax(dim=1, keepdim=True) for level in levels)
        level, audio_level = (_own_levels(*both) for both in zip(levels, shards, strict=True))

        def of(layer: Any, levels: Tensor) -> tuple[Tensor, Tensor]:
            time = layer.emb.timestep_embedder(layer.emb.time_proj(levels.flatten()).to(dtype))
            time = torch.unflatten(time, 0, tuple(levels.shape))
            return layer.linear(silu(time)), time

        self.video = of(network.time_embed, level)
        self.audio = of(network.audio_time_embed, audio_level)
        self.video_crossing, _ = of(network.av_cross_attn_video_scale_shift, level)
        self.audio_crossing, _ = of(network.av_cross_attn_audio_scale_shift, audio_level)
        self.video_gate, _ = of(network.av_cross_attn_video_a2v_gate, audio_most * cross_time_scale)
        self.audio_gate, _ = of(network.av_cross_attn_audio_v2a_gate, most * cross_time_scale)
        self.video_text: Tensor | None = None
        self.audio_text: Tensor | None = None
        if network.prompt_modulation:
            self.video_text, _ = of(network.prompt_adaln, most)
            self.audio_text, _ = of(network.audio_prompt_adaln, audio_most)


def _own_levels(level: Tensor, shards: Sharding) -> Tensor:
    """Return the levels (R,G') of a rank's tokens, from those of all groups (R,G)."""
    if shards.of_attention is None or level.shape[1] == 1:
        return level
    return shards.shard(_by_token(level[..., None], shards.lengths[0])[..., 0])


def _connector(tensors: Tensors, name: str, heads: int) -> Connector:
    registers, width = tensors.shape(f"{name}.learnable_registers")
    first = f"{name}.transformer_1d_blocks.0.attn1.to_gate_logits.weight"
    gated = first in tensors.shapes
    return Connector(
        width,
        tensors.shape(first)[0] if gated else heads,
        tensors.count(f"{name}.transformer_1d_blocks."),
        registers,
        gated,
    )


def _normed(tokens: Tensor) -> Tensor:
    return rms_norm(tokens, tokens.shape[-1:], eps=EPS)


def _modulation(table: Tensor, time: Tensor, tokens: Tensor, rows: slice) -> list[Tensor]:
    """Return rows of a modulation for tokens (R,n,W), (R,1 or n,W) each. time: (R,G,K·W)."""
    parts = table[rows] + torch.unflatten(time, 2, (len(table), -1))[:, :, rows]
    return [_by_token(part, tokens.shape[1]) for part in parts.unbind(dim=2)]


def _crossing(table: Tensor, time: Tensor, tokens: Tensor) -> list[Tensor]:
    """Return scale and shift to read the other stream, then to be read by it. table: with a last row for the gate."""
    return _modulation(table[:4], time, tokens, slice(0, 4))


def _gate(table: Tensor, time: Tensor) -> Tensor:
    """Return a gate (R,1,W)."""
    return table[4] + time


def _by_token(of_groups: Tensor, count: int) -> Tensor:
    """Return vectors of groups of tokens (R,G,W) for each of n tokens; of one group unchanged."""
    groups = of_groups.shape[1]
    return of_groups if groups in (1, count) else of_groups.repeat_interleave(count // groups, dim=1)


def _finished(norm: Any, table: Tensor, out: Any, tokens: Tensor, time: Tensor) -> Tensor:
    """Return a stream's output (R,n,C). time: (R,G,W)."""
    shift, scale = (_by_token(part, tokens.shape[1]) for part in (table[:, None, None] + time).unbind(dim=0))
    made: Tensor = out(addcmul(shift, norm(tokens), 1 + scale))
    return made


def _rotations(shares: Tensor, heads: int, width: int, *, double: bool) -> Tensor:
    """Return rotations (n,H,d/2), complex, of positions (n,K) in 0…1.

    Each head has frequencies of its own: they are dealt out to the heads in turn, those that are lacking being still.
    """
    frequencies = to_device(_frequencies(width // (2 * shares.shape[1]), double), shares.device)
    angles = ((shares * 2 - 1)[..., None] * frequencies).transpose(1, 2).flatten(1)
    angles = pad(angles, (width // 2 - angles.shape[1], 0))
    return torch.unflatten(torch.polar(torch.ones_like(angles), angles), 1, (heads, -1))


@lru_cache(maxsize=16)
def _frequencies(count: int, double: bool) -> Tensor:
    """Return `count` frequencies, from π/2 to THETA times that, evenly spaced in their logarithms."""
    kind = torch.float64 if double else torch.float32
    steps = torch.linspace(0.0, 1.0, count, dtype=kind)
    return (THETA**steps * (pi / 2)).float()
