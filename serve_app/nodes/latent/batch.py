"""The nodes that take, join, repeat and regroup the batches of LATENT and IMAGE.

A LATENT's batch_index says which noise of a seed's sequence each latent takes, so it follows its latents around.
Parts of a batch are copies: a view would keep the whole batch in memory, and take it along to another replica.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, TypeAlias

import torch

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_batch, fit_latents, fit_mask
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, Combo, Int
from serve_app.nodes.sockets import IMAGE, INT, LATENT
from serve_app.values import Latent


@node(
    "GetLatentSize",
    "Get Image/Video Latent Size",
    category="latent",
    function="size",
    return_names=("width", "height", "frames", "batch_size"),
    description="Gives the width and height of latents, how many frames they have, and how many there are.",
)
def get_latent_size(latent: LATENT) -> tuple[INT, INT, INT, INT]:
    """The size of latents, in their own cells.

    Return width, height, frames (1 where latents have none) and number.
    """
    count, _, *frames, height, width = latent["samples"].shape
    return width, height, frames[0] if frames else 1, count


@node("LatentCutToBatch", category="model/latent/advanced", function="cut")
def latent_cut_to_batch(
    samples: LATENT,
    dim: Annotated[str, Combo(["t", "x", "y"])],
    slice_size: Annotated[int, Int(1, min=1, max=MAX_RESOLUTION, step=1)],
) -> LATENT:
    """Latents cut across one dimension, the pieces as a batch.

    Cut pieces of that size, what is left over gone; latents without the dimension stay as they are.
    """
    latents: torch.Tensor = samples["samples"]
    place = latents.ndim - {"x": 1, "y": 2, "t": 3}[dim]
    if place < 2:
        return samples
    moved = latents.movedim(place, 1)
    size = min(slice_size, moved.shape[1])
    whole = moved[:, : moved.shape[1] // size * size]
    return {**samples, "samples": whole.reshape(-1, size, *moved.shape[2:]).movedim(1, place)}


@node("ReplaceVideoLatentFrames", "Replace Video Latent Frames", category="model/latent/batch", function="replace")
def replace_video_latent_frames(
    destination: LATENT,
    index: Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION, step=1)],
    source: LATENT | None = None,
) -> LATENT:
    """Latents of a video with others in the place of some frames.

    Return the source with the destination's frames around its own; the destination where it does not fit.
    """
    if source is None:
        return destination
    frames: torch.Tensor = destination["samples"]
    given: torch.Tensor = source["samples"]
    start = index + frames.shape[2] if index < 0 else index
    if not 0 <= start <= frames.shape[2] - given.shape[2]:
        return destination
    out = frames.clone()
    out[:, :, start : start + given.shape[2]] = given
    return {**source, "samples": out}


Length: TypeAlias = Annotated[int, Int(1, min=1, max=64)]


@node("LatentFromBatch", "Get Latent From Batch", category="model/latent/batch", function="frombatch")
def latent_from_batch(
    samples: LATENT, batch_index: Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION)], length: Length
) -> LATENT:
    """Some consecutive latents of a batch.

    Return length latents from batch_index on, below 0 from the end, or as many as there are; at least one.
    """
    latents: torch.Tensor = samples["samples"]
    count = latents.shape[0]
    start = max(0, min(batch_index if batch_index >= 0 else batch_index + count, count - 1))
    taken = slice(start, min(start + length, count))
    index = list(samples.get("batch_index", range(count)))
    out = {**samples, "samples": latents[taken].clone(), "batch_index": index[taken]}
    if "noise_mask" in samples and samples["noise_mask"].shape[0] > 1:
        out["noise_mask"] = fit_batch(samples["noise_mask"], count)[taken].clone()
    return out


@node("RepeatLatentBatch", "Repeat Latent Batch", category="model/latent/batch", function="repeat")
def repeat_latent_batch(samples: LATENT, amount: Length) -> LATENT:
    """A batch several times over, each time with noise of its own.

    Return the batch amount times. Fewer masks than latents are repeated as they are, so they go on in turn.
    """
    latents: torch.Tensor = samples["samples"]
    out = {**samples, "samples": fit_batch(latents, latents.shape[0] * amount)}
    if "noise_mask" in samples and samples["noise_mask"].shape[0] > 1:
        masks = samples["noise_mask"]
        out["noise_mask"] = fit_batch(masks, masks.shape[0] * amount)
    if "batch_index" in samples:
        index: list[int] = samples["batch_index"]
        span = max(index) - min(index) + 1
        out["batch_index"] = [i + turn * span for turn in range(amount) for i in index]
    return out


def _joined_masks(latents: list[Latent]) -> torch.Tensor:
    """Return a mask a latent, 1 where there is none; of the latents' size in pixels where the masks' sizes differ."""
    masks = []
    for latent in latents:
        samples: torch.Tensor = latent["samples"]
        count, (height, width) = samples.shape[0], samples.shape[-2:]
        mask = latent.get("noise_mask")
        allow(count, height * 8, width * 8)
        masks.append(torch.ones(count, 1, height * 8, width * 8) if mask is None else fit_batch(mask, count))
    if len({mask.shape[-2:] for mask in masks}) > 1:
        masks = [fit_mask(mask, height * 8, width * 8) for mask in masks]
    return torch.cat(masks)


@node("LatentBatch", "Batch Latents (DEPRECATED)", category="model/latent/batch", function="batch", deprecated=True)
def latent_batch(samples1: LATENT, samples2: LATENT) -> LATENT:
    """Two batches as one. Return the first batch and then the second, cut and resized to the first's size."""
    first, second = samples1["samples"], samples2["samples"]
    indices = [list(s.get("batch_index", range(s["samples"].shape[0]))) for s in (samples1, samples2)]
    if first.shape[1:] != second.shape[1:]:
        second = fit_latents(second, first.shape[-1], first.shape[-2], "bilinear", "center")
    return {**samples1, "samples": torch.cat([first, second]), "batch_index": indices[0] + indices[1]}


