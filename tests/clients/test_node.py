"""Clients from npm, pointed at /api."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.clients.installed import CLIENTS, needs_clients
from tests.clients.test_python import is_picture
from tests.cluster.server import PATIENCE_S, Server, txt2img


@needs_clients
@pytest.mark.parametrize("script", ["saintno", "stable_canvas"])
def test_a_client_runs_a_job_and_finds_its_picture(server: Server, script: str):
    line = ["node", str(Path(__file__).with_name(f"{script}.mjs")), server.url, str(CLIENTS)]
    prompt = json.dumps(txt2img(6, prefix=script))
    done = subprocess.run(line, input=prompt, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    [picture] = json.loads(done.stdout.splitlines()[-1])
    assert is_picture(httpx.get(picture).content), done.stderr
