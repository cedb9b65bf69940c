"""What clients see of an upgrade: submissions at a steady rate, websockets, event streams and webhooks."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

from serve_app.api.v2.shapes import STATES
from serve_app.events import ENDINGS
from tests.chaos import verdict
from tests.chaos.clients import Book, Caller, Listener, Watcher
from tests.chaos.jobs import Draw, Job
from tests.cluster.receiver import Receiver
from tests.cluster.server import free_port, wait_for
from tests.hosts.cluster import NEXT_HEAD, NEXT_WORKERS, Cluster

SENDERS = 8
LISTENED = 10
"""Of so many jobs one has its events streamed."""
STEADY_S = 10.0
"""How long each phase goes on once what it does is done."""
STORY = ["job.queued", "job.running", "job.succeeded"]
ENDED_S = 300.0
V2_ENDINGS = {STATES[state] for state in ENDINGS}


@dataclass
class Phase:
    """What was done, how long it took, and what submissions were answered first meanwhile."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    took_s: float = 0.0

    def line(self) -> str:
        """Return it as text."""
        answers = ", ".join(f"{count} x {what}" for what, count in self.answers.most_common())
        return f"{self.name}: {self.took_s:.0f} s, slowest answer {self.longest_s:.1f} s; {answers}"


@dataclass
class Upgraded:
    """What clients saw."""

    phases: list[Phase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield from (phase.line() for phase in self.phases)
        yield from (f"note: {note}" for note in self.notes)
        for what, count in Counter(self.violations).items():
            yield f"VIOLATION ({count}): {what}"
        yield f"{len(self.violations)} violations"


class Senders:
    """Submits so many jobs a second, each under an id of its own and again until it is accepted."""

    def __init__(self, url: str, rate: float, draw: Draw, book: Book) -> None:
        self._url, self._rate, self._draw, self._book = url, rate, draw, book
        self._lock = threading.Lock()
        self._next_s = time.monotonic()
        self.phase = Phase("before")
        self.streams: list[Stream] = []
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"client-{i}",), daemon=True) for i in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit no more, and return once what was begun is accepted."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: str) -> None:
        count = 0
        with httpx.Client(base_url=self._url, timeout=60.0) as http:
            while not self.over.is_set():
                with self._lock:
                    job, at_s = self._draw.plain(), self._next_s
                    self._next_s = max(at_s, time.monotonic() - 1.0) + 1.0 / self._rate
                time.sleep(max(0.0, at_s - time.monotonic()))
                self._submit(http, job, client)
                count += 1
                if count % LISTENED == 0:
                    self.streams.append(Stream(self._url, str(job.job_id)))

    def _submit(self, http: httpx.Client, job: Job, client: str) -> None:
        deadline = time.monotonic() + ENDED_S
        while time.monotonic() < deadline:
            began, phase = time.monotonic(), self.phase
            said = self._answered(http, {"prompt": job.prompt, "prompt_id": job.job_id, "client_id": client})
            phase.longest_s = max(phase.longest_s, time.monotonic() - began)
            phase.answers[said] += 1
            if said == "200":
                self._book.accepted(str(job.job_id), job, client)
                return
            time.sleep(0.5)
        self._book.wrong(f"job {job.job_id} was not accepted within {ENDED_S:.0f} s")

    @staticmethod
    def _answered(http: httpx.Client, body: dict[str, object]) -> str:
        try:
            answer = http.post("/prompt", json=body)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code == 503 and "retry-after" in answer.headers:
            return "503 with Retry-After"
        return str(answer.status_code) if answer.status_code == 200 else f"{answer.status_code} {answer.text[:100]}"


class Stream(threading.Thread):
    """Follows a job's server-sent events, again if the stream breaks. status: the last it was told."""

    def __init__(self, url: str, job_id: str) -> None:
        super().__init__(daemon=True)
        self._address = f"{url}/api/v2/jobs/{job_id}/events"
        self.job_id = job_id
        self.status: str | None = None
        self.connections = 0
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + ENDED_S
        while self.status not in V2_ENDINGS and time.monotonic() < deadline:
            self.connections += 1
            try:
                with httpx.stream("GET", self._address, timeout=60.0) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            self.status = json.loads(line[5:]).get("status", self.status)
            except httpx.TransportError:
                pass
            time.sleep(0.2)


