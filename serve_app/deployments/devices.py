"""Decides `devices_per_replica: auto`: the planner in a process of its own, as who deploys needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ray

from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import ServeAppError
from serve_app.recipe.warm import warm_recipes
from serve_app.replica.files import extra_paths
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.extra_paths import directories_with

PLANNED_S = 180.0
"""How long the planner may take, on a busy machine."""
BY_NVLINK = ("A100", "H100", "H200", "GH200", "B200", "GB200")
"""Accelerator types whose cards are taken to be connected by NVLink; others by PCIe 4."""
GIB = {"A100": 80, "H100": 80, "H200": 141, "L40S": 48, "L40": 48, "L4": 24, "A10G": 24, "T4": 16}
"""Memory of a card by Ray's accelerator type."""
OTHER_GIB = 24
RAM = "1024G"
"""The host's memory that is planned with: where weights stream from does not change the number."""

_log = log.get("deployments")


@dataclass(frozen=True, slots=True)
class Cards:
    """The GPUs of a cluster. on_host: of the host with the most. kind: Ray's accelerator type of one; "" unknown."""

    count: int
    on_host: int
    kind: str = ""


Plan: TypeAlias = Callable[[Path, Cards, int, bool], dict[str, Any]]
"""From a model, cards, the most devices and whether weights may be sharded to what is recommended, as `DevicesPlan`.

Errors: ServeAppError.
"""


def cards() -> Cards:
    """Return those of the connected cluster."""
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [int(resources.get("GPU", 0)) for resources in hosts]
    kinds = (
        name.partition(":")[2] for resources in hosts for name in resources if name.startswith("accelerator_type:")
    )
    return Cards(sum(counts), max(counts, default=0), next(kinds, ""))


def resolved(config: AppConfig, there: Cards | None = None, plan: Plan | None = None) -> AppConfig:
    """Return the configuration with a number for each pool's `devices_per_replica: auto`, and how forwards are divided.

    there: by default the connected cluster's. plan: by default the planner's, in a process. What it cannot plan has one
    device, and a line in the log.
    """
    waiting = [pool for pool in config.pools if pool.devices_per_replica == "auto"]
    if not waiting:
        return config
    found = there or cards()
    taken = sum(pool.gpus * pool.devices * pool.max_replicas for pool in config.pools if pool not in waiting)
    left = max(0, found.count - round(taken)) // len(waiting)
    pools = (
        _with_devices(config, pool, found, left // pool.max_replicas, plan or planned) if pool in waiting else pool
        for pool in config.pools
    )
    return config.model_copy(update={"pools": tuple(pools)})


def planned(model: Path, cards: Cards, most: int, shards: bool) -> dict[str, Any]:
    """Return what `serve-app plan` recommends. Errors: ServeAppError."""
    gib, link = GIB.get(cards.kind, OTHER_GIB), "nvlink" if cards.kind in BY_NVLINK else "pcie4"
    asked = ["--gpu", f"{gib}G", "--ram", RAM, "--devices", str(most), "--link", link, "--json"]
    asked += ["--shard-weights"] if shards else []
    command = [sys.executable, "-P", "-m", "serve_app.cli", "plan", str(model), *asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PLANNED_S)
        found: dict[str, Any] = json.loads(done.stdout)["recommended"]
    except subprocess.TimeoutExpired:
        raise ServeAppError(f"it took more than {PLANNED_S:.0f} s") from None
    except (ValueError, KeyError):
        raise ServeAppError((done.stderr or done.stdout).strip().partition("\n")[0]) from None
    return found


def _with_devices(config: AppConfig, pool: PoolConfig, cards: Cards, left: int, plan: Plan) -> PoolConfig:
    most = min(left, 8 if pool.spans_hosts else min(8, cards.on_host))
    found: dict[str, Any] = {"devices": 1, "parallel": "auto"}
    if most > 1 and pool.device != "cpu":
        for model in _backbones(config, pool):
            try:
                found = plan(model, cards, most, bool(pool.shard_weights))
            except ServeAppError as error:
                _log.warning("pool=%s devices_per_replica is not planned for %s: %s", pool.name, model.name, error)
            else:
                break
    _log.info("pool=%s devices_per_replica: auto is %d of at most %d", pool.name, found["devices"], most)
    parallel = found["parallel"] if pool.parallel == "auto" and found["devices"] > 1 else pool.parallel
    return pool.model_copy(update={"devices_per_replica": found["devices"], "parallel": parallel})


def _backbones(config: AppConfig, pool: PoolConfig) -> Iterator[Path]:
    """Yield the files of the models that a pool loads as it starts, those that are here and hold a backbone."""
    # A model in a bucket is not fetched for this.
    catalog = Catalog(config.models_dir, directories_with(extra_paths(config)))
    for model in pool.warm:
        for recipe in warm_recipes(model):
            if recipe.part == "backbone" and recipe.name in catalog.names(recipe.folder):
                yield catalog.path(recipe.folder, recipe.name)
