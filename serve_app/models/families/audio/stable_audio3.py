"""Stable Audio 3: sounds of a given length from a text.

Reads ComfyUI's checkpoint, with the layers that embed a length beside the network; run by the layers of diffusers'
StableAudio3DiTModel. Source: Stability AI 2026 (Stable Audio 3), arXiv:2605.17991; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log, pi
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel, StableAudio3RMSNorm
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import Located, Rows
from serve_app.models.families.shared.dit import DOUBLES, WHOLE_EPS, Passing, Transformer, check_text, passed
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import STABLE_AUDIO_3
from serve_app.sampling.transfer import to_device

WAVES, SLOWEST, FASTEST = 256, 0.5, 10000.0
"""Sinusoids of a time and of a length, and the turns of the slowest and the fastest between 0 and 1."""
LONGEST_S = 384.0
"""A length of this many seconds is 1; longer ones are too."""
LATENTS_A_SECOND = 10.7666
TEXT_TOKENS = 256
"""The length in tokens that texts are padded to, with an embedding that the file has."""
MEMORY, SOUND = 0, 1
"""Streams of tokens: the network's own, and the sound's."""
LEAST_ROTATED = 32
"""Rotary positions rotate half of a head's numbers, and at least this many."""
_CONDITIONERS = "conditioner.conditioners."
_LENGTH, _PADDING = "seconds_total.embedder.embedding.1", "prompt.padding_embedding"
_TOP = {
    **{name: name for name in ("to_timestep_embed", "to_cond_embed", "to_global_embed")},
    **{name: name for name in ("preprocess_conv", "postprocess_conv")},
    "transformer.project_in": "proj_in",
    "transformer.project_out": "proj_out",
    "transformer.memory_tokens": "memory_tokens",
    "transformer.global_cond_embedder": "global_cond_embedder",
    _LENGTH: "length",
    _PADDING: "padding",
}


class DifferenceAttention:
    """What two attentions find, less the one than the other; of one row of tokens or over others."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        context: Tensor | None = None,
        rope: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output for tokens (R,n,W). context: (R,T,W), else themselves; rope: angles (n,d) of themselves."""
        if context is None:
            q, k, v, other_q, other_k = self._heads(attn, attn.to_qkv(hidden_states), 5)
        else:
            q, other_q = self._heads(attn, attn.to_q(hidden_states), 2)
            k, other_k, v = self._heads(attn, attn.to_kv(context), 3)
        pairs = [(attn.q_norm(one), attn.k_norm(other)) for one, other in ((q, k), (other_q, other_k))]
        if rope is not None:
            pairs = [(half_rotated(one, rope), half_rotated(other, rope)) for one, other in pairs]
        found, less = (dispatch_attention_fn(one, other, v) for one, other in pairs)
        out: Tensor = attn.to_out((found - less).flatten(2))
        return out

    def _heads(self, attn: Any, fused: Tensor, count: int) -> Sequence[Tensor]:
        return torch.unflatten(fused, -1, (count, attn.heads, attn.dim_heads)).unbind(2)


