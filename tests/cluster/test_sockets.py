"""A client's socket on a real cluster with two ingress replicas, both of which are killed while its job runs."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.cluster.server import PATIENCE_S, TITLES, Server, txt2img, wait_for

CONFIG = {
    "applications": [
        {
            "name": "serve-app",
            "route_prefix": "/",
            "import_path": "serve_app.deployments.build:build",
            "args": {
                "ingress": {"min_replicas": 2, "max_replicas": 2},
                "pools": [{"name": "gpu", "num_cpus": 1, "threads": 1}],
            },
        }
    ]
}


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "local.yaml").write_text(yaml.safe_dump(CONFIG))
    server = Server(tmp_path)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def pictures(count: int) -> dict[str, Any]:
    """Return a prompt of several pictures that are made one by one, each saved by an output node of its own."""
    prompt: dict[str, Any] = {}
    for i in range(count):
        for node_id, node in txt2img(i, steps=25, side=128).items():
            inputs = {k: [f"{i}.{v[0]}", v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
            prompt[f"{i}.{node_id}"] = {**node, "inputs": inputs}
    return prompt


def ingresses(server: Server) -> list[int]:
    return [process.pid for process in server.processes.found(TITLES["ingress"])]


def test_each_output_is_heard_once_though_every_ingress_replica_is_killed(server: Server):
    wait_for(lambda: len(ingresses(server)) == 2, "two ingress replicas")
    job_id, frames = str(uuid.uuid4()), []
    doomed = ingresses(server)
    body = {"prompt": pictures(4), "client_id": "c", "prompt_id": job_id}
    assert server.http.post("/api/prompt", json=body).status_code == 200
    deadline = time.monotonic() + PATIENCE_S
    end = {"type": "executing", "data": {"node": None, "prompt_id": job_id}}
    while end not in frames and time.monotonic() < deadline:
        try:
            with connect(f"ws://127.0.0.1:{server.port}/ws?clientId=c", open_timeout=5) as socket:
                while end not in frames:
                    frames.append(json.loads(socket.recv(timeout=60)))
                    if doomed and frames[-1]["type"] == "progress":
                        os.kill(doomed.pop(), signal.SIGKILL)
        except (WebSocketException, OSError):
            time.sleep(0.2)
    heard = [frame for frame in frames if frame["data"].get("prompt_id") == job_id]
    executed = [frame["data"]["node"] for frame in heard if frame["type"] == "executed"]
    assert sorted(executed) == [f"{i}.6" for i in range(4)]
    assert doomed == []
    kinds = [frame["type"] for frame in heard]
    assert kinds.count("execution_start") == kinds.count("execution_success") == 1
    assert kinds[-1] == "executing"
    history = server.get(f"/api/history/{job_id}")[job_id]
    assert sorted(history["outputs"]) == sorted(executed)
