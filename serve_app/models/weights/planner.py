"""Plans a job on a card that need not be there, from the headers of model files: what fits, what streams, how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import prod, sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from serve_app.errors import ModelFileError
from serve_app.models.families import AceStep15, HunyuanVideo, MiniMaxMusic3, Sd, SeedVr2, StableAudio3, Wan, YuE2
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.unet.svd import Svd
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.forward_cost import META, ForwardCost, forward_cost
from serve_app.models.kernels.packing import weights_of
from serve_app.models.weights.loading import Loader
from serve_app.models.weights.memory_plan import ACTIVATIONS_MARGIN, JobPlan, PartSize, Room, plan_job
from serve_app.models.weights.recipes import WeightFiles
from serve_app.models.weights.roofline import CARDS, GIB, Card, forward_s
from serve_app.models.weights.streaming import streamed_blocks
from serve_app.nested_tensor import Samples
from serve_app.recipe.recipe import Part, Recipe
from serve_app.sampling.latents.latents import LatentFormat

TEXT_TOKENS = 512
"""How long texts are taken to be."""
STEP = 64
"""Sides of images that would fit are multiples of this, in pixels."""
_VIDEO = 5
"""How many axes the latents of videos have."""
SIXTEEN_BITS = 2
"""Bytes of a number of a LoRA."""
PARTS: tuple[Part, ...] = ("backbone", "clip", "vae")


@dataclass(frozen=True, slots=True)
class Size:
    """The size of what is made. width, height: in pixels; frames: images of a video, 1 for an image.

    samples: of a sound alone, which has no other size; 0 for what is drawn.
    """

    width: int
    height: int
    frames: int = 1
    samples: int = 0

    def __str__(self) -> str:
        if self.samples:
            return f"a sound of {self.samples:,} samples"
        return f"{self.width}×{self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")

    @classmethod
    def of(cls, latents: Tensor, latent_format: LatentFormat) -> Size:
        """Return the size of what latents (B,C,h,w), (B,C,T,h,w) or, of a sound, (B,C,T) are of."""
        if latent_format.sound:
            return cls(0, 0, samples=latents.shape[2] * latent_format.factor)
        height, width = (side * latent_format.factor for side in latents.shape[-2:])
        over_time = latents.ndim == _VIDEO and latent_format.frames
        return cls(width, height, (latents.shape[2] - 1) * latent_format.frames + 1 if over_time else 1)

    def latents(self, latent_format: LatentFormat) -> Samples:
        """Return the empty latents of one row, with those of a sound where a video has one."""
        if latent_format.sound:
            return torch.zeros(1, latent_format.channels, self.samples // latent_format.factor)
        sides = self.height // latent_format.factor, self.width // latent_format.factor
        time = ((self.frames - 1) // latent_format.frames + 1,) if latent_format.frames else ()
        return latent_format.accept(torch.zeros(1, latent_format.channels, *time, *sides))

    def smaller(self, share: float) -> Size | None:
        """Return the largest size of a share of its cells: a video of fewer frames, a smaller image; None: no size."""
        if self.samples:
            return replace(self, samples=int(share * self.samples))
        if self.frames > 1:
            frames = int(share * self.frames) // 4 * 4 - 3
            return Size(self.width, self.height, frames) if frames > 1 else None
        width, height = (int(side * sqrt(share)) // STEP * STEP for side in (self.width, self.height))
        return Size(width, height) if min(width, height) >= STEP else None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A backbone and what it is used with, without numbers. network: on the meta device, in its dtypes.

    vae_bytes, added_bytes: as of `JobPlan`.
    """

    family: BackboneFamily
    network: nn.Module
    backbone: PartSize
    text: PartSize
    vae_bytes: int = 0
    added_bytes: int = 0

    def cost(self, size: Size) -> ForwardCost:
        """Return the cost of a forward of one row, or of all frames of a video where these are rows.

        Errors: NodeError for a size that the model cannot make.
        """
        cond, options = self.family.blank_text(TEXT_TOKENS)
        latents = size.latents(self.family.latent_format)
        if self.family.rows_are_frames and isinstance(latents, Tensor):
            latents = latents.expand(size.frames, *latents.shape[1:])
        options = {**options, **self.family.needed_options(latents)}
        return forward_cost(self.family, self.network, latents, cond, options)


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
        return plan_job(room, model.backbone, model.text, model.vae_bytes, needed, model.added_bytes)

    job = job_in(room)
    if job.outcome != "too large":
        return Estimate(job, forward_s(cost, job.backbone, card))

    def largest(on_bytes: int) -> int:
        room = Room.of(on_bytes, process_bytes, max_cells)
        return room.largest_forward(model.backbone.nbytes, model.added_bytes)

    return Estimate(job, 0.0, change_to_fit(size, needed, largest(card_bytes), largest))


