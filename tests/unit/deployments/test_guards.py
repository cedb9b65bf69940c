"""Nodes that try to take their replica down, through service, scheduler and replica, without Ray: each fails alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import PoolConfig
from serve_app.errors import InvalidGraphError
from serve_app.scheduler.messages import JobView
from serve_app.service import Service
from serve_app.store.volume import Volume
from tests.unit.deployments.cluster import Cluster, cluster

PACK = """
import asyncio, sys, threading
from comfy.utils import ProgressBar

class Silent(Exception):
    def __str__(self):
        raise SystemExit(4)

ERRORS = {
    "SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt("me"), "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(), "StopIteration": StopIteration(1), "MemoryError": MemoryError("big"),
    "BaseExceptionGroup": BaseExceptionGroup("several", [SystemExit(1)]), "Silent": Silent(),
}

class Node:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"error": ("STRING",)}}
    def go(self, error):
        return {"ui": {"text": [error]}}

class Sync(Node):
    def go(self, error):
        raise ERRORS[error]

class Async(Node):
    async def go(self, error):
        await asyncio.sleep(0)
        raise ERRORS[error]

class Made(Node):
    def __init__(self):
        raise SystemExit("as it is made")

class Lazy(Node):
    def check_lazy_status(self, error):
        raise ERRORS[error]

class Validates(Node):
    @classmethod
    def VALIDATE_INPUTS(cls, error):
        raise ERRORS[error]

class AsyncValidates(Node):
    @classmethod
    async def VALIDATE_INPUTS(cls, error):
        raise ERRORS[error]

class Changes(Node):
    @classmethod
    def IS_CHANGED(cls, error):
        raise ERRORS[error]

class AsyncChanges(Node):
    @classmethod
    async def IS_CHANGED(cls, error):
        raise ERRORS[error]

class Shows(Node):
    def go(self, error):
        return {"ui": {"text": [threading.Lock()]}}

class Progresses(Node):
    def go(self, error):
        ProgressBar(2).update_absolute(threading.Lock(), 2)
        return {}

class Says(str):
    pass

class Answers(Node):
    @classmethod
    def IS_CHANGED(cls, error):
        return Says("a")

NODE_CLASS_MAPPINGS = {c.__name__: c for c in Node.__subclasses__() + [Node]}
"""
ERRORS = (
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "CancelledError",
    "StopIteration",
    "MemoryError",
    "BaseExceptionGroup",
    "Silent",
)
ONE = (PoolConfig(name="cpu", runtime=False, threads=1),)


class Client:
    """Submits one node after another."""

    def __init__(self, running: Cluster) -> None:
        self.running = running
        self.service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [])

    async def submit(self, kind: str, error: str = "", **extra_data: Any) -> str:
        prompt = {"n": {"class_type": kind, "inputs": {"error": error}}}
        return (await self.service.submit({"prompt": prompt, "extra_data": extra_data})).job_id

    async def run(self, kind: str, error: str = "") -> JobView:
        return await asyncio.wait_for(self.running.finish(await self.submit(kind, error)), 30)

    async def check(self) -> None:
        """Fail unless the replica lives and runs what comes next."""
        assert not self.running.lives["cpu"].done()
        assert (await self.run("Node", "fine")).outputs == {"n": {"text": ["fine"]}}


@contextlib.asynccontextmanager
async def client(root: Path, pools: tuple[PoolConfig, ...] = ONE) -> AsyncIterator[Client]:
    packs = root / "packs"
    packs.mkdir()
    (packs / "bad.py").write_text(PACK)
    (packs / "dies.py").write_text("raise KeyboardInterrupt")
    async with cluster(root, pools, custom_nodes_dir=packs) as running:
        yield Client(running)


@pytest.mark.parametrize("kind", ["Sync", "Async", "Lazy"])
async def test_whatever_a_node_raises_is_its_own_failure_with_type_and_message(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path) as c:
        for error in ERRORS:
            view = await c.run(kind, error)
            assert (view.state, view.failure["node"], view.failure["class_type"]) == ("error", "n", kind), error
            # Of a coroutine that raises StopIteration Python itself makes another error.
            expected = "RuntimeError" if (kind, error) == ("Async", "StopIteration") else error
            assert view.failure["exception_type"].split(".")[-1] == expected
            assert view.failure["traceback"]
        assert view.failure["message"] == "<Silent without a text: SystemExit>"
        await c.check()


async def test_a_class_that_ends_the_process_as_it_is_made_fails_alone(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view = await c.run("Made")
        assert (view.failure["exception_type"], view.failure["message"]) == ("SystemExit", "as it is made")
        await c.check()


@pytest.mark.parametrize("kind", ["Validates", "AsyncValidates"])
async def test_whatever_validation_raises_is_a_problem_of_its_node(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path) as c:
        for error in ERRORS:
            with pytest.raises(InvalidGraphError) as refused:
                await asyncio.wait_for(c.submit(kind, error), 30)
            [problem] = refused.value.problems
            assert (problem.node_id, problem.type) == ("n", "exception_during_validation"), error
        await c.check()


@pytest.mark.parametrize("kind", ["Changes", "AsyncChanges"])
async def test_whatever_a_fingerprint_raises_makes_the_node_run_again(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path) as c:
        for error in ERRORS:
            assert (await c.run(kind, error)).state == "success", error
        await c.check()


async def test_what_cannot_leave_the_process_fails_its_node_alone(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view = await c.run("Shows")
        assert view.failure["message"] == "what it shows is no JSON: Object of type lock is not JSON serializable"
        assert (await c.run("Progresses")).failure["exception_type"] == "TypeError"
        answered = (await c.run("Answers")).prompt["n"]["is_changed"]
        assert [type(answer) for answer in answered] == [str]
        await c.check()
