"""The courier in virtual time, beside receivers that are away, slow or wrong, and through ends of its own life."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from serve_app.config.limits import WebhookLimits
from serve_app.errors import DatabaseAwayError, OutgoingError
from serve_app.events import Failure
from serve_app.scheduler.webhooks.deliverer import CONCURRENT, CONCURRENT_EACH, WebhookDeliverer
from serve_app.scheduler.webhooks.outgoing import new_secret
from serve_app.store.database.changes import Change, JobAccepted, JobEnded, JobRow, JobStarted
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import Query
from serve_app.store.database.webhooks import EVENTS, AddWebhook, Deliveries, SendAgain, Webhook, Webhooks
from tests.examples import seeds
from tests.unit.scheduler.virtual_time import run

T = TypeVar("T")
STORY = ["job.queued", "job.running", "job.succeeded"]
DAY_S = 86_400.0
Behaviour = Callable[[], Awaitable[int]]


@dataclass
class Receiver:
    """Takes what it is sent as `behaviour` says: a status, or an error, after some time."""

    behaviour: Behaviour
    tried: list[tuple[str, str, float]] = field(default_factory=list)
    taken: list[tuple[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def take(self, body: bytes) -> int:
        said = json.loads(body)
        event = (said["data"]["id"], said["type"])
        self.tried.append((*event, asyncio.get_running_loop().time()))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            status = await self.behaviour()
        finally:
            self.at_once -= 1
        if status < 300:
            self.taken.append(event)
        return status

    def stories(self) -> dict[str, list[str]]:
        """Return the events of each job in the order in which each first arrived."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for job_id, event in self.taken:
            if event not in found[job_id]:
                found[job_id].append(event)
        return dict(found)


async def well() -> int:
    return 204


def status(code: int, after_s: float = 0.0) -> Behaviour:
    async def answer() -> int:
        await asyncio.sleep(after_s)
        return code

    return answer


async def away() -> int:
    raise OutgoingError("connection refused")