def change_to_fit(size: Size, needed_bytes: int, largest_bytes: int, largest: Callable[[int], int]) -> str:
    """Return the smallest changes that would make a forward fit: a smaller size, a larger card; empty if none would.

    largest_bytes: of the largest forward on this card; largest: that on a card of so many bytes.
    """
    cards = (card.gib for card in CARDS if largest(card.gib * GIB) >= needed_bytes)
    smaller, gib = size.smaller(max(0, largest_bytes) / needed_bytes), next(cards, None)
    changes = [str(smaller)] if smaller is not None else []
    return " or ".join(changes + ([f"a card of {gib} GB"] if gib is not None else []))


def part_size(*networks: nn.Module) -> PartSize:
    """Return the size of networks that are one part, without numbers."""
    whole = nn.ModuleList(networks)
    nbytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in weights_of(whole.modules()))
    return PartSize(nbytes, cache(lambda room: sum(block.nbytes for block in streamed_blocks(whole, None, room))))


def model_of(paths: Sequence[Path]) -> Model:
    """Return the model in files: one backbone, with text encoders, VAEs, LoRAs, ControlNets and upscalers.

    Reads headers alone. Errors: ModelFileError for a file that holds none of these, or for no or several backbones.
    """
    # Of a device that is no CPU, dtypes are a card's; all cards that are assumed multiply in fp8.
    loader = Loader(META, "auto", "auto", fp8_matmul=None)
    found: dict[Part, list[tuple[Recipe, WeightFiles]]] = {part: [] for part in PARTS}
    added = after = 0
    for path in paths:
        parts = [part for part in PARTS if _holds(path, part)]
        if not parts:
            beside, later = _other_bytes(loader, path)
            added, after = added + beside, after + later
        for part in parts:
            found[part].append((Recipe(part, "", path.name), WeightFiles((path,), path)))
    if len(found["backbone"]) != 1:
        names = ", ".join(recipe.name for recipe, _ in found["backbone"]) or "none"
        raise ModelFileError(f"a job has one diffusion network, and these files have {names}")
    [(recipe, files)] = found["backbone"]
    family, network = loader.outline(recipe, files)
    assert isinstance(family, BackboneFamily)
    texts = (loader.outline(*text)[1] for text in found["clip"])
    after += sum(loader.nbytes(*vae) for vae in found["vae"])
    return Model(family, network, part_size(network), part_size(*texts), after, added)


def _other_bytes(loader: Loader, path: Path) -> tuple[int, int]:
    """Return the bytes of a file that is used beside the backbone, a LoRA or ControlNet, or after it, an upscaler.

    Errors: ModelFileError for any other.
    """
    files = WeightFiles((path,), path)
    with suppress(ModelFileError):
        return loader.nbytes(Recipe("controlnet", "", path.name), files), 0
    with suppress(ModelFileError):
        shapes = Checkpoint(path).shapes
        if any("lora" in name for name in shapes):
            return SIXTEEN_BITS * sum(map(prod, shapes.values())), 0
        # It is opened without a look at its layout, so it is tried last.
        return 0, loader.nbytes(Recipe("upscaler", "", path.name), files)
    raise ModelFileError(
        f"'{path.name}' holds no diffusion network, text encoder, VAE, LoRA, ControlNet or upscaler of a known layout"
    )


def usual_size(family: BackboneFamily) -> Size:
    """Return the size that a family is mostly asked for."""
    match family:
        case Wan():
            return Size(832, 480, 81)
        case HunyuanVideo():
            return Size(848, 480, 81)
        case Sd():
            return Size(512, 512)
        case Svd():
            return Size(1024, 576, 14)
        case StableAudio3() | AceStep15() | MiniMaxMusic3() | YuE2():
            return Size(0, 0, samples=120 * 44100)
        case SeedVr2():
            return Size(1280, 720, 21)
    return Size(1024, 1024)


def _holds(path: Path, part: Part) -> bool:
    try:
        Checkpoint(path).find(part)
    except ModelFileError:
        return False
    return True
