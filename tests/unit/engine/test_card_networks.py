"""A UNet on the honest card, with ControlNets and LoRAs: what a forward costs, and that nothing waits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.forward import EAGER, ROW_BUCKETS, Replays
from serve_app.models.lora import layers
from serve_app.models.lora.adapters import LowRank, WeightDelta
from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import LoraSet
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.guidance import NormalizedAttention, PerturbedAttention, SelfAttentionGuidance
from serve_app.recipe.layers import DeepShrink, FreeU, HyperTile, TokenMerging
from serve_app.recipe.patch import Patch
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.request import SamplingRequest
from serve_app.values import Control
from tests.unit.engine import card_costs
from tests.unit.engine.card import Card
from tests.unit.engine.card_runs import CardEngine, Forwards, most, ran_together
from tests.unit.engine.mixes import request
from tests.unit.models.control_nets import ARCHITECTURE, backbone, control_net
from tests.unit.models.recorder import CardRecorder, FakeRecorder

LAYERS: dict[str, Patch] = {
    "FreeU": FreeU(1.3, 1.4, 0.9, 0.2),
    "tiles": HyperTile(4, 2, 1, False),
    "merged tokens": TokenMerging(0.5),
    "smaller features": DeepShrink(1, 2.0, 0.0, 0.9, True, "bislerp", "area"),
    "perturbed attention": PerturbedAttention(2.0),
    "attention to what is seen": SelfAttentionGuidance(0.5, 2.0),
    "attention led from the negative's": NormalizedAttention(5.0, 0.25, 1.5),
}
"""What a recipe has layers do otherwise; only the first of it is recorded."""
NET = Recipe("controlnet", "controlnet", "a")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Runs:
    """Jobs of one network. made: the backbone of each job, and what it is asked.

    replays: how its forwards are run, and those of its ControlNet. None: as they are, and the card counts them apart.
    """

    def __init__(self, card: Card, replays: Replays | None = None) -> None:
        self._card = card
        net: Any = control_net(1)
        with torch.no_grad(), card.used():
            self.module = card.settle(backbone())
            card.settle(net.network)
        if replays is None:
            for network in (self.module, net.network):
                card.watch(network)
        else:
            net.replays = replays
        self.plain = RecipeBackbone(LoadedNetwork("unet", ARCHITECTURE, self.module, Discrete(), replays))
        self._nets = {NET: net}

    def made(self, case: str) -> Callable[[int], tuple[RecipeBackbone, SamplingRequest]]:
        sets = [self.loras(seed) for seed in range({"one set of LoRAs": 1, "eight sets of LoRAs": 8}.get(case, 0))]

        def job(seed: int) -> tuple[RecipeBackbone, SamplingRequest]:
            own = self.plain
            if sets:
                own = RecipeBackbone(own.network, loras=sets[seed % len(sets)])
            options = {"control": Control(NET, torch.sigmoid(normal(seed, 1, 64, 64, 3)), 0.7)}
            texts = {role: normal(seed + shift, 1, 7, 16) for role, shift in (("positive", 0), ("negative", 50))}
            conds = {role: [(text, options if case == "a ControlNet" else {})] for role, text in texts.items()}
            patches = (LAYERS[case],) if case in LAYERS else ()
            recipe = Recipe("backbone", "checkpoints", "unet", patches)
            activated = own.activated(conds, self._nets)
            return own, request(backbone=recipe, shape=(1, 4, 8, 8), steps=6, seed=seed, **activated)

        return job

    def loras(self, seed: int) -> LoraSet:
        shapes = {name: tensor.shape for name, tensor in self.module.named_parameters() if ".attn" in name}
        changed = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        adapters = {
            name: LowRank(normal(seed, out, 2), normal(seed + 1, 2, inside), 0.7, None)
            for name, (out, inside) in changed.items()
        }
        return LoraSet(f"set {seed}", self.module, [(adapters, 0.5)])


@pytest.mark.parametrize("case", card_costs.UNETS)
def test_nothing_waits_for_the_card_around_or_in_a_unet(case):
    card = Card()
    engine, runs = CardEngine(card), Runs(card)
    forwards = Forwards(card, runs.module)
    made, found = runs.made(case), []
    for count in (1, 8):
        ran_together(engine, [made(seed) for seed in range(count)])
        steady = forwards.steady()
        assert not any(counts.stalls or counts.trapped for counts in steady)
        found += [most(steady, lambda counts: counts.kernels), most(steady, lambda counts: counts.inside)]
    engine.close()
    assert tuple(found) == card_costs.UNETS[case]


@pytest.mark.parametrize("case", LAYERS)
def test_whatever_layers_do_otherwise_nothing_waits(case):
    card = Card()
    engine, runs = CardEngine(card), Runs(card)
    forwards = Forwards(card, runs.module)
    made = runs.made(case)
    ran_together(engine, [made(seed) for seed in range(2)])
    engine.close()
    for counts in forwards.steady():
        assert not counts.stalls, counts.where


def test_around_networks_are_at_most_25_kernels_and_two_a_job():
    assert all(alone <= 25 + 2 and of_eight <= 25 + 2 * 8 for alone, _, of_eight, _ in card_costs.UNETS.values())


@pytest.mark.parametrize("case", card_costs.REPLAYED_UNETS)
def test_a_call_that_is_recorded_has_nothing_in_it_that_waits_and_its_inputs_cost_a_few_kernels(case):
    card = Card()
    replays = Replays(CardRecorder(card), ROW_BUCKETS)
    engine, runs = CardEngine(card), Runs(card, replays)
    forwards = Forwards(card, runs.module)
    made, found = runs.made(case), []
    for count in (1, 8):
        ran_together(engine, [made(seed) for seed in range(count)])
        steady = forwards.steady()
        assert not any(counts.stalls or counts.trapped for counts in steady)
        found.append(most(steady, lambda counts: counts.kernels))
    engine.close()
    *kernels, networks = card_costs.REPLAYED_UNETS[case]
    assert found == kernels
    assert (replays.counters.recordings, replays.counters.replays) == (2 * networks, 8 * networks)
    assert max(found) <= 25 + 2


class Answers:
    """A UNet's network with sets of LoRAs on the card, replayed, and as it is. sets: of changes of low rank."""

    def __init__(self) -> None:
        self.card, self.recorder = Card(), FakeRecorder()
        self.replays = Replays(self.recorder, ROW_BUCKETS)
        runs = Runs(self.card, self.replays)
        self._module, self._networks = (
            runs.module,
            [
                runs.plain.network,
                LoadedNetwork("unet", ARCHITECTURE, runs.module, Discrete(), Replays(None, ROW_BUCKETS)),
            ],
        )
        self.sets = [runs.loras(seed) for seed in range(3)]
        name = next(name for name in self.sets[0].layers)
        weight: Any = runs.module.get_submodule(name).weight
        self.whole = LoraSet("whole", runs.module, [({f"{name}.weight": WeightDelta(torch.ones(weight.shape))}, 0.1)])

    def __call__(self, seed: int, *sets: LoraSet | None, steps_left: int = 0) -> tuple[int, int]:
        """Answer a row for each set, which is to be the same to the bit; return recordings and replays."""
        with torch.inference_mode(), self.card.used():
            rows = [
                Rows(
                    self.card.place(normal(seed + i, 1, 4, 8, 8)),
                    1.0,
                    self.card.place(torch.full((1,), 10.0 * seed)),
                    UnetInputs(self.card.place(normal(seed + i + 100, 1, 7, 16))),
                    loras,
                    steps_left=steps_left,
                )
                for i, loras in enumerate(sets)
            ]
            ours, theirs = (network.answer(rows) for network in self._networks)
        held: list[tuple[Any, Any]] = list(zip(ours, theirs, strict=True))
        assert all(torch.equal(a.held, b.held) for a, b in held)
        return self.replays.counters.recordings, self.replays.counters.replays


