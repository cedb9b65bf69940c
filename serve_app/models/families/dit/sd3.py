"""Stable Diffusion 3 and 3.5: double-stream blocks of text and image.

Reads the authors' single file or diffusers'; run by the layers of diffusers' SD3Transformer2DModel. Source: Esser et
al. 2024, arXiv:2403.03206; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.control import ActiveControl
from serve_app.models.families.family import Rows, spec_of
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    TEXT_TOKENS,
    Passing,
    Transformer,
    added_after,
    check_text,
    control_answers,
    from_tokens,
    grid,
    passed,
    pooled_text,
    thirds,
    whole_patches,
)
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import SD3
from serve_app.sampling.transfer import to_device

SHIFT, TIMES = 3.0, 1000.0
HEAD = 64
"""Width of every head."""
BLOCKS = "blocks"
"""The kind of block that ControlNets add to."""

_PLACED = ("pos_embed", "pos_embed.pos_embed")
MODULES = ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks", "norm_out", "proj_out")
_STREAMS = (
    ("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "norm", "ff", "norm1"),
    (
        "context_block",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        "to_add_out",
        "norm_added",
        "ff_context",
        "norm1_context",
    ),
)
"""Names for image and text: in the file, and the network's of queries, keys and values and of the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Sd3Inputs:
    """Conditioning inputs for B rows. text: (B,T,D); pooled: (B,P); controls: active ControlNets."""

    text: Tensor
    pooled: Tensor
    controls: tuple[ActiveControl, ...] = ()

    def within(self, area: Area | None) -> Sd3Inputs:
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Sd3Call:
    """Inputs of one forward for R rows, which its ControlNets read too.

    x: (R,C,h,w). timestep: (R,). text: (R,T,D). pooled: (R,P). patches: the backbone's embedding of x without
    positions, (R,n,W). pooled_embedding: (R,W), the backbone's too.
    """

    x: Tensor
    timestep: Tensor
    text: Tensor
    pooled: Tensor
    patches: Tensor
    pooled_embedding: Tensor


