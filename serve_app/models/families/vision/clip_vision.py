"""Image encoders: CLIP's ViT-L, ViT-H and ViT-bigG, and SigLIP so400m, distinguished as in ComfyUI.

Run by the layers of transformers' CLIPVisionModel and SiglipVisionModel. Sources: Radford et al. 2021,
arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from serve_app.models.families.family import Located, VisionFamily, marked
from serve_app.models.families.text.clip import open_clip_layer
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VISION_PREFIXES
from serve_app.values import ClipVisionOutput

HEADS = 16
"""Number of attention heads of all published encoders."""
LEAST_LAYERS = 23
"""ViT-L has 24; ComfyUI knows none with fewer."""
STYLE_LAYERS = (-20, -11)
"""The layers whose states style models read, counted from the end."""
EPS = 1e-5

_QUICK_LAYERS = 30
"""CLIP's encoders with at most this many layers are OpenAI's, whose activation is an approximation."""
_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_SIZES = {(27, 14): 384}
"""Image sizes that are not a whole number of patches, by patches along a side and pixels of one."""

_OPEN_CLIP_MARK = "transformer.resblocks.0.attn.in_proj_weight"
_MARK = "vision_model.embeddings.patch_embedding.weight"
_MODULES = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")


@dataclass(frozen=True, slots=True)
class ClipVision(VisionFamily):
    """An image encoder. side: patches along a side of the image; patch: pixels along a side of one.

    projection: width of an image's embedding, 0 without one. siglip: it is SigLIP's.
    """

    title = "CLIP's ViT-L, ViT-H and ViT-bigG and SigLIP so400m"

    layers: int
    width: int
    hidden_width: int
    side: int
    patch: int
    projection: int = 0
    siglip: bool = False

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if (found := marked(files[0], VISION_PREFIXES, (_OPEN_CLIP_MARK, _MARK))) is not None:
            prefix, tensors = found
            family = cls.probe(tensors)
            table = family.table(tensors)
            # A file may also have a text encoder, or a head that is unused here.
            own = {name: shape for name, shape in tensors.shapes.items() if places(name, table)}
            yield Located(family, Tensors(own, tensors.where), prefix=prefix)

    @classmethod
    def probe(cls, tensors: Tensors) -> ClipVision:
        """Read the network's size off its tensors, named as by transformers or by OpenCLIP.

        Errors: ModelFileError for an unsupported variant.
        """
        if _by_open_clip(tensors):
            layers, hidden = "transformer.resblocks.", "mlp.c_fc.weight"
            kernel, positions, classes = "conv1.weight", "positional_embedding", "class_embedding"
            projection, projected = "proj", 1
        else:
            layers, hidden = "vision_model.encoder.layers.", "mlp.fc1.weight"
            kernel, positions, classes = (
                f"vision_model.embeddings.{name}"
                for name in ("patch_embedding.weight", "position_embedding.weight", "class_embedding")
            )
            projection, projected = "visual_projection.weight", 0
        shape = tensors.shape(kernel)
        if len(shape) != 4:
            raise tensors.unsupported("has an image encoder for images of any size, as SigLIP 2 NaFlex is")
        siglip, (places_, width) = classes not in tensors.shapes, tensors.shape(positions)
        patches, depth = places_ if siglip else places_ - 1, tensors.count(layers)
        if depth < LEAST_LAYERS or width % HEADS or isqrt(patches) ** 2 != patches:
            raise tensors.unsupported(
                f"has an image encoder of {depth} layers, {width} wide, for {patches} patches; "
                f"supported are {cls.title}"
            )
        return cls(
            depth,
            width,
            tensors.shape(f"{layers}0.{hidden}")[0],
            isqrt(patches),
            shape[-1],
            tensors.shapes[projection][projected] if projection in tensors.shapes else 0,
            siglip,
        )

    @property
    def image_size(self) -> int:
        return _SIZES.get((self.side, self.patch), self.side * self.patch)

    @property
    def mean(self) -> Sequence[float]:
        return _HALF if self.siglip else _MEAN

    @property
    def spread(self) -> Sequence[float]:
        return _HALF if self.siglip else _SPREAD

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_open_clip(tensors):
            return dict(_open_clip(self))
        names = {f"vision_model.{name}": name for name in _MODULES}
        return names | {"visual_projection": "visual_projection"} if self.projection else names

    def build(self) -> nn.Module:
        sizes = {
            "hidden_size": self.width,
            "intermediate_size": self.hidden_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "image_size": self.image_size,
            "patch_size": self.patch,
            # SigLIP was trained with a smaller epsilon; ComfyUI uses this one for all.
            "layer_norm_eps": EPS,
        }
        if self.siglip:
            config: Any = SiglipVisionConfig(**sizes, hidden_act="gelu_pytorch_tanh", vision_use_head=False)
            model: nn.Module = SiglipVisionModel(config)
        else:
            quick = self.layers <= _QUICK_LAYERS
            model = CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_act="quick_gelu" if quick else "gelu"))
        # Releases of transformers differ in whether the network is inside `vision_model`.
        network: nn.Module = getattr(model, "vision_model", model)
        if self.projection:
            network.visual_projection = nn.Linear(self.width, self.projection, bias=False)
        return network

    def see(self, network: Any, pixels: Tensor) -> ClipVisionOutput:
        embeddings = network.embeddings
        x = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if not self.siglip:
            x = torch.cat([embeddings.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + embeddings.position_embedding.weight
        if not self.siglip:
            x = network.pre_layrnorm(x)
        *first, last = network.encoder.layers
        styles = []
        for number, layer in enumerate(first):
            x = layer(x, None)
            if self.siglip and number - self.layers in STYLE_LAYERS:
                styles.append(x)
        before, x = x, last(x, None)
        if self.siglip:
            x = network.post_layernorm(x)
            return ClipVisionOutput(x, before, x, torch.stack(styles, dim=1))
        whole = network.post_layernorm(x[:, 0])
        return ClipVisionOutput(x, before, network.visual_projection(whole) if self.projection else whole)


def _by_open_clip(tensors: Tensors) -> bool:
    return _OPEN_CLIP_MARK in tensors.shapes


def _open_clip(known: ClipVision) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
    yield "class_embedding", (Place("embeddings.class_embedding"),)
    yield "conv1", "embeddings.patch_embedding"
    yield "positional_embedding", (Place("embeddings.position_embedding.weight"),)
    yield "ln_pre", "pre_layrnorm"
    yield "ln_post", "post_layernorm"
    # OpenCLIP's matrix is (width, projection), transformers' the other way round.
    yield "proj", (Place("visual_projection.weight", transposed=True),)
    for layer in range(known.layers):
        yield from open_clip_layer(f"transformer.resblocks.{layer}", f"encoder.layers.{layer}", known.width)
