"""ControlNets' forwards as one call: filled up, replayed to the bit, with nothing in it that a graph cannot hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.control.control import activated
from serve_app.models.control.controlnet import UnetControlNet
from serve_app.models.control.dit_control_file import open_control
from serve_app.models.control.one_call_net import OneCallNet
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.families.unet.unet import Unet, UnetInputs
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.forward import EAGER, ROW_BUCKETS, Replays
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete, Flow
from serve_app.sampling.denoiser import trained
from serve_app.sampling.forward import Canvas
from serve_app.sampling.schedules.levels import Levels, TableLevels
from serve_app.values import Conditioning, Control
from tests.parity.dit_cases import noise, weights
from tests.parity.dit_control_cases import CASES, GUIDANCE, SIGMA, Case, Vae, asked, file
from tests.parity.figures import GOLDEN
from tests.unit.engine import card_costs
from tests.unit.engine.card import CARD, Card
from tests.unit.models.control_nets import ARCHITECTURE, adapter, backbone, control_net
from tests.unit.models.recorder import CardRecorder, FakeRecorder

CPU = torch.device("cpu")
FLOWS, TABLE = trained(Flow(1.0, 1.0))[0], TableLevels()
NET, VAE = Recipe("controlnet", "controlnet", "a"), Recipe("vae", "vae", "vae")
BACKBONES = json.loads((GOLDEN / "dit_controlled_keys.json").read_text())
OF_CONTROL = {case.control: case for case in CASES}
UNETS = {"unet": 0, "unet union": 3}
"""By name: how many kinds of hint the ControlNet tells apart."""
USUAL = ("flux_doubles", "flux_xlabs", "qwen_union")
"""Of each way to be added one; parity.test_dit_controls compares the forwards of all."""
NAMES = [*UNETS, *(pytest.param(name, marks=() if name in USUAL else pytest.mark.long) for name in OF_CONTROL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with torch.inference_mode():
        yield tmp_path_factory.mktemp("nets")


class Bench:
    """A backbone and a ControlNet, in files of their own or drawn, whose forwards are run as `replays` says."""

    def __init__(self, folder: Path, name: str, replays: Replays, card: Card | None = None) -> None:
        self.device = CPU if card is None else CARD
        self._case: Case | None = None if name in UNETS else OF_CONTROL[name]
        self.family, self.module = (ARCHITECTURE, backbone()) if self._case is None else _loaded(folder, self._case)
        net: Any = control_net(1, kinds=UNETS[name]) if self._case is None else _net(folder, self._case)
        if card is not None:
            card.settle(self.module)
            card.settle(net.network)
        net.replays = replays
        self.net: OneCallNet = net
        self.network = LoadedNetwork(name, self.family, self.module, Discrete(), replays)

    def rows(self, seed: int, count: int, controlled: Any = range(9)) -> list[Rows]:
        """Return what the backbone is asked, a row a piece; of each, whether it is under the ControlNet."""
        return [self._row(seed + i, i in controlled) for i in range(count)]

    def _row(self, seed: int, controlled: bool) -> Rows:
        options: dict[str, Any] = {}
        levels: Levels
        if self._case is None:
            hint, mask, x = noise(f"hint {seed}", (1, 48, 64, 3)).sigmoid(), None, noise(f"x {seed}", (1, 4, 6, 8))
            text, levels, sigma = noise(f"text {seed}", (1, 5, 16)), TABLE, 2.0
        else:
            told = asked(self._case)
            shift = noise(f"{seed}", (1, *told.x.shape[1:]))
            hint, mask, x, levels, sigma = told.hint, told.mask, told.x[:1] + shift, FLOWS, SIGMA
            text = noise(f"text {seed}", (1, self._case.text, told.text.shape[2]))
            options = {"pooled_output": told.pooled[:1] * seed, "guidance": GUIDANCE[seed % 2]}
        if controlled:
            options["control"] = Control(NET, hint, 0.6, vae=VAE, mask=mask)
        conds: dict[str, Conditioning] = {"positive": [(text, options)]}
        vaes: Any = {VAE: Vae(self.family.title == "Qwen-Image")}
        ((cond, told_of),) = activated(conds, {NET: self.net}, self.family, levels, vaes)["positive"]
        x = x.to(self.device)
        inputs: Any
        if isinstance(self.family, Unet):
            inputs = UnetInputs(cond.to(self.device), controls=told_of.get("control", ()))
        else:
            inputs = self.family.inputs(cond, told_of, "positive", Canvas(x, x), self.device, Discrete())
        return Rows(x, sigma, torch.full((1,), 1.0 + seed).to(self.device), inputs)


def _loaded(folder: Path, case: Case) -> tuple[BackboneFamily, Any]:
    path = folder / f"{case.net}.safetensors"
    if not path.exists():
        save_file(weights(BACKBONES[case.net]), path)
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, BackboneFamily)
    return family, module


def _net(folder: Path, case: Case) -> Any:
    path = folder / f"{case.control}.safetensors"
    save_file(file(case), path)
    module: Any = open_control(Checkpoint(path)).load(CPU, torch.float32)
    return module.control_net(path.stem, path.name)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def replayed() -> Replays:
    return Replays(FakeRecorder(), ROW_BUCKETS)


@pytest.mark.parametrize("name", NAMES)
def test_replays_of_a_controlnet_give_what_its_forward_gives_to_the_bit(folder: Path, name: str) -> None:
    ours, theirs = Bench(folder, name, replayed()), Bench(folder, name, Replays(None, ROW_BUCKETS))
    # Those under it are neighbours or not.
    for number in range(EAGER + 1):
        for controlled in ((0, 1, 2), (0, 2)):
            answers = [bench.network.answer(bench.rows(10 * number, 3, controlled)) for bench in (ours, theirs)]
            assert equal(*answers)
    counters = ours.net.replays.counters
    # The ControlNet's and the backbone's: three rows are filled up to four in both.
    assert (counters.recordings, counters.replays, counters.failures) == (2, 4 + 4, 0)
    plain = theirs.network.answer(theirs.rows(0, 3, ()))
    changed = theirs.network.answer(theirs.rows(0, 3, (0, 2)))
    assert not torch.equal(changed[0], plain[0])
    torch.testing.assert_close(changed[1], plain[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_controlnet_launches_only_its_replay_and_waits_for_nothing(folder: Path, name: str) -> None:
    card = Card()
    with card.used():
        bench = Bench(folder, name, Replays(CardRecorder(card), ROW_BUCKETS), card)
        asked_for = [bench.rows(10 * number, 3) for number in range(EAGER + 2)]
        for rows in asked_for:
            # Hints are read before.
            for row in rows:
                for control in row.inputs.controls:
                    control.read(*row.x.shape[-2:])
            before, replays = card.counts.copy(), bench.net.replays.counters.replays
            bench.network.answer(rows)
            counts = card.counts.since(before)
    assert (counts.trapped, counts.stalls) == (0, 0), counts.where
    assert (counts.kernels, counts.inside) == card_costs.REPLAYED_CONTROL_NETS[name]
    assert bench.net.replays.counters.replays - replays == 2


def of_unet(folder: Path, replays: Replays, count: int, **changes: Any) -> list[int]:
    """Return how many rows each forward of a UNet's ControlNet has for so many rows under it, in some forwards."""
    bench, seen = Bench(folder, "unet", replays), list[int]()
    net: Any = bench.net
    assert isinstance(net, UnetControlNet)
    net.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    for _ in range(EAGER + 2):
        bench.network.answer([replace(row, **changes) for row in bench.rows(1, count)])
    return seen


def test_rows_of_a_controlnet_are_padded_to_the_next_bucket(folder: Path) -> None:
    assert of_unet(folder, Replays(None, ROW_BUCKETS), 5) == [6] * (EAGER + 2)
    assert of_unet(folder, Replays(), 5) == [5] * (EAGER + 2)


def test_a_controlnet_of_strict_jobs_is_neither_padded_nor_recorded(folder: Path) -> None:
    replays = replayed()
    assert of_unet(folder, replays, 3, exclusive=True) == [3] * (EAGER + 2)
    assert replays.counters.recordings == 0


def test_an_adapter_adds_what_it_has_read_and_has_nothing_to_record() -> None:
    assert not isinstance(adapter(1), OneCallNet)
    assert adapter(1).padded_rows(3) == 3