@node("LatentBatchSeedBehavior", category="model/latent/advanced", function="op")
def latent_batch_seed_behavior(
    samples: LATENT, seed_behavior: Annotated[str, Choice(["random", "fixed"], default="fixed")]
) -> LATENT:
    """The same noise for every latent of a batch, or each its own.

    Return the latents with the first one's noise for all ("fixed"), or counting from 0 ("random").
    """
    out = {key: value for key, value in samples.items() if key != "batch_index"}
    if seed_behavior == "fixed":
        out["batch_index"] = [samples.get("batch_index", [0])[0]] * samples["samples"].shape[0]
    return out


BatchSize: TypeAlias = Annotated[int, Int(1, min=1, max=4096)]


@node("RebatchLatents", "Rebatch Latents", category="model/latent/batch", function="rebatch")
def rebatch_latents(latents: list[LATENT], batch_size: list[BatchSize]) -> list[LATENT]:
    """A list of batches regrouped into batches of one length.

    Return batches of batch_size; a shorter one where the size of the latents changes and at the end.
    """
    ranges: list[range] = []
    for latent in latents:
        start = ranges[-1].stop if ranges else 0
        ranges.append(range(start, start + latent["samples"].shape[0]))
    numbered = [{"batch_index": list(r), **latent} for r, latent in zip(ranges, latents, strict=True)]
    out: list[Latent] = []
    for _, group in groupby(numbered, key=lambda latent: latent["samples"].shape[-2:]):
        same_size = list(group)
        samples = torch.cat([latent["samples"] for latent in same_size])
        masks = _joined_masks(same_size)
        index = [i for latent in same_size for i in latent["batch_index"]]
        for start in range(0, samples.shape[0], batch_size[0]):
            part = slice(start, start + batch_size[0])
            batch: Latent = {"samples": samples[part].clone(), "batch_index": index[part]}
            if masks[part].mean() != 1.0:
                batch["noise_mask"] = masks[part].clone()
            out.append(batch)
    return out


@node("RebatchImages", "Rebatch Images", category="image/batch", function="rebatch")
def rebatch_images(images: list[IMAGE], batch_size: list[BatchSize]) -> list[IMAGE]:
    """A list of batches of images regrouped into batches of one length.

    Return batches of batch_size and a last one of what is left; all images must be of one size.
    """
    single = [image for batch in images for image in batch]
    starts = range(0, len(single), batch_size[0])
    return [torch.stack(single[start : start + batch_size[0]]) for start in starts]
