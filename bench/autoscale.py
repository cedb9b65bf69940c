"""From no GPU host to three and back under a burst of jobs: `python -m bench.autoscale`.

Ray's own autoscaler, with hosts that are processes on this machine and GPUs that Ray only believes in. What is shown is
that demand becomes hosts and replicas, that no job is lost on the way up or down, and that nothing is left.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.cluster.ray_cluster import RayCluster
from tests.cluster.server import txt2img, wait_for

RESULTS = Path(__file__).parent / "results"
HOSTS = 3
COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
PATIENCE_S = 400.0


class Autoscaled(RayCluster):
    """A head without GPU, and at most HOSTS hosts with one each that come when they are needed."""

    def head(self) -> list[str]:
        """Return what the head has, and where it finds what kinds of host there are."""
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": self.address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        }
        kinds = {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 2, "GPU": 1},
                "node_config": {},
                "labels": {"role": "gpu"},
                "min_workers": 0,
                "max_workers": HOSTS,
            },
        }
        config = {
            "cluster_name": "bench",
            "provider": provider,
            "auth": {"ssh_user": ""},
            "max_workers": HOSTS,
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": 10,
            "available_node_types": kinds,
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            # Nothing is set up on hosts that are processes, but the autoscaler reads these without looking.
            **{key: [] for key in COMMANDS},
            "file_mounts": {},
        }
        path = self.root / "autoscaling.json"
        path.write_text(json.dumps(config))
        self.processes.environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        return [f"--autoscaling-config={path}", "--num-cpus=4", "--num-gpus=0"]

    def seen(self) -> dict[str, int]:
        """Return how many hosts with a GPU live, how many replicas of theirs have joined, and how long the queue is."""
        answer = self.asked("/api/v0/nodes", detail="1")
        hosts = [host for host in answer["data"]["result"]["result"] if host["state"] == "ALIVE"]
        load = self.get("/status")["load"]
        [pool] = [pool for pool in load["pools"] if pool["pool"] == "gpu"]
        return {
            "hosts": sum("GPU" in host["resources_total"] for host in hosts),
            "replicas": pool["replicas"],
            "queued": load["queued"],
            "running": load["running"],
        }


def main() -> int:
    """Run the burst, print the trace, write it down. Returns 1 if a job was lost or a host stayed."""
    parser = argparse.ArgumentParser(prog="python -m bench.autoscale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--no-write", dest="write", action="store_false")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoscale-") as directory:
        cluster = Autoscaled(Path(directory))
        try:
            result = measured(cluster, arguments.jobs)
        finally:
            cluster.close()
    if arguments.write:
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-autoscale.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)
    return 0 if result["succeeded"] == arguments.jobs and result["trace"][-1]["hosts"] == 0 else 1


def measured(cluster: Autoscaled, count: int) -> dict[str, Any]:
    """Return what happened to a burst of so many jobs. Times are seconds since the first was submitted."""
    pools = [
        {"name": "gpu", "num_gpus": 1, "min_replicas": 0, "max_replicas": HOSTS, "tasks_per_replica": 4, "idle_s": 5},
        {"name": "cpu", "runtime": False, "hosts": {"role": "!gpu"}},
    ]
    cluster.deploy(cluster.config("local.yaml", pools=pools, ingress={"hosts": {"role": "!gpu"}}))
    wait_for(cluster.answers, "the first GPU host, which tells what it can run", PATIENCE_S)
    wait_for(lambda: cluster.seen()["hosts"] == 0, "that host to go", PATIENCE_S)
    began_s = time.time()
    jobs = [cluster.submit(txt2img(seed, steps=20, side=128)) for seed in range(count)]
    trace: list[dict[str, float]] = []
    while not trace or trace[-1]["queued"] + trace[-1]["running"] + trace[-1]["hosts"] > 0:
        trace.append({"at_s": round(time.time() - began_s, 1), **cluster.seen()})
        print(trace[-1], flush=True)
        if trace[-1]["at_s"] > PATIENCE_S:
            break
        time.sleep(1)
    entries = [cluster.get(f"/history/{job_id}")[job_id] for job_id in jobs]
    events = [event for job_id in jobs for event in cluster.get(f"/jobs/{job_id}/events", timeout_s=0)["events"]]
    return {
        "jobs": count,
        "succeeded": sum(entry["status"]["completed"] for entry in entries),
        "images": len({image["filename"] for e in entries for image in e["outputs"].get("6", {}).get("images", ())}),
        "first_step_s": round(min(e["at_s"] for e in events if e["kind"] == "progress") - began_s, 1),
        "last_image_s": round(max(e["at_s"] for e in events if e["kind"] == "success") - began_s, 1),
        "most_hosts": max(at["hosts"] for at in trace),
        "all_hosts_s": next((at["at_s"] for at in trace if at["hosts"] == HOSTS), None),
        "no_host_s": trace[-1]["at_s"] if trace[-1]["hosts"] == 0 else None,
        "trace": trace,
    }


if __name__ == "__main__":
    raise SystemExit(main())
