"""`python -m tests.chaos.long_runs`: long sampler runs while their replicas are killed, drained, scaled down, upgraded.

Every run is strict, so that its picture has to have the bits of an undisturbed one; with `--devices` none is, as ranks
share no strict run, and pictures differ by one level at most. What a run computes twice is read from its job's
progress: how far a client saw it go back. A hand-over may cost one step; a kill the keeping interval, which is twice
the longest stretch of steps that was seen between two saves. Exits with 1 if more was computed twice, or a job was
lost, doubled or told out of order.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serve_app.events import ENDINGS
from serve_app.store.work.run_states import FOLDER
from tests import workflows
from tests.chaos.clients import Caller
from tests.chaos.jobs import CHECKPOINT
from tests.chaos.moves import CLUSTER, UP, Attack, Deployed, Fillers, Place, Up
from tests.chaos.site import Setting, several
from tests.cluster.server import wait_for

SAVED_S = 0.5
"""How long a run takes before its state is kept: these are shorter than real long ones."""
NOTICE_S = 8.0
POLL_S = 5.0
RUN_S = 900.0
"""How long a run may take, with all that is done to it."""
LOOK_S = 0.5
JOINED_S = 30.0


@dataclass
class Run(threading.Thread):
    """One long job, and what a client hears of it."""

    caller: Caller
    seed: int
    steps: int
    side: int
    strict: bool = True
    job_id: str = ""
    done: int = 0
    """The last step that was reported."""
    repeated: list[tuple[str, int]] = field(default_factory=list)
    """What was done before a run went on, and how many steps back that was."""
    kinds: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fault: str = ""
    """What was done last."""
    again: str = ""
    """After what another replica has begun it; "" once a step of that is reported."""
    heard: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def submit(self) -> Run:
        prompt = workflows.txt2img(CHECKPOINT, self.seed, steps=self.steps, side=self.side)
        body = {"prompt": prompt, "extra_data": {"strict": self.strict}}
        self.job_id = self.caller.ask("POST", "/prompt", body)["prompt_id"]
        self.start()
        return self

    def run(self) -> None:
        seq, deadline_s = 0, time.monotonic() + RUN_S
        while not (self.kinds and self.kinds[-1] in ENDINGS):
            if time.monotonic() > deadline_s:
                self.problems.append(f"it had not ended after {RUN_S:g} s, at step {self.done}")
                return
            path = f"/jobs/{self.job_id}/events?after={seq}&timeout_s={POLL_S:g}"
            for event in self.caller.ask("GET", path)["events"]:
                if event["seq"] <= seq:
                    self.problems.append(f"event {event['seq']} came after {seq}")
                seq = event["seq"]
                self._take(event["kind"], event["data"])

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "3":
            if self.again:
                self.repeated.append((self.again, max(0, self.done - int(data["value"]))))
                self.again = ""
            self.done = int(data["value"])
            self.heard += 1
        else:
            if kind == "executing" and data["node"] == "3" and self.done > 0:
                self.again = self.fault
            self.kinds.append(kind)

    @property
    def samples(self) -> bool:
        """Whether its sampler is under way."""
        return 0 < self.done < self.steps and self.is_alive()

    def verdict(self, picture: bytes, other: bytes) -> Iterator[str]:
        """Yield what is wrong. other: the picture of the same run, undisturbed."""
        yield from self.problems
        if [kind for kind in self.kinds if kind in ENDINGS] != ["success"]:
            yield f"its ends are {[kind for kind in self.kinds if kind in ENDINGS]}"
        if (count := self.kinds.count("executed")) != 1:
            yield f"its output was recorded {count} times"
        if picture != other and (self.strict or _levels_apart(picture, other) > 1):
            yield "its picture is not that of an undisturbed run"


class Intervals(threading.Thread):
    """Sees how many steps lie between two saves of a run's state, by the names of its parts."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self._place, self._over = place, threading.Event()
        self._firsts: defaultdict[Path, set[int]] = defaultdict(set)

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            for path in self._place.files("work"):
                if path.suffix == ".safetensors" and path.parts[0] == FOLDER:
                    self._firsts[path.parent].add(int(path.stem.rpartition("_")[2]))

    def steps(self) -> list[int]:
        """Return them, and look no more. The first of a run is as long as its state is not kept at all."""
        self._over.set()
        self.join(JOINED_S)
        return [after - before for firsts in self._firsts.values() for before, after in pairwise(sorted(firsts))]


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        return _campaign(arguments, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _campaign(arguments: argparse.Namespace, root: Path) -> int:
    rng = random.Random(arguments.seed)
    kinds = arguments.kinds or (CLUSTER if arguments.cluster else UP)
    slots = math.ceil(arguments.jobs / arguments.replicas)
    place = _place(arguments, root, slots, scales="scale down" in kinds)
    caller = Caller(place.url, Counter())
    problems: list[str] = []
    struck: defaultdict[str, list[int]] = defaultdict(list)
    intervals = Intervals(place)
    intervals.start()
    try:
        fillers = Fillers(place, caller, slots) if "scale down" in kinds else None
        runs = _runs(arguments, caller)
        attack = Attack(place, caller, root / "notice", fillers, rng)
        # Replicas are only too many once.
        times = {kind: 1 if kind == "scale down" else arguments.faults for kind in kinds}
        for kind in Counter(times).elements():
            if not _strike(attack, kind, runs, rng):
                problems.append(f"no run was left for {kind}")
        _join(runs)
        moved = caller.ask("GET", "/status")["load"]
        others = _runs(arguments, caller)
        _join(others)
        for run, other in zip(runs, others, strict=True):
            pictures = [_picture(place, caller, each.job_id) for each in (run, other)]
            problems += [f"seed {run.seed}: {what}" for what in run.verdict(*pictures)]
            for fault, steps in run.repeated:
                struck[fault].append(steps)
    finally:
        stretches = intervals.steps()
        place.close()
    problems += place.violations
    interval = max(stretches, default=0)
    print(f"steps between two saves: median {statistics.median(stretches or [0]):g}, most {interval}")
    for fault, again in struck.items():
        middle, most = statistics.median(again), max(again)
        print(f"{fault}: {len(again)} runs went on; steps computed again: median {middle:g}, most {most}")
        if most > (allowed := max(2 * interval, 1) if fault == "kill" else 1):
            problems.append(f"after {fault} {most} steps were computed again, and {allowed} may be")
    print(f"{arguments.jobs} runs of {arguments.steps} steps; {len(problems)} violations; at the end: {moved}")
    for problem in problems:
        print(f"VIOLATION: {problem}")
    return 1 if problems else 0


def _runs(arguments: argparse.Namespace, caller: Caller) -> list[Run]:
    """Submit all runs."""
    strict = arguments.devices == 1
    return [Run(caller, seed, arguments.steps, arguments.side, strict).submit() for seed in range(arguments.jobs)]


def _place(arguments: argparse.Namespace, root: Path, slots: int, *, scales: bool) -> Up | Deployed:
    """Start the server. scales: it begins with one replica, and has one more than it needs once it is full."""
    least, most = (1, arguments.replicas + 1) if scales else (arguments.replicas, arguments.replicas)
    replicas = {"min_replicas": least, "max_replicas": most, "tasks_per_replica": slots, "idle_s": 2.0, "drain_s": 1.0}
    pool = {"name": "gpu", "num_cpus": 0.5, "num_gpus": 0, **replicas, **several(arguments.devices)}
    settings: dict[str, Any] = {
        "pools": [pool],
        "resume": {"after_s": SAVED_S},
        "preemption": {"notice": str(root / "notice"), "notice_s": NOTICE_S},
        # Every run is computed.
        "cache": "none",
    }
    if arguments.cluster:
        return Deployed(root, settings)
    return Up(Setting(root, replicas=arguments.replicas, store=arguments.store, arguments=settings))


def _strike(attack: Attack, kind: str, runs: Sequence[Run], rng: random.Random) -> bool:
    """Do something once every run is under way, and wait until each goes on. Return False if one has ended before."""
    wait_for(lambda: all(run.samples or not run.is_alive() for run in runs), "the runs to be under way", RUN_S)
    time.sleep(rng.uniform(1.0, 3.0))
    running = [run for run in runs if run.samples]
    if not running:
        return False
    print(kind, [run.done for run in running], file=sys.stderr, flush=True)
    for run in running:
        run.fault = kind
    attack.kinds[kind]()
    heard = {run: run.heard + 4 for run in running}

    def go_on() -> bool:
        return all(not run.is_alive() or (run.heard > heard[run] and not run.again) for run in running)

    wait_for(go_on, "the runs to go on", RUN_S)
    return True


def _join(runs: Sequence[Run]) -> None:
    for run in runs:
        run.join(RUN_S + JOINED_S)


def _picture(place: Place, caller: Caller, job_id: str) -> bytes:
    outputs = caller.ask("GET", f"/history/{job_id}")[job_id]["outputs"]
    [image] = outputs["6"]["images"]
    return httpx.get(f"{place.url}/view", params=image, timeout=60.0).raise_for_status().content


def _levels_apart(picture: bytes, other: bytes) -> int:
    """Return by how much values of two pictures differ at most, of 255."""
    one, two = (np.asarray(Image.open(io.BytesIO(each))).astype(int) for each in (picture, other))
    return int(abs(one - two).max())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long_runs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=6, help="long runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="of its picture, in pixels (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=2, help="of each kind (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="that the runs fill (default: %(default)s)")
    parser.add_argument(
        "--devices", type=int, default=1, help="of a replica: processes, which are killed too (default: %(default)s)"
    )
    parser.add_argument("--store", choices=("volume", "s3"), default="volume", help="(default: %(default)s)")
    parser.add_argument("--cluster", action="store_true", help="on a Ray cluster, upgraded by `serve deploy`")
    parser.add_argument("--kinds", nargs="+", choices=[*{*UP, *CLUSTER}], help="of faults (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
