"""Clients of a server under attack, the book of what it promised them, and who watches that it keeps it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from serve_app.events import ENDINGS
from tests.chaos.jobs import Job

AWAY = {502, 503, 504}
ASK_S = 15.0
"""How long one request may take before it is sent again."""
PATIENCE_S = 300.0
"""How long a request is sent again and again before the campaign is given up."""
LIMBO_S = 90.0
"""How long an accepted job may be neither in the queue nor at its end; a server that restarts knows neither."""
WIDTH = 8
"""Jobs that one client has in hand."""
TOLD = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "cancelled"}
"""What a socket is told at the end of a job, and the state that goes with it."""


class Caller:
    """Asks the server, again if need be. strange: counts answers that no fault excuses. key: of its tenant, if any."""

    def __init__(self, url: str, strange: Counter[str], key: str = "") -> None:
        self._http = httpx.Client(base_url=url, timeout=ASK_S, headers=_headers(key))
        self._strange = strange

    def ask(self, method: str, path: str, body: Any = None, patience_s: float = PATIENCE_S) -> Any:
        """Return the JSON of an answer 200. Errors: RuntimeError for a refusal, TimeoutError once patience is over."""
        deadline = time.monotonic() + patience_s
        while True:
            said = self._once(method, path, body)
            if isinstance(said, httpx.Response):
                if said.status_code == 200:
                    return said.json()
                if said.status_code < 500:
                    raise RuntimeError(
                        f"{method} {path.split('?')[0]} was answered {said.status_code}: {said.text[:300]}"
                    )
                if said.status_code not in AWAY:
                    self._strange[f"{method} {_shape(path)}: {said.status_code} {said.text[:200]}"] += 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"{method} {path} got no answer in {patience_s:.0f} s; the last was {said!r}")
            time.sleep(0.3)

    def _once(self, method: str, path: str, body: Any) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            return error


@dataclass
class Entry:
    """One accepted job. state: how it ended, None until then. withdrawn: what a cancel was answered."""

    job: Job
    client: str
    accepted_s: float
    state: str | None = None
    ended_s: float = 0.0
    withdrawn: bool | None = None
    limbo_s: float | None = None


@dataclass
class Book:
    """What was accepted and how it ended. Every method may be called by any thread."""

    entries: dict[str, Entry] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    strange: Counter[str] = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)
    finished: threading.Event = field(default_factory=threading.Event)
    """Set once nobody is to ask any more."""

    def accepted(self, job_id: str, job: Job, client: str) -> None:
        """Note a job that the server has promised to run."""
        with self.lock:
            if job_id in self.entries:
                self.violations.append(f"two submissions were answered the same id {job_id}")
            self.entries[job_id] = Entry(job, client, time.monotonic())

    def open(self, client: str | None = None) -> dict[str, Entry]:
        """Return the jobs that have not ended, a client's or all."""
        with self.lock:
            return {
                job_id: entry
                for job_id, entry in self.entries.items()
                if entry.state is None and client in (None, entry.client)
            }

    def since(self, moment_s: float) -> frozenset[str]:
        """Return the jobs that had not ended at a moment, or came later."""
        with self.lock:
            entries = self.entries.items()
            return frozenset(name for name, entry in entries if entry.state is None or entry.ended_s >= moment_s)

    def ended(self) -> int:
        """Return how many have ended."""
        with self.lock:
            return sum(entry.state is not None for entry in self.entries.values())

    def wrong(self, what: str) -> None:
        """Note a violation."""
        with self.lock:
            self.violations.append(what)


