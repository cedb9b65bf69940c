"""The scheduler's shell over a real database of either kind: what is durable when, and whom a failed commit touches."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app import log
from serve_app.api.comfy.jobs import history
from serve_app.config import AppConfig
from serve_app.errors import DatabaseAwayError, DrainingError, InvalidSubmissionError, QueueFullError, StaleAttemptError
from serve_app.events import ENDINGS, Event
from serve_app.graph.plan import Pool, TaskId
from serve_app.graph.spec import Input, NodeSpec
from serve_app.scheduler import watch
from serve_app.scheduler.durability import writer
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.jobs.views import row_view
from serve_app.scheduler.protocol.client import JobView, QueueBounds, QueueCount, Reader
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Assign,
    HandOver,
    NodeFinished,
    NodeStarted,
    ReplicaInfo,
    Report,
    TaskFinished,
)
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import JobQuery, Submission
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents
from serve_app.store.tenants.pauses import THE_QUEUE, Pause
from tests.unit.scheduler.job_pages import page
from tests.unit.store.lost_commits import losing_commits

EVERY = QueueBounds(1000, 1_000_000)

RULES = AdmissionRules.of(AppConfig())
POOL = Pool("cpu", False)
INPUTS = (Input("seed", "INT"), Input("image", "COMBO", "optional", folder="input"))
SPEC = NodeSpec("Save", INPUTS, (), (), (), output_node=True)
HOST = HostStats("host", 1, 1, 1, ())
INFO = ReplicaInfo("replica", "cpu", slots=2)
UNSTORABLE = "\ud800"
"""Half of a surrogate pair: text that no database can hold."""
SHOWN = {"unsayable": {1, 2}}
"""What nodes show that show more than their own id: a set is no JSON."""

SILENCE_S = 60.0
"""How long a replica may be silent, where that is not what a test is about."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_DELAY_S", 0.01)


class Life:
    """One scheduler and its replica, whose nodes are done as soon as they are sent there unless `held`."""

    def __init__(self, url: str, fingerprint: Callable[[str, str], str], pool: Pool) -> None:
        self.jobs = Jobs(url)
        self.scheduler = Scheduler(
            self.jobs,
            [pool],
            fingerprint,
            lambda: HOST,
            holder="test",
            rules=RULES,
            max_attempts=3,
            silence_s=SILENCE_S,
            job_time_s=None,
        )
        self.free = asyncio.Event()
        self.free.set()

    async def start(self) -> None:
        await self.scheduler.start()
        self.epoch = await self.scheduler.registry.join(INFO, [SPEC], HOST)
        self.replica = asyncio.create_task(self._replica())

    async def _replica(self) -> None:
        seen = 0
        while True:
            for cursor, message in await self.scheduler.registry.poll(INFO.replica_id, self.epoch, seen):
                seen = cursor
                if isinstance(message, Assign):
                    await self._run(message)

    async def _run(self, message: Assign) -> None:
        task = message.task
        started: list[Report] = [NodeStarted(task.id, node_id) for node_id in task.nodes]
        await self.scheduler.registry.report(INFO.replica_id, self.epoch, started, None)
        await self.free.wait()
        done = [NodeFinished(task.id, n, task.signatures[n], {"images": [SHOWN.get(n, n)]}) for n in task.nodes]
        await self.scheduler.registry.report(INFO.replica_id, self.epoch, [*done, TaskFinished(task.id)], None)

    async def submit(
        self,
        *node_ids: str,
        client_id: str | None = None,
        job_id: str = "",
        seed: int | None = None,
        extra_data: Mapping[str, Any] | None = None,
        tenant: str = "",
        **inputs: str,
    ) -> str:
        seed = uuid.uuid4().int % 2**31 if seed is None else seed
        prompt = {n: {"class_type": "Save", "inputs": {"seed": seed + i, **inputs}} for i, n in enumerate(node_ids)}
        job_id = job_id or str(uuid.uuid4())
        await self.scheduler.submit(Submission(job_id, prompt, node_ids, client_id, extra_data or {}, tenant=tenant))
        return job_id

    async def finish(self, job_id: str) -> JobView:
        while (view := await self.scheduler.job(job_id)) is None or view.ended_s is None:
            await asyncio.sleep(0.01)
        return view

    async def reserve(self, job_id: str) -> tuple[int, bool]:
        return await self.scheduler.registry.reserve(TaskId(job_id, 0, 0), "1", "output/x", 1, contents(1))

    async def events(self, job_id: str) -> list[Event]:
        return await self.scheduler.events(job_id, 0, 0)

    async def close(self) -> None:
        self.replica.cancel()
        await asyncio.gather(self.replica, return_exceptions=True)
        await self.scheduler.close()


