"""A server with pools that are a real ComfyUI, and with some that cannot be: as `test_real.py`, over a real Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.replica.comfyui_assemble import memory_share
from serve_app.scheduler.protocol.cluster_view import Gpu, HostStats
from tests.cluster.server import Server, wait_for
from tests.comfyui.pools import ARGUMENTS, HOME, PYTHON
from tests.comfyui.test_real import txt2img
from tests.parity.checkpoints import models_dir

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(HOME is None, reason="COMFYUI_HOME names no ComfyUI")]

START_S = 600.0
"""Eight processes of it start at a time, on whatever machine this is."""
DATA = (".git", "models", "input", "output", "temp", "user")
"""What of an installation is not its code."""
PROCESS = f"{PYTHON} main.py"
TAKER = """
import socket
from comfy.cli_args import args
held = socket.socket()
held.bind(("127.0.0.1", args.port))
held.listen()
NODE_CLASS_MAPPINGS = {}
"""
"""A pack that takes the port before the server does."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert HOME is not None
    root = tmp_path_factory.mktemp("server")
    (root / "models" / "checkpoints").mkdir(parents=True)
    checkpoint = models_dir("mini15") / "checkpoints" / "mini15.safetensors"
    (root / "models" / "checkpoints" / "mini15.safetensors").symlink_to(checkpoint)
    old = root / "old"
    shutil.copytree(HOME, old, symlinks=True, ignore=lambda where, _: DATA if where == HOME else ())
    (old / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    venv.create(root / "bare")
    real = {"directory": HOME, "python": PYTHON, "arguments": ARGUMENTS}
    broken = pack(root, "broken", "import a_module_that_nobody_has")
    pools: list[dict[str, Any]] = [
        {"name": "ours"},
        {"name": "comfyui", "comfyui": {**real, "arguments": [*ARGUMENTS, *broken]}, "min_replicas": 2},
        {"name": "zero", "comfyui": real, "min_replicas": 0, "idle_s": 1.0},
        {"name": "nothing", "comfyui": {"directory": str(root)}},
        {"name": "torchless", "comfyui": {**real, "python": str(root / "bare" / "bin" / "python")}},
        {"name": "refused", "comfyui": {**real, "arguments": ["--no-such-argument"]}},
        {"name": "taken", "comfyui": {**real, "arguments": [*ARGUMENTS, *pack(root, "taker", TAKER)]}},
        {"name": "old", "comfyui": {**real, "directory": str(old)}},
    ]
    settings = {"pools": [{"num_cpus": 0, "max_replicas": 2, **pool} for pool in pools]}
    application = {"name": "serve-app", "import_path": "serve_app.deployments.build:build", "args": settings}
    (root / "config.json").write_text(json.dumps({"applications": [application]}))
    server = Server(root, arguments=["--config", str(root / "config.json")])
    try:
        server.wait_until_ready()
        wait_for(lambda: len(members(server, "comfyui")) == 2, "two replicas that are ComfyUI", START_S)
        yield server
    finally:
        server.close()


def pack(root: Path, name: str, code: str) -> list[str]:
    """Write a pack beside an installation, and return the arguments by which that has it."""
    folder = root / f"packs_{name}"
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / "paths.yaml").write_text(yaml.safe_dump({"test": {"custom_nodes": str(folder)}}))
    return ["--extra-model-paths-config", str(folder / "paths.yaml")]


def members(server: Server, pool: str) -> list[Any]:
    return [replica for replica in server.get("/status")["replicas"] if replica["pool"] == pool]


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `serve-app` command that asks the server."""
    asking = [sys.executable, "-m", "serve_app.cli", *arguments, "--server", server.url]
    return subprocess.run(asking, capture_output=True, text=True, cwd=server.root)


def succeeded(server: Server, job_id: str) -> bool:
    """Wait until a job has ended; whether by success."""

    def status() -> str:
        found: str = server.get(f"/history/{job_id}")[job_id]["status"]["status_str"]
        return found if found in ("success", "error", "cancelled") else ""

    return wait_for(status, f"the end of job {job_id}", START_S) == "success"


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        ("nothing", "has no main.py"),
        ("torchless", "has no module"),
        ("refused", "unrecognized arguments: --no-such-argument"),
        ("taken", "is taken; its log ends:"),
        ("old", "is 0.3.40; 0.3.64 or newer is needed"),
    ],
)
def test_the_status_says_what_keeps_a_pool_from_working(pool: str, why: str, server: Server) -> None:
    def told() -> str:
        return "\n".join(t["why"] for t in server.get("/readyz").get("troubles", ()) if t["pool"] == pool)

    assert why in wait_for(told, f"what is wrong with {pool}", START_S)
    shown = command(server, "status").stdout
    assert f"({pool}) cannot work: " in shown
    assert why in shown


def test_a_pack_that_cannot_be_imported_is_reported_and_its_replica_works(server: Server) -> None:
    assert {note for replica in members(server, "comfyui") for note in replica["notes"]} == {
        "node pack broken could not be imported"
    }


def test_our_pixels_are_its_own_within_the_tolerance(server: Server) -> None:
    (server.root / "workflow.json").write_text(json.dumps(txt2img(7)))
    found = command(server, "compare", "workflow.json", "--tolerance", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("64×64: largest difference ") == 2
    assert (server.root / "compare_7_0.png").is_file()
    beyond = command(server, "compare", "workflow.json", "--tolerance=-1")
    assert beyond.returncode == 1
    assert beyond.stdout.count(", above -1") == 2


def test_two_replicas_of_one_machine_run_jobs_at_the_same_time(server: Server) -> None:
    jobs = [server.submit(txt2img(seed, steps=50), extra_data={"pool": "comfyui"}) for seed in (1, 2)]
    wait_for(lambda: [r["running"] for r in members(server, "comfyui")] == [1, 1], "a job in each replica", START_S)
    assert all(succeeded(server, job) for job in jobs)


def test_a_pool_at_zero_comes_back_for_a_job(server: Server) -> None:
    for seed in (3, 4):
        wait_for(lambda: not members(server, "zero"), "the pool at zero", START_S)
        job = server.submit(txt2img(seed), extra_data={"pool": "zero"})
        wait_for(lambda: members(server, "zero"), "a replica of the pool", START_S)
        assert succeeded(server, job)


def test_no_process_is_left_when_the_server_has_ended(server: Server) -> None:
    assert server.processes.found(PROCESS)
    server.up.terminate()
    wait_for(lambda: not server.processes.found(PROCESS), "the end of every ComfyUI")


def test_the_share_of_a_card_is_an_argument_that_it_knows() -> None:
    assert HOME is not None
    card = HostStats("host", 1, 0, 1, (Gpu("uuid", "card", 24 * 1024, 24 * 1024, 0),))
    code = "import comfy.options; comfy.options.enable_args_parsing(); from comfy.cli_args import args"
    share = memory_share((), 0.25, card)
    asked = [PYTHON, "-c", f"{code}; print(args.reserve_vram)", *share]
    assert subprocess.run(asked, cwd=HOME, capture_output=True, text=True).stdout == "18.0\n"
