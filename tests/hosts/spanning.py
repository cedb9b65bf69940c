"""A replica whose two ranks are on two hosts: it draws what one process draws, is drained, and is lost with their link.

What it is drained of goes on with ranks on two other hosts and in one process. `python -m tests.hosts --ranks` runs it.
Each rank is a process in a host's network, without Ray: this program itself.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_bytes
from typing import Any

import torch
from safetensors.torch import save_file

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.engine.runtime import EngineRuntime
from serve_app.errors import UnavailableError
from serve_app.models.families import WanVae
from serve_app.models.ranks.leader import Leader
from serve_app.models.ranks.meeting import Address
from serve_app.replica.ranks import follow, lead
from serve_app.store.files.volume import Volume
from serve_app.store.work.run_states import JobStates, RunStateFiles
from tests.hosts.network import Network
from tests.unit.engine.mixes import relative_error
from tests.unit.models.ranks import test_resume
from tests.unit.models.ranks.processes import drawn, weights_of
from tests.unit.models.ranks.test_ranks import AUTOENCODED, SMALL, VAE, job
from tests.unit.models.sample import random_tensors

HOSTS = ("one", "two", "three")
FIRST, OTHER = HOSTS[:2], HOSTS[1:]
"""The hosts of the replica, and of the one that goes on with what it is drained of."""
BACKBONE = "wan22"
FORWARD_S = 10.0
"""How long one rank waits for another within a forward."""
DRAWN_S = 240.0
LOST_S = 90.0
ENDED_S = 30.0
"""How long ranks with nothing left to do may take to end."""
MOST_ERROR = 1e-5
STEPS = 300
"""Of a run that is drained."""
TAKEN = 20
"""The steps after which a drain comes; some more are taken until it is carried out."""
ROWS: Mapping[str, float] = {"one row": 1.0, "two rows": 4.0}
"""The scales of guidance of runs that are drained. Ranks share the tokens of one row, and have one of two rows each."""
WAYS = ("two other ranks", "one process")
"""What goes on with them."""
POOL = PoolConfig(
    name="video", device="cpu", devices_per_replica=2, spans_hosts=True, threads=1, forward_time_s=FORWARD_S
)


@dataclass
class Spanned:
    """drawn: what rank 0 says of each case, (error, bytes it sent). violations: promises that broke."""

    drawn: dict[str, Any] = field(default_factory=dict)
    wire_bytes: int = 0
    went_on: list[str] = field(default_factory=list)
    lost: str = ""
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        for name, (error, sent) in self.drawn.items():
            yield f"{name}: largest error {error:.1e} beside one process, rank 0 sent {sent:,} bytes"
        yield f"{self.wire_bytes:,} bytes went between the hosts, headers of packets included"
        yield from self.went_on
        yield f"after the link was cut: {self.lost}"
        yield from (f"VIOLATION: {violation}" for violation in self.violations)
        yield f"{len(self.violations)} violations"


def spanned(root: Path) -> Spanned:
    """Run ranks on two hosts, have others go on with what they are drained of, and cut one off."""
    _write_models(root / "models")
    network, report = Network(HOSTS), Spanned()
    try:
        with _ranks(root, network, "draw", FIRST) as ranks:
            _watch(root, network, ranks, report)
        if not report.violations:
            network.heal("two")
            _drain(root, network, report)
    finally:
        network.close()
    return report


def _watch(root: Path, network: Network, ranks: Sequence[subprocess.Popen[bytes]], report: Spanned) -> None:
    found = _awaited(root / "draw.json", DRAWN_S, ranks)
    if found is None:
        report.violations.append(f"nothing was drawn in {DRAWN_S:.0f} s: {_said(root, 'draw')}")
        return
    report.drawn = found
    report.wire_bytes = network.sent_bytes()
    report.violations += [f"{name}: error {error}" for name, (error, _) in found.items() if not error <= MOST_ERROR]
    network.drop("two")
    lost = _awaited(root / "lost.json", LOST_S, ranks)
    if lost is None:
        report.violations.append(f"a replica without its second host went on for {LOST_S:.0f} s")
        return
    report.lost = f"the replica was lost after {lost['seconds']:.0f} s: {lost['said']}"


def _drain(root: Path, network: Network, report: Spanned) -> None:
    """Have ranks drained while they run long jobs, and then others go on with these."""
    found = []
    for role, hosts in (("drain", FIRST), ("go on", OTHER)):
        with _ranks(root, network, role, hosts) as ranks:
            said = _awaited(root / f"{role}.json", DRAWN_S, ranks)
            if said is None:
                report.violations.append(f"ranks that {role} said nothing in {DRAWN_S:.0f} s: {_said(root, role)}")
                return
            if (statuses := _ended(ranks)) != [0, 0]:
                report.violations.append(f"ranks that {role} ended with {statuses}")
            found.append(said)
    drained, went_on = found
    for name, (taken, seconds) in drained.items():
        resumed, evaluations, error = went_on[name]
        again = taken + evaluations - STEPS
        report.went_on.append(
            f"{name}: drained after {taken} of {STEPS} steps within {seconds:.3f} s, went on from step {resumed}, "
            f"{again} steps again, largest error {error:.1e}"
        )
        if not (TAKEN <= taken < STEPS and 0 < resumed <= taken and 0 <= again <= 1 and error <= MOST_ERROR):
            report.violations.append(f"what was drained did not go on as promised: {report.went_on[-1]}")


def _ended(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Return the exit statuses of ranks that have nothing left to do; None for one that goes on."""
    end = time.monotonic() + ENDED_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(0.2)
    return [rank.poll() for rank in ranks]


