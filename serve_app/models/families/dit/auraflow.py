"""AuraFlow: double-stream blocks of text and image, then single-stream ones; its text encoder is Pile-T5-XL.

Reads the authors' single file or diffusers'; run by the layers of diffusers' AuraFlowTransformer2DModel. Source: fal
2024, AuraFlow; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import interpolate

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    SINGLES,
    TEXT_TOKENS,
    Passing,
    Transformer,
    check_text,
    from_tokens,
    grid,
    passed,
    to_tokens,
)
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text.t5 import UMT5Text
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.models.tokenizers import Tokenize, llama2
from serve_app.models.tokenizers.sentencepiece import sentence_pieces
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import SDXL
from serve_app.sampling.transfer import to_device

SHIFT = 1.73
HEAD = 256
"""Width of every head."""

_MODULES = (
    *("pos_embed", "time_step_proj", "context_embedder", "register_tokens", "joint_transformer_blocks"),
    *("single_transformer_blocks", "norm_out", "proj_out"),
)
_ENDS = {
    "positional_encoding": "pos_embed.pos_embed",
    "init_x_linear": "pos_embed.proj",
    "register_tokens": "register_tokens",
    "t_embedder.mlp.0": "time_step_proj.linear_1",
    "t_embedder.mlp.2": "time_step_proj.linear_2",
    "cond_seq_linear": "context_embedder",
    "final_linear": "proj_out",
}
_MLP = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
_DOUBLE = {
    **{f"attn.w1{kind}": f"attn.add_{kind}_proj" for kind in "qkv"},
    **{f"attn.w2{kind}": f"attn.to_{kind}" for kind in "qkv"},
    "attn.w1o": "attn.to_add_out",
    "attn.w2o": "attn.to_out.0",
    "modC.1": "norm1_context.linear",
    "modX.1": "norm1.linear",
    **{f"mlpC.{theirs}": f"ff_context.{ours}" for theirs, ours in _MLP.items()},
    **{f"mlpX.{theirs}": f"ff.{ours}" for theirs, ours in _MLP.items()},
}
_SINGLE = {
    **{f"attn.w1{kind}": f"attn.to_{kind}" for kind in "qkv"},
    "attn.w1o": "attn.to_out.0",
    "modCX.1": "norm1.linear",
    **{f"mlp.{theirs}": f"ff.{ours}" for theirs, ours in _MLP.items()},
}


@dataclass(frozen=True, slots=True, eq=False)
class AuraFlowInputs:
    """Conditioning inputs for B rows. text: (B,T,D)."""

    text: Tensor

    def within(self, area: Area | None) -> AuraFlowInputs:
        return self


@dataclass(frozen=True, slots=True)
class AuraFlow(Transformer):
    """A backbone. width: of a token; doubles, singles: number of blocks of each kind.

    side: rows and columns of the table of positions.
    """

    title = "AuraFlow"
    dispatches = False
    trained_as = Flow(SHIFT, 1.0)
    latent_format = SDXL
    dtypes = (torch.bfloat16, torch.float16)

    width: int
    doubles: int
    singles: int
    text_width: int
    side: int

    @classmethod
    def probe(cls, tensors: Tensors) -> AuraFlow:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        if _by_diffusers(tensors):
            patches, places, text = "pos_embed.proj", "pos_embed.pos_embed", "context_embedder"
            doubles, singles = "joint_transformer_blocks.", "single_transformer_blocks."
        else:
            patches, places, text = "init_x_linear", "positional_encoding", "cond_seq_linear"
            doubles, singles = "double_layers.", "single_layers."
        width, columns = tensors.shape(f"{patches}.weight")
        table, fed = tensors.shape(places)[1], SDXL.channels * PATCH**2
        if width % HEAD or columns != fed or isqrt(table) ** 2 != table:
            raise tensors.unsupported(
                f"has an AuraFlow backbone {width} wide, fed {columns} numbers a token, with {table} positions; "
                f"supported are multiples of {HEAD} wide, {fed} numbers and a square of positions"
            )
        return cls(
            width,
            tensors.count(doubles),
            tensors.count(singles),
            tensors.shape(f"{text}.weight")[1],
            isqrt(table),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        # The file has the shift first, the network the scale.
        table["modF.1"] = (Place("norm_out.linear", swapped=True),)
        for number in range(self.doubles):
            theirs, ours = f"double_layers.{number}", f"joint_transformer_blocks.{number}"
            table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _DOUBLE.items()}
        for number in range(self.singles):
            theirs, ours = f"single_layers.{number}", f"single_transformer_blocks.{number}"
            table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _SINGLE.items()}
        return table

    def build(self) -> nn.Module:
        network: nn.Module = AuraFlowTransformer2DModel(
            in_channels=SDXL.channels,
            out_channels=SDXL.channels,
            num_mmdit_layers=self.doubles,
            num_single_dit_layers=self.singles,
            attention_head_dim=HEAD,
            num_attention_heads=self.width // HEAD,
            joint_attention_dim=self.text_width,
            caption_projection_dim=self.width,
            pos_embed_max_size=self.side**2,
        )
        return network

    @property
    def sharded_heads(self) -> int:
        return self.width // HEAD

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> AuraFlowInputs:
        check_text(cond, self.text_width, self.title)
        return AuraFlowInputs(to_batch(to_device(cond, device).float(), canvas.rows))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x and the length of the text: the network's attention takes no mask."""
        return tuple(x.shape[1:]), inputs.text.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and LoRAs."""
        dtype = network.proj_out.weight.dtype
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": torch.cat([r.inputs.text for r in rows]).to(dtype),
        }
        return given | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, size = given["x"], given["x"].shape[-2:]
        # Time reaches the sinusoids in single precision.
        time = network.time_step_proj(network.time_step_embed(given["level"]).to(x.dtype))
        image = network.pos_embed.proj(to_tokens(x)) + self.places(network.pos_embed.pos_embed, size)
        text = network.context_embedder(given["text"])
        text = torch.cat([network.register_tokens.to(x.dtype).expand(len(text), -1, -1), text], dim=1)
        doubles, singles = (Passing(rows, kind, given) for kind in (DOUBLES, SINGLES))
        shards = sharding(text.shape[1], image.shape[1])
        text, image = shards.shard(text, TEXT_TOKENS), shards.shard(image, IMAGE_TOKENS)
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.joint_transformer_blocks):
                call_block = partial(block, hidden_states=image, encoder_hidden_states=text, temb=time)
                text, image = doubles.through(number, call_block, text, image)
            both = torch.cat([text, image], dim=1)
            for number, block in enumerate(network.single_transformer_blocks):
                [both] = singles.through(number, partial(block, hidden_states=both, temb=time), both)
        made = shards.gather(network.proj_out(network.norm_out(both[:, text.shape[1] :], time)), IMAGE_TOKENS)
        return from_tokens(made, *size, channels_last=True)

    def places(self, table: Tensor, size: Sequence[int]) -> Tensor:
        """Return the centre of the table of positions (1,side²,D) for latents of a size, (1,n,D).

        For larger latents, the table is resized to the longer side.
        """
        rows, columns = grid(*size)
        square, side = table.view(1, self.side, self.side, -1), max(self.side, rows, columns)
        if side > self.side:
            square = interpolate(square.movedim(-1, 1), (side, side), mode="bilinear").movedim(1, -1)
        top, left = (side - rows) // 2, (side - columns) // 2
        return square[:, top : top + rows, left : left + columns].reshape(1, rows * columns, -1)


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("joint_transformer_blocks.")


@dataclass(frozen=True, slots=True)
class PileT5Text(UMT5Text):
    """Pile-T5-XL: UMT5's layers over Llama 2's tokens. Source: Sutawika et al. 2024, EleutherAI."""

    prefixes = ("text_encoders.pile_t5xl.transformer.", "")
    name = "Pile-T5-XL"
    usual: ClassVar[PromptFormat] = PromptFormat(
        "pile_t5xl",
        embeds=False,
        end=llama2.END,
        pad=llama2.PAD,
        least=256,
        empty=(llama2.END,),
        masked=True,
        zeroed=True,
    )

    @classmethod
    def reads(cls, tokens: int) -> bool:
        return not UMT5Text.reads(tokens)

    def tokenize(self, network: Any, lexicon: TextResources) -> Tokenize:
        return sentence_pieces(self.brought(network) or llama2.pieces(lexicon.vocabulary))
