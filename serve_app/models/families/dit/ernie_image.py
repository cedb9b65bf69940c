"""ERNIE-Image: one stream of image and text, whose blocks share one modulation.

Reads the authors' file, with diffusers' names; run by the layers of diffusers' ErnieImageTransformer2DModel. Source:
Baidu 2026, ERNIE-Image; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_ernie_image import ErnieImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import DOUBLES, Passing, Transformer, angles, check_text, passed, positions
from serve_app.models.families.shared.one_stream import TextInputs
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.transfer import to_device

SHIFT = 3.0
AXES = (32, 48, 48)
"""Numbers of a head rotated by plane, row and column."""
HEAD = sum(AXES)
THETA = 256.0

_MODULES = (*("x_embedder", "text_proj", "time_embedding", "adaLN_modulation", "layers", "final_norm", "final_linear"),)


@dataclass(frozen=True, slots=True)
class ErnieImage(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers."""

    title = "ERNIE-Image"
    trained_as = Flow(SHIFT)
    latent_format = FLUX2
    dtypes = (torch.bfloat16,)

    width: int
    layers: int
    inside: int
    text_width: int
    latent_channels: int = 128

    @classmethod
    def probe(cls, tensors: Tensors) -> ErnieImage:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, channels, *patch = tensors.shape("x_embedder.proj.weight")
        head = tensors.shape("layers.0.self_attention.norm_q.weight")[0]
        if head != HEAD or width % HEAD or patch != [1, 1]:
            raise tensors.unsupported(
                f"has an ERNIE-Image backbone {width} wide with heads of {head} and patches {patch}; supported are "
                f"heads of {HEAD} and patches of one latent cell"
            )
        return cls(
            width,
            tensors.count("layers."),
            tensors.shape("layers.0.mlp.gate_proj.weight")[0],
            tensors.shapes.get("text_proj.weight", (width, width))[1],
            channels,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in _MODULES}

    def build(self) -> nn.Module:
        network: nn.Module = ErnieImageTransformer2DModel(
            hidden_size=self.width,
            num_attention_heads=self.width // HEAD,
            num_layers=self.layers,
            ffn_hidden_size=self.inside,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            text_in_dim=self.text_width,
            rope_axes_dim=AXES,
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
    ) -> TextInputs:
        check_text(cond, self.text_width, self.title)
        return TextInputs(to_batch(to_device(cond, device).float(), canvas.rows))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shapes of x and the text: the image lies in the plane after the text's last token."""
        return tuple(x.shape[1:]), inputs.text.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and LoRAs."""
        dtype, text = network.final_linear.weight.dtype, torch.cat([r.inputs.text for r in rows])
        of_text = pad(torch.arange(float(text.shape[1]))[:, None], (0, 2))
        at = torch.cat([positions(rows[0].x.shape[-2:], text.shape[1], patch=1), of_text])
        return {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": text.to(dtype),
            "at": to_device(at, text.device),
            **passed(rows),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, text = given["x"], given["text"]
        words = text if network.text_proj is None else network.text_proj(text)
        image, passing = network.x_embedder(x), Passing(rows, DOUBLES, given)
        shards = sharding(image.shape[1], words.shape[1])
        stream = shards.shard(torch.cat([image, words], dim=1))
        turned = angles(shards.shard(given["at"], dim=0), AXES, THETA).float().repeat_interleave(2, dim=-1)
        turns = turned[None, :, None]
        time = network.time_embedding(network.time_proj(given["level"]).to(x.dtype))
        modulation = network.adaLN_modulation(time)[None].chunk(6, dim=-1)
        with attention_over(shards.of_attention):
            for number, layer in enumerate(network.layers):

                def call(layer: Any = layer, stream: Tensor = stream) -> Tensor:
                    made: Tensor = layer(stream.transpose(0, 1), turns, modulation).transpose(0, 1)
                    return made

                (stream,) = passing.through(number, call, stream)
        made = network.final_linear(network.final_norm(stream[:, : shards.count(0)].transpose(0, 1), time))
        output: Tensor = shards.gather(made.transpose(0, 1), 0).transpose(1, 2).reshape(x.shape)
        return output
