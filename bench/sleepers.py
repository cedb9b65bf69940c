"""A real server whose replicas only sleep: how much of their time its control plane uses. `python -m bench.sleepers`.

Every job sleeps in one of so many replicas with one slot each. Were the control plane to take no time, N jobs of s
seconds on R replicas would take N·s/R; the efficiency is that over what they take, from the first POST until the last
is in the history. Then the longest jobs once more, which tell of STEPS steps each: what is added to the processor time
is what telling takes. Exits with 1 if the longest jobs miss TARGET.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from bench.servers import Contender, Server, running
from bench.workflows import sleep

PACKS = Path(__file__).parent / "packs"
SECONDS = (1.0, 2.0, 5.0, 10.0)
ROUNDS = 8
"""How many jobs each replica has of each length."""
STEPS = 100
TARGET = 0.9
TITLES = re.compile(r"ray::(?:ServeReplica:serve-app:)?(\w+)")
"""What Ray calls processes of ours; all replicas of a pool have one name."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sleepers", description=__doc__)
    parser.add_argument("--replicas", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS, help="how long jobs sleep")
    arguments = parser.parse_args()
    replicas = {"min_replicas": arguments.replicas, "max_replicas": arguments.replicas, "tasks_per_replica": 1}
    pools = [{"name": "cpu", "runtime": False, "num_cpus": 0, **replicas}]
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    with running(Contender("serve-app", Path("models"), packs=PACKS, pools=pools)) as server:
        _all_joined(server, arguments.replicas)
        server.client.run([sleep(0.0) for _ in range(2 * arguments.replicas)])
        for seconds in arguments.seconds:
            efficiency, silent_ms = _run(server, arguments.replicas, seconds)
        _, telling_ms = _run(server, arguments.replicas, seconds, STEPS)
        for name, ms in sorted(telling_ms.items()):
            print(f"{name}: {(ms - silent_ms.get(name, 0.0)) / STEPS:.3f} ms of processor time a step told of")
    print(f"load after: {os.getloadavg()[0]:.2f}")
    return 0 if efficiency >= TARGET else 1


def _run(server: Server, replicas: int, seconds: float, steps: int = 1) -> tuple[float, dict[str, float]]:
    """Return the efficiency of jobs so long, and the milliseconds of processor time a job by kind of process."""
    jobs, before = ROUNDS * replicas, cpu_ms(server.processes())
    took_s = server.client.run([sleep(seconds, steps) for _ in range(jobs)], ROUNDS * seconds)
    of_a_job = {name: (ms - before.get(name, 0.0)) / jobs for name, ms in cpu_ms(server.processes()).items()}
    efficiency = ROUNDS * seconds / took_s
    shares = ", ".join(f"{name} {ms:.1f}" for name, ms in of_a_job.items() if ms >= 0.1)
    print(
        f"{seconds:g} s in {steps}: {efficiency:.3f} of the ideal, {jobs / took_s:.1f} jobs/s, "
        f"{sum(of_a_job.values()):.1f} ms a job ({shares})",
        flush=True,
    )
    return efficiency, of_a_job


def _all_joined(server: Server, replicas: int) -> None:
    while server.client.get("/status")["load"]["pools"][0]["replicas"] < replicas:
        time.sleep(1.0)


def cpu_ms(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Return the processor time that processes have taken, by kind."""
    taken: dict[str, float] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found, times = TITLES.search(" ".join(process.cmdline())), process.cpu_times()
            name = found[1] if found else process.name()
            taken[name] = taken.get(name, 0.0) + 1000 * (times.user + times.system)
    return taken


if __name__ == "__main__":
    raise SystemExit(main())
