"""SAM 3.1 as a family: it comes as a MODEL with a text encoder, and segments images and videos instead of sampling.

The published file has the names of its authors, ComfyUI's the same. Sources: Carion et al. 2025, arXiv:2511.16719;
github.com/facebookresearch/sam3 for names of the detector.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import BackboneFamily, Located, Rows
from serve_app.models.families.sam3.detector import Detector, Sizes
from serve_app.models.families.sam3.segmenting import detected, text_tokens, tracked
from serve_app.models.families.sam3.tracker import Tracker, TrackerSizes
from serve_app.models.families.sam3.vision import Vision
from serve_app.models.families.shared.dit import check_text
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas, Inputs
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.values import Detection, Search, Tracking

SEEING = "detector.backbone.vision_backbone"
_TRUNK = f"{SEEING}.trunk"
_DETECTOR, _TRACKER = "detector.", ("tracker.model", "tracker")
_PYRAMID = {
    "dconv_2x2_0": "scale_layers.0",
    "dconv_2x2_1": "scale_layers.2",
    "dconv_2x2": "scale_layers.0",
    "conv_1x1": "proj1",
    "conv_3x3": "proj2",
}
_FEED = {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}
_NORMS = {f"norm{n}": f"layer_norm{n}" for n in (1, 2, 3)}
_DECODER_NORMS = {
    "norm1": "vision_cross_attn_layer_norm",
    "norm2": "self_attn_layer_norm",
    "catext_norm": "text_cross_attn_layer_norm",
    "norm3": "mlp_layer_norm",
}
_DECODERS = ("sam_mask_decoder", "interactive_sam_mask_decoder")
_TWO_WAYS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
_HIDDEN = {"mlp.lin1": "mlp.proj_in", "mlp.lin2": "mlp.proj_out", "mlp.0": "mlp.proj_in", "mlp.2": "mlp.proj_out"}


@dataclass(frozen=True, slots=True)
class Sam31(BackboneFamily):
    """A network. width, inside, layers: of the image encoder. detecting, following: sizes of the other parts."""

    title = "SAM 3.1"
    trained_as = Flow(1.0)
    latent_format = LatentFormat(channels=3)
    searches = (Detection, Tracking)

    width: int
    inside: int
    layers: int
    detecting: Sizes
    following: TrackerSizes

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for one in super(Sam31, cls).find(files):
            assert isinstance(one.family, Sam31)
            names, table = _names(one.family), one.family.table(one.tensors)
            # Heads that segment all of a kind at once or read points, and rotations, are unused here as in ComfyUI.
            used = {
                name: shape
                for name, shape in one.tensors.shapes.items()
                if any(place.name in names for place in places(name, table))
            }
            yield one._replace(tensors=Tensors(used, one.tensors.where))

    @classmethod
    def probe(cls, tensors: Tensors) -> Sam31:
        width = tensors.shape(f"{_TRUNK}.ln_pre.weight")[0]
        inner, text = tensors.shape("detector.backbone.language_backbone.resizer.weight")
        transformer = "detector.transformer"
        tracker = next(prefix for prefix in _TRACKER if tensors.has(f"{prefix}.sam_mask_decoder."))
        masks = f"{tracker}.maskmem_backbone.mask_downsampler.encoder."
        steps: list[int] = []
        while len(shape := tensors.shape(f"{masks}{3 * len(steps)}.weight")) == 4 and shape[-1] == 3:
            steps.append(shape[0])
        drawing = f"{tracker}.sam_mask_decoder.transformer.layers.0.mlp"
        first = next(name for name in ("lin1", "0") if f"{drawing}.{name}.weight" in tensors.shapes)
        return cls(
            width,
            tensors.shape(f"{_TRUNK}.blocks.0.mlp.fc1.weight")[0],
            tensors.count(f"{_TRUNK}.blocks."),
            Sizes(
                inner,
                text,
                tensors.shape(f"{transformer}.encoder.layers.0.linear1.weight")[0],
                tensors.shape("detector.dot_prod_scoring.prompt_mlp.layers.0.weight")[0],
                tensors.count(f"{transformer}.encoder.layers."),
                tensors.count(f"{transformer}.decoder.layers."),
                tensors.count("detector.geometry_encoder.encode."),
                tensors.shape(f"{transformer}.decoder.query_embed.weight")[0],
            ),
            TrackerSizes(
                inner,
                tensors.shape(f"{tracker}.transformer.encoder.layers.0.linear1.weight")[0],
                tensors.shape(f"{drawing}.{first}.weight")[0],
                tensors.count(f"{tracker}.transformer.encoder.layers."),
                tuple(steps),
                tensors.count(f"{tracker}.maskmem_backbone.fuser.layers."),
            ),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(self._table())

    def _table(self) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
        yield SEEING, "vision"
        yield f"{_TRUNK}.patch_embed.proj", "vision.trunk.patch_embed"
        for number in range(self.layers):
            theirs, ours = f"{_TRUNK}.blocks.{number}.attn", f"vision.trunk.blocks.{number}.attn"
            yield from _apart(f"{theirs}.qkv.", ours, self.width)
            yield f"{theirs}.proj", f"{ours}.o_proj"
        for pyramid in ("convs", "propagation_convs", "interactive_convs"):
            for number in range(3):
                for name, inside in _PYRAMID.items():
                    yield f"{SEEING}.{pyramid}.{number}.{name}", f"vision.{pyramid}.{number}.{inside}"
        yield "detector.backbone.language_backbone.resizer", "detector.resizer"
        for part in ("geometry_encoder", "segmentation_head", "dot_prod_scoring"):
            yield f"detector.{part}", f"detector.{part}"
        yield "detector.segmentation_head.mask_predictor.mask_embed", "detector.segmentation_head.mask_embed"
        yield "detector.transformer.decoder", "detector.decoder"
        width = self.detecting.width
        yield from _attention(
            "detector.segmentation_head.cross_attend_prompt", "detector.segmentation_head.cross_attend_prompt", width
        )
        for stack, into, count in (
            ("transformer.encoder.layers", "encoder", self.detecting.encoders),
            ("geometry_encoder.encode", "geometry_encoder.encode", self.detecting.geometries),
        ):
            for number in range(count):
                theirs, ours = f"detector.{stack}.{number}", f"detector.{into}.{number}"
                yield from _attention(f"{theirs}.self_attn", f"{ours}.self_attn", width)
                yield from _attention(f"{theirs}.cross_attn_image", f"{ours}.cross_attn", width)
                for name, inside in (_FEED | _NORMS).items():
                    yield f"{theirs}.{name}", f"{ours}.{inside}"
        for number in range(self.detecting.decoders):
            theirs, ours = f"detector.transformer.decoder.layers.{number}", f"detector.decoder.layers.{number}"
            for name, inside in (
                ("self_attn", "self_attn"),
                ("cross_attn", "vision_cross_attn"),
                ("ca_text", "text_cross_attn"),
            ):
                yield from _attention(f"{theirs}.{name}", f"{ours}.{inside}", width)
            for name, inside in (_FEED | _DECODER_NORMS).items():
                yield f"{theirs}.{name}", f"{ours}.{inside}"
        for prefix in _TRACKER:
            yield from self._of_tracker(prefix)

    def _of_tracker(self, prefix: str) -> Iterator[tuple[str, str]]:
        yield prefix, "tracker"
        yield f"{prefix}.transformer.encoder", "tracker.transformer"
        for decoder in _DECODERS:
            theirs, ours = f"{prefix}.{decoder}.transformer", f"tracker.{decoder}.transformer"
            for name in ("norm_final_attn", "norm_final"):
                yield f"{theirs}.{name}", f"{ours}.layer_norm_final_attn"
            yield f"{theirs}.final_attn_token_to_image.out_proj", f"{ours}.final_attn_token_to_image.o_proj"
            for number in range(2):
                layer = f"layers.{number}"
                for name in _TWO_WAYS:
                    yield f"{theirs}.{layer}.{name}.out_proj", f"{ours}.{layer}.{name}.o_proj"
                for n in (1, 2, 3, 4):
                    yield f"{theirs}.{layer}.norm{n}", f"{ours}.{layer}.layer_norm{n}"
                for name, inside in _HIDDEN.items():
                    yield f"{theirs}.{layer}.{name}", f"{ours}.{layer}.{inside}"

    def build(self) -> nn.Module:
        network = nn.Module()
        network.vision = Vision(self.width, self.inside, self.layers, self.detecting.width)
        network.detector = Detector(self.detecting)
        network.tracker = Tracker(self.following)
        return network

    def check_search(self, request: Search) -> None:
        super(Sam31, self).check_search(request)
        assert isinstance(request, Detection | Tracking)
        for tokens in text_tokens(request.conditioning):
            check_text(tokens, self.detecting.text, self.title)

    def searched(self, network: Any, request: Detection | Tracking) -> Generator[tuple[int, int], None, Any]:
        return detected(network, request) if isinstance(request, Detection) else tracked(network, request)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Inputs:
        raise NodeError(f"{self.title} samples nothing; SAM3_Detect and SAM3_VideoTrack segment with it")

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        raise AssertionError("no inputs are made for it")


@lru_cache(maxsize=4)
def _names(family: Sam31) -> frozenset[str]:
    """Return the names of a network's tensors, kept as every look at a file asks for them."""
    return frozenset(family.empty().state_dict())


def _apart(file: str, network: str, width: int) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Yield the names of fused projections of queries, keys and values, file + weight and bias, and their places."""
    for kind in ("weight", "bias"):
        yield (
            file + kind,
            tuple(
                Place(f"{network}.{part}_proj.{kind}", rows=(i * width, (i + 1) * width))
                for i, part in enumerate("qkv")
            ),
        )


def _attention(file: str, network: str, width: int) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
    yield file, network
    yield f"{file}.out_proj", f"{network}.o_proj"
    yield from _apart(f"{file}.in_proj_", network, width)
