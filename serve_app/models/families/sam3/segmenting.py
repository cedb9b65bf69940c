"""Masks of what texts, boxes and points show in images and videos, one image after another. Rules are ComfyUI's."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.ops import box_convert

from serve_app.models.families.sam3.detector import Prompt
from serve_app.models.families.sam3.prompts import CORNERS, INSIDE, NONE, OUTSIDE
from serve_app.models.families.sam3.tracking import MOST_THINGS, Tracks
from serve_app.models.families.sam3.vision import SIDE
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Detected, Detection, Tracking

ALONE = "sam3_multi_cond"
"""The option of a conditioning with its texts one by one."""
MARGIN = 0.1
"""What is looked at around a found thing to refine its mask, as a share of its sides."""

resize = partial(interpolate, mode="bilinear", align_corners=False)


def texts_of(conditioning: Conditioning | None, like: Tensor) -> list[tuple[Prompt, int]]:
    """Return what a conditioning's texts look for, and how many of each at most. like: of their device and dtype."""
    found = []
    for text in _alone(conditioning):
        tokens = to_device(text["cond"], like.device).to(like.dtype)
        counts = text["attention_mask"]
        counts = tokens.new_ones(tokens.shape[:2]) if counts is None else to_device(counts, like.device)
        found.append((Prompt(tokens, counts.bool()), text.get("max_detections", 1)))
    return found


def text_tokens(conditioning: Conditioning | None) -> list[Tensor]:
    """Return the tokens (1,T,D) of a conditioning's texts."""
    return [text["cond"] for text in _alone(conditioning)]


def _alone(conditioning: Conditioning | None) -> Sequence[Mapping[str, Any]]:
    """Return a conditioning's texts one by one."""
    if not conditioning:
        return ()
    cond, options = conditioning[0]
    alone: Sequence[Mapping[str, Any]] | None = options.get(ALONE)
    return alone or [{"cond": cond, "attention_mask": options.get("attention_mask")}]


def detected(network: Any, request: Detection) -> Generator[tuple[int, int], None, list[Detected]]:
    """Yield (images done, images in all), and return what was found in each."""
    like = network.vision.trunk.pos_embed
    texts = texts_of(request.conditioning, like)
    made: list[Detected] = []
    for number, image in enumerate(request.images):
        boxes = request.boxes[number] if request.boxes else None
        made.append(_in_image(network, request, image, boxes, texts))
        yield number + 1, len(request.images)
    return made


def _in_image(
    network: Any, request: Detection, image: Tensor, boxes: Tensor | None, texts: Sequence[tuple[Prompt, int]]
) -> Detected:
    height, width = image.shape[:2]
    like = network.vision.trunk.pos_embed
    pixels = to_device(image[None, ..., :3].movedim(-1, 1), like.device).to(like.dtype)
    seen = network.vision.trunk(resize(pixels, (SIDE, SIDE)))
    masks: list[Tensor] = []
    found: list[dict[str, float]] = []
    shown = [_points(request, like)] if request.inside or request.outside else []
    if boxes is not None:
        boxes = to_device(boxes, like.device).to(like.dtype)
        shown += [] if texts else [_corners(box) for box in boxes]
    if shown:
        prompted = network.vision.pyramid("interactive_convs", seen)
        for places, kinds in shown:
            # One point alone may mean a thing or a part of it.
            drawn = network.tracker.drawn(prompted, (places, kinds), choose=kinds.shape[1] == 2)
            for _ in range(request.refinements - 1):
                drawn = network.tracker.drawn(prompted, mask=drawn.large)
            masks.append(resize(drawn.large, (height, width))[0] > 0)
    if texts:
        pyramid = network.vision.pyramid("convs", seen)
    for text, most in texts:
        made = network.detector(pyramid, text, boxes)
        # The host waits for the two of them, and for no single one.
        scores, corners = made.scores.sigmoid().cpu(), made.boxes.cpu()
        best = [int(one) for one in scores.argsort(descending=True)[:most] if scores[one] > request.threshold]
        for one in best:
            left, top, right, bottom = (corners[one] * corners.new_tensor([width, height] * 2)).tolist()
            found.append(
                {"x": left, "y": top, "width": right - left, "height": bottom - top, "score": float(scores[one])}
            )
            mask = resize(made.masks[one][None, None], (height, width))
            masks.append(_refined(network, pixels, mask, (left, top, right, bottom), request.refinements))
    whole = torch.cat(masks).float().cpu() if masks else torch.zeros(0, height, width)
    return Detected(whole, found)


