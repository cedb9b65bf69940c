"""`model_options` of packs, and conversion of the functions in them to a patch of a recipe.

A pack's function is called with ComfyUI's arguments, in the engine's thread. Source: the facts of ComfyUI 0.33's
`samplers.py` and `model_patcher.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from math import isclose
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.packs.comfy.model_base import BaseModel, ModelSampling
from serve_app.packs.missing import MissingNameError
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.sampling.guidance.guidance_patches import Guided, GuidedBy
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.schedules.levels import Levels

UNSUPPORTED = ("model_function_wrapper", "sampler_calc_cond_batch_function", "context_handler", "multigpu_clones")
"""Options that take the place of what the engine does for many jobs at once."""
UNSUPPORTED_IN_TRANSFORMER = ("wrappers", "callbacks", "optimized_attention_override")


def of_recipe(*arguments: Any, **options: Any) -> Any:
    """A placeholder of a function that the recipe has already. Errors: NodeError when it is called."""
    raise NodeError("this function stands for a patch of the server's own, which packs cannot call")


def copied(options: Any) -> Any:
    """Copy nested dicts and lists, but not their leaves."""
    if isinstance(options, dict):
        return {key: copied(value) for key, value in options.items()}
    return list(options) if isinstance(options, list) else options


def leaves(options: Any) -> Iterator[Any]:
    """Yield the parts that identify options: keys, and values by `id`."""
    if isinstance(options, dict):
        for key, value in options.items():
            yield key
            yield from leaves(value)
    elif isinstance(options, list):
        yield len(options)
        for value in options:
            yield from leaves(value)
    else:
        yield id(options) if callable(options) or isinstance(options, Tensor) else repr(options)


class Branch(list[Any]):
    """A branch of a run for packs, as argument of `calc_cond_batch`. role: its name."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role


def functions(options: Mapping[str, Any]) -> PackFunctions | None:
    """Return the functions in options as a patch; None if there are none.

    Errors: MissingNameError for those that cannot run in a batch with other jobs.
    """
    transformer = {k: v for k, v in options.get("transformer_options", {}).items() if not _empty(v)}
    for place, names in ((options, UNSUPPORTED), (transformer, UNSUPPORTED_IN_TRANSFORMER)):
        for name in names:
            if not _empty(place.get(name)):
                raise MissingNameError(f"comfy.model_patcher.ModelPatcher.model_options[{name!r}]")
    instead, mask = options.get("sampler_cfg_function"), options.get("denoise_mask_function")
    mask = None if mask is of_recipe else mask
    kept = copied(dict(options))
    found = PackFunctions(
        before=tuple(partial(_before, f, kept) for f in options.get("sampler_pre_cfg_function", ())),
        instead=None if instead is None else partial(_instead, instead, kept),
        after=tuple(partial(_after, f, kept) for f in options.get("sampler_post_cfg_function", ())),
        both=bool(options.get("disable_cfg1_optimization", False)),
        mask=None if mask is None else partial(_mask, mask),
        network=copied(transformer) or None,
        options=kept,
    )
    return found if any((found.before, instead, found.after, found.both, mask, found.network)) else None


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(_empty(v) for v in value.values())) or value == []


def _arguments(options: Mapping[str, Any], guided: Guided) -> dict[str, Any]:
    """Return the arguments of every guidance function."""
    model = None
    if guided.branches is not None:
        backbone = guided.branches.backbone
        of_run = {"sample_sigmas": backbone.sigmas}
        options = {**options, "transformer_options": {**options.get("transformer_options", {}), **of_run}}
        model = BaseModel(None, lambda: backbone.levels, backbone.latent_format, guided.branches)
    sigma = torch.full((guided.x.shape[0],), guided.sigma, device=guided.x.device)
    return {
        "cond_scale": guided.scale,
        "sigma": sigma,
        "timestep": sigma,
        "input": guided.x,
        "model": model,
        "model_options": options,
    }


def _branches(guided: Guided) -> tuple[Branch, Branch | None]:
    return Branch(guided.roles[0]), None if guided.skipped else Branch(guided.roles[1])


def _before(function: Callable[..., Any], options: Mapping[str, Any], guided: Guided) -> Guided:
    out = [guided.cond, guided.uncond]
    told = {**_arguments(options, guided), "conds": list(_branches(guided)), "conds_out": out}
    cond, uncond = function(told)[:2]
    return replace(guided, cond=cond, uncond=uncond)


def _instead(function: Callable[..., Any], options: Mapping[str, Any], guided: Guided) -> Tensor:
    cond, uncond = _branches(guided)
    told = {
        **_arguments(options, guided),
        "cond": guided.x - guided.cond,
        "uncond": guided.x - guided.uncond,
        "cond_denoised": guided.cond,
        "uncond_denoised": guided.uncond,
        "input_cond": cond,
        "input_uncond": uncond,
    }
    noise: Tensor = function(told)
    return guided.x - noise


def _after(function: Callable[..., Any], options: Mapping[str, Any], guided: Guided, denoised: Tensor) -> Tensor:
    cond, uncond = _branches(guided)
    told = {
        **_arguments(options, guided),
        "denoised": denoised,
        "cond": cond,
        "uncond": uncond,
        "cond_denoised": guided.cond,
        "uncond_denoised": guided.uncond,
    }
    changed: Tensor = function(told)
    return changed


