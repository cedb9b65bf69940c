"""Running one task on one replica: demand-driven, memoised evaluation of its targets.

Nodes of a task that do not need each other run at the same time. Where a value comes from is decided here: held by this
replica, held or being made by another, or computed. Knows no scheduler: it tells an observer and asks a fetch function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

from serve_app.errors import CancelledJobError, NodeError, ServeAppError
from serve_app.graph.graph import BadLink, Link, Node
from serve_app.graph.plan import Task
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.call import NodeResult, call
from serve_app.nodes.held import Held
from serve_app.nodes.protocol import spec_of
from serve_app.nodes.runtime import Files, Runtime


class NodeFailedError(ServeAppError):
    """A node raised: which one, and what."""

    def __init__(self, node_id: str, class_type: str, exception: BaseException) -> None:
        super().__init__(f"{class_type} {node_id}: {str(exception) or type(exception).__name__}")
        self.node_id, self.class_type, self.exception = node_id, class_type, exception

    def __reduce__(self) -> tuple[type[NodeFailedError], tuple[str, str, BaseException]]:
        return (NodeFailedError, (self.node_id, self.class_type, self.exception))


class LostValueError(ServeAppError):
    """A value that another task made is gone, and this task may not make it: that task has to run again."""


class Capabilities(Protocol):
    """What this replica gives to nodes that ask. Each is bound to one node."""

    def runtime(self, node_id: str) -> Runtime | None: ...

    def files(self, node_id: str) -> Files: ...


class Observer(Protocol):
    """Who is told of the task's progress."""

    def started(self, node_id: str) -> None: ...

    def finished(self, node_id: str, signature: str, ui: Mapping[str, Any] | None) -> None: ...


Fetch = Callable[[str], Awaitable[NodeResult | None]]
"""Asks for the value of a remote signature. None: nobody has it or makes it any more."""


class Execution:
    """One run of one task. `started` is told of nodes computed here, `finished` of these and of every target."""

    def __init__(
        self,
        task: Task,
        classes: Mapping[str, type],
        held: Held,
        capabilities: Capabilities,
        observer: Observer,
        fetch: Fetch,
    ) -> None:
        self._task = task
        self._classes = classes
        self._held = held
        self._capabilities = capabilities
        self._observer = observer
        self._fetch = fetch
        self._values: dict[str, asyncio.Task[NodeResult]] = {}

    async def run(self) -> None:
        """Evaluate every target; the results are then held. Cancelling this cancels all that it started.

        Errors: NodeFailedError for the first node that fails, after its siblings have stopped; CancelledJobError when
        the job is cancelled; LostValueError.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for node_id in self._task.targets:
                    self._start(node_id, group)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__

    def _start(self, node_id: str, group: asyncio.TaskGroup) -> asyncio.Task[NodeResult]:
        if node_id not in self._values:
            self._values[node_id] = group.create_task(self._evaluate(node_id, group))
        return self._values[node_id]

    async def _evaluate(self, node_id: str, group: asyncio.TaskGroup) -> NodeResult:
        signature = self._task.signatures[node_id]
        computed = False

        async def make() -> NodeResult:
            nonlocal computed
            if signature in self._task.remote or node_id not in self._task.nodes:
                fetched = await self._fetch(signature)
                if fetched is not None:
                    return fetched
            if node_id not in self._task.nodes:
                raise LostValueError(f"the value of node {node_id} is gone, and its node is not in this task")
            computed = True
            return await self._compute(self._task.nodes[node_id], group)

        result = await self._held.make(signature, make)
        if computed or node_id in self._task.targets:
            self._observer.finished(node_id, signature, result.ui)
        return result

    async def _compute(self, node: Node, group: asyncio.TaskGroup) -> NodeResult:
        try:
            node_class = self._classes.get(node.class_type)
            if node_class is None:
                raise NodeError(f"this replica has no node class {node.class_type!r}")
            spec = spec_of(node_class, node.class_type)
            inputs = await self._inputs(node, spec, group)
            self._observer.started(node.id)
            return await call(node_class, spec, inputs)
        except (CancelledJobError, NodeFailedError, LostValueError):
            raise
        except asyncio.CancelledError as error:
            running = asyncio.current_task()
            if running is not None and running.cancelling():
                raise
            # The node's own doing, not ours: unreported, the task would end as if it had succeeded.
            self._fail(node, error)
        except Exception as error:
            self._fail(node, error)

    def _fail(self, node: Node, error: BaseException) -> NoReturn:
        raise NodeFailedError(node.id, node.class_type, error) from error

    async def _inputs(self, node: Node, spec: NodeSpec, group: asyncio.TaskGroup) -> dict[str, list[Any]]:
        """Return every input as a list of values: links (declared or not), declared constants, hidden inputs."""
        inputs: dict[str, list[Any]] = {}
        links: dict[str, Link] = {}
        for name, value in node.inputs.items():
            declared = spec.input(name)
            if isinstance(value, Link) and not (declared is not None and declared.options.get("rawLink")):
                links[name] = value
            elif isinstance(value, Link):
                inputs[name] = [[value.node_id, value.slot]]
            elif declared is not None and not isinstance(value, BadLink):
                inputs[name] = [value]
        # All are started before the first is awaited, so that what they need runs at the same time.
        sources = {name: self._start(link.node_id, group) for name, link in links.items()}
        for name, link in links.items():
            outputs = (await sources[name]).outputs
            if link.slot >= len(outputs):
                raise NodeError(
                    f"{name} links to slot {link.slot} of node {link.node_id}, which made {len(outputs)} values"
                )
            inputs[name] = outputs[link.slot]
        inputs.update({name: [self._hidden(kind, node)] for name, kind in spec.hidden.items()})
        return inputs

    def _hidden(self, kind: str, node: Node) -> Any:
        if kind == "RUNTIME":
            runtime = self._capabilities.runtime(node.id)
            if runtime is None:
                raise NodeError("it needs models, and this replica holds none")
            return runtime
        if kind == "STORE":
            return self._capabilities.files(node.id)
        if kind == "PROMPT":
            return self._task.prompt
        if kind == "UNIQUE_ID":
            return node.id
        if kind in ("EXTRA_PNGINFO", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"):
            return self._task.extra_data.get(kind.lower())
        raise NodeError(f"it asks for the hidden input {kind!r}, which is not supported")