class Site:
    """A database, receivers by URL, and one life of the courier after another. Made inside the virtual loop."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.jobs = Jobs(f"sqlite:///{folder}/jobs.sqlite")
        self.receivers: dict[str, Receiver] = {}
        self._limits = WebhookLimits.model_validate(limits)
        self._orders = 0
        self._seq = 0
        self.lives = 0
        self.trouble: Callable[[], None] = lambda: None
        self.begin()

    def begin(self) -> None:
        """Begin a life: a new epoch, and a deliverer for it."""
        self.epoch = self.jobs.acquire("me")
        clock = asyncio.get_running_loop().time
        self.deliverer = WebhookDeliverer(self._ask, self._post, self._limits, clock, lambda: 0.5)
        self.working = asyncio.create_task(self.deliverer.run())
        self.lives += 1

    async def end(self) -> None:
        """End it as a process that is killed does, whatever is under way."""
        self.working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.working

    async def _ask(self, query: Query[T]) -> T:
        self.trouble()
        return self.jobs.query(self.epoch, query)

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        assert headers["webhook-id"]
        return await self.receivers[url].take(body)

    def webhook(self, name: str, behaviour: Behaviour, events: tuple[str, ...] = EVENTS, tenant: str = "") -> Receiver:
        self.receivers[name] = Receiver(behaviour)
        made = Webhook(name, name, events, new_secret(), 0.0, tenant)
        self.jobs.query(self.epoch, AddWebhook(made, 100))
        self.deliverer.wake()
        return self.receivers[name]

    def change(self, job_id: str, event: str, tenant: str = "") -> None:
        now_s, self._seq = asyncio.get_running_loop().time(), self._seq + 1
        row = JobRow(job_id, 0.0, self._orders, {}, (), None, {}, created_s=now_s, queued_seq=self._seq, tenant=tenant)
        changes: dict[str, Change] = {
            "job.queued": JobAccepted(row),
            "job.running": JobStarted(job_id, now_s, self._seq),
            "job.succeeded": JobEnded(job_id, "success", now_s, self._seq, Failure()),
        }
        self._orders += event == "job.queued"
        if self.jobs.write(self.epoch, [changes[event]]):
            self.deliverer.wake()

    def job(self, job_id: str, tenant: str = "") -> None:
        for event in STORY:
            self.change(job_id, event, tenant)

    def states(self, name: str) -> Counter[str]:
        return Counter(d.state for d in self.jobs.query(self.epoch, Deliveries(name, 10_000)))


def lived(work: Callable[[Site], Awaitable[Any]], folder: Path, **how: int) -> None:
    async def living() -> None:
        site = Site(folder, **how)
        try:
            await work(site)
        finally:
            await site.end()
            site.jobs.close()

    run(living())


def test_each_event_arrives_at_once_and_once_where_all_goes_well(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", well)
        for number in range(20):
            site.job(str(number))
        await asyncio.sleep(5)
        assert receiver.stories() == {str(number): STORY for number in range(20)}
        assert len(receiver.taken) == 60
        assert site.states("a") == {"delivered": 60}

    lived(story, tmp_path)


@pytest.mark.parametrize("wrong", [away, status(500), status(300), status(302), status(429), status(404)])
def test_a_receiver_that_was_away_or_wrong_gets_all_events_in_order_once_it_recovers(tmp_path, wrong):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", wrong)
        site.job("1")
        await asyncio.sleep(400)
        assert not receiver.taken
        assert {event for _, event, _ in receiver.tried} == {"job.queued"}
        times = [at_s for *_, at_s in receiver.tried]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert gaps == sorted(gaps), "each wait is longer"
        assert 3 <= len(times) <= 5
        receiver.behaviour = well
        await asyncio.sleep(1300)
        assert receiver.taken == [("1", event) for event in STORY]

    lived(story, tmp_path)


def test_a_delivery_that_always_fails_is_given_up_is_listed_and_may_be_sent_again(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", status(500))
        site.job("1")
        await asyncio.sleep(3600)
        assert site.states("a") == {"failed": 3}
        assert len(receiver.tried) == 9
        failed = site.jobs.query(site.epoch, Deliveries("a", 10, state="failed"))
        assert {(d.attempts, d.status, d.problem) for d in failed} == {(3, 500, "answered 500")}
        receiver.behaviour = well
        for delivery in failed:
            site.jobs.query(site.epoch, SendAgain("a", delivery.delivery_id, asyncio.get_running_loop().time()))
        site.deliverer.wake()
        await asyncio.sleep(100)
        assert receiver.taken == [("1", event) for event in STORY], "by their order, not by that of asking"

    lived(story, tmp_path, attempts=3)


def test_a_receiver_that_answers_410_gets_nothing_more(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", status(410))
        site.job("1")
        site.job("2")
        await asyncio.sleep(DAY_S)
        assert len(receiver.tried) <= CONCURRENT_EACH
        assert site.states("a")["failed"] == 6
        site.job("3")
        await asyncio.sleep(DAY_S)
        assert site.states("a").total() == 6
        assert site.jobs.query(site.epoch, Webhooks())[0].disabled == "its URL answered 410"

    lived(story, tmp_path)


def test_slow_and_dead_receivers_hold_up_no_other_and_are_not_stormed(tmp_path):
    async def story(site: Site) -> None:
        dead = [site.webhook(f"dead {n}", away) for n in range(20)]
        slow = [site.webhook(f"slow {n}", status(204, 10.0)) for n in range(3)]
        good = site.webhook("good", well)
        for number in range(50):
            site.job(str(number))
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)
        assert good.stories() == {str(number): STORY for number in range(50)}
        assert len(good.taken) == 150
        assert max(receiver.most_at_once for receiver in slow) == CONCURRENT_EACH
        await asyncio.sleep(570)
        # After the first few each is tried once a minute, however much waits.
        assert max(len(receiver.tried) for receiver in dead) < 25
        await asyncio.sleep(300)
        assert all(receiver.stories() == good.stories() for receiver in slow)

    lived(story, tmp_path)


def test_an_event_is_sent_while_the_answer_to_another_jobs_is_awaited(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", status(204, 5.0))
        for number in range(3):
            site.job(str(number))
            await asyncio.sleep(1)
        assert receiver.at_once == 3

    lived(story, tmp_path)


def test_no_more_is_under_way_than_is_allowed(tmp_path):
    async def story(site: Site) -> None:
        receivers = [site.webhook(str(n), status(204, 5.0)) for n in range(10)]
        for number in range(10):
            site.job(str(number))
        for _ in range(100):
            await asyncio.sleep(1)
            assert sum(receiver.at_once for receiver in receivers) <= CONCURRENT
        await asyncio.sleep(200)
        assert all(len(receiver.taken) == 30 for receiver in receivers)

    lived(story, tmp_path)


@pytest.mark.parametrize("slow_tenants", [1, 2, 5])
def test_no_tenants_slow_receivers_hold_up_another_tenants(tmp_path, slow_tenants):
    async def story(site: Site) -> None:
        slow = {
            tenant: [site.webhook(f"{tenant} {n}", status(204, 14.0), tenant=tenant) for n in range(40)]
            for tenant in map("slow {}".format, range(slow_tenants))
        }
        good = site.webhook("good", well, tenant="good")
        for number in range(4):
            for tenant in slow:
                site.job(f"{tenant} {number}", tenant)
        await asyncio.sleep(1)
        held = {tenant: sum(receiver.at_once for receiver in receivers) for tenant, receivers in slow.items()}
        assert max(held.values()) <= CONCURRENT // 2
        assert sum(held.values()) >= CONCURRENT // 2, "they have something to wait for"
        if slow_tenants == 1:
            assert sum(held.values()) == CONCURRENT // 2
        for number in range(20):
            began_s = asyncio.get_running_loop().time()
            site.job(str(number), "good")
            await asyncio.sleep(1)
            arrived = [at_s - began_s for job_id, _, at_s in good.tried if job_id == str(number)]
            assert len(arrived) == 3
            assert max(arrived) < 1
        shares = [sum(len(receiver.tried) for receiver in receivers) for receivers in slow.values()]
        assert min(shares) > 0, "of those who are slow none is starved"

    lived(story, tmp_path)


def test_the_first_retry_comes_when_the_configuration_says(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", away)
        site.job("1")
        tried = []
        for _ in range(3):
            await asyncio.sleep(100)
            tried.append(len(receiver.tried))
        # The jitter of these tests adds a tenth.
        assert tried == [1, 1, 2]

    lived(story, tmp_path, retry_s=200)


def test_what_waits_for_days_is_given_up(tmp_path):
    async def story(site: Site) -> None:
        site.webhook("a", away)
        site.job("1")
        await asyncio.sleep(4 * DAY_S)
        assert site.states("a") == {"failed": 3}
        problems = {d.problem for d in site.jobs.query(site.epoch, Deliveries("a", 10))}
        assert problems == {"not delivered within 3 days"}
        await asyncio.sleep(8 * DAY_S)
        assert site.states("a").total() == 0

    lived(story, tmp_path, attempts=100)


@pytest.mark.parametrize("seed", seeds(3, 12))
def test_every_event_arrives_in_order_whatever_receivers_the_database_and_the_sender_do(tmp_path, seed):
    async def story(site: Site) -> None:
        chance = random.Random(seed)

        async def moody() -> int:
            await asyncio.sleep(chance.choice([0.0, 0.1, 3.0, 15.0]))
            if chance.random() < 0.1:
                raise OutgoingError("no answer within 15 s")
            return chance.choice([200, 204, 204, 204, 500, 503])

        def trouble() -> None:
            if chance.random() < 0.05:
                raise DatabaseAwayError("locked", 1)

        site.trouble = trouble
        receivers = [site.webhook(f"hook {n}", moody) for n in range(3)]
        open_jobs: dict[str, int] = {}
        for number in range(60):
            open_jobs[str(number)] = 0
            for job_id in [j for j in open_jobs if chance.random() < 0.5]:
                site.change(job_id, STORY[open_jobs[job_id]])
                open_jobs[job_id] += 1
                if open_jobs[job_id] == len(STORY):
                    del open_jobs[job_id]
            await asyncio.sleep(chance.choice([0.0, 0.05, 1.0, 20.0]))
            if chance.random() < 0.15 or number % 15 == 14:
                await site.end()
                site.begin()
        for job_id, told in open_jobs.items():
            for event in STORY[told:]:
                site.change(job_id, event)
        for receiver in receivers:
            receiver.behaviour = well
        await asyncio.sleep(2 * DAY_S)
        assert site.lives > 3
        for receiver in receivers:
            assert receiver.stories() == {str(number): STORY for number in range(60)}
            assert site.states("hook 0") == {"delivered": 180}

    lived(story, tmp_path, attempts=100)


def test_the_sender_ends_when_a_newer_scheduler_holds_the_lease(tmp_path):
    async def story(site: Site) -> None:
        site.webhook("a", status(204, 1.0))
        site.job("1")
        await asyncio.sleep(0.5)
        site.jobs.acquire("newer")
        await asyncio.sleep(5)
        assert site.working.done()
        site.epoch += 1

    lived(story, tmp_path)


def test_a_receiver_that_has_recovered_is_tried_within_a_minute(tmp_path):
    async def story(site: Site) -> None:
        receiver = site.webhook("a", away)
        for number in range(40):
            site.job(str(number))
        await asyncio.sleep(900)
        before = len(receiver.tried)
        receiver.behaviour = well
        await asyncio.sleep(61)
        assert len(receiver.tried) > before

    lived(story, tmp_path)
