"""`serve-app up` from its first moment to its last: what clients see meanwhile, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.server import PATIENCE_S, Server, running, txt2img, wait_for

READY_S = 40.0
"""Twice what a quiet machine with two cores is promised."""
STOP_S = 10.0
NOBODY = "00000000-0000-0000-0000-000000000000"
ROUTES = (
    ("GET", "/queue"),
    ("GET", f"/history/{NOBODY}"),
    ("GET", "/view?filename=none.png"),
    ("GET", "/system_stats"),
    ("POST", "/prompt"),
)


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Server]:
    """A server at the first moment of its start."""
    server = Server(tmp_path)
    yield server
    server.close()


def test_until_a_job_can_run_the_server_refuses_or_answers_503(starting: Server):
    begun = time.monotonic()
    seen: dict[str, list[int]] = {path: [] for _, path in ROUTES}
    with httpx.Client(base_url=starting.url, timeout=5.0) as client:
        while seen["/queue"][-1:] != [200]:
            for method, path in ROUTES:
                body = {"prompt": txt2img(1)} if method == "POST" else None
                try:
                    response = client.request(method, path, json=body)
                except httpx.ConnectError:
                    continue
                seen[path].append(response.status_code)
                if response.status_code == 503:
                    assert response.json().keys() == {"error", "detail", "status_code"}
                    assert int(response.headers["retry-after"]) >= 1
            assert time.monotonic() - begun < READY_S
            time.sleep(0.02)
    for path, statuses in seen.items():
        answer = 404 if path.startswith("/view") else 200
        before = statuses[: statuses.index(answer)] if answer in statuses else statuses
        assert set(before) <= {503}, f"{path}: {statuses}"
        assert set(statuses[len(before) :]) <= {answer}, f"{path}: {statuses}"
    job_id = starting.submit(txt2img(2))
    assert starting.finished(job_id)["status"]["completed"]

    starting.up.send_signal(signal.SIGTERM)

    assert starting.up.wait(STOP_S) == 0
    assert starting.processes.found() == []
    assert "Traceback" not in starting.log.read_text()


def test_a_stop_while_starting_is_obeyed_too(starting: Server):
    wait_for(lambda: starting.processes.found("ray::ServeController"), "Serve's controller")
    starting.up.send_signal(signal.SIGTERM)
    assert starting.up.wait(STOP_S) == 0
    assert starting.processes.found() == []


def test_jobs_that_sigkill_interrupts_finish_after_the_next_start(tmp_path: Path):
    with running(tmp_path) as server:
        jobs = [server.submit(txt2img(seed, steps=30, side=128)) for seed in range(6)]
        wait_for(lambda: server.get("/queue")["running"], "a job that runs")

        os.kill(server.up.pid, signal.SIGKILL)

        assert server.up.wait(STOP_S) == -signal.SIGKILL
        wait_for(lambda: not server.processes.found(), "the end of every process", STOP_S)
        with pytest.raises(httpx.ConnectError):
            server.http.get("/queue")

    with running(tmp_path) as server:
        names = set()
        for job_id in jobs:
            entry = server.finished(job_id)
            assert entry["status"]["status_str"] == "success"
            names |= {image["filename"] for image in entry["outputs"]["6"]["images"]}
        assert names == {path.name for path in (tmp_path / "output").glob("*.png")}
        assert len(names) == len(jobs)


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "serve_app.cli", "up", "--port", port]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert list(tmp_path.glob("output/*")) == []