def upgraded(site: Cluster, rate: float, seed: int) -> Upgraded:
    """Upgrade a cluster in each of its ways while so many jobs are submitted a second, then judge."""
    report, book, current = Upgraded(), Book(), site
    caller, draw = Caller(site.url, book.strange), Draw(random.Random(seed))
    port = free_port()
    receiver = Receiver(port, site.network.here, answers=())
    listeners = {f"client-{i}": Listener(site.url, f"client-{i}", book) for i in range(SENDERS)}
    wanted = {"url": f"http://{site.network.here}:{port}/", "events": STORY}
    made = httpx.post(f"{site.url}/api/webhooks", json=wanted, timeout=60.0)
    assert made.status_code == 201, made.text
    Watcher(site.url, book)
    senders = Senders(site.url, rate, draw, book)
    try:
        for name, way in WAYS.items():
            report.phases.append(Phase(name))
            senders.phase = report.phases[-1]
            began = time.monotonic()
            current = way(current)
            senders.phase.took_s = time.monotonic() - began
            time.sleep(STEADY_S)
            print(senders.phase.line(), file=sys.stderr)
        senders.stop()
        wait_for(lambda: not book.open(), "the end of every job", ENDED_S)
        report.violations += _judged(book, caller, listeners, senders, receiver, report)
        before = verdict.recorded(caller, book)
        with current.stopped():
            report.violations += verdict.files(current, before, swept=False)
        report.violations += verdict.changed(before, verdict.recorded(caller, book))
    except (RuntimeError, TimeoutError, AssertionError) as error:
        report.violations.append(f"it could not go on: {error}")
    finally:
        senders.over.set()
        book.finished.set()
        receiver.close()
        current.close()
    report.violations += book.violations
    return report


def _nothing(site: Cluster) -> Cluster:
    return site


def _in_place(site: Cluster) -> Cluster:
    site.deploy(site.configuration(max_queue=9999))
    return site


def _workers(site: Cluster) -> Cluster:
    for host in site.workers.values():
        host.stop()
        host.start()
        _whole(site)
    return site


def _head(site: Cluster) -> Cluster:
    site.head.kill()
    site.head.start()
    _whole(site)
    return site


def _beside(site: Cluster) -> Cluster:
    """As KubeRay does: the first cluster goes a while after the second runs."""
    second = Cluster(site.root, site.network, site.data, site.url, NEXT_HEAD, NEXT_WORKERS)
    try:
        second.wait_until_joined()
        second.deploy(second.configuration(max_queue=9998))
        time.sleep(STEADY_S)
    except BaseException:
        second.close()
        raise
    site.close()
    return second


def _whole(site: Cluster) -> None:
    site.wait_until_joined()
    site.wait_until_deployed()


WAYS: Mapping[str, Callable[[Cluster], Cluster]] = {
    "nothing": _nothing,
    "serve deploy of another configuration": _in_place,
    "each worker stopped in good order and back": _workers,
    "the head lost and back": _head,
    "a second cluster beside the first": _beside,
}
"""What is done under load, one after another. Each returns the cluster that there is then."""


def _judged(
    book: Book,
    caller: Caller,
    listeners: dict[str, Listener],
    senders: Senders,
    receiver: Receiver,
    report: Upgraded,
) -> Iterator[str]:
    yield from verdict.lost(book)
    yield from verdict.ends(book, caller, [])
    wrong, unheard = verdict.sockets(listeners, book)
    yield from wrong
    for stream in senders.streams:
        stream.join(60.0)
    yield from (
        f"the event stream of job {stream.job_id} ended with {stream.status}"
        for stream in senders.streams
        if stream.status != STATES["success"]
    )
    ended = [job_id for job_id, entry in book.entries.items() if entry.state in ENDINGS]
    deadline = time.monotonic() + ENDED_S
    while time.monotonic() < deadline and len(told := receiver.stories()) < len(ended):
        time.sleep(0.5)
    told = receiver.stories()
    yield from (f"the webhook of job {job_id} said {told.get(job_id)}" for job_id in ended if told.get(job_id) != STORY)
    sockets = sum(listener.connections for listener in listeners.values())
    streams = sum(stream.connections for stream in senders.streams)
    report.notes += [
        f"{len(ended)} jobs ended; {len(listeners)} clients opened {sockets} sockets, {unheard} ends lost with one",
        f"{len(senders.streams)} event streams took {streams} connections",
        f"{len(receiver.taken)} webhook deliveries of {3 * len(ended)} events",
        *(f"answered {what}, {count} times" for what, count in book.strange.items()),
    ]
