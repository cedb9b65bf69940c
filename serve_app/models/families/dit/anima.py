"""Anima: Cosmos-Predict2's blocks, with an adapter that combines a small Qwen3's states with T5's tokens.

Run by diffusers' layers of CosmosTransformer3DModel and AnimaTextConditioner. Source: NVIDIA 2025, arXiv:2511.00062;
CircleStone Labs 2025, Anima; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditionerBlock
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.models.control.model_control import all_at_work, steering
from serve_app.models.families.dit.qwen_image import frame_tokens
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    PATCH,
    Transformer,
    by_heads,
    check_text,
    from_tokens,
    grid,
    lengths,
    stacked,
    there,
    within,
)
from serve_app.models.families.text.decoder import DecoderEncoder, rotated
from serve_app.models.families.text.qwen import PLAIN, Qwen3Text
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text.t5 import UNPADDED
from serve_app.models.families.text_family import TextResources, Vectors, own_text
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.models.tokenizers import Tokenize, Tokenizer, t5
from serve_app.models.tokenizers.prompt import Weighted, runs
from serve_app.recipe.text import T5Padding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Text

SHIFT = 3.0
THETA = 10000.0
STRETCHED = 4.0
"""Factor of row and column positions over those of the original training."""
LEAST = 512
"""Minimum number of text rows for the network; missing ones are zeros."""
IDS, WEIGHTS = "t5xxl_ids", "t5xxl_weights"
"""The options of a conditioning that hold T5's tokens and their weights, by ComfyUI's names."""

_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"} | {
    f"{kind}_norm": f"norm_{kind}" for kind in "qk"
}
_MODULATED = ("self_attn", "cross_attn", "mlp")
_ADAPTER = ("embed", "blocks", "out_proj", "norm")


@dataclass(frozen=True, slots=True, eq=False)
class AnimaInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). ids, weights: (B,S), of T5's tokens; None for a text that needs no adapter.
    """

    text: Tensor
    ids: Tensor | None = None
    weights: Tensor | None = None

    def within(self, area: Area | None) -> AnimaInputs:
        return self


