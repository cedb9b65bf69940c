"""Follows things through a video, frame by frame, and finds new ones that texts name.

A thing is followed by its masks of earlier frames. What the detector finds and nothing followed covers is followed from
there; what it finds surely is the better mask of a thing. Rules and numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.models.families.sam3.detector import Detector, Prompt
from serve_app.models.families.sam3.layers import map_positions, tokens_of
from serve_app.models.families.sam3.memory import BUCKET, FRAMES, MASK_SIDE, POINTERS, bucketed
from serve_app.models.families.sam3.tracker import ABSENT, Frame, Masks, Tracker, enlarged
from serve_app.models.families.sam3.vision import Vision
from serve_app.sampling.transfer import to_device

MOST_THINGS = 64
SAME = 0.5
"""The least overlap of two masks of one thing."""
SURE = 0.8
"""The least score with which a found mask replaces a followed one."""
OCCLUDED = 0.3
"""The least overlap of two things of which the one that was hidden later is not believed, and the least share of its
area that a thing keeps beside others to be remembered."""
OUT = -10.0
"""What a mask is at most where it is not believed."""
SPECKS = 16
"""Cells of the largest specks that are wiped out, and of the largest holes that are filled."""
SPECK, HOLE = -0.1, 0.1
"""What masks are there."""
TRUST_LEAST, TRUST_MOST, TRUST_GIVEN = -4, 8, 8
"""Of a thing: how often it was found more often than not. One of 0 and less is not shown."""


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlaps (N,M) of masks (N,h,w) and (M,h,w): shares of the union or of the smaller, if more."""
    one, other = ((masks > 0).float().flatten(1) for masks in (first, second))
    both, area, other_area = one @ other.T, one.sum(1)[:, None], other.sum(1)[None]
    union = both / (area + other_area - both).clamp(min=1)
    return torch.maximum(union, both / torch.minimum(area, other_area).clamp(min=1))


def distinct(masks: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (N,h,w) and scores (N,), best first, without those that a better one covers."""
    order = scores.argsort(descending=True)
    masks, scores = masks[order], scores[order]
    alike = (overlap(masks, masks) >= SAME).tolist()
    kept: list[int] = []
    for number in range(len(masks)):
        if not any(alike[number][better] for better in kept):
            kept.append(number)
    return chosen(kept, masks, scores)


def chosen(numbers: Sequence[int], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return those rows of two tensors that have these numbers. The host waits for no device."""
    index = to_device(torch.tensor(numbers, dtype=torch.int64), first.device)
    return first[index], second[index]


def read(*tensors: Tensor) -> list[list[float]]:
    """Return the numbers of each tensor, for all of which the host waits once."""
    numbers = torch.cat([tensor.flatten().float() for tensor in tensors]).tolist()
    ends = np.cumsum([0, *(tensor.numel() for tensor in tensors)])
    return [numbers[start:stop] for start, stop in pairwise(ends)]


def cleaned(masks: Tensor) -> Tensor:
    """Return masks (N,1,h,w) without small holes and specks; of a small thing not more than half is a speck."""
    masks = torch.where(_small(masks <= 0), HOLE, masks)
    return torch.where(_small(masks > 0, share=0.5), SPECK, masks)


def _small(there: Tensor, share: float = 1.0) -> Tensor:
    """Return which cells (N,1,h,w) are in pieces, whose cells touch by their sides, of SPECKS or fewer.

    share: of all that are there of a thing, the most in such a piece.
    """
    found = np.zeros(tuple(there.shape), dtype=bool)
    for number, cells in enumerate(there[:, 0].cpu().numpy()):
        labels, _ = ndimage.label(cells)
        small = np.bincount(labels.ravel()) <= min(SPECKS, cells.sum() * share)
        small[0] = False
        found[number, 0] = small[labels]
    return to_device(torch.from_numpy(found), there.device)


def packed(masks: Tensor) -> Tensor:
    """Return masks (…,w), w a multiple of 8, as bits (…,w/8) uint8, the first in the lowest."""
    bits = to_device(torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8), masks.device)
    return (torch.unflatten(masks > 0, -1, (-1, 8)).to(torch.uint8) * bits).sum(-1, dtype=torch.uint8)


