"""Extracts LoRAs from weights: the difference of two models, approximated at low rank.

Source: Eckart and Young 1936 for the best of a rank; limits, names and dtype are those of ComfyUI 0.33.0's LoraSave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_app.models.families.family import BackboneFamily
from serve_app.models.files.safetensors_file import SafetensorsFile, Written
from serve_app.models.files.saving import Progress, encoder_tensors, members, mixture_of, tensors_of
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from serve_app.values import Extraction

BACKBONE, TEXT = "diffusion_model.", "text_encoders.{}.transformer."
"""What names begin with in the file."""
KEPT = 0.99
"""Quantile to which a layer's numbers are clamped, in magnitude."""


def lora_file(
    catalog: Catalog,
    model: Recipe | None,
    clip: Recipe | None,
    asked: Extraction,
    device: torch.device,
    progress: Progress,
) -> SafetensorsFile:
    """Return the LoRA of a backbone's and text encoders' weights, which are differences made by merging.

    device: for the decompositions. Errors: ModelFileError.
    """
    weights: list[Written] = []
    if model is not None:
        backbone = mixture_of(catalog, model)
        assert isinstance(backbone.family, BackboneFamily)
        weights += tensors_of(backbone, backbone.names, backbone.family.table(), BACKBONE)
    if clip is not None:
        encoders = mixture_of(catalog, clip)
        for member, module in members(encoders):
            weights += encoder_tensors(encoders, member, module, TEXT.format(member.key))
    return SafetensorsFile(list(extracted(weights, asked, device)), {}, progress)


def extracted(weights: Iterable[Written], asked: Extraction, device: torch.device) -> Iterator[Written]:
    """Yield the tensors of a LoRA file for each layer: two matrices, or the whole difference."""
    for weight in weights:
        layer, _, leaf = weight.name.rpartition(".")
        if leaf == "bias" and asked.biases:
            yield _half(f"{layer}.diff_b", weight.shape, weight.make)
        elif leaf == "weight" and (asked.whole or (len(weight.shape) < 2 and asked.biases)):
            yield _half(f"{layer}.diff", weight.shape, weight.make)
        elif leaf == "weight" and len(weight.shape) > 1:
            rank = min(asked.rank, *weight.shape[:2])
            halves = _Halves(weight.make, rank, device)
            outputs, *inputs = weight.shape
            yield _half(f"{layer}.lora_up.weight", (outputs, rank, *(1,) * (len(inputs) - 1)), halves.up)
            yield _half(f"{layer}.lora_down.weight", (rank, *inputs), halves.down)


def _half(name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Written:
    return Written(name, shape, torch.float16, make)


@dataclass(slots=True, eq=False)
class _Halves:
    """The two matrices of one layer, computed together; the second one is cached until fetched."""

    make: Callable[[], Tensor]
    rank: int
    device: torch.device
    _left: tuple[Tensor, Tensor] | None = None

    def up(self) -> Tensor:
        return self._pair()[0]

    def down(self) -> Tensor:
        return self._pair()[1]

    def _pair(self) -> tuple[Tensor, Tensor]:
        pair, self._left = self._left, None
        if pair is None:
            pair = self._left = halves(self.make().to(self.device), self.rank)
        return pair


def halves(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return matrices (O,r) and (r,I…) whose product best approximates a difference (O,I,…), on the CPU.

    A convolution is flattened to (O, I·k·k).
    """
    flat = difference.float().flatten(1)
    left, strengths, right = torch.linalg.svd(flat, full_matrices=False)
    up, down = (left[:, :rank] * strengths[:rank]).cpu(), right[:rank].cpu()
    most = float(np.quantile(torch.cat([up.flatten(), down.flatten()]).numpy(), KEPT))
    return up.clamp(-most, most), down.clamp(-most, most)
