"""What makes sampler runs go on elsewhere: their replica is killed, drained, scaled down, upgraded, given a notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from tests import workflows
from tests.chaos.clients import Caller
from tests.chaos.jobs import CHECKPOINT
from tests.chaos.site import MODELS, Setting, Site
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.server import TITLES, Processes, wait_for

FILLER_STEPS, FILLER_SIDE = 10_000, 256
UP = ("scale down", "kill", "drain", "notice", "stop and start")
CLUSTER = ("scale down", "upgrade", "kill", "drain")
"""What can be done to replicas of `serve-app up`, and to those of a cluster to which configurations are deployed."""


class Place(Protocol):
    """A running server. violations: what its ends and starts did wrong."""

    violations: list[str]

    @property
    def url(self) -> str: ...

    @property
    def processes(self) -> Processes: ...

    def files(self, area: str) -> list[Path]: ...

    def close(self) -> None: ...


class Up:
    """`serve-app up`, which is stopped and started again."""

    def __init__(self, setting: Setting) -> None:
        self.site = Site(setting)
        self.violations = self.site.violations
        self.url = self.site.url
        self.files, self.close = self.site.files, self.site.close

    @property
    def processes(self) -> Processes:
        """Those of the present server."""
        return self.site.server.processes

    def stop_and_start(self) -> None:
        """SIGTERM the server, and start it again."""
        with self.site.stopped():
            pass


class Deployed:
    """An application on a Ray cluster that goes on while it is upgraded."""

    def __init__(self, root: Path, arguments: Mapping[str, Any]) -> None:
        self.violations: list[str] = []
        self._root, self._arguments, self._deployments = root, arguments, 0
        self._cluster = RayCluster(root)
        self.url, self.processes = self._cluster.url, self._cluster.processes
        try:
            self._deploy()
        except BaseException:
            self.close()
            raise

    def files(self, area: str) -> list[Path]:
        """Return the paths, within an area of the store, of what is there."""
        folder = self._root / area
        return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]

    def upgrade(self) -> None:
        """Deploy another configuration, and return once all processes are others."""
        before = {p.pid for kind in ("replica", "scheduler") for p in self.processes.found(TITLES[kind])}
        self._deploy()
        wait_for(lambda: before.isdisjoint(p.pid for p in self.processes.found("ray::S")), "other processes")

    def close(self) -> None:
        """End the cluster."""
        self._cluster.close()

    def _deploy(self) -> None:
        self._deployments += 1
        arguments = {"models_dir": str(MODELS), **self._arguments, "max_queue": 100 + self._deployments}
        self._cluster.deploy(self._cluster.config(**arguments))
        self._cluster.wait_until_deployed()


class Fillers:
    """Jobs that fill the oldest replica, so that the runs under test begin on newer ones.

    Once they are cancelled, a replica too many is there, and Serve ends a newer one, though it works.
    """

    def __init__(self, place: Place, caller: Caller, slots: int) -> None:
        self._place, self._caller = place, caller
        prompts = [
            workflows.txt2img(CHECKPOINT, 10_000 + slot, steps=FILLER_STEPS, side=FILLER_SIDE) for slot in range(slots)
        ]
        self._jobs = [str(caller.ask("POST", "/prompt", {"prompt": each})["prompt_id"]) for each in prompts]
        wait_for(lambda: sum(each["running"] for each in replicas(caller)) >= slots, "a replica that is full")

    def cancel(self) -> None:
        """Have Serve end a replica that works."""
        before = self._place.processes.found(TITLES["replica"])
        for job_id in self._jobs:
            self._caller.ask("POST", f"/jobs/{job_id}/cancel")
        wait_for(lambda: not all(each.is_running() for each in before), "a replica to be ended")


class Attack:
    """What is done to the replicas of a server, by its name. notice: the file that its configuration names."""

    def __init__(
        self, place: Up | Deployed, caller: Caller, notice: Path, fillers: Fillers | None, rng: random.Random
    ) -> None:
        self._place, self._caller, self._notice, self._rng = place, caller, notice, rng
        self.kinds: dict[str, Callable[[], None]] = {"kill": self.kill, "drain": self.drain}
        if fillers is not None:
            self.kinds["scale down"] = fillers.cancel
        if isinstance(place, Up):
            self.kinds |= {"notice": self.notice, "stop and start": place.stop_and_start}
        else:
            self.kinds["upgrade"] = place.upgrade

    def _replicas(self) -> list[psutil.Process]:
        return self._place.processes.found(TITLES["replica"])

    def kill(self) -> None:
        """SIGKILL one replica that runs something, or one of its ranks."""
        self._rng.choice([*self._replicas(), *self._place.processes.found("ray::Rank")]).kill()

    def drain(self) -> None:
        """Have one replica hand over, then let it take tasks again."""
        name = self._rng.choice([each for each in replicas(self._caller) if each["running"]])["replica_id"]
        self._caller.ask("POST", "/drain", {"replica": name, "hand_over": True})

        def idle() -> bool:
            return not any(each["running"] for each in replicas(self._caller) if each["replica_id"] == name)

        wait_for(idle, f"replica {name} to hand over")
        self._caller.ask("POST", "/undrain", {"replica": name})

    def notice(self) -> None:
        """Give the host a notice that proves false: every replica leaves and is replaced."""
        before = {process.pid for process in self._replicas()}
        self._notice.touch()
        wait_for(lambda: before.isdisjoint(process.pid for process in self._replicas()), "replicas to leave")
        self._notice.unlink()


def replicas(caller: Caller) -> list[dict[str, Any]]:
    """Return the replicas as the server sees them."""
    found: list[dict[str, Any]] = caller.ask("GET", "/status")["replicas"]
    return found
