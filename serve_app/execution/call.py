"""Calls a node class with its inputs: list semantics, blockers, threads, the shapes of a result.

Every value on a link is a list; a function runs once per element of the longest, shorter lists repeating their last
(ComfyUI's rules, docs.comfy.org "Data lists"). Knows no graph and no cache.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import os
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch

from serve_app.errors import NodeError
from serve_app.execution.contained import contained
from serve_app.execution.executing import Executing, enter
from serve_app.execution.size import allow_calls
from serve_app.execution.time_limit import within_time_limit
from serve_app.graph.spec import NodeSpec
from serve_app.openmp import end_team
from serve_app.threads import Threads

T = TypeVar("T")

PACKS = "custom_nodes."
"""The prefix of the module of a node pack's class, as `NodeSpec.python_module`."""

_MOST = min(32, (os.cpu_count() or 1) + 4)
_THREADS = Threads("nodes", _MOST, end_team)
_SHARES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()
"""Each tenant's part of these threads."""
_ONE_THREAD = Threads("packs", 1, end_team)
"""Packs are written for ComfyUI, which runs one sync node at a time; they seed global generators and share globals."""


class ExecutionBlocker:
    """A value that blocks its consumers: they are not called and pass it on. message: None is silent."""

    def __init__(self, message: str | None = None) -> None:
        self.message = message


