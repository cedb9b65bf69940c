"""What becomes of the configuration that the installed Ray Serve writes for its HAProxy, taken from Serve itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.deployments.proxy import haproxy
from serve_app.deployments.proxy.haproxy_serve import put_right


@pytest.fixture
def written(tmp_path: Path) -> str:
    """Serve's configuration for one application with one replica, and for none."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host="0.0.0.0", port=8000),
        socket_path=str(tmp_path / "admin.sock"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "server-state"),
    )
    backend = BackendConfig("http-serve-app", "/", servers=[ServerConfig("one", "127.0.0.1", 30000)], app_name="x")
    path = tmp_path / "haproxy.cfg"
    HAProxyApi(config, {backend.name: backend}, str(path))._generate_config_file_internal()
    return path.read_text()


def test_errors_have_the_contracts_form_and_side_doors_are_closed(written: str, tmp_path: Path):
    changed = put_right(written, tmp_path)
    pages = [line.split()[1:] for line in changed.splitlines() if line.split()[:1] == ["errorfile"]]
    assert pages == [[str(status), str(tmp_path / f"{status}.http")] for status in (502, 503, 504)]
    binds = [line.split()[1] for line in changed.splitlines() if line.split()[:1] == ["bind"]]
    assert sorted(binds) == ["*:8000", "127.0.0.1:8404", "127.0.0.1:9101"]
    assert " mode 600 level admin" in changed
    assert "status 404" not in changed
    assert "deny_status 503" in changed


@pytest.mark.skipif(haproxy.find() is None, reason="no HAProxy on this machine")
def test_the_program_becomes_the_haproxy_that_takes_it(written: str, tmp_path: Path):
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m serve_app.deployments.proxy.haproxy_serve "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = tmp_path / "haproxy.cfg"
    done = subprocess.run(
        [program, "-c", "-f", path], env=os.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert path.read_text() == put_right(written, tmp_path)


def test_a_configuration_of_another_release_is_refused(written: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"ray 2\.60"):
        put_right(written.replace("errorfile 503", "errorfile 599"), tmp_path)
