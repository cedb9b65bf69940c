"""The application on a Ray cluster that was there before it and goes on after it, as under KubeRay."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.ray_cluster import RayCluster, started
from tests.cluster.server import Server, txt2img, wait_for

MODEL_NODES = ["CheckpointLoaderSimple", "CLIP*", "KSampler*", "VAE*"]
LONG = {"steps": 60, "side": 128}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def actors(cluster: RayCluster, name: str) -> list[dict[str, Any]]:
    """Return the living actors whose name or class starts so, with what Ray reserved for them."""
    answer = httpx.get(f"{cluster.dashboard}/api/v0/actors", params={"detail": "1"}, timeout=60.0)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
    return [a for a in found if a["state"] == "ALIVE" and (a["name"].startswith(name) or a["class_name"] == name)]


def test_up_uses_the_cluster_of_ray_address_and_withdraws_from_it(cluster: RayCluster):
    server = Server(cluster.root, cluster.port, {"RAY_ADDRESS": cluster.address})
    try:
        server.wait_until_ready()
        assert server.finished(server.submit(txt2img(1)))["status"]["completed"]
        assert cluster.processes.found("ray::SchedulerActor")
        assert not server.processes.found("ray::")

        server.up.send_signal(signal.SIGTERM)

        assert server.up.wait(60) == 0
    finally:
        server.close()
    wait_for(lambda: not cluster.processes.found("ray::ServeReplica"), "the replicas to end")
    wait_for(lambda: not cluster.processes.found("ray::SchedulerActor"), "the scheduler to end")
    assert cluster.processes.found("ray::ServeController")
    answer = cluster.http.get("/queue")
    assert answer.status_code == 503
    assert answer.json()["status_code"] == 503


def test_serve_deploy_runs_the_shipped_configuration(cluster: RayCluster):
    cluster.deploy(cluster.config("local.yaml"))
    cluster.wait_until_deployed()
    entry = cluster.finished(cluster.submit(txt2img(2, prefix="deployed")))
    [image] = entry["outputs"]["6"]["images"]
    assert (cluster.root / "output" / image["filename"]).is_file()


def test_jobs_outlive_the_deployment_of_a_changed_configuration(cluster: RayCluster):
    jobs = [cluster.submit(txt2img(seed, **LONG)) for seed in range(8)]
    wait_for(lambda: cluster.get("/queue")["running"], "a job that runs")
    before = {process.pid for process in cluster.processes.found("ray::SchedulerActor")}

    cluster.deploy(cluster.config("local.yaml", max_queue=3))

    wait_for(lambda: {p.pid for p in cluster.processes.found("ray::SchedulerActor")} - before, "another scheduler")
    cluster.wait_until_deployed()
    names = set()
    for job_id in jobs:
        entry = cluster.finished(job_id)
        assert entry["status"]["status_str"] == "success"
        names |= {image["filename"] for image in entry["outputs"]["6"]["images"]}
    assert len(names) == len(jobs)


def test_a_pool_of_half_a_gpu_starts_from_zero_and_shares_a_job_with_a_cpu_pool(cluster: RayCluster):
    pools = [
        {"name": "gpu", "num_gpus": 0.5, "accepts": MODEL_NODES, "min_replicas": 0, "idle_s": 2},
        {"name": "cpu", "runtime": False},
    ]
    config = cluster.config("gpu.yaml", pools=pools, database_url=f"sqlite:///{cluster.root}/state/fresh.sqlite")
    cluster.deploy(config)
    wait_for(lambda: actors(cluster, "SERVE_REPLICA::serve-app#cpu"), "the new application")
    cluster.wait_until_deployed()
    wait_for(lambda: not actors(cluster, "SERVE_REPLICA::serve-app#gpu"), "the idle replica to go")

    job_id = cluster.submit(txt2img(3, prefix="shared"))

    [replica] = wait_for(lambda: actors(cluster, "SERVE_REPLICA::serve-app#gpu"), "a replica for the job")
    assert replica["required_resources"]["GPU"] == 0.5
    assert cluster.finished(job_id)["status"]["status_str"] == "success"
