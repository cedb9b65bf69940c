"""ACE-Step 1.5: songs of a given length from a description, lyrics and codes of sound, or like another sound.

Reads ComfyUI's files, turbo, base and XL; run by the modules of diffusers' AceStepTransformer1DModel and of its
pipeline. Source: Gong et al. 2026 (ACE-Step 1.5), arXiv:2602.00744; what a sound without a reference is like, and that
the encoders attend to all, are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from diffusers.pipelines.ace_step.modeling_ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import DOUBLES, WHOLE_EPS, Passing, Transformer, check_text, passed
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import ACE_STEP_15
from serve_app.sampling.transfer import to_device

LYRICS, CODES, REFERENCES = "conditioning_lyrics", "audio_codes", "reference_audio_timbre_latents"
"""Options of a conditioning: embedded lyrics (1,L,D); lists of codes; latents (1,64,T) of sounds to be like."""
PATCH, POOLED = 2, 5
"""Latents of a token, and of a code."""
WINDOW = 128
"""Tokens that every other layer sees to each side, from the first."""
THETA = 1e6
CODE_LEVELS = (8, 8, 8, 5, 5, 5)
"""Levels of each number of a code. Source: Mentzer et al. 2023, arXiv:2309.15505."""
SILENT_CODE = 35847
"""Stands for the sound after the last code."""
_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
_ATTENTION |= {"q_norm": "norm_q", "k_norm": "norm_k"}
_STACKS = (
    "decoder.layers",
    "encoder.lyric_encoder.layers",
    "encoder.timbre_encoder.layers",
    "tokenizer.attention_pooler.layers",
    "detokenizer.layers",
)
"""Prefixes of stacks of layers."""


@cache
def _silence() -> Tensor:
    latents: Tensor = load_file(Path(__file__).with_name("silence.safetensors"))["latents"]
    return latents


def silence(count: int) -> Tensor:
    """Return the latents (1,64,count) of silence: some of its beginning, then one repeated."""
    latents = _silence()
    return latents[torch.arange(count).clamp(max=len(latents) - 1)].T[None]


def numbers_of(codes: Tensor) -> Tensor:
    """Return the numbers (…,6) in −1…1 of codes (…)."""
    levels = to_device(torch.tensor(CODE_LEVELS), codes.device)
    basis = torch.cumprod(torch.cat([levels.new_ones(1), levels[:-1]]), 0)
    return (codes[..., None] // basis % levels).float() * (2.0 / (levels - 1).float()) - 1.0


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Return the numbers of the codes nearest to x (…,6), as ComfyUI has them: it bounds x by tanh, and once more."""
    most = 1.0 + 1.0 / (levels - 1.0)
    bounded = ((x / most).tanh() * most).tanh()
    return 2.0 / (levels - 1.0) * ((levels - 1.0) * (bounded + 1.0) / 2.0 + 0.5).floor() - 1.0


def rotation(count: int, head: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (count,head) of places, on the device of x and in its dtype."""
    steps = 1.0 / THETA ** (torch.arange(0, head, 2, device=x.device).float() / head)
    turns = torch.outer(torch.arange(count, device=x.device).float(), steps).repeat(1, 2)
    return turns.cos().to(x.dtype), turns.sin().to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class AceStep15Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D), lyrics: (B,L,D). like: (B,64,n) latents of a sound to be like, or silence. source: (B,64,n) latents
    of what is sung, codes: (B,c) instead; None of both: what `like` has. blank: (B,1,1) whether the text says nothing.
    """

    text: Tensor
    lyrics: Tensor
    like: Tensor
    blank: Tensor
    source: Tensor | None
    codes: Tensor | None

    def within(self, area: Area | None) -> AceStep15Inputs:
        """Return the inputs, which are for the whole sound only. Errors: NodeError for an area."""
        if area is not None:
            raise NodeError("the conditioning has an area, and a sound has none")
        return self


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a stack of layers. inside: of feed-forward layers."""

    width: int
    heads: int
    kv_heads: int
    head: int
    inside: int
    layers: int

    @classmethod
    def of(cls, tensors: Tensors, layers: str) -> Sizes:
        """Read the sizes off the first layer of layers of this prefix."""
        attention = f"{layers}0.self_attn"
        head = tensors.shape(f"{attention}.q_norm.weight")[0]
        outputs, width = tensors.shape(f"{attention}.q_proj.weight")
        return cls(
            width,
            outputs // head,
            tensors.shape(f"{attention}.k_proj.weight")[0] // head,
            head,
            tensors.shape(f"{layers}0.mlp.gate_proj.weight")[0],
            tensors.count(layers),
        )

    @property
    def named(self) -> dict[str, int]:
        """Their names in diffusers' modules, without the number of layers."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inside,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
        }


