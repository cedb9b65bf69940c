"""Ranks that each have a part of a backbone's weights draw what one process draws with all of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from torch import Tensor, nn

from serve_app.errors import RankLostError, UnavailableError
from serve_app.models.families.dit.hidream import Experts
from serve_app.models.kernels.packing import weights_of
from serve_app.models.ranks.leader import Leader
from serve_app.models.weights.needs import Needs
from serve_app.models.weights.recipes import part_files
from serve_app.models.weights.residency import Residency
from serve_app.models.weights.sharded_blocks import shard_sizes
from serve_app.recipe.layers import SparseAttention
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Rounded, Sharded
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.mixes import relative_error
from tests.unit.models.ranks.processes import drawn, run_ranks
from tests.unit.models.ranks.processes import weights_of as weights_on
from tests.unit.models.ranks.test_ranks import flat, job, write_models

SIZES = (3, pytest.param(2, marks=pytest.mark.long))
STEPS = 2
KILLED_AT = 3
"""The gathering in which another rank is killed."""
TOKENS = ("flux4", "qwen4", "wan4", "zimage", "sd35", "krea2", "vace", "yue2")
"""Transformers of which one row is drawn, whose tokens are shared too."""
ONCE = ("qwen4", "wan4", "zimage")


class Case(NamedTuple):
    """error: the largest one beside one process. gathered: bytes of weights that rank 0 sent; expected: a forward."""

    error: float
    gathered: int
    expected: int


class Found(NamedTuple):
    """What rank 0 says. device_bytes, on_device: of its weights, counted by the planner and by its tensors.

    fitted: the kinds of patches by which a backbone fits a card.
    """

    cases: dict[str, Case]
    whole_bytes: int
    device_bytes: int
    on_device: int
    strict: bool
    fitted: dict[str, tuple[type, ...]]


def cases() -> dict[str, list[SamplingRequest]]:
    half = torch.ones(1, 1, 6, 10)
    half[..., :4] = 0
    return {
        **{f"one row of {net}": [job(net)] for net in TOKENS},
        "in eight bits": [job("flux4", patch=Rounded("float8_e4m3fn"))],
        "a LoRA": [job("flux4", lora=0.7)],
        "a LoRA on eight bits": [job("flux4", lora=0.7, patch=Rounded("float8_e4m3fn"))],
        "with a negative": [job("qwen4", 3.0)],
        "rows of a UNet, fewer than ranks": [job("sample", 3.0, words=5)],
        "three rows and a mask": [job("flux4", rows=3, noise_mask=half)],
        "texts of two lengths, with and without a LoRA": [job("flux4", words=3), job("flux4", words=9, lora=0.5)],
    }


def lose(models: Path, leader: Leader) -> tuple[str, str]:
    """Return what is said of a job while whose blocks are gathered the other rank is killed, and afterwards."""
    gather, gathers = leader.group.weights.gather, count(1)
    own, parent = os.getpid(), psutil.Process().parent()
    assert parent is not None

    def killing(part: Tensor, whole: Tensor) -> Callable[[], None]:
        if next(gathers) == KILLED_AT:
            for other in parent.children():
                if other.pid != own:
                    other.kill()
        return gather(part, whole)

    weights = weights_on(models, Leader(leader.group, shards_weights=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leader.group.weights, "gather", killing)
        with pytest.raises(UnavailableError) as lost:
            drawn(weights, [job("flux4")])
    with pytest.raises(RankLostError) as again:
        leader.group.hear("forwards", 1)
    return str(lost.value), str(again.value)


def fitted(models: Path, leader: Leader) -> dict[str, tuple[type, ...]]:
    """Return the patches by which a backbone of job flux4 fits cards, as "auto" has it."""
    loader, recipe = weights_on(models).loader, job("flux4").guider.backbone

    def patches(
        budget_bytes: int, leader: Leader, recipe: Recipe = recipe, *others: Recipe, device: str = "cuda"
    ) -> tuple[type, ...]:
        residency = Residency(budget_bytes, 0)
        needs = Needs(Catalog(models), torch.device(device), loader, residency, leader, leader.size)
        return tuple(type(patch) for patch in needs.fitted(recipe, *others).patches)

    whole = Needs(Catalog(models), torch.device("cpu"), loader, Residency(0, 0)).part_bytes(
        recipe, part_files(Catalog(models), recipe)
    )
    sharing, auto = (Leader(leader.group, shards_weights=how) for how in (True, "auto"))
    return {
        "room for all": patches(2 * whole, auto),
        "room for parts": patches(int(0.99 * whole), auto),
        "no room for parts": patches(whole // 8, auto),
        "not in parts": patches(int(0.99 * whole), leader),
        "with a patch of layers": patches(int(0.99 * whole), auto, recipe.with_patch(SparseAttention("vsa", 50))),
        "all": patches(0, sharing, device="cpu"),
        "with GLIGEN": patches(0, sharing, recipe, Recipe("model_patch", "model_patches", "none"), device="cpu"),
    }


def lead(models: Path, leader: Leader) -> Found:
    """Return what becomes of each case on ranks that have weights in parts."""
    sharing = Leader(leader.group, shards_weights=True)
    together, alone = weights_on(models, sharing), weights_on(models)
    found = {}
    for name, jobs in cases().items():
        if name.endswith(ONCE):
            # The order of blocks is learnt in the first forward.
            drawn(together, jobs)
        before = leader.sent.weights
        pairs = zip(drawn(together, jobs), drawn(alone, jobs), strict=True)
        error = max(relative_error(flat(ours), flat(theirs)) for ours, theirs in pairs)
        recipe = jobs[0].guider.backbone
        _, network = alone.loader.outline(recipe, alone.needs.files(recipe)[0])
        found[name] = Case(error, leader.sent.weights - before, shard_sizes(network, None, leader.size).sent_bytes)
    recipe = job("qwen4").guider.backbone
    sharded = recipe.with_patch(Sharded())
    with together.open(sharded) as hold:
        held = together.backbone(sharded, hold).network
        shards = held.shards
        assert shards is not None
        tensors = [*weights_of(shards.resident), *shards.parts, *shards.slots]
        on_device = sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
        planned = together.needs.device_bytes(sharded, together.needs.files(sharded)[0])
    whole = alone.needs.part_bytes(recipe, alone.needs.files(recipe)[0])
    before = leader.sent.exchanged + leader.sent.gathered
    first, again = (flat(drawn(together, [job("qwen4")], strict=True)[0]) for _ in range(2))
    assert leader.sent.exchanged + leader.sent.gathered == before, "a strict job's tokens are not shared"
    return Found(found, whole, planned, on_device, torch.equal(first, again), fitted(models, leader))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("sharded") / "models"
    write_models(models)
    return models


@pytest.fixture(scope="module", params=SIZES)
def found(request: pytest.FixtureRequest, models: Path) -> Found:
    answered: Found = run_ranks(models.parent, (request.param,), lead)[request.param]
    return answered


def test_ranks_with_weights_in_parts_draw_what_one_process_draws(found: Found) -> None:
    assert found.cases.keys() == cases().keys()
    assert {name: case.error for name, case in found.cases.items() if not case.error <= 1e-5} == {}
    assert found.strict, "the same strict job twice gives other bits"


def test_all_blocks_are_gathered_in_each_forward_and_once_where_they_follow_each_other(found: Found) -> None:
    rounds = {name: case.gathered / case.expected / STEPS for name, case in found.cases.items()}
    # Of networks as small as these a block may be one layer, of which some take turns, in the first forward most.
    assert {name: many for name, many in rounds.items() if many < 1} == {}
    assert {f"one row of {net}": rounds[f"one row of {net}"] for net in ONCE} == {
        f"one row of {net}": 1 for net in ONCE
    }


def test_a_rank_holds_its_part_of_the_blocks_and_two_slots(found: Found) -> None:
    assert found.on_device == found.device_bytes
    assert found.device_bytes < found.whole_bytes * 0.85


def test_a_rank_that_is_killed_while_blocks_are_gathered_ends_the_replica_and_no_job(models: Path) -> None:
    lost, again = run_ranks(models.parent, (2,), lose)[2]
    assert lost == "the engine has closed"
    assert again.startswith("another rank of this replica is lost: ")


@pytest.mark.parametrize("found", [3], indirect=True)
def test_weights_are_in_parts_where_they_would_stream_and_all_ranks_can_compute(found: Found) -> None:
    sharded = {case for case, patches in found.fitted.items() if Sharded in patches}
    assert sharded == {"room for parts", "all"}


def test_an_expert_of_which_a_ranks_tokens_need_none_gathers_its_weights_all_the_same() -> None:
    experts = Experts(8, 4).requires_grad_(False)
    torch.nn.init.zeros_(experts.gate.weight)
    experts.gate.weight[:2] = 1.0
    x, called = torch.ones(1, 3, 8), Counter[nn.Module]()
    share = experts.gate(x).softmax(dim=-1)[..., :1]
    wanted = experts.shared_experts(x) + share * sum(expert(x) for expert in experts.experts[:2])
    for expert in experts.experts:
        expert.register_forward_pre_hook(lambda layer, _: called.update([layer]))
    torch.testing.assert_close(experts(x), wanted)
    assert list(called) == list(experts.experts)