def _mask(function: Callable[..., Any], mask: Tensor, sigma: float, sigmas: Tensor, levels: Levels) -> Tensor:
    wrapped = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=ModelSampling(levels)))
    level = torch.full((mask.shape[0],), sigma, device=mask.device)
    changed: Tensor = function(level, mask, extra_options={"model": wrapped, "sigmas": sigmas.to(mask.device)})
    return changed


def predicting(guider: Any, functions: PackFunctions | None) -> PackFunctions:
    """Return functions in which a pack's GUIDER combines the branches, by its own `predict_noise`.

    functions: of the guider's model. The guider is copied, as its state is of one use.
    """
    found = functions or PackFunctions()
    options = {"transformer_options": {}, **found.options}
    return replace(found, instead=partial(_predicted, copy(guider), options), both=True)


def _predicted(guider: Any, options: Mapping[str, Any], guided: Guided) -> Tensor:
    told = _arguments(copied(dict(options)), guided)
    guider.conds = {role: Branch(role) for role in guider.original_conds}
    guider.inner_model = told["model"]
    guider.inner_model.branches = _Answered(guided, list(leaves(told["model_options"]["transformer_options"])))
    denoised: Tensor = guider.predict_noise(guided.x, told["timestep"], model_options=told["model_options"], seed=None)
    return denoised


class _Answered:
    """The branches of a run, with the results of the current evaluation.

    unchanged: the identity of the options of that evaluation.
    """

    def __init__(self, guided: Guided, unchanged: Sequence[Any]) -> None:
        assert guided.branches is not None
        self._guided, self._branches, self._unchanged = guided, guided.branches, unchanged
        self.backbone = guided.branches.backbone

    def answer(self, role: str, x: Tensor, sigma: float, functions: PackFunctions | None = None) -> Tensor:
        """Return a branch's denoised, from the run's forward if it has it, else from another one."""
        guided = self._guided
        same = functions is None or list(leaves(functions.options.get("transformer_options", {}))) == self._unchanged
        if x is guided.x and isclose(sigma, guided.sigma, rel_tol=1e-6) and role in guided.roles and same:
            return guided.cond if role == guided.roles[0] else guided.uncond
        return self._branches.answer(role, x, sigma, functions)


def sampling_function(
    model: BaseModel,
    x: Tensor,
    timestep: Tensor,
    uncond: Branch | None,
    cond: Branch | None,
    cond_scale: float,
    model_options: Mapping[str, Any] = MappingProxyType({}),
    seed: int | None = None,
) -> Tensor:
    """Return denoised by classifier-free guidance, inside a guider's `predict_noise`.

    Functions before and after guidance run around `predict_noise`, not in calls of this.
    """
    skipped = uncond is None or (isclose(cond_scale, 1.0) and not model_options.get("disable_cfg1_optimization"))
    to, away = calc_cond_batch(model, [cond, None if skipped else uncond], x, timestep, model_options)
    roles = ("" if cond is None else cond.role, "" if uncond is None else uncond.role)
    guided = GuidedBy(x, float(timestep.flatten()[0]), cond_scale, to, away, skipped, roles, model.branches)
    instead = model_options.get("sampler_cfg_function")
    return value(guided.plain()) if instead is None else _instead(instead, model_options, guided)


def calc_cond_batch(
    model: BaseModel, conds: Sequence[Branch | None], x_in: Tensor, timestep: Tensor, model_options: Mapping[str, Any]
) -> list[Tensor]:
    """Return the network's output for x in each branch, inside a guidance function; zeros for None.

    Errors: NodeError for conds that are no branches of the run.
    """
    if model.branches is None or any(not isinstance(cond, Branch | None) for cond in conds):
        raise NodeError("calc_cond_batch takes the model and the conds that a guidance function was given")
    transformer = {"transformer_options": model_options.get("transformer_options", {})}
    within = functions(transformer) or PackFunctions(options=transformer)
    sigma = float(timestep.flatten()[0])
    return [
        torch.zeros_like(x_in) if cond is None else model.branches.answer(cond.role, x_in, sigma, within)
        for cond in conds
    ]


def set_model_options_patch_replace(
    model_options: dict[str, Any],
    patch: Any,
    name: str,
    block_name: str,
    number: int,
    transformer_index: int | None = None,
) -> dict[str, Any]:
    """Add a replacement of an attention to options, and return them. Dicts in them are copied, not changed."""
    block = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
    transformer = dict(model_options.get("transformer_options", {}))
    replaced = dict(transformer.get("patches_replace", {}))
    replaced[name] = {**replaced.get(name, {}), block: patch}
    transformer["patches_replace"] = replaced
    model_options["transformer_options"] = transformer
    return model_options


def set_model_options_post_cfg_function(
    model_options: dict[str, Any], post_cfg_function: Any, disable_cfg1_optimization: bool = False
) -> dict[str, Any]:
    """Add a function after guidance to options, and return them."""
    return _appended(model_options, "sampler_post_cfg_function", post_cfg_function, disable_cfg1_optimization)


def set_model_options_pre_cfg_function(
    model_options: dict[str, Any], pre_cfg_function: Any, disable_cfg1_optimization: bool = False
) -> dict[str, Any]:
    """Add a function before guidance to options, and return them."""
    return _appended(model_options, "sampler_pre_cfg_function", pre_cfg_function, disable_cfg1_optimization)


def _appended(options: dict[str, Any], name: str, function: Any, both: bool) -> dict[str, Any]:
    options[name] = [*options.get(name, ()), function]
    if both:
        options["disable_cfg1_optimization"] = True
    return options
