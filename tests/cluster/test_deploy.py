"""The application on a Ray cluster that was there before it and goes on after it, as under KubeRay."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.cluster.ray_cluster import RayCluster, started
from tests.cluster.server import Server, txt2img, wait_for

MODEL_NODES = ["CheckpointLoaderSimple", "CLIP*", "KSampler*", "VAE*"]


class Clients(threading.Thread):
    """Asks for the queue again and again. failures: what no client should see, all but 200 and a polite 503."""

    def __init__(self, cluster: RayCluster) -> None:
        super().__init__(daemon=True)
        self._url, self._over = cluster.url, threading.Event()
        self.answered, self.failures = 0, list[str]()

    def __enter__(self) -> Clients:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as http:
            while not self._over.wait(0.05):
                try:
                    answer = http.get("/queue")
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                    continue
                polite = answer.status_code == 503 and "Retry-After" in answer.headers
                if answer.status_code == 200 or polite:
                    self.answered += 1
                else:
                    self.failures.append(f"{answer.status_code} {answer.text}")


@pytest.fixture(scope="module", params=["haproxy", pytest.param("proxy", marks=pytest.mark.long)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with started(tmp_path_factory.mktemp("cluster"), haproxy=request.param == "haproxy") as cluster:
        yield cluster


def test_up_uses_the_cluster_of_ray_address_and_withdraws_from_it(cluster: RayCluster):
    config = cluster.root / "up.yaml"
    config.write_text(yaml.safe_dump(cluster.config()))
    environment = {"RAY_ADDRESS": cluster.address, **cluster.credentials}
    server = Server(cluster.root, cluster.port, environment, ["--config", str(config)])
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


def test_an_upgrade_under_load_ends_every_job_once_and_fails_no_request(cluster: RayCluster):
    jobs = [cluster.submit(txt2img(seed, steps=60, prefix="upgraded")) for seed in range(12)]
    wait_for(lambda: cluster.get("/queue")["running"], "a job that runs")
    before = {p.pid for kind in ("SchedulerActor", "ServeReplica") for p in cluster.processes.found(f"ray::{kind}")}
    with Clients(cluster) as clients:
        cluster.deploy(cluster.config("local.yaml", max_queue=30))
        wait_for(lambda: before.isdisjoint(p.pid for p in cluster.processes.found("ray::S")), "other processes")
        cluster.wait_until_deployed()
        wait_for(lambda: not any(cluster.get("/queue").values()), "the end of every job", 400)
    entries = [cluster.finished(job_id) for job_id in jobs]

    assert {entry["status"]["status_str"] for entry in entries} == {"success"}
    names = [image["filename"] for entry in entries for image in entry["outputs"]["6"]["images"]]
    assert len(set(names)) == len(names) == len(jobs)
    saved = {path.name for path in (cluster.root / "output").glob("upgraded_*.png")}
    assert saved == set(names), "an image was saved twice"
    assert clients.answered > 20
    assert clients.failures == []


# Pools with parts of a card are in test_stages, those that start from zero in test_pack_routes and test_comfyui.
@pytest.mark.long
def test_a_pool_of_half_a_gpu_starts_from_zero_and_shares_a_job_with_a_cpu_pool(cluster: RayCluster):
    pools = [
        {"name": "gpu", "num_gpus": 0.5, "accepts": MODEL_NODES, "min_replicas": 0, "idle_s": 2},
        {"name": "cpu", "runtime": False},
    ]
    fresh = f"sqlite:///{cluster.root}/state/fresh.sqlite"
    config = cluster.config("gpu.yaml", pools=pools, database_url=fresh, logs="json")
    cluster.deploy(config)
    wait_for(lambda: cluster.actors("SERVE_REPLICA::serve-app#cpu"), "the new application")
    cluster.wait_until_deployed()
    wait_for(lambda: not cluster.actors("SERVE_REPLICA::serve-app#gpu"), "the idle replica to go")

    job_id = cluster.submit(txt2img(3, prefix="shared"))

    [replica] = wait_for(lambda: cluster.actors("SERVE_REPLICA::serve-app#gpu"), "a replica for the job")
    assert replica["required_resources"]["GPU"] == 0.5
    assert cluster.finished(job_id)["status"]["status_str"] == "success"
    said = {line["message"] for line in cluster.logged()}
    assert "pool=gpu device=cpu visible_gpus=0 memory_fraction=0.5" in said