@contextlib.asynccontextmanager
async def living(
    url: str, fingerprint: Callable[[str, str], str] = lambda *_: "", pool: Pool = POOL
) -> AsyncIterator[Life]:
    life = Life(url, fingerprint, pool)
    await life.start()
    try:
        async with asyncio.timeout(120):
            yield life
    finally:
        await life.close()


@pytest.fixture
async def life(database_url: str) -> AsyncIterator[Life]:
    async with living(database_url) as life:
        yield life


async def test_a_job_is_in_the_database_when_its_id_is_answered_and_its_outputs_when_it_ends(life):
    life.free.clear()
    job_id = await life.submit("1", "2")
    assert life.jobs.job(job_id).state in ("queued", "running")
    life.free.set()
    view = await life.finish(job_id)
    row = life.jobs.job(job_id)
    assert (view.state, row.state) == ("success", "success")
    assert row.outputs == {"1": {"images": ["1"]}, "2": {"images": ["2"]}}
    assert [e.kind for e in await life.events(job_id)][-1] == "success"


async def test_the_log_has_a_jobs_end_with_its_tenant_and_how_long_it_waited_and_ran(tmp_path):
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(log.JsonFormatter())
    logger = log.get("scheduler")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        async with living(f"sqlite:///{tmp_path}/jobs.sqlite") as life:
            job_id = await life.submit("1", tenant="studio")
            await life.finish(job_id)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    [end] = [line for line in map(json.loads, lines.getvalue().splitlines()) if line["message"].startswith("ended")]
    assert (end["job"], end["tenant"], end["message"]) == (job_id, "studio", "ended: state=success")
    assert 0 <= float(end["waited_s"]) < 60
    assert 0 <= float(end["ran_s"]) < 60


async def test_a_recent_success_is_answered_from_memory_as_the_database_has_it(life, monkeypatch):
    secret = {"api_key_comfy_org": "secret", "strict": True}
    job_id = await life.submit("1", "2", client_id="me", extra_data=secret)
    view = await life.finish(job_id)
    assert view == row_view(life.jobs.job(job_id))
    assert view.extra_data == {"strict": True}
    with monkeypatch.context() as away:
        away.setattr(life.jobs, "job", None)
        assert await life.scheduler.job(job_id) == view
    await life.scheduler.forget([job_id])
    assert await life.scheduler.job(job_id) is None


async def test_credentials_are_given_to_the_jobs_nodes_and_never_written_down(life):
    life.free.clear()
    job_id = await life.submit("1", extra_data={"api_key_comfy_org": "secret", "a": 1})
    assert life.jobs.job(job_id).extra_data == {"a": 1}
    assert (await life.scheduler.job(job_id)).extra_data["api_key_comfy_org"] == "secret"
    life.free.set()
    await life.finish(job_id)


async def test_a_failed_job_is_answered_as_the_database_has_it(life):
    bad = await life.submit("1", "unsayable")
    assert await life.finish(bad) == row_view(life.jobs.job(bad))
    life.free.clear()
    cancelled = await life.submit("1")
    await life.scheduler.cancel(cancelled)
    assert await life.finish(cancelled) == row_view(life.jobs.job(cancelled))
    life.free.set()


async def test_unfinished_jobs_go_on_in_another_life_with_the_outputs_they_had(database_url):
    async with living(database_url) as life:
        life.free.clear()
        first, second = await life.submit("1"), await life.submit("1")
    async with living(database_url) as life:
        views = [await life.finish(job_id) for job_id in (first, second)]
        assert [view.state for view in views] == ["success", "success"]
        assert life.epoch == 2