def _awaited(path: Path, patience_s: float, ranks: Sequence[subprocess.Popen[bytes]]) -> Any:
    """Return what rank 0 writes; None if it ends before, or writes nothing in time."""
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end or ranks[0].poll() is not None:
            return json.loads(path.read_text()) if path.exists() else None
        time.sleep(0.2)
    return json.loads(path.read_text())


@contextmanager
def _ranks(root: Path, network: Network, role: str, hosts: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have the ranks of a replica on hosts, of which the first does what its role says, until the end."""
    address = Address(network.addresses[hosts[0]], 7001, 7002, token_bytes(32))
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank, host in enumerate(hosts):
            where = [address.host, str(address.store_port), str(address.orders_port), address.key.hex()]
            command = [*network.within(host), sys.executable, "-m", __name__, role, str(root), str(rank), *where]
            with (root / f"{role}, rank {rank}.log").open("wb") as log:
                ranks.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _said(root: Path, role: str) -> str:
    return (root / f"{role}, rank 0.log").read_text()[-3000:]


def _write_models(models: Path) -> None:
    for folder in ("diffusion_models", "vae"):
        (models / folder).mkdir(parents=True)
    test_resume.write_models(models)
    save_file(random_tensors(SMALL[BACKBONE], torch.float32), models / "diffusion_models" / f"{BACKBONE}.safetensors")
    save_file(random_tensors(WanVae(8, latent_channels=16, image_channels=3), torch.float32), models / "vae" / VAE.name)


def _draws(root: Path, leader: Leader) -> None:
    """Draw, say how, and draw on until the other rank is lost."""
    together, alone = weights_of(root / "models", leader), weights_of(root / "models")
    cases = {
        "a video of one row": lambda weights: drawn(weights, [job(BACKBONE)]),
        "a video with a negative": lambda weights: drawn(weights, [job(BACKBONE, 3.0)]),
        "a video decoded": AUTOENCODED["a video decoded"],
    }
    found = {}
    for name, make in cases.items():
        before = leader.sent.sent + leader.sent.exchanged + leader.sent.gathered
        [ours], [theirs] = make(together), make(alone)
        sent = leader.sent.sent + leader.sent.exchanged + leader.sent.gathered
        found[name] = (float(relative_error(ours, theirs)), sent - before)
    _write(root / "draw.json", found)
    while True:
        began = time.monotonic()
        try:
            drawn(together, [job(BACKBONE)])
        except UnavailableError as error:
            _write(root / "lost.json", {"seconds": time.monotonic() - began, "said": str(error)})
            return


def _is_drained(root: Path, leader: Leader) -> None:
    """Run each long job until a drain is carried out; say how many steps were taken, and how long the drain took."""
    found = {}
    for name, cfg, _ in _long_runs():
        took_s = 0.0

        async def drain(runtime: EngineRuntime, stop: Callable[[], object]) -> None:
            nonlocal took_s
            while runtime.counters.evaluations < TAKEN:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await runtime.hand_over(stop)
            took_s = time.monotonic() - began

        weights = weights_of(root / "models", leader)
        part = test_resume.ran(weights, test_resume.job(cfg, STEPS), partial(_states, root, name), drain)
        found[name] = (part.evaluations, took_s)
    _write(root / "drain.json", found)
    leader.close()


def _goes_on(root: Path, leader: Leader) -> None:
    """End the long jobs; say from which step, with how many evaluations, and the error beside one process from 0."""
    alone = {
        cfg: test_resume.ran(weights_of(root / "models"), test_resume.job(cfg, STEPS), None).latents
        for cfg in ROWS.values()
    }
    found = {}
    for name, cfg, by_ranks in _long_runs():
        weights = weights_of(root / "models", leader if by_ranks else None)
        ended = test_resume.ran(weights, test_resume.job(cfg, STEPS), partial(_states, root, name))
        ours, theirs = ended.latents, alone[cfg]
        assert ours is not None
        assert theirs is not None
        error = float(relative_error(ours, theirs))
        found[name] = (ended.states.steps, ended.evaluations, error)
    _write(root / "go on.json", found)
    leader.close()


def _long_runs() -> Iterator[tuple[str, float, bool]]:
    """Yield the runs that are drained: a name, the scale of guidance, and whether ranks go on with it."""
    for rows, cfg in ROWS.items():
        for way in WAYS:
            yield f"{rows}, then {way}", cfg, way == WAYS[0]


def _states(root: Path, name: str) -> RunStateFiles:
    return JobStates(Volume({"work": root / "work"}), name).of("3", 0, "the same workflow")


def _write(path: Path, value: Any) -> None:
    """Write a file that is there only once it is whole."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(value))
    half.rename(path)


LEADS: Mapping[str, Callable[[Path, Leader], None]] = {"draw": _draws, "drain": _is_drained, "go on": _goes_on}


def main(role: str, root: str, rank: str, host: str, store_port: str, orders_port: str, key: str) -> None:
    """Be a rank."""
    torch.set_num_threads(1)
    address = Address(host, int(store_port), int(orders_port), bytes.fromhex(key))
    if rank == "0":
        LEADS[role](Path(root), lead(POOL, address))
    else:
        follow(AppConfig(models_dir=Path(root) / "models"), POOL, int(rank), address)


if __name__ == "__main__":
    main(*sys.argv[1:])
