"""`python -m tests.chaos.long_runs`: long sampler runs while their replicas are killed, drained and stopped.

Every run is strict, so that its picture has to have the bits of an undisturbed one. What a run computes twice is read
from its job's progress: how far a client saw it go back. Exits with 1 if more than is promised was computed twice, or
a job was lost, doubled or told out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from serve_app.events import ENDINGS
from tests import workflows
from tests.chaos.clients import Caller
from tests.chaos.faults import PARTS
from tests.chaos.jobs import CHECKPOINT
from tests.chaos.site import Setting, Site
from tests.cluster.server import wait_for

SAVED_S = 0.5
"""How long a run takes before its state is kept: these are shorter than real long ones."""
NOTICE_S = 8.0
POLL_S = 5.0


@dataclass
class Run(threading.Thread):
    """One long job, and what a client hears of it."""

    caller: Caller
    seed: int
    steps: int
    side: int
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
        body = {"prompt": prompt, "extra_data": {"strict": True}}
        self.job_id = self.caller.ask("POST", "/prompt", body)["prompt_id"]
        self.start()
        return self

    def run(self) -> None:
        seq = 0
        while not (self.kinds and self.kinds[-1] in ENDINGS):
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
        if picture != other:
            yield "its picture is not that of an undisturbed run"


class Attack:
    """What is done to the replicas of a server."""

    def __init__(self, site: Site, caller: Caller, notice: Path, rng: random.Random) -> None:
        self._site, self._caller, self._notice, self._rng = site, caller, notice, rng
        self.kinds: dict[str, Callable[[], None]] = {
            "kill": self.kill,
            "drain": self.drain,
            "notice": self.notice,
            "stop and start": self.stop,
        }

    def _replicas(self) -> list[psutil.Process]:
        return self._site.server.processes.found(PARTS["replica"].strip("^").partition(":(?!")[0] + ":gpu")

    def kill(self) -> None:
        """SIGKILL one replica that runs something."""
        self._rng.choice(self._replicas()).kill()

    def drain(self) -> None:
        """Have one replica hand over, then let it take tasks again."""
        busy = [each for each in self._caller.ask("GET", "/status")["replicas"] if each["running"]]
        name = self._rng.choice(busy)["replica_id"]
        self._caller.ask("POST", "/drain", {"replica": name, "hand_over": True})

        def idle() -> bool:
            return not any(
                each["running"] for each in self._caller.ask("GET", "/status")["replicas"] if each["replica_id"] == name
            )

        wait_for(idle, f"replica {name} to hand over")
        self._caller.ask("POST", "/undrain", {"replica": name})

    def notice(self) -> None:
        """Give the host a notice that proves false: every replica leaves and is replaced."""
        before = {process.pid for process in self._replicas()}
        self._notice.touch()
        wait_for(lambda: before.isdisjoint(process.pid for process in self._replicas()), "replicas to leave")
        self._notice.unlink()

    def stop(self) -> None:
        """SIGTERM the server, and start it again."""
        with self._site.stopped():
            pass


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rng = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    settings = {
        "resume": {"after_s": SAVED_S},
        "preemption": {"notice": str(root / "notice"), "notice_s": NOTICE_S},
        # Every run is computed.
        "cache": "none",
    }
    site = Site(Setting(root, replicas=arguments.replicas, arguments=settings))
    caller = Caller(site.url, Counter())
    problems: list[str] = []
    struck: defaultdict[str, list[int]] = defaultdict(list)
    try:
        runs = [Run(caller, seed, arguments.steps, arguments.side).submit() for seed in range(arguments.jobs)]
        attack = Attack(site, caller, root / "notice", rng)
        for kind in [kind for kind in attack.kinds for _ in range(arguments.faults)]:
            with contextlib.suppress(StopIteration):
                _strike(attack, kind, runs, rng)
        for run in runs:
            run.join()
        moved = caller.ask("GET", "/status")["load"]
        others = [Run(caller, seed, arguments.steps, arguments.side).submit() for seed in range(arguments.jobs)]
        for run, other in zip(runs, others, strict=True):
            other.join()
            pictures = [_picture(site, caller, each.job_id) for each in (run, other)]
            problems += [f"seed {run.seed}: {what}" for what in run.verdict(*pictures)]
            for fault, steps in run.repeated:
                struck[fault].append(steps)
    finally:
        site.close()
    problems += site.violations
    for fault, again in struck.items():
        middle, most = statistics.median(again), max(again)
        print(f"{fault}: {len(again)} runs went on; steps computed again: median {middle:g}, most {most}")
        if most > (allowed := arguments.interval if fault == "kill" else 1):
            problems.append(f"after {fault} {most} steps were computed again, and {allowed} may be")
    print(f"{arguments.jobs} runs of {arguments.steps} steps; {len(problems)} violations; at the end: {moved}")
    for problem in problems:
        print(f"VIOLATION: {problem}")
    return 1 if problems else 0


def _strike(attack: Attack, kind: str, runs: list[Run], rng: random.Random) -> None:
    """Do something once some run is under way, and wait until each that was goes on. Errors: StopIteration."""
    wait_for(lambda: any(run.samples for run in runs) or not any(run.is_alive() for run in runs), "a run under way")
    time.sleep(rng.uniform(1.0, 3.0))
    running = [run for run in runs if run.samples]
    if not running:
        raise StopIteration
    print(kind, [run.done for run in running], file=sys.stderr, flush=True)
    for run in running:
        run.fault = kind
    attack.kinds[kind]()
    heard = {run: run.heard + 4 for run in running}

    def go_on() -> bool:
        return all(not run.is_alive() or (run.heard > heard[run] and not run.again) for run in running)

    wait_for(go_on, "the runs to go on")


def _picture(site: Site, caller: Caller, job_id: str) -> bytes:
    outputs = caller.ask("GET", f"/history/{job_id}")[job_id]["outputs"]
    [image] = outputs["6"]["images"]
    return (site.output / image["subfolder"] / image["filename"]).read_bytes()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long_runs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=6, help="long runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="of its picture, in pixels (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=2, help="of each kind (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--interval", type=int, default=20, help="steps that a kill may cost (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
