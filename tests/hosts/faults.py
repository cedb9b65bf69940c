"""What is done to a cluster's hosts and the network between them, as faults of tests/chaos."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from tests.chaos.faults import FOUND_S, Fault, killed
from tests.hosts import data
from tests.hosts.cluster import HEAD, WORKERS, Cluster

WORKER = "any worker"
PARTS = ("replica", "scheduler", "ingress", "controller", "gcs", "raylet", "proxy")


def faults(cluster: Cluster, *, short: bool = False) -> list[Fault]:
    """Return what can be done to this cluster. short: one of each class, the quickest."""
    network = cluster.network
    head, shared = network.addresses[HEAD], network.addresses[data.NAME]
    cut = network.drop
    database = partial(cut, peer=shared, port=data.POSTGRES)
    redis = partial(cut, peer=shared, port=data.REDIS)
    bucket = partial(cut, peer=shared, port=cluster.data.store.port)

    def fault(part: str, host: str, action: str, sever: Callable[[str], None], seconds: float) -> Fault:
        return Fault(part, f"{action}, {seconds:.0f} s", partial(_during, cluster, host, sever, seconds), 1)

    found = [
        fault("worker", WORKER, "cut off", cut, 20),
        fault("worker", WORKER, "hears nothing", partial(cut, directions=["in"]), 10),
        fault("worker", WORKER, "loses 10 % of packets", partial(network.lose, percent=10), 20),
        fault("database", HEAD, "cut off from the head", database, 10),
        Fault("worker", "power lost, 5 s", partial(_power_lost, cluster, WORKER, 5), 1),
    ]
    if short:
        return found
    return [
        *found,
        fault("worker", WORKER, "cut off", cut, 90),
        Fault("worker", "cut off, 4 s in 8, 12 times", partial(_flap, cluster, 12, 4), 1),
        fault("worker", WORKER, "is not heard", partial(cut, directions=["out"]), 20),
        fault("worker", WORKER, "hears nothing", partial(cut, directions=["in"]), 60),
        fault("worker", "one", "cut off from the other", partial(cut, peer=network.addresses["two"]), 40),
        fault("worker", WORKER, "cut off from the head", partial(cut, peer=head), 15),
        fault("worker", WORKER, "cut off from the head", partial(cut, peer=head), 60),
        fault("worker", WORKER, "loses 25 % of packets", partial(network.lose, percent=25), 60),
        fault("worker", WORKER, "has 4 Mbit/s", partial(network.slow, kilobits=4000), 60),
        fault("head", HEAD, "cut off", cut, 20),
        fault("head", HEAD, "cut off", cut, 60),
        fault("head", HEAD, "hears nothing", partial(cut, directions=["in"]), 15),
        fault("head", HEAD, "loses 10 % of packets", partial(network.lose, percent=10), 60),
        fault("database", HEAD, "cut off from the head", database, 60),
        fault("database", WORKER, "cut off from a worker", database, 20),
        fault("redis", HEAD, "cut off from the head", redis, 10),
        fault("redis", HEAD, "cut off from the head", redis, 60),
        fault("bucket", HEAD, "cut off from the head", bucket, 20),
        fault("bucket", WORKER, "cut off from a worker", bucket, 10),
        fault("bucket", WORKER, "cut off from a worker", bucket, 25),
        Fault("worker", "power lost, 60 s", partial(_power_lost, cluster, WORKER, 60), 1),
        Fault("head", "power lost, 5 s", partial(_power_lost, cluster, HEAD, 5), 2),
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


def _drawn(host: str, rng: random.Random) -> str:
    """Return the host itself, or one of the workers where any is meant."""
    return rng.choice(WORKERS) if host == WORKER else host


def _during(cluster: Cluster, host: str, sever: Callable[[str], None], seconds: float, rng: random.Random) -> bool:
    with severed(cluster, _drawn(host, rng), sever):
        time.sleep(seconds)
    return True


def _flap(cluster: Cluster, times: int, seconds: float, rng: random.Random) -> bool:
    name = _drawn(WORKER, rng)
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
    found = cluster.workers[_drawn(WORKER, rng)]
    found.stop()
    time.sleep(rng.uniform(0, 20))
    found.start()
    return True


def _upgrade(cluster: Cluster, rng: random.Random) -> bool:
    deadline = time.monotonic() + FOUND_S
    while time.monotonic() < deadline:
        # Refused while the head still recovers from the fault before.
        with suppress(RuntimeError, AssertionError):
            cluster.deploy(cluster.configuration(max_queue=rng.randint(9000, 10_000)))
            return True
    return False