async def test_an_output_that_cannot_be_recorded_ends_its_own_job_with_the_reason_and_no_other(life):
    life.free.clear()
    bad, good = await life.submit("1", "unsayable"), await life.submit("1")
    life.free.set()
    views = {job_id: await life.finish(job_id) for job_id in (bad, good)}
    assert views[good].state == "success"
    assert views[bad].state == "error"
    row = life.jobs.job(bad)
    assert row.state == "error"
    assert "refuses" in row.failure.message
    told = [e.kind for e in await life.events(bad)]
    assert told[0] == "queued"
    assert told.count("error") == 1
    assert "success" not in told
    assert (await life.finish(await life.submit("1"))).state == "success"
    queue = await life.scheduler.queue(EVERY)
    assert (queue.running, queue.pending) == ((), ())


async def test_a_job_that_cannot_be_kept_is_refused_and_nobody_else_is_held_up(life):
    life.free.clear()
    waiting = [asyncio.create_task(life.submit("1", client_id=client)) for client in ("a", UNSTORABLE, "b")]
    first, refused, last = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(refused, InvalidSubmissionError)
    assert "cannot be kept" in str(refused)
    life.free.set()
    for job_id in (first, last):
        assert (await life.finish(job_id)).state == "success"
    assert {row.job_id for row in life.jobs.unfinished()} == set()
    assert (await life.scheduler.backlog("cpu"))[:2] == (0, 0)


async def test_a_commit_that_is_merely_late_is_made_when_the_database_is_back(postgres_server):
    async with living(postgres_server.database()) as life:
        life.free.clear()
        job_id = await life.submit("1")
        while not (await life.scheduler.queue(EVERY)).running:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres_server.stop)
        try:
            task_id = TaskId(job_id, 0, 0)
            reserved = asyncio.create_task(life.scheduler.registry.reserve(task_id, "1", "output/x", 1, contents(1)))
            with pytest.raises(DatabaseAwayError):
                await life.submit("1")
            assert not reserved.done()
        finally:
            await asyncio.to_thread(postgres_server.start)
        assert await reserved == (1, False)
        life.free.set()
        assert (await life.finish(job_id)).state == "success"


async def test_an_output_waits_for_a_database_that_is_away_and_is_then_there(postgres_server):
    async with living(postgres_server.database()) as life:
        life.free.clear()
        job_id = await life.submit("1")
        while not (await life.scheduler.queue(EVERY)).running:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres_server.stop)
        try:
            life.free.set()
            await asyncio.sleep(0.1)
            # Asking for the job reads memory: its end is told only once it is durable.
            assert (await life.scheduler.job(job_id)).ended_s is None
        finally:
            await asyncio.to_thread(postgres_server.start)
        assert (await life.finish(job_id)).state == "success"
        assert life.jobs.job(job_id).outputs["1"] == {"images": ["1"]}


async def test_a_database_that_another_holds_for_long_delays_jobs_and_fails_none(tmp_path):
    async with living(f"sqlite:///{tmp_path}/jobs.sqlite") as life:
        with life.jobs.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=1")
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        submitted = asyncio.create_task(life.submit("1"))
        await asyncio.sleep(0.1)
        assert not submitted.done()
        other.execute("ROLLBACK")
        other.close()
        assert (await life.finish(await submitted)).state == "success"


async def test_an_older_life_writes_nothing_once_a_newer_one_has_the_lease(life, database_url):
    newer = Jobs(database_url)
    newer.acquire("another")
    with pytest.raises(DrainingError):
        await life.submit("1")
    assert life.scheduler.fenced.is_set()
    assert newer.unfinished() == []
    newer.close()


async def test_a_store_that_is_slow_to_find_a_file_delays_no_other_job(tmp_path):
    answered = threading.Event()

    def fingerprint(folder: str, name: str) -> str:
        answered.wait(60)
        return name

    async with living(f"sqlite:///{tmp_path}/jobs.sqlite", fingerprint) as life:
        waiting = asyncio.create_task(life.submit("1", image="a.png"))
        assert (await life.finish(await life.submit("1"))).state == "success"
        assert not waiting.done()
        answered.set()
        assert (await life.finish(await waiting)).state == "success"


