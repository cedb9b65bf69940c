"""Qwen-Image 2.1: text, reference images and the image to make as one sequence with causal attention.

What precedes the image has the timestep of no noise, so it is the same at each step. Files have ComfyUI's names or
diffusers'; run by the layers of diffusers' QwenImage21Transformer2DModel. Source: Qwen team 2026, Qwen-Image 2.1; the
numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Transformer2DModel
from torch import Tensor, nn

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import Transformer, angles, check_text, thirds
from serve_app.models.families.shared.references import references_of, references_together, scaled_references
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import QWEN_IMAGE_21
from serve_app.sampling.transfer import to_device

MU = 0.69
THETA = 10000.0
AXES = (2, 7, 7)
"""Sixteenths of a head rotated by position in the sequence, row and column."""
TIME_WIDTH = 256
TIMES = 1000.0

_OTHERS = ("control_blocks.",)
_MODULES = ("img_in", "txt_in", "time_text_embed", "modulation", "transformer_blocks", "norm_out", "proj_out")


@dataclass(frozen=True, slots=True, eq=False)
class QwenImage21Inputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). references: (B,C,h,w) each, scaled; slots: the text token that each precedes.
    """

    text: Tensor
    references: tuple[Tensor, ...] = ()
    slots: tuple[int, ...] = ()

    def within(self, area: Area | None) -> QwenImage21Inputs:
        """Return the inputs for an area of the canvas; references stay whole."""
        return self


