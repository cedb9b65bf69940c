"""The blocks of LTX-2's transformer: how tokens of a video and of its sound attend to each other and to the text.

The layers are those of diffusers' LTX2VideoTransformer3DModel. Source: HaCohen et al. 2026, arXiv:2601.03233; the
numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor, addcmul
from torch.nn.functional import pad, rms_norm, silu

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.guidance import PerturbedStreams
from serve_app.sampling.transfer import to_device

THETA = 10000.0
EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a network's blocks compute.

    halves: a head's numbers turn in pairs of its halves, else of neighbours. apart: rows whose streams do not attend to
    each other, (R,1,1); None: none.
    """

    halves: bool
    apart: Tensor | None = None

    def apply(
        self,
        block: Any,
        video: Tokens,
        audio: Tokens,
        times: Times,
        texts: tuple[Tensor, Tensor],
        stilled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of both streams after a block. stilled: rows of which each token sees only itself."""
        sounds = audio.tokens.shape[1] > 0
        streams = [(video, "", times.video, times.video_text, texts[0])]
        if sounds:
            streams.append((audio, "audio_", times.audio, times.audio_text, texts[1]))
        for stream, prefix, (time, _), of_text, text in streams:
            self._own_and_text(block, stream, prefix, time, of_text, text, stilled)
        if sounds:
            self._crossed(block, video, audio, times)
        for stream, prefix, (time, _), _of_text, _text in streams:
            parts = modulation(getattr(block, f"{prefix}scale_shift_table"), time, stream.tokens, slice(3, 6))
            inner = addcmul(parts[0], normed(stream.tokens), 1 + parts[1])
            stream.tokens = addcmul(stream.tokens, getattr(block, f"{prefix}ff")(inner), parts[2])
        return video.tokens, audio.tokens

    def _own_and_text(
        self,
        block: Any,
        stream: Tokens,
        prefix: str,
        time: Tensor,
        of_text: Tensor | None,
        text: Tensor,
        stilled: Tensor | None,
    ) -> None:
        """Let a stream's tokens attend to each other, then to the text."""
        table = getattr(block, f"{prefix}scale_shift_table")
        shift, scale, gate = modulation(table, time, stream.tokens, slice(0, 3))
        inner = addcmul(shift, normed(stream.tokens), 1 + scale)
        layer = getattr(block, f"{prefix}attn1")
        found = self.attention(
            layer, inner, turns=stream.turns, shards=stream.shards, heed=stream.heed, seen=stream.seen, stilled=stilled
        )
        stream.tokens = addcmul(stream.tokens, found, gate)
        reads = getattr(block, f"{prefix}attn2")
        if of_text is None:
            stream.tokens = stream.tokens + self.attention(reads, normed(stream.tokens), text)
            return
        shift, scale, gate = modulation(table, time, stream.tokens, slice(6, 9))
        of_keys = getattr(block, f"{prefix}prompt_scale_shift_table")
        key_shift, key_scale = modulation(of_keys, of_text, text, slice(0, 2))
        inner = addcmul(shift, normed(stream.tokens), 1 + scale)
        found = self.attention(reads, inner, addcmul(key_shift, text, 1 + key_scale))
        stream.tokens = addcmul(stream.tokens, found, gate)

    def _crossed(self, block: Any, video: Tokens, audio: Tokens, times: Times) -> None:
        """Let the video attend to the sound, then the sound to the video."""
        normed_audio = normed(audio.tokens)
        of_video, of_audio = (getattr(block, f"{name}_a2v_cross_attn_scale_shift_table") for name in ("video", "audio"))
        seen = _crossing(of_video, times.video_crossing, video.tokens)
        found = _crossing(of_audio, times.audio_crossing, audio.tokens)
        made = self.attention(
            block.audio_to_video_attn,
            addcmul(seen[1], normed(video.tokens), 1 + seen[0]),
            addcmul(found[1], normed_audio, 1 + found[0]),
            turns=video.crossing,
            key_turns=audio.crossing,
            shards=video.shards,
            key_shards=audio.shards,
            seen=audio.seen,
        )
        video.tokens = addcmul(video.tokens, made, self._gate(of_video, times.video_gate))
        made = self.attention(
            block.video_to_audio_attn,
            addcmul(found[3], normed_audio, 1 + found[2]),
            addcmul(seen[3], normed(video.tokens), 1 + seen[2]),
            turns=audio.crossing,
            key_turns=video.crossing,
            shards=audio.shards,
            key_shards=video.shards,
        )
        audio.tokens = addcmul(audio.tokens, made, self._gate(of_audio, times.audio_gate))

    def _gate(self, table: Tensor, time: Tensor) -> Tensor:
        """Return the gate of attention to the other stream, (R,1,W), shut for rows apart."""
        gate = table[4] + time
        return gate if self.apart is None else gate.masked_fill(self.apart, 0.0)

    def attention(
        self,
        layer: Any,
        tokens: Tensor,
        read: Tensor | None = None,
        turns: Tensor | None = None,
        key_turns: Tensor | None = None,
        shards: Sharding | None = None,
        key_shards: Sharding | None = None,
        heed: Tensor | None = None,
        seen: Tensor | None = None,
        stilled: Tensor | None = None,
    ) -> Tensor:
        """Return what tokens (R,n,W) find in those they read (R,m,W'), by default themselves.

        shards: of the tokens, if those that they read are sharded too, by `key_shards` or by default alike. heed, seen:
        as `Tokens`; stilled: as `apply`.
        """
        source = tokens if read is None else read
        q, k, v = layer.norm_q(layer.to_q(tokens)), layer.norm_k(layer.to_k(source)), layer.to_v(source)
        q, k, v = (torch.unflatten(part, 2, (layer.heads, -1)) for part in (q, k, v))
        if turns is not None:
            q, k = self._rotated(q, turns), self._rotated(k, turns if key_turns is None else key_turns)
        sharded = None if shards is None else shards.of_attention
        with attention_over(sharded, key_shards):
            if heed is None:
                found = attention_output(q, k, v, seen)
            elif shards is not None and sharded is not None:
                found = attention_output(q, k, v, torch.cat(_biases(heed, shards.lengths[0]))[None, None].to(q.dtype))
            else:
                found = _heeding(q, k, v, heed)
        if stilled is not None:
            found = torch.where(stilled, v.flatten(2), found)
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


class Stilled(NamedTuple):
    """Name of a call's input: the rows of which tokens see only themselves in a block, (R,1,1)."""

    number: int


def perturbed(rows: Sequence[Rows], references: int, sounds: int) -> dict[Any, Tensor]:
    """Return masks of the rows that do without something, by `Stilled`, "apart", and "seen" as `Tokens` has it.

    references, sounds: tokens of the sound's reference, and of the sound.
    """
    asked = [
        next((patch for patch in r.layers if isinstance(patch, PerturbedStreams)), PerturbedStreams())
        for r in rows
        for _ in range(r.count)
    ]
    device = rows[0].x.device

    def by_row(which: Iterable[bool]) -> Tensor:
        return to_device(torch.tensor(list(which)), device)[:, None, None]

    made: dict[Any, Tensor] = {}
    for number in sorted({number for one in asked for number in one.stilled}):
        made[Stilled(number)] = by_row(number in one.stilled for one in asked)
    if any(one.apart for one in asked):
        made["apart"] = by_row(one.apart for one in asked)
    if references and any(one.unreferenced for one in asked):
        unseen = by_row(one.unreferenced for one in asked)[..., None].expand(-1, -1, -1, references)
        made["seen"] = pad(~unseen, (0, sounds), value=True)
    return made


class Tokens:
    """The tokens of a stream within a forward, this rank's shard of them: `shards`.

    turns: of self-attention; crossing: of attention to the other stream.

    heed: of the last tokens, those of guides, the logarithm of how much they and the others heed each other, (G,);
    None: as all tokens do. seen: which tokens are there for the others, (R,1,1,n); None: all.
    """

    def __init__(
        self,
        tokens: Tensor,
        turns: Tensor,
        crossing: Tensor,
        heed: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> None:
        self.shards = sharding(tokens.shape[1])
        self.tokens = self.shards.shard(tokens)
        self.turns, self.crossing = (self.shards.shard(one, dim=0) for one in (turns, crossing))
        self.heed, self.seen = heed, seen


class Times:
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
        level, audio_level = (own_levels(*both) for both in zip(levels, shards, strict=True))

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
        if network.prompt_modulation and network.config.use_prompt_adaln_single:
            self.video_text, _ = of(network.prompt_adaln, most)
            self.audio_text, _ = of(network.audio_prompt_adaln, audio_most)
        elif network.prompt_modulation:
            # The text is modulated by the blocks' tables alone, so that its keys are the same at every level.
            self.video_text = self.video[1].new_zeros(*most.shape, 2 * self.video[1].shape[2])
            self.audio_text = self.audio[1].new_zeros(*audio_most.shape, 2 * self.audio[1].shape[2])


def own_levels(level: Tensor, shards: Sharding) -> Tensor:
    """Return the levels (R,G') of a rank's tokens, from those of all groups (R,G)."""
    if shards.of_attention is None or level.shape[1] == 1:
        return level
    return shards.shard(_by_token(level[..., None], shards.lengths[0])[..., 0])


def _heeding(q: Tensor, k: Tensor, v: Tensor, heed: Tensor) -> Tensor:
    """Return what attention finds where guides, the last tokens, and the others heed each other by `Tokens.heed`.

    Each of the two has a bias of its own, which is far smaller than one of all pairs of tokens.
    """
    of_others, of_guides = _biases(heed, k.shape[1])
    own = torch.split(q, [k.shape[1] - len(heed), len(heed)], dim=1)
    parts = zip(own, (of_others[:1], of_guides), strict=True)
    return torch.cat([attention_output(own, k, v, bias[None, None].to(q.dtype)) for own, bias in parts], dim=1)


def _biases(heed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the biases of attention to n tokens: those of the others (n−G,n), which are alike, and of guides (G,n)."""
    others, guides = count - len(heed), len(heed)
    of_others = torch.cat([heed.new_zeros(others), heed]).expand(others, -1)
    return of_others, torch.cat([heed[:, None].expand(-1, others), heed.new_zeros(guides, guides)], dim=1)


def normed(tokens: Tensor) -> Tensor:
    return rms_norm(tokens, tokens.shape[-1:], eps=EPS)


def modulation(table: Tensor, time: Tensor, tokens: Tensor, rows: slice) -> list[Tensor]:
    """Return rows of a modulation for tokens (R,n,W), (R,1 or n,W) each. time: (R,G,K·W)."""
    parts = table[rows] + torch.unflatten(time, 2, (len(table), -1))[:, :, rows]
    return [_by_token(part, tokens.shape[1]) for part in parts.unbind(dim=2)]


def _crossing(table: Tensor, time: Tensor, tokens: Tensor) -> list[Tensor]:
    """Return scale and shift to read the other stream, then to be read by it. table: with a last row for the gate."""
    return modulation(table[:4], time, tokens, slice(0, 4))


def _by_token(of_groups: Tensor, count: int) -> Tensor:
    """Return vectors of groups of tokens (R,G,W) for each of n tokens; of one group unchanged."""
    groups = of_groups.shape[1]
    return of_groups if groups in (1, count) else of_groups.repeat_interleave(count // groups, dim=1)


def finished(norm: Any, table: Tensor, out: Any, tokens: Tensor, time: Tensor) -> Tensor:
    """Return a stream's output (R,n,C). time: (R,G,W)."""
    shift, scale = (_by_token(part, tokens.shape[1]) for part in (table[:, None, None] + time).unbind(dim=0))
    made: Tensor = out(addcmul(shift, norm(tokens), 1 + scale))
    return made


def rotations(shares: Tensor, heads: int, width: int, *, double: bool) -> Tensor:
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
