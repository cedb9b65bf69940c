"""Runs that go on where a replica stopped, on another one: with files, scheduler and engine, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.config.resume import ResumeConfig
from serve_app.engine import run_state
from serve_app.errors import UnavailableError
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.pauses import Pause
from serve_app.store.work.run_states import JobStates
from tests import workflows
from tests.unit.replica.cluster import Cluster, cluster

ONE = PoolConfig(name="gpu", threads=1)
STEPS = 100


def job(seed: int, sampler: str = "dpmpp_2m_sde") -> dict[str, Any]:
    graph = workflows.txt2img("tiny.safetensors", seed, steps=STEPS)
    graph["3"]["inputs"]["sampler_name"] = sampler
    return graph


def states(running: Cluster) -> list[str]:
    """Return the names of the saved parts."""
    return sorted(path.name for path in (running.config.directories["work"] / "run-states").rglob("*.safetensors"))


def evaluations(running: Cluster, name: str) -> int:
    return running.runners[name].models.counters.evaluations


async def picture(running: Cluster, view: JobView) -> bytes:
    assert view.state == "success", view.failure
    [image] = view.outputs["6"]["images"]
    return (running.config.output_dir / image["filename"]).read_bytes()


async def sampled(running: Cluster, steps: int) -> None:
    """Return once a job has taken so many steps."""
    [name] = running.runners
    await until(lambda: running.runners[name].models is not None and evaluations(running, name) >= steps)


async def until(happens: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not happens():
            await asyncio.sleep(0.002)


@pytest.fixture
def at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a state saved after each step, as if saving took no time."""
    monkeypatch.setattr(run_state, "SHARE", 1e9)


@pytest.mark.usefixtures("at_each_step")
async def test_runs_of_a_lost_a_leaving_and_a_drained_replica_go_on_at_their_steps_with_the_same_picture(
    root: Path,
) -> None:
    async with cluster(root, (ONE,), resume=ResumeConfig(after_s=0.0)) as running:
        wanted = await picture(running, await running.finish(await running.submit(job(5), ("6",))))
        assert states(running) == [], "the states of jobs that have ended are deleted"
    for ends in ("lost", "leaves", "drained"):
        async with cluster(root, (ONE,), resume=ResumeConfig(after_s=0.0), cache="none") as running:
            job_id = await running.submit(job(5), ("6",), job_id=f"00000000-0000-4000-8000-00000000000{len(ends)}")
            await sampled(running, 20)
            if ends == "leaves":
                await running.runners["gpu"].leave()
            if ends == "drained":
                await running.scheduler.pause(Pause("replica", "gpu"), True)
                await running.scheduler.hand_over(Pause("replica", "gpu"))
                await until(lambda: running.scheduler.status.load().moved["handed_over"] == 1)
            first = evaluations(running, "gpu")
            await running.lose("gpu")
            assert states(running)
            await running.replica("second", ONE)
            view = await running.finish(job_id)
            assert await picture(running, view) == wanted
            # Of a run that is handed over at most one step is computed twice; of a lost one those since the last save.
            assert first + evaluations(running, "second") - STEPS <= (20 if ends == "lost" else 1)
            counters = running.runners["second"].models.run_states
            assert (counters.resumed, counters.steps >= 5) == (1, True)
            assert states(running) == []
            load = running.scheduler.status.load()
            assert load.moved == {"handed_over": int(ends != "lost"), "lost": int(ends == "lost")}
            assert load.repeated_steps <= (20 if ends == "lost" else 1)
            texts = [str(event.data) for event in await running.events(job_id)]
            assert any("went on at step" in text for text in texts)


async def test_a_replica_with_a_notice_ends_what_it_can_in_time_and_hands_the_rest_over(root: Path) -> None:
    async with cluster(root, (ONE,), cache="none") as running:
        # Nothing is saved before the notice.
        for end_s, resumed in ((3600.0, 0), (0.0, 1)):
            job_id = await running.submit(job(7), ("6",))
            await sampled(running, 20)
            [name] = running.runners
            await running.runners[name].leave_by("the machine goes", time.time() + end_s)
            # A notice may have been false, so Serve replaces it though its machine stays.
            with pytest.raises(UnavailableError, match="the machine goes"):
                running.runners[name].check_health()
            done = evaluations(running, name)
            assert (done == STEPS) == (resumed == 0)
            await running.lose(name)
            await running.replica(f"after {name}", ONE)
            assert (await running.finish(job_id)).state == "success"
            models = running.runners[f"after {name}"].models
            assert (0 if models is None else models.run_states.resumed) == resumed


@pytest.mark.usefixtures("at_each_step")
async def test_the_state_of_a_cancelled_job_is_deleted_and_a_server_that_restarts_goes_on(root: Path) -> None:
    async with cluster(root, (ONE,), resume=ResumeConfig(after_s=0.0), cache="none") as running:
        cancelled = await running.submit(job(1), ("6",))
        await sampled(running, 5)
        await running.scheduler.cancel(cancelled)
        await running.finish(cancelled)
        await until(lambda: states(running) == [])
        job_id = await running.submit(job(2), ("6",))
        await until(lambda: len(states(running)) >= 10)
        await running.lose("gpu")
        await running.restart_scheduler()
        await running.replica("second", ONE)
        assert (await running.finish(job_id)).state == "success"
        assert evaluations(running, "second") <= STEPS - 8


async def test_runs_keep_no_state_where_none_is_configured(root: Path) -> None:
    async with cluster(root, (ONE,), resume=None) as running:
        await running.finish(await running.submit(job(1), ("6",)))
        assert running.runners["gpu"].models.run_states.saves == 0


def test_a_part_that_is_written_as_its_job_is_cancelled_is_deleted(tmp_path: Path) -> None:
    job_states = JobStates(Volume({"work": tmp_path}), "job")
    files = job_states.of("3", 0, "recipe")
    files.write(0, b"a")
    job_states.delete()
    files.write(1, b"b")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
