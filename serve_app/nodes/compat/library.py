"""The server's own node classes as packs call them: from a node's thread, with ComfyUI's arguments, waited for.

`nodes.VAEDecode().decode(vae, samples)` is a library call to a pack. Here it may have to await the engine, and takes
capabilities as hidden inputs: both are seen to on the way. Source: the facts of ComfyUI's own node classes.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, TimeoutError
from types import FunctionType
from typing import Any

from serve_app.errors import NodeError
from serve_app.nodes.compat.model_management import throw_exception_if_processing_interrupted
from serve_app.nodes.compat.node import NodeOutput
from serve_app.nodes.executing import executing
from serve_app.nodes.protocol import spec_of

LOOK_S = 0.2
"""How often a waiting call looks whether its job was cancelled."""


def library(classes: Mapping[str, type]) -> dict[str, type]:
    """Return the classes as packs call, subclass and look them up, by name."""
    return {name: _callable(name, node_class) for name, node_class in classes.items()}


def common_ksampler(classes: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """Return `nodes.common_ksampler`, which samples by those classes."""

    def sample(
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
        """Sample as KSampler does, or a window of the steps as KSamplerAdvanced. Errors: NodeError for both at once."""
        rest = (steps, cfg, sampler_name, scheduler, positive, negative, latent)
        if start_step is None and last_step is None and not disable_noise:
            return tuple(classes["KSampler"]().sample(model, seed, *rest, denoise))
        if denoise != 1.0:
            raise NodeError("common_ksampler was called with denoise and a window of the steps; it takes one of them")
        noise, leftover = ("disable" if on else "enable" for on in (disable_noise, force_full_denoise))
        window = (start_step or 0, 10000 if last_step is None else last_step)
        return tuple(classes["KSamplerAdvanced"]().sample(model, noise, seed, *rest, *window, leftover))

    sample._asks_for_runtime = True  # type: ignore[attr-defined]
    return sample


def needs_models(value: object) -> bool:
    """Whether a value is of this module, or a subclass of one, and calls what asks for RUNTIME."""
    return isinstance(value, type | FunctionType) and getattr(value, "_asks_for_runtime", False) is True


def _callable(class_type: str, node_class: type) -> type:
    hidden = spec_of(node_class, class_type).hidden
    function = str(node_class.FUNCTION)  # type: ignore[attr-defined]

    def called(self: object, *values: Any, **named: Any) -> Any:
        return _run(class_type, getattr(super(made, self), function), hidden, values, named)

    body: dict[str, Any] = {function: called, "_asks_for_runtime": "RUNTIME" in hidden.values()}
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


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(
    class_type: str,
    function: Callable[..., Any],
    hidden: Mapping[str, str],
    values: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Any:
    """Call a node's function, hidden inputs filled in. Errors: NodeError outside a node; the function's own."""
    call = executing()
    parameters = inspect.signature(function).parameters
    order = [name for name in parameters if name not in hidden]
    if len(values) > len(order) or (unknown := sorted(named.keys() - parameters.keys())):
        given = f"{len(values)} arguments" if len(values) > len(order) else f"the argument {unknown[0]!r}"
        raise NodeError(f"{class_type} was called with {given}; it takes {', '.join(order)}")
    arguments = {**dict(zip(order, values, strict=False)), **named}
    for name, kind in hidden.items():
        if name in parameters and name not in arguments:
            if call is None or call.hidden is None:
                raise NodeError(f"{class_type} was called outside a running node, where it cannot get its {kind}")
            arguments[name] = call.hidden(kind)
    if not inspect.iscoroutinefunction(function):
        return function(**arguments)
    if call is None or call.loop is None:
        raise NodeError(f"{class_type} was called outside a running node")
    if _in_loop():
        raise NodeError(f"{class_type} was called in an event loop, which it would stop; call it in asyncio.to_thread")
    answer = asyncio.run_coroutine_threadsafe(function(**arguments), call.loop)
    while True:
        try:
            return answer.result(LOOK_S)
        except TimeoutError:
            if answer.done():
                raise
            if call.stopped.is_set():
                answer.cancel()
        except CancelledError:
            throw_exception_if_processing_interrupted()
            raise NodeError(f"{class_type} was cancelled") from None
