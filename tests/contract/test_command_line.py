"""The command line as a user runs it, as a process of its own against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cluster.server import CHECKPOINT, PATIENCE_S, Server, txt2img, wait_for


def run(server: Server, *arguments: object) -> subprocess.CompletedProcess[str]:
    command, *rest = map(str, arguments)
    line = [sys.executable, "-m", "serve_app.cli", command, "--server", server.url, *rest]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(txt2img(100, steps=3, prefix="cli")))
    return path


def test_submit_shows_progress_and_saves_the_image(server: Server, workflow: Path, tmp_path: Path):
    done = run(server, "submit", workflow, "--set", "3.seed=7", "--set", "3.steps=4", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [saved] = done.stdout.splitlines()
    image = Image.open(saved)
    assert image.size == (64, 64)
    ran = json.loads(image.info["prompt"])["3"]["inputs"]
    assert (ran["seed"], ran["steps"]) == (7, 4)
    assert Path(saved).read_bytes() == (server.root / "output" / Path(saved).name).read_bytes()
    told = done.stderr.splitlines()
    assert "KSampler 3" in told
    assert told[-1] == "success"


def test_submit_fails_with_the_servers_reason(server: Server, workflow: Path):
    done = run(server, "submit", workflow, "--set", "3.sampler_name=eular")
    assert done.returncode == 1
    assert "'eular'" in done.stderr
    assert "did you mean 'euler'?" in done.stderr


def test_ctrl_c_cancels_the_job(server: Server, workflow: Path):
    line = [sys.executable, "-m", "serve_app.cli", "submit", "--server", server.url, str(workflow)]
    with subprocess.Popen([*line, "--set", "3.steps=9999"], stderr=subprocess.PIPE, text=True) as submitting:
        assert submitting.stderr is not None
        # By then it knows which job it is to cancel.
        assert "KSampler 3\n" in iter(submitting.stderr.readline, "")
        [job_id] = server.get("/queue")["running"]
        submitting.send_signal(signal.SIGINT)
        try:
            assert submitting.wait(PATIENCE_S) == 130
        finally:
            submitting.kill()
    assert server.finished(job_id)["status"]["status_str"] == "cancelled"


def test_models_nodes_and_status_are_listed(server: Server):
    assert f"checkpoints/{CHECKPOINT}" in run(server, "models").stdout.splitlines()
    nodes = [line.split()[0] for line in run(server, "nodes").stdout.splitlines()]
    assert {"CheckpointLoaderSimple", "KSampler", "KSamplerAdvanced", "SaveImage", "LoadLatent"} <= set(nodes)
    wait_for(
        lambda: [one["running"] for one in server.get("/status")["replicas"]] == [0], "the end of what earlier jobs ran"
    )
    status = run(server, "status").stdout
    assert "0 jobs running, 0 waiting" in status
    assert "(gpu): 0 of 16 tasks" in status


def test_one_request_id_is_in_the_answer_the_job_and_the_logs_of_ingress_scheduler_and_replica(server: Server):
    body, own = {"prompt": txt2img(321, steps=2, prefix="request")}, {"X-Request-ID": "one-id-for-all"}
    answer = server.http.post("/prompt", json=body, headers=own)
    assert answer.headers["X-Request-ID"] == "one-id-for-all"
    job_id = answer.json()["prompt_id"]
    server.finished(job_id)
    known = {"serve_app.service", "serve_app.scheduler", "serve_app.replica"}

    def logged() -> list[dict[str, str]] | None:
        found = run(server, "logs", "--request", "one-id-for-all", "--json")
        lines = [json.loads(line) for line in found.stdout.splitlines()]
        return lines if {line["logger"] for line in lines} >= known else None

    assert {line["job"] for line in wait_for(logged, "lines of ingress, scheduler and replica")} == {job_id}
