"""Plans a job on a card that need not be there, from the headers of model files: what fits, what streams, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from serve_app.errors import ModelFileError
from serve_app.models.families import Sd, Wan
from serve_app.models.families.family import BackboneFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.forward_cost import META, ForwardCost, forward_cost
from serve_app.models.kernels.packing import weights_of
from serve_app.models.weights.loading import Loader
from serve_app.models.weights.memory_plan import ACTIVATIONS_MARGIN, JobPlan, PartSize, Room, plan_job
from serve_app.models.weights.recipes import WeightFiles
from serve_app.models.weights.roofline import CARDS, GIB, Card, forward_s
from serve_app.models.weights.streaming import streamed_blocks
from serve_app.recipe.recipe import Part, Recipe
from serve_app.sampling.latents.latents import LatentFormat

TEXT_TOKENS = 512
"""How long texts are taken to be."""
STEP = 64
"""Sides of images that would fit are multiples of this, in pixels."""
PARTS: tuple[Part, ...] = ("backbone", "clip", "vae")


@dataclass(frozen=True, slots=True)
class Size:
    """The size of what is drawn. width, height: in pixels; frames: images of a video, 1 for an image."""

    width: int
    height: int
    frames: int = 1

    def __str__(self) -> str:
        return f"{self.width}×{self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")

    def latents(self, latent_format: LatentFormat) -> Tensor:
        """Return the latents of one row, without numbers."""
        sides = self.height // latent_format.factor, self.width // latent_format.factor
        time = ((self.frames - 1) // latent_format.frames + 1,) if latent_format.frames else ()
        return torch.empty(1, latent_format.channels, *time, *sides, device=META)

    def smaller(self, share: float) -> Size | None:
        """Return the largest size of a share of its cells: a video of fewer frames, a smaller image; None: no size."""
        if self.frames > 1:
            frames = int(share * self.frames) // 4 * 4 - 3
            return Size(self.width, self.height, frames) if frames > 1 else None
        width, height = (int(side * sqrt(share)) // STEP * STEP for side in (self.width, self.height))
        return Size(width, height) if min(width, height) >= STEP else None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A backbone and what it is used with, without numbers. network: on the meta device, in its dtypes."""

    family: BackboneFamily
    network: nn.Module
    backbone: PartSize
    text: PartSize
    vae_bytes: int = 0

    def cost(self, size: Size) -> ForwardCost:
        """Return the cost of a forward of one row. Errors: NodeError for a size that the model cannot make."""
        cond, options = self.family.blank_text(TEXT_TOKENS)
        return forward_cost(self.family, self.network, size.latents(self.family.latent_format), cond, options)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What becomes of a job. row_s: of a forward of one row; 0 where it has no room. change: what would make it fit."""

    job: JobPlan
    row_s: float
    change: str = ""


def estimate(
    model: Model, size: Size, cost: ForwardCost, card: Card, card_bytes: int, process_bytes: int, max_cells: int
) -> Estimate:
    """Return what becomes of a job on a card.

    cost: of a forward of that size. card: whose speed is assumed. process_bytes, max_cells: as `Room.of`. Errors:
    ConfigError for a card that is too small for any model.
    """
    room = Room.of(card_bytes, process_bytes, max_cells)
    needed = int(ACTIVATIONS_MARGIN * cost.peak_bytes)

    def job_in(room: Room) -> JobPlan:
        return plan_job(room, model.backbone, model.text, model.vae_bytes, needed)

    job = job_in(room)
    if job.outcome != "too large":
        return Estimate(job, forward_s(cost, job.backbone, card))
    rooms = ((one.gib, Room.of(one.gib * GIB, process_bytes, max_cells)) for one in CARDS)
    gib = next((gib for gib, larger in rooms if job_in(larger).outcome != job.outcome), None)
    smaller = size.smaller(room.largest_activations / needed)
    changes = [str(smaller)] if smaller is not None else []
    changes += [f"a card of {gib} GB"] if gib is not None else []
    return Estimate(job, 0.0, " or ".join(changes))


def part_size(*networks: nn.Module) -> PartSize:
    """Return the size of networks that are one part, without numbers."""
    whole = nn.ModuleList(networks)
    nbytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in weights_of(whole.modules()))
    return PartSize(nbytes, cache(lambda room: sum(block.nbytes for block in streamed_blocks(whole, None, room))))


def model_of(paths: Sequence[Path]) -> Model:
    """Return the model in files: one backbone, with the text encoders and VAEs beside it.

    Reads headers alone. Errors: ModelFileError for a file that holds none of these, or for no or several backbones.
    """
    # Of a device that is no CPU, dtypes are a card's.
    loader = Loader(META, "auto", "auto")
    found: dict[Part, list[tuple[Recipe, WeightFiles]]] = {part: [] for part in PARTS}
    for path in paths:
        parts = [part for part in PARTS if _holds(path, part)]
        if not parts:
            raise ModelFileError(f"'{path.name}' holds no diffusion network, text encoder or VAE of a known layout")
        for part in parts:
            found[part].append((Recipe(part, "", path.name), WeightFiles((path,), path)))
    if len(found["backbone"]) != 1:
        names = ", ".join(recipe.name for recipe, _ in found["backbone"]) or "none"
        raise ModelFileError(f"a job has one diffusion network, and these files have {names}")
    [(recipe, files)] = found["backbone"]
    family, network = loader.outline(recipe, files)
    assert isinstance(family, BackboneFamily)
    texts = (loader.outline(*text)[1] for text in found["clip"])
    return Model(
        family, network, part_size(network), part_size(*texts), sum(loader.nbytes(*vae) for vae in found["vae"])
    )


def usual_size(family: BackboneFamily) -> Size:
    """Return the size that a family is mostly asked for."""
    match family:
        case Wan():
            return Size(832, 480, 81)
        case Sd():
            return Size(512, 512)
    return Size(1024, 1024)


def _holds(path: Path, part: Part) -> bool:
    try:
        Checkpoint(path).find(part)
    except ModelFileError:
        return False
    return True
