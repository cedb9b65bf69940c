"""What a backbone predicts, and on which noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Discrete:
    """Training on a table of noise levels (ComfyUI's ModelSamplingDiscrete).

    prediction: "eps", "v_prediction", "lcm", "x0", "img_to_img" or "img_to_img_flow". zsnr: the top level has (almost)
    no signal left.
    even: betas grow by equal steps, as PixArt's do, and not by equal steps of their roots.
    """

    prediction: str = "eps"
    zsnr: bool = False
    even: bool = False


@dataclass(frozen=True, slots=True)
class ContinuousEdm:
    """Training on any noise level between two (ComfyUI's ModelSamplingContinuousEDM).

    prediction: "eps", "v_prediction", "edm" or "edm_playground_v2.5", which has latents of its own as well.
    """

    prediction: str
    sigma_max: float
    sigma_min: float


@dataclass(frozen=True, slots=True)
class ContinuousV:
    """As ContinuousEdm with v-prediction; the timestep is the level as an angle (ModelSamplingContinuousV)."""

    sigma_max: float
    sigma_min: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Training on straight lines from image to noise, on levels 0…1 shifted towards noise (ModelSamplingDiscreteFlow).

    shift: above 0; 1 shifts nothing. multiplier: the timestep is the level times this.
    """

    shift: float
    multiplier: float = 1000.0


@dataclass(frozen=True, slots=True)
class AudioVideoFlow(Flow):
    """As Flow, on the levels of a video whose sound has a schedule of its own (ModelSamplingAV).

    sound_shift: of that schedule. The run samples the sound on the video's, times shift / sound_shift.
    """

    sound_shift: float = 3.0


@dataclass(frozen=True, slots=True)
class FluxFlow:
    """As Flow with a shift of e^mu and a finer table; the timestep is the level itself (ModelSamplingFlux)."""

    mu: float


Training: TypeAlias = Discrete | ContinuousEdm | ContinuousV | Flow | AudioVideoFlow | FluxFlow
"""What a backbone predicts and on which noise levels: read from its file, or set by a patch."""
