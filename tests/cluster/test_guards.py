"""Nodes that try to take their replica down with them, on a real server: innocents beside them all succeed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.cluster.server import Server, configure, wait_for

PACK = """
import asyncio, os, time

class Node:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"n": ("INT", {"default": 0, "max": 1000000})}}

class Innocent(Node):
    async def go(self, n):
        await asyncio.sleep(1)
        return {"ui": {"n": [n]}}

class Quick(Node):
    def go(self, n):
        return {"ui": {"n": [n]}}

class Exits(Node):
    def go(self, n):
        raise SystemExit("sync")

class ExitsAsync(Node):
    async def go(self, n):
        await asyncio.sleep(0)
        raise SystemExit("async")

class Interrupts(Node):
    async def go(self, n):
        raise KeyboardInterrupt

class Blocks(Node):
    async def go(self, n):
        time.sleep(3600)

class Endless(Node):
    def go(self, n):
        open(os.path.join(os.path.dirname(__file__), os.pardir, f"endless-{n}"), "w").close()
        while True:
            time.sleep(0.01)

class Fills(Node):
    def go(self, n):
        kept = []
        while True:
            kept.append(b"x" * (1 << 24))
            # Faster than the watchdog looks, it would meet the limit of allocations first.
            time.sleep(0.05)

class Asks(Node):
    def go(self, n):
        return {"ui": {"n": [len(bytearray(1 << 34))]}}

class Computes(Node):
    async def go(self, n):
        import torch
        def threads():
            return len(os.listdir("/proc/self/task"))
        def compute():
            torch.set_num_threads(4)
            torch.ones(1 << 22).add_(1)
        before = threads()
        await asyncio.to_thread(compute)
        return {"ui": {"n": [threads() - before]}}

NODE_CLASS_MAPPINGS = {c.__name__: c for c in Node.__subclasses__()}
"""
POOL = {
    "name": "cpu",
    "runtime": False,
    "num_cpus": 1,
    "hang_s": 3,
    "stop_s": 2,
    "finish_s": 2,
    "memory_bytes": 2 << 30,
}
INNOCENTS = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("guards")
    (root / "packs").mkdir()
    (root / "packs" / "bad.py").write_text(PACK)
    # All jobs are one client's, and most end a replica.
    nobody_waits = {"first_s": 0, "forgiven_s": 0.1}
    arguments = {"silence_s": 8, "max_attempts": 1, "pools": [POOL], "backoff": nobody_waits}
    configure(root, {"custom_nodes_dir": str(root / "packs"), **arguments})
    server = Server(root)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


class Jobs:
    """Jobs of one node each; no two are equal."""

    count = 0

    def __init__(self, server: Server) -> None:
        self.server = server

    def submit(self, kind: str, **extra_data: Any) -> str:
        Jobs.count += 1
        prompt = {"n": {"class_type": kind, "inputs": {"n": Jobs.count}}}
        return self.server.submit(prompt, extra_data=extra_data)

    def innocents(self) -> list[str]:
        return [self.submit("Innocent") for _ in range(INNOCENTS)]

    def check(self, innocents: list[str]) -> None:
        """Fail unless all of these succeed, and a sync node of the pack after them."""
        for job_id in [*innocents, self.submit("Quick")]:
            status = self.server.finished(job_id)["status"]
            assert status["status_str"] == "success", status

    def message(self, job_id: str) -> dict[str, Any]:
        """Return why a job has ended in error."""
        status = self.server.finished(job_id)["status"]
        assert status["status_str"] == "error", status
        return dict(self.server.get(f"/api/history/{job_id}")[job_id]["status"]["messages"])["execution_error"]

    def started(self, job_id: str) -> None:
        """Return once the job's node runs, or has run: it may have a limit that is shorter than a look takes."""
        wait_for(lambda: self.server.get(f"/history/{job_id}")[job_id]["status"]["status_str"] != "queued", "a start")


