"""SIGKILL what the whole server rests on, with jobs in flight: it comes back by itself and every job finishes, once."""

from __future__ import annotations

import os
import signal
from collections import Counter

import httpx
import psutil
import pytest

from tests.cluster.server import Server, txt2img, wait_for

JOBS = 5


def part(server: Server, name: str) -> psutil.Process:
    """Return the process of that name, or the one that started Ray, which the supervisor has for a child."""
    if name == "server":
        return next(
            p
            for p in psutil.Process(server.up.pid).children()
            if "serve_app.deployments.process.serving" in p.cmdline()
        )
    return next(p for p in server.processes.found() if p.name() == name)


def successor(server: Server, name: str, killed: psutil.Process) -> psutil.Process | None:
    """What has taken the place of a part that was killed."""
    try:
        found = part(server, name)
    except (StopIteration, psutil.NoSuchProcess):
        return None
    return None if found == killed else found


# The supervisor does the same whichever has ended: unit/deployments/process/test_supervisor.
@pytest.mark.parametrize(
    ("victim", "steps"),
    [("gcs_server", 30), *(pytest.param(*each, marks=pytest.mark.long) for each in (("raylet", 31), ("server", 32)))],
)
def test_the_server_comes_back_when_what_it_rests_on_is_killed(victim: str, steps: int, server: Server):
    # Other steps than of the victim before: what the replica has of that is not computed again.
    jobs = [server.submit(txt2img(seed, steps=steps, side=128, prefix=f"{victim}/image")) for seed in range(JOBS)]
    wait_for(lambda: server.get("/queue")["running"], "a job that runs")
    haproxy = part(server, "haproxy")
    staying = {
        server.up.pid,
        haproxy.pid,
        *(p.pid for p in server.processes.found() if "serve_app.deployments.process.reaper" in p.cmdline()),
    }
    before = [p for p in server.processes.found() if p.pid not in staying]
    killed = part(server, victim)

    os.kill(killed.pid, signal.SIGKILL)

    statuses, cut = [], 0

    def asked() -> bool:
        nonlocal cut
        try:
            statuses.append(server.http.get("/queue").status_code)
        except httpx.RemoteProtocolError:
            # HAProxy passes an answer's head on before its body, and the process may die between them.
            cut += 1
        return True

    wait_for(lambda: asked() and successor(server, victim, killed), f"another {victim}")
    wait_for(lambda: asked() and statuses[-1] == 200, "an answer")
    assert cut <= 1
    assert set(statuses) <= {200, 503}, "clients are told to wait and never refused"
    assert haproxy.is_running()
    assert [p for p in before if p.is_running()] == [], "processes of the Ray that died are left"
    saved = Counter()
    for job_id in jobs:
        entry = server.finished(job_id)
        assert entry["status"]["status_str"] == "success"
        [image] = entry["outputs"]["6"]["images"]
        saved[image["filename"]] += 1
    assert set(saved.values()) == {1}
    assert server.saved(victim) == set(saved)


def test_haproxy_that_is_killed_is_started_again_and_nothing_else(server: Server):
    # Workers that Ray keeps for nothing in particular come and go.
    idle = {p.pid for p in server.processes.found("ray::IDLE")}
    haproxy, before = part(server, "haproxy"), {p.pid for p in server.processes.found()} - idle
    haproxy.kill()
    wait_for(server.answers, "a HAProxy that listens")
    assert before - {p.pid for p in server.processes.found()} == {haproxy.pid}