async def test_whatever_commit_loses_its_answer_jobs_are_accepted_and_end_as_if_none_had(life):
    with losing_commits(life.jobs.engine):
        job_ids = await asyncio.gather(*(life.submit("1", "2") for _ in range(5)))
        views = [await life.finish(job_id) for job_id in job_ids]
        reserved = [await life.reserve(job_id) for job_id in [await held(life)]]
    assert {view.state for view in views} == {"success"}
    assert {tuple(view.outputs) for view in views} == {("1", "2")}
    assert reserved == [(1, False)]


async def test_counters_that_are_asked_for_together_are_reserved_in_one_transaction(life, monkeypatch):
    job_id, written = await held(life), []

    def counted(epoch, changes):
        written.append(len(changes))
        return write(epoch, changes)

    write = life.jobs.write
    monkeypatch.setattr(life.jobs, "write", counted)
    task_id = TaskId(job_id, 0, 0)
    asked = [life.scheduler.registry.reserve(task_id, str(node), "output/x", 1, contents(2)) for node in range(6)]
    assert await asyncio.gather(*asked) == [(first, False) for first in range(1, 13, 2)]
    assert written == [6]


async def test_a_job_that_no_database_can_hold_ends_and_its_node_is_given_no_counters(life):
    job_id = await held(life)
    with pytest.raises(StaleAttemptError, match="ended meanwhile"):
        await life.scheduler.registry.reserve(TaskId(job_id, 0, 0), "\ud800", "output/x", 1, contents(1))
    assert (await life.finish(job_id)).state == "error"
    assert await life.reserve(await held(life)) == (1, False)


async def held(life: Life) -> str:
    """A job that runs until `free` is set."""
    life.free.clear()
    job_id = await life.submit("1")
    while job_id not in [job.job_id for job in (await life.scheduler.queue(EVERY)).running]:
        await asyncio.sleep(0.01)
    return job_id


async def test_an_id_posted_at_once_with_many_contents_is_one_job_and_its_equals_are_answered_alike(life):
    job_id = str(uuid.uuid4())
    posts = [life.submit("1", job_id=job_id, seed=n % 20, client_id=str(n)) for n in range(50)]
    answers = await asyncio.gather(*posts, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, InvalidSubmissionError)]
    accepted = [n for n, answer in enumerate(answers) if answer == job_id]
    assert len(accepted) + len(refused) == 50
    (seed,) = {n % 20 for n in accepted}
    assert len(accepted) == len(range(seed, 50, 20))
    assert all(job_id in str(error) and "another prompt" in str(error) for error in refused)
    assert (await life.finish(job_id)).prompt["1"]["inputs"]["seed"] == seed
    assert await life.submit("1", job_id=job_id, seed=seed) == job_id
    with pytest.raises(InvalidSubmissionError, match=job_id):
        await life.submit("1", job_id=job_id, seed=seed + 1)


async def test_an_id_that_is_posted_again_while_the_first_post_is_refused_is_accepted_once(life, monkeypatch):
    admission = life.scheduler.admission
    monkeypatch.setattr(admission, "rules", replace(admission.rules, max_queue=0))
    job_id = str(uuid.uuid4())
    posts = [asyncio.create_task(life.submit("1", job_id=job_id, seed=1)) for _ in range(10)]
    await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    monkeypatch.setattr(admission, "rules", replace(admission.rules, max_queue=1000))
    posts += [asyncio.create_task(life.submit("1", job_id=job_id, seed=1)) for _ in range(10)]
    answers = await asyncio.gather(*posts, return_exceptions=True)
    assert {answer for answer in answers if not isinstance(answer, QueueFullError)} == {job_id}
    assert life.jobs.next_order() == 1