@dataclass(slots=True)
class Tracks:
    """What is followed in a video so far.

    most: things at most; threshold: least score of a new one; every: frames from one search to the next. texts: what is
    looked for; (): nothing. frames: of the video. scores: of each thing, 1 for one that was given.
    """

    vision: Vision
    detector: Detector
    tracker: Tracker
    texts: Sequence[Prompt]
    frames: int
    threshold: float
    most: int
    every: int
    scores: list[float] = field(default_factory=list)
    _given: dict[int, Frame] = field(default_factory=dict)
    _others: dict[int, Frame] = field(default_factory=dict)
    _trust: list[int] = field(default_factory=list)
    # The frame in which each thing was last hidden; -1 for never.
    _hidden: list[int] = field(default_factory=list)

    def follow(self, number: int, pixels: Tensor, initial: Tensor | None) -> Tensor | None:
        """Return the masks (N,SIDE,SIDE/8) of things in the next frame, as bits; None while there are none.

        pixels: (1,3,SIDE,SIDE). initial: masks (N,1,h,w) in 0…1 of the things in the first frame.
        """
        seen = self.vision.trunk(pixels)
        pyramid = self.vision.pyramid("propagation_convs", seen)
        found, scores = self._found(number, seen)
        if initial is not None:
            frame = self._begin(number, seen, pyramid, enlarged(initial) > 0.5)
            self._join([1.0] * len(initial), TRUST_GIVEN)
        elif not self.scores:
            if found is None or not len(found):
                return None
            found, scores = found[: self.most], scores[: self.most]
            frame = self._begin(number, seen, pyramid, enlarged(found[:, None]) > 0)
            self._join(scores.tolist(), 1)
        else:
            frame = self._go_on(number, pyramid)
            if found is not None:
                self._match(frame, found, scores, pyramid[-1])
        masks = frame.large[:, 0]
        if self.texts:
            shown = to_device(torch.tensor([trust > 0 for trust in self._trust]), masks.device)
            masks = torch.where(shown[:, None, None], masks, ABSENT)
        return packed(masks)

    def _found(self, number: int, seen: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return masks (N,h,w) of what the texts name in a frame, None where nothing is looked for, and scores (N,)."""
        if not self.texts or number % self.every or len(self.scores) >= self.most:
            return None, seen.new_empty(0)
        pyramid = self.vision.pyramid("convs", seen)
        found = [self.detector(pyramid, text) for text in self.texts]
        scores = torch.cat([one.scores for one in found]).sigmoid()
        good = (scores > self.threshold).tolist()
        masks = torch.cat([one.masks for one in found])
        return distinct(*chosen([number for number, of in enumerate(good) if of], masks, scores))

    def _begin(self, number: int, seen: Tensor, pyramid: list[Tensor], masks: Tensor) -> Frame:
        """Return the frame in which things are first seen, with masks (N,1,SIDE,SIDE)."""
        shown = self.tracker.given(self.vision.pyramid("interactive_convs", seen), masks.to(seen.dtype))
        frame = self._frame(shown, pyramid)
        certain = shown.seen.new_ones(len(masks))
        self.tracker.remember(frame, shown.large, shown.seen, certain, pyramid[-1])
        self._given[number] = frame
        return frame

    def _go_on(self, number: int, pyramid: list[Tensor]) -> Frame:
        """Return a frame with the masks of what is followed."""
        things = len(self.scores)
        remembered = self.tracker.remembered(number, self.frames, self._given, self._others, -(-things // BUCKET))
        drawn = self.tracker.followed(pyramid, remembered, things)
        frame = self._frame(drawn._replace(small=self._believed(number, cleaned(drawn.small))), pyramid)
        self._remember(frame, 0, pyramid[-1])
        self._others[number] = frame
        self._others = {at: kept for at, kept in self._others.items() if at >= number - max(FRAMES, POINTERS)}
        return frame

    def _frame(self, masks: Masks, pyramid: list[Tensor]) -> Frame:
        coarsest = pyramid[-1]
        return Frame(
            masks.small,
            masks.large,
            bucketed(masks.pointers),
            tokens_of(coarsest),
            tokens_of(map_positions(coarsest)),
        )

    def _believed(self, number: int, masks: Tensor) -> Tensor:
        """Return masks (N,1,h,w) without those of things that were hidden later than others in the same place."""
        if len(masks) < 2:
            return masks
        close, there = read(overlap(masks[:, 0], masks[:, 0]) >= OCCLUDED, (masks > 0).flatten(1).any(1))
        unbelieved = set()
        for first, second in combinations(range(len(masks)), 2):
            if close[first * len(masks) + second]:
                one, other = self._hidden[first], self._hidden[second]
                if one > other > -1:
                    unbelieved.add(first)
                elif other > one > -1:
                    unbelieved.add(second)
        for thing, seen in enumerate(there):
            if not seen or thing in unbelieved:
                self._hidden[thing] = number
        out = to_device(torch.tensor([thing in unbelieved for thing in range(len(masks))]), masks.device)
        return torch.where(out[:, None, None, None], OUT, masks)

    def _remember(self, frame: Frame, new: int, coarsest: Tensor) -> None:
        """Remember the masks of a frame, of which the last `new` are certain."""
        masks = frame.small
        if len(masks) > 1:
            front = masks.argmax(0, keepdim=True) == torch.arange(len(masks), device=masks.device)[:, None, None, None]
            before, after = ((part > 0).flatten(1).sum(1).float() for part in (masks, torch.where(front, masks, OUT)))
            whole = after / before.clamp(min=1) >= OCCLUDED
            masks = torch.where(whole[:, None, None, None], masks, masks.clamp(max=OUT))
        masks = interpolate(masks, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False)
        seen = torch.where((masks > 0).flatten(1).any(1), 1.0, -1.0)[:, None]
        certain = masks.new_zeros(len(masks))
        certain[len(masks) - new :] = 1
        self.tracker.remember(frame, masks, seen, certain, coarsest)

    def _match(self, frame: Frame, found: Tensor, scores: Tensor, coarsest: Tensor) -> None:
        """Compare what was found, masks (N,h,w), with what is followed, and follow what is new."""
        small = _sized(found, frame.small)
        alike = overlap(small[:, 0], frame.small[:, 0])
        there = alike >= SAME
        best = alike.argmax(1) if len(found) else scores
        matched, known, sure, things, of_found = read(there.any(0), there.any(1), scores >= SURE, best, scores)
        for thing, once in enumerate(matched):
            step = 1 if once else -1
            self._trust[thing] = min(TRUST_MOST, max(TRUST_LEAST, self._trust[thing] + step))
        better = [number for number, of in enumerate(known) if of and sure[number]]
        for number in better:
            frame.small[int(things[number])] = small[number]
            frame.large[int(things[number])] = _sized(found[number : number + 1], frame.large)[0]
        if better:
            self._remember(frame, 0, coarsest)
        new = [number for number, of in enumerate(known) if not of][: self.most - len(self.scores)]
        if new:
            small, found = chosen(new, small, found)
            frame.small = torch.cat((frame.small, small))
            frame.large = torch.cat((frame.large, _sized(found, frame.large)))
            self._join([of_found[number] for number in new], 1)
            self._remember(frame, len(new), coarsest)

    def _join(self, scores: Sequence[float], trust: int) -> None:
        self.scores += scores
        self._trust += [trust] * len(scores)
        self._hidden += [-1] * len(scores)


def _sized(masks: Tensor, like: Tensor) -> Tensor:
    """Return masks (N,h,w) as (N,1,H,W) of the size of others."""
    return interpolate(masks[:, None], like.shape[-2:], mode="bilinear", align_corners=False)
