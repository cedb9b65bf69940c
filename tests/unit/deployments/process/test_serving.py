"""The process that deploys, before it has a Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.deployments import build
from serve_app.deployments.process import serving
from serve_app.deployments.process.torch_environment import ENVIRONMENT
from serve_app.deployments.replica import Replica
from serve_app.errors import UnavailableError


def test_the_serving_process_imports_no_torch():
    code = "import sys, serve_app.deployments.process.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("scheduler", {"ray.serve", "fastapi", "numpy", "PIL", "torch"}),
        ("ingress", {"scipy", "torch", "aiohttp", "botocore", "cryptography"}),
        ("replica", {"sqlalchemy", "torch"}),
        ("process.reaper", {"ray", "pydantic", "sqlalchemy"}),
    ],
)
def test_a_process_imports_nothing_it_does_not_need(module: str, needless: set[str]):
    code = f"import sys, serve_app.deployments.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not needless & set(done.stdout.split())


@pytest.mark.parametrize(("held", "told"), [((), True), (("checkpoints/a.safetensors",), False)])
def test_a_server_that_can_draw_nothing_says_where_to_put_a_model(monkeypatch, tmp_path, capsys, held, told):
    for name in held:
        (tmp_path / name).parent.mkdir()
        Path(tmp_path, name).touch()
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(serving, "ray", SimpleNamespace(init=lambda **_: SimpleNamespace(dashboard_url="")))
    for name, done in {
        "bind": None,
        "_deploy": None,
        "_wait_until_ready": True,
        "_withdraw": None,
    }.items():
        monkeypatch.setattr(serving, name, lambda *_, done=done: done)
    monkeypatch.setattr(serving, "_stop_on_signals", lambda _: None)
    settings = AppConfig(models_dir=tmp_path)
    assert serving.serve_on_cluster(settings, "127.0.0.1", 8188, stop) == 0
    said = capsys.readouterr().out
    assert "server:    http://127.0.0.1:8188" in said
    assert (f"put a checkpoint into {tmp_path}/checkpoints" in said) is told


def test_a_gpu_that_is_asked_for_and_absent_ends_the_start_with_what_to_say_instead(monkeypatch, capsys):
    monkeypatch.setattr(serving, "lean_ray", SimpleNamespace(init=lambda *_, **__: SimpleNamespace(dashboard_url="")))
    monkeypatch.setattr(serving, "gpus", lambda: 0.0)
    served = []
    monkeypatch.setattr(serving, "_serve", lambda *given: served.append(given) or True)
    stop = threading.Event()
    for num_gpus in ("auto", 0, 0.5):
        settings = AppConfig(pools=(PoolConfig(name="gpu", num_gpus=num_gpus),))
        found = serving.serve_on_own_ray(settings, "127.0.0.1", 8188, None, stop, dashboard=False)
        assert found is (num_gpus != 0.5)
    assert len(served) == 2
    assert "pool gpu asks for num_gpus: 0.5, and this machine has 0; `num_gpus: auto`" in capsys.readouterr().err


def test_replicas_start_with_the_environment_for_cublas_and_torchs_allocator(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    pool = build.pool_deployment(PoolConfig(name="gpu", num_gpus=1), 10.0)
    told = pool.ray_actor_options["runtime_env"]["env_vars"]
    assert told == ENVIRONMENT
    # What strict jobs and row buckets promise rests on the first, and rows that change all the time on the second.
    assert (told["CUBLAS_WORKSPACE_CONFIG"], told["PYTORCH_ALLOC_CONF"]) == (":4096:8", "expandable_segments:True")


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_pool_that_does_not_say_is_deployed_with_the_gpu_that_the_cluster_has(monkeypatch, found):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": found} if found else {})
    deployed, pool_of = [], build.pool_deployment
    monkeypatch.setattr(build, "pool_deployment", lambda *given: deployed.append(pool_of(*given)) or deployed[-1])
    build.bind(AppConfig(pools=(PoolConfig(name="gpu"), PoolConfig(name="cpu", runtime=False))))
    assert [pool.ray_actor_options["num_gpus"] for pool in deployed] == [found, 0]


def test_serves_health_check_of_a_replica_fails_with_its_engine():
    def ended():
        raise UnavailableError("the engine has ended")

    replica: Any = SimpleNamespace(_life=Future(), _runner=SimpleNamespace(check_health=ended))
    with pytest.raises(UnavailableError, match="the engine has ended"):
        Replica.check_health(replica)
