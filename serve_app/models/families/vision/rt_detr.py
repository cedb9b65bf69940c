"""RT-DETR v4: objects of known kinds in images, by the network of D-FINE.

HGNetV2 encodes an image on three scales, an encoder mixes them, and a decoder refines the boxes of the 300 likeliest
places. Convolutions, encoder and the decoder's layers are transformers'; here its published file's batch norms are part
of convolutions, and its small networks have another activation. Sources: Peng et al. 2024, arXiv:2410.13842; Liao et
al. 2025, arXiv:2510.25257.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.models.families.family import BackboneFamily, Located, Rows
from serve_app.models.families.vision.rt_detr_layers import Sizes, Stage, built, found_in
from serve_app.models.files.layout import Table, places
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas, Inputs
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import ObjectSearch

AT_ONCE = 32
"""Images of one forward."""
SCALES = 3
KINDS = 80
"""Of objects: COCO's, by whose names boxes are labelled."""
HEADS = 8
_LAYER = {
    "self_attn": "self_attn",
    "self_attn.out_proj": "self_attn.o_proj",
    "norm1": "self_attn_layer_norm",
    "linear1": "mlp.layers.0",
    "linear2": "mlp.layers.1",
}
_CSP = {"cv1": "conv1", "cv2.0": "csp_rep1", "cv2.1": "conv2", "cv3.0": "csp_rep2", "cv3.1": "conv3", "cv4": "conv4"}


