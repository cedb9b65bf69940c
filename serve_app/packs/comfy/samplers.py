"""`comfy.samplers` for node packs: samplers, guiders and noise as objects, and KSampler.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from serve_app.execution.size import allow_levels
from serve_app.nested_tensor import Samples
from serve_app.packs.comfy.k_diffusion import function_of
from serve_app.packs.comfy.model_options import predicting, sampling_function
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.comfy.pack_sampler import run_in_thread
from serve_app.packs.comfy.schedules import HANDLERS, calculate_sigmas
from serve_app.packs.missing import MissingMemberError
from serve_app.packs.waiting import run_on_loop, runtime
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.noise import drawn
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.sigmas import sigmas_for
from serve_app.values import Cfg, Guider, Noise, SamplerChoice

Callback = Callable[[int, Any, Any, int], Any]
"""(the step's index, its estimate of the image, x, steps in all) -> ignored; as the model samples latents."""


class Sampler:
    """A SAMPLER. A pack's own has a method `sample`, and runs in a thread beside the engine's."""

    def sample(self, *arguments: Any, **options: Any) -> Any:
        """Errors: MissingMemberError. The server's own samplers run within the engine alone."""
        raise MissingMemberError("comfy.samplers.Sampler.sample")

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Whether sampling begins at the model's highest level, or above it."""
        highest = float(model_wrap.inner_model.model_sampling.sigma_max)
        return float(sigmas[0]) > highest or abs(float(sigmas[0]) - highest) <= 1e-5 * highest

    def plain(self) -> SamplerChoice:
        """Return what goes on a link."""
        return SamplerChoice(type(self).__name__, start=partial(run_in_thread, self))


class KSAMPLER(Sampler):
    """A sampler of a function: one of the server's by its name, or a pack's, called as those of k-diffusion are.

    extra_options: its keyword arguments.
    """

    def __init__(
        self,
        sampler_function: Any,
        extra_options: Mapping[str, Any] | None = None,
        inpaint_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.sampler_function = sampler_function
        self.extra_options = dict(extra_options or {})
        self.inpaint_options = dict(inpaint_options or {})
        self._given: SamplerChoice | None = None

    @classmethod
    def of(cls, choice: SamplerChoice) -> KSAMPLER:
        """Convert a SAMPLER on a link for packs."""
        made = cls(function_of(choice.name) if choice.start is None else choice.start, choice.options)
        made._given = choice
        return made

    def plain(self) -> SamplerChoice:
        name = getattr(self.sampler_function, "sampler_name", None)
        if self._given is not None and self.extra_options == dict(self._given.options):
            return self._given
        if name is not None:
            return SamplerChoice(name, self.extra_options)
        return SamplerChoice(getattr(self.sampler_function, "__name__", "sampler"), start=partial(run_in_thread, self))


def ksampler(
    sampler_name: str,
    extra_options: Mapping[str, Any] | None = None,
    inpaint_options: Mapping[str, Any] | None = None,
) -> KSAMPLER:
    """Return one of the server's samplers, or one that a pack has added. Errors: NodeError for an unknown name."""
    return KSAMPLER(function_of(sampler_name), extra_options, inpaint_options)


def sampler_object(name: str) -> KSAMPLER:
    """Return a sampler by name, with its usual options."""
    return ksampler(name)


class DrawnNoise:
    """A NOISE on a link, for packs."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.seed = noise, noise.seed

    def generate_noise(self, input_latent: Mapping[str, Any]) -> Samples:
        """Return the noise of a LATENT."""
        return drawn(self.noise, input_latent["samples"], input_latent.get("batch_index"))


class Noise_RandomNoise(DrawnNoise):
    """The noise of a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(Noise(seed))


class Noise_EmptyNoise(DrawnNoise):
    """No noise at all."""

    def __init__(self) -> None:
        super().__init__(Noise(0, added=False))


def is_noise(value: Any) -> bool:
    """Whether a value is a NOISE of a pack's own."""
    return callable(getattr(type(value), "generate_noise", None)) and isinstance(getattr(value, "seed", None), int)


def noise_of(value: Any) -> Noise:
    """Convert a pack's own NOISE for a link; it is drawn when it is used."""

    def draw(latents: Samples, batch_index: Sequence[int] | None) -> Samples:
        told: dict[str, Any] = {"samples": latents}
        if batch_index is not None:
            told["batch_index"] = list(batch_index)
        made: Samples = value.generate_noise(told)
        return made

    return Noise(value.seed, draw=draw)


class CFGGuider:
    """A GUIDER: a model and its conditionings, guided from the negative to the positive.

    A subclass may override `predict_noise`, which the engine then calls in place of guidance, with the branches of its
    shared forward. An override of its callers is refused when it is used: the engine does those for many jobs.
    """

    def __init__(self, model_patcher: ModelPatcher) -> None:
        self.model_patcher = model_patcher
        self.model_options = model_patcher.model_options
        self.original_conds: dict[str, Any] = {}
        self.conds: dict[str, Any] = {}
        self.inner_model: Any = None
        self.cfg = 1.0
        self._rule: Any = None
        self._negative: Recipe | None = None

    @classmethod
    def of(cls, guider: Guider, shown: Callable[[Any], Any]) -> CFGGuider:
        """Convert a GUIDER on a link for packs."""
        made = cls(shown(guider.backbone))
        made.original_conds = {role: shown(conditioning) for role, conditioning in guider.conds.items()}
        made._rule, made.cfg = guider.rule, guider.rule.scale
        made._negative = guider.negative_backbone
        return made

    def plain(self, plain: Callable[[Any], Any]) -> Guider:
        """Convert to a value for a link. Errors: MissingMemberError for unsupported overrides of a subclass."""
        if self._overrides("sample"):
            raise MissingMemberError("comfy.samplers.CFGGuider.sample of a subclass")
        return self._of_engine(plain)

    def _of_engine(self, plain: Callable[[Any], Any]) -> Guider:
        for name in ("outer_predict_noise", "inner_sample", "outer_sample", "__call__"):
            if self._overrides(name):
                raise MissingMemberError(f"comfy.samplers.CFGGuider.{name} of a subclass")
        conds = {role: plain(conditioning) for role, conditioning in self.original_conds.items()}
        backbone: Recipe = plain(self.model_patcher)
        if self._overrides("predict_noise"):
            kept = tuple(patch for patch in backbone.patches if not isinstance(patch, PackFunctions))
            functions = predicting(self, backbone.last(PackFunctions))
            return Guider(replace(backbone, patches=(*kept, functions)), conds, Cfg(1.0), self._negative)
        rule = Cfg(self.cfg) if self._rule is None or self._rule.scale != self.cfg else self._rule
        return Guider(backbone, conds, rule, self._negative)

    def _overrides(self, name: str) -> bool:
        return any(name in vars(kind) for kind in type(self).__mro__ if kind is not CFGGuider and kind is not object)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Return denoised by this guider's scale; for calls of a subclass's `predict_noise`."""
        negative, positive = self.conds.get("negative"), self.conds.get("positive")
        options = model_options or {}
        return sampling_function(self.inner_model, x, timestep, negative, positive, self.cfg, options, seed)

    def set_conds(self, positive: Any, negative: Any) -> None:
        """Set both conditionings."""
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds: Mapping[str, Any]) -> None:
        """Set conditionings by role."""
        self.original_conds = dict(conds)

    def set_cfg(self, cfg: float) -> None:
        """Set the scale."""
        self.cfg = cfg

    def sample(
        self,
        noise: Samples,
        latent_image: Samples,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Samples | None = None,
        callback: Callback | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Any:
        """Return latents as sampled from these, with this noise."""
        from serve_app.packs.values import plain

        guider = self._of_engine(plain)
        return run(guider, noise, latent_image, sampler, sigmas, denoise_mask, callback, seed).latents


class Guider_Basic(CFGGuider):
    """One conditioning, without guidance."""

    def set_conds(self, positive: Any, negative: Any = None) -> None:
        self.inner_set_conds({"positive": positive})


class Guider_DualCFG(CFGGuider):
    """Guidance in two stages. Errors: MissingMemberError; the node DualCFGGuider makes one."""

    def set_conds(self, *conds: Any) -> None:
        raise MissingMemberError("comfy_extras.nodes_custom_sampler.Guider_DualCFG.set_conds")


def run(
    guider: Guider,
    noise: Samples,
    latents: Samples,
    sampler: Any,
    sigmas: Tensor | Steps,
    mask: Samples | None = None,
    callback: Callback | None = None,
    seed: int | None = None,
) -> Sampled:
    """Sample with a given noise. sampler: a name, or a SAMPLER; seed: of the sampler's own noise."""
    choice = (sampler_object(sampler) if isinstance(sampler, str) else sampler).plain()
    request = SamplingRequest(
        guider,
        latents,
        choice,
        sigmas,
        Noise(0 if seed is None else seed, draw=lambda *_: noise),
        noise_mask=mask,
        after_step=callback,
    )
    return run_on_loop(runtime("sampling").sample(request), "sampling")


run._asks_for_runtime = True  # type: ignore[attr-defined]


def sample(
    model: ModelPatcher,
    noise: Tensor,
    positive: Any,
    negative: Any,
    cfg: float,
    device: Any,
    sampler: Any,
    sigmas: Tensor,
    model_options: Any = None,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    callback: Callback | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Sample over any sigmas with any sampler."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    latents = torch.zeros_like(noise) if latent_image is None else latent_image
    sampled: Tensor = guider.sample(noise, latents, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
    return sampled


def sigmas_of(model: ModelPatcher, sampler_name: str, steps: Steps) -> Tensor:
    """Return the levels of a window of a schedule, the server's or one that a pack has added.

    A sampler that a pack has added takes the levels as they are, as euler does. Errors: NodeError for too many.
    """
    allow_levels(steps.count, steps.denoise)
    model_sampling = model.get_model_object("model_sampling")
    schedule = {steps.schedule: lambda _, count: calculate_sigmas(model_sampling, steps.schedule, count)}
    sampler = SAMPLERS[sampler_name if sampler_name in SAMPLERS else "euler"]
    return sigmas_for(model_sampling.levels, steps, sampler, schedule)


_DISCARDING = frozenset(name for name, spec in SAMPLERS.items() if spec.discards_penultimate)


class KSampler:
    """A sampler and a schedule for a model. sigmas: those it steps over."""

    SCHEDULERS: ClassVar[list[str]] = list(HANDLERS)
    SAMPLERS: ClassVar[list[str]] = list(SAMPLERS)
    DISCARD_PENULTIMATE_SIGMA_SAMPLERS = _DISCARDING

    def __init__(
        self,
        model: ModelPatcher,
        steps: int,
        device: Any = None,
        sampler: str | None = None,
        scheduler: str | None = None,
        denoise: float | None = None,
        model_options: Any = None,
    ) -> None:
        self.model, self.device = model, device
        self.sampler = sampler if sampler in self.SAMPLERS else self.SAMPLERS[0]
        self.scheduler = scheduler if scheduler in self.SCHEDULERS else self.SCHEDULERS[0]
        self.model_options = model_options or {}
        self.set_steps(steps, denoise)

    def calculate_sigmas(self, steps: int) -> Tensor:
        """Return the whole schedule of `steps` steps."""
        return sigmas_of(self.model, self.sampler, Steps(self.scheduler, steps))

    def set_steps(self, steps: int, denoise: float | None = None) -> None:
        """Set how many steps there are, and which share of the schedule they are the end of."""
        self.steps, self.denoise = steps, denoise
        window = Steps(self.scheduler, steps, 1.0 if denoise is None else denoise)
        self.sigmas = sigmas_of(self.model, self.sampler, window)

    def sample(
        self,
        noise: Tensor,
        positive: Any,
        negative: Any,
        cfg: float,
        latent_image: Tensor | None = None,
        start_step: int | None = None,
        last_step: int | None = None,
        force_full_denoise: bool = False,
        denoise_mask: Tensor | None = None,
        sigmas: Tensor | None = None,
        callback: Callback | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """Sample a window of the steps."""
        latents = torch.zeros_like(noise) if latent_image is None else latent_image
        levels = self.sigmas if sigmas is None else sigmas
        if last_step is not None and last_step < len(levels) - 1:
            levels = levels[: last_step + 1].clone()
            if force_full_denoise:
                levels[-1] = 0
        if start_step is not None:
            if start_step >= len(levels) - 1:
                return latents
            levels = levels[start_step:]
        guider = CFGGuider(self.model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sampled: Tensor = guider.sample(
            noise, latents, self.sampler, levels, denoise_mask, callback, disable_pbar, seed
        )
        return sampled
