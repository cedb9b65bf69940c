"""The nodes that change SIGMAS, or read a level off a model."""

from __future__ import annotations

import re
from math import inf
from typing import Annotated

from torch import tensor

from serve_app.errors import NodeError
from serve_app.execution.size import allow_levels
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Float, Int, Text
from serve_app.nodes.sockets import FLOAT, MODEL, RUNTIME, SIGMAS
from serve_app.sampling.schedules.schedules import SPACINGS, extended

CATEGORY = "model/sampling/sigmas"

ABOVE_ALL = 999999999.9
"""What ComfyUI says of the level above every other."""

LEAST_START = 0.0001
"""What a first level of 0 becomes: from 0 itself no sampler can set out."""


@node("SplitSigmas", category=CATEGORY, function="get_sigmas", return_names=("high_sigmas", "low_sigmas"))
def split_sigmas(sigmas: SIGMAS, step: Annotated[int, Int(0, min=0, max=10000)]) -> tuple[SIGMAS, SIGMAS]:
    """Sigmas before and after a step. Return both parts; the step's level ends one and begins the other."""
    return (sigmas[: step + 1], sigmas[step:])


@node("SplitSigmasDenoise", category=CATEGORY, function="get_sigmas", return_names=("high_sigmas", "low_sigmas"))
def split_sigmas_denoise(
    sigmas: SIGMAS, denoise: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)]
) -> tuple[SIGMAS, SIGMAS]:
    """Sigmas before and within the last share of the steps.

    Return both parts; where the share holds no step the first is empty, as in ComfyUI.
    """
    steps = round(max(len(sigmas) - 1, 0) * denoise)
    return (sigmas[:-steps], sigmas[-(steps + 1) :])


@node("FlipSigmas", category=CATEGORY, function="get_sigmas")
def flip_sigmas(sigmas: SIGMAS) -> SIGMAS:
    """Sigmas in reverse order, for sampling towards noise.

    Return the sigmas from the last to the first; a first 0 becomes a little more.
    """
    flipped = sigmas.flip(0)
    if len(flipped) and flipped[0] == 0:
        flipped[0] = LEAST_START
    return flipped


@node("SetFirstSigma", category=CATEGORY, function="set_first_sigma")
def set_first_sigma(
    sigmas: SIGMAS, sigma: Annotated[float, Float(136.0, min=0.0, max=20000.0, step=0.001, round=False)]
) -> SIGMAS:
    """Sigmas that begin at another level.

    Return the sigmas with the first one set. Errors: NodeError if there is none.
    """
    if not len(sigmas):
        raise NodeError("sigmas is empty, so it has no first level to set")
    changed = sigmas.clone()
    changed[0] = sigma
    return changed


@node("ExtendIntermediateSigmas", category=CATEGORY, function="extend")
def extend_intermediate_sigmas(
    sigmas: SIGMAS,
    steps: Annotated[int, Int(2, min=1, max=100)],
    start_at_sigma: Annotated[float, Float(-1.0, min=-1.0, max=20000.0, step=0.01, round=False)],
    end_at_sigma: Annotated[float, Float(12.0, min=0.0, max=20000.0, step=0.01, round=False)],
    spacing: Annotated[str, Choice(SPACINGS)],
) -> SIGMAS:
    """Sigmas with further ones between, in a range of levels.

    Return the sigmas with each step in the range made into several; a start below 0 is above every level.
    """
    highest = inf if start_at_sigma < 0 else start_at_sigma
    allow_levels(max(0, len(sigmas) - 1) * steps)
    return extended(sigmas, steps, highest, end_at_sigma, spacing)


@node("SamplingPercentToSigma", category=CATEGORY, function="get_sigma", return_names=("sigma_value",))
async def sampling_percent_to_sigma(
    model: MODEL,
    sampling_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.0001)],
    return_actual_sigma: Annotated[
        bool,
        Bool(
            False,
            tooltip="The model's own highest and lowest level at 0.0 and 1.0, "
            "not the bounds that ranges are checked by.",
        ),
    ],
    runtime: RUNTIME,
) -> FLOAT:
    """The level at a share of a model's timesteps.

    Return the level; at the ends, what bounds all levels unless the model's own are asked for.
    """
    levels = await runtime.levels(model)
    if return_actual_sigma and sampling_percent in (0.0, 1.0):
        return levels.sigma_max if sampling_percent == 0.0 else levels.sigma_min
    return min(levels.at_progress(sampling_percent), ABOVE_ALL)


@node("ManualSigmas", category="model/sampling/sigmas", function="read", experimental=True)
def manual_sigmas(sigmas: Annotated[str, Text("1, 0.5", multiline=False)]) -> SIGMAS:
    """Sigmas as they are written.

    Return the numbers of the text, whatever stands between them; none, with which no step is made, of others.
    """
    return tensor([float(number) for number in re.findall(r"[-+]?(?:\d*\.)?\d+", sigmas)])
