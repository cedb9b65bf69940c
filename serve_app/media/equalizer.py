"""Biquad equalizer filters, which raise or lower a band of audio.

Source: R. Bristow-Johnson, "Cookbook formulae for audio equalizer biquad filter coefficients" (W3C note of 2021).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError

Band = Literal["low shelf", "peak", "high shelf"]


def equalized(waveform: Tensor, rate: int, band: Band, gain_db: float, frequency: float, q: float) -> Tensor:
    """Return audio (…,T) with a band changed by `gain_db`, clipped to −1…1.

    frequency: the middle of a peak, or of a shelf's slope, in Hz. Errors: NodeError for a frequency above the Nyquist
    limit.
    """
    # Imported here, as it would add most of a second to every replica's start.
    from scipy.signal import lfilter

    if frequency >= rate / 2:
        raise NodeError(f"the {band} is at {frequency:g} Hz; a sound of {rate} Hz has frequencies below {rate / 2:g}")
    b, a = coefficients(2 * math.pi * frequency / rate, band, gain_db, q)
    filtered = lfilter(b, a, waveform.detach().cpu().double().numpy(), axis=-1)
    return torch.from_numpy(np.clip(filtered, -1, 1)).to(waveform)


def coefficients(w: float, band: Band, gain_db: float, q: float) -> tuple[list[float], list[float]]:
    """Return (b, a) of the filter at w radians a sample."""
    a, cosine, alpha = 10 ** (gain_db / 40), math.cos(w), math.sin(w) / (2 * q)
    if band == "peak":
        return [1 + alpha * a, -2 * cosine, 1 - alpha * a], [1 + alpha / a, -2 * cosine, 1 - alpha / a]
    # The shelves are each other's mirror images: the sign of the cosine says which side is raised.
    sign = 1 if band == "low shelf" else -1
    slope, c = 2 * math.sqrt(a) * alpha, sign * cosine
    numerator = [
        a * ((a + 1) - (a - 1) * c + slope),
        2 * sign * a * ((a - 1) - (a + 1) * c),
        a * ((a + 1) - (a - 1) * c - slope),
    ]
    return numerator, [
        (a + 1) + (a - 1) * c + slope,
        -2 * sign * ((a - 1) + (a + 1) * c),
        (a + 1) + (a - 1) * c - slope,
    ]
