"""Nodes that try to take their replica down, through service, scheduler and replica, without Ray: each fails alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.limits import BackoffRules
from serve_app.config.pool import PoolConfig
from serve_app.errors import InvalidGraphError, NotReadyError
from serve_app.replica.watchdog import REPLACED
from serve_app.scheduler.jobs import remote_validation
from serve_app.scheduler.protocol.client import JobView
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.pauses import THE_QUEUE
from tests.unit.replica.cluster import Cluster, cluster
from tests.usual_limits import LIMITS

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

class Endless(Node):
    stop = threading.Event()
    def go(self, error):
        self.stop.wait(60)
        return {}

class Deaf(Node):
    async def go(self, error):
        while not Endless.stop.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass
        return {}

class Waits(Node):
    async def go(self, error):
        await asyncio.sleep(60)

class Naps(Node):
    async def go(self, error):
        await asyncio.sleep(1.5)
        return {}

class EndlessValidation(Node):
    @classmethod
    def VALIDATE_INPUTS(cls, error):
        Endless.stop.wait(60)
        return True

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
        self.service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [], LIMITS)

    async def submit(self, kind: str, error: str = "", **extra_data: Any) -> str:
        prompt = {"n": {"class_type": kind, "inputs": {"error": error}}}
        return (await self.service.submit({"prompt": prompt, "extra_data": extra_data})).job_id

    async def started(self, kind: str, **extra_data: Any) -> str:
        """Submit a node and return the job once the node runs."""
        job_id = await self.submit(kind, **extra_data)
        while not any(job_id in name for runner in self.running.runners.values() for name in runner.underway()):
            await asyncio.sleep(0.01)
        return job_id

    async def until_draining(self) -> None:
        """Return once the scheduler knows that a replica takes no more tasks."""
        async with asyncio.timeout(60):
            while not (await self.running.replicas()) or not (await self.running.scheduler.cluster()).troubles:
                await asyncio.sleep(0.01)

    async def until_idle(self, replica: str, *, lingering: bool) -> None:
        """Return once the scheduler knows of no task there, and of somebody whose node goes on after its task's end.

        lingering: false waits until there is nobody. A replica reports who lingers before it reports the task's end.
        """
        known = self.running.scheduler.machine.replicas[replica]
        async with asyncio.timeout(60):
            while known.running or bool(known.lingering) != lingering:
                await asyncio.sleep(0.01)

    async def run(self, kind: str, error: str = "") -> JobView:
        return await asyncio.wait_for(self.running.finish(await self.submit(kind, error)), 60)

    async def check(self) -> None:
        """Fail unless the replica lives and runs what comes next."""
        assert not self.running.lives["cpu"].done()
        assert (await self.run("Node", "fine")).outputs == {"n": {"text": ["fine"]}}


@contextlib.asynccontextmanager
async def client(root: Path, pools: tuple[PoolConfig, ...] = ONE, **settings: Any) -> AsyncIterator[Client]:
    packs = root / "packs"
    packs.mkdir()
    (packs / "bad.py").write_text(PACK)
    (packs / "dies.py").write_text("raise KeyboardInterrupt")
    async with cluster(root, pools, custom_nodes_dir=packs, **settings) as running:
        try:
            yield Client(running)
        finally:
            for runner in running.runners.values():
                runner.classes["Endless"].stop.set()


@pytest.mark.parametrize("kind", ["Sync", "Async", "Lazy"])
async def test_whatever_a_node_raises_is_its_own_failure_with_type_and_message(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path) as c:
        for error in ERRORS:
            view = await c.run(kind, error)
            assert (view.state, view.failure.node, view.failure.class_type) == ("error", "n", kind), error
            # Of a coroutine that raises StopIteration Python itself makes another error.
            expected = "RuntimeError" if (kind, error) == ("Async", "StopIteration") else error
            assert view.failure.exception_type.split(".")[-1] == expected
            assert view.failure.traceback
        assert view.failure.message == "<Silent without a text: SystemExit>"
        await c.check()


async def test_a_class_that_ends_the_process_as_it_is_made_fails_alone(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        view = await c.run("Made")
        assert (view.failure.exception_type, view.failure.message) == ("SystemExit", "as it is made")
        await c.check()


@pytest.mark.parametrize("kind", ["Validates", "AsyncValidates"])
async def test_whatever_validation_raises_is_a_problem_of_its_node(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path) as c:
        for error in ERRORS:
            with pytest.raises(InvalidGraphError) as refused:
                await asyncio.wait_for(c.submit(kind, error), 60)
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
        assert view.failure.message == "what it shows is no JSON: Object of type lock is not JSON serializable"
        assert (await c.run("Progresses")).failure.exception_type == "TypeError"
        answered = (await c.run("Answers")).prompt["n"]["is_changed"]
        assert [type(answer) for answer in answered] == [str]
        await c.check()


def impatient(stop_s: float = 0.3, finish_s: float = 0.0, **settings: Any) -> tuple[PoolConfig, ...]:
    return (PoolConfig(name="cpu", runtime=False, threads=1, stop_s=stop_s, finish_s=finish_s, **settings),)


@pytest.mark.parametrize("kind", ["Endless", "Deaf"])
async def test_a_cancelled_node_that_goes_on_costs_its_replica_and_no_other_job(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path, impatient()) as c:
        innocent = await c.started("Waits", job_time_s=1)
        guilty = await c.started(kind)
        assert await c.running.scheduler.cancel(guilty)
        while not c.running.exits:
            await asyncio.sleep(0.01)
        assert c.running.exits == [REPLACED]
        assert "cpu" not in await c.running.replicas()
        assert (await c.running.finish(guilty)).state == "cancelled"
        c.running.runners["cpu"].classes["Endless"].stop.set()
        await c.running.replica("second", impatient()[0])
        assert (await c.run("Node", "fine")).state == "success"
        view = await asyncio.wait_for(c.running.finish(innocent), 60)
        assert view.failure.exception_type == "JobTimeError", "it went on with the second replica, to its own limit"


async def test_other_jobs_finish_before_a_replica_is_ended_and_the_owner_of_the_stuck_job_waits(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(finish_s=30.0), backoff=BackoffRules(first_s=60.0)) as c:
        innocent = await c.started("Naps")
        guilty = await c.started("Endless")
        assert await c.running.scheduler.cancel(guilty)
        async with asyncio.timeout(60):
            while not (await c.running.scheduler.cluster()).backoffs:
                await asyncio.sleep(0.01)
        [replica] = (await c.running.scheduler.cluster()).replicas
        assert (replica.draining, c.running.exits) == (True, [])
        assert (await c.running.finish(innocent)).state == "success", "where it began, as there is no other replica"
        async with asyncio.timeout(60):
            while not c.running.exits:
                await asyncio.sleep(0.01)
        c.running.runners["cpu"].classes["Endless"].stop.set()
        await c.running.replica("second", impatient()[0])
        waits = await c.submit("Node", "waits")
        await asyncio.sleep(0.3)
        assert (await c.running.scheduler.job(waits)).state == "queued"


async def test_a_task_that_waits_for_the_thread_of_a_node_that_goes_on_is_handed_over_at_once(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(finish_s=300.0)) as c:
        await c.started("Waits")
        guilty = await c.started("Endless")
        behind = await c.submit("Node", "behind")
        async with asyncio.timeout(30):
            while not c.running.runners["cpu"].replacement.waiting:
                await asyncio.sleep(0.01)
            assert await c.running.scheduler.cancel(guilty)
            while (await c.running.scheduler.cluster()).replicas[0].running > 1:
                await asyncio.sleep(0.01)
            stuck = c.running.runners["cpu"].replacement.stuck
            assert (c.running.exits, stuck) == ([], 1), "what runs there goes on"
            c.running.runners["cpu"].classes["Endless"].stop.set()
            assert (await c.running.finish(behind)).state == "success"


async def test_a_replica_stays_whose_node_stops_while_others_finish(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(finish_s=60.0)) as c:
        innocent = await c.started("Waits")
        guilty = await c.started("Endless")
        assert await c.running.scheduler.cancel(guilty)
        async with asyncio.timeout(60):
            while not (await c.running.scheduler.cluster()).replicas[0].draining:
                await asyncio.sleep(0.01)
            c.running.runners["cpu"].classes["Endless"].stop.set()
            assert (await c.run("Node", "fine")).state == "success"
        assert c.running.exits == []
        assert (await c.running.scheduler.job(innocent)).state == "running"


async def test_a_node_that_goes_on_is_seen_also_where_a_new_scheduler_has_its_task_run_again(tmp_path: Path) -> None:
    async with client(tmp_path, impatient()) as c:
        guilty = await c.started("Endless")
        await c.running.restart_scheduler()
        async with asyncio.timeout(60):
            while not c.running.exits:
                await asyncio.sleep(0.01)
        assert c.running.exits == [REPLACED]
        c.running.runners["cpu"].classes["Endless"].stop.set()
        await c.running.replica("second", impatient()[0])
        # Its pack is imported anew, with a node of its own to be stopped.
        c.running.runners["second"].classes["Endless"].stop.set()
        assert (await c.running.finish(guilty)).state == "success"


async def test_a_cancelled_node_answers_for_the_end_of_its_replica_for_as_long_as_it_goes_on(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(stop_s=60.0), backoff=BackoffRules(first_s=60.0)) as c:
        for stops, losses in ((True, []), (False, [1])):
            stop = c.running.runners["cpu"].classes["Endless"].stop
            guilty = await c.started("Endless")
            assert await c.running.scheduler.cancel(guilty)
            await c.running.finish(guilty)
            if stops:
                stop.set()
            await c.until_idle("cpu", lingering=not stops)
            await c.running.lose("cpu")
            assert [one.losses for one in (await c.running.scheduler.cluster()).backoffs] == losses
            if stops:
                await c.running.replica("cpu")
            else:
                stop.set()
        await c.running.restart_scheduler()
        [waits] = c.running.scheduler.status.backoffs()
        assert (waits.losses, 0.0 < waits.wait_s <= 60.0) == (1, True), "a restart forgives nobody"


async def test_a_cancelled_node_that_ends_in_time_costs_nothing(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(stop_s=2.0)) as c:
        guilty = await c.started("Endless")
        assert await c.running.scheduler.cancel(guilty)
        await c.running.finish(guilty)
        c.running.runners["cpu"].classes["Endless"].stop.set()
        await c.check()
        async with asyncio.timeout(60):
            while c.running.runners["cpu"].underway():
                await asyncio.sleep(0.01)
        assert c.running.exits == []


async def test_an_engine_stuck_in_a_cancelled_job_is_reported_and_replaced_at_no_others_cost(
    tmp_path: Path,
) -> None:
    async with client(tmp_path, impatient(cancelled_time_s=9)) as c:
        innocent = await c.started("Waits", job_time_s=5)
        assert await c.running.scheduler.cancel(await c.started("Naps"))
        runner = c.running.runners["cpu"]
        runner.computes_unwanted(0.2)
        assert (await c.running.scheduler.cluster()).troubles == ()
        runner.computes_unwanted(0.5)
        await c.until_draining()
        [trouble] = (await c.running.scheduler.cluster()).troubles
        why = "the engine has been computing for 0.5 s what was cancelled"
        assert (trouble.pool, trouble.why, trouble.working) == ("cpu", why, 0)
        assert "cpu" in await c.running.replicas(), "it is to go on"
        assert (await c.running.scheduler.job(innocent)).state == "running"
        assert (await c.running.scheduler.cluster()).backoffs == ()
        while not (cancelled := runner.replacement.cancelled):
            await asyncio.sleep(0.01)
        cancelled[0] = (cancelled[0][0] - 9.0, cancelled[0][1])
        runner.computes_unwanted(9.0)
        async with asyncio.timeout(60):
            while not c.running.exits:
                await asyncio.sleep(0.01)
        assert c.running.exits == [REPLACED]
        assert [one.losses for one in (await c.running.scheduler.cluster()).backoffs] == [1], "whoever cancelled waits"
        await c.running.replica("second", impatient()[0])
        view = await asyncio.wait_for(c.running.finish(innocent), 60)
        assert view.failure.exception_type == "JobTimeError", "it went on with the second replica, to its own limit"


async def test_a_replica_whose_engine_computes_what_was_cancelled_gets_no_task_until_that_has_ended(
    tmp_path: Path,
) -> None:
    async with client(tmp_path, impatient(cancelled_time_s=60)) as c:
        c.running.runners["cpu"].computes_unwanted(0.5)
        await c.until_draining()
        await c.running.restart_scheduler()
        await c.until_draining()
        waits = await c.running.submit({"n": {"class_type": "Node", "inputs": {"error": ""}}}, ("n",))
        await asyncio.sleep(0.3)
        assert (await c.running.scheduler.job(waits)).state == "queued"
        c.running.runners["cpu"].computes_unwanted(0.0)
        assert (await asyncio.wait_for(c.running.finish(waits), 60)).state == "success"
        assert (await c.running.scheduler.cluster()).troubles == ()


@pytest.mark.parametrize("kind", ["Endless", "Waits", "Deaf"])
async def test_a_node_over_its_time_ends_its_job_saying_which_and_what_limit(tmp_path: Path, kind: str) -> None:
    async with client(tmp_path, impatient(node_time_s=0.4)) as c:
        view = await c.run(kind)
        expected = f"node n ({kind}) ran for longer than 0.4 s, the node_time_s of pool cpu"
        assert (view.state, view.failure.message) == ("error", expected)
        assert (view.failure.node, view.failure.class_type) == ("n", kind)
        while kind != "Waits" and not c.running.exits:
            await asyncio.sleep(0.01)
        assert c.running.exits == ([] if kind == "Waits" else [REPLACED])


async def test_a_submission_may_lower_the_limit_of_a_node_and_not_raise_it(tmp_path: Path) -> None:
    async with client(tmp_path, impatient(node_time_s=0.4)) as c:
        for asked, limit in ((0.2, "0.2 s, the node_time_s of the job's extra_data"), (9, "0.4 s, the node_time_s of")):
            view = await asyncio.wait_for(c.running.finish(await c.submit("Waits", node_time_s=asked)), 60)
            assert f"longer than {limit}" in view.failure.message


async def test_a_job_over_its_time_ends_and_says_which_node_ran(tmp_path: Path) -> None:
    less: dict[str, Any] = {"job_time_s": 0.3}
    async with client(tmp_path, job_time_s=1.5) as c:
        for asked, source in (
            (less, "0.3 s, the job_time_s of its extra_data"),
            ({}, "1.5 s, the job_time"),
        ):
            view = await asyncio.wait_for(c.running.finish(await c.submit("Waits", **asked)), 60)
            assert (view.failure.node, view.failure.exception_type) == ("n", "JobTimeError")
            assert f"longer than {source}" in view.failure.message
            assert "node n (Waits)" in view.failure.message
        await c.check()


async def test_a_jobs_time_goes_on_while_the_scheduler_restarts(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        job_id = await c.started("Waits", job_time_s=0.8)
        began_s = (await c.running.scheduler.job(job_id)).started_s
        await c.running.restart_scheduler()
        view = await asyncio.wait_for(c.running.finish(job_id), 60)
        assert view.failure.exception_type == "JobTimeError"
        assert view.started_s == began_s


async def test_a_deadline_ends_what_waits_and_what_runs_also_after_a_restart(tmp_path: Path) -> None:
    async with client(tmp_path) as c:
        runs = await c.started("Waits", deadline_s=0.8)
        await c.running.scheduler.pause(THE_QUEUE, True)
        waits = await c.submit("Waits", deadline_s=0.8)
        await c.running.restart_scheduler()
        for job_id in (runs, waits):
            view = await asyncio.wait_for(c.running.finish(job_id), 60)
            assert (view.state, view.failure.exception_type) == ("error", "DeadlineError")
            assert ("it had not started" in view.failure.message) == (job_id == waits)


async def test_validation_that_does_not_end_is_given_up_and_costs_its_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_validation, "CHECK_S", 0.5)
    monkeypatch.setattr("serve_app.replica.runner.CHECK_S", 0.4)
    async with client(tmp_path, impatient()) as c:
        with pytest.raises((InvalidGraphError, NotReadyError)):
            await c.submit("EndlessValidation")
        while not c.running.exits:
            await asyncio.sleep(0.01)
        assert c.running.exits == [REPLACED]
