"""How many devices are recommended, and how they divide forwards: from operations, bytes and the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch

from serve_app.models.forward_cost import ForwardCost, Kernel
from serve_app.models.ranks.planning import LINKS, REACHED, Counted, DevicesPlan, plan_devices, recommended
from serve_app.models.ranks.sharding import sharding
from serve_app.models.weights.memory_plan import PartPlan
from serve_app.models.weights.roofline import RATE, Card
from serve_app.models.weights.sharded_blocks import ShardSizes

CARD = Card("a card", 80, 1e12 / RATE, 1e12, 1e12)
RESIDENT = PartPlan(0, 0)
TOKENS = 1200


def cost(width: int = 64) -> ForwardCost:
    """Return the cost of a second's arithmetic over shards, and of gathering what they have once."""
    shards = sharding(TOKENS)
    own = torch.empty(1, shards.count(0), width, device="meta")
    shards.gather(own, 0)
    return ForwardCost(0, {Kernel(10**12 * own.shape[1] // TOKENS, 0): 1})


def plans(rows: int, heads: int | None, link: str = "nvlink") -> Mapping[int, DevicesPlan]:
    return {plan.devices: plan for plan in plan_devices(cost, heads, rows, CARD, link, RESIDENT)}


def test_rows_are_divided_before_tokens() -> None:
    found = plans(2, 24)
    assert {devices: plan.by for devices, plan in found.items()} == {
        1: "not divided",
        2: "rows",
        3: "Ulysses",
        4: "rows and Ulysses",
        6: "rows and Ulysses",
        8: "rows and Ulysses",
    }
    assert found[2].sent_bytes == 0
    assert found[4].step_s == pytest.approx(0.5, abs=0.01)
    assert found[8].speed_up == pytest.approx(8, abs=0.1)


def test_devices_that_share_no_tokens_idle_beyond_the_rows() -> None:
    found = plans(2, None)
    assert found[8].by == "rows"
    assert found[8].step_s == found[2].step_s
    assert recommended(list(found.values())).devices == 2


def test_a_slow_link_makes_fewer_devices_worth_it() -> None:
    width, wide = 2_000_000, partial(cost, 2_000_000)
    found = [plan_devices(wide, 24, 1, CARD, link, RESIDENT, (1, 2, 4)) for link in ("nvlink", "100g")]
    sent = TOKENS // 2 * width * 4
    for of_link, link in zip(found, ("nvlink", "100g"), strict=True):
        assert of_link[1].step_s - 0.5 == pytest.approx(sent / (0.8 * LINKS[link]))
    assert recommended(found[0]).devices > recommended(found[1]).devices == 1


def test_sharded_weights_that_fit_are_gathered_in_the_place_of_copies_from_the_host() -> None:
    # Half of the weights streams, which takes two seconds a row; arithmetic takes one.
    gigabyte = 10**9
    placed = PartPlan(40 * gigabyte, 20 * gigabyte, 20 * gigabyte)
    card = replace(CARD, copies_s=10 * gigabyte)
    sizes = {2: ShardSizes(30 * gigabyte, 20 * gigabyte), 4: ShardSizes(12 * gigabyte, 30 * gigabyte)}
    alone, two, four = plan_devices(cost, 24, 1, card, "pcie4", placed, (1, 2, 4), sizes.__getitem__)
    assert [plan.shards_weights for plan in (alone, two, four)] == [False, False, True]
    assert alone.step_s == 2
    assert two.step_s == pytest.approx(2, abs=1e-3)
    # The link takes longer than a quarter of the arithmetic, which is done meanwhile.
    gathered_s = 30 * gigabyte / (REACHED * LINKS["pcie4"])
    assert four.step_s == pytest.approx(gathered_s, abs=1e-3)
    assert four.sent_bytes >= 30 * gigabyte
    assert four.speed_up == pytest.approx(2 / gathered_s, rel=1e-3)
    fast = plan_devices(cost, 24, 1, card, "nvlink", placed, (4,), sizes.__getitem__)
    assert fast[0].step_s == pytest.approx(0.25, abs=1e-3)
    [resident] = plan_devices(cost, 24, 1, card, "nvlink", RESIDENT, (4,), sizes.__getitem__)
    assert not resident.shards_weights


def test_heads_that_devices_do_not_divide_are_gathered_for() -> None:
    assert plans(1, 10)[3].by == "gathered keys"
    assert plans(1, 10)[2].by == "Ulysses"


def test_what_the_first_of_several_ranks_sends_is_counted() -> None:
    ranks = Counted(4)
    tensor = torch.empty(2, 3, dtype=torch.bfloat16)
    assert ranks.all_gather(tensor, [2, 2, 2, 2], 0).shape == (8, 3)
    ranks.all_to_all([tensor] * 4, [(2, 3)] * 4)
    assert (ranks.gathered, ranks.exchanged, ranks.sent) == (36, 36, 72)