@dataclass(frozen=True, slots=True)
class AceStep15(Transformer):
    """A backbone. main, lyric, timbre, pooler, unpooler: its stacks of layers."""

    title = "ACE-Step 1.5"
    trained_as = Flow(3.0, multiplier=1.0)
    latent_format = ACE_STEP_15
    dtypes = (torch.bfloat16,)

    main: Sizes
    lyric: Sizes
    timbre: Sizes
    pooler: Sizes
    unpooler: Sizes
    text_width: int

    @classmethod
    def probe(cls, tensors: Tensors) -> AceStep15:
        """Read the network's size off its tensors. Errors: ModelFileError for a file without a part."""
        main, lyric, timbre, pooler, unpooler = (Sizes.of(tensors, f"{layers}.") for layers in _STACKS)
        return cls(main, lyric, timbre, pooler, unpooler, tensors.shape("encoder.text_projector.weight")[1])

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str] = {name: name for name in ("decoder", "encoder", "tokenizer", "detokenizer")}
        table |= {"null_condition_emb": "encoder.null_condition_emb"}
        table |= {"decoder.proj_in.1": "decoder.proj_in_conv", "decoder.proj_out.1": "decoder.proj_out_conv"}
        for layers, sizes in zip(_STACKS, self._stacks, strict=True):
            for number in range(sizes.layers):
                for attention in ("self_attn", "cross_attn") if layers == "decoder.layers" else ("self_attn",):
                    name = f"{layers}.{number}.{attention}"
                    table |= dict(inside(name, name, _ATTENTION))
        return table

    @property
    def _stacks(self) -> tuple[Sizes, ...]:
        return self.main, self.lyric, self.timbre, self.pooler, self.unpooler

    def lora_names(self, parameters: Sequence[str]) -> Table:
        """As `Transformer`, and names without "decoder.", which the authors' trainer and LyCORIS leave out."""
        names = dict(Transformer.lora_names(self, parameters))
        for theirs, ours in list(names.items()):
            if theirs.startswith("diffusion_model.decoder.") and isinstance(ours, str) and ours.endswith(".weight"):
                layer = theirs.removeprefix("diffusion_model.decoder.")
                names[f"base_model.model.{layer}"] = ours
                names[f"lycoris_{layer.replace('.', '_')}"] = ours
        return names

    @property
    def sharded_heads(self) -> int:
        return self.main.heads

    def build(self) -> nn.Module:
        network = nn.Module()
        channels = self.latent_format.channels
        network.decoder = AceStepTransformer1DModel(
            **self.main.named,
            num_hidden_layers=self.main.layers,
            in_channels=3 * channels,
            audio_acoustic_hidden_dim=channels,
            patch_size=PATCH,
            encoder_hidden_size=self.lyric.width,
        )
        # Its two encoders are of the lyrics' sizes, but of as many layers as the file has.
        encoder = AceStepConditionEncoder(
            **self.lyric.named,
            text_hidden_dim=self.text_width,
            timbre_hidden_dim=channels,
            num_lyric_encoder_hidden_layers=self.lyric.layers,
            num_timbre_encoder_hidden_layers=self.timbre.layers,
        )
        tokenizer = AceStepAudioTokenizer(
            **self.pooler.named,
            audio_acoustic_hidden_dim=channels,
            fsq_dim=self.pooler.width,
            num_attention_pooler_hidden_layers=self.pooler.layers,
        )
        detokenizer = AceStepAudioTokenDetokenizer(
            **self.unpooler.named,
            audio_acoustic_hidden_dim=channels,
            num_attention_pooler_hidden_layers=self.unpooler.layers,
        )
        detokenizer.norm.eps = WHOLE_EPS
        # Tables that are computed where they are needed.
        del encoder.silence_latent
        for name in ("_levels", "_basis", "scales"):
            delattr(tokenizer.quantizer, name)
        network.encoder, network.tokenizer, network.detokenizer = encoder, tokenizer, detokenizer
        return network

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        cond, options = Transformer.blank_text(self, tokens)
        return cond, {**options, LYRICS: torch.empty_like(cond)}

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> AceStep15Inputs:
        """Return the texts, and the sound to be like. Errors: NodeError for another family's text or sound."""
        check_text(cond, self.text_width, self.title)
        lyrics: Tensor | None = options.get(LYRICS)
        if lyrics is None:
            raise NodeError(
                "the conditioning has no lyrics, which ACE-Step 1.5 reads; that of TextEncodeAceStepAudio1.5 has them"
            )
        rows, count = canvas.rows, canvas.latents.shape[-1]
        like, references = silence(count), options.get(REFERENCES)
        codes = None
        if references:
            given = references[-1][..., :count]
            if given.ndim != 3 or given.shape[1] != self.latent_format.channels:
                raise NodeError(
                    f"the reference is ({','.join(map(str, given.shape))}), and ACE-Step 1.5 takes latents of sounds "
                    f"(batch,{self.latent_format.channels},time), as its own VAE encodes them"
                )
            like = torch.cat([given, like[..., given.shape[-1] :].expand(len(given), -1, -1)], dim=-1)
        elif options.get(CODES):
            lists = torch.tensor([list(of_row)[: -(-count // POOLED)] for of_row in options[CODES]])
            codes = pad(lists, (0, -(-count // POOLED) - lists.shape[1]), value=SILENT_CODE)

        def placed(tensor: Tensor) -> Tensor:
            return to_batch(to_device(tensor, device), rows)

        like = placed(like.float())
        blank = (~cond.any()).expand(rows, 1, 1)
        return AceStep15Inputs(
            placed(cond.float()),
            placed(lyrics.float()),
            like,
            to_device(blank, device),
            like if references else None,
            None if codes is None else placed(codes),
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x, the lengths of texts, which all tokens attend to, and what is known of the sound."""
        kind = inputs.codes is not None, inputs.source is not None
        return tuple(x.shape[1:]), inputs.text.shape[1], inputs.lyrics.shape[1], kind

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, texts, sounds and LoRAs."""
        x = torch.cat([r.x for r in rows]).to(network.decoder.condition_embedder.weight.dtype)

        def of_all(name: str) -> Tensor | None:
            if getattr(rows[0].inputs, name) is None:
                return None
            made = torch.cat([getattr(r.inputs, name) for r in rows])
            return made.to(x.dtype) if made.is_floating_point() else made

        names = ("text", "lyrics", "like", "source", "codes", "blank")
        given: dict[Any, Tensor | None] = {"x": x, **{name: of_all(name) for name in names}}
        if (codes := given["codes"]) is not None:
            given["codes"] = numbers_of(codes).to(x.dtype)
        if given["source"] is not None:
            given["levels"] = to_device(torch.tensor(CODE_LEVELS), x.device).to(x.dtype)
        tokens = torch.arange(-(-x.shape[-1] // PATCH), device=x.device)
        near = (tokens[:, None] - tokens).abs() <= WINDOW
        return (
            given
            | passed(rows)
            | {"level": torch.cat([r.timestep for r in rows]), "near": near if len(tokens) > WINDOW + 1 else None}
        )

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = given["x"].transpose(1, 2)
        context = _read(network.encoder, given)
        source = given["like"].transpose(1, 2)
        if "codes" in given:
            source = _sounding(network, given["codes"])
        elif "source" in given:
            source = _sounding(network, _coded(network.tokenizer, source, given["levels"]))
        x = torch.cat([source[:, : x.shape[1]], torch.ones_like(x), x], dim=-1)
        return _drawn(network.decoder, x, context, rows, given).transpose(1, 2)


def _through(module: Any, x: Tensor) -> Tensor:
    """Return tokens (R,n,W) after a module's layers, all of which attend to all, and its norm."""
    turns = rotation(x.shape[1], module.head_dim, x)
    for layer in module.layers:
        x = layer(x, position_embeddings=turns)
    made: Tensor = module.norm(x)
    return made


def _read(encoder: Any, given: Inputs) -> Tensor:
    """Return the tokens (R,L+1+T,W) of the lyrics, of what a sound is to be like, and of the text."""
    lyrics = _through(encoder.lyric_encoder, encoder.lyric_encoder.embed_tokens(given["lyrics"]))
    like = encoder.timbre_encoder.embed_tokens(given["like"].transpose(1, 2))
    first = _through(encoder.timbre_encoder, like)[:, :1]
    tokens = torch.cat([lyrics, first, encoder.text_projector(given["text"])], dim=1)
    return torch.where(given["blank"], encoder.null_condition_emb.to(tokens.dtype), tokens)


def _coded(tokenizer: Any, sounds: Tensor, levels: Tensor) -> Tensor:
    """Return the numbers (R,c,6) of the codes of sounds (R,n,64), filled up with zeros."""
    sounds = torch.unflatten(pad(sounds, (0, 0, 0, -sounds.shape[1] % POOLED)), 1, (-1, POOLED))
    pooler = tokenizer.attention_pooler
    tokens = pooler.embed_tokens(tokenizer.audio_acoustic_proj(sounds))
    first = pooler.special_token.to(tokens.dtype).expand(*tokens.shape[:2], -1, -1)
    tokens = torch.cat([first, tokens], dim=2)
    made = torch.unflatten(_through(pooler, tokens.flatten(0, 1))[:, 0], 0, tokens.shape[:2])
    return nearest(tokenizer.quantizer.project_in(made), levels)


def _sounding(network: Any, numbers: Tensor) -> Tensor:
    """Return the latents (R,5c,64) that codes (R,c,6) stand for, roughly."""
    detokenizer = network.detokenizer
    tokens = detokenizer.embed_tokens(network.tokenizer.quantizer.project_out(numbers))
    spread = tokens[:, :, None] + detokenizer.special_tokens.to(tokens.dtype)[:, None]
    made: Tensor = detokenizer.proj_out(_through(detokenizer, spread.flatten(0, 1)))
    return torch.unflatten(made, 0, tokens.shape[:2]).flatten(1, 2)


def _timed(embed: Any, level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the embedding (R,W) of levels (R,), and the modulations (R,6,W) of layers."""
    made = embed.linear_2(embed.act1(embed.linear_1(embed.time_sinusoid(level * embed.scale).to(dtype))))
    return made, embed.time_proj(embed.act2(made)).unflatten(1, (6, -1))


def _drawn(decoder: Any, x: Tensor, context: Tensor, rows: Sequence[Rows], given: Inputs) -> Tensor:
    """Return the network's output (R,n,64) for x (R,n,192)."""
    count = x.shape[1]
    level = given["level"]
    # The second says how far a step goes, which is 0 in ComfyUI.
    times = [
        _timed(embed, at, x.dtype) for embed, at in ((decoder.time_embed, level), (decoder.time_embed_r, level * 0))
    ]
    temb, modulation = (sum(parts) for parts in zip(*times, strict=True))
    tokens = decoder.proj_in_conv(pad(x, (0, 0, 0, -count % PATCH)).transpose(1, 2)).transpose(1, 2)
    context = decoder.condition_embedder(context)
    shards, turns = sharding(tokens.shape[1]), rotation(tokens.shape[1], decoder.head_dim, tokens)
    tokens, turns = shards.shard(tokens), (shards.shard(turns[0], dim=0), shards.shard(turns[1], dim=0))
    near = shards.mask(given.get("near"))
    passing, of_context = Passing(rows, DOUBLES, given), [(layer.cross_attn, None) for layer in decoder.layers]
    with attention_over(shards.of_attention, apart=of_context):
        for number, layer in enumerate(decoder.layers):
            tell = partial(
                layer,
                tokens,
                position_embeddings=turns,
                temb=modulation,
                attention_mask=None if number % 2 else near,
                encoder_hidden_states=context,
            )
            (tokens,) = passing.through(number, tell, tokens)
    shift, scale = (decoder.scale_shift_table + temb[:, None]).chunk(2, dim=1)
    tokens = shards.gather(decoder.norm_out(tokens) * (1 + scale) + shift, 0)
    made: Tensor = decoder.proj_out_conv(tokens.to(x.dtype).transpose(1, 2)).transpose(1, 2)
    return made[:, :count]
