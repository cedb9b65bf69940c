"""How a long video is evaluated: in overlapping windows of its frames, which are blended, or after given frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ContextWindows:
    """Evaluate videos of more latent frames than `length` in windows of so many. overlap: frames that two share.

    schedule: "standard_static": the same windows in each step; "standard_uniform" and "looped_uniform": moved from step
    to step, the second beyond the end too; "batched": without an overlap. stride: the most frames from one of a window
    to the next, of uniform ones. closed: looped ones end where they began. fuse: how windows are blended. shuffled:
    noise of later windows is that of earlier ones in another order. kept, kept_latents: frames that every window has in
    the place of its own, of what is concatenated and of the video itself. anchored: a window has the frame before it
    too.
    """

    length: int
    overlap: int
    schedule: str
    stride: int
    closed: bool
    fuse: str
    shuffled: bool
    kept: tuple[int, ...] = ()
    kept_latents: tuple[int, ...] = ()
    anchored: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class FirstFrames:
    """Begin a video that is made block by block with given frames. latents: (1,C,t,h,w), as a VAE makes them."""

    latents: Tensor
