"""The node floor over a real engine and weights, run on workflows as a replica runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import timeline_of
from serve_app.execution.execute import Execution
from serve_app.execution.executing import Progress, SendMessage
from serve_app.execution.files import NodeFiles
from serve_app.execution.protocol import spec_of
from serve_app.execution.result_cache import ResultCache
from serve_app.execution.runtime import Runtime
from serve_app.graph.parse import parse
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.signature import signatures
from serve_app.graph.validate import validate
from serve_app.models.weights.weights import Weights
from serve_app.nodes.registry import BUILTIN
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights


class Stack:
    """Capabilities, observer and values of every run; equal nodes of two runs are computed once.

    extra: node classes beside the built-in ones. files: where nodes read and write. weights: in place of those of
    model files.
    """

    def __init__(
        self, models: Path, files: Path, extra: Mapping[str, type] | None = None, weights: Weights | None = None
    ) -> None:
        self.volume = Volume({area: files / area for area in AREAS})
        self.weights = weights or cpu_weights(Catalog(models))
        self.engine = Engine(MAX_CELLS, timeline_of(self.weights.device))
        self._runtime = EngineRuntime(self.engine, self.weights)
        self._classes = {**BUILTIN, **(extra or {})}
        self._specs = {name: spec_of(node_class, name) for name, node_class in self._classes.items()}
        self._models = sorted(path.name for path in models.glob("*/*.safetensors"))
        self._held = ResultCache(10**9, lambda signatures: None)

    async def run(self, target: str, **nodes: tuple[str, dict[str, Any]]) -> Any:
        """Return what the target node shows, else the first value of its first slot. nodes: (class, inputs)."""
        prompt = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}
        checked = validate(parse(prompt), self._specs, lambda folder: self._models)
        assert [problem for problem in checked.problems if problem.type != "prompt_no_outputs"] == []
        signed = signatures(checked.graph, self._specs, lambda folder, name: "")
        task = Task(TaskId("job", 0, 1), checked.graph.nodes, (target,), signed, frozenset(), prompt, {})
        await Execution(task, self._classes, self._held, self, self, self.fetch).run()
        result = self._held.get(signed[target])
        assert result is not None
        return result.outputs[0][0] if result.ui is None else result.ui

    def runtime(self, node_id: str) -> Runtime:
        return self._runtime.bind(lambda done, steps: None)

    def files(self, node_id: str) -> NodeFiles:
        async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return at_least, False

        return NodeFiles(self.volume, "job", node_id, reserve)

    def progress(self, node_id: str) -> Progress:
        return lambda done, steps, preview: None

    def message_sender(self, node_id: str) -> SendMessage:
        return lambda type_, data: None

    def time_limit(self, spec: Any) -> None:
        return None

    def fingerprint(self, folder: str, name: str) -> str:
        return ""

    def started(self, node_id: str, origin: Any) -> None: ...

    def finished(
        self, node_id: str, signature: str, ui: Mapping[str, Any] | None, origin: Any, *, computed: bool
    ) -> None: ...

    def cached(self, nodes: tuple[str, ...]) -> None: ...

    def blocked(self, node_id: str, class_type: str, message: str) -> None: ...

    async def fetch(self, signature: str) -> None: ...
