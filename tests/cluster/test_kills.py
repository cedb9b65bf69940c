"""SIGKILL a part of the server with twenty jobs in flight: every job finishes, once, and its client sees one story."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from serve_app.cli import server as client
from serve_app.cli.submit import follow
from tests.cluster.server import PATIENCE_S, TITLES, Server, txt2img, wait_for

JOBS = 12
STEPS = 20


class Follower(threading.Thread):
    """A client that reads one job's events to their end, across whatever happens to the server."""

    def __init__(self, url: str, job_id: str) -> None:
        super().__init__(daemon=True)
        self._url, self._job_id = url, job_id
        self.events: list[tuple[str, Any]] = []
        self.start()

    def run(self) -> None:
        with client.ServerClient(self._url, PATIENCE_S) as server:
            follow(server, self._job_id, lambda kind, data: self.events.append((kind, data)))

    def of(self, kind: str) -> list[Any]:
        """Return the data of the events of one kind so far."""
        return [data for seen, data in self.events if seen == kind]


# The sender of webhooks starts with the first message: test_webhooks.py kills it.
@pytest.mark.parametrize("victim", sorted(TITLES.keys() - {"webhook_sender"}))
def test_every_job_finishes_once_after_a_process_is_killed(victim: str, server: Server):
    prefix = f"{victim}/image"
    jobs = [
        server.submit(txt2img(seed, steps=STEPS, side=128, text=f"{victim} {seed % 3}", prefix=prefix))
        for seed in range(JOBS)
    ]
    followers = {job_id: Follower(server.url, job_id) for job_id in jobs}
    wait_for(lambda: any(f.of("progress") for f in followers.values()), "a job that samples")
    killed = server.processes.pid(victim)

    server.kill(victim)

    assert not all(f.of("success") for f in followers.values()), "the kill came too late to interrupt anything"
    with client.ServerClient(server.url, PATIENCE_S) as patient:
        assert patient.get(f"/history/{jobs[0]}")[jobs[0]]["status"]["status_str"] in {"queued", "running", "success"}
    for job_id, follower in followers.items():
        follower.join(PATIENCE_S)
        assert not follower.is_alive(), f"job {job_id} did not end; its events: {follower.events[-5:]}"
    assert server.processes.pid(victim) != killed

    saved = Counter()
    for job_id, follower in followers.items():
        entry = server.finished(job_id)
        assert entry["status"] == {"status_code": 100, "completed": True, "status_str": "success", "messages": []}
        assert [data["node"] for data in follower.of("executed")] == ["6"]
        assert [kind for kind, _ in follower.events if kind in {"queued", "success", "error", "cancelled"}] == [
            "queued",
            "success",
        ]
        [image] = entry["outputs"]["6"]["images"]
        saved[image["filename"]] += 1
    assert set(saved.values()) == {1}
    assert server.saved(victim) == set(saved)