@dataclass(frozen=True, slots=True)
class RtDetr4(BackboneFamily):
    """A network. sizes: of its parts."""

    title = "RT-DETR v4"
    dtypes = (torch.float32,)
    trained_as = Flow(1.0)
    latent_format = LatentFormat(channels=3)
    searches = (ObjectSearch,)
    image_size: ClassVar[int] = 640
    """The sides of what it looks at, into which an image is squeezed."""
    queries: ClassVar[int] = 300

    sizes: Sizes

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for one in super(RtDetr4, cls).find(files):
            table = one.family.table()
            # Anchors, and what is only counted in training, are not read.
            own = {n: s for n, s in one.tensors.shapes.items() if places(n, table) and not n.endswith("_tracked")}
            yield one._replace(tensors=Tensors(own, one.tensors.where))

    @classmethod
    def probe(cls, tensors: Tensors) -> RtDetr4:
        """Read the network's size off its tensors. Errors: ModelFileError for another edition."""
        stages = tuple(_stage(tensors, f"backbone.stages.{n}") for n in range(tensors.count("backbone.stages.")))
        width = tensors.shape("decoder.enc_output.proj.weight")[0]
        mixing = tensors.shape("encoder.input_proj.0.conv.weight")[0]
        if len(stages) != SCALES + 1 or width % HEADS or mixing % HEADS:
            raise tensors.unsupported(
                f"holds an RT-DETR v4 of {len(stages)} stages, {mixing} and {width} wide; supported are {SCALES + 1}, "
                f"and multiples of {HEADS}"
            )
        if (kinds := tensors.shape("decoder.enc_score_head.weight")[0]) != KINDS:
            raise tensors.unsupported(f"holds an RT-DETR v4 that finds {kinds} kinds of objects; supported are {KINDS}")
        return cls(
            Sizes(
                tensors.shape("backbone.stem.stem1.conv.weight")[0],
                tensors.shape("backbone.stem.stem4.conv.weight")[0],
                stages,
                mixing,
                width,
                tensors.shape("encoder.encoder.0.layers.0.linear1.weight")[0],
                tensors.count("encoder.fpn_blocks.0.cv2.0.bottlenecks."),
                tensors.shape("encoder.fpn_blocks.0.cv2.1.conv.weight")[0],
                tensors.count("decoder.decoder.layers."),
                tensors.shape("decoder.decoder.layers.0.linear1.weight")[0],
                kinds,
            )
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(self._table())

    def _table(self) -> Iterator[tuple[str, str]]:
        for name in ("stem1", "stem2a", "stem2b", "stem3", "stem4"):
            yield from _normed(f"backbone.stem.{name}", f"backbone.embedder.{name}")
        for number, stage in enumerate(self.sizes.stages):
            theirs, ours = f"backbone.stages.{number}", f"backbone.encoder.stages.{number}"
            yield from _normed(f"{theirs}.downsample", f"{ours}.downsample")
            for block in range(stage.blocks):
                for name in ("aggregation.0", "aggregation.1"):
                    yield from _normed(f"{theirs}.blocks.{block}.{name}", f"{ours}.blocks.{block}.{name}")
                for layer in range(stage.layers):
                    inside = f"blocks.{block}.layers.{layer}"
                    for part in (".conv1", ".conv2") if stage.light else ("",):
                        yield from _normed(f"{theirs}.{inside}{part}", f"{ours}.{inside}{part}")
        for scale in range(SCALES):
            yield f"encoder.input_proj.{scale}.conv", f"projections.{scale}"
            yield f"decoder.input_proj.{scale}.conv", f"narrowed.{scale}"
        for name, inside in {**_LAYER, "norm2": "final_layer_norm"}.items():
            yield f"encoder.encoder.0.layers.0.{name}", f"encoder.aifi.0.layers.0.{inside}"
        for scale in range(SCALES - 1):
            yield f"encoder.lateral_convs.{scale}", f"encoder.lateral_convs.{scale}"
            for number in (1, 2):
                yield (
                    f"encoder.downsample_convs.{scale}.0.cv{number}",
                    f"encoder.downsample_convs.{scale}.conv{number}",
                )
            for blocks in ("fpn_blocks", "pan_blocks"):
                for name, inside in _CSP.items():
                    yield f"encoder.{blocks}.{scale}.{name}", f"encoder.{blocks}.{scale}.{inside}"
        for name in ("query_pos_head", "enc_score_head", "enc_bbox_head", "pre_bbox_head"):
            yield f"decoder.{name}", name
        for name, inside in {"enc_output.proj": "enc_output.0", "enc_output.norm": "enc_output.1"}.items():
            yield f"decoder.{name}", inside
        for number in range(self.sizes.decoders):
            theirs, ours = f"decoder.decoder.layers.{number}", f"layers.{number}"
            for name, inside in {**_LAYER, "norm3": "final_layer_norm", "gateway": "gateway"}.items():
                yield f"{theirs}.{name}", f"{ours}.{inside}"
            for name in ("sampling_offsets", "attention_weights"):
                yield f"{theirs}.cross_attn.{name}", f"{ours}.encoder_attn.{name}"
            yield f"decoder.decoder.lqe_layers.{number}", f"qualities.{number}"
            for name, inside in {"dec_score_head": "scores", "dec_bbox_head": "corners"}.items():
                yield f"decoder.{name}.{number}", f"{inside}.{number}"

    def build(self) -> nn.Module:
        return built(self.sizes, HEADS)

    def searched(
        self, network: Any, request: ObjectSearch
    ) -> Generator[tuple[int, int], None, list[tuple[Tensor, Tensor, Tensor]]]:
        """Yield the progress, and return labels (N,), boxes (N,4) and scores (N,) of each image, the surest first."""
        parameter = next(network.parameters())
        made = []
        for first in range(0, len(request.images), AT_ONCE):
            images = to_device(request.images[first : first + AT_ONCE, ..., :3].float(), parameter.device)
            side = (self.image_size, self.image_size)
            pixels = interpolate(images.movedim(-1, 1), size=side, mode="bilinear")
            parts = found_in(network, pixels.to(parameter.dtype), self.queries, self.sizes.kinds)
            labels, boxes, scores = (to_host(part) for part in parts)
            yield min(first + AT_ONCE, len(request.images)), len(request.images)
            made += list(zip(labels, boxes.float(), scores.float(), strict=True))
        return made

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Inputs:
        raise NodeError(f"{self.title} samples nothing; RTDETR_detect finds objects with it")

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        raise AssertionError("no inputs are made for it")


def _stage(tensors: Tensors, name: str) -> Stage:
    blocks, layers = tensors.count(f"{name}.blocks."), tensors.count(f"{name}.blocks.0.layers.")
    first = f"{name}.blocks.0.layers.0"
    light = tensors.has(f"{first}.conv1.")
    reads = tensors.shape(f"{first}.conv1.conv.weight" if light else f"{first}.conv.weight")[1]
    inside, _, kernel, _ = tensors.shape(f"{first}.conv2.conv.weight" if light else f"{first}.conv.weight")
    writes = tensors.shape(f"{name}.blocks.0.aggregation.1.conv.weight")[0]
    return Stage(reads, inside, writes, blocks, layers, kernel, light, halves=tensors.has(f"{name}.downsample."))


def _normed(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.conv", f"{ours}.convolution"
    yield f"{theirs}.bn", f"{ours}.normalization"
