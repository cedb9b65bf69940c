"""A server whose replicas are two processes that compute forwards together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.cluster.server import Server, configure, running, txt2img, wait_for

RANK = "ray::Rank"
NOTICE_S = 5.0
"""The time from a notice to the end of a machine: too short for the replica to let anything end first."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("ranks")
    pool = {"name": "gpu", "device": "cpu", "devices_per_replica": 2, "num_cpus": 0.1, "threads": 1}
    # Nothing is kept of a run before there is a notice.
    resume = {"after_s": 3600.0}
    preemption = {"notice": str(root / "notice"), "notice_s": NOTICE_S}
    # Every job is computed.
    configure(root, {"pools": [pool], "resume": resume, "preemption": preemption, "cache": "none"})
    with running(root) as server:
        yield server


def drawn(server: Server, prefix: str, **extra: bool) -> np.ndarray:
    """Return the pixels that a job saves."""
    return pixels(server, server.submit(txt2img(5, steps=4, prefix=prefix), extra_data=extra))


def pixels(server: Server, job: str) -> np.ndarray:
    """Return the pixels that a job has saved once it has ended."""
    entry = server.finished(job)
    assert entry["status"]["status_str"] == "success", entry
    [image] = entry["outputs"]["6"]["images"]
    return np.asarray(Image.open(server.root / "output" / image["subfolder"] / image["filename"])).astype(int)


def test_two_ranks_draw_what_one_draws_for_a_strict_job(ranks: Server) -> None:
    together, alone = drawn(ranks, "together"), drawn(ranks, "alone", strict=True)
    assert abs(together - alone).max() <= 1
    assert len(ranks.processes.found(RANK)) == 1
    said = [line for line in ranks.processes.logged() if "has joined" in line]
    assert any("rank=1 of 2" in line for line in said), said


# That a replica without one of its ranks ends is in unit/models/ranks, that its jobs go elsewhere in test_kills.
@pytest.mark.long
def test_a_job_ends_once_though_a_rank_of_its_replica_is_killed(ranks: Server) -> None:
    job = ranks.submit(txt2img(6, steps=40, side=128, prefix="killed/image"))
    wait_for(lambda: ranks.get(f"/history/{job}")[job]["status"]["status_str"] == "running", "a job that runs")
    [rank] = ranks.processes.found(RANK)
    rank.kill()
    entry = ranks.finished(job)
    assert entry["status"]["status_str"] == "success", entry
    assert len(ranks.saved("killed")) == 1
    assert [process.pid for process in ranks.processes.found(RANK)] != [rank.pid]


# That ranks' runs go on elsewhere is in unit/models/ranks/test_resume, that a notice is seen in unit/deployments.
@pytest.mark.long
def test_a_job_goes_on_at_its_step_after_its_replica_of_two_ranks_had_a_notice(ranks: Server) -> None:
    graph = txt2img(7, steps=60, side=128, prefix="moved/image")
    whole = pixels(ranks, ranks.submit(graph))
    job, notice = ranks.submit(graph), ranks.root / "notice"

    def samples() -> bool:
        events = ranks.get(f"/jobs/{job}/events?after=0&timeout_s=0")["events"]
        return any(event["kind"] == "progress" and event["data"]["node"] == "3" for event in events)

    def leaves() -> bool:
        return any(replica["draining"] for replica in ranks.get("/status")["replicas"])

    wait_for(samples, "steps of the job")
    # Its forwards wait meanwhile, so that the job has not ended before the notice is seen.
    [rank] = ranks.processes.found(RANK)
    rank.suspend()
    notice.touch()
    try:
        wait_for(leaves, "the notice to be seen")
        rank.resume()
        wait_for(lambda: rank.pid not in [p.pid for p in ranks.processes.found(RANK)], "the replica to leave")
    finally:
        notice.unlink()
    moved = pixels(ranks, job)
    assert abs(moved - whole).max() <= 1
    load = ranks.get("/status")["load"]
    assert load["moved"]["handed_over"] == 1
    assert load["repeated_steps"] <= 1
    said = [line for line in ranks.processes.logged() if "has joined" in line and "rank=1 of 2" in line]
    assert len(said) >= 2, said
