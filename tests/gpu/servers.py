"""Whole servers with the pools of the shipped configurations, over HTTP: that they start on a card, and draw there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from bench.client import Client
from bench.servers import Contender, running
from bench.workflows import txt2img
from tests.gpu.bench import Bench
from tests.gpu.results import Figure
from tests.unit.models.sample import write_sample_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = ("local", "gpu")
WITHOUT_A_CARD = ("local",)
"""Those that a rehearsal starts: processes of its servers see no card."""
NAME = "tiny"
JOBS = 8
GRAPHS = re.compile(r'^ray_serve_app_forward_graphs_total\{[^}]*event="replayed"[^}]*\} (\S+)$', re.MULTILINE)
COUNTED_S = 30.0
"""Within what time Ray reports what replicas count."""


def of_servers(bench: Bench) -> Iterator[Figure]:
    """Measure how long a server takes to start, its first image and eight at once, and how many forwards it replayed.

    Errors: RuntimeError for one that does not start or whose job fails, with its last lines.
    """
    with TemporaryDirectory() as directory:
        models = Path(directory)
        write_sample_checkpoint(models / "checkpoints" / f"{NAME}.safetensors")
        for name in WITHOUT_A_CARD if bench.small else SHIPPED:
            shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
            pools = shipped["applications"][0]["args"]["pools"]
            with running(Contender(f"serve-app with {name}.yaml", models, pools=pools)) as server:
                yield Figure(f"{name}.yaml, starts", server.started_s, "s")
                yield Figure(f"{name}.yaml, first image", server.client.run([txt2img(NAME)]), "s")
                jobs = [txt2img(NAME, mixed=True) for _ in range(JOBS)]
                yield Figure(f"{name}.yaml, {JOBS} images", server.client.run(jobs), "s")
                replayed = _replayed(server.client, 0.0 if bench.small else COUNTED_S)
                yield Figure(f"{name}.yaml, forwards replayed", replayed, "", "more than none on a card")


def _replayed(client: Client, within_s: float) -> float:
    """Return how many forwards a server says it has replayed. within_s: for how long it may say none."""
    until = time.monotonic() + within_s
    while True:
        count = sum(map(float, GRAPHS.findall(client.get("/metrics"))))
        if count or time.monotonic() > until:
            return count
        time.sleep(1.0)