@pytest.fixture
def jobs(server: Server) -> Jobs:
    return Jobs(server)


def pid(server: Server) -> int:
    found = wait_for(lambda: server.processes.found("ray::ServeReplica:serve-app:cpu"), "a replica")
    return found[0].pid


def logged(server: Server, *texts: str) -> bool:
    return any(all(text in line for text in texts) for line in server.processes.logged())


@pytest.mark.parametrize(
    ("kind", "error"), [("Exits", "SystemExit"), ("ExitsAsync", "SystemExit"), ("Interrupts", "KeyboardInterrupt")]
)
def test_what_a_node_raises_to_end_the_process_ends_its_job_alone(jobs: Jobs, kind: str, error: str) -> None:
    process, innocents = pid(jobs.server), jobs.innocents()
    assert jobs.message(jobs.submit(kind))["exception_type"] == error
    jobs.check(innocents)
    assert pid(jobs.server) == process


def test_a_replica_yields_to_others_no_more_than_its_server(server: Server) -> None:
    assert psutil.Process(pid(server)).nice() == os.nice(0), "the server is a child of this process"


def test_what_a_node_computes_in_a_thread_of_the_loops_leaves_no_team_of_openmp(jobs: Jobs) -> None:
    ended = jobs.server.finished(jobs.submit("Computes"))
    [left] = ended["outputs"]["n"]["n"]
    assert left <= 1, "the loop's own new thread is one"


def test_an_allocation_that_is_far_too_large_fails_alone(jobs: Jobs) -> None:
    process, innocents = pid(jobs.server), jobs.innocents()
    assert jobs.message(jobs.submit("Asks"))["exception_type"] == "MemoryError"
    jobs.check(innocents)
    assert pid(jobs.server) == process


@pytest.mark.parametrize("limit", ["cancel", "node_time_s", pytest.param("job_time_s", marks=pytest.mark.long)])
def test_a_thread_that_never_ends_costs_its_replica_and_no_innocent(jobs: Jobs, limit: str) -> None:
    process, innocents = pid(jobs.server), jobs.innocents()
    guilty = jobs.submit("Endless", **({} if limit == "cancel" else {limit: 2}))
    jobs.started(guilty)
    if limit == "cancel":
        # One that is cancelled on its way to the replica never begins.
        wait_for((jobs.server.root / f"endless-{jobs.count}").exists, "the node to begin")
        assert jobs.server.http.post("/api/jobs/cancel", json={"job_ids": [guilty]}).json() == {"cancelled": True}
        assert jobs.server.finished(guilty)["status"]["status_str"] == "cancelled"
    else:
        message = jobs.message(guilty)["exception_message"]
        assert limit in message
        assert "node n (Endless)" in message
    jobs.check(innocents)
    assert pid(jobs.server) != process
    assert logged(jobs.server, "status 83", f"node n (Endless) of job {guilty}")


# That a replica whose loop is blocked ends is in unit/replica/test_watchdog.
@pytest.mark.parametrize(("kind", "status"), [pytest.param("Blocks", 81, marks=pytest.mark.long), ("Fills", 82)])
def test_a_node_that_blocks_the_loop_or_fills_memory_is_given_up_alone(jobs: Jobs, kind: str, status: int) -> None:
    process, innocents = pid(jobs.server), jobs.innocents()
    guilty = jobs.submit(kind)
    jobs.message(guilty)
    jobs.check(innocents)
    assert pid(jobs.server) != process
    assert logged(jobs.server, f"status {status}", f"node n ({kind}) of job {guilty}")


def test_a_replica_that_is_stopped_is_replaced_and_its_jobs_are_done_elsewhere(jobs: Jobs) -> None:
    process, innocents = pid(jobs.server), jobs.innocents()
    jobs.started(innocents[0])
    os.kill(process, signal.SIGSTOP)
    jobs.check(innocents)
    wait_for(lambda: process not in [p.pid for p in jobs.server.processes.found()], "the end of the stopped process")
