"""A replica whose two ranks are on two hosts: it draws what one process draws, and is lost once their link is cut.

`python -m tests.hosts --ranks` runs it. Each rank is a process in a host's network, without Ray: this program itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes
from typing import Any

import torch
from safetensors.torch import save_file

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import UnavailableError
from serve_app.models.families import WanVae
from serve_app.models.ranks.meeting import Address
from serve_app.replica.ranks import follow, lead
from tests.hosts.network import Network
from tests.unit.engine.mixes import relative_error
from tests.unit.models.ranks.processes import drawn, weights_of
from tests.unit.models.ranks.test_ranks import AUTOENCODED, SMALL, VAE, job
from tests.unit.models.sample import random_tensors

HOSTS = ("one", "two")
BACKBONE = "wan22"
FORWARD_S = 10.0
"""How long one rank waits for another within a forward."""
DRAWN_S = 240.0
LOST_S = 90.0
MOST_ERROR = 1e-5
POOL = PoolConfig(
    name="video", device="cpu", devices_per_replica=2, spans_hosts=True, threads=1, forward_time_s=FORWARD_S
)


@dataclass
class Spanned:
    """drawn: what rank 0 says of each case, (error, bytes it sent). violations: promises that broke."""

    drawn: dict[str, Any] = field(default_factory=dict)
    wire_bytes: int = 0
    lost: str = ""
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        for name, (error, sent) in self.drawn.items():
            yield f"{name}: largest error {error:.1e} beside one process, rank 0 sent {sent:,} bytes"
        yield f"{self.wire_bytes:,} bytes went between the hosts, headers of packets included"
        yield f"after the link was cut: {self.lost}"
        yield from (f"VIOLATION: {violation}" for violation in self.violations)
        yield f"{len(self.violations)} violations"


def spanned(root: Path) -> Spanned:
    """Run ranks on two hosts, then cut one off."""
    _write_models(root / "models")
    network, report = Network(HOSTS), Spanned()
    try:
        address = Address(network.addresses["one"], 7001, 7002, token_bytes(32))
        with ExitStack() as stack:
            ranks = [
                stack.enter_context(_rank([*network.within(host)], root, rank, address))
                for rank, host in enumerate(HOSTS)
            ]
            stack.callback(lambda: [rank.kill() for rank in ranks])
            _watch(root, network, ranks, report)
    finally:
        network.close()
    return report


def _watch(root: Path, network: Network, ranks: Sequence[subprocess.Popen[bytes]], report: Spanned) -> None:
    found = _awaited(root / "drawn.json", DRAWN_S, ranks)
    if found is None:
        report.violations.append(f"nothing was drawn in {DRAWN_S:.0f} s: {(root / 'rank 0.log').read_text()[-3000:]}")
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


def _awaited(path: Path, patience_s: float, ranks: Sequence[subprocess.Popen[bytes]]) -> Any:
    """Return what rank 0 writes; None if it ends before, or writes nothing in time."""
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end or ranks[0].poll() is not None:
            return json.loads(path.read_text()) if path.exists() else None
        time.sleep(0.2)
    return json.loads(path.read_text())


def _rank(within: Sequence[str], root: Path, rank: int, address: Address) -> subprocess.Popen[bytes]:
    where = [str(address.store_port), str(address.orders_port), address.key.hex()]
    command = [*within, sys.executable, "-m", __name__, str(root), str(rank), address.host, *where]
    with (root / f"rank {rank}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _write_models(models: Path) -> None:
    for folder in ("diffusion_models", "vae"):
        (models / folder).mkdir(parents=True)
    save_file(random_tensors(SMALL[BACKBONE], torch.float32), models / "diffusion_models" / f"{BACKBONE}.safetensors")
    save_file(random_tensors(WanVae(8, latent_channels=16, image_channels=3), torch.float32), models / "vae" / VAE.name)


def _lead(root: Path, address: Address) -> None:
    """Be rank 0: draw, say how, and draw on until the other rank is lost."""
    leader = lead(POOL, address)
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
    _write(root / "drawn.json", found)
    while True:
        began = time.monotonic()
        try:
            drawn(together, [job(BACKBONE)])
        except UnavailableError as error:
            _write(root / "lost.json", {"seconds": time.monotonic() - began, "said": str(error)})
            return


def _write(path: Path, value: Any) -> None:
    """Write a file that is there only once it is whole."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(value))
    half.rename(path)


def main(root: str, rank: str, host: str, store_port: str, orders_port: str, key: str) -> None:
    """Be a rank."""
    torch.set_num_threads(1)
    address = Address(host, int(store_port), int(orders_port), bytes.fromhex(key))
    if rank == "0":
        _lead(Path(root), address)
    else:
        follow(AppConfig(models_dir=Path(root) / "models"), POOL, int(rank), address)


if __name__ == "__main__":
    main(*sys.argv[1:])
