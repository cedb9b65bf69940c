"""`serve-app plan`: what becomes of a job on a card that need not be there, and about how long a step takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError, ModelFileError
from serve_app.models.families.family import BackboneFamily
from serve_app.models.ranks.planning import COUNTS, LINKS, DevicesPlan, plan_devices, recommended
from serve_app.models.weights.planner import Estimate, Model, Size, estimate, model_of, usual_size
from serve_app.models.weights.roofline import GIB, Card, assumed_card
from serve_app.models.weights.sharded_blocks import shard_sizes
from serve_app.replica.files import open_catalog
from serve_app.replica.host import OWN_SHARE
from serve_app.store.models.catalog import Catalog

FOLDERS = (
    *("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "controlnet", "upscale_models", "unet_gguf"),
    "clip_gguf",
)
"""Where models are looked for by name."""
GB = 10**9
ROWS = 2
"""Of a step: with its text and with a negative."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([GM])(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's arguments. gpu, ram: as `size_bytes`; None: usual for the family. link: as `planning.LINKS`."""

    models: tuple[str, ...]
    gpu: str
    ram: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    devices: int = 1
    link: str = "nvlink"
    shard_weights: bool = False


def print_plan(asked: Asked, config: AppConfig, *, as_json: bool = False) -> int:
    """Print the plan, and return 1 if a forward has no room. Errors: ConfigError, ModelFileError, NodeError."""
    card_bytes, ram_bytes = size_bytes(asked.gpu, "--gpu"), size_bytes(asked.ram, "--ram")
    catalog = open_catalog(config)
    model = model_of([found(name, catalog) for name in asked.models])
    size, card = size_of(asked, model.family), assumed_card(card_bytes)
    process_bytes, max_cells = round(OWN_SHARE * ram_bytes), PoolConfig(name="plan").max_cells
    made = estimate(model, size, model.cost(size), card, card_bytes, process_bytes, max_cells)
    together = _together(asked, model, size, card, made)
    if as_json:
        plans: dict[str, Any] = {"devices": [asdict(plan) for plan in together]} if together else {}
        if together:
            plans["recommended"] = asdict(recommended(together))
        print_json({"family": model.family.title, "size": asdict(size), "card": card.name, **asdict(made), **plans})
    else:
        for line in (*lines(model.family.title, size, card, made), *_lines_together(asked, together)):
            print_line(line)
    return int(made.job.outcome == "too large")


def size_bytes(text: str, option: str) -> int:
    """Return a memory size: 24G and 24GiB are as large as 24576M. Errors: ConfigError."""
    if (read := _SIZE.fullmatch(text.strip())) is None or not float(read[1]):
        raise ConfigError(f"{option} is {text!r}; give a size as 24G or 24576M")
    return round(float(read[1]) * (GIB if read[2].upper() == "G" else 2**20))


def found(name: str, catalog: Catalog) -> Path:
    """Return the path of a model file: of a path, or of a name with or without its folder. Errors: ModelFileError."""
    if Path(name).is_file():
        return Path(name)
    folder, _, within = name.partition("/")
    candidates = [(folder, within)] if folder in FOLDERS else [(folder, name) for folder in FOLDERS]
    for folder, within in candidates:
        if within in catalog.names(folder):
            return catalog.path(folder, within)
    raise ModelFileError(f"there is no file {name!r}, and no model of that name in {', '.join(FOLDERS)}")


def size_of(asked: Asked, family: BackboneFamily) -> Size:
    """Return the size asked for. Errors: ConfigError for a video of a family of images, or sides of no whole cells."""
    usual, factor = usual_size(family), family.latent_format.factor
    if usual.samples:
        if asked.width or asked.height or asked.frames:
            raise ConfigError(f"{family.title} makes sounds, which have no --size and no --frames; leave them out")
        return usual
    width, height, frames = asked.width or usual.width, asked.height or usual.height, asked.frames or usual.frames
    if frames > 1 and usual.frames == 1:
        raise ConfigError(f"--frames is {frames}, and {family.title} makes images; leave it out")
    if width < factor or height < factor:
        raise ConfigError(f"the size is {width}×{height}, and a cell of {family.title} is {factor}×{factor} pixels")
    return replace(usual, width=width, height=height, frames=frames)


def lines(title: str, size: Size, card: Card, made: Estimate) -> Iterator[str]:
    """Yield the plan for people to read."""
    job = made.job
    backbone, text = job.backbone, job.text
    yield f"{title}, {size}: {_OUTCOMES[job.outcome]}"
    parts = (("diffusion network", backbone), ("text encoders", text))
    for name, part in (named for named in parts if named[1].nbytes):
        streams = f", {_gb(part.streamed_bytes)} are copied in each forward" if part.streamed_bytes else ""
        files = f", {_gb(part.file_bytes)} of them read from files" if part.file_bytes else ""
        yield f"  {name}: {_gb(part.nbytes)}, {_gb(part.card_bytes)} on the card{streams}{files}"
    if job.added_bytes:
        yield f"  LoRAs and ControlNets: {_gb(job.added_bytes)}, beside the diffusion network"
    if job.vae_bytes:
        yield f"  VAE and upscalers: {_gb(job.vae_bytes)}"
    yield f"  activations of one row: {_gb(job.activation_bytes)}"
    if job.reread_bytes:
        yield f"  each new text reads {_gb(job.reread_bytes)} of evicted weights from files: the host's memory is short"
    if made.row_s:
        yield f"a step takes about {made.row_s:.2g} s, with a negative twice that (roofline of an assumed {card.name})"
    if job.outcome == "too large":
        yield f"what would fit: {made.change or 'nothing near; take a smaller size'}"


def _together(asked: Asked, model: Model, size: Size, card: Card, made: Estimate) -> list[DevicesPlan]:
    """Return how several of these cards compute a step with a negative. Errors: ConfigError for an unknown link."""
    if asked.link not in LINKS:
        raise ConfigError(f"--link is {asked.link!r}; allowed are {', '.join(LINKS)}")
    if asked.devices == 1 or made.job.outcome == "too large":
        return []
    counts = [count for count in COUNTS if count <= asked.devices]
    heads, sharded = model.family.sharded_heads, None
    # A video whose frames are rows of one forward is rank 0's alone.
    if asked.shard_weights and not model.family.rows_are_frames:
        sharded = partial(shard_sizes, model.network, None)
    return plan_devices(lambda: model.cost(size), heads, ROWS, card, asked.link, made.job.backbone, counts, sharded)


def _lines_together(asked: Asked, plans: Sequence[DevicesPlan]) -> Iterator[str]:
    if not plans:
        return
    yield f"a step with a negative on several such cards, connected by {asked.link}:"
    for plan in plans:
        yield (
            f"  {plan.devices}: {plan.step_s:.2g} s, {plan.speed_up:.1f} times as fast, by {plan.by}"
            f"{', weights sharded' if plan.shards_weights else ''}"
            f"{f', each sends {_gb(plan.sent_bytes)}' if plan.sent_bytes else ''}"
        )
    best = recommended(plans)
    yield f"recommended: devices_per_replica: {best.devices}" + (
        f", parallel: {best.parallel}{', shard_weights: auto' if best.shards_weights else ''}"
        if best.devices > 1
        else ""
    )


_OUTCOMES = {
    "whole": "all weights stay on the card",
    "evicting": "the parts take turns on the card",
    "streaming": "weights stream",
    "too large": "a forward does not fit the card",
}


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.1f} GB"
