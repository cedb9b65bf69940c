"""Z-Image, turbo and base: one stream of tokens in which text and image attend to each other.

Reads the single file's names or diffusers'; run by the layers of diffusers' ZImageTransformer2DModel. Source: Z-Image
Team 2025, arXiv:2511.22699; the numbers are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from diffusers.models.transformers.transformer_z_image import TimestepEmbedder, ZImageTransformer2DModel
from torch import Tensor, nn

from serve_app.models.families.shared.dit import PATCH, WHOLE_EPS, grid, thirds
from serve_app.models.families.shared.fused_blocks import fused
from serve_app.models.families.shared.one_stream import OneStream, padded_length
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.unequal_texts import JointAttention
from serve_app.recipe.training import Flow

SHIFT = 3.0
MULTIPLE = 32
"""Text and image are each padded to a multiple of this many tokens, with a learnt one."""
THETA = 256.0
AXES = (2, 3, 3)
"""Eighths of a head rotated by the text's token, by row and by column."""
TIME_WIDTH = 256
TIMES = 1000.0
"""Scale of time in the network."""

SIZES = f"{PATCH}-1"
"""diffusers' key of the patch layers, which it can have for several patch sizes."""

_EMBEDDER, _LAST = f"all_x_embedder.{SIZES}", f"all_final_layer.{SIZES}"
_OTHERS = {"siglip_embedder.": "the omni edition", "dec_net.": "the edition in pixels"}
_ATTENTION = {"out": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k"}
_REST = ("cap_embedder", "t_embedder", "x_pad_token", "cap_pad_token", "layers", "noise_refiner", "context_refiner")


@dataclass(frozen=True, slots=True)
class ZImage(OneStream):
    """A backbone. width: of a token in the network; text_width: of a row of text; time_width: inside time's layers."""

    title = "Z-Image"
    trained_as = Flow(SHIFT, 1.0)
    theta = THETA
    multiple = MULTIPLE

    width: int
    heads: int
    layers: int
    refiners: int
    text_width: int
    latent_channels: int = 16
    time_width: int = 1024

    @classmethod
    def probe(cls, tensors: Tensors) -> ZImage:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        for mark, edition in _OTHERS.items():
            if tensors.has(mark):
                raise tensors.unsupported(f"is {edition} of Z-Image, which is not supported")
        theirs = _by_diffusers(tensors)
        width, text_width = tensors.shape("cap_embedder.1.weight")
        head = tensors.shape(f"layers.0.attention.{'norm_q' if theirs else 'q_norm'}.weight")[0]
        inside = tensors.shape("layers.0.feed_forward.w1.weight")[0]
        if head % 16 or width % head or inside != int(width / 3 * 8):
            raise tensors.unsupported(
                f"has a Z-Image backbone {width} wide with heads of {head} and {inside} inside; supported are heads of "
                f"a multiple of 16 and {int(width / 3 * 8)} inside"
            )
        return cls(
            width,
            width // head,
            tensors.count("layers."),
            tensors.count("noise_refiner."),
            text_width,
            tensors.shape(f"{_EMBEDDER if theirs else 'x_embedder'}.weight")[1] // PATCH**2,
            tensors.shape("t_embedder.mlp.0.weight")[0],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in (_EMBEDDER, _LAST, *_REST)}
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in _REST}
        table |= {"x_embedder": _EMBEDDER, "final_layer": _LAST}
        for stack, count in (
            ("layers", self.layers),
            ("noise_refiner", self.refiners),
            ("context_refiner", self.refiners),
        ):
            for layer in range(count):
                table |= attention_names(f"{stack}.{layer}.attention", self.width)
        return table

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of a head rotated by each coordinate."""
        return tuple(self.width // self.heads // 8 * share for share in AXES)

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def build(self) -> nn.Module:
        network = ZImageTransformer2DModel(
            in_channels=self.latent_channels,
            dim=self.width,
            n_layers=self.layers,
            n_refiner_layers=self.refiners,
            n_heads=self.heads,
            n_kv_heads=self.heads,
            cap_feat_dim=self.text_width,
            rope_theta=THETA,
            axes_dims=list(self.axes),
        )
        network.t_embedder = TimestepEmbedder(min(self.width, TIME_WIDTH), mid_size=self.time_width)
        for name, module in network.named_modules():
            if name.endswith(("norm_q", "norm_k")):
                module.eps = WHOLE_EPS
        return fused(network)

    def time(self, network: Any, time: Tensor) -> Tensor:
        embed = network.t_embedder
        made: Tensor = embed.mlp(
            TimestepEmbedder.timestep_embedding(time * TIMES, TIME_WIDTH).to(network.x_pad_token.dtype)
        )
        return made

    def joint_attention(self, x: Tensor, inputs: Any) -> JointAttention:
        # Images are padded to a multiple too, so one of another size may need no mask.
        of_text, of_image = (
            padded_length(count, self.multiple) for count in (inputs.text.shape[1], prod(grid(*x.shape[-2:])))
        )
        return JointAttention((of_text, of_image), of_text + of_image, self.width, self.layers)

    def turns(self, turned: Tensor) -> Tensor:
        return turns_of(turned)

    def embedded_image(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.all_x_embedder[SIZES], network.x_pad_token

    def embedded_text(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.cap_embedder, network.cap_pad_token

    def last(self, network: Any, tokens: Tensor, time: Tensor) -> Tensor:
        made: Tensor = network.all_final_layer[SIZES](tokens, c=time)
        return made


def attention_names(attention: str, width: int) -> dict[str, str | tuple[Place, ...]]:
    """Yield the mapping of an attention's tensors, which has the same name on both sides."""
    names: dict[str, str | tuple[Place, ...]] = {
        f"{attention}.{theirs}": f"{attention}.{ours}" for theirs, ours in _ATTENTION.items()
    }
    return names | {f"{attention}.qkv": thirds(width, *(f"{attention}.to_{kind}" for kind in "qkv"))}


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("layers.0.attention.to_q.")