async def test_a_job_is_delayed_only_for_a_client_with_open_sockets(life):
    jobs = [
        Submission(str(uuid.uuid4()), {"1": {"class_type": "Save", "inputs": {"seed": n}}}, ("1",), "me")
        for n in range(2)
    ]
    assert not (await life.scheduler.submit(jobs[0])).held
    attached = await life.scheduler.attach("me", "token")
    assert (await life.scheduler.submit(jobs[1])).held
    assert (await life.scheduler.submit(jobs[1])).held, "it is answered once more, and the first answer may be lost"

    async def told() -> set[str]:
        news = await life.scheduler.unsent_events({"me": Reader("token", attached.after)}, -1, 0.0)
        return {event.job_id for event in news.events["me"]}

    await life.finish(jobs[1].job_id)
    assert await told() == {jobs[0].job_id}
    await life.scheduler.answered(jobs[1].job_id)
    assert await told() == {job.job_id for job in jobs}
    assert not (await life.scheduler.submit(jobs[1])).held


@pytest.mark.parametrize(
    ("extra_data", "outputs", "differing"),
    [({"a": 1}, ("1",), "extra_data"), ({}, ("1", "2"), "outputs"), ({"a": 1}, ("2",), "outputs and extra_data")],
)
async def test_what_differs_under_the_same_id_is_named(life, extra_data, outputs, differing):
    prompt = {n: {"class_type": "Save", "inputs": {"seed": 1}} for n in ("1", "2")}
    job_id = str(uuid.uuid4())
    await life.scheduler.submit(Submission(job_id, prompt, ("1",), None))
    with pytest.raises(InvalidSubmissionError, match=differing):
        await life.scheduler.submit(Submission(job_id, prompt, outputs, None, extra_data=extra_data))


async def test_a_class_that_says_its_world_has_changed_makes_no_other_submission_of_the_same_one(life):
    job_id = str(uuid.uuid4())
    prompt = {"1": {"class_type": "Save", "inputs": {"seed": 1}}}
    for said in (0.5, float("nan"), 7):
        fingerprinted = {"1": {**prompt["1"], "is_changed": said}}
        assert (await life.scheduler.submit(Submission(job_id, fingerprinted, ("1",), None))).job_id == job_id


async def test_history_and_durable_events_are_the_same_after_a_restart_those_of_cached_nodes_too(database_url):
    async with living(database_url) as life:
        shared = [await life.submit("1", "2", seed=n % 3) for n in range(12)]
        for job_id in shared:
            await life.finish(job_id)
        stopped = await held(life)
        await life.scheduler.cancel(stopped)
        before = await page(life.scheduler, JobQuery(tuple(ENDINGS)))
        events = {view.job_id: durable(await life.events(view.job_id)) for view in before.jobs}
    assert {len(view.cached) for view in before.jobs} >= {0, 2}
    async with living(database_url) as life:
        after = await page(life.scheduler, JobQuery(tuple(ENDINGS)))
        assert [replay(view) for view in after.jobs] == [replay(view) for view in before.jobs]
        for view in before.jobs:
            assert durable(await life.events(view.job_id)) == events[view.job_id]


def replay(view: JobView) -> str:
    """A job as ComfyUI's history shows it."""
    return json.dumps(history.entry(view), sort_keys=True)


def durable(told: list[Event]) -> list[tuple[int, str, object]]:
    kinds = {"queued", "started", "cached", "executed", *ENDINGS}
    return [(event.seq, event.kind, event.data) for event in told if event.kind in kinds]


async def test_jobs_are_counted_and_cancelled_together_by_where_they_are(life):
    life.free.clear()
    running = [await life.submit("1") for _ in range(2)]
    waiting = [await life.submit("1") for _ in range(3)]
    while (await life.scheduler.count()).running < len(running):
        await asyncio.sleep(0.01)
    assert await life.scheduler.count() == QueueCount(2, 3)
    assert await life.scheduler.cancel_all([*running, waiting[0], "unknown"], "queued") == 1
    assert await life.scheduler.cancel_all(None, "queued") == 2
    assert await life.scheduler.cancel_all(["unknown"]) == 0
    assert await life.scheduler.count() == QueueCount(2, 0)
    assert await life.scheduler.cancel_all(None) == 2
    views = [await life.scheduler.job(job_id) for job_id in running + waiting]
    assert [view.state for view in views] == ["cancelled"] * 5


