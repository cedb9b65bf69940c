"""Evaluates one task on one replica: demand-driven, memoised evaluation of its targets.

Independent nodes of a task run concurrently. A value comes from this replica's cache, from another replica, or is
computed. A node's lazy inputs are evaluated when it requests them, and the nodes of a subgraph that it returns in its
place. Knows no scheduler: it calls an observer and a fetch function.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, NoReturn, Protocol

from serve_app.config.limits import SizeLimits
from serve_app.errors import CancelledJobError, NodeError
from serve_app.execution.call import PACKS, ExecutionBlocker, NodeResult, Returned, call, map_over_lists, merge
from serve_app.execution.contained import contained, is_cancelled, original_error, safe_str
from serve_app.execution.executing import Executing, Progress, SendMessage, Underway, ignore
from serve_app.execution.expansion import DependencyCycleError, DynamicPrompt, as_link
from serve_app.execution.node_failure import SHOWN_CHARACTERS, LostValueError, NodeFailedError, shown_inputs
from serve_app.execution.prevalidation import constant_inputs, fingerprint
from serve_app.execution.protocol import spec_of
from serve_app.execution.result_cache import ResultCache
from serve_app.execution.rounds import Rounds, dependents
from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.execution.size import allow_output, allow_task, check_results
from serve_app.execution.time_limit import TimeLimit
from serve_app.graph.dynamic import opened
from serve_app.graph.graph import Link, Node, Origin
from serve_app.graph.plan import OPTIMIZATIONS, Task
from serve_app.graph.signature import salt_of, signature
from serve_app.graph.spec import HIDDEN_KINDS, NodeSpec
from serve_app.limits import refused


class Capabilities(Protocol):
    """The capabilities that nodes can use on this replica, each bound to one node."""

    def runtime(self, node_id: str) -> Runtime | None: ...

    def files(self, node_id: str) -> NodeStore: ...

    def progress(self, node_id: str) -> Progress: ...

    def message_sender(self, node_id: str) -> SendMessage: ...

    def fingerprint(self, folder: str, name: str) -> str:
        """Return a fingerprint of the file's content."""
        ...

    def time_limit(self, spec: NodeSpec) -> TimeLimit | None:
        """Return the time limit of a call of the node."""
        ...


class Observer(Protocol):
    """Gets events about the task's nodes. origin: of a node that another one made."""

    def started(self, node_id: str, origin: Origin | None) -> None: ...

    def finished(
        self, node_id: str, signature: str, ui: Mapping[str, Any] | None, origin: Origin | None, *, computed: bool
    ) -> None:
        """A node has ended. computed: it ran here, and is not from a cache."""
        ...

    def cached(self, nodes: tuple[str, ...]) -> None:
        """These nodes need not run, since a result is stored."""
        ...

    def blocked(self, node_id: str, class_type: str, message: str) -> None:
        """A node was blocked, with a message for the client."""
        ...


class Stored(Protocol):
    """The results of nodes that outlive a restart, as far as the task may use them."""

    async def find(self, signature: str) -> NodeResult | None: ...

    def keep(self, signature: str, result: NodeResult, took_s: float) -> None:
        """Store a result if that is worth it. took_s: how long it took to compute; of an output, with its ancestors."""
        ...


Fetch = Callable[[str], Awaitable[NodeResult | None]]
"""Fetches the value of a remote signature; None if no replica has it or computes it."""


