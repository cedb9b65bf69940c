"""What a pool over a ComfyUI adds to a job: the same workflows to one process, directly and through a server.

`python -m bench.comfyui --comfyui DIR --comfyui-python PYTHON`. Each round asks both in turn for jobs that compute next
to nothing, one after another, each awaited. Exits with 1 if the median is above the target.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench.client import Client
from bench.servers import Contender, running
from bench.workflows import noop

JOBS = 30
TARGET_MS = 30.0


def measure(comfyui: Contender, rounds: int) -> list[tuple[float, float]]:
    """Return the median seconds of a job for each round: asked directly, and through a server."""
    figures = []
    with running(comfyui) as theirs:
        pool = {"name": "comfyui", "num_cpus": 0, "comfyui": {"url": f"http://127.0.0.1:{theirs.port}"}}
        with running(replace(comfyui, kind="serve-app", comfyui=None, python=Path(sys.executable), pool=pool)) as ours:
            for client in (theirs.client, ours.client):
                _jobs(client)
            for number in range(rounds):
                # Whoever comes first in a round comes second in the next.
                clients = [theirs.client, ours.client] if number % 2 == 0 else [ours.client, theirs.client]
                took = {client: median(_jobs(client)) for client in clients}
                figures.append((took[theirs.client], took[ours.client]))
    return figures


def _jobs(client: Client) -> list[float]:
    """Return the seconds of each job, from the POST until it is in the history."""
    return [client.run([noop()]) for _ in range(JOBS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR")
    parser.add_argument("--comfyui-python", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    # A link stays one: a virtual environment's Python is found by it.
    python, models = arguments.comfyui_python.absolute(), arguments.models_dir.absolute()
    comfyui = Contender("ComfyUI", models, arguments.comfyui.absolute(), python)
    print(f"load before: {os.getloadavg()[0]:.1f}; {JOBS} jobs a round; {time.strftime('%F %T')}")
    figures = measure(comfyui, arguments.rounds)
    for directly_s, through_s in figures:
        more_ms = 1000 * (through_s - directly_s)
        print(f"directly {1000 * directly_s:6.1f} ms  through {1000 * through_s:6.1f} ms  more {more_ms:6.1f} ms")
    more_ms = 1000 * median(through_s - directly_s for directly_s, through_s in figures)
    print(f"median: {more_ms:.1f} ms more a job (target: at most {TARGET_MS:g})")
    return int(more_ms > TARGET_MS)


if __name__ == "__main__":
    raise SystemExit(main())
