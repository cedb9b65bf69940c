"""The server's own node classes as a synchronous library for packs, with ComfyUI's arguments.

`nodes.VAEDecode().decode(vae, samples)` is a library call to a pack. Here it may have to await the engine, and takes
capabilities as hidden inputs: the wrappers do both. Source: the facts of ComfyUI's own node classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.protocol import spec_of
from serve_app.nodes.sampling.ksampler import run, with_samples
from serve_app.packs.comfy.samplers import sampler_object, sigmas_of
from serve_app.packs.comfy_api.node import NodeOutput
from serve_app.packs.values import plain, shown
from serve_app.packs.waiting import capability, run_on_loop, runtime
from serve_app.sampling.request import Steps
from serve_app.sampling.schedules.sigmas import SCHEDULES
from serve_app.values import Cfg, Guider, Noise

CHOICES_AS_MEMBERS = {"upscale_method": "upscale_methods", "crop": "crop_methods"}
"""Choices of an input that ComfyUI's classes have as a member too, where packs read them."""


def library(classes: Mapping[str, type]) -> dict[str, type]:
    """Return the classes as packs call, subclass and look them up, by name."""
    return {name: _callable(name, node_class) for name, node_class in classes.items()}


def common_ksampler(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent: Any,
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
) -> tuple[Any, ...]:
    """Sample a LATENT as KSampler does, or a window of the steps as KSamplerAdvanced, or both."""
    guider = Guider(plain(model), {"positive": plain(positive), "negative": plain(negative)}, Cfg(cfg))
    window = Steps(scheduler, steps, denoise, start_step, last_step, force_full_denoise)
    sigmas = window if scheduler in SCHEDULES else sigmas_of(model, sampler_name, window)
    noise = Noise(seed, added=not disable_noise)
    sampling = run(runtime("common_ksampler"), latent, guider, sampler_object(sampler_name).plain(), sigmas, noise)
    return (with_samples(latent, run_on_loop(sampling, "common_ksampler").latents),)


common_ksampler._asks_for_runtime = True  # type: ignore[attr-defined]


def needs_models(value: object) -> bool:
    """Whether a value is a wrapper of this module, or a subclass of one, that needs RUNTIME."""
    return isinstance(value, type | FunctionType) and getattr(value, "_asks_for_runtime", False) is True


def _callable(class_type: str, node_class: type) -> type:
    spec = spec_of(node_class, class_type)
    hidden = spec.hidden
    function = str(node_class.FUNCTION)  # type: ignore[attr-defined]

    def called(self: object, *values: Any, **named: Any) -> Any:
        return _run(class_type, getattr(super(made, self), function), hidden, values, named)

    body: dict[str, Any] = {function: called, "_asks_for_runtime": "RUNTIME" in hidden.values()}
    choices = {i.name: list(i.choices) for i in spec.inputs if i.choices is not None}
    body |= {member: choices[name] for name, member in CHOICES_AS_MEMBERS.items() if name in choices}
    if function != "execute":
        body["execute"] = _Executed(function)
    made = type(class_type, (node_class,), {**body, "__module__": "nodes", "__doc__": node_class.__doc__})
    return made


class _Executed:
    """`execute` as V3 classes have it: called on the class, it returns a NodeOutput."""

    def __init__(self, function: str) -> None:
        self._function = function

    def __get__(self, instance: object, owner: type) -> Callable[..., NodeOutput]:
        def execute(*values: Any, **named: Any) -> NodeOutput:
            returned = getattr(owner(), self._function)(*values, **named)
            if isinstance(returned, Mapping):
                return NodeOutput(*(returned.get("result") or ()), ui=returned.get("ui"))
            return NodeOutput(*returned)

        return execute


def _run(
    class_type: str,
    function: Callable[..., Any],
    hidden: Mapping[str, str],
    values: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Any:
    """Call a node's function with hidden inputs, and convert arguments and results for packs.

    Errors: NodeError outside a node; the function's own.
    """
    parameters = inspect.signature(function).parameters
    order = [name for name in parameters if name not in hidden]
    if len(values) > len(order) or (unknown := sorted(named.keys() - parameters.keys())):
        given = f"{len(values)} arguments" if len(values) > len(order) else f"the argument {unknown[0]!r}"
        raise NodeError(f"{class_type} was called with {given}; it takes {', '.join(order)}")
    arguments = {name: plain(value) for name, value in {**dict(zip(order, values, strict=False)), **named}.items()}
    for name, kind in hidden.items():
        if name in parameters and name not in arguments:
            arguments[name] = capability(kind, class_type)
    returned = function(**arguments)
    return shown(run_on_loop(returned, class_type) if inspect.iscoroutinefunction(function) else returned)
