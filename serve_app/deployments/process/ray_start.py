"""`ray` for busy hosts: a raylet that it starts does not end when an agent takes more than 15 s to start.

A raylet waits so long for the file in which an agent writes each of its ports, but not for a port that it is given. Of
the four, `ray start` passes on three; --dashboard-agent-listen-port it gives to the agent alone. Written for ray 2.60
(`ray/_private/services.py`, ray-project/ray#65983).

`ray start --block` ends with its raylet here, however that ended. Ray's own goes on without one that ended with status
0, as it does when an agent fails: the host then stays away, as nothing starts it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

LISTEN_PORT = "--dashboard-agent-listen-port"
PORTS = {
    LISTEN_PORT: 52365,
    "--dashboard-agent-grpc-port": 8266,
    "--runtime-env-agent-port": 8267,
    "--metrics-export-port": 8268,
}
"""The agents' ports, below those that the system gives to connections, but for the first, which is Ray's own."""
AGENT_PATIENCE = {"RAY_agent_register_timeout_ms": "120000"}
"""How long a raylet then tries to reach the runtime-env agent; 30 s otherwise."""
ORPHANS = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "serve_app.deployments.process.orphans.watch"}
"""What Ray calls in each of the host's workers before their work."""
REPORT_S = 5.0
"""How long Ray has to report a raylet's end, which it looks for each second, and to end by itself."""


def _end() -> None:
    # Ray then ends the other processes of the host, and this one with status 1.
    os.kill(os.getpid(), signal.SIGTERM)


def with_ports(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `ray start` with a port for every agent that has none."""
    given = {argument.partition("=")[0] for argument in arguments}
    return [*arguments, *(f"{option}={port}" for option, port in PORTS.items() if option not in given)]


def listen_port(arguments: Sequence[str]) -> str:
    """Return the dashboard agent's port of these arguments, which name it as one word or as two."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, separator, value = argument.partition("=")
        if option == LISTEN_PORT:
            return value if separator else following
    raise ValueError(f"{LISTEN_PORT} is not among {arguments}")


def main() -> None:
    """Do what `ray` does with this program's arguments."""
    os.environ.update({name: os.environ.get(name, value) for name, value in AGENT_PATIENCE.items()})
    if sys.argv[1:2] == ["start"]:
        sys.argv[2:] = with_ports(sys.argv[2:])
        _pass_on(listen_port(sys.argv[2:]))
        os.environ.update(ORPHANS)
    # Ray reads its environment when it is imported.
    from ray.scripts.scripts import main as ray

    ray()


def _pass_on(port: str) -> None:
    """Have raylets that this process starts know the dashboard agent's port, and end this process as they end."""
    from ray._private import services

    start = services.start_ray_process

    def started(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        if command[0] == services.RAYLET_EXECUTABLE:
            made = start([*command, f"--dashboard_agent_listen_port={port}"], process_type, *arguments, **options)
            Thread(target=end_with, args=(made.process,), daemon=True).start()
            return made
        return start(command, process_type, *arguments, **options)

    services.start_ray_process = started


def end_with(raylet: subprocess.Popen[bytes], end: Callable[[], None] = _end, report_s: float = REPORT_S) -> None:
    """Wait for a raylet's end and, if this process is still there after a while, end it too."""
    raylet.wait()
    time.sleep(report_s)
    print(f"the raylet has ended with status {raylet.returncode}, so this command ends", file=sys.stderr, flush=True)
    end()


if __name__ == "__main__":
    main()