async def test_a_silent_replica_is_lost_and_given_to_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 0.02)
    jobs = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    silence = Scheduler(
        jobs,
        [Pool("cpu", False)],
        lambda *_: "",
        lambda: HOST,
        holder="test",
        rules=RULES,
        max_attempts=3,
        silence_s=0.2,
        job_time_s=None,
    )
    silenced: asyncio.Queue[str] = asyncio.Queue()
    silence.silenced = silenced.put_nowait
    await silence.start()
    await silence.registry.join(INFO, [SPEC], HOST)
    assert await asyncio.wait_for(silenced.get(), 60) == INFO.replica_id
    assert (await silence.cluster()).replicas == ()
    await silence.close()


def contents(count: int) -> Contents:
    """Files to be saved."""
    return Contents(".png", tuple(map(str, range(count))))


async def test_a_job_that_can_no_longer_be_planned_ends_for_everyone_who_looks(database_url: str) -> None:
    async with living(database_url) as life:
        life.free.clear()
        job_id = await life.submit("1", client_id="looking on")
    async with living(database_url, pool=Pool("cpu", False, ("Other",))) as life:
        view = await life.finish(job_id)
        assert (view.state, view.failure.exception_type) == ("error", "InvalidGraphError")
        attached = await life.scheduler.attach("looking on", "token")
        news = await life.scheduler.unsent_events(
            {"looking on": Reader("token", attached.after)}, attached.queue.version, 5
        )
        assert news.events["looking on"][-1].kind == "error"
        assert life.scheduler.status.load().ended == {"error": 1}


async def test_node_classes_have_one_tag_until_they_change(life):
    tag, specs = await life.scheduler.specs_since("")
    assert specs == {"Save": SPEC}
    await life.scheduler.registry.join(replace(INFO, replica_id="alike"), [SPEC], HOST)
    assert await life.scheduler.specs_since(tag) == (tag, None)
    await life.scheduler.registry.join(replace(INFO, replica_id="other"), [replace(SPEC, class_type="Other")], HOST)
    changed, specs = await life.scheduler.specs_since(tag)
    assert changed != tag
    assert list(specs) == ["Other"]


async def test_a_pause_holds_what_has_not_started_also_in_the_next_life_and_is_seen(database_url):
    async with living(database_url) as life:
        assert await life.scheduler.pause(THE_QUEUE, True) == (THE_QUEUE,)
        assert await life.scheduler.pause(THE_QUEUE, True) == (THE_QUEUE,)
        job_id = await life.submit("1")
        [paused] = (await life.scheduler.cluster()).paused
        assert (paused.kind, paused.name) == ("queue", "")
    async with living(database_url) as life:
        assert (await life.scheduler.queue(EVERY)).paused == (THE_QUEUE,)
        assert await life.scheduler.count() == QueueCount(0, 1)
        assert await life.scheduler.pause(THE_QUEUE, False) == ()
        assert (await life.finish(job_id)).state == "success"


async def test_a_pool_that_is_not_there_cannot_be_paused_but_resumed(life):
    with pytest.raises(InvalidSubmissionError, match="no pool is named 'cpx'; there are cpu; did you mean 'cpu'"):
        await life.scheduler.pause(Pause("pool", "cpx"), True)
    assert await life.scheduler.pause(Pause("pool", "cpx"), False) == ()


async def test_a_replica_with_ranks_on_other_hosts_is_drained_by_the_name_of_any(life):
    registry, drain = life.scheduler.registry, Pause("host", "gpu-2")
    spanning = ReplicaInfo("spanning", "cpu", 1, rank_hosts=("gpu-2",))
    epoch = await registry.join(spanning, [SPEC], HOST)
    with pytest.raises(InvalidSubmissionError, match="no host is named 'gpu-3'; there are gpu-2, host"):
        await life.scheduler.pause(Pause("host", "gpu-3"), True)
    assert await life.scheduler.pause(drain, True) == (drain,)
    replicas = {each.replica_id: each for each in (await life.scheduler.cluster()).replicas}
    assert {name: each.drained for name, each in replicas.items()} == {"replica": False, "spanning": True}
    assert replicas["spanning"].rank_hosts == ("gpu-2",)
    await life.scheduler.hand_over(drain)
    assert [message for _, message in await registry.poll("spanning", epoch, 0)] == [HandOver()]
