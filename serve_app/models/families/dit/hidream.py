"""HiDream-I1 and E1: double-stream then single-stream blocks, with mixture-of-experts layers.

Each block reads another layer of Llama's states. Files have diffusers' names; run by the layers of diffusers'
HiDreamImageTransformer2DModel. Source: Cai et al. 2025, arXiv:2505.22705; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_hidream_image import (
    HiDreamImageFeedForwardSwiGLU,
    HiDreamImageTransformer2DModel,
)
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    PATCH,
    Transformer,
    check_text,
    from_tokens,
    pooled_text,
    positions,
    to_tokens,
)
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

HEAD = 128
"""Width of every head."""
AXES = (64, 32, 32)
"""Numbers of a head rotated by plane, row and column."""
ACTIVE = 2
"""Experts for each token."""
TIMES = 1000.0
STATES = "conditioning_llama3"
"""The option of a conditioning with Llama's states, by ComfyUI's name."""

_MODULES = (
    *("t_embedder", "p_embedder", "x_embedder", "double_stream_blocks", "single_stream_blocks"),
    *("final_layer", "caption_projection"),
)


@dataclass(frozen=True, slots=True, eq=False)
class HiDreamInputs:
    """Conditioning inputs for B rows.

    text: T5's states (B,T,D); states: Llama's (B,L,S,D), of every layer; pooled: (B,P). reference: an image to edit,
    (B,C,h,w), scaled, placed to the right of x; or None.
    """

    text: Tensor
    states: Tensor
    pooled: Tensor
    reference: Tensor | None = None

    def within(self, area: Area | None) -> HiDreamInputs:
        """Return the inputs for an area of the canvas."""
        if area is None or self.reference is None:
            return self
        return replace(self, reference=crop(self.reference, area))


@dataclass(frozen=True, slots=True)
class HiDream(Transformer):
    """A backbone. width: of a token; doubles, singles: number of blocks of each kind.

    text_width, states_width, pooled_width: of T5's, Llama's and both CLIPs' outputs. experts: number in a block.

    A forward synchronises with the device (see `Experts`), so it is neither padded nor recorded.
    """

    title = "HiDream"
    dispatches = False
    padded = False
    steady = ()
    trained_as = Flow(1.0, TIMES)
    latent_format = FLUX
    dtypes = (torch.bfloat16,)

    width: int
    doubles: int
    singles: int
    text_width: int
    states_width: int
    pooled_width: int
    experts: int = 4
    latent_channels: int = 16

    @classmethod
    def probe(cls, tensors: Tensors) -> HiDream:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, columns = tensors.shape("x_embedder.proj.weight")
        doubles, singles = (tensors.count(f"{kind}_stream_blocks.") for kind in ("double", "single"))
        if width % HEAD or tensors.count("caption_projection.") != doubles + singles + 1:
            raise tensors.unsupported(
                f"has a HiDream backbone {width} wide with {tensors.count('caption_projection.')} text projections for "
                f"{doubles + singles} blocks; supported are multiples of {HEAD} wide, with one for each block and "
                "one more"
            )
        return cls(
            width,
            doubles,
            singles,
            tensors.shape(f"caption_projection.{doubles + singles}.linear.weight")[1],
            tensors.shape("caption_projection.0.linear.weight")[1],
            tensors.shape("p_embedder.pooled_embedder.linear_1.weight")[1],
            tensors.count("double_stream_blocks.0.block.ff_i.experts."),
            columns // PATCH**2,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in _MODULES}

    def build(self) -> nn.Module:
        network = HiDreamImageTransformer2DModel(
            patch_size=PATCH,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            num_layers=self.doubles,
            num_single_layers=self.singles,
            attention_head_dim=HEAD,
            num_attention_heads=self.width // HEAD,
            caption_channels=[self.text_width, self.states_width],
            text_emb_dim=self.pooled_width,
            num_routed_experts=0,
            axes_dims_rope=AXES,
            llama_layers=[],
        )
        for stacked in (network.double_stream_blocks, network.single_stream_blocks):
            for layer in stacked:
                layer.block.ff_i = Experts(self.width, self.experts)
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
    ) -> HiDreamInputs:
        """Return the texts, and the image to edit if there is one: ComfyUI's options, by its names.

        Errors: NodeError for a conditioning of another family's text encoders, or an image of another height.
        """
        check_text(cond, self.text_width, self.title)
        states: Tensor | None = options.get(STATES)
        if states is None:
            raise NodeError(f"the conditioning has no states of Llama's, which {self.title} reads")
        check_text(states, self.states_width, self.title)
        rows, reference = canvas.rows, options.get("concat_latent_image")
        if reference is not None:
            self.latent_format.check(reference.shape)
            if reference.shape[-2] != canvas.latents.shape[-2]:
                raise NodeError(
                    f"the image to edit is {reference.shape[-2]} latent cells high, and the latents to sample "
                    f"{canvas.latents.shape[-2]}"
                )
            reference = to_batch(self.latent_format.to_model(to_device(reference, device).float()), rows)
        pooled = pooled_text(options, self.pooled_width, self.title)
        return HiDreamInputs(
            to_batch(to_device(cond, device).float(), rows),
            to_batch(to_device(states, device).float(), rows),
            to_batch(to_device(pooled, device), rows),
            reference,
        )

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        states = torch.empty(1, self.doubles + self.singles, tokens, self.states_width, device="meta")
        return super(HiDream, self).blank_text(tokens)[0], {STATES: states}

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x, the reference and the texts: the attention takes no mask."""
        reference = None if inputs.reference is None else inputs.reference.shape[1:]
        return tuple(x.shape[1:]), reference, inputs.text.shape[1], tuple(inputs.states.shape[1:3])

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the cells of x and the reference."""
        reference = 0 if inputs.reference is None else inputs.reference[:, 0].numel()
        return super(HiDream, self).cells(x, inputs) + reference

    def variant(self, rows: Sequence[Rows]) -> Hashable | None:
        return None

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, texts and LoRAs."""
        dtype, inputs = network.x_embedder.proj.bias.dtype, [r.inputs for r in rows]
        references = [i.reference for i in inputs if i.reference is not None]
        return {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "reference": torch.cat(references).to(dtype) if references else None,
            "level": torch.cat([r.timestep for r in rows]),
            "pooled": torch.cat([i.pooled for i in inputs]).to(dtype),
            "text": torch.cat([i.text for i in inputs]).to(dtype),
            "states": torch.cat([i.states for i in inputs]).to(dtype),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, width = given["x"], given["x"].shape[-1]
        if "reference" in given:
            x = torch.cat([x, given["reference"]], dim=-1)
        image = network.x_embedder(to_tokens(x, channels_last=True))
        # Time reaches the sinusoids in single precision, as in ComfyUI.
        time = network.t_embedder(given["level"], x.dtype) + network.p_embedder(given["pooled"])
        *projected, of_t5 = self._projected(network, given)
        text = torch.cat([of_t5, projected[-1]], dim=1)
        shards = sharding(image.shape[1], text.shape[1], projected[0].shape[1])
        image, text = shards.shard(image, 0), shards.shard(text, 1)
        states, (count, kept) = [shards.shard(state, 2) for state in projected], (image.shape[1], text.shape[1])
        at = torch.cat([positions(x.shape[-2:]), torch.zeros(sum(shards.lengths[1:]), 3)])
        turns = network.pe_embedder(shards.shard(to_device(at, image.device), dim=0)[None])
        with attention_over(shards.of_attention):
            for block, state in zip(network.double_stream_blocks, states, strict=False):
                image, text = block(image, None, torch.cat([text, state], dim=1), time, turns)
                text = text[:, :kept]
            both = torch.cat([image, text], dim=1)
            for block, state in zip(network.single_stream_blocks, states[self.doubles :], strict=True):
                both = block(torch.cat([both, state], dim=1), None, None, time, turns)[:, : count + kept]
        made = shards.gather(network.final_layer(both[:, :count], time), 0)
        return -from_tokens(made, *x.shape[-2:], channels_last=True)[..., :width]

    def _projected(self, network: Any, given: Inputs) -> list[Tensor]:
        """Return each block's text states (R,S,width), the last of Llama's where it has too few, then T5's."""
        states = given["states"]
        last = states.shape[1] - 1
        *of_blocks, of_t5 = network.caption_projection
        projected: list[Tensor] = [project(states[:, min(number, last)]) for number, project in enumerate(of_blocks)]
        projected.append(of_t5(given["text"]))
        return projected


class Experts(nn.Module):
    """Mixture-of-experts layers: a few experts for each token, and one shared. Rows stay along dim 0, as LoRAs require.

    The gate decides on the device how many tokens an expert gets, which sets the sizes of its products: the host
    synchronises once for each expert and block. A CUDA graph has fixed sizes. Sizes that always suffice, all tokens,
    would make experts do `count` / ACTIVE times the work; smaller ones would drop tokens. Grouped products, whose sizes
    the device reads itself, support neither eight-bit layers, nor streamed ones, nor LoRAs by row.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.shared_experts = HiDreamImageFeedForwardSwiGLU(width, 2 * width)
        self.experts = nn.ModuleList(HiDreamImageFeedForwardSwiGLU(width, 4 * width) for _ in range(count))
        self.gate = nn.Linear(width, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the experts' output for tokens (R,n,D)."""
        shares, chosen = self.gate(x).softmax(dim=-1).topk(ACTIVE, dim=-1)
        made: Tensor = self.shared_experts(x)
        for number, expert in enumerate(self.experts):
            share = torch.where(chosen == number, shares, 0).sum(dim=-1)
            taken = share > 0
            # Without numbers, as a forward's cost is counted, any token may be this expert's. An expert of none
            # computes one for nothing: ranks with other tokens gather its sharded weights here.
            most = x.shape[1] if x.is_meta else max(1, int(taken.sum(dim=1).max()))
            # Each row's tokens for this expert come first; padding of shorter rows is ignored.
            index = taken.int().argsort(dim=1, descending=True, stable=True)[:, :most, None]
            answer = expert(x.gather(1, index.expand(-1, -1, x.shape[-1])))
            answer = answer * share[..., None].gather(1, index)
            made = made.scatter_add(1, index.expand_as(answer), answer.to(made.dtype))
        return made