def test_another_set_of_loras_is_a_copy_and_not_another_recording() -> None:
    answers = Answers()
    one, two, three = answers.sets
    for seed in range(EAGER + 1):
        found = answers(seed, one, two, None)
    assert found == (1, 1)
    for number, sets in enumerate(((two, two, one), (three, None, two), (None, one, three), (one, two, None)), 2):
        assert answers(number, *sets) == (1, number)


def test_recordings_go_with_the_slots_that_they_read() -> None:
    answers = Answers()
    for seed in range(EAGER + 1):
        answers(seed, *answers.sets[:2])
    assert len(answers.recorder.recorded) == 1
    answers.sets[0].unmerge()
    gc.collect()
    assert len(answers.recorder.recorded) == 0
    assert answers(7, *answers.sets[:2]) == (1, 1)


def test_a_set_that_is_long_alone_is_merged_and_costs_no_more_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MERGED_ON_GPU_AFTER", 4)
    answers = Answers()
    one, two, _ = answers.sets

    def kernels(*sets: LoraSet | None) -> int:
        """Return what forwards of these sets cost once they are recorded."""
        for seed in range(2 * EAGER + 2):
            answers(seed, *sets)
        before = answers.card.counts.copy()
        answers(9, *sets)
        return answers.card.counts.since(before).kernels

    none, alone = kernels(None, None), kernels(one, one)
    merged = one.merged_layers()
    assert merged is not None
    for name, layer in merged.items():
        own, pair = one.layers[name].base, one.layers[name].pair()
        down, up, weight, theirs = (held_by(t) for t in (pair.down, pair.up, own.weight, layer.weight))
        torch.testing.assert_close(theirs, weight + up @ down, rtol=1e-6, atol=1e-6)
    # The same job, were it to be repeated to the bit, would not depend on what ran before.
    with torch.inference_mode(), answers.card.used():
        with with_loras([(2, one)], merging=False) as reads:
            assert one.slots is not None
            assert reads == (one.slots.first,)
        with with_loras([(2, one)]) as reads:
            assert reads == (one.merged_weight(merged),)
    seen = ref(one.merged_weight(merged))
    del merged, layer, reads, own, theirs
    beside = kernels(one, two)
    assert alone == none < beside
    # Among others it is merged no more, and what was recorded of that has gone.
    gc.collect()
    assert one.merged_layers() is None
    assert seen() is None
    assert answers.replays.counters.recordings == 3
    assert len(answers.recorder.recorded) == 2


