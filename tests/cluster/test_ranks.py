"""A server whose replicas are two processes that compute forwards together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.cluster.server import Server, configure, running, txt2img, wait_for

RANK = "ray::Rank"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("ranks")
    pool = {"name": "gpu", "device": "cpu", "devices_per_replica": 2, "num_cpus": 0.1, "threads": 1}
    configure(root, {"pools": [pool]})
    with running(root) as server:
        yield server


def drawn(server: Server, prefix: str, **extra: bool) -> np.ndarray:
    """Return the pixels that a job saves."""
    entry = server.finished(server.submit(txt2img(5, steps=4, prefix=prefix), extra_data=extra))
    assert entry["status"]["status_str"] == "success", entry
    [image] = entry["outputs"]["6"]["images"]
    return np.asarray(Image.open(server.root / "output" / image["filename"])).astype(int)


def test_two_ranks_draw_what_one_draws_for_a_strict_job(ranks: Server) -> None:
    together, alone = drawn(ranks, "together"), drawn(ranks, "alone", strict=True)
    assert abs(together - alone).max() <= 1
    assert len(ranks.processes.found(RANK)) == 1
    said = [line for line in ranks.processes.logged() if "has joined" in line]
    assert any("rank=1 of 2" in line for line in said), said


def test_a_job_ends_once_though_a_rank_of_its_replica_is_killed(ranks: Server) -> None:
    job = ranks.submit(txt2img(6, steps=40, side=128, prefix="killed/image"))
    wait_for(lambda: ranks.get(f"/history/{job}")[job]["status"]["status_str"] == "running", "a job that runs")
    [rank] = ranks.processes.found(RANK)
    rank.kill()
    entry = ranks.finished(job)
    assert entry["status"]["status_str"] == "success", entry
    assert len(ranks.saved("killed")) == 1
    assert [process.pid for process in ranks.processes.found(RANK)] != [rank.pid]
