"""The protocol of samplers: generators that yield the model evaluations they need and are sent the results.

A sampler never sees the model, so the engine can answer evaluations of many samplers with one forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents, LazySum, value
from serve_app.sampling.samplers.error_estimate import ErrorEstimate
from serve_app.sampling.schedules.levels import Interpolation, Levels

Sampler: TypeAlias = Generator["Evaluation | ErrorEstimate", Any, Latents]
"""Yields Evaluation; is sent `denoised`, shaped as its x, or the pair (denoised, uncond) where that was wanted. Yields
ErrorEstimate; is sent its number.

Given tensors it computes at once; given a LazySum it returns lazy sums for the caller to materialize.
"""

NoiseSource: TypeAlias = Callable[[float, float], Latents]
"""Called with two noise levels (from, to); returns unit-variance noise, shaped as x."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One D(x, sigma) that a sampler waits for.

    x: noisy latents (B,C,h,w) at `sigma`. step: its index in sigmas; several evaluations may share one. want_uncond:
    send (denoised, uncond's denoised) instead of denoised alone. substep: counts a sampler's own steps within one of
    sigmas. kept: other sums to materialize with x, for later steps. blocks: frames of each block of x, a video: all but
    the last are done and without noise; (): x is at sigma as a whole.
    """

    x: Latents
    sigma: float
    step: int
    want_uncond: bool = False
    substep: int = 0
    kept: tuple[Latents, ...] = ()
    blocks: tuple[int, ...] = ()

    @property
    def latents(self) -> Tensor:
        """x as a tensor."""
        return value(self.x)


def next_evaluation(sampler: Sampler, answer: Any) -> Evaluation:
    """Send a sampler an answer, and return its next evaluation; error estimates in between are read alone.

    Errors: StopIteration at its end, with the latents, and whatever it raises.
    """
    asked = sampler.send(answer)
    while isinstance(asked, ErrorEstimate):
        asked = sampler.send(asked.number)
    return asked


def guided(evaluation: Evaluation, cfg_pp: bool) -> Generator[Evaluation, Any, tuple[Latents, Latents]]:
    """Yield an evaluation and return (denoised, unguided), the second without guidance if cfg_pp, else the same.

    A CFG++ sampler is the plain one that takes the noise in x from `unguided`: x then leaves the guided image towards
    the noise that the unguided model predicts. Source: Chung et al. 2024, arXiv:2406.08070, Algorithm 2.
    """
    if cfg_pp:
        denoised, uncond = yield replace(evaluation, want_uncond=True)
        return denoised, uncond
    denoised = yield evaluation
    return denoised, denoised


DrawnNoise: TypeAlias = Callable[[float, float], Tensor]
"""A NoiseSource of noise drawn in advance."""

NoiseFactory: TypeAlias = Callable[[Tensor, Tensor, int], DrawnNoise]
"""Called with (x, sigmas, seed) as a run starts."""


@runtime_checkable
class Foreseen(Protocol):
    """A NoiseSource that can draw in advance."""

    def expect(self, pairs: Iterable[tuple[float, float]]) -> None:
        """Prepare the noise between these levels, in this order, where that saves time."""
        ...


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """A sampler with its name and requirements.

    function: (x, sigmas), and a NoiseSource third if `noise` makes one. discards_penultimate: the schedule is made one
    step longer and its last level above zero is left out. fresh_inpaint_noise: the kept region of an inpainting gets
    noise of seed + 1 instead of the job's own. for_levels: keyword arguments that depend on the model's levels.
    on_flow: maps the function to its variant for flows; None: the same.
    """

    function: Callable[..., Sampler]
    noise: NoiseFactory | None = None
    discards_penultimate: bool = False
    fresh_inpaint_noise: bool = False
    for_levels: Callable[[Levels], dict[str, Any]] | None = None
    on_flow: Callable[[Callable[..., Sampler], Interpolation], Callable[..., Sampler]] | None = None

    def start(
        self,
        x: Latents,
        sigmas: Tensor,
        seed: int,
        levels: Levels,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Sampler:
        """Return the sampler over x (B,C,h,w), which is at sigmas[0].

        seed: of the sampler's noise, if it draws any. options: keyword arguments of the function.
        """
        decided = {} if self.for_levels is None else self.for_levels(levels)
        function = self.function
        if self.on_flow is not None and isinstance(levels, Interpolation):
            function = self.on_flow(function, levels)
        given = {**decided, **options}
        if self.noise is None:
            return function(x, sigmas, **given)
        source = self.noise(value(x), sigmas, seed)
        if isinstance(source, Foreseen):
            source.expect(foreseen_draws(function, sigmas, given))
        if isinstance(x, Tensor):
            return function(x, sigmas, source, **given)
        return function(x, sigmas, lambda sigma, following: LazySum.of(source(sigma, following)), **given)


def foreseen_draws(
    function: Callable[..., Sampler], sigmas: Tensor, given: Mapping[str, Any]
) -> Iterator[tuple[float, float]]:
    """Yield the pairs of levels between which a sampler will draw noise, by running it over empty latents.

    Its levels do not depend on latents, except for samplers whose noise is not foreseen.
    """
    asked: deque[tuple[float, float]] = deque()
    nothing = torch.empty(0)

    def note(sigma: float, following: float) -> Tensor:
        asked.append((sigma, following))
        return nothing

    sampler = function(nothing, sigmas, note, **given)
    answer: Any = None
    while True:
        try:
            evaluation: Evaluation | None = next_evaluation(sampler, answer)
        except (ValueError, ZeroDivisionError, StopIteration):
            # Errors are raised again by the real run, which reports them.
            evaluation = None
        while asked:
            yield asked.popleft()
        if evaluation is None:
            return
        answer = (nothing, nothing) if evaluation.want_uncond else nothing