@pytest.mark.parametrize(("steps", "merges"), [(layers.STEPS_FOR_MERGING, True), (layers.STEPS_FOR_MERGING - 1, False)])
def test_a_set_alone_in_a_run_of_many_steps_is_merged_before_its_first_forward(steps: int, merges: bool) -> None:
    card = Card()
    engine, runs = CardEngine(card), Runs(card)
    loras, before = runs.loras(0), card.counts.copy()
    own = RecipeBackbone(runs.plain.network, loras=loras)
    conds = {role: [(normal(seed, 1, 7, 16), {})] for seed, role in enumerate(("positive", "negative"))}
    ran_together(engine, [(own, request(shape=(1, 4, 8, 8), steps=steps, seed=1, **conds))])
    engine.close()
    assert (loras.merged_layers() is not None) is merges
    assert (loras.slots is None) is merges
    assert card.counts.since(before).waits == 0


def test_a_set_whose_forwards_are_recorded_is_merged_only_for_a_longer_run() -> None:
    answers = Answers()
    one, two, _ = answers.sets
    answers(1, one, two, steps_left=layers.STEPS_FOR_RECORDING)
    for steps_left, merges in ((layers.STEPS_FOR_RECORDING - 1, False), (layers.STEPS_FOR_RECORDING, True)):
        answers(2, one, one, steps_left=steps_left)
        assert (one.merged_layers() is not None) is merges


def held_by(tensor: Any) -> Tensor:
    """Return the numbers of a tensor of the card."""
    numbers: Tensor = tensor.held
    return numbers


def test_changes_that_are_not_of_low_rank_are_not_recorded() -> None:
    answers = Answers()
    for seed in range(EAGER + 2):
        assert answers(seed, answers.sets[0], answers.whole) == (0, 0)
