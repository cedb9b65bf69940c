"""configs/cluster.yaml as it is shipped, on a host whose one GPU Ray only believes in, and what is seen of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.deployments.metrics import METRICS
from tests.cluster.ray_cluster import RayCluster, started
from tests.cluster.server import free_port, txt2img, wait_for

SHARES = {"encode": 0.2, "denoise": 0.6, "decode": 0.2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with started(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.deploy(cluster.config("cluster.yaml"))
        cluster.wait_until_deployed()
        yield cluster


@pytest.fixture(scope="module")
def job(cluster: RayCluster) -> str:
    """A job that has made its image through every stage."""
    job_id = cluster.submit(txt2img(1, prefix="staged"))
    entry = cluster.finished(job_id)
    assert entry["status"]["status_str"] == "success", entry
    [image] = entry["outputs"]["6"]["images"]
    assert (cluster.root / "output" / image["filename"]).is_file()
    return job_id


def test_every_stage_has_its_share_of_the_card_and_is_held_to_it(cluster: RayCluster, job: str):
    for pool, share in SHARES.items():
        [replica] = cluster.actors(f"SERVE_REPLICA::serve-app#{pool}#")
        assert replica["required_resources"]["GPU"] == share
    said = {line["message"] for line in cluster.logged()}
    for pool, share in SHARES.items():
        assert f"pool={pool} device=cpu visible_gpus=0 memory_fraction={share:g}" in said
    assert any(line.startswith("pool=cpu ") for line in said)


def test_log_lines_about_a_task_are_json_and_say_which(cluster: RayCluster, job: str):
    lines = [line for line in cluster.logged() if line.get("job") == job]
    assert any(line["message"] == "ended: state=success" for line in lines)
    assert all({"at", "level", "logger", "message"} <= set(line) for line in lines)


def test_probes_of_a_cluster_that_runs_are_answered(cluster: RayCluster, job: str):
    assert cluster.get("/healthz") == {"status": "ok"}
    assert cluster.get("/readyz") == {"status": "ready"}
    load = cluster.get("/status")["load"]
    assert load["ended"] == {"success": 1}
    assert {pool["pool"] for pool in load["pools"]} == {*SHARES, "cpu"}


def test_prometheus_sees_jobs_forwards_weights_stages_and_routes(cluster: RayCluster, job: str, tmp_path: Path):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    port = free_port()
    # From the server's own port, where the metrics of every host come together.
    scrape = {"job_name": "serve-app", "static_configs": [{"targets": [f"127.0.0.1:{cluster.port}"]}]}
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (tmp_path / "log").open("w") as log:
        # It carries the cluster's mark, and so ends with it.
        subprocess.Popen(command, env=cluster.processes.environment, stdout=log, stderr=subprocess.STDOUT)

    def found(query: str) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=10)
        except httpx.TransportError:
            return []
        if answer.status_code == 503:  # it is still starting
            return []
        result: list[dict[str, Any]] = answer.json().get("data", {}).get("result", [])
        return result

    def comes_to(query: str, expected: float) -> None:
        """Wait for a value: counters are read and exported every few seconds, each process for itself."""
        wait_for(lambda: [float(one["value"][1]) for one in found(query)] == [expected], f"{query} to be {expected:g}")

    comes_to('sum(ray_serve_app_jobs_ended_total{state="success"})', 1)
    comes_to('sum(ray_serve_app_evaluations_total{pool="denoise"})', 2)
    comes_to("sum(ray_serve_app_weights_loads_total)", 3)
    comes_to('sum(ray_serve_app_node_seconds_count{class_type="KSampler"})', 1)
    comes_to("sum(ray_serve_app_replicas)", 4)
    comes_to("sum(ray_serve_app_job_run_seconds_count)", 1)
    comes_to('sum(ray_serve_num_http_requests_total{route="/prompt"})', 1)
    # A counter that has never counted is not exported: this server has no tenants, one model, and nothing failed.
    silent = {"forward_failures", "weights_evictions", "weights_releases", "vae_failures", "vae_tiled", "result_hits"}
    silent |= {
        "host_weights_hits",
        "host_weights_misses",
        "streamed_weights_bytes",
        "weights_prefetches",
        "forward_graphs",
    }
    silent |= {"run_states", "run_state_bytes", "resumed_steps", "moved_tasks", "repeated_steps"}
    silent |= {"stored_results", "stored_result_bytes", "last_backup_timestamp_seconds"}
    silent |= {"refusals", "tenant_jobs", "tenant_gpu_seconds", "tenant_lost_replicas"}
    loud = [metric for metric in METRICS if metric.name.removeprefix("serve_app_") not in silent]
    expected = {f"{metric.exported}_count" if metric.kind == "histogram" else metric.exported for metric in loud}

    def exported() -> set[str]:
        return {one["metric"]["__name__"] for one in found('{__name__=~"ray_serve_app_.*"}')}

    wait_for(lambda: expected <= exported(), f"every metric that has counted; {sorted(expected)}")
