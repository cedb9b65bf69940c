"""Mage-Flow and its edition for edits: Qwen-Image's blocks over single latent cells, with references in planes behind.

Reads the authors' file; run by the layers of diffusers' QwenImageTransformer2DModel. Source: Microsoft 2026, Mage
(github.com/microsoft/Mage); the numbers are ComfyUI's.
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

from serve_app.models.families.dit.qwen_image import AXES, THETA, QwenImageInputs
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    REFERENCE_TOKENS,
    TEXT_TOKENS,
    Passing,
    Transformer,
    angles,
    attended,
    by_heads,
    check_text,
    passed,
    positions,
    stacked,
    there,
)
from serve_app.models.families.shared.fused_blocks import fused
from serve_app.models.families.shared.one_call import present
from serve_app.models.families.shared.references import references_of, references_together, scaled_references
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.ranks.sharding import sharding
from serve_app.models.unequal_texts import JointAttention
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.transfer import to_device

SHIFT = 6.0
CHANNELS = FLUX2.channels
TIMES, LONGEST, FREQUENCIES = 1000.0, 10000.0, 128
"""Of the sinusoids of time: what it is multiplied by, the longest period, and how many there are."""

_MODULES = ("img_in", "txt_in", "txt_norm", "time_text_embed", "transformer_blocks", "norm_out", "proj_out")


@dataclass(frozen=True, slots=True)
class MageFlow(Transformer):
    """A backbone. width: of a token."""

    title = "Mage-Flow"
    kind = "Qwen-Image"
    trained_as = Flow(SHIFT, 1.0)
    latent_format = FLUX2
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    layers: int
    text_width: int

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return tensors.shape("proj_out.weight")[0] == CHANNELS == tensors.shape("img_in.weight")[1]

    @classmethod
    def probe(cls, tensors: Tensors) -> MageFlow:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width = tensors.shape("img_in.weight")[0]
        head = tensors.shape("transformer_blocks.0.attn.norm_q.weight")[0]
        if head % 32 or width % head:
            raise tensors.unsupported(
                f"has a Mage-Flow backbone {width} wide with heads of {head}; supported are multiples of 32"
            )
        return cls(width, width // head, tensors.count("transformer_blocks."), tensors.shape("txt_norm.weight")[0])

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in _MODULES}

    def build(self) -> nn.Module:
        network = QwenImageTransformer2DModel(
            patch_size=1,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=self.layers,
            attention_head_dim=self.width // self.heads,
            num_attention_heads=self.heads,
            joint_attention_dim=self.text_width,
            axes_dims_rope=self.axes,
        )
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
        """Return the text and the references. Errors: NodeError for a text of another family's encoder."""
        check_text(cond, self.text_width, self.title)
        references = scaled_references(options, self.latent_format, canvas.rows, device)
        return QwenImageInputs(to_batch(to_device(cond, device).float(), canvas.rows), references)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the references."""
        return tuple(x.shape[1:]), tuple(reference.shape[1:] for reference in inputs.references)

    def joint_attention(self, x: Tensor, inputs: Any) -> JointAttention:
        length = inputs.text.shape[1]
        images = sum(prod(image.shape[-2:]) for image in (x, *inputs.references))
        return JointAttention(length, length + images, self.width, self.layers)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length, references and LoRAs."""
        dtype, inputs = network.img_in.weight.dtype, [r.inputs for r in rows]
        texts, x = [i.text.to(dtype) for i in inputs], torch.cat([r.x for r in rows])
        images = (x, *inputs[0].references)
        at = torch.cat([_centred(image.shape[-2:], plane) for plane, image in enumerate(images)])
        tensors = {
            "x": x.to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": stacked(texts),
            "there": there(texts),
            "at": to_device(at, x.device),
        }
        return present(tensors) | references_together(inputs, dtype) | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, text = given["x"], network.txt_in(network.txt_norm(given["text"]))
        tokens = [image.flatten(2).transpose(1, 2) for image in (x, *references_of(given))]
        whole, count = torch.cat(tokens, dim=1), tokens[0].shape[1]
        shards = sharding(text.shape[1], count, whole.shape[1] - count)
        image = network.img_in(shards.shard(whole, IMAGE_TOKENS, REFERENCE_TOKENS))
        text = shards.shard(text, TEXT_TOKENS)
        time = network.time_text_embed.timestep_embedder(_sinusoids(given["level"]).to(x.dtype))
        of_images = shards.shard(given["at"], IMAGE_TOKENS, REFERENCE_TOKENS, dim=0)
        words = of_images.new_zeros(text.shape[1], 3)
        shared = {
            "attention_mask": shards.mask(by_heads(attended(given.get("there"), whole.shape[1]))),
            "temb": silu(time),
            "image_rotary_emb": tuple(turns_of(angles(at, self.axes, THETA)) for at in (of_images, words)),
        }
        passing = Passing(rows, DOUBLES, given)
        with attention_over(shards.of_attention):
            for number, block in enumerate(network.transformer_blocks):
                call = partial(block, hidden_states=image, encoder_hidden_states=text, **shared)
                text, image = passing.through(number, call, text, image)
        own = network.proj_out(network.norm_out(image[:, : shards.count(IMAGE_TOKENS)], time))
        made: Tensor = shards.gather(own, IMAGE_TOKENS)
        return made.transpose(1, 2).reshape(x.shape)


def _centred(size: Sequence[int], plane: int) -> Tensor:
    """Return the positions (n,3) of an image's cells, with its centre at 0."""
    height, width = size
    return positions((height, width), plane, height // 2 - height, width // 2 - width, patch=1)


def _sinusoids(level: Tensor) -> Tensor:
    """Return the sinusoids (R,2·FREQUENCIES) of levels (R,), which the authors' half precision rounds."""
    exponents = torch.arange(FREQUENCIES, dtype=torch.float32, device=level.device) / FREQUENCIES
    frequencies = (LONGEST**-exponents).bfloat16().float()
    turned = level.bfloat16().float()[:, None] * frequencies * TIMES
    return torch.cat([turned.cos(), turned.sin()], dim=-1)
