"""One replica's part of an execution, with node classes of the test's own and no cluster around it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from serve_app.execution.call import NodeResult
from serve_app.execution.execute import Execution
from serve_app.execution.protocol import spec_of
from serve_app.execution.result_cache import ResultCache
from serve_app.graph.graph import Origin
from serve_app.graph.parse import parse
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.signature import signatures


class Node:
    RETURN_TYPES: tuple[str, ...] = ("INT",)
    FUNCTION = "go"
    inputs: tuple[str, ...] = ()
    hidden: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"optional": dict.fromkeys(cls.inputs, ("INT",)), "hidden": dict(cls.hidden)}


class OneReplica:
    """One replica without a cluster: what it holds, what others hold, and all that it reported."""

    classes: ClassVar[Mapping[str, type]] = {}

    def __init__(self, **elsewhere: int) -> None:
        self.held = ResultCache(10**9, lambda signatures: None)
        self.elsewhere = elsewhere
        self.started_nodes: list[str] = []
        self.finished_nodes: list[tuple[str, Any]] = []
        self.fetched: list[str] = []
        self.blocked_nodes: list[tuple[str, str, str]] = []
        self.said: list[tuple[str, str, Any]] = []
        self.progressed: list[tuple[str, float, float]] = []
        self.origins: dict[str, Origin | None] = {}

    def runtime(self, node_id: str) -> None:
        return None

    def files(self, node_id: str) -> Any:
        return f"files of {node_id}"

    def progress(self, node_id: str) -> Any:
        return lambda value, maximum, preview: self.progressed.append((node_id, value, maximum))

    def message_sender(self, node_id: str) -> Any:
        return lambda type_, data: self.said.append((node_id, type_, data))

    def fingerprint(self, folder: str, name: str) -> str:
        return ""

    def time_limit(self, spec: Any) -> None:
        return None

    def started(self, node_id: str, origin: Origin | None) -> None:
        self.started_nodes.append(node_id)
        self.origins[node_id] = origin

    def finished(self, node_id: str, signature: str, ui: Any, origin: Origin | None, *, computed: bool) -> None:
        assert signature in self.held
        self.finished_nodes.append((node_id, ui))

    def cached(self, nodes: tuple[str, ...]) -> None: ...

    def blocked(self, node_id: str, class_type: str, message: str) -> None:
        self.blocked_nodes.append((node_id, class_type, message))

    async def fetch(self, signature: str) -> NodeResult | None:
        self.fetched.append(signature)
        await asyncio.sleep(0)
        value = self.elsewhere.get(signature)
        return None if value is None else NodeResult(([value],))

    def execution(self, task: Task) -> Execution:
        return Execution(task, self.classes, self.held, self, self, self.fetch)

    async def run(self, task: Task) -> None:
        await asyncio.wait_for(self.execution(task).run(), 60)

    def value(self, task: Task, node_id: str) -> Any:
        result = self.held.get(task.signatures[node_id])
        return result and [value for slot in result.outputs for value in slot]


def task(
    classes: Mapping[str, type],
    *targets: str,
    remote: str = "",
    without: str = "",
    **nodes: tuple[str, dict[str, Any]],
) -> Task:
    """A task of one graph. remote: ids whose signature others hold. without: ids that another task runs."""
    prompt = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}
    graph = parse(prompt)
    specs = {name: spec_of(cls, name) for name, cls in classes.items()}
    signed = signatures(graph, specs, lambda folder, name: "")
    own = {node_id: node for node_id, node in graph.nodes.items() if node_id not in without}
    extra = {"extra_pnginfo": {"workflow": 1}}
    return Task(TaskId("job", 0, 1), own, targets, signed, frozenset(signed[i] for i in remote), prompt, extra)


class Constant(Node):
    inputs = ("value",)

    def go(self, value: Any) -> tuple[Any]:
        return (value,)


class Add(Node):
    inputs = ("a", "b")

    def go(self, a: int, b: int, **more: int) -> tuple[int]:
        return (a + b + sum(more.values()),)


class Range(Node):
    OUTPUT_IS_LIST = (True,)
    inputs = ("n",)

    def go(self, n: int) -> tuple[list[int]]:
        return (list(range(n)),)


class Show(Node):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    inputs = ("value",)

    def go(self, value: Any) -> dict[str, Any]:
        return {"ui": {"text": [value]}}