@dataclass(frozen=True, slots=True)
class NodeResult:
    """A node's result. outputs: one list of values per slot. ui: the output shown to the client, of output nodes, else
    None.
    """

    outputs: tuple[list[Any], ...]
    ui: Mapping[str, list[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The result of one call. values: one per slot, or None for no values; with expand they may be links into it.

    expand: a subgraph as wire JSON whose constants may be any value, to be evaluated in the node's place.
    """

    values: tuple[Any, ...] | None = None
    ui: Mapping[str, Any] | None = None
    expand: Mapping[str, Any] | None = None


class Views(Protocol):
    """A node class's own representation of values on links: its attribute VIEWS."""

    def shown(self, value: Any) -> Any:
        """Convert a value from a link to the class's representation."""
        ...

    def plain(self, value: Any) -> Any:
        """Convert a result of the class to a value on a link."""
        ...


Blocked = Callable[[ExecutionBlocker], ExecutionBlocker]
"""Called with a call's blocker; returns the one to pass on."""


async def map_over_lists(
    function: Callable[..., Any],
    inputs: Mapping[str, Sequence[Any]],
    node: Executing,
    *,
    whole: bool = False,
    skip: bool = False,
    alone: bool = False,
    blocked: Blocked = lambda blocker: blocker,
    nested: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    views: Views | None = None,
) -> list[Any]:
    """Call the function on every element of its inputs and return the results in order.

    whole: one call with the lists themselves; skip: without blocked elements. A call with a blocker among its inputs is
    not made: its result is the blocker. nested: converts a call's inputs to its arguments. views: the function's
    representation of values. A sync function runs in a thread, an async one is awaited, all its calls concurrently,
    both without autograd. alone: no two sync functions with this flag run at once in this process. Errors: NodeError
    for an empty list beside others, and once the results are too large together; NodeTimeError for a call over
    node.time_limit, measured from the start of its thread; the function's own, through `contained`.
    """
    longest = max(map(len, inputs.values()), default=0)
    empty = [name for name, values in inputs.items() if not values]
    if empty and longest and not whole:
        raise NodeError(f"input {empty[0]!r} is an empty list, so there is nothing to run on")
    rows = [{name: v[min(i, len(v) - 1)] for name, v in inputs.items() if v} for i in range(longest)]
    if skip:
        kept = [row for row in rows if _blocker(row.values(), blocked) is None]
        calls: list[Mapping[str, Any]] = [{name: [row[name] for row in kept if name in row] for name in inputs}]
        blockers = [ExecutionBlocker() if rows and not kept else None]
    elif whole:
        calls = [{name: list(values) for name, values in inputs.items()}]
        blockers = [_blocker((v for values in inputs.values() for v in values), blocked)]
    else:
        calls = [*rows] or [{}]
        blockers = [_blocker(row.values(), blocked) for row in calls]
    if nested is not None:
        calls = [nested(given) for given in calls]
    asynchronous = inspect.iscoroutinefunction(function)
    seen = function if views is None else _viewed(function, views)
    made_bytes, counted = 0, set[int]()

    async def one(index: int) -> Any:
        nonlocal made_bytes
        if (blocker := blockers[index]) is not None:
            return blocker
        running = replace(node, index=index, subgraphs=itertools.count(), made_bytes=node.made_bytes + made_bytes)
        enter(running)

        async def work(begun: Callable[[], None]) -> Any:
            with contained():
                if asynchronous:
                    begun()
                    returned = seen(**calls[index])
                else:
                    context, run = contextvars.copy_context(), _alone if alone else _shared
                    with running.underway.queued():
                        returned = await run(running.tenant, context.run, _run, running, begun, seen, calls[index])
                    if not inspect.isawaitable(returned):
                        return returned
                with running.underway.noted(running):
                    return await _WithoutAutograd(returned)

        returned = await within_time_limit(work, node.time_limit, node.name)
        if len(calls) > 1:
            # Many calls, each within its limit, could fill the memory before the sum is checked.
            made_bytes = allow_calls(returned, node.limits, made_bytes, counted)
        return returned

    if not asynchronous:
        return [await asyncio.create_task(one(index)) for index in range(len(calls))]
    tasks = [asyncio.create_task(one(index)) for index in range(len(calls))]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _alone(tenant: str, function: Callable[..., T], *arguments: Any) -> T:
    return await _ONE_THREAD.call(function, *arguments)


async def _shared(tenant: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread. A tenant has all of them but one at most: its nodes may wait long for slow files."""
    shares = _SHARES.setdefault(asyncio.get_running_loop(), {})
    async with shares.setdefault(tenant, asyncio.Semaphore(_MOST - 1 if tenant else _MOST)):
        return await _THREADS.call(function, *arguments)


def _blocker(values: Any, blocked: Blocked) -> ExecutionBlocker | None:
    found = next((value for value in values if isinstance(value, ExecutionBlocker)), None)
    return None if found is None else blocked(found)


def _run(call: Executing, begun: Callable[[], None], function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    with call.underway.noted(call), contained(), torch.inference_mode():
        begun()
        return function(**arguments)


def _viewed(function: Callable[..., Any], views: Views) -> Callable[..., Any]:
    """Wrap a sync or async function to convert its arguments and result by `Views`."""

    def sync(**arguments: Any) -> Any:
        returned = function(**{name: views.shown(value) for name, value in arguments.items()})
        return awaited(returned) if inspect.isawaitable(returned) else views.plain(returned)

    async def awaited(returned: Awaitable[Any]) -> Any:
        return views.plain(await returned)

    return sync


class _WithoutAutograd:
    """An awaitable whose steps each run in inference mode, as the mode is per thread and coroutines share one."""

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


async def call(
    node: object,
    spec: NodeSpec,
    inputs: Mapping[str, Sequence[Any]],
    executing: Executing,
    blocked: Blocked = lambda blocker: blocker,
) -> list[Returned]:
    """Run a node object's FUNCTION on the inputs, hidden ones included, and return the result of each call.

    Errors: those of the function; NodeError for a result of an unsupported shape.
    """
    if (name := getattr(node, "FUNCTION", None)) is None:
        raise NodeError(f"{spec.class_type} has no FUNCTION, so it cannot run")
    function = getattr(node, name)
    skip = bool(getattr(node, "SKIPS_BLOCKED", False))
    results = await map_over_lists(
        function,
        inputs,
        executing,
        whole=spec.input_is_list,
        skip=skip and spec.input_is_list,
        alone=spec.python_module.startswith(PACKS),
        blocked=blocked,
        nested=None if spec.nesting is None else spec.nesting.nested,
        views=getattr(node, "VIEWS", None),
    )
    return [_returned(value, spec) for value in results]


def _returned(value: Any, spec: NodeSpec) -> Returned:
    ui = expand = None
    if isinstance(value, Mapping):
        ui, expand = value.get("ui"), value.get("expand")
        if "result" not in value and expand is None:
            return Returned(None, ui)
        value = value.get("result")
    if isinstance(value, ExecutionBlocker):
        return Returned((value,) * len(spec.outputs), ui, expand)
    if isinstance(value, tuple | list):
        return Returned(tuple(value), ui, expand)
    if value is None and (expand is not None or ui is not None or not spec.outputs):
        return Returned(() if expand is not None else None, ui, expand)
    kinds = ", ".join(spec.outputs) or "nothing"
    raise NodeError(f"{spec.class_type} returned a {type(value).__name__}; it must be a tuple of ({kinds})")


def merge(returned: Sequence[Returned], spec: NodeSpec) -> NodeResult:
    """Join the results of all calls: a slot's values in order, list slots and ui members concatenated."""
    results = [one.values for one in returned if one.values is not None]
    uis = [one.ui for one in returned if one.ui is not None]
    outputs: list[list[Any]] = []
    for slot in range(min(map(len, results), default=0)):
        is_list = slot < len(spec.output_is_list) and spec.output_is_list[slot]
        values = [result[slot] for result in results]
        lists = [[v] if isinstance(v, ExecutionBlocker) else v for v in values] if is_list else []
        outputs.append([item for value in lists for item in value] if is_list else values)
    ui = {key: [item for shown in uis for item in shown.get(key, ())] for key in uis[0]} if uis else None
    return NodeResult(tuple(outputs), ui)
