"""The process that deploys, before it has a Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.config import AppConfig
from serve_app.deployments import serving


def test_it_imports_no_torch():
    code = "import sys, serve_app.deployments.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("scheduler", {"ray.serve", "fastapi", "numpy", "PIL", "torch"}),
        ("ingress", {"scipy", "torch", "aiohttp", "botocore", "cryptography"}),
        ("replica", {"sqlalchemy", "torch"}),
        ("reaper", {"ray", "pydantic", "sqlalchemy"}),
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
    assert ("put a checkpoint into models/checkpoints" in said) is told
