"""A real server whose replicas only sleep: how much of their time its control plane uses. `python -m bench.sleepers`.

Every job sleeps in one of so many replicas with one slot each. Were the control plane to take no time, N jobs of s
seconds on R replicas would take N·s/R; the efficiency is that over what they take, from the first POST until the last
is in the history. Exits with 1 if the longest jobs miss TARGET.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from bench.servers import Contender, Server, running
from bench.workflows import sleep

PACKS = Path(__file__).parent / "packs"
SECONDS = (1.0, 2.0, 5.0, 10.0)
ROUNDS = 8
"""How many jobs each replica has of each length."""
TARGET = 0.9


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
        efficiency = 0.0
        for seconds in arguments.seconds:
            jobs = ROUNDS * arguments.replicas
            before_s = _cpu_s(server)
            took_s = server.client.run([sleep(seconds) for _ in range(jobs)], ROUNDS * seconds)
            cpu_ms = 1000 * (_cpu_s(server) - before_s) / jobs
            efficiency = ROUNDS * seconds / took_s
            rate = jobs / took_s
            print(f"{seconds:g} s: {efficiency:.3f} of the ideal, {rate:.1f} jobs/s, {cpu_ms:.1f} ms a job", flush=True)
    print(f"load after: {os.getloadavg()[0]:.2f}")
    return 0 if efficiency >= TARGET else 1


def _all_joined(server: Server, replicas: int) -> None:
    while server.client.get("/status")["load"]["pools"][0]["replicas"] < replicas:
        time.sleep(1.0)


def _cpu_s(server: Server) -> float:
    """Return the processor time that the server's processes have taken."""
    times = [process.cpu_times() for process in server.processes()]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    raise SystemExit(main())