@dataclass(frozen=True, slots=True)
class Sd3(Transformer):
    """A backbone. width: of a token; layers: number of blocks, the first `dual` with two attentions.

    side: rows and columns of the table of positions. normed: queries and keys are.
    """

    title = "Stable Diffusion 3"
    dispatches = False
    trained_as = Flow(SHIFT, TIMES)
    latent_format = SD3
    dtypes = (torch.bfloat16, torch.float16)
    vae_prefix = "first_stage_model."

    width: int
    layers: int
    text_width: int
    pooled_width: int
    side: int
    normed: bool = False
    dual: int = 0
    latent_channels: int = 16

    def saved_as(self) -> Mapping[str, str]:
        return spec_of("stable-diffusion-v3-medium")

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return any(name in tensors.shapes for name in _PLACED)

    @classmethod
    def probe(cls, tensors: Tensors) -> Sd3:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        if _by_diffusers(tensors):
            patches, blocks, pooled = "pos_embed.proj", "transformer_blocks.", "time_text_embed.text_embedder.linear_1"
            normed, second, last = "0.attn.norm_q.weight", "attn2.", "proj_out"
        else:
            patches, blocks, pooled = "x_embedder.proj", "joint_blocks.", "y_embedder.mlp.0"
            normed, second, last = "0.x_block.attn.ln_q.weight", "x_block.attn2.", "final_layer.linear"
        width, channels, *_ = tensors.shape(f"{patches}.weight")
        layers = tensors.count(blocks)
        dual = [tensors.has(f"{blocks}{layer}.{second}") for layer in range(layers)]
        made = tensors.shape(f"{last}.weight")[0] // PATCH**2
        if width % HEAD or made != channels or dual != sorted(dual, reverse=True):
            raise tensors.unsupported(
                f"has an SD 3 backbone {width} wide of {channels} channels to {made}; supported are multiples of "
                f"{HEAD} wide, as many channels in as out, and blocks that attend twice before the others"
            )
        places = next(tensors.shapes[name] for name in _PLACED if name in tensors.shapes)
        return cls(
            width,
            layers,
            tensors.shape("context_embedder.weight")[1],
            tensors.shape(f"{pooled}.weight")[1],
            isqrt(places[1]),
            f"{blocks}{normed}" in tensors.shapes,
            sum(dual),
            channels,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in MODULES}
        table: dict[str, str | tuple[Place, ...]] = {
            "pos_embed": "pos_embed.pos_embed",
            "x_embedder.proj": "pos_embed.proj",
            "context_embedder": "context_embedder",
            "final_layer.linear": "proj_out",
            # The file has the shift first, the network the scale.
            "final_layer.adaLN_modulation.1": (Place("norm_out.linear", swapped=True),),
        }
        for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
            for number, layer in enumerate((0, 2), 1):
                table[f"{theirs}.mlp.{layer}"] = f"time_text_embed.{ours}.linear_{number}"
        for layer in range(self.layers):
            table |= self._block(f"joint_blocks.{layer}", f"transformer_blocks.{layer}", layer == self.layers - 1)
        return table

    def _block(self, theirs: str, ours: str, last: bool) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
        for stream, kinds, out, norm, inside, modulated in _STREAMS:
            file = f"{theirs}.{stream}"
            yield f"{file}.attn.qkv", thirds(self.width, *(f"{ours}.attn.{kind}" for kind in kinds))
            yield f"{file}.attn.proj", f"{ours}.attn.{out}"
            yield f"{file}.mlp.fc1", f"{ours}.{inside}.net.0.proj"
            yield f"{file}.mlp.fc2", f"{ours}.{inside}.net.2"
            for kind in "qk":
                yield f"{file}.attn.ln_{kind}", f"{ours}.attn.{norm}_{kind}"
            # The last block outputs no text: it only has scale and shift, in the network scale first.
            swapped = last and stream == "context_block"
            name = f"{ours}.{modulated}.linear"
            yield f"{file}.adaLN_modulation.1", (Place(name, swapped=True),) if swapped else name
        yield f"{theirs}.x_block.attn2.qkv", thirds(self.width, *(f"{ours}.attn2.to_{kind}" for kind in "qkv"))
        yield f"{theirs}.x_block.attn2.proj", f"{ours}.attn2.to_out.0"
        for kind in "qk":
            yield f"{theirs}.x_block.attn2.ln_{kind}", f"{ours}.attn2.norm_{kind}"

    def build(self) -> nn.Module:
        network = SD3Transformer2DModel(
            sample_size=PATCH * self.side,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            num_layers=self.layers,
            attention_head_dim=HEAD,
            num_attention_heads=self.width // HEAD,
            joint_attention_dim=self.text_width,
            caption_projection_dim=self.width,
            pooled_projection_dim=self.pooled_width,
            pos_embed_max_size=self.side,
            dual_attention_layers=tuple(range(self.dual)),
            qk_norm="rms_norm" if self.normed else None,
        )
        # A parameter moves to the device with the others; diffusers has the table as a buffer.
        network.pos_embed.pos_embed = None
        del network.pos_embed.pos_embed
        network.pos_embed.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, self.width))
        built: nn.Module = network
        return built

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
    ) -> Sd3Inputs:
        """Return the text. Errors: NodeError for another family's, or for latents beyond the table of positions."""
        check_text(cond, self.text_width, self.title)
        if max(grid(*canvas.latents.shape[-2:])) > self.side:
            height, width = canvas.latents.shape[-2:]
            raise NodeError(
                f"the latents are {height}×{width} cells; this {self.title} backbone has positions for "
                f"{PATCH * self.side}×{PATCH * self.side}"
            )
        pooled = pooled_text(options, self.pooled_width, self.title)
        return Sd3Inputs(
            to_batch(to_device(cond, device).float(), canvas.rows),
            to_batch(to_device(pooled, device), canvas.rows),
            options.get("control") or (),
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x and the length of the text: the network's attention takes no mask."""
        return tuple(x.shape[1:]), inputs.text.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and controls."""
        dtype = network.proj_out.bias.dtype
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "timestep": torch.cat([r.timestep for r in rows]),
            "text": torch.cat([r.inputs.text for r in rows]).to(dtype),
            "pooled": torch.cat([r.inputs.pooled for r in rows]).to(dtype),
        }

        def called() -> Sd3Call:
            return self._call(network, given, self.patches(network.pos_embed, given["x"]))

        return given | control_answers(rows, given["x"], called) | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        embed, size, dtype = network.time_text_embed, given["x"].shape[-2:], given["x"].dtype
        patches = self.patches(network.pos_embed, given["x"])
        # The table of positions is read at once: where weights stream, the next layers' take its place.
        image = patches + self.places(network.pos_embed.pos_embed, size)
        call = self._call(network, given, patches)
        # The time reaches the sinusoids in single precision.
        time = embed.timestep_embedder(embed.time_proj(call.timestep).to(dtype)) + call.pooled_embedding
        text = network.context_embedder(call.text)
        passing, shards, of_image = (
            Passing(rows, DOUBLES, given),
            sharding(text.shape[1], image.shape[1]),
            sharding(image.shape[1]).of_attention,
        )
        text, image = shards.shard(text, TEXT_TOKENS), shards.shard(image, IMAGE_TOKENS)
        second = [(block.attn2, of_image) for block in network.transformer_blocks[: self.dual]]
        with attention_over(shards.of_attention, apart=second):
            for number, block in enumerate(network.transformer_blocks):
                call_block = partial(block, hidden_states=image, encoder_hidden_states=text, temb=time)
                text, image = passing.through(number, call_block, text, image)
                for residual in added_after(given, BLOCKS, number):
                    image = image + shards.shard(residual, IMAGE_TOKENS).to(dtype)
        made = shards.gather(network.proj_out(network.norm_out(image, time)), IMAGE_TOKENS)
        return from_tokens(made, *size, channels_last=True)

    def _call(self, network: Any, given: Inputs, patches: Tensor) -> Sd3Call:
        pooled, embed = given["pooled"], network.time_text_embed.text_embedder
        return Sd3Call(given["x"], given["timestep"], given["text"], pooled, patches, embed(pooled))

    def patches(self, embed: Any, x: Tensor) -> Tensor:
        """Return x (R,C,h,w) as embedded tokens (R,n,D), without positions."""
        tokens: Tensor = embed.proj(whole_patches(x)).flatten(2).transpose(1, 2)
        return tokens

    def places(self, table: Tensor, size: Sequence[int]) -> Tensor:
        """Return the centre of the table of positions (1,side²,D) for latents of a size, (1,n,D)."""
        rows, columns = grid(*size)
        top, left = (self.side - rows) // 2, (self.side - columns) // 2
        places = table.view(self.side, self.side, -1)[top : top + rows, left : left + columns]
        return places.reshape(1, rows * columns, -1)


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("transformer_blocks.")
