"""Calling one node class once its inputs are there: list semantics, threads, and the shapes a result may have.

Every value on a link is a list; the function runs once per element of the longest, shorter lists repeating their last
(ComfyUI's rules, docs.comfy.org "Data lists"). Knows no graph and no cache.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.graph.spec import NodeSpec


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What a node made. outputs: one list of values a slot. ui: what an output node shows its client, else None."""

    outputs: tuple[list[Any], ...]
    ui: Mapping[str, list[Any]] | None = None


async def call(node_class: type, spec: NodeSpec, inputs: Mapping[str, Sequence[Any]]) -> NodeResult:
    """Run the class's FUNCTION on the inputs, hidden ones included, each a list of values.

    A sync FUNCTION runs in a thread, an async one is awaited, both without autograd. Errors: whatever the function
    raises; NodeError for a result of a shape that is not supported.
    """
    empty = [name for name, values in inputs.items() if not values]
    if empty and not spec.input_is_list:
        raise NodeError(f"input {empty[0]!r} is an empty list, so there is nothing to run on")
    node = node_class()
    function = getattr(node, str(node_class.FUNCTION))  # type: ignore[attr-defined]
    if spec.input_is_list:
        calls: list[dict[str, Any]] = [{name: list(values) for name, values in inputs.items()}]
    else:
        longest = max(map(len, inputs.values()), default=1)
        calls = [{name: v[min(i, len(v) - 1)] for name, v in inputs.items()} for i in range(longest)]
    if inspect.iscoroutinefunction(function):
        tasks = [asyncio.ensure_future(_WithoutAutograd(function(**arguments))) for arguments in calls]
        try:
            returned = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    else:
        returned = [await asyncio.to_thread(_run, function, arguments) for arguments in calls]
    return _merge(returned, spec)


def _run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    with torch.inference_mode():
        return function(**arguments)


class _WithoutAutograd:
    """An awaitable whose steps each run in inference mode: the mode belongs to a thread, and coroutines share one."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._steps = awaitable.__await__()

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._steps.send
        argument: Any = None
        while True:
            try:
                with torch.inference_mode():
                    waiting_for = step(argument)
            except StopIteration as stop:
                return stop.value
            try:
                step, argument = self._steps.send, (yield waiting_for)
            except BaseException as error:
                step, argument = self._steps.throw, error


def _merge(returned: Sequence[Any], spec: NodeSpec) -> NodeResult:
    """Join the results of every call: a slot's values in order, list slots end to end, ui members end to end."""
    results: list[Sequence[Any]] = []
    uis: list[Mapping[str, Any]] = []
    for value in returned:
        if isinstance(value, Mapping):
            if "expand" in value:
                raise NodeError(f"{spec.class_type} returned a subgraph, which is not supported")
            if value.get("ui") is not None:
                uis.append(value["ui"])
            value = value.get("result")
        if isinstance(value, tuple | list):
            results.append(value)
        elif value is not None or (spec.outputs and not uis):
            kinds = ", ".join(spec.outputs) or "nothing"
            raise NodeError(f"{spec.class_type} returned a {type(value).__name__}; it must be a tuple of ({kinds})")
    outputs: list[list[Any]] = []
    for slot in range(min(map(len, results), default=0)):
        is_list = slot < len(spec.output_is_list) and spec.output_is_list[slot]
        values = [result[slot] for result in results]
        outputs.append([item for value in values for item in value] if is_list else values)
    ui = {key: [item for shown in uis for item in shown.get(key, ())] for key in uis[0]} if uis else None
    return NodeResult(tuple(outputs), ui)
