"""Qwen-Image: text to image, editing of up to three images (Edit, 2509, 2511), and layers of an image (Layered).

Files have diffusers' names; run by the layers of diffusers' QwenImageTransformer2DModel. Source: Wu et al. 2025,
arXiv:2508.02324; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.control.control import ActiveControl
from serve_app.models.control.model_control import all_at_work
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    REFERENCE_TOKENS,
    TEXT_TOKENS,
    Passing,
    Transformer,
    added_after,
    angles,
    attended,
    by_heads,
    check_text,
    control_answers,
    from_tokens,
    grid,
    passed,
    positions,
    stacked,
    there,
    to_tokens,
)
from serve_app.models.families.shared.fused_blocks import fused
from serve_app.models.families.shared.one_call import present
from serve_app.models.families.shared.references import (
    INDEX_TIMESTEP_ZERO,
    METHODS,
    check_method,
    reference_positions,
    references_of,
    references_together,
    scaled_references,
)
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.ranks.sharding import sharding
from serve_app.models.unequal_texts import JointAttention
from serve_app.recipe.training import FluxFlow, Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.sampling.transfer import to_device

MU = 1.15
THETA = 10000.0
AXES = (2, 7, 7)
"""Sixteenths of a head rotated by frame, row and column."""

BLOCKS = "blocks"
"""The kind of block that ControlNets and model controls add to."""

NEGATIVE_INDEX = "negative_index"
"""As "index", with the planes of references before the image's instead of behind it."""

_OTHERS = ("controlnet_blocks.", "control_blocks.")
_ZERO = "__index_timestep_zero__"
"""An empty tensor that marks a network whose references have the timestep of no noise."""
_LAYERED = "time_text_embed.addition_t_embedding.weight"
_MODULES = ("img_in", "txt_in", "txt_norm", "time_text_embed", "transformer_blocks", "norm_out", "proj_out")