@dataclass(frozen=True, slots=True)
class LlmAdapter:
    """The size of the text adapter. layers: number of blocks; source_width: of a row that it reads."""

    width: int
    heads: int
    layers: int
    source_width: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Anima(Transformer):
    """A backbone. width: of a token; lora_width: inside the low-rank modulation; text_width: of a text row.

    hidden: width of the feed-forward layers, in widths.
    """

    title = "Anima"
    trained_as = Flow(SHIFT, 1.0)
    latent_format = WAN
    dtypes = (torch.bfloat16,)
    """In fp16 the residual stream overflows."""

    width: int
    heads: int
    layers: int
    lora_width: int
    adapter: LlmAdapter
    hidden: int = 4

    @classmethod
    def probe(cls, tensors: Tensors) -> Anima:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, columns = tensors.shape("x_embedder.proj.1.weight")
        head = tensors.shape("blocks.0.self_attn.q_norm.weight")[0]
        inside = tensors.shape("blocks.0.mlp.layer1.weight")[0]
        tokens, outside = tensors.shape("llm_adapter.embed.weight")
        inner = tensors.shape("llm_adapter.blocks.0.cross_attn.q_norm.weight")[0]
        known = (WAN.channels + 1) * PATCH**2
        if columns != known or width % head or inside % width or outside % inner:
            raise tensors.unsupported(
                f"has an Anima backbone {width} wide with heads of {head} and {inside} inside, fed {columns} numbers a "
                f"token; supported are {known}, and whole numbers of heads and widths"
            )
        return cls(
            width,
            width // head,
            tensors.count("blocks."),
            tensors.shape("blocks.0.adaln_modulation_self_attn.1.weight")[0],
            LlmAdapter(
                outside,
                outside // inner,
                tensors.count("llm_adapter.blocks."),
                tensors.shape("llm_adapter.blocks.0.cross_attn.k_proj.weight")[1],
                tokens,
            ),
            inside // width,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {
            "x_embedder.proj.1": "patch_embed.proj",
            "t_embedder.1": "time_embed.t_embedder",
            "t_embedding_norm": "time_embed.norm",
            "final_layer.linear": "proj_out",
            **{f"final_layer.adaln_modulation.{i}": f"norm_out.linear_{i}" for i in (1, 2)},
            **{f"llm_adapter.{part}": f"llm_adapter.{part}" for part in _ADAPTER},
        }
        for number in range(self.layers):
            theirs, ours = f"blocks.{number}", f"transformer_blocks.{number}"
            for attention, name in (("self_attn", "attn1"), ("cross_attn", "attn2")):
                table |= {f"{theirs}.{attention}.{a}": f"{ours}.{name}.{b}" for a, b in _ATTENTION.items()}
            for norm, name in enumerate(_MODULATED, 1):
                table |= {f"{theirs}.adaln_modulation_{name}.{i}": f"{ours}.norm{norm}.linear_{i}" for i in (1, 2)}
            table |= {f"{theirs}.mlp.layer1": f"{ours}.ff.net.0.proj", f"{theirs}.mlp.layer2": f"{ours}.ff.net.2"}
        return table

    def build(self) -> nn.Module:
        network = CosmosTransformer3DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.width // self.heads,
            num_layers=self.layers,
            mlp_ratio=float(self.hidden),
            text_embed_dim=self.adapter.width,
            adaln_lora_dim=self.lora_width,
            extra_pos_embed_type=None,
        )
        network.llm_adapter = TextAdapter(self.adapter)
        built: nn.Module = network
        return built

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> AnimaInputs:
        """Return the text with its T5 tokens, where the conditioning has them.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        rows, ids = canvas.rows, options.get(IDS)
        check_text(cond, self.adapter.width if ids is None else self.adapter.source_width, self.title)
        text = to_batch(to_device(cond, device).float(), rows)
        if ids is None:
            return AnimaInputs(text)
        weights = options.get(WEIGHTS)
        weights = torch.ones_like(ids, dtype=torch.float32) if weights is None else weights.float()
        one_row = (to_device(tokens.view(1, -1), device).expand(rows, -1) for tokens in (ids.long(), weights))
        return AnimaInputs(text, *one_row)

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        return torch.empty(1, tokens, self.adapter.width, device="meta"), {}

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x, and whether the text goes through the adapter."""
        return tuple(x.shape[1:]), inputs.ids is None

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, its length and LoRAs."""
        dtype, inputs = network.proj_out.weight.dtype, [r.inputs for r in rows]
        texts, counts = [i.text.to(dtype) for i in inputs], lengths([i.text for i in inputs])
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": stacked(texts),
            "text there": there(texts),
        }
        ids = [i.ids for i in inputs if i.ids is not None]
        if ids:
            weights = stacked([i.weights for i in inputs if i.weights is not None])
            given |= {"ids": stacked(ids), "ids there": there(ids), "weights": weights}
            counts = [max(LEAST, count) for count in lengths(ids)]
        # Attention is faster without a mask.
        seen = None if min(counts) == max(counts) else within(counts, max(counts), rows[0].x.device)
        return given | {"mask": by_heads(seen)}

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, text, size = given["x"], given["text"], given["x"].shape[2:]
        if "ids" in given:
            # Padding has weight 0, so that it becomes zeros, as up to the minimum.
            adapted = network.llm_adapter(text, given.get("text there"), given["ids"], given.get("ids there"))
            text = adapted * given["weights"][..., None].to(x.dtype)
            text = pad(text, (0, 0, 0, max(0, LEAST - text.shape[1])))
        # One further channel, the padding mask of an image: none.
        image = network.patch_embed.proj(pad(frame_tokens(x), (0, PATCH**2)))
        # Time reaches the sinusoids in single precision, as in ComfyUI.
        modulated, time = network.time_embed(image, given["level"])
        turns, blocks = self._turns(size, image.device), network.transformer_blocks
        controls = all_at_work(rows, given)
        if controls and size[0] > 1:
            raise NodeError(f"a model patch of {self.title} acts on images, and the latents have {size[0]} frames")
        # Rows with a model patch, which reads all tokens, are not shared over ranks (`is_steady`).
        shards = sharding(image.shape[1])
        image, cos, sin = shards.shard(image), *(shards.shard(turn, dim=0) for turn in turns)
        of_text = [(block.attn2, None) for block in blocks]
        with attention_over(shards.of_attention, apart=of_text), steering(blocks, controls):
            for block in blocks:
                image = block(image, text, time, modulated, (cos, sin), attention_mask=given.get("mask"))
        made = shards.gather(network.proj_out(network.norm_out(image, time, modulated)), 0)
        cells = made.reshape(len(made) * size[0], -1, made.shape[2])
        frames = from_tokens(cells, size[1], size[2], channels_last=True)
        return frames.view(-1, size[0], *frames.shape[1:]).movedim(1, 2)

    def _turns(self, size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines (n,D) of rotary positions for tokens of latents (F,h,w)."""
        head = self.width // self.heads
        side = head // 6 * 2
        angles = []
        for axis, width in enumerate((head - 2 * side, side, side)):
            theta = THETA * (STRETCHED ** (width / (width - 2)) if axis else 1.0)
            steps = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
            count = (size[0], *grid(size[1], size[2]))[axis]
            places = torch.arange(count, device=device, dtype=torch.float32)
            angles.append(places[:, None] * theta**-steps)
        frames, rows, columns = map(len, angles)
        spread = [
            of_axis.view(*(len(of_axis) if i == axis else 1 for i in range(3)), -1).expand(frames, rows, columns, -1)
            for axis, of_axis in enumerate(angles)
        ]
        half = torch.cat(spread, dim=-1).reshape(frames * rows * columns, -1)
        both = torch.cat([half, half], dim=-1)
        return both.cos(), both.sin()


