"""comfy-sdk, unchanged, through two ingress replicas of a server of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.clients.installed import CLIENTS
from tests.cluster.server import TITLES, Server, configure, txt2img, wait_for

PYTHON = CLIENTS / "comfy-sdk" / "bin" / "python"
SESSION = Path(__file__).parent / "sdk_session.py"
SESSION_S = 240

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="`make clients` was not run")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("sdk")
    arguments = {
        "ingress": {"min_replicas": 2, "max_replicas": 2},
        "pools": [{"name": "gpu", "num_cpus": 1, "threads": 1}],
    }
    configure(root, arguments)
    server = Server(root)
    try:
        server.wait_until_ready()
        wait_for(lambda: len(server.processes.found(TITLES["ingress"])) == 2, "two ingress replicas")
        yield server
    finally:
        server.close()


def given(folder: Path) -> Path:
    """Write what a session needs: a graph that also saves the picture which it uploads, and that picture."""
    graph: dict[str, Any] = txt2img(1, steps=1, prefix="sdk")
    graph["image"] = {"class_type": "LoadImage", "inputs": {"image": ""}}
    graph["saved"] = {"class_type": "SaveImage", "inputs": {"images": ["image", 0], "filename_prefix": "uploaded"}}
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(os.urandom(3))).save(buffer, "PNG")
    path = folder / "given.json"
    path.write_text(json.dumps({"graph": graph, "picture": buffer.getvalue().hex()}))
    return path


def environment(server: Server) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COMFY"))}
    return {**plain, "COMFY_BASE_URL": server.url}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_session_from_upload_to_deletion(server: Server, tmp_path: Path, kind: str) -> None:
    line = [str(PYTHON), str(SESSION), kind, str(given(tmp_path))]
    ran = subprocess.run(line, env=environment(server), capture_output=True, text=True, timeout=SESSION_S)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_streams_end_with_their_jobs_though_an_ingress_replica_is_killed(server: Server, tmp_path: Path) -> None:
    line = [str(PYTHON), str(SESSION), "watch", str(given(tmp_path))]
    watching = subprocess.Popen(
        line, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    first = watching.stdout.readline()
    if first:
        os.kill(server.processes.pid("ingress"), signal.SIGKILL)
    out, err = watching.communicate(timeout=SESSION_S)
    assert watching.returncode == 0, err[-3000:]
    assert (first, json.loads(out)) == ("open\n", ["succeeded"] * 4)
