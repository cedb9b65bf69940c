"""Clients from PyPI, and the flow that ComfyUI's own websocket examples show, with the libraries they use."""

from __future__ import annotations

import io
import json
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from tests.clients.installed import CLIENTS, needs_clients
from tests.cluster.server import CHECKPOINT, PATIENCE_S, Server, txt2img


def is_picture(data: bytes) -> bool:
    return Image.open(io.BytesIO(data)).size == (64, 64)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_flow_of_the_websocket_examples(server: Server, prefix: str):
    websocket = pytest.importorskip("websocket", reason="the websocket-client package is not installed")
    client_id, job_id = str(uuid.uuid4()), str(uuid.uuid4())
    socket = websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId={client_id}", timeout=60)

    def ask(path: str, body: Any = None) -> bytes:
        # urllib sends a body as a form, whatever it holds.
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(server.url + prefix + path, data=data)) as answer:
            return bytes(answer.read())

    prompt = txt2img(1 if prefix else 2, prefix="websocket")
    assert (
        json.loads(ask("/prompt", {"prompt": prompt, "client_id": client_id, "prompt_id": job_id}))["prompt_id"]
        == job_id
    )
    ran = []
    while True:
        frame = socket.recv()
        if not isinstance(frame, str) or (message := json.loads(frame))["type"] != "executing":
            continue
        assert message["data"]["prompt_id"] == job_id
        if message["data"]["node"] is None:
            break
        ran.append(message["data"]["node"])
    socket.close()
    assert {"3", "5", "6"} <= set(ran)
    [image] = json.loads(ask(f"/history/{job_id}"))[job_id]["outputs"]["6"]["images"]
    assert is_picture(ask(f"/view?{urlencode(image)}"))


def test_comfy_api_simplified(server: Server):
    simplified = pytest.importorskip("comfy_api_simplified", reason="comfy-api-simplified is not installed")
    prompt = txt2img(3, prefix="simplified")
    for node_id, node in prompt.items():
        node["_meta"] = {"title": f"Node {node_id}"}
    workflow = simplified.ComfyWorkflowWrapper(prompt)
    workflow.set_node_param("Node 3", "seed", 4)
    pictures = simplified.ComfyApiWrapper(server.url).queue_and_wait_images(workflow, "Node 6")
    [data] = pictures.values()
    assert is_picture(data)
    assert json.loads(Image.open(io.BytesIO(data)).info["prompt"])["3"]["inputs"]["seed"] == 4


def ran(line: Sequence[str | Path], folder: Path, prompt: Any = None) -> str:
    """Return what a program writes that is given a prompt and works in a folder. Fails where it fails."""
    done = subprocess.run(
        [str(word) for word in line],
        input=None if prompt is None else json.dumps(prompt),
        env={**os.environ, "HOME": str(folder), "DO_NOT_TRACK": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def workflow(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(prompt: dict[str, Any]) -> Path:
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(prompt))
        return path

    return write


@needs_clients
def test_comfy_cli_runs_a_workflow(server: Server, tmp_path: Path, workflow: Callable[[dict[str, Any]], Path]):
    file = workflow(txt2img(7, prefix="comfy-cli"))
    place = ["--host", "127.0.0.1", "--port", str(server.port), "--timeout", "120"]
    ran([CLIENTS / "bin" / "comfy", "--skip-prompt", "run", "--workflow", file, "--wait", *place], tmp_path)
    assert [path for path in (server.root / "output").iterdir() if path.name.startswith("comfy-cli_")]


@needs_clients
def test_comfyui_cli_runs_a_workflow_and_lists(
    server: Server, tmp_path: Path, workflow: Callable[[dict[str, Any]], Path]
):
    cli: list[str | Path] = [
        CLIENTS / "bin" / "comfyui-cli",
        "--host",
        "127.0.0.1",
        "--port",
        str(server.port),
        "--json",
    ]
    file = workflow(txt2img(8, prefix="comfyui-cli"))
    ran([*cli, "workflow", "run", file, "--save-to", tmp_path / "saved"], tmp_path)
    [picture] = (tmp_path / "saved").iterdir()
    assert is_picture(picture.read_bytes())
    assert CHECKPOINT in ran([*cli, "models", "list", "checkpoints"], tmp_path)
    assert "KSampler" in ran([*cli, "nodes", "info", "KSampler"], tmp_path)


@needs_clients
def test_comfy_toolkit_follows_a_job_to_its_files(server: Server, tmp_path: Path):
    line: list[str | Path] = [CLIENTS / "bin" / "python", Path(__file__).with_name("toolkit.py"), f"{server.url}/api"]
    told = json.loads(ran(line, tmp_path, txt2img(9, steps=3, prefix="toolkit")))
    assert told["steps"][-1] == [3, 3]
    [name] = told["files"]
    assert is_picture((server.root / "output" / name).read_bytes())


@needs_clients
def test_comfy_script_draws_a_picture(server: Server, tmp_path: Path):
    line: list[str | Path] = [CLIENTS / "bin" / "python", Path(__file__).with_name("script.py"), server.url, CHECKPOINT]
    assert ran(line, tmp_path).splitlines()[-1] == "(64, 64)"