class TextAdapter(nn.Module):
    """Combines Qwen3's states (R,T,W) and T5's tokens (R,S) into the backbone's text, (R,S,D)."""

    def __init__(self, size: LlmAdapter) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(size.tokens, size.width)
        self.blocks = nn.ModuleList(
            AnimaTextConditionerBlock(size.source_width, size.width, size.heads) for _ in range(size.layers)
        )
        self.out_proj = nn.Linear(size.width, size.width)
        self.norm = nn.RMSNorm(size.width, eps=1e-6)

    def forward(self, states: Tensor, states_there: Tensor | None, ids: Tensor, ids_there: Tensor | None) -> Tensor:
        """Return the text. states_there, ids_there: masks of real tokens, (R,T) and (R,S), None: all."""
        tokens = self.embed(ids).to(states.dtype)
        masks = (None if known is None else known[:, None, None] for known in (ids_there, states_there))
        head = self.size.width // self.size.heads
        turns = (
            rotated(torch.arange(count, device=ids.device)[None], head, THETA, (), states.dtype)
            for count in (ids.shape[1], states.shape[1])
        )
        arguments = (*masks, *turns)
        for block in self.blocks:
            tokens = block(tokens, states, *arguments)
        made: Tensor = self.norm(self.out_proj(tokens))
        return made


READING = replace(PLAIN, key="qwen3_06b", weighs=True)


@dataclass(frozen=True, slots=True)
class AnimaText(Qwen3Text):
    """Qwen3 0.6B, with T5's tokens of the same text. T5's network is not needed."""

    name = "Qwen3 0.6B"
    prefixes = ("text_encoders.qwen3_06b.transformer.", "")
    stop = ()

    @classmethod
    def reads(cls, width: int) -> bool:
        return not Qwen3Text.reads(width)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return READING

    def encoder(self, network: Any, lexicon: TextResources) -> AnimaTextEncoder:
        of_t5 = t5.tokenizer(lexicon.vocabulary)
        return AnimaTextEncoder(self, READING, self.tokenizer(None, lexicon), network, lexicon.vectors, of_t5)


class AnimaTextEncoder(DecoderEncoder):
    """Qwen3 on its device, and T5's tokeniser. Prompt weights apply to T5's tokens alone."""

    def __init__(
        self,
        family: AnimaText,
        prompt_format: PromptFormat,
        tokenizer: Tokenizer,
        network: Any,
        vectors: Vectors,
        of_t5: Tokenize,
    ) -> None:
        super().__init__(family, prompt_format, tokenizer, network, vectors)
        self._of_t5 = of_t5

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        encoded = super().encode(texts, stop_at)
        return [
            [(cond, options | self._ids(own_text(text, self.prompt_format.key), padding)) for cond, options in entries]
            for entries, text in zip(encoded, texts, strict=True)
        ]

    def framed(self, text: str, padding: T5Padding | None = None) -> Weighted:
        return [(token, 1.0) for token, _ in super().framed(text, padding)]

    def _ids(self, text: str, padding: T5Padding | None) -> dict[str, Any]:
        of_text = runs(text, self._of_t5, lambda name: None)
        row = UNPADDED.framed([token for run in of_text for token in run], padding)
        ids, weights = zip(*row, strict=True)
        return {IDS: torch.tensor(ids, dtype=torch.int), WEIGHTS: torch.tensor(weights)}
