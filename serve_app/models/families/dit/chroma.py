"""Chroma: Flux.1's blocks without pooled text, with modulations from one small network for all blocks.

Reads the authors' single file or diffusers'; run by the layers of diffusers' ChromaTransformer2DModel. Source:
lodestones 2025, Chroma1; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from torch import Tensor, nn

from serve_app.models.families.dit import flux_names
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    SINGLES,
    TEXT_TOKENS,
    Passing,
    Transformer,
    attended,
    by_heads,
    check_text,
    from_tokens,
    passed,
    positions,
    stacked,
    there,
    to_tokens,
)
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

MU = 1.15
AXES = (2, 7, 7)
"""Sixteenths of a head rotated by plane, row and column."""
TIMES = 1000.0
MODULATIONS = 344
"""Number of vectors of the modulation network: for single blocks, double blocks and, last, the output."""
SINGLE, DOUBLE, LAST = 3, 6, 2
"""How many of them a single block takes, each stream of a double block, and the output."""

_OTHERS = ("nerf_blocks.",)
APPROXIMATOR = "distilled_guidance_layer"
_MODULES = (
    *("x_embedder", "context_embedder", "transformer_blocks", "single_transformer_blocks", "proj_out"),
    APPROXIMATOR,
)


@dataclass(frozen=True, slots=True, eq=False)
class ChromaInputs:
    """Conditioning inputs for B rows. text: (B,T,D); guidance: (B,)."""

    text: Tensor
    guidance: Tensor

    def within(self, area: Area | None) -> ChromaInputs:
        return self


@dataclass(frozen=True, slots=True)
class Chroma(Transformer):
    """A backbone. width: of a token; doubles, singles: number of blocks of each kind.

    embedding_width: of the modulation network's input; inside, layers: its size.
    """

    title = "Chroma"
    trained_as = FluxFlow(MU)
    latent_format = FLUX
    text_prefixes = {"t5xxl": "cond_stage_model.t5xxl.transformer."}  # noqa: RUF012
    vae_prefix = "first_stage_model."
    dtypes = (torch.bfloat16, torch.float16)

    width: int
    heads: int
    doubles: int
    singles: int
    text_width: int
    embedding_width: int = 64
    inside: int = 5120
    layers: int = 5
    latent_channels: int = 16

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return not any(map(tensors.has, _OTHERS))

    @classmethod
    def probe(cls, tensors: Tensors) -> Chroma:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        theirs = _by_diffusers(tensors)
        first, text = ("x_embedder", "context_embedder") if theirs else ("img_in", "txt_in")
        ours = "transformer_blocks.", "single_transformer_blocks."
        doubles, singles = ours if theirs else ("double_blocks.", "single_blocks.")
        norm = "single_transformer_blocks.0.attn.norm_k" if theirs else "double_blocks.0.img_attn.norm.key_norm"
        width, fed = tensors.shape(f"{first}.weight")
        leaf = "scale" if f"{norm}.scale" in tensors.shapes else "weight"
        head = tensors.shape(f"{norm}.{leaf}")[0]
        if head % 32 or width % head:
            raise tensors.unsupported(f"has a Chroma backbone {width} wide with heads of {head}, no multiple of 32")
        inside, outside = tensors.shape(f"{APPROXIMATOR}.in_proj.weight")
        return cls(
            width,
            width // head,
            tensors.count(doubles),
            tensors.count(singles),
            tensors.shape(f"{text}.weight")[1],
            outside,
            inside,
            tensors.count(f"{APPROXIMATOR}.layers."),
            fed // PATCH**2,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in _MODULES}
        table = dict(flux_names.ends())
        for number in range(self.doubles):
            table |= flux_names.double_block(number, self.width)
        for number in range(self.singles):
            table |= flux_names.single_block(number, self.width, 4 * self.width)
        table |= {f"{APPROXIMATOR}.{name}": f"{APPROXIMATOR}.{name}" for name in ("in_proj", "out_proj")}
        for layer in range(self.layers):
            here = f"{APPROXIMATOR}.layers.{layer}"
            table |= {f"{here}.{theirs}": f"{here}.{ours}" for theirs, ours in flux_names.TWO_LAYERS.items()}
            norm = f"{APPROXIMATOR}.norms.{layer}"
            table |= {f"{norm}.{leaf}": f"{norm}.weight" for leaf in flux_names.NORM_LEAVES}
        return table

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def build(self) -> nn.Module:
        head = self.width // self.heads
        network = ChromaTransformer2DModel(
            in_channels=self.latent_channels * PATCH**2,
            num_layers=self.doubles,
            num_single_layers=self.singles,
            attention_head_dim=head,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            axes_dims_rope=tuple(head // 16 * share for share in AXES),
            approximator_num_channels=self.embedding_width,
            approximator_hidden_dim=self.inside,
            approximator_layers=self.layers,
        )
        # It contains only a table, which `forward` computes in single precision.
        network.time_text_embed = nn.Identity()
        built: nn.Module = network
        return built

    def lora_names(self, parameters: Sequence[str]) -> Table:
        return flux_names.lora_names(parameters, self.table(), self.singles)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> ChromaInputs:
        """Return the text and the guidance, 0 where a conditioning has none."""
        check_text(cond, self.text_width, self.title)
        text = to_batch(to_device(cond, device).float(), canvas.rows)
        return ChromaInputs(text, torch.full((canvas.rows,), float(options.get("guidance") or 0.0), device=device))

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length."""
        dtype, size = network.x_embedder.bias.dtype, rows[0].x.shape[-2:]
        texts = [r.inputs.text.to(dtype) for r in rows]
        text = stacked(texts)
        at = self.places(text.shape[1], size)
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "guidance": torch.cat([r.inputs.guidance for r in rows]),
            "text": text,
            "at": to_device(at, text.device),
            "there": attended(there(texts), len(at) - text.shape[1]),
        }
        return given | passed(rows)

    def places(self, text: int, size: Sequence[int]) -> Tensor:
        """Return the positions (n,3) of a text's tokens and an image's of a size (h,w)."""
        return torch.cat([torch.zeros(text, 3), positions(size)])

    def embedded(self, network: Any, x: Tensor) -> Tensor:
        """Return the tokens (R,n,W) of an image (R,C,h,w)."""
        tokens: Tensor = network.x_embedder(to_tokens(x))
        return tokens

    def ended(self, network: Any, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Return what is made of each of an image's tokens (R,n,W) by itself. modulation: of the output, (R,LAST,W)."""
        output: Tensor = network.proj_out(network.norm_out(tokens, modulation))
        return output

    def made(self, network: Any, tokens: Tensor, given: Inputs) -> Tensor:
        """Return the output (R,C,h,w) of all tokens after `ended`. given: the call's inputs."""
        return from_tokens(tokens, *given["x"].shape[-2:])

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = given["x"]
        numbers = self._modulations(given["level"], given["guidance"], x.dtype)
        modulation = network.distilled_guidance_layer(numbers.to(x.dtype))
        text, image = network.context_embedder(given["text"]), self.embedded(network, x)
        shards, (cos, sin) = sharding(text.shape[1], image.shape[1]), network.pos_embed(given["at"])
        known = shards.mask(by_heads(given.get("there")))
        shared = {
            "image_rotary_emb": (shards.shard(cos, dim=0), shards.shard(sin, dim=0)),
            "attention_mask": None if known is None else known[:, 0, 0],
        }
        text, image = shards.shard(text, TEXT_TOKENS), shards.shard(image, IMAGE_TOKENS)
        doubles, singles = (Passing(rows, kind, given) for kind in (DOUBLES, SINGLES))
        of_image = SINGLE * self.singles
        of_text = of_image + DOUBLE * self.doubles
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                starts = (start + DOUBLE * number for start in (of_image, of_text))
                own = torch.cat([modulation[:, start : start + DOUBLE] for start in starts], dim=1)
                call_block = partial(block, hidden_states=image, encoder_hidden_states=text, temb=own, **shared)
                text, image = doubles.through(number, call_block, text, image)
            both = torch.cat([text, image], dim=1)
            for number, block in enumerate(network.single_transformer_blocks):
                own = modulation[:, SINGLE * number : SINGLE * (number + 1)]
                [both] = singles.through(number, partial(block, hidden_states=both, temb=own, **shared), both)
        output = self.ended(network, both[:, text.shape[1] :], modulation[:, -LAST:])
        return self.made(network, shards.gather(output, IMAGE_TOKENS), given)

    def _modulations(self, level: Tensor, guidance: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the modulation network's input for each vector, (R,MODULATIONS,embedding_width).

        That is time, guidance and the vector's index, as sinusoids.
        """
        # Time reaches the sinusoids in single precision, guidance rounded, as in ComfyUI.
        row = torch.cat([_sines(numbers, self.embedding_width // 4) for numbers in (level, guidance.to(dtype))], dim=1)
        number = _sines(torch.arange(MODULATIONS, device=row.device), self.embedding_width // 2)
        return torch.cat([row[:, None].expand(-1, MODULATIONS, -1), number[None].expand(len(row), -1, -1)], dim=2)


def _sines(numbers: Tensor, width: int) -> Tensor:
    made: Tensor = get_timestep_embedding(numbers * TIMES, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    return made


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("single_transformer_blocks.")
