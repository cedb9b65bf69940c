"""`serve-app-ray`, and the systemd unit that starts a worker host by it. tests/cluster/test_rejoin.py runs it."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private import services

from serve_app.deployments.process import ray_start

UNIT = Path(__file__).parents[4] / "systemd" / "serve-app-worker.service"


def test_every_agent_has_a_port_and_one_that_is_given_stays():
    arguments = ray_start.with_ports(["--head", "--metrics-export-port=8080", "--dashboard-agent-grpc-port", "7000"])
    assert arguments[:4] == ["--head", "--metrics-export-port=8080", "--dashboard-agent-grpc-port", "7000"]
    assert arguments[4:] == ["--dashboard-agent-listen-port=52365", "--runtime-env-agent-port=8267"]


@pytest.mark.parametrize("given", [["--dashboard-agent-listen-port=7001"], ["--dashboard-agent-listen-port", "7001"]])
def test_the_dashboard_agents_port_is_found_however_it_is_written(given):
    assert ray_start.listen_port(["--head", *given, "--block"]) == "7001"


def test_the_raylet_takes_the_port_that_ray_start_does_not_pass_on():
    helped = subprocess.run([services.RAYLET_EXECUTABLE, "--help"], capture_output=True, text=True, check=False)
    assert "-dashboard_agent_listen_port (" in helped.stdout
    passed = inspect.getsource(services.start_raylet).replace("-", "_")
    assert all(
        f'"__{name}=' in passed for name in ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    )
    assert '"__dashboard_agent_listen_port=' not in passed, "Ray passes it on by itself: ray_start has no use any more"


def test_systemd_takes_the_unit_and_starts_the_worker_again_for_ever(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("/opt/serve-app/bin/serve-app-ray", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(here)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {"StartLimitIntervalSec=0", "Restart=always", "KillMode=mixed"} <= set(UNIT.read_text().splitlines())


@pytest.mark.parametrize("status", [0, 1])
def test_the_command_ends_with_its_raylet_whatever_its_status(status, capsys):
    ended: list[int] = []
    raylet = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    ray_start.end_with(raylet, lambda: ended.append(status), report_s=0.0)
    assert ended == [status]
    assert f"status {status}" in capsys.readouterr().err
