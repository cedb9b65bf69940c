"""A worker host that Ray declared dead joins again by itself, as the systemd unit has it, however busy the host is."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.ray_cluster import RayCluster
from tests.cluster.server import free_ports, wait_for

UNIT = Path(__file__).parents[2] / "systemd" / "serve-app-worker.service"
SLOW = """
import pathlib, time
command = pathlib.Path("/proc/self/cmdline").read_text()
if "dashboard/agent.py" in command or "runtime_env/agent/main.py" in command:
    time.sleep(17)
"""
"""What a host does whose agents take longer than the 15 s that a raylet waits for them."""


class Host(RayCluster):
    """A head that declares hosts dead within seconds, and a worker started as systemd starts it, again and again."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        slow = root / "slow"
        slow.mkdir()
        (slow / "sitecustomize.py").write_text(SLOW)
        options = ("listen", "grpc")
        ports = [f"--dashboard-agent-{option}-port={port}" for option, port in zip(options, free_ports(2), strict=True)]
        others = [
            f"--{name}-port={port}"
            for name, port in zip(("runtime-env-agent", "metrics-export"), free_ports(2), strict=True)
        ]
        [command] = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
        started = command.replace(
            "/opt/serve-app/bin/serve-app-ray", f"{sys.executable} -m serve_app.deployments.process.ray_start"
        )
        host = ["--node-ip-address=127.0.0.1", "--num-cpus=1"]
        path = f"{slow}:{self.processes.environment.get('PYTHONPATH', '')}"
        self._manager = subprocess.Popen(
            ["sh", "-c", f"while true; do {' '.join([started, *ports, *others, *host])}; sleep 1; done"],
            env={**self.processes.environment, "HEAD": self.address, "PYTHONPATH": path},
            stdout=(root / "worker.log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def head(self) -> list[str]:
        fast = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "4", "initial_delay_ms": "0"}
        self.processes.environment |= {f"RAY_health_check_{name}": value for name, value in fast.items()}
        return ["--num-cpus=0"]

    def nodes(self, state: str) -> list[str]:
        """Return the ids of the worker hosts in that state."""
        found = self.asked("/api/v0/nodes", detail="1")["data"]["result"]["result"]
        return [node["node_id"] for node in found if node["state"] == state and not node["is_head_node"]]

    def raylet(self, node: str) -> psutil.Process:
        """Return the raylet of a host."""
        [found] = [p for p in self.processes.found() if p.name() == "raylet" and f"--node_id={node}" in p.cmdline()]
        return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.close()


@pytest.mark.long
def test_a_worker_host_whose_agents_are_slow_joins_again_once_declared_dead_or_without_an_agent(host: Host):
    [first] = wait_for(lambda: host.nodes("ALIVE"), "the worker host")
    raylet = host.raylet(first)

    raylet.send_signal(signal.SIGSTOP)
    wait_for(lambda: first in host.nodes("DEAD"), "the host to be declared dead")
    raylet.send_signal(signal.SIGCONT)

    [second] = wait_for(lambda: host.nodes("ALIVE"), "the host to join again")
    assert second != first

    # A raylet whose agent fails ends with status 0.
    for child in host.raylet(second).children():
        if "agent" in " ".join(child.cmdline()).lower():
            child.kill()
    wait_for(lambda: second in host.nodes("DEAD"), "the host to be declared dead")
    [third] = wait_for(lambda: host.nodes("ALIVE"), "the host to join once more")
    assert third not in (first, second)
