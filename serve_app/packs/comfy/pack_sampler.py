"""Adapts a pack's sampler function, which calls the model, to the engine's generator protocol, by a thread.

The engine's samplers yield evaluations (`sampling/samplers/evaluation.py`); k-diffusion's call the model. The function
runs in a thread that blocks while its evaluation is computed, and the engine blocks while the function computes the
next one. The thread ends with its run in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from serve_app.packs.comfy.model_base import ModelSampling
from serve_app.packs.missing import MissingMemberError
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler
from serve_app.sampling.schedules.levels import Levels


class _Ended(BaseException):
    """Raised in the sampler's thread once its run has ended."""


class _Model:
    """The model as a sampler's function calls it: (x, sigmas (B,), …) to denoised."""

    def __init__(self, asked: SimpleQueue[Any], answers: SimpleQueue[Any], sigmas: Tensor, levels: Levels) -> None:
        self._asked, self._answers = asked, answers
        self.sigmas = sigmas
        self.step = 0
        self.model_sampling = ModelSampling(levels)
        self.inner_model = SimpleNamespace(model_sampling=self.model_sampling, inner_model=self)

    def __call__(self, x: Tensor, sigma: Any, **extra: Any) -> Tensor:
        level = float(torch.as_tensor(sigma).flatten()[0])
        reached = int((self.sigmas.cpu() > level + 1e-6).sum())
        self.step = max(self.step, min(reached, len(self.sigmas) - 2))
        after = (extra.get("model_options") or {}).get("sampler_post_cfg_function", ())
        self._asked.put(Evaluation(x, level, self.step, want_uncond=bool(after)))
        answer = self._answers.get()
        if answer is None:
            raise _Ended
        if not after:
            made: Tensor = answer
            return made
        denoised: Tensor = answer[0]
        uncond = answer[1]
        for function in after:
            denoised = function({"denoised": denoised, "uncond_denoised": uncond, "sigma": sigma, "input": x})
        return denoised

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.samplers.KSamplerX0Inpaint.{name}")


def run_in_thread(given: Any, x: Tensor, sigmas: Tensor, seed: int, levels: Levels) -> Sampler:
    """Return the sampler of a pack's SAMPLER object over x, which is at sigmas[0]."""
    asked: SimpleQueue[Any] = SimpleQueue()
    answers: SimpleQueue[Any] = SimpleQueue()
    model = _Model(asked, answers, sigmas, levels)
    function = getattr(given, "sampler_function", None)
    options: Mapping[str, Any] = getattr(given, "extra_options", {})

    def after_step(told: Mapping[str, Any]) -> None:
        model.step = int(told["i"])

    def call() -> Tensor:
        extra = {"model_options": {}, "seed": seed}
        if function is None:
            raise MissingMemberError(f"comfy.samplers.Sampler.sample of {type(given).__name__}")
        made: Tensor = function(
            model, x, sigmas.to(x.device), extra_args=extra, callback=after_step, disable=True, **options
        )
        return made

    Thread(target=_run, args=(call, asked), name="pack-sampler", daemon=True).start()
    try:
        while isinstance(item := asked.get(), Evaluation):
            answers.put((yield item))
    finally:
        answers.put(None)
    if isinstance(item, BaseException):
        raise item
    latents: Tensor = item
    return latents


def _run(call: Callable[[], Tensor], asked: SimpleQueue[Any]) -> None:
    try:
        with torch.inference_mode():
            asked.put(call())
    except _Ended:
        pass
    except BaseException as error:
        asked.put(error)
