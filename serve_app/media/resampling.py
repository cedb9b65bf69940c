"""Resampling of audio by a windowed sinc: torchaudio's method with its defaults.

Source: J. O. Smith, "Digital Audio Resampling" (ccrma.stanford.edu/~jos/resample); Hann window, six zero crossings to
either side, the cutoff at 0.99 of the lower Nyquist frequency.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
BLOCK = 1 << 20
"""How many products are held at a time."""


def length_at(length: int, rate: int, to: int) -> int:
    """Return the number of samples after resampling. Errors: NodeError for rates below 1."""
    if rate < 1 or to < 1:
        raise NodeError(f"a sound of {rate} Hz cannot become one of {to} Hz; sample rates are 1 or more")
    return math.ceil(length * to / rate)


def resample(waveform: Tensor, rate: int, to: int) -> Tensor:
    """Return audio (…,T) at another sample rate, (…,ceil(T·to/rate)). Errors: NodeError for rates below 1."""
    length = length_at(waveform.shape[-1], rate, to)
    if rate == to or not length:
        return waveform
    common = math.gcd(rate, to)
    old, new = rate // common, to // common
    # A filter for each of the `new` phases of an output between two inputs; they repeat after `old` inputs.
    cutoff = min(old, new) * ROLLOFF
    reach = math.ceil(ZERO_CROSSINGS * old / cutoff)
    phase = np.arange(new)
    first = phase * old // new - reach
    offset = (first[:, None] + np.arange(2 * reach + 2)) / old - phase[:, None] / new
    t = np.clip(offset * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(t * np.pi / ZERO_CROSSINGS / 2) ** 2
    filters = torch.from_numpy(np.sinc(t) * window * (cutoff / old)).to(waveform)
    firsts = torch.from_numpy(first + reach)

    flat = waveform.reshape(-1, waveform.shape[-1])
    padded = torch.nn.functional.pad(flat, (reach, reach + 2))
    taps = torch.arange(filters.shape[1])
    out = flat.new_empty(len(flat), length)
    step = max(1, BLOCK // (filters.shape[1] * max(1, len(flat))))
    for start in range(0, length, step):
        outputs = torch.arange(start, min(start + step, length))
        at = (outputs // new * old + firsts[outputs % new])[:, None] + taps
        out[:, start : start + step] = (padded[:, at.clamp_(max=padded.shape[1] - 1)] * filters[outputs % new]).sum(-1)
    return out.reshape(*waveform.shape[:-1], length)