@dataclass(frozen=True, slots=True)
class QwenImage21(Transformer):
    """A backbone. width: of a token; ratio: of the hidden layers' width."""

    title = "Qwen-Image 2.1"
    trained_as = FluxFlow(MU)
    latent_format = QWEN_IMAGE_21
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    layers: int
    text_width: int
    ratio: int = 3
    latent_channels: int = 64

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return not any(map(tensors.has, _OTHERS))

    @classmethod
    def probe(cls, tensors: Tensors) -> QwenImage21:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, channels = tensors.shape("img_in.weight")
        head = tensors.shape("transformer_blocks.0.attn.norm_q.weight")[0]
        hidden = tensors.shape("transformer_blocks.0.img_mlp.out.weight")[1]
        if head % 32 or width % head or hidden % width:
            raise tensors.unsupported(
                f"has a Qwen-Image 2.1 backbone {width} wide with heads of {head} and {hidden} inside; supported are "
                "heads of a multiple of 32, and a multiple of the width inside"
            )
        return cls(
            width,
            width // head,
            tensors.count("transformer_blocks."),
            tensors.shape("txt_in.in_layer.weight")[1],
            hidden // width,
            channels,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in _MODULES}
        for number in range(self.layers):
            block = f"transformer_blocks.{number}.img_mlp"
            table[f"{block}.gate_up"] = thirds(self.ratio * self.width, f"{block}.gate_layer", f"{block}.proj")
        return table

    def build(self) -> nn.Module:
        network = QwenImage21Transformer2DModel(
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            num_layers=self.layers,
            attention_head_dim=self.width // self.heads,
            num_attention_heads=self.heads,
            context_in_dim=self.text_width,
            mlp_ratio=self.ratio,
            axes_dims_rope=self.axes,
        )
        # Both contain tables that are in no file; `forward` computes what it needs.
        network.time_text_embed.time_proj = Timesteps(TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        network.pos_embed = nn.Identity()
        built: nn.Module = network
        return built

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of a head rotated by each coordinate."""
        return tuple(self.width // self.heads // 16 * share for share in AXES)

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
    ) -> QwenImage21Inputs:
        """Return the text and the references: ComfyUI's options. References without a slot follow the text.

        Errors: NodeError for a conditioning of another family's text encoder, or for references of another's latents.
        """
        check_text(cond, self.text_width, self.title)
        rows, length = canvas.rows, cond.shape[1]
        references = scaled_references(options, self.latent_format, rows, device)
        slots = [min(slot, length) for slot in options.get("image_slots") or ()] + [length] * len(references)
        return QwenImage21Inputs(
            to_batch(to_device(cond, device).float(), rows),
            references,
            tuple(slots[: len(references)]),
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x, the text and the references, and their slots: they determine the sequence."""
        shapes = tuple(reference.shape[1:] for reference in inputs.references)
        return tuple(x.shape[1:]), inputs.text.shape[1], shapes, inputs.slots

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text, references and LoRAs."""
        dtype, inputs = network.img_in.weight.dtype, [r.inputs for r in rows]
        given = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": torch.cat([i.text for i in inputs]).to(dtype),
            "at": to_device(torch.cat([run.at for run in _runs_of(rows)]), rows[0].x.device),
        }
        return given | references_together(inputs, dtype)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, runs = given["x"], _runs_of(rows)
        images, text = [*references_of(given), x], network.txt_in(given["text"])
        tokens = [
            text[:, run.first : run.first + run.length]
            if run.image is None
            else network.img_in(images[run.image].flatten(2).transpose(1, 2))
            for run in runs
        ]
        sequence, before = torch.cat(tokens, dim=1), runs[-1].start
        turned = angles(given["at"], self.axes, THETA).float()
        turns = torch.polar(torch.ones_like(turned), turned)
        time = self._time(network, given["level"], x.dtype)
        modulation = network.modulation(time)
        sampled = torch.arange(sequence.shape[1], device=x.device) >= before
        shards = sharding(before, sequence.shape[1] - before)
        # On one device, an attention for each run, without a mask but for texts; over ranks, one with a mask.
        options: dict[str, Any] = (
            {"segments": [(run.start, run.start + run.length, run.image is None) for run in runs[:-1]]}
            if shards.of_attention is None
            else {"attention_mask": shards.mask(_seen(runs, x.device))}
        )
        sequence, turns, sampled = shards.shard(sequence), shards.shard(turns, dim=0), shards.shard(sampled, dim=0)
        with attention_over(shards.of_attention):
            for block in network.transformer_blocks:
                sequence = block(sequence, modulation, turns, target_token_mask=sampled, **options)
        output = network.proj_out(network.norm_out(sequence[:, shards.count(0) :], time[:-1]))
        latents: Tensor = shards.gather(output, 1).transpose(1, 2).reshape(x.shape)
        return latents

    def _time(self, network: Any, level: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the modulation inputs (R+1,width) of levels (R,); the last is for no noise.

        Levels are rounded to the network's dtype, as in ComfyUI and in training.
        """
        embed, levels = network.time_text_embed, torch.cat([level, level.new_zeros(1)])
        rounded = ((levels * TIMES).to(dtype) / TIMES).to(dtype).float()
        time: Tensor = embed.timestep_embedder(embed.time_proj(rounded * TIMES).to(dtype))
        return time


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive tokens of one kind. start, length: in the sequence; at: their positions (length,3).

    image: its index, None for text from token `first` on.
    """

    start: int
    length: int
    at: Tensor
    image: int | None = None
    first: int = 0


def _runs_of(rows: Sequence[Rows]) -> list[_Run]:
    """Return the runs of rows' sequences, which are alike."""
    x, inputs = rows[0].x, rows[0].inputs
    sizes = [(image.shape[-2], image.shape[-1]) for image in (*inputs.references, x)]
    return sequence_runs(inputs.text.shape[1], inputs.slots, sizes)


def _seen(runs: Sequence[_Run], device: torch.device) -> Tensor:
    """Return which tokens (1,1,L,L) each token of a sequence attends to: those before it, and all of its image."""
    ends = torch.cat(
        [
            torch.arange(run.start + 1, run.start + run.length + 1, device=device)
            if run.image is None
            else torch.full((run.length,), run.start + run.length, device=device)
            for run in runs
        ]
    )
    return (torch.arange(len(ends), device=device) < ends[:, None])[None, None]


def sequence_runs(text: int, slots: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[_Run]:
    """Return the runs of a sequence: text tokens, an image before each slot's token, and the new image at the end.

    An image advances the text's position by the number of tokens of its longer side.
    """
    runs: list[_Run] = []
    start = place = first = 0
    for number, (end, size) in enumerate(zip([*slots, text], sizes, strict=True)):
        if end > first:
            count = torch.arange(float(place), place + end - first)
            runs.append(_Run(start, end - first, count[:, None].expand(-1, 3), first=first))
            start, place, first = start + end - first, place + end - first, end
        runs.append(_Run(start, size[0] * size[1], _centred(place, size, sizes[-1]), number))
        start, place = start + size[0] * size[1], place + max(size)
    return runs


def _centred(place: int, size: tuple[int, int], made: tuple[int, int]) -> Tensor:
    """Return the positions (h·w,3) of an image's tokens, centred on the image to make, of size `made`.

    If one has an odd side and the other an even one, the centres meet between two tokens.
    """
    rows, columns = (
        torch.arange(float(side)) - (side - side // 2) + (side % 2 - other % 2) / 2
        for side, other in zip(size, made, strict=True)
    )
    at = torch.empty(*size, 3)
    at[..., 0], at[..., 1], at[..., 2] = place, rows[:, None], columns
    return at.view(-1, 3)
