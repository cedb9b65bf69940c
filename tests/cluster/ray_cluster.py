"""A Ray cluster that is there before the application: `ray start --head`, to which configurations are deployed."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.server import PATIENCE_S, Application, Processes, free_port, free_ports, provide_checkpoint, wait_for

CONFIGS = Path(__file__).parents[2] / "configs"


class RayCluster(Application):
    """One host with four CPUs and one GPU that Ray only believes in. root: where deployed applications work.

    haproxy: whether Serve has its own HAProxy for a proxy, as the Kubernetes manifests have it.
    """

    def __init__(self, root: Path, *, haproxy: bool = False) -> None:
        super().__init__(free_port())
        provide_checkpoint(root)
        self.root = root
        self.processes = Processes()
        # Serve's proxy loads the gate by its environment, as docs/deploy.md says for clusters.
        self.processes.environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = (
            "serve_app.deployments.proxy.gate:middlewares"
        )
        if haproxy:
            self.processes.environment.update(self._haproxy())
        self.processes.environment["RAY_metrics_report_interval_ms"] = "1000"
        # As the documents have it: whoever asks Ray for something shows a token.
        self.credentials = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.processes.environment.update(self.credentials)
        # Ray would let its workers yield to all else on this machine, and a busy one would starve them.
        self.processes.environment["RAY_worker_niceness"] = "0"
        gcs, dashboard, client, agent, self.metrics_port = free_ports(5)
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self._run(
            "ray.scripts.scripts",
            *("start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--metrics-export-port={self.metrics_port}", "--disable-usage-stats", *self.head()),
            f"--temp-dir={self.processes.environment['RAY_TMPDIR']}",
        )

    def _haproxy(self) -> dict[str, str]:
        program = self.root / "serve-app-haproxy"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m serve_app.deployments.proxy.haproxy_serve "$@"\n')
        program.chmod(0o755)
        folder = self.processes.environment["RAY_TMPDIR"]
        files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
        files |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "state"}
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            **{f"RAY_SERVE_HAPROXY_{key}": f"{folder}/h/{name}" for key, name in files.items()},
        }

    def head(self) -> list[str]:
        """Return what the head has, as arguments of `ray start`."""
        return ["--num-cpus=4", "--num-gpus=1"]

    def deploy(self, config: dict[str, Any]) -> None:
        """Deploy a configuration as KubeRay does: hand it to the cluster's REST API and leave the rest to Serve."""
        path = self.root / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self._run("ray.serve.scripts", "deploy", "--address", self.dashboard, str(path))

    def config(self, name: str = "local.yaml", **arguments: Any) -> dict[str, Any]:
        """Return one of the shipped configurations with its files under `root`, its port, and these arguments."""
        config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
        config["http_options"].update(host="127.0.0.1", port=self.port)
        args = config["applications"][0]["args"]
        for key in ("models", "input", "output", "temp", "user"):
            args[f"{key}_dir"] = str(self.root / key)
        args["database_url"] = f"sqlite:///{self.root}/state/jobs.sqlite"
        args.update(arguments)
        for pool in args.get("pools", ()):
            if pool.get("runtime", True) and "comfyui" not in pool:
                # The cards are ones that Ray only believes in.
                pool["device"] = "cpu"
        return config

    def asked(self, path: str, **query: str) -> Any:
        """Return what Ray's dashboard answers."""
        headers = {"Authorization": f"Bearer {self.credentials['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}{path}", params=query, headers=headers, timeout=60.0)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def status(self) -> dict[str, Any]:
        """Return the application as Serve's controller sees it, {} if it is not there."""
        found: dict[str, Any] = self.asked("/api/serve/applications/").get("applications", {}).get("serve-app", {})
        return found

    def wait_until_deployed(self) -> None:
        """Return once Serve says that the application runs and it answers."""

        def deployed() -> bool:
            status = self.status()
            assert status.get("status") != "DEPLOY_FAILED", status
            return status.get("status") == "RUNNING" and self.answers()

        wait_for(deployed, "the deployed application")

    def actors(self, name: str) -> list[dict[str, Any]]:
        """Return the living actors whose name or class starts so, with what Ray reserved for them."""
        found: list[dict[str, Any]] = self.asked("/api/v0/actors", detail="1")["data"]["result"]["result"]
        return [a for a in found if a["state"] == "ALIVE" and (a["name"].startswith(name) or a["class_name"] == name)]

    def logged(self) -> list[dict[str, Any]]:
        """Return the log lines of the application's processes, which are configured to be JSON."""
        logs = Path(self.processes.environment["RAY_TMPDIR"]).glob("session_2*/logs/worker-*.err")
        lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
        return [json.loads(line) for line in lines if line.startswith('{"at"')]

    def close(self) -> None:
        """End the cluster's processes."""
        self.http.close()
        self.processes.close()

    def _run(self, module: str, *arguments: str) -> None:
        """Run a command of Ray's that returns at once."""
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.processes.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def started(root: Path, *, haproxy: bool = False) -> Iterator[RayCluster]:
    """Yield a cluster with nothing deployed; end it afterwards."""
    cluster = RayCluster(root, haproxy=haproxy)
    try:
        yield cluster
    finally:
        cluster.close()
