"""Notices that a machine is about to go: by Ray, for real, and as clouds give them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from ray._private.state import state

from serve_app.config.preemption import PreemptionConfig
from serve_app.deployments import preemption

DRAINED = """
import asyncio, pathlib, subprocess, sys
import ray
from ray.cluster_utils import Cluster
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.config.preemption import PreemptionConfig
from serve_app.deployments.preemption import look, notice
from serve_app.deployments.ranks import Rank, Ranks
from serve_app.models.ranks.meeting import Address

node = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"first": 1}, **node})
second = cluster.add_node(num_cpus=1, resources={"second": 1}, **node)
ray.init(cluster.address, log_to_driver=False)

@ray.remote(resources={"first": 1})
class Replica:
    def look(self):
        return look(ray.get_runtime_context().get_node_id(), PreemptionConfig())

    async def wait(self):
        return await notice(ray.get_runtime_context().get_node_id(), PreemptionConfig())

    async def wait_for_ranks(self, ranks):
        return await Ranks(ranks, Address.on("127.0.0.1")).notice(PreemptionConfig())

replica, context = Replica.remote(), ray.get_runtime_context()
pool = PoolConfig(name="gpu", devices_per_replica=2, spans_hosts=True)
rank = ray.remote(Rank).options(resources={"second": 1}).remote(AppConfig(), pool, "replica", 1)

def drain(node_id):
    command = [str(pathlib.Path(sys.executable).with_name("ray")), "drain-node", "--address", context.gcs_address]
    command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", "100"], check=True, stdout=subprocess.DEVNULL)

waiting = replica.wait_for_ranks.remote([rank])
drain(second.node_id)
print(*ray.get(waiting), sep=";", flush=True)
print(ray.get(replica.look.remote()), flush=True)
drain(context.get_node_id())
print(*ray.get(replica.wait.remote()), sep=";", flush=True)
"""


def test_a_replica_sees_that_ray_drains_its_host_or_a_ranks_and_until_when() -> None:
    # Of its own, with a short path for sockets: Ray notes there which cluster others would join.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command, environment = [sys.executable, "-c", DRAINED], {**os.environ, "RAY_TMPDIR": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    of_rank, before, after = done.stdout.splitlines()
    assert before == "None"
    for found in (of_rank, after):
        why, end_s = found.split(";")
        assert why == "Ray drains this host"
        assert 0 < float(end_s) - time.time() <= 100


class Cloud(BaseHTTPRequestHandler):
    text, status = b"FALSE", 200

    def do_GET(self) -> None:
        assert self.headers["Metadata-Flavor"] == "Google"
        self.send_response(Cloud.status)
        self.end_headers()
        self.wfile.write(Cloud.text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(state, "get_draining_nodes", dict)
    with HTTPServer(("127.0.0.1", 0), Cloud) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/preempted"
        server.shutdown()


def test_a_file_or_an_address_gives_notice(address: str, tmp_path: Path) -> None:
    file = PreemptionConfig(notice=str(tmp_path / "notice"), notice_s=30.0)
    assert preemption.look("node", file) is None
    (tmp_path / "notice").touch()
    found = preemption.look("node", file)
    assert found is not None
    assert 25 < found[1] - time.time() <= 30
    asked = PreemptionConfig(notice=address)
    for Cloud.status, Cloud.text, given in ((200, b"FALSE\n", 0), (404, b"no", 0), (200, b"", 0), (200, b"TRUE", 1)):
        assert (preemption.look("node", asked) is not None) == given, Cloud.text
    assert preemption.look("node", PreemptionConfig(notice="http://127.0.0.1:9/")) is None


def test_an_address_that_wants_a_token_is_said_and_no_proxy_answers_for_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    Cloud.status, Cloud.text = 401, b"TRUE"
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        preemption.look("node", PreemptionConfig(notice=address))
