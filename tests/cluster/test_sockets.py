"""Clients' sockets on a real server: previews, and every ingress replica killed during a job."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import time
import uuid
from typing import Any

from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.cluster.server import PATIENCE_S, TITLES, Server, txt2img


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


def ended(job_id: str) -> dict[str, Any]:
    return {"type": "executing", "data": {"node": None, "prompt_id": job_id}}


def test_a_client_that_asks_for_it_is_shown_what_its_sampler_has_come_to(server: Server):
    with connect(f"ws://127.0.0.1:{server.port}/ws?clientId=looking") as socket:
        socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        # The server's own flags: it has read the client's.
        while heard(socket)["type"] != "feature_flags":
            pass
        job_id = server.submit(
            txt2img(1, steps=25, side=128), client_id="looking", extra_data={"preview_method": "latent2rgb"}
        )
        frames = list(iter(lambda: heard(socket), ended(job_id)))
    shown = [frame for frame in frames if isinstance(frame, bytes)]
    assert shown
    for frame in shown:
        kind, length = struct.unpack(">II", frame[:8])
        about = json.loads(frame[8 : 8 + length])
        assert (kind, about["node_id"], about["prompt_id"], about["image_type"]) == (4, "3", job_id, "image/jpeg")
        with Image.open(io.BytesIO(frame[8 + length :])) as picture:
            picture.load()
            assert picture.format == "JPEG"


def heard(socket: ClientConnection) -> Any:
    frame = socket.recv(timeout=60)
    return frame if isinstance(frame, bytes) else json.loads(frame)


def test_each_output_is_heard_once_though_every_ingress_replica_is_killed(server: Server):
    job_id, frames = str(uuid.uuid4()), []
    doomed = ingresses(server)
    body = {"prompt": pictures(4), "client_id": "c", "prompt_id": job_id}
    assert server.http.post("/api/prompt", json=body).status_code == 200
    deadline = time.monotonic() + PATIENCE_S
    end = ended(job_id)
    while end not in frames and time.monotonic() < deadline:
        try:
            with connect(f"ws://127.0.0.1:{server.port}/ws?clientId=c", open_timeout=5) as socket:
                while end not in frames:
                    if isinstance(frame := heard(socket), bytes):
                        continue
                    frames.append(frame)
                    if doomed and frame["type"] == "progress":
                        os.kill(doomed.pop(), signal.SIGKILL)
        except (WebSocketException, OSError):
            time.sleep(0.2)
    told = [frame for frame in frames if frame["data"].get("prompt_id") == job_id]
    executed = [frame["data"]["node"] for frame in told if frame["type"] == "executed"]
    assert sorted(executed) == [f"{i}.6" for i in range(4)]
    assert doomed == []
    kinds = [frame["type"] for frame in told]
    assert kinds.count("execution_start") == kinds.count("execution_success") == 1
    assert kinds[-1] == "executing"
    history = server.get(f"/api/history/{job_id}")[job_id]
    assert sorted(history["outputs"]) == sorted(executed)
