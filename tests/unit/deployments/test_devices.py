"""`devices_per_replica: auto` is what the planner recommends for the pool's model and the cluster's cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.deployments.devices import Cards, planned, resolved
from serve_app.errors import ServeAppError
from tests.unit.models.sample import write_sample_checkpoint

H100 = Cards(16, 8, "H100")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    write_sample_checkpoint(tmp_path / "checkpoints" / "sample.safetensors")
    return tmp_path


def config(models: Path, *pools: dict[str, Any]) -> AppConfig:
    auto = {"name": "video", "devices_per_replica": "auto", "warm": ["checkpoints/sample.safetensors"]}
    return AppConfig(models_dir=models, pools=[auto | pools[0], *pools[1:]] if pools else [auto])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pools", "cards", "most"),
    [
        ([], H100, 8),
        ([], Cards(16, 4), 4),
        ([{"spans_hosts": True}], Cards(6, 2), 6),
        ([{"max_replicas": 4, "shard_weights": "auto"}], H100, 4),
        ([{}, {"name": "gpu", "num_gpus": 1, "max_replicas": 10}], H100, 6),
        ([{}, {"name": "gpu", "num_gpus": 1, "devices_per_replica": 12}], H100, 4),
    ],
)
def test_as_many_cards_are_looked_at_as_a_host_has_and_others_leave(
    pools: list[dict[str, Any]], cards: Cards, most: int, models: Path
) -> None:
    asked = []

    def plan(model: Path, cards: Cards, most: int, shards: bool) -> dict[str, Any]:
        asked.append((model.name, most, shards))
        return {"devices": 2, "parallel": "ulysses"}

    pool = resolved(config(models, *pools), cards, plan).pools[0]
    assert asked == [("sample.safetensors", most, any("shard_weights" in pool for pool in pools))]
    assert (pool.devices_per_replica, pool.devices, pool.parallel) == (2, 2, "ulysses")


@pytest.mark.parametrize(
    ("pool", "cards"),
    [
        ({}, Cards(1, 1)),
        ({"warm": []}, H100),
        ({"warm": ["checkpoints/none.safetensors"]}, H100),
        ({"device": "cpu"}, H100),
    ],
)
def test_without_a_second_card_or_a_model_there_is_one(pool: dict[str, Any], cards: Cards, models: Path) -> None:
    def plan(*_: object) -> dict[str, Any]:
        raise AssertionError("nothing is to be planned")

    assert resolved(config(models, pool), cards, plan).pools[0].devices_per_replica == 1


def test_what_cannot_be_planned_has_one_device(models: Path) -> None:
    def plan(*_: object) -> dict[str, Any]:
        raise ServeAppError("too large")

    assert resolved(config(models), H100, plan).pools[0].devices_per_replica == 1


def test_how_forwards_are_divided_can_be_set(models: Path) -> None:
    def plan(*_: object) -> dict[str, Any]:
        return {"devices": 4, "parallel": "auto"}

    assert resolved(config(models, {"parallel": "rows"}), H100, plan).pools[0].parallel == "rows"


def test_the_planner_is_asked_in_a_process_of_its_own(models: Path) -> None:
    """A UNet's rows are two at most, so more devices would idle."""
    found = planned(models / "checkpoints" / "sample.safetensors", H100, 4, True)
    assert (found["devices"], found["by"]) == (2, "rows")
