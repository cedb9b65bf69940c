"""What is done to a cluster's hosts and the network between them, as faults of tests/chaos."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.chaos.faults import Fault, killed
from tests.hosts import data
from tests.hosts.cluster import HEAD, WORKERS, Cluster

PARTS = ("replica", "scheduler", "ingress", "controller", "gcs", "raylet", "proxy")


def faults(cluster: Cluster, *, short: bool = False) -> list[Fault]:
    """Return what can be done to this cluster. short: one of each class, the quickest."""
    network = cluster.network
    head, shared = network.addresses[HEAD], network.addresses[data.NAME]

    def fault(host: str, action: str, sever: Callable[[str], None], seconds: float, weight: int = 1) -> Fault:
        return Fault(host, action, partial(_during, cluster, host, sever, seconds), weight)

    def lossy(name: str) -> None:
        network.lose(name, 10)

    def slow(name: str) -> None:
        network.slow(name, 4000)

    found = [
        fault("worker", "cut off, 20 s", network.drop, 20),
        fault("worker", "hears nothing, 10 s", partial(network.drop, directions=["in"]), 10),
        fault("worker", "loses 10 % of packets, 20 s", lossy, 20),
        fault("database", "cut off from the head, 10 s", partial(network.drop, peers=[shared]), 10),
        Fault("worker", "power lost", partial(_power_lost, cluster, "worker", 5), 2),
    ]
    if short:
        return found
    return [
        *found,
        fault("worker", "cut off, 90 s", network.drop, 90),
        Fault("worker", "flapping, 4 s in 8, 12 times", partial(_flap, cluster, 12, 4), 1),
        fault("worker", "is not heard, 20 s", partial(network.drop, directions=["out"]), 20),
        fault("worker", "hears nothing, 60 s", partial(network.drop, directions=["in"]), 60),
        fault("worker", "cut off from the other, 40 s", partial(network.drop, peers=_workers(cluster)), 40),
        fault("worker", "cut off from the head, 60 s", partial(network.drop, peers=[head]), 60),
        fault("worker", "loses 25 % of packets, 60 s", lambda name: network.lose(name, 25), 60),
        fault("worker", "4 Mbit/s, 60 s", slow, 60),
        fault("head", "cut off, 20 s", network.drop, 20),
        fault("head", "cut off, 60 s", network.drop, 60),
        fault("head", "hears nothing, 15 s", partial(network.drop, directions=["in"]), 15),
        fault("head", "loses 10 % of packets, 60 s", lossy, 60),
        fault("database", "cut off from the head, 60 s", partial(network.drop, peers=[shared]), 60),
        fault("worker", "cut off from the head, 15 s", partial(network.drop, peers=[head]), 15),
        fault("bucket", "cut off from a worker, 10 s", partial(network.drop, peers=[shared]), 10),
        fault("bucket", "cut off from a worker, 25 s", partial(network.drop, peers=[shared]), 25),
        Fault("worker", "power lost for 60 s", partial(_power_lost, cluster, "worker", 60), 1),
        Fault("head", "power lost", partial(_power_lost, cluster, HEAD, 5), 2),
        Fault("worker", "stopped in good order and back", partial(_come_and_go, cluster), 2),
        Fault("application", "upgraded in place", partial(_upgrade, cluster), 2),
        *(Fault(part, "kill", partial(killed, cluster, part), 1) for part in PARTS),
    ]


@contextmanager
def severed(cluster: Cluster, name: str, sever: Callable[[str], None]) -> Iterator[None]:
    """Have a host's network as `sever` makes it meanwhile."""
    sever(name)
    try:
        yield
    finally:
        cluster.network.heal(name)


def _workers(cluster: Cluster) -> list[str]:
    return [cluster.network.addresses[name] for name in WORKERS]


def _drawn(host: str, rng: random.Random) -> str:
    """Return which host a fault of this part strikes."""
    return rng.choice(WORKERS) if host in ("worker", "bucket") else HEAD


def _during(cluster: Cluster, host: str, sever: Callable[[str], None], seconds: float, rng: random.Random) -> bool:
    with severed(cluster, _drawn(host, rng), sever):
        time.sleep(seconds)
    return True


def _flap(cluster: Cluster, times: int, seconds: float, rng: random.Random) -> bool:
    name = _drawn("worker", rng)
    for _ in range(times):
        with severed(cluster, name, cluster.network.drop):
            time.sleep(seconds)
        time.sleep(seconds)
    return True


def _power_lost(cluster: Cluster, host: str, seconds: float, rng: random.Random) -> bool:
    found = cluster.head if host == HEAD else cluster.workers[_drawn(host, rng)]
    found.kill()
    time.sleep(seconds)
    found.start()
    return True


def _come_and_go(cluster: Cluster, rng: random.Random) -> bool:
    found = cluster.workers[_drawn("worker", rng)]
    found.stop()
    time.sleep(rng.uniform(0, 20))
    found.start()
    return True


def _upgrade(cluster: Cluster, rng: random.Random) -> bool:
    cluster.deploy(cluster.configuration(max_queue=rng.randint(9000, 10_000)))
    return True
