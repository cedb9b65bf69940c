"""Jobs of a node pack's classes through service, scheduler and replicas, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from PIL import Image

from serve_app.config.pool import PoolConfig
from serve_app.errors import InvalidGraphError, NotReadyError
from serve_app.packs.routes import PackRoute
from serve_app.packs.server import PromptServer
from serve_app.scheduler.jobs import remote_validation
from serve_app.scheduler.protocol.client import JobView, Reader
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.replica.cluster import Cluster, cluster
from tests.usual_limits import LIMITS

PACK = """
from PIL import Image
from comfy.utils import ProgressBar
from comfy.model_management import InterruptProcessingException
from server import PromptServer
from comfy_execution.graph_utils import GraphBuilder, ExecutionBlocker

class Number:
    RETURN_TYPES = ("INT",)
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"n": ("INT", {"max": 5})}}
    @classmethod
    def VALIDATE_INPUTS(cls, n):
        return True if n != 7 else "never 7"
    def go(self, n):
        return (n,)

class Fresh(Number):
    @classmethod
    def IS_CHANGED(cls, n):
        return float("nan") if n else 0

class Either:
    RETURN_TYPES = ("INT",)
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls):
        lazy = ("INT", {"lazy": True})
        return {"required": {"first": ("BOOLEAN",), "a": lazy, "b": lazy}}
    def check_lazy_status(self, first, a, b):
        return ["a"] if first and a is None else ["b"] if not first and b is None else []
    def go(self, first, a, b):
        return (a if first else b,)

class Show:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}
    def go(self, value):
        if value == 4:
            raise LookupError("four")
        return {"ui": {"text": [value]}}

class Twice(Show):
    def go(self, value):
        graph = GraphBuilder()
        graph.node("Show", value=value)
        return {"result": (), "expand": graph.finalize()}

class Stop(Number):
    def go(self, n):
        return (ExecutionBlocker("enough"),)

class Tell(Show):
    def go(self, value):
        for data in ({"value": value}, object(), float("nan")):
            PromptServer.instance.send_sync("mine.said", data, "someone else")
        PromptServer.instance.send_progress_text("half done", "t")
        return {"ui": {"text": [value]}}

class Paint(Show):
    def go(self, value):
        ProgressBar(2).update_absolute(1, 2, ("JPEG", Image.new("RGB", (8, 8)), None))
        PromptServer.instance.seen.wait(60)  # what is drawn after a node's end is not shown
        return {"ui": {"text": [value]}}

class Quit(Number):
    def go(self, n):
        raise InterruptProcessingException()

@PromptServer.instance.routes.get("/small")
async def small(request): ...

