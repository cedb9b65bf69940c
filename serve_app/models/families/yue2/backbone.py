"""YuE 2: the sound of a song by the keys and values of the language model that wrote it, 25 frames a second.

Layer by layer, the network attends to what the language model's layer of the same number kept. Reads ComfyUI's files.
Source: M·A·P 2026 (YuE 2); layers as in Yang et al. 2025 (Qwen3), arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu

from serve_app.errors import NodeError
from serve_app.models.families.audio.stable_audio3 import half_rotated
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import DOUBLES, Passing, Transformer, check_text, passed
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import YUE2
from serve_app.sampling.transfer import to_device

Chunk: TypeAlias = "tuple[int, int, int, int]"
"""First frame and end of a part of a song, and of the tokens whose keys and values are for it."""
CHUNKS = "yue2_chunks"
"""Option of a conditioning: the parts of its song, which the network sees one by one."""
THETA = 1e6
_TIMES = 256


class Norm(nn.Module):
    """A norm by the root mean square, with the names of its file."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-6)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kept: int, head: int) -> None:
        super().__init__()
        self.heads, self.kept = heads, kept
        self.qkv_proj = nn.Linear(width, (heads + 2 * kept) * head, bias=False)
        self.o_proj = nn.Linear(heads * head, width, bias=False)
        self.q_norm, self.k_norm = Norm(head), Norm(head)

    def forward(self, x: Tensor, before: Tensor, angles: Tensor) -> Tensor:
        counts = [self.heads, self.kept, self.kept]
        q, k, v = torch.split(torch.unflatten(self.qkv_proj(x), -1, (sum(counts), -1)), counts, dim=2)
        q, k = half_rotated(self.q_norm(q), angles), half_rotated(self.k_norm(k), angles)
        keys, values = before.unbind(2)
        k, v = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
        out: Tensor = self.o_proj(dispatch_attention_fn(q, k, v, enable_gqa=True).flatten(2))
        return out


