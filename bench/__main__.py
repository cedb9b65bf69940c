"""Runs the benchmarks that are named, or all, and writes the results after each. Exits with 1 if a target is missed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from bench import (
    events,
    idle,
    images,
    listing,
    loading,
    noop,
    overhead,
    queued,
    report,
    sharing,
    startup,
    transformers,
)
from bench.series import Ratio, Series
from bench.servers import Contender

BENCHMARKS = (
    images.NAME,
    transformers.NAME,
    sharing.NAME,
    loading.NAME,
    overhead.NAME,
    noop.NAME,
    events.NAME,
    listing.NAME,
    queued.NAME,
    startup.NAME,
    idle.NAME,
)
CHECKPOINTS = ("mini15", "sd15")


def main() -> int:
    arguments = _arguments()
    # As Ctrl-C does, it then stops the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    models = arguments.models_dir or _models(arguments.checkpoints)
    ours, unbatched = Contender("serve-app", models), Contender("serve-app unbatched", models)
    beside = []
    if arguments.comfyui:
        beside = [Contender("ComfyUI", models, arguments.comfyui.absolute(), arguments.comfyui_python.absolute())]
    load_before = os.getloadavg()[0]
    rounds = arguments.rounds
    series: list[Series] = []
    ratios: list[Ratio] = []

    def keep(measured: tuple[list[Series], list[Ratio]]) -> None:
        series.extend(measured[0])
        ratios.extend(measured[1])
        for s in measured[0]:
            print(f"{s.benchmark}: {s.case}, {s.contender}: {s.median:.4g} {s.unit}", flush=True)
        for r in measured[1]:
            print(f"{r.benchmark}: {r.what}: {r.median:.4g} {r.target and f'(target {r.target})'}", flush=True)
        if arguments.write:
            report.write(series, ratios, load_before, arguments.note)

    if images.NAME in arguments.benchmarks:
        for checkpoint in arguments.checkpoints:
            keep(images.measure([ours, unbatched, *beside], checkpoint, rounds))
    if transformers.NAME in arguments.benchmarks:
        for measured in transformers.measure([ours, *beside], rounds, arguments.nets):
            keep(measured)
    if sharing.NAME in arguments.benchmarks:
        keep(sharing.measure(models, rounds))
    if loading.NAME in arguments.benchmarks:
        for checkpoint in arguments.checkpoints:
            keep(loading.measure(models, checkpoint, rounds))
    if overhead.NAME in arguments.benchmarks:
        for checkpoint in arguments.checkpoints:
            keep(overhead.measure(ours, checkpoint, rounds))
    if noop.NAME in arguments.benchmarks:
        keep(noop.measure([ours, *beside], rounds))
    if events.NAME in arguments.benchmarks:
        keep(events.measure([ours, *beside], rounds))
    if listing.NAME in arguments.benchmarks:
        keep(listing.measure([ours, *beside], rounds))
    if queued.NAME in arguments.benchmarks:
        keep(queued.measure([ours], rounds))
    if startup.NAME in arguments.benchmarks:
        keep(startup.measure([ours, *beside], rounds))
    if idle.NAME in arguments.benchmarks:
        keep(idle.measure([ours, *beside], rounds))
        for checkpoint in arguments.checkpoints:
            keep(idle.measure_memory([ours, *beside], checkpoint, rounds))
    return 1 if any(r.met is False for r in ratios) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS, help=f"default: all of {', '.join(BENCHMARKS)}")
    parser.add_argument("--checkpoints", nargs="+", choices=CHECKPOINTS, default=CHECKPOINTS)
    parser.add_argument("--nets", nargs="+", choices=[net.name for net in transformers.NETS], default=())
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI to run beside ours")
    parser.add_argument(
        "--comfyui-python", type=Path, default=Path(sys.executable), metavar="PYTHON", help="default: this Python"
    )
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="default: checkpoints written into the cache")
    parser.add_argument("--note", default="", help="a remark to print with the results")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print only")
    arguments = parser.parse_args()
    if unknown := set(arguments.benchmarks) - set(BENCHMARKS):
        parser.error(f"unknown benchmarks {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    return arguments


def _models(checkpoints: list[str]) -> Path:
    from tests.parity.checkpoints import models_dir

    return models_dir(*checkpoints)


if __name__ == "__main__":
    sys.exit(main())