def _points(request: Detection, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (1,N,2) and kinds (1,N) of a request's points, and of one that is none."""
    kinds = [INSIDE] * len(request.inside) + [OUTSIDE] * len(request.outside)
    places = torch.tensor([*request.inside, *request.outside]) * SIDE
    return (
        to_device(pad(places, (0, 0, 0, 1))[None], like.device).to(like.dtype),
        to_device(torch.tensor([[*kinds, NONE]]), like.device),
    )


def _corners(box: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (1,3,2) and kinds (1,3) of no point and a box's corners. box: centre and size in 0…1."""
    corners = box_convert(box, "cxcywh", "xyxy").view(2, 2) * SIDE
    return pad(corners, (0, 0, 1, 0))[None], to_device(torch.tensor([[NONE, *CORNERS]]), box.device)


def _refined(network: Any, pixels: Tensor, mask: Tensor, box: tuple[float, float, float, float], times: int) -> Tensor:
    """Return a mask (1,H,W) of a thing found in an image (1,3,H,W), drawn again in what its box and some around show.

    mask: (1,1,H,W), as it was found, which the refined one adds to. box: in pixels.
    """
    height, width = pixels.shape[-2:]
    left, top, right, bottom = box
    across, down = (right - left) * MARGIN, (bottom - top) * MARGIN
    columns = slice(max(0, int(left - across)), min(width, int(right + across)))
    rows = slice(max(0, int(top - down)), min(height, int(bottom + down)))
    whole = mask[0] > 0
    if times <= 0 or columns.stop <= columns.start or rows.stop <= rows.start:
        return whole
    cut = pixels[..., rows, columns]
    seen = network.vision.trunk(resize(cut, (SIDE, SIDE)))
    pyramid = network.vision.pyramid("interactive_convs", seen)
    better = mask[..., rows, columns]
    for _ in range(times):
        better = network.tracker.drawn(pyramid, mask=resize(better, (SIDE, SIDE))).large
    whole[:, rows, columns] |= resize(better, cut.shape[-2:])[0] > 0
    return whole


def tracked(network: Any, request: Tracking) -> Generator[tuple[int, int], None, dict[str, Any]]:
    """Yield (frames done, frames in all), and return SAM3_TRACK_DATA without the size of the images."""
    like = network.vision.trunk.pos_embed
    frames = len(request.images)
    tracks = Tracks(
        network.vision,
        network.detector,
        network.tracker,
        [text for text, _ in texts_of(request.conditioning, like)],
        frames,
        request.threshold,
        request.most if 0 < request.most <= MOST_THINGS else MOST_THINGS,
        request.every,
    )
    made: list[Tensor | None] = []
    for number, image in enumerate(request.images):
        pixels = to_device(image[None, ..., :3].movedim(-1, 1), like.device).to(like.dtype)
        pixels = interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False)
        first = request.initial if number == 0 else None
        initial = None if first is None else to_device(first[:, None], like.device).to(like.dtype)
        bits = tracks.follow(number, pixels, initial)
        made.append(None if bits is None else bits.cpu())
        yield number + 1, frames
    things = len(tracks.scores)
    if not things:
        return {"packed_masks": None, "n_frames": frames, "scores": []}
    empty = torch.zeros(things, SIDE, SIDE // 8, dtype=torch.uint8)
    for number, bits in enumerate(made):
        made[number] = empty if bits is None else torch.cat((bits, empty[len(bits) :]))
    return {
        "packed_masks": torch.stack([bits for bits in made if bits is not None]),
        "n_frames": frames,
        "scores": tracks.scores,
    }