class Execution:
    """One run of one task. `started` is called for nodes computed here, `finished` for these and for every target."""

    def __init__(
        self,
        task: Task,
        classes: Mapping[str, type],
        held: ResultCache,
        capabilities: Capabilities,
        observer: Observer,
        fetch: Fetch,
        limits: SizeLimits | None = None,
        stored: Stored | None = None,
    ) -> None:
        self._stored = stored
        self._call_s: dict[str, float] = {}
        self._task = task
        self._limits = limits or SizeLimits()
        self._shown_bytes = 0
        self._made_bytes = 0
        self._counted: set[int] = set()
        # Values counted by id must stay alive; they do, as values of the task's nodes.
        self._made: list[Sequence[Sequence[Any]]] = []
        self._targets = frozenset(task.targets)
        self._classes = classes
        self._held = held
        self._capabilities = capabilities
        self._observer = observer
        self._fetch = fetch
        self._prompt = DynamicPrompt(task.prompt)
        self._nodes = dict(task.nodes)
        self._signatures = dict(task.signatures)
        self._values: dict[str, asyncio.Task[NodeResult]] = {}
        self.awaited: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._stopped = threading.Event()
        self._rounds = Rounds(task, lambda node: self._class(node)[1])
        self._objects: dict[str, Any] = {}
        self._lasting = dependents(task.nodes, [n.id for n in task.nodes.values() if self._returns_itself(n)])
        self._ended: dict[str, tuple[NodeResult, bool]] = {}
        self.underway = Underway()
        """Its running calls, also after its end."""

    @property
    def lasts(self) -> bool:
        """Whether a node outputs its own object, which may last for several rounds."""
        return bool(self._lasting)

    async def run(self) -> None:
        """Evaluate every target, in as many rounds as its nodes queue; the results are then cached.

        Cancelling this cancels all of its nodes. Errors: NodeFailedError for the first node that fails, after its
        siblings have stopped; CancelledJobError when the job is cancelled; LostValueError.
        """
        try:
            await self._run_round()
            while again := self._rounds.begin_next():
                self._forget(again)
                await self._run_round()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        finally:
            # Threads cannot be cancelled; nodes that poll can stop.
            self._stopped.set()
            # Files that a node's object has open are closed with it.
            self._held.forget(tuple(self._signatures[node_id] for node_id in self._lasting))
        for node_id, (result, computed) in self._ended.items():
            self._held.put(self._task.signatures[node_id], result)
            self._tell_finished(node_id, self._task.signatures[node_id], result, computed=computed)

    async def _run_round(self) -> None:
        async with asyncio.TaskGroup() as group:
            for node_id in self._task.targets:
                self._start(node_id, group)

    def _forget(self, again: Collection[str]) -> None:
        """Drop the last round's results of these nodes; the next round computes them with other signatures."""
        self._held.forget(tuple(self._signatures[node_id] for node_id in again))
        self._prompt, self._nodes = DynamicPrompt(self._rounds.prompt), dict(self._task.nodes)
        for node_id in again:
            self._values.pop(node_id, None)
            self._signatures[node_id] = f"{self._task.signatures[node_id]}-round{self._rounds.count}"
        self._made.clear()
        self._counted.clear()
        self._made_bytes = 0

    def _start(self, node_id: str, group: asyncio.TaskGroup) -> asyncio.Task[NodeResult]:
        if node_id not in self._values:
            self._values[node_id] = group.create_task(self._evaluated(node_id, group))
        return self._values[node_id]

    async def _evaluated(self, node_id: str, group: asyncio.TaskGroup) -> NodeResult:
        # Values are inspected outside their nodes too, and may be of a class with code of its own.
        with contained():
            return await self._evaluate(node_id, group)

    async def _evaluate(self, node_id: str, group: asyncio.TaskGroup) -> NodeResult:
        signature = self._signatures[node_id]
        computed = False

        async def make() -> NodeResult:
            nonlocal computed
            if signature in self._task.remote or node_id not in self._nodes:
                fetched = await self._fetch(signature)
                if fetched is not None:
                    return fetched
            if self._stored is not None and (found := await self._stored.find(signature)) is not None:
                self._observer.cached(self._left_out(node_id))
                return found
            if node_id not in self._nodes:
                raise LostValueError(f"the value of node {node_id} is gone, and its node is not in this task")
            computed = True
            began_s = perf_counter()
            made = await self._compute(self._nodes[node_id], group)
            if self._stored is not None:
                took_s = self._call_s.get(node_id, 0.0) if made.ui is None else perf_counter() - began_s
                self._stored.keep(signature, made, took_s)
            return made

        result = await self._held.make(signature, make)
        if node_id in self._targets and (node_id in self._lasting or self._rounds.queued):
            self._ended[node_id] = self._joined(node_id, result), computed
        elif computed or node_id in self._targets:
            self._tell_finished(node_id, signature, result, computed=computed)
        return result

    def _left_out(self, node_id: str) -> tuple[str, ...]:
        """Return a node whose result is stored, and the nodes before it of which none has begun."""
        found: dict[str, None] = {}
        stack = [node_id]
        while stack:
            source = stack.pop()
            if source in self._nodes and source not in found and (source == node_id or source not in self._values):
                found[source] = None
                stack.extend(link.node_id for _, link in self._nodes[source].links())
        return tuple(found)

    def _joined(self, node_id: str, result: NodeResult) -> NodeResult:
        """Return a target's result with its outputs of all rounds so far concatenated."""
        earlier = self._ended[node_id][0].ui if node_id in self._ended else None
        shown = [ui for ui in (earlier, result.ui) if ui is not None]
        names = dict.fromkeys(name for ui in shown for name in ui)
        ui = {name: [item for one in shown for item in one.get(name, ())] for name in names} if shown else None
        return replace(result, ui=ui)

    def _tell_finished(self, node_id: str, signature: str, result: NodeResult, *, computed: bool) -> None:
        self._observer.finished(node_id, signature, result.ui, self._prompt.origin(node_id), computed=computed)

    # Computing one node -----------------------------------------------------------------------------------------------

    async def _compute(self, node: Node, group: asyncio.TaskGroup) -> NodeResult:
        inputs: dict[str, list[Any]] = {}
        spec: NodeSpec | None = None
        try:
            node_class, spec = self._class(node)
            executing = self._call(
                node, spec, self._capabilities.progress(node.id), self._capabilities.message_sender(node.id)
            )
            inputs.update(constant_inputs(spec, node))
            lazy = await self._eager(node, spec, inputs, group)
            asked = {name: kind for name, kind in spec.hidden.items() if kind in HIDDEN_KINDS}
            inputs.update({name: [self._hidden(kind, node)] for name, kind in asked.items()})
            self._observer.started(node.id, self._prompt.origin(node.id))
            if self._returns_itself(node) and node.id in self._targets and not spec.output_node:
                raise NodeError(
                    f"{node.class_type} gives others its own object, so one pool has to run all that needs it"
                )
            instance = self._object(node, node_class)
            await self._lazy(node, spec, instance, inputs, lazy, executing, group)
            # Late, as the nodes that it waited for have made values.
            executing = replace(executing, made_bytes=self._made_bytes)
            called_s = perf_counter()
            returned = await call(instance, spec, inputs, executing, lambda blocker: self._blocked(node, blocker))
            self._call_s[node.id] = perf_counter() - called_s
            slots = () if spec.python_module.startswith(PACKS) else spec.outputs
            made = [one.values or () for one in returned]
            check_results(made, slots, self._limits)
            self._made.append(made)
            self._made_bytes = allow_task(made, self._limits, self._made_bytes, self._counted)
            for one in returned:
                if one.ui is not None:
                    self._shown_bytes = allow_output(one.ui, self._limits, self._shown_bytes)
            result = merge(await self._expanded(node, returned, group), spec)
            return result if result.ui is None else replace(result, ui=_plain(result.ui))
        except (CancelledJobError, NodeFailedError, LostValueError):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._fail(node, original_error(error), _declared(inputs, spec))

    def _call(
        self, node: Node, spec: NodeSpec, progress: Progress = ignore, send_message: SendMessage = ignore
    ) -> Executing:
        return Executing(
            self._task.id.job_id,
            node.id,
            node.class_type,
            tenant=self._task.tenant,
            progress=progress,
            send_message=send_message,
            stopped=self._stopped,
            underway=self.underway,
            limits=self._limits,
            time_limit=self._capabilities.time_limit(spec),
            hidden=lambda kind: self._hidden(kind, node),
            loop=asyncio.get_running_loop(),
            rounds=self._rounds,
        )

    def _object(self, node: Node, node_class: type) -> Any:
        """Return the object that a node's function is called on, the same one in all rounds."""
        if node.id not in self._objects:
            self._objects[node.id] = node_class()
        return self._objects[node.id]

    def _returns_itself(self, node: Node) -> bool:
        return bool(getattr(self._classes.get(node.class_type), "RETURNS_ITSELF", False))

    def _class(self, node: Node) -> tuple[type, NodeSpec]:
        node_class = self._classes.get(node.class_type)
        if node_class is None:
            raise NodeError(f"this replica has no node class {node.class_type!r}")
        # A pack's class may return another declaration at each call.
        own = not str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "")).startswith(PACKS)
        spec = _spec_of_own(node_class, node.class_type) if own else spec_of(node_class, node.class_type)
        return node_class, opened(spec, node.inputs)

    def _fail(self, node: Node, error: BaseException, inputs: Mapping[str, Sequence[Any]]) -> NoReturn:
        real = self._prompt.get_real_node_id(node.id)
        class_type = node.class_type if real == node.id else str(self._prompt.get_node(real)["class_type"])
        raise NodeFailedError(real, class_type, error, shown_inputs(inputs)) from error

    def _blocked(self, node: Node, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is None:
            return blocker
        self._observer.blocked(node.id, node.class_type, safe_str(blocker.message)[:SHOWN_CHARACTERS])
        return ExecutionBlocker()

    # Inputs -----------------------------------------------------------------------------------------------------------

    async def _eager(
        self, node: Node, spec: NodeSpec, inputs: dict[str, list[Any]], group: asyncio.TaskGroup
    ) -> dict[str, Link]:
        """Wait for every link that is not lazy, declared or not; return the lazy ones, whose inputs are None so far.

        The source of a raw link is awaited too, as the node may use it.
        """
        lazy: dict[str, Link] = {}
        eager: dict[str, Link] = {}
        for name, link in node.links():
            declared = spec.input(name)
            (lazy if declared is not None and declared.lazy else eager)[name] = link
        inputs.update({name: [None] for name in lazy if name not in inputs})
        found = await self._await(node.id, eager.values(), group)
        inputs.update({name: _slot(name, link, found) for name, link in eager.items() if name not in inputs})
        return {name: link for name, link in lazy.items() if inputs[name] == [None]}

    async def _lazy(
        self,
        node: Node,
        spec: NodeSpec,
        instance: Any,
        inputs: dict[str, list[Any]],
        lazy: dict[str, Link],
        executing: Executing,
        group: asyncio.TaskGroup,
    ) -> None:
        """Ask the node which lazy inputs it needs, until it has them all."""
        while (ask := getattr(instance, "check_lazy_status", None)) is not None:
            whole = bool(getattr(instance, "INPUT_IS_LIST", False))
            alone = str(getattr(instance, "RELATIVE_PYTHON_MODULE", "")).startswith(PACKS)
            told = None if spec.nesting is None else partial(spec.nesting.nested, named=True)
            answers = await map_over_lists(ask, inputs, executing, whole=whole, alone=alone, nested=told)
            asked = {name for answer in answers if isinstance(answer, list) for name in answer if isinstance(name, str)}
            unknown = sorted(asked - inputs.keys())
            if unknown:
                raise NodeError(f"check_lazy_status asks for {unknown[0]!r}, which is no input of this node")
            wanted = {name: lazy.pop(name) for name in sorted(asked & lazy.keys())}
            if not wanted:
                return
            found = await self._await(node.id, wanted.values(), group)
            inputs.update({name: _slot(name, link, found) for name, link in wanted.items()})

    async def _await(self, node_id: str, links: Iterable[Link], group: asyncio.TaskGroup) -> dict[str, list[list[Any]]]:
        """Return the outputs of the linked nodes. All are started before the first is awaited, so that they overlap."""
        sources = list(dict.fromkeys(link.node_id for link in links))
        for source in sources:
            self._check_circle(node_id, source)
        with self._waiting(node_id, sources):
            started = {source: self._start(source, group) for source in sources}
            return {source: list((await task).outputs) for source, task in started.items()}

    @contextlib.contextmanager
    def _waiting(self, node_id: str, sources: Sequence[str]) -> Iterator[None]:
        self.awaited[node_id].update(sources)
        try:
            yield
        finally:
            self.awaited[node_id].subtract(sources)

    def _check_circle(self, node_id: str, source: str) -> None:
        """Refuse to wait for a node that waits for this one: a cycle through a subgraph."""
        seen: set[str] = set()
        # Only a made node can close a cycle, and the check walks all that the source waits for.
        stack = [source] if self._prompt.grown else []
        while stack:
            waiting = stack.pop()
            if waiting == node_id:
                raise DependencyCycleError("Dependency cycle detected")
            if waiting not in seen:
                seen.add(waiting)
                stack.extend(needed for needed, times in self.awaited[waiting].items() if times > 0)
        if source not in self._signatures:
            raise NodeError(f"it needs node {source!r}, which is not in the prompt")

    def _hidden(self, kind: str, node: Node) -> Any:
        if kind == "RUNTIME":
            runtime = self._capabilities.runtime(node.id)
            if runtime is None:
                raise NodeError("it needs models, and this replica holds none")
            return runtime
        if kind == "STORE":
            # A second save of one node under one name would look like a retry of the first.
            count = self._rounds.count
            return self._capabilities.files(node.id if count == 1 else f"{node.id} round {count}")
        if kind == "PROMPT":
            return self._rounds.prompt
        if kind == "DYNPROMPT":
            return self._prompt
        if kind == "UNIQUE_ID":
            return node.id
        given = self._task.extra_data.get(kind.lower())
        if kind == "EXTRA_PNGINFO" and (optimizations := self._task.extra_data.get(OPTIMIZATIONS)):
            # Saved files carry what is in it.
            return {**(given if isinstance(given, Mapping) else {}), OPTIMIZATIONS: optimizations}
        return given

    # Subgraphs --------------------------------------------------------------------------------------------------------

    async def _expanded(self, node: Node, returned: Sequence[Returned], group: asyncio.TaskGroup) -> Sequence[Returned]:
        """Evaluate the returned subgraphs and replace the results' links to them by their values."""
        if all(one.expand is None for one in returned):
            return returned
        wanted: list[Link] = []
        for one in returned:
            if one.expand is not None:
                wanted += await self._add(node, one.expand)
                wanted += [link for link in map(as_link, one.values or ()) if isinstance(link, Link)]
        found = await self._await(node.id, wanted, group)
        return [one if one.expand is None else Returned(_resolved(one.values or (), found), one.ui) for one in returned]

    async def _add(self, parent: Node, subgraph: Mapping[str, Any]) -> list[Link]:
        """Add a subgraph's nodes to this task; return links to its output nodes, which always run."""
        count, most = len(self._nodes) + len(subgraph), self._limits.graph_nodes
        if count > most:
            refused("limits.graph_nodes")
            raise NodeError(f"the graph grows to {count} nodes; limits.graph_nodes of the configuration allows {most}")
        added = {node.id: node for node in self._prompt.expand(parent.id, subgraph)}
        specs: dict[str, NodeSpec] = {}
        for node in added.values():
            specs[node.id] = self._class(node)[1]
            self._nodes[node.id] = node
        for node_id in _sources_first(added):
            self._signatures[node_id] = await self._sign(added[node_id], specs[node_id])
        return [Link(node_id, 0) for node_id, spec in specs.items() if spec.output_node]

    async def _sign(self, node: Node, spec: NodeSpec) -> str:
        """Return a made node's signature. A constant without an identity, for example a tensor, makes it unique."""
        try:
            if spec.fingerprinted:
                changes = await fingerprint(self._classes[node.class_type], spec, node, self._call(node, spec))
                node = Node(node.id, node.class_type, node.inputs, changes)
            salt = salt_of(self._task.tenant, strict=self._task.strict)
            # In a thread: an unreachable store is retried for its patience_s.
            found = await asyncio.to_thread(
                signature, node, spec, self._signatures, self._capabilities.fingerprint, salt
            )
        except (KeyError, TypeError, ValueError):
            return f"unique-{uuid.uuid4().hex}"
        # A made node equal to its maker would wait for itself.
        lineage = {self._signatures[maker] for maker in self._prompt.lineage(node.id)}
        return f"{found}-{uuid.uuid4().hex}" if found in lineage else found


_spec_of_own = lru_cache(1024)(spec_of)


def _declared(inputs: Mapping[str, list[Any]], spec: NodeSpec | None) -> dict[str, list[Any]]:
    """Return the inputs that a client gave, without hidden ones, which contain credentials and the server's own."""
    return {name: values for name, values in inputs.items() if spec is not None and spec.input(name) is not None}


def _slot(name: str, link: Link, found: Mapping[str, Sequence[list[Any]]]) -> list[Any]:
    outputs = found[link.node_id]
    if not 0 <= link.slot < len(outputs):
        raise NodeError(f"{name} links to slot {link.slot} of node {link.node_id}, which made {len(outputs)} values")
    return outputs[link.slot]


def _resolved(values: Sequence[Any], found: Mapping[str, Sequence[list[Any]]]) -> tuple[Any, ...]:
    """Replace links by values. A link to a list becomes all of its elements, as in ComfyUI."""
    resolved: list[Any] = []
    for value in values:
        link = as_link(value)
        resolved += _slot("the result", link, found) if isinstance(link, Link) else [value]
    return tuple(resolved)


def _sources_first(nodes: Mapping[str, Node]) -> list[str]:
    """Return the ids in topological order, as far as there is no cycle."""
    order: dict[str, None] = {}
    entered: set[str] = set()
    stack = [(node_id, False) for node_id in reversed(list(nodes))]
    while stack:
        node_id, ready = stack.pop()
        if ready:
            order[node_id] = None
        elif node_id not in entered:
            entered.add(node_id)
            stack.append((node_id, True))
            stack.extend((link.node_id, False) for _, link in nodes[node_id].links() if link.node_id in nodes)
    return list(order)


def _plain(ui: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's ui dict as plain JSON, to leave this process. Errors: NodeError."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(ui))
    except (TypeError, ValueError, RecursionError) as error:
        raise NodeError(f"what it shows is no JSON: {error}") from error
    return plain