def half_rotated(heads: Tensor, angles: Tensor) -> Tensor:
    """Return heads (R,n,H,D), their first d numbers rotated in pairs of their halves. angles: (n,d)."""
    turned, rest = heads[..., : angles.shape[-1]].float(), heads[..., angles.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    of_all = angles[:, None]
    made = turned * of_all.cos() + torch.cat([-second, first], dim=-1) * of_all.sin()
    return torch.cat([made.to(heads.dtype), rest], dim=-1)


def angles_of(count: int, width: int, device: torch.device) -> Tensor:
    """Return the angles (n,width) of places, for `half_rotated`."""
    steps = 1.0 / 10000.0 ** (torch.arange(0, width, 2, device=device).float() / width)
    return torch.outer(torch.arange(count, device=device).float(), steps).repeat(1, 2)


def waves_of(shares: Tensor) -> Tensor:
    """Return the sinusoids (R,WAVES) of numbers (R,) in 0…1."""
    ramp = torch.linspace(0, 1, WAVES // 2, device=shares.device)
    turns = shares.float()[:, None] * torch.exp(ramp * (log(FASTEST) - log(SLOWEST)) + log(SLOWEST)) * 2 * pi
    return torch.cat([turns.cos(), turns.sin()], dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class StableAudio3Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). length: (B,) share of the longest. local: (B,1+C,n), 1 where the sound of the channels is kept.
    """

    text: Tensor
    length: Tensor
    local: Tensor

    def within(self, area: Area | None) -> StableAudio3Inputs:
        """Return the inputs, which are for the whole sound only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and a sound has none")
        return self


@dataclass(frozen=True, slots=True)
class StableAudio3(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; memory: its own tokens before the sound's."""

    title = "Stable Audio 3"
    trained_as = Flow(2.0, multiplier=1.0)
    latent_format = STABLE_AUDIO_3
    vae_prefix = "pretransform.model."
    dtypes = (torch.float16, torch.bfloat16)

    width: int
    head: int
    layers: int
    inside: int
    memory: int
    text_width: int
    pads: bool = True

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield the network and what embeds lengths, as `Family.find`. Errors: ModelFileError for one without that."""
        if (found := cls.of_kind(files[0])) is None:
            return
        beside = files[0].within(_CONDITIONERS)
        if f"{_LENGTH}.weight" not in beside.shapes:
            raise files[0].unsupported(
                f"holds a Stable Audio 3 without '{_CONDITIONERS}{_LENGTH}.weight', which embeds lengths; a checkpoint "
                "as published has it"
            )
        family = cls.probe(found[1])
        if _PADDING not in beside.shapes:
            family = replace(family, pads=False)
        yield Located(family, found[1], prefix=found[0])
        yield Located(family, beside, prefix=_CONDITIONERS)

    @classmethod
    def probe(cls, tensors: Tensors) -> StableAudio3:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        block = "transformer.layers.0."
        width = tensors.shape("preprocess_conv.weight")[0]
        if width != cls.latent_format.channels or f"{block}to_local_embed.0.weight" not in tensors.shapes:
            raise tensors.unsupported(
                f"holds a Stable Audio that reads {width} channels; supported is Stable Audio 3, of "
                f"{cls.latent_format.channels} channels and with layers for the sound that is kept"
            )
        outputs, inputs = tensors.shape(f"{block}self_attn.to_qkv.weight")
        if outputs != 5 * inputs:
            raise tensors.unsupported("holds a Stable Audio 3 whose attention is none of differences")
        return cls(
            inputs,
            tensors.shape(f"{block}self_attn.q_norm.gamma")[0],
            tensors.count("transformer.layers."),
            tensors.shape(f"{block}ff.ff.2.weight")[1],
            tensors.shapes.get("transformer.memory_tokens", (0,))[0],
            tensors.shape("to_cond_embed.0.weight")[1],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(_TOP)
        for number in range(self.layers):
            theirs, ours = f"transformer.layers.{number}", f"transformer_blocks.{number}"
            table |= {theirs: ours, f"{theirs}.ff.ff.0.proj": f"{ours}.ff.proj_in"}
            table[f"{theirs}.ff.ff.2"] = f"{ours}.ff.proj_out"
        return table

    def single(self, name: str) -> bool:
        return name.startswith("length.")

    @property
    def sharded_heads(self) -> int:
        return self.width // self.head

    def build(self) -> nn.Module:
        network = StableAudio3DiTModel(
            io_channels=self.latent_format.channels,
            embed_dim=self.width,
            depth=self.layers,
            num_heads=self.width // self.head,
            cond_token_dim=self.text_width,
            global_cond_dim=self.text_width,
            local_add_cond_dim=self.latent_format.channels + 1,
            timestep_features_dim=WAVES,
            ff_mult=self.inside / self.width,
            num_memory_tokens=self.memory,
        )
        # Tables that are computed where they are needed.
        network.rotary_pos_emb = nn.Identity()
        del network.prompt_padding_embedding
        network.length = nn.Linear(WAVES, self.text_width)
        if self.pads:
            network.padding = nn.Parameter(torch.empty(self.text_width))
        for layer in network.modules():
            if isinstance(layer, StableAudio3RMSNorm):
                layer.eps = WHOLE_EPS
        for block in network.transformer_blocks:
            for attention in (block.self_attn, block.cross_attn):
                attention.processor = DifferenceAttention()
        built: nn.Module = network
        return built

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> StableAudio3Inputs:
        """Return the text, the length, and what is kept of a sound. Errors: NodeError for another family's text."""
        check_text(cond, self.text_width, self.title)
        latents, rows = canvas.latents, canvas.rows
        seconds = float(options.get("seconds_total", int(latents.shape[-1] / LATENTS_A_SECOND)))
        share = min(max(seconds, 0.0), LONGEST_S) / LONGEST_S
        kept: Tensor | None = options.get("concat_latent_image")
        sound = torch.zeros_like(latents) if kept is None else to_device(kept, latents.device).to(latents)
        if sound.shape[1:] != latents.shape[1:]:
            raise NodeError(f"the sound to go by is {tuple(sound.shape)}, and the latents are {tuple(latents.shape)}")
        mask: Tensor | None = options.get("concat_mask", canvas.mask)
        where = torch.zeros_like(latents[:, :1])
        if mask is not None:
            where = to_batch(1.0 - to_device(mask, latents.device).float().mean(1, keepdim=True), rows)
        return StableAudio3Inputs(
            to_batch(to_device(cond, device).float(), rows),
            to_device(torch.full((rows,), share), device),
            to_device(torch.cat([where.expand_as(latents[:, :1]), to_batch(sound, rows)], dim=1), device),
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x and the length of the text, which all tokens attend to."""
        return tuple(x.shape[1:]), inputs.text.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, length and LoRAs."""
        dtype = network.proj_out.weight.dtype
        x = torch.cat([r.x for r in rows])
        given: dict[Any, Tensor | None] = {
            "x": x.to(dtype),
            "level": waves_of(torch.cat([r.timestep for r in rows])).to(dtype),
            "text": torch.cat([r.inputs.text for r in rows]).to(dtype),
            "length": waves_of(torch.cat([r.inputs.length for r in rows])),
            "local": torch.cat([r.inputs.local for r in rows]).to(dtype).transpose(1, 2),
            "turns": angles_of(self.memory + x.shape[-1], max(self.head // 2, LEAST_ROTATED), x.device),
        }
        return given | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, text = given["x"], given["text"]
        length = network.length(given["length"]).to(x.dtype)[:, None]
        read = [text, length]
        if self.pads and text.shape[1] < TEXT_TOKENS:
            read.insert(1, network.padding.expand(len(x), TEXT_TOKENS - text.shape[1], -1))
        context = network.to_cond_embed(torch.cat(read, dim=1))
        time = network.to_global_embed(length[:, 0]) + network.to_timestep_embed(given["level"])
        modulation = network.global_cond_embedder(time)
        sound = network.proj_in((network.preprocess_conv(x) + x).transpose(1, 2))
        shards = sharding(self.memory, sound.shape[1])
        if self.memory:
            sound = torch.cat([network.memory_tokens.expand(len(x), -1, -1), sound], dim=1)
        sound, memory = shards.shard(sound), shards.count(MEMORY)
        turns, local = shards.shard(given["turns"], dim=0), shards.shard(given["local"], SOUND)
        passing, of_text = (
            Passing(rows, DOUBLES, given),
            [(block.cross_attn, None) for block in network.transformer_blocks],
        )
        with attention_over(shards.of_attention, apart=of_text):
            for number, block in enumerate(network.transformer_blocks):
                tell = partial(
                    block,
                    sound,
                    context=context,
                    global_modulation=modulation,
                    rope=turns,
                    local_seq=local,
                    num_memory_tokens=memory,
                )
                (sound,) = passing.through(number, tell, sound)
        made = shards.gather(network.proj_out(sound[:, memory:]), SOUND).transpose(1, 2)
        out: Tensor = network.postprocess_conv(made) + made
        return out