class Client(threading.Thread):
    """Submits its jobs, a few at a time, and cancels those that are to be cancelled; no new ones after until_s.

    pace_s: the least time between two submissions. key: of its tenant, if any.
    """

    def __init__(
        self,
        name: str,
        url: str,
        jobs: Sequence[Job],
        book: Book,
        until_s: float,
        width: int = WIDTH,
        pace_s: float = 0.0,
        key: str = "",
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._caller = Caller(url, book.strange, key)
        self._jobs = list(jobs)
        self._book = book
        self._until_s = until_s
        self._width = width
        self._pace_s = pace_s
        self._next_s = 0.0
        self._cancels: list[tuple[float, str]] = []

    def run(self) -> None:
        try:
            while (self._jobs or self._cancels or self._book.open(self.name)) and not self._book.finished.is_set():
                if time.monotonic() > self._until_s:
                    self._jobs.clear()
                if self._cancels and self._cancels[0][0] <= time.monotonic():
                    self._cancel(self._cancels.pop(0)[1])
                elif self._jobs and self._next_s < time.monotonic() and len(self._book.open(self.name)) < self._width:
                    self._next_s = time.monotonic() + self._pace_s
                    self._submit(self._jobs.pop(0))
                else:
                    time.sleep(0.02)
        except (RuntimeError, TimeoutError) as error:
            self._book.wrong(f"client {self.name} gave up: {error}")

    def _submit(self, job: Job) -> None:
        body = {"prompt": job.prompt, "client_id": self.name, **job.keys}
        if job.job_id is not None:
            body["prompt_id"] = job.job_id
        # One without an id of its own may be accepted twice if its answer is lost; both have to end.
        job_id = self._caller.ask("POST", "/prompt", body)["prompt_id"]
        self._book.accepted(job_id, job, self.name)
        if job.cancel is not None:
            self._cancels.append((time.monotonic() + job.cancel.after_s, job_id))
            self._cancels.sort()

    def _cancel(self, job_id: str) -> None:
        entry = self._book.entries[job_id]
        assert entry.job.cancel is not None
        match entry.job.cancel.door:
            case "jobs":
                entry.withdrawn = self._caller.ask("POST", f"/jobs/{job_id}/cancel", {})["cancelled"]
            case "interrupt":
                with contextlib.suppress(ValueError):  # ComfyUI's answer has no body
                    self._caller.ask("POST", "/api/interrupt", {"prompt_id": job_id})
            case "queue":
                with contextlib.suppress(ValueError):
                    self._caller.ask("POST", "/api/queue", {"delete": [job_id]})


class Watcher(threading.Thread):
    """Sees jobs end: one that was accepted and is not in the queue has to be at its end."""

    def __init__(self, url: str, book: Book, key: str = "") -> None:
        super().__init__(daemon=True)
        self._caller = Caller(url, book.strange, key)
        self._book = book
        self.start()

    def run(self) -> None:
        while not self._book.finished.wait(0.3):
            expected = self._book.open()
            if not expected:
                continue
            try:
                self._look(expected)
            except (RuntimeError, TimeoutError) as error:
                self._book.wrong(f"whoever looks at the queue: {error}")

    def _look(self, expected: Mapping[str, Entry]) -> None:
        queue = self._caller.ask("GET", "/queue")
        queued = {job_id for job_id, _ in queue["queue_pending"]} | set(queue["running"])
        for job_id in expected.keys() - queued:
            found = self._caller.ask("GET", f"/history/{job_id}").get(job_id)
            entry, now = expected[job_id], time.monotonic()
            if found is not None and found["status"]["status_str"] in ENDINGS:
                entry.ended_s = now
                entry.state = found["status"]["status_str"]
                continue
            entry.limbo_s = entry.limbo_s or now
            if now - entry.limbo_s > LIMBO_S:
                self._book.wrong(f"lost: job {job_id} ({entry.job.kind}) is neither queued nor at its end: {found}")
                entry.state = "lost"


class Listener(threading.Thread):
    """A client's websocket, opened again whenever it breaks. told: the endings heard of each job."""

    def __init__(self, url: str, client: str, book: Book, key: str = "") -> None:
        super().__init__(daemon=True)
        self._headers = _headers(key)
        self._address = f"{url.replace('http', 'ws', 1)}/ws?clientId={client}"
        self._book = book
        self.told: dict[str, set[str]] = defaultdict(set)
        self.connections = 0
        self.start()

    def run(self) -> None:
        while not self._book.finished.is_set():
            try:
                with connect(
                    self._address, open_timeout=ASK_S, max_size=None, additional_headers=self._headers
                ) as socket:
                    self.connections += 1
                    self._listen(socket)
            except (OSError, WebSocketException, TimeoutError):
                self._book.finished.wait(0.5)

    def _listen(self, socket: Any) -> None:
        over: set[str] = set()
        while not self._book.finished.is_set():
            try:
                message = socket.recv(timeout=1.0)
            except TimeoutError:
                continue
            if isinstance(message, bytes):
                continue
            frame = json.loads(message)
            data = frame.get("data")
            job_id = data.get("prompt_id") if isinstance(data, dict) else None
            if job_id is None or (frame["type"] == "executing" and data.get("node") is None):
                continue
            if job_id in over:
                # What is told again after a break comes by a new connection.
                self._book.wrong(f"a socket heard {frame['type']} of job {job_id} after its end")
            if (state := TOLD.get(frame["type"])) is not None:
                self.told[job_id].add(state)
                over.add(job_id)


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _shape(path: str) -> str:
    """Return a path without what differs from job to job."""
    return "/".join("ID" if part.count("-") == 4 else part for part in path.split("?")[0].split("/"))
