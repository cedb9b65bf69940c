"""MiniMax Music 3: a song of the states that its language model went through, 25 frames a second.

Reads ComfyUI's files. A song longer than eight seconds is made in windows that overlap by half, which are averaged.
Source: MiniMax 2026 (MiniMax Music 3); the network's layers are as in Stable Audio, arXiv:2407.14358.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import pi
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm, pad, silu

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
from serve_app.sampling.latents.latent_formats import MINIMAX_MUSIC_3
from serve_app.sampling.transfer import to_device

STATES = 8
"""States of the language model in a frame, one after the other."""
SCALE = "conditioning_scale"
"""Option of a conditioning: (1,1,1), by which what the states say is multiplied."""
WINDOW_FRAMES, HOP_FRAMES = 200, 100
HEAD = 64


def latents_of(frames: int) -> int:
    """Return how many latents frames have: the sound is at 44.1 kHz, and frames were counted at 24 kHz."""
    return max(1, int(frames * 44100 / 24000 * 960 / 512))


def windows(count: int) -> Iterator[slice]:
    """Yield the latents that the network sees at once."""
    window, hop = latents_of(WINDOW_FRAMES), latents_of(HOP_FRAMES)
    start = 0
    while start + window < count:
        yield slice(start, start + window)
        start += hop
    yield slice(start, count)


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.empty(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.gamma.to(x.dtype), self.beta.to(x.dtype))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = torch.unflatten(self.to_qkv(x), -1, (3, -1, HEAD)).unbind(2)
        found = dispatch_attention_fn(half_rotated(q, angles), half_rotated(k, angles), v)
        out: Tensor = self.to_out(found.flatten(2))
        return out


class _Gated(nn.Module):
    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inside)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * silu(gate)
        return gated


class _Block(nn.Module):
    """A layer, with the names of its file."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.pre_norm, self.self_attn, self.ff_norm = _Norm(width), _Attention(width), _Norm(width)
        self.ff = nn.ModuleDict({"ff": nn.Sequential(_Gated(width, inside), nn.Identity(), nn.Linear(inside, width))})

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.self_attn(self.pre_norm(x), angles)
        out: Tensor = x + self.ff["ff"](self.ff_norm(x))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class MusicInputs:
    """Conditioning inputs for B rows. states: (B,frames,8·W). scale: (B,1,1)."""

    states: Tensor
    scale: Tensor

    def within(self, area: Area | None) -> MusicInputs:
        """Return the inputs, which are for the whole sound only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and a sound has none")
        return self


@dataclass(frozen=True, slots=True)
class MiniMaxMusic3(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; told: channels of what the states say.

    state: numbers of one state of the language model. waves: of a time, half sines; turned: of a head's numbers.
    """

    title = "MiniMax Music 3"
    trained_as = Flow(1.0, multiplier=1.0)
    latent_format = MINIMAX_MUSIC_3
    dtypes = (torch.float16, torch.bfloat16)

    width: int
    layers: int
    inside: int
    state: int
    told: int
    waves: int
    turned: int

    @property
    def text_width(self) -> int:  # type: ignore[override]
        """Numbers of a frame's states."""
        return STATES * self.state

    @classmethod
    def probe(cls, tensors: Tensors) -> MiniMaxMusic3:
        """Read the network's size off its tensors."""
        inner = "diffusion_transformer.transformer."
        told, state, _ = tensors.shape("latent_conditioners.0.weight")
        return cls(
            tensors.shape(f"{inner}project_in.weight")[0],
            tensors.count(f"{inner}layers."),
            tensors.shape(f"{inner}layers.0.ff.ff.2.weight")[1],
            state,
            told,
            2 * tensors.shape("diffusion_transformer.timestep_features.weight")[0],
            2 * tensors.shape(f"{inner}rotary_pos_emb.inv_freq")[0],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        names = ("latent_conditioners", "diffusion_transformer", "cond_layer_logits", "cond_layer_scale")
        return {name: name for name in names}

    def single(self, name: str) -> bool:
        return name.endswith(("inv_freq", "timestep_features.weight"))

    @property
    def sharded_heads(self) -> int:
        return self.width // HEAD

    def build(self) -> nn.Module:
        channels = self.latent_format.channels
        fed = 2 * channels + self.told
        network, outer, inner = nn.Module(), nn.Module(), nn.Module()
        inner.project_in = nn.Linear(fed, self.width, bias=False)
        inner.project_out = nn.Linear(self.width, channels, bias=False)
        inner.rotary_pos_emb = nn.ParameterDict({"inv_freq": torch.empty(self.turned // 2)})
        inner.layers = nn.ModuleList(_Block(self.width, self.inside) for _ in range(self.layers))
        outer.transformer = inner
        outer.timestep_features = nn.ParameterDict({"weight": torch.empty(self.waves // 2, 1)})
        outer.to_timestep_embed = nn.Sequential(
            nn.Linear(self.waves, self.width), nn.SiLU(), nn.Linear(self.width, self.width)
        )
        outer.preprocess_conv = nn.Conv1d(fed, fed, 1, bias=False)
        outer.postprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        network.diffusion_transformer = outer
        network.latent_conditioners = nn.Sequential(nn.Conv1d(self.state, self.told, 3, padding=1))
        network.cond_layer_logits = nn.Parameter(torch.empty(STATES))
        network.cond_layer_scale = nn.Parameter(torch.empty(1))
        return network

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> MusicInputs:
        """Return the states, as wide as they come. Errors: NodeError for another family's text."""
        check_text(cond, self.text_width, self.title)
        scale: Tensor = options.get(SCALE, torch.ones(1, 1, 1))
        placed = (to_batch(to_device(tensor, device), canvas.rows) for tensor in (cond, scale.float()))
        return MusicInputs(*placed)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x and the number of frames."""
        return tuple(x.shape[1:]), inputs.states.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, states and LoRAs."""
        dtype = network.cond_layer_scale.dtype
        given: dict[Any, Tensor | None] = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": 1.0 - torch.cat([r.timestep for r in rows]),
            "states": torch.cat([r.inputs.states.to(dtype) for r in rows]),
            "scale": torch.cat([r.inputs.scale for r in rows]).to(dtype),
        }
        return given | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, outer = given["x"], network.diffusion_transformer
        told = _told(network, given["states"]) * given["scale"]
        told = pad(told, (0, x.shape[-1] - told.shape[-1]))
        turns = 2.0 * pi * given["level"][:, None] @ outer.timestep_features["weight"].T
        time = outer.to_timestep_embed(torch.cat([turns.cos(), turns.sin()], dim=-1).to(x.dtype))
        passing = Passing(rows, DOUBLES, given)
        made, counts = torch.zeros_like(x), x.new_zeros(x.shape[-1])
        for window in windows(x.shape[-1]):
            made[..., window] -= _window(outer, x[..., window], told[..., window], time, passing)
            counts[window] += 1
        return made / counts


def _told(network: Any, states: Tensor) -> Tensor:
    """Return what states (R,F,8·W) say, (R,C,n), for each latent."""
    weights = network.cond_layer_logits.softmax(dim=0)
    mixed = torch.einsum("rflw,l->rwf", torch.unflatten(states, -1, (STATES, -1)), weights)
    made = network.latent_conditioners(network.cond_layer_scale * mixed)
    return interpolate(made, size=latents_of(states.shape[1]), mode="nearest")


def _window(outer: Any, x: Tensor, told: Tensor, time: Tensor, passing: Passing) -> Tensor:
    """Return the network's output (R,128,n) for a window of x, with the opposite sign."""
    whole = torch.cat([x, torch.zeros_like(x), told], dim=1)
    inner = outer.transformer
    tokens = inner.project_in((outer.preprocess_conv(whole) + whole).transpose(1, 2))
    tokens = torch.cat([time[:, None], tokens], dim=1)
    places = torch.arange(tokens.shape[1], device=x.device).float()
    angles = torch.outer(places, inner.rotary_pos_emb["inv_freq"].float()).repeat(1, 2)
    shards = sharding(tokens.shape[1])
    tokens, angles = shards.shard(tokens), shards.shard(angles, dim=0)
    with attention_over(shards.of_attention):
        for number, block in enumerate(inner.layers):
            (tokens,) = passing.through(number, partial(block, tokens, angles), tokens)
    made: Tensor = shards.gather(inner.project_out(tokens), 0)[:, 1:].transpose(1, 2)
    out: Tensor = outer.postprocess_conv(made) + made
    return out
