"""A real server with a pool of ours and one that is the stand-in for ComfyUI, and SIGKILL for each of its parts."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.server import Server, wait_for
from tests.comfyui.pools import STANDIN, graph

JOBS = 30
KINDS = ("replica", "process", "scheduler", "ingress")
PROCESS = f"{sys.executable} main.py"


def ours(colour: int) -> dict[str, Any]:
    """Return a graph that only our pool can run, and that is computed once only."""
    inputs = {"width": 16, "height": 16, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "ours"}},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    comfyui = {"directory": str(STANDIN), "python": sys.executable}
    pools = [
        {"name": "ours", "runtime": False, "num_cpus": 0},
        {"name": "comfyui", "comfyui": comfyui, "min_replicas": 2, "max_replicas": 2, "num_cpus": 0},
        {"name": "broken", "comfyui": {"directory": str(root)}, "num_cpus": 0},
        {"name": "asleep", "comfyui": comfyui, "min_replicas": 0, "idle_s": 1.0, "num_cpus": 0},
    ]
    settings = {"pools": pools, "silence_s": 20}
    application = {"name": "serve-app", "import_path": "serve_app.deployments.build:build", "args": settings}
    (root / "config.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    began = {"STANDIN_LOG": str(root / "began.log")}
    server = Server(root, environment=began, arguments=["--config", str(root / "config.yaml")])
    try:
        server.wait_until_ready()
        wait_for(lambda: len(members(server)) == 2, "two replicas that are ComfyUI")
        yield server
    finally:
        server.close()


def members(server: Server, pool: str = "comfyui") -> list[Any]:
    return [replica for replica in server.get("/status")["replicas"] if replica["pool"] == pool]


def victim(server: Server, kind: str) -> int:
    """Return a process that a test is to kill."""
    if kind in ("scheduler", "ingress"):
        return server.processes.pid(kind)
    title = PROCESS if kind == "process" else "ray::ServeReplica:serve-app:comfyui"
    return wait_for(lambda: server.processes.found(title), f"a {kind}")[0].pid


def test_the_status_says_what_keeps_a_pool_from_working_and_the_others_go_on(server: Server) -> None:
    [trouble] = wait_for(lambda: server.get("/readyz").get("troubles"), "a pool's trouble")
    assert trouble["pool"] == "broken"
    assert "has no main.py" in trouble["why"]


# Of those that are no different for a ComfyUI, test_kills has the short form.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "process" else pytest.mark.long) for kind in KINDS]
)
def test_every_job_of_either_pool_ends_once_after_a_kill(kind: str, server: Server) -> None:
    seeds = [100 * KINDS.index(kind) + number for number in range(JOBS)]
    jobs = [server.submit(graph(seed, StandInWork={"seconds": 0.2, "steps": 4})) for seed in seeds]
    jobs += [server.submit(ours(seed)) for seed in seeds[:5]]
    wait_for(lambda: server.get("/status")["load"]["ended"].get("success", 0) > 0, "a job that has ended")
    os.kill(victim(server, kind), signal.SIGKILL)

    wait_for(lambda: server.answers(), "a server that answers")
    ended = {job_id: server.finished(job_id) for job_id in jobs}

    assert {entry["status"]["status_str"] for entry in ended.values()} == {"success"}
    saved = Counter(entry["outputs"]["save"]["images"][0]["filename"] for entry in ended.values())
    assert set(saved.values()) == {1}
    assert set(saved) <= server.saved()
    wait_for(lambda: len(members(server)) == 2, "both replicas again")


def test_every_saved_file_is_an_output_of_a_job(server: Server) -> None:
    history = server.http.get("/api/history").json()
    told = {
        image["filename"]
        for entry in history.values()
        for shown in entry["outputs"].values()
        for image in shown.get("images", ())
    }
    # What an attempt left behind whose replica was killed is swept in a while.
    wait_for(lambda: server.saved() == told, f"only {told}")


def test_pages_and_routes_of_its_packs_are_passed_on(server: Server) -> None:
    assert server.get("/standin/route")["pid"]
    page = server.http.get("/extensions/standin/page.js")
    assert page.text == "// a page of the stand-in"
    assert server.http.get("/api/no/such/route").status_code == 404


def test_a_pool_sleeps_and_wakes_for_a_job(server: Server) -> None:
    def processes() -> int:
        return len(server.processes.found(PROCESS))

    wait_for(lambda: not members(server, "asleep"), "the pool at zero")
    wait_for(lambda: processes() == len(members(server)) == 2, "the end of its process, and one of each other replica")
    job_id = server.submit(graph(seed=9000), extra_data={"pool": "asleep"})
    assert server.finished(job_id)["status"]["status_str"] == "success"
    assert server.get(f"/history/{job_id}")[job_id]["outputs"]["save"]["images"]
    wait_for(lambda: processes() == 2, "the end of the process that ran it")


def test_no_process_is_left_when_the_server_has_ended(server: Server) -> None:
    assert server.processes.found(PROCESS)
    server.up.terminate()
    wait_for(lambda: not server.processes.found(PROCESS), "the end of every ComfyUI")
