"""Samplers with the options of their nodes, on sigmas of any kind, against ComfyUI: relative error at most 3e-5.

golden/sampler_options.json holds the sigmas by name and the cases: [sampler, options, sigmas]. The rows of
sampler_options.npz are ComfyUI's final latents and what its callback last took for the image, by the samplers that its
parameter nodes make, on the denoiser of `test_samplers`; x is (1,4,4,4), the seed 5, the latents 0.3 times the noise of
seed 6. "flip" begins near zero and ends at the top.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.sampling.lazy_sum import LazySum, compute, value
from serve_app.sampling.noise import noise
from serve_app.sampling.samplers.evaluation import next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.levels import TableLevels
from tests.parity.test_samplers import cond, relative_error, uncond

GOLDEN = Path(__file__).parent / "golden"
FIGURES = json.loads((GOLDEN / "sampler_options.json").read_text())
ARRAYS = dict(np.load(GOLDEN / "sampler_options.npz"))
SHAPE = (1, 4, 4, 4)
SEED = 5


@pytest.mark.parametrize("index", range(len(FIGURES["cases"])))
def test_a_sampler_with_options_gives_comfyuis_latents_and_image(index):
    name, options, key = FIGURES["cases"][index]
    sigmas, levels = torch.tensor(FIGURES["sigmas"][key]), TableLevels()
    start = float(sigmas[0])
    latents = noise(SHAPE, SEED + 1) * 0.3
    x = levels.start(latents, noise(SHAPE, SEED), start)
    sampler = SAMPLERS[name].start(LazySum.of(x), sigmas, SEED, levels, options)
    seen, image, answer = (-1, 0), x, None
    while True:
        try:
            evaluation = next_evaluation(sampler, answer)
        except StopIteration as end:
            final = value(end.value)
            break
        compute([evaluation.x, *evaluation.kept])
        low = uncond(evaluation.latents, evaluation.sigma)
        denoised = low + 2 * (cond(evaluation.latents, evaluation.sigma) - low)
        if (evaluation.step, evaluation.substep) > seen:
            seen, image = (evaluation.step, evaluation.substep), denoised
        given = LazySum.of(denoised)
        answer = (given, LazySum.of(low)) if evaluation.want_uncond else given
    # Where steps grow, differences of nearly equal images are far from each other in what follows; how far is the
    # processor's rounding, too.
    assert relative_error(final.flatten(), ARRAYS["out"][index]) < 3e-5
    assert relative_error(image.flatten(), ARRAYS["denoised"][index]) < 3e-5