NODE_CLASS_MAPPINGS = {c.__name__: c for c in (Number, Fresh, Either, Show, Twice, Stop, Tell, Paint, Quit)}
"""

ONE = (PoolConfig(name="cpu", runtime=False, threads=1),)
SPLIT = (
    PoolConfig(name="numbers", runtime=False, threads=1, accepts=("Number", "Fresh"), tasks_per_replica=1),
    PoolConfig(name="rest", runtime=False, threads=1, accepts=("Either", "Show"), tasks_per_replica=1),
)

Nodes: TypeAlias = dict[str, tuple[str, dict[str, Any]]]


class Client:
    """Submits to the service and waits for the end."""

    def __init__(self, running: Cluster) -> None:
        self.running = running
        self.service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [], LIMITS)

    async def run(self, **nodes: tuple[str, dict[str, Any]]) -> tuple[JobView, list[tuple[str, Any]]]:
        """Return the ended job, and its events by node."""
        prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
        submitted = await self.service.submit({"prompt": prompt}, partial=True)
        view = await self.running.finish(submitted.job_id)
        return view, [(e.kind, e.data.get("node")) for e in await self.running.events(submitted.job_id)]


@contextlib.asynccontextmanager
async def client(root: Path, pools: tuple[PoolConfig, ...] = ONE, **settings: Any) -> AsyncIterator[Client]:
    packs = root / "packs"
    packs.mkdir()
    (packs / "small.py").write_text(PACK)
    async with cluster(root, pools, custom_nodes_dir=packs, **settings) as running:
        yield Client(running)


def show(source: str) -> tuple[str, dict[str, Any]]:
    return ("Show", {"value": [source, 0]})


async def test_what_a_class_refuses_is_refused_before_the_job_is_accepted(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, _ = await c.run(n=("Number", {"n": 6}), s=show("n"))
        assert view.outputs["s"] == {"text": [6]}, "the class bounds what it validates, not its max"
        with pytest.raises(InvalidGraphError, match="never 7") as refused:
            await c.run(n=("Number", {"n": 7}), s=show("n"))
        assert refused.value.problems[0].node_id == "n"
        view, _ = await c.run(n=("Number", {"n": 7}), s=show("n"), m=("Number", {"n": 1}), t=show("m"))
        assert view.targets == ("t",)


async def test_a_class_that_always_changes_runs_again_and_what_does_not_stays(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        for n, ran in ((0, False), (1, True)):
            nodes: Nodes = {
                "k": ("Fresh", {"n": n}),
                "e": ("Number", {"n": ["k", 0]}),
                "s": show("e"),
            }
            await c.run(**nodes)
            view, events = await c.run(**nodes)
            assert (("executing", "k") in events) == ran
            assert view.prompt["k"]["is_changed"]
            assert ("executed", "s") in events


async def test_without_a_cache_every_job_runs_everything_and_nothing_else_changes(tmp_path: Path) -> None:
    async with client(tmp_path, cache="none") as c:
        nodes = {"n": ("Number", {"n": 1}), "s": show("n")}
        await c.run(**nodes)
        _, events = await c.run(**nodes)
        assert [node for kind, node in events if kind == "executing"] == ["n", "s"]


@pytest.mark.parametrize("pools", [ONE, SPLIT])
async def test_a_lazy_branch_runs_only_if_requested_in_any_pool(tmp_path: Path, pools: tuple[PoolConfig, ...]) -> None:
    async with client(tmp_path, pools) as c:
        nodes: Nodes = {
            "a": ("Number", {"n": 1}),
            "b": ("Number", {"n": 2}),
            "e": ("Either", {"first": True, "a": ["a", 0], "b": ["f", 0]}),
            "f": ("Either", {"first": False, "a": ["a", 0], "b": ["b", 0]}),
            "s": show("e"),
        }
        view, events = await c.run(**nodes)
        assert view.outputs["s"] == {"text": [1]}
        assert {node for kind, node in events if kind == "executing"} == {"a", "e", "s"}
        nodes["e"][1]["first"] = False
        view, events = await c.run(**nodes)
        assert view.outputs["s"] == {"text": [2]}
        assert {node for kind, node in events if kind == "executing"} == {"b", "e", "f", "s"}


async def test_what_a_subgraph_shows_is_an_output_of_the_job(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, events = await c.run(n=("Number", {"n": 3}), t=("Twice", {"value": ["n", 0]}))
        assert view.outputs == {"t.0.0.1": {"text": [3]}, "t": {}}
        assert ("executed", "t.0.0.1") in events
        view, events = await c.run(n=("Number", {"n": 3}), u=("Twice", {"value": ["n", 0]}))
        assert view.outputs == {"u.0.0.1": {"text": [3]}, "u": {}}, "also when it is cached, under whatever id"
        assert [node for kind, node in events if kind == "executing"] == []


async def test_a_failure_says_what_ran_and_what_the_node_was_given(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, _ = await c.run(n=("Number", {"n": 4}), s=show("n"))
        assert view.state == "error"
        assert (view.failure.node, view.failure.exception_type) == ("s", "LookupError")
        assert view.failure.current_inputs == {"value": [4]}
        assert view.failure.executed == ("n",)


async def test_the_reason_of_a_blocker_is_reported_and_the_job_succeeds(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, events = await c.run(n=("Stop", {"n": 4}), s=show("n"))
        assert view.state == "success"
        assert ("blocked", "s") in events


async def test_a_check_waits_for_a_replica_and_gives_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_validation, "CHECK_S", 0.3)
    async with client(tmp_path) as c:
        await c.running.lose("cpu")
        running, backlogs = asyncio.create_task(c.run(n=("Number", {"n": 1}), s=show("n"))), {(0, 0)}
        while not running.done():
            backlogs.add((await c.running.scheduler.backlog("cpu"))[:2])
            await asyncio.sleep(0.01)
        with pytest.raises(NotReadyError, match="no replica of pool cpu has checked the inputs of Number"):
            await running
        assert backlogs == {(0, 0), (1, 0)}, "the pool would not scale up from zero"
        assert (await c.running.scheduler.backlog("cpu"))[:2] == (0, 0)


async def test_a_node_may_cancel_its_job(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, events = await c.run(n=("Quit", {"n": 4}), s=show("n"))
        assert view.state == "cancelled"
        assert [kind for kind, _ in events].count("executing") == 1


async def test_a_node_may_send_its_client_json_of_its_own(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view, _ = await c.run(n=("Number", {"n": 3}), t=("Tell", {"value": ["n", 0]}))
        messages = [e.data for e in await c.running.events(view.job_id) if e.kind == "message"]
        assert messages == [
            {"node": "t", "type": "mine.said", "data": {"value": 3}},
            {"node": "t", "type": "progress_text", "data": {"text": "half done"}},
        ]


async def test_a_picture_passed_to_a_progress_bar_is_sent_to_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()
    async with client(tmp_path) as c:
        monkeypatch.setattr(PromptServer.instance, "seen", seen, raising=False)
        prompt = {"p": {"class_type": "Paint", "inputs": {"value": 3}}}
        attached = await c.service.attach("me", "socket")
        await c.service.submit({"prompt": prompt, "client_id": "me"})
        after, queue, pictures, ended = attached.after, attached.queue, [], False
        while not ended:
            news = await c.service.unsent_events({"me": Reader("socket", after)}, queue.version, 1.0)
            queue = news.queue
            for event in news.events.get("me", ()):
                after, ended = event.seq, event.last
                if event.kind == "preview":
                    pictures.append(event.data["image"])
                    seen.set()
        assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(512, 512)]


async def test_outside_a_job_a_pack_may_send_json_to_the_client_it_names(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        here = PromptServer.instance
        attached = await c.service.attach("me", "socket")
        for data in ({"n": 1}, object(), [2], "three"):
            await asyncio.to_thread(here.send_sync, "mine.said", data, "me")
            here.send_sync("mine.said", data)
        heard: list[Any] = []
        after = attached.after
        async with asyncio.timeout(60):
            while len(heard) < 3:
                news = await c.service.unsent_events({"me": Reader("socket", after)}, attached.queue.version, 1.0)
                for event in news.events.get("me", ()):
                    heard.append(event.data)
                    after = event.seq
        assert heard == [{"type": "mine.said", "data": data} for data in ({"n": 1}, [2], "three")]
        view, events = await c.run(n=("Number", {"n": 3}), s=show("n"))
        assert view.state == "success"
        assert ("message", None) not in events


NAMED = (
    PoolConfig(name="other", runtime=False, threads=1, accepts=("Else",)),
    PoolConfig(name="named", runtime=False, threads=1, accepts=("custom_nodes.small",)),
    PoolConfig(name="rest", runtime=False, threads=1),
)


@pytest.mark.parametrize(("pools", "answering"), [(ONE, "cpu"), (SPLIT, "numbers"), (NAMED, "named")])
async def test_the_first_pool_that_takes_the_pack_answers_for_its_routes_also_with_no_replica_and_after_a_restart(
    tmp_path: Path, pools: tuple[PoolConfig, ...], answering: str
) -> None:
    async with client(tmp_path, pools) as c:
        for restarted in (False, True):
            routes = await c.running.scheduler.routes()
            assert list(routes) == [pool.name for pool in pools]
            assert next(pool for pool, there in routes.items() if there) == answering
            assert {PackRoute("GET", "/small"), PackRoute("GET", "/api/small")} <= set(routes[answering])
            if not restarted:
                await c.running.lose(answering)
                await c.running.restart_scheduler()
