"""The nodes of context windows, in which videos longer than a model was trained with are sampled."""

from __future__ import annotations

from typing import Annotated

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Combo, Int, Text
from serve_app.nodes.sockets import MODEL
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.windows import FRAMES

SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")
FUSES = ("pyramid", "relative", "flat", "overlap-linear")
IMAGES = 4
"""Images of a latent frame of Wan's."""

_Fuse = Combo(FUSES, default="pyramid")
_Stride = Int(1, min=1)
_Off = Bool(False)


@node(
    "ContextWindowsManual",
    "Context Windows (Manual)",
    category="model/patch",
    description="Samples a long video in overlapping windows of its latent frames.",
    experimental=True,
)
def context_windows_manual(
    model: MODEL,
    context_length: Annotated[int, Int(16, min=1)],
    context_overlap: Annotated[int, Int(4, min=0)],
    context_schedule: Annotated[str, Combo(SCHEDULES, default="standard_static")],
    context_stride: Annotated[int, _Stride],
    closed_loop: Annotated[bool, _Off],
    fuse_method: Annotated[str, _Fuse],
    dim: Annotated[int, Int(0, min=0, max=5)],
    freenoise: Annotated[bool, _Off],
    cond_retain_index_list: Annotated[str, Text("", multiline=False)],
    split_conds_to_windows: Annotated[bool, _Off],
    latent_retain_index_list: Annotated[str, Text("", multiline=False)],
    causal_window_fix: Annotated[bool, Bool(True)],
) -> MODEL:
    """A model that evaluates videos of more than `context_length` latent frames in windows of so many.

    dim: the axis that is cut: 2, a video's frames. Errors: NodeError for another, for a list of something else than
    numbers of frames, an overlap as long as a window, and conditionings that are to be split over the windows.
    """
    if dim != FRAMES:
        raise NodeError(f"dim is {dim}; context windows are supported along {FRAMES}, the frames of a video")
    if split_conds_to_windows:
        raise NodeError("split_conds_to_windows is true; each window has all conditionings here, so it must be false")
    return _with_windows(
        model,
        ContextWindows(
            context_length,
            context_overlap,
            context_schedule,
            context_stride,
            closed_loop,
            fuse_method,
            freenoise,
            _numbers(cond_retain_index_list, "cond_retain_index_list"),
            _numbers(latent_retain_index_list, "latent_retain_index_list"),
            causal_window_fix,
        ),
    )


@node(
    "WanContextWindowsManual",
    "Wan Context Windows",
    category="model/patch/wan",
    description="Samples a long video of Wan's in overlapping windows; lengths are in images.",
    experimental=True,
)
def wan_context_windows_manual(
    model: MODEL,
    context_length: Annotated[int, Int(81, min=1, max=MAX_RESOLUTION, step=IMAGES)],
    context_overlap: Annotated[int, Int(30, min=0)],
    context_schedule: Annotated[str, Combo(SCHEDULES, default="standard_uniform")],
    context_stride: Annotated[int, Int(1, min=1, advanced=True)],
    closed_loop: Annotated[bool, Bool(False, advanced=True)],
    fuse_method: Annotated[str, _Fuse],
    freenoise: Annotated[bool, Bool(True, advanced=True)],
    retain_first_frame: Annotated[bool, _Off],
    split_conds_to_windows: Annotated[bool, Bool(False, advanced=True)],
) -> MODEL:
    """As `context_windows_manual`, along a video's frames. retain_first_frame: every window is shown the first."""
    return context_windows_manual(
        model,
        (context_length - 1) // IMAGES + 1,
        context_overlap // IMAGES,
        context_schedule,
        context_stride,
        closed_loop,
        fuse_method,
        FRAMES,
        freenoise,
        "0" if retain_first_frame else "",
        split_conds_to_windows,
        "",
        True,
    )


def _with_windows(model: Recipe, windows: ContextWindows) -> Recipe:
    if windows.overlap >= windows.length:
        raise NodeError(
            f"context_overlap is {windows.overlap} latent frames, and a window has {windows.length}; it must be shorter"
        )
    return model.with_patch(windows)


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (-1,)
    if min(numbers, default=0) < 0:
        raise NodeError(f"{name} is {text!r}; it is to be numbers of latent frames with commas between them")
    return numbers
