"""Memory that giant values leave behind in each process of a server: `python -m bench.retained`.

The same server runs jobs with small values, rests and is measured; then as many with giant ones, whose values go from
one replica to another and whose history the client reads back. Private memory of each process after each rest, and the
most that it had in between. Exits with 1 if a process keeps more than LEFT_MB more than after the small jobs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.servers import Contender, Server, running
from bench.workflows import fresh

PACKS = Path(__file__).parent / "packs"
POOLS = [
    {"name": "maker", "runtime": False, "num_cpus": 0, "accepts": ["GiantMake"]},
    {"name": "taker", "runtime": False, "num_cpus": 0},
]
JOBS = 6
SMALL_MB, GIANT_MB = (1, 0), (1500, 24)
"""Megabytes of a job's value, and of what it shows."""
REST_S = 60.0
LEFT_MB = 256
TITLES = re.compile(r"ray::(SchedulerActor|ProxyActor|ServeReplica:serve-app:\w+)|(raylet|gcs_server)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.retained", description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS, help="of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    contender = Contender("serve-app", Path("models"), packs=PACKS, pools=POOLS)
    with running(contender) as server:
        small = _after(server, arguments.jobs, *SMALL_MB)
        giant = _after(server, arguments.jobs, *GIANT_MB)
    left = {name: giant.get(name, 0.0) - megabytes for name, megabytes in small.items()}
    print(f"{'process':<40} {'small':>8} {'giant':>8} {'left':>8}  MB of private memory")
    for name, megabytes in small.items():
        print(f"{name:<40} {megabytes:>8.0f} {giant.get(name, 0.0):>8.0f} {left[name]:>8.0f}")
    return 1 if max(left.values()) > LEFT_MB else 0


def _after(server: Server, jobs: int, megabytes: int, shown_megabytes: int) -> dict[str, float]:
    """Run jobs one after another, read their history, rest, and return what each process then has."""
    for _ in range(jobs):
        began_s = time.perf_counter()
        job_id = server.client.post(_giant(megabytes, shown_megabytes))
        server.client.wait(job_id, began_s, 0.5)
    time.sleep(REST_S)
    return {_named(process): _private_mb(process) for process in server.processes() if _named(process)}


def _giant(megabytes: int, shown_megabytes: int) -> Mapping[str, Any]:
    seed = fresh()
    return {
        "1": {"class_type": "GiantMake", "inputs": {"megabytes": megabytes, "seed": seed}},
        "2": {
            "class_type": "GiantTake",
            "inputs": {"image": ["1", 0], "shown_megabytes": shown_megabytes, "seed": seed},
        },
    }


def _named(process: psutil.Process) -> str:
    found = TITLES.search(" ".join(process.cmdline()[:1]))
    return "" if found is None else found[0]


def _private_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 2**20


if __name__ == "__main__":
    sys.exit(main())
