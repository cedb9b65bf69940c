"""Clients from npm, pointed at /api. They are installed where SERVE_APP_NODE_MODULES says; else they are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.clients.test_python import is_picture
from tests.cluster.server import PATIENCE_S, Server, txt2img

MODULES = os.environ.get("SERVE_APP_NODE_MODULES", "")
"""A directory with node_modules: npm install @saintno/comfyui-sdk @stable-canvas/comfyui-client ws."""


@pytest.mark.parametrize(
    ("script", "package"), [("saintno", "@saintno/comfyui-sdk"), ("stable_canvas", "@stable-canvas/comfyui-client")]
)
def test_a_client_runs_a_job_and_finds_its_picture(server: Server, script: str, package: str):
    if shutil.which("node") is None or not (Path(MODULES) / "node_modules" / package).is_dir():
        pytest.skip(f"no node, or no {package} in SERVE_APP_NODE_MODULES")
    line = ["node", str(Path(__file__).with_name(f"{script}.mjs")), server.url, MODULES]
    prompt = json.dumps(txt2img(6, prefix=script))
    done = subprocess.run(line, input=prompt, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    [picture] = json.loads(done.stdout.splitlines()[-1])
    assert is_picture(httpx.get(picture).content), done.stderr