class _Gated(nn.Module):
    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(width, 2 * inside, bias=False)
        self.down_proj = nn.Linear(inside, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(silu(gate) * value)
        return out


class _Block(nn.Module):
    """A layer, with the names of its file."""

    def __init__(self, family: YuE2) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(family.width), Norm(family.width)
        self.self_attn = _Attention(family.width, family.heads, family.kept, family.head)
        self.mlp = _Gated(family.width, family.inside)

    def forward(self, x: Tensor, before: Tensor, angles: Tensor) -> Tensor:
        """Return x (R,n,D) after the layer. before: keys and values (R,T,2,H,D) of the tokens before."""
        x = x + self.self_attn(self.input_layernorm(x), before, angles)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class YuE2Inputs:
    """Conditioning inputs for B rows. before: (B,T,layers·2·H·D) keys and values, for parts of a song."""

    before: Tensor
    chunks: tuple[Chunk, ...]

    def within(self, area: Area | None) -> YuE2Inputs:
        """Return the inputs, which are for the whole sound only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and a sound has none")
        return self


@dataclass(frozen=True, slots=True)
class YuE2(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; heads: of queries; kept: of keys and values.

    head: numbers of a head. places: frames that it has positions for.
    """

    title = "YuE 2"
    trained_as = Flow(1.0, multiplier=1.0)
    latent_format = YUE2
    dtypes = (torch.bfloat16,)

    width: int
    layers: int
    inside: int
    heads: int
    kept: int
    head: int
    places: int

    @property
    def text_width(self) -> int:  # type: ignore[override]
        """Numbers of a token's keys and values, of all layers."""
        return self.layers * 2 * self.kept * self.head

    @classmethod
    def probe(cls, tensors: Tensors) -> YuE2:
        """Read the network's size off its tensors."""
        first = "model.layers.0."
        head = tensors.shape(f"{first}self_attn.q_norm.weight")[0]
        width, fed = tensors.shape(f"{first}self_attn.o_proj.weight")
        heads = fed // head
        return cls(
            width,
            tensors.count("model.layers."),
            tensors.shape(f"{first}mlp.down_proj.weight")[1],
            heads,
            (tensors.shape(f"{first}self_attn.qkv_proj.weight")[0] // head - heads) // 2,
            head,
            tensors.shape("latent_pos_embed.pe")[0],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        names = ("model", "vae2llm", "llm2vae", "time_embedder", "latent_pos_embed")
        return {name: name for name in names}

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def build(self) -> nn.Module:
        channels = self.latent_format.channels
        network, inner, times = nn.Module(), nn.Module(), nn.Module()
        inner.layers = nn.ModuleList(_Block(self) for _ in range(self.layers))
        inner.norm = Norm(self.width)
        network.model = inner
        network.vae2llm, network.llm2vae = nn.Linear(channels, self.width), nn.Linear(self.width, channels)
        times.mlp = nn.Sequential(nn.Linear(_TIMES, self.width), nn.SiLU(), nn.Linear(self.width, self.width))
        network.time_embedder = times
        network.latent_pos_embed = nn.ParameterDict({"pe": torch.empty(self.places, self.width)})
        return network

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> YuE2Inputs:
        """Return the keys and values. Errors: NodeError for another family's text, and for a song of another length."""
        check_text(cond, self.text_width, self.title)
        chunks: tuple[Chunk, ...] | None = options.get(CHUNKS)
        if chunks is None:
            raise NodeError(f"{self.title} samples what YuE2GenerateMusic writes; this conditioning is of another node")
        frames, has = canvas.latents.shape[-1], chunks[-1][1]
        if frames != has:
            raise NodeError(
                f"the latents are {frames} frames long, and the song {has}: connect the seconds of YuE2GenerateMusic "
                "to EmptyYuE2LatentAudio"
            )
        if (longest := max(end - start for start, end, *_ in chunks) + 2) > self.places:
            raise NodeError(f"a part of the song takes {longest:,} positions, and {self.title} has {self.places:,}")
        return YuE2Inputs(to_batch(to_device(cond, device), canvas.rows), chunks)

    def needed_options(self, latents: Tensor) -> Mapping[str, Any]:
        """Return the options of a song as long as latents, of one part."""
        frames = latents.shape[-1]
        return {CHUNKS: ((0, frames, 0, frames),)}

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x, and the parts of the song."""
        return tuple(x.shape[1:]), inputs.chunks

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, keys and values, and LoRAs."""
        dtype = network.latent_pos_embed["pe"].dtype
        given: dict[Any, Tensor | None] = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "before": torch.cat([r.inputs.before.to(dtype) for r in rows]),
        }
        return given | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, passing = given["x"], Passing(rows, DOUBLES, given)
        turns = get_timestep_embedding(given["level"], _TIMES, flip_sin_to_cos=True, downscale_freq_shift=0)
        time = network.time_embedder.mlp(turns.to(x.dtype))[:, None]
        before = given["before"].unflatten(2, (self.layers, 2, self.kept, self.head))  # type: ignore[no-untyped-call]
        parts = []
        for start, end, first, last in rows[0].inputs.chunks:
            # A frame of zeros stands before and after.
            frames = pad(x[..., start:end].transpose(1, 2), (0, 0, 1, 1))
            count = frames.shape[1]
            tokens = network.vae2llm(frames) + time + network.latent_pos_embed["pe"][:count].to(x.dtype)
            # Queries are of the frames, keys and values of the tokens before them too: a rank has some of both.
            shards, keys = sharding(count), sharding(last - first, count)
            tokens, kept = shards.shard(tokens), keys.shard(before[:, first:last], 0)
            angles = shards.shard(self.angles(last - first, count, x.device), dim=0)
            with attention_over(shards.of_attention, keys):
                for number, block in enumerate(network.model.layers):
                    (tokens,) = passing.through(number, partial(block, tokens, kept[:, :, number], angles), tokens)
            parts.append(shards.gather(network.llm2vae(network.model.norm(tokens)), 0)[:, 1:-1])
        return torch.cat(parts, dim=1).transpose(1, 2)

    def angles(self, first: int, count: int, device: torch.device) -> Tensor:
        """Return the rotary angles (n,D) of places from a first one on, which follow the tokens before."""
        steps = THETA ** (-torch.arange(0, self.head, 2, device=device).float() / self.head)
        places = torch.arange(first, first + count, device=device).float()
        return torch.outer(places, steps).repeat(1, 2)