@dataclass(frozen=True, slots=True, eq=False)
class QwenImageInputs:
    """Conditioning inputs for B rows.

    text: (B,T,D). references: (B,C,F,h,w) each, scaled; method: of their positions. controls: active ControlNets.
    """

    text: Tensor
    references: tuple[Tensor, ...] = ()
    method: str = ""
    controls: tuple[ActiveControl, ...] = ()

    def within(self, area: Area | None) -> QwenImageInputs:
        """Return the inputs for an area of the canvas; references stay whole."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class QwenImageCall:
    """Inputs of one forward for R rows, which its ControlNets read too.

    x: (R,C,F,h,w). level: (R,). text: (R,T,D); there: mask of real tokens, (R,T), None: all. turns: rotary positions of
    the tokens of x and of the text, (n,d/2) each. image, embedded, time: the backbone's embeddings of x, text and
    level, (R,n,W), (R,T,W) and (R,W).
    """

    x: Tensor
    level: Tensor
    text: Tensor
    there: Tensor | None
    turns: tuple[Tensor, Tensor]
    image: Tensor
    embedded: Tensor
    time: Tensor


@dataclass(frozen=True, slots=True)
class QwenImage(Transformer):
    """A backbone. width: of a token; method: default for references' positions.

    layered: it was trained on images with their layers as frames.
    """

    title = "Qwen-Image"
    trained_as = FluxFlow(MU)
    latent_format = WAN
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    layers: int
    text_width: int
    latent_channels: int = 16
    method: str = "index"
    layered: bool = False

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return not any(map(tensors.has, _OTHERS))

    @classmethod
    def probe(cls, tensors: Tensors) -> QwenImage:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, fed = tensors.shape("img_in.weight")
        head = tensors.shape("transformer_blocks.0.attn.norm_q.weight")[0]
        made = tensors.shape("proj_out.weight")[0]
        if head % 32 or width % head or fed != made:
            raise tensors.unsupported(
                f"has a Qwen-Image backbone {width} wide with heads of {head}, fed {fed} numbers a token for {made}; "
                "supported are heads of a multiple of 32, fed as many as they make"
            )
        layered = _LAYERED in tensors.shapes
        return cls(
            width,
            width // head,
            tensors.count("transformer_blocks."),
            tensors.shape("txt_norm.weight")[0],
            made // PATCH**2,
            NEGATIVE_INDEX if layered else INDEX_TIMESTEP_ZERO if _ZERO in tensors.shapes else "index",
            layered,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in (*_MODULES, _ZERO)}

    def build(self) -> nn.Module:
        network = QwenImageTransformer2DModel(
            in_channels=self.latent_channels * PATCH**2,
            out_channels=self.latent_channels,
            num_layers=self.layers,
            attention_head_dim=self.width // self.heads,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            axes_dims_rope=self.axes,
            use_additional_t_cond=self.layered,
        )
        if self.method == INDEX_TIMESTEP_ZERO:
            network.register_parameter(_ZERO, nn.Parameter(torch.empty(0)))
        return fused(network)

    @property
    def sharded_heads(self) -> int:
        return self.heads

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of a head rotated by each coordinate."""
        return tuple(self.width // self.heads // 16 * share for share in AXES)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> QwenImageInputs:
        """Return the text, and the options that the network reads, by ComfyUI's names.

        Errors: NodeError for a conditioning of another family's text encoder, for unsupported references, or for
        ControlNets over images with layers.
        """
        check_text(cond, self.text_width, self.title)
        rows, controls = canvas.rows, options.get("control") or ()
        if controls and canvas.latents.shape[2] > 1:
            raise NodeError(
                f"ControlNets of {self.title} read one image, and the latents have {canvas.latents.shape[2]}"
            )
        references = scaled_references(options, self.latent_format, rows, device)
        allowed = (*METHODS, INDEX_TIMESTEP_ZERO, NEGATIVE_INDEX)
        return QwenImageInputs(
            to_batch(to_device(cond, device).float(), rows),
            references,
            check_method(options.get("reference_latents_method") or self.method, self.title, allowed)
            if references
            else "",
            controls,
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the references, and the method of their positions."""
        return tuple(x.shape[1:]), tuple(reference.shape[1:] for reference in inputs.references), inputs.method

    def joint_attention(self, x: Tensor, inputs: Any) -> JointAttention:
        length = inputs.text.shape[1]
        images = sum(image.shape[2] * prod(grid(*image.shape[-2:])) for image in (x, *inputs.references))
        return JointAttention(length, length + images, self.width, self.layers)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors.

        Rows may differ in level, text and its length, references, controls and LoRAs.
        """
        dtype, inputs, size = network.img_in.weight.dtype, [r.inputs for r in rows], rows[0].x.shape[2:]
        texts, references, device = [i.text.to(dtype) for i in inputs], inputs[0].references, rows[0].x.device
        first, text = float(max(side // 2 for side in grid(size[1], size[2]))), stacked(texts)
        words = torch.arange(first, first + text.shape[1])[:, None].expand(-1, 3)
        placed = self._placed((size[1], size[2]), references, inputs[0].method) if references else []
        tensors = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": text,
            # Attention is faster without a mask, as there is none where all texts are equally long.
            "there": there(texts),
            "at": to_device(torch.cat([_centred(size, positions(size[1:])), *placed]), device),
            "words at": to_device(words, device),
        }
        given = present(tensors) | references_together(inputs, dtype)
        return given | control_answers(rows, given["x"], partial(self._call, network, given)) | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        call = self._call(network, given)
        size, count, dtype = call.x.shape[2:], call.image.shape[1], call.x.dtype
        image, text, time, turns = call.image, call.embedded, call.time, call.turns
        if references := references_of(given):
            turns = self._turns(given["at"]), turns[1]
            image = torch.cat([image, network.img_in(torch.cat([*map(frame_tokens, references)], dim=1))], dim=1)
        controls = all_at_work(rows, call)
        which = None
        if rows[0].inputs.method == INDEX_TIMESTEP_ZERO:
            time = torch.cat([time, self.time(network, torch.zeros_like(call.level), dtype)])
            which = (torch.arange(image.shape[1], device=image.device) >= count).int().expand(len(image), -1)
        passing, mask, time = Passing(rows, DOUBLES, given), by_heads(attended(call.there, image.shape[1])), silu(time)
        shards = sharding(text.shape[1], count, image.shape[1] - count)
        mask, text, image = (
            shards.mask(mask),
            shards.shard(text, TEXT_TOKENS),
            shards.shard(image, IMAGE_TOKENS, REFERENCE_TOKENS),
        )
        turns = (
            shards.shard(turns[0], IMAGE_TOKENS, REFERENCE_TOKENS, dim=0),
            shards.shard(turns[1], TEXT_TOKENS, dim=0),
        )
        which = None if which is None else shards.shard(which, IMAGE_TOKENS, REFERENCE_TOKENS)
        count = shards.count(IMAGE_TOKENS)
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                call_block = partial(
                    block,
                    hidden_states=image,
                    encoder_hidden_states=text,
                    attention_mask=mask,
                    temb=time,
                    image_rotary_emb=turns,
                    modulate_index=which,
                )
                text, image = passing.through(number, call_block, text, image)
                for control in controls:
                    control.after(BLOCKS, number, image)
                for residual in added_after(given, BLOCKS, number):
                    image[:, :count] += shards.shard(residual, IMAGE_TOKENS).to(dtype)
        made = shards.gather(network.proj_out(network.norm_out(image[:, :count], call.time)), IMAGE_TOKENS)
        frames = from_tokens(made.reshape(len(made) * size[0], -1, made.shape[2]), size[1], size[2])
        return frames.view(-1, size[0], *frames.shape[1:]).movedim(1, 2)

    def _call(self, network: Any, given: Inputs) -> QwenImageCall:
        x, text = given["x"], given["text"]
        image, embedded = network.img_in(frame_tokens(x)), network.txt_in(network.txt_norm(text))
        turns = self._turns(given["at"][: image.shape[1]]), self._turns(given["words at"])
        time = self.time(network, given["level"], x.dtype)
        return QwenImageCall(x, given["level"], text, given.get("there"), turns, image, embedded, time)

    def _placed(self, size: tuple[int, int], references: Sequence[Tensor], method: str) -> list[Tensor]:
        """Return the positions of each reference's tokens."""
        if method == NEGATIVE_INDEX:
            placed = reference_positions(size, references, "index", apart=-1.0)
        else:
            # There is no diagonal: references that another family places along it are placed side by side here.
            placed = reference_positions(size, references, "offset" if method == "uxo" else method)
        return [_centred(reference.shape[2:], at) for reference, at in zip(references, placed, strict=True)]

    def _turns(self, at: Tensor) -> Tensor:
        """Return the rotary positions of tokens at (n,3)."""
        return turns_of(angles(at, self.axes, THETA))

    def time(self, network: Any, level: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the modulation input (R,width) of levels (R,)."""
        embed = network.time_text_embed
        # Time reaches the sinusoids in single precision, as in ComfyUI.
        time: Tensor = embed.timestep_embedder(embed.time_proj(level).to(dtype))
        return time + embed.addition_t_embedding.weight[0] if self.layered else time


def frame_tokens(latents: Tensor) -> Tensor:
    """Return latents (B,C,F,h,w) as tokens (B,F·n,4C), frame by frame."""
    batch, _, frames = latents.shape[:3]
    tokens = to_tokens(latents.movedim(2, 1).flatten(0, 1))
    return tokens.view(batch, frames * tokens.shape[1], -1)


def _centred(size: Sequence[int], at: Tensor) -> Tensor:
    """Return the positions (F·n,3) of an image's tokens, from those (n,3) that begin at 0, with its centre at 0.

    size: (F,h,w). Of several frames, each has a plane of its own from 0 on, whatever the image's.
    """
    frames, height, width = size
    rows, columns = grid(height, width)
    centred = (at - at.new_tensor([0, rows // 2, columns // 2])).repeat(frames, 1)
    if frames > 1:
        centred[:, 0] = torch.arange(frames).repeat_interleave(len(at))
    return centred
