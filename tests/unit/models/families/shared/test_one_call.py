"""Transformers' forwards as one call: filled up, replayed to the bit, with nothing in it that a graph cannot hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.models.control.control import ActiveControl, ControlNet, Hint, RowIndex, Spread
from serve_app.models.families.dit.anima import IDS
from serve_app.models.families.dit.qwen_image21 import QwenImage21
from serve_app.models.families.dit.sd3 import BLOCKS
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.families.video.wan import Wan, Wan22
from serve_app.models.forward import EAGER, ROW_BUCKETS, Replays
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.guidance import SkippedBlocks
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.values import ClipVisionOutput, Control
from tests.parity.dit_cases import POOLED_WIDTH, TEXT_WIDTH, drawn, noise
from tests.unit.engine import card_costs
from tests.unit.engine.card import CARD, Card
from tests.unit.models.families.test_transformers import TINY
from tests.unit.models.recorder import CardRecorder, FakeRecorder

CPU = torch.device("cpu")
SEEN_WIDTH = 40
WAITS = "hidream"
"""The transformer whose forward makes the host wait, which is neither filled up nor recorded."""
FAMILIES: dict[str, OneCall] = {
    net: family for net, family in TINY.items() if isinstance(family, OneCall) and net != WAITS
}
FAMILIES["qwen21"] = QwenImage21(64, 2, 2, TEXT_WIDTH)
FAMILIES["wan"] = Wan(128, 2, 192, TEXT_WIDTH, 36, SEEN_WIDTH, reference_channels=16)
FAMILIES["wan_vace"] = Wan(128, 2, 192, TEXT_WIDTH, vace=1, vace_channels=96)
FAMILIES["wan22"] = Wan22(128, 2, 192, TEXT_WIDTH, 48)

NETS = sorted(FAMILIES)
AXES = {
    **dict.fromkeys(("flux2", "flux2_klein", "ideogram4", "ernie_image"), (128,)),
    **dict.fromkeys(("auraflow", "pixart", "pixart_alpha"), (4,)),
    **dict.fromkeys(("krea2", "qwen", "qwen_2511", "anima"), (16, 1)),
    "qwen_layered": (16, 2),
    "qwen21": (64,),
    **dict.fromkeys(("wan", "wan_vace"), (16, 2)),
    "wan22": (48, 2),
}
"""The first axes of latents, after the batch, where they are not (16,)."""
METHODS = {
    "flux": "index",
    "flux2": "index_timestep_zero",
    "krea2": "index_timestep_zero",
    "qwen": "negative_index",
    "qwen_2511": "index_timestep_zero",
    "omnigen2": "index",
    "qwen21": "",
}
"""How references are placed, of the networks that are shown such here."""
BY_LENGTH = ("sd3", "sd35", "auraflow", "qwen21", "ernie_image")
"""Networks whose rows share a forward with texts of their length only."""
SKIPS = ("sd3", "sd35", "flux", "flux2", "qwen", "chroma", "auraflow", "wan", "wan_vace", "wan22")


@cache
def module(net: str) -> Any:
    network = FAMILIES[net].build().eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.copy_(drawn(name, parameter.shape))
    return network


def row(net: str, seed: int, text: int = 5, device: torch.device = CPU, layers: tuple[Any, ...] = ()) -> Rows:
    """Return what a network is asked for one row, with all that it may be told."""
    first = AXES.get(net, (16,))
    x = noise(f"x {seed}", (1, *first, 6, 8)).to(device)
    options: dict[str, Any] = {"pooled_output": noise(f"pooled {seed}", (1, POOLED_WIDTH)), "guidance": 1.0 + seed % 5}
    if net in METHODS:
        shown = [noise(f"shown {seed} {i}", (1, *first, 4, 2 + 2 * i)) for i in range(2)]
        options |= {"reference_latents": shown, "reference_latents_method": METHODS[net]}
    if net == "anima":
        options[IDS] = torch.arange(3 + text)[None] + seed
    if net in ("flux_depth", "flux_fill"):
        options |= {"concat_latent_image": x.to(CPU) / 2, "concat_mask": torch.ones(1, 48, 64)}
    if net == "wan":
        options["reference_latents"] = [noise(f"shown {seed}", (1, 16, 1, 6, 8))]
        options["clip_vision_output"] = ClipVisionOutput(x, noise(f"seen {seed}", (1, 4, SEEN_WIDTH)), x)
    if net == "wan_vace":
        options["vace_frames"], options["vace_strength"] = [noise(f"vace {seed}", (1, 32, 2, 6, 8))], [seed % 5 / 2]
    cond = noise(f"text {seed}", (1, text, TEXT_WIDTH))
    mask = noise(f"mask {seed}", (1, 1, 2, 6, 8)).abs() if net == "wan22" else None
    inputs = FAMILIES[net].inputs(cond, options, "positive", Canvas(x, x, mask), device, Discrete())
    level = 0.1 + 0.01 * (seed % 90)
    return Rows(x, level, torch.full((1,), level).to(device), inputs, layers=layers)


def networks(net: str, recorder: Any) -> tuple[LoadedNetwork, LoadedNetwork]:
    """Return a network whose forwards are replayed, and one whose are not."""
    family = FAMILIES[net]
    return (
        LoadedNetwork(net, family, module(net), Discrete(), Replays(recorder, ROW_BUCKETS)),
        LoadedNetwork(net, family, module(net), Discrete(), Replays(None, ROW_BUCKETS)),
    )


def mixed(net: str, seed: int) -> list[Rows]:
    """Return rows that differ in all that rows of a forward may; three, so that one is filled up."""
    texts = (5, 5, 5) if net in BY_LENGTH else (5, 9, 7)
    skipped = (SkippedBlocks((1,), (0,)),) if net in SKIPS else ()
    return [row(net, seed + i, text, layers=skipped if i == 1 else ()) for i, text in enumerate(texts)]


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("net", NETS)
def test_replays_give_what_the_forward_gives_to_the_bit(net: str) -> None:
    replayed, eager = networks(net, FakeRecorder())
    answers = []
    for number in range(EAGER + 3):
        asked = mixed(net, 10 * number)
        answers.append(replayed.answer(asked))
        assert equal(answers[-1], eager.answer(asked))
        assert [len(answer) for answer in answers[-1]] == [1, 1, 1]
    counters = replayed.replays.counters
    assert (counters.recordings, counters.replays, counters.failures) == (1, 3, 0)
    assert not torch.equal(answers[-1][0], answers[-2][0])


@torch.inference_mode()
@pytest.mark.parametrize("net", NETS)
def test_within_a_bucket_the_bits_of_a_row_do_not_depend_on_its_neighbours(net: str) -> None:
    network = networks(net, None)[0]
    alone = network.answer([row(net, number) for number in (1, 2, 3, 4)])[0]
    for others in ([5, 6, 7], [6, 5], [7, 8]):
        assert torch.equal(network.answer([row(net, number) for number in (1, *others)])[0], alone), others


class Doubling(ControlNet):
    """A ControlNet of SD 3 that adds the backbone's own tokens to the rows that it acts on."""

    adds_to = (Spread(BLOCKS, range(1), 2),)

    def check(self, hint: Hint, backbone: Any) -> None:
        pass

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        return [hint.image]

    def residuals(self, call: Any, index: RowIndex, read: Sequence[Tensor], exclusive: bool) -> Sequence[Tensor]:
        return [call.patches[index] * read[0]]


@torch.inference_mode()
def test_what_controlnets_add_is_replayed_for_the_rows_that_they_act_on() -> None:
    replayed, eager = networks("sd3", FakeRecorder())
    control = Control(Recipe("controlnet", "controlnet", "a"), torch.ones(1, 1, 1), 0.7)
    for number in range(EAGER + 2):
        acting = ActiveControl(Doubling("a", "a"), control, Hint(torch.ones(1, 1, 1) * number), 1.0, 0.0)
        rows = [row("sd3", number), row("sd3", number + 1)]
        rows[1] = replace(rows[1], inputs=replace(rows[1].inputs, controls=(acting,)))
        made = replayed.answer(rows)
        assert equal(made, eager.answer(rows))
        assert torch.equal(made[0], eager.answer([row("sd3", number)] * 2)[0])
    assert replayed.replays.counters.replays == 2
    idle = replace(rows[1].inputs, controls=(replace(acting, above=0.0),))
    replayed.answer([rows[0], replace(rows[1], inputs=idle)])
    assert replayed.replays.counters.replays == 2


@torch.inference_mode()
def test_rows_of_a_stream_may_be_of_several_sizes() -> None:
    """Each is answered in its own size, from a forward that is replayed for the same sizes in the same order."""
    replayed, eager = networks("zimage", FakeRecorder())
    for number in range(EAGER + 2):
        rows = []
        for i, size in enumerate(((6, 8), (4, 12))):
            x, one = noise(f"{number} {i}", (1, 16, *size)), row("zimage", number + i)
            rows.append(Rows(x, one.sigma, one.timestep, one.inputs))
        made = replayed.answer(rows)
        assert [answer.shape[-2:] for answer in made] == [(6, 8), (4, 12)]
        assert equal(made, eager.answer(rows))
    assert replayed.replays.counters.replays == 2


@torch.inference_mode()
@pytest.mark.parametrize("net", NETS)
def test_nothing_in_a_recorded_call_comes_from_the_host_or_makes_it_wait(net: str) -> None:
    card = Card()
    with card.used():
        on_card = card.settle(FAMILIES[net].build().eval().requires_grad_(False))
        recorder = CardRecorder(card)
        network = LoadedNetwork(net, FAMILIES[net], on_card, Discrete(), Replays(recorder, ROW_BUCKETS))
        for number in range(EAGER + 3):
            texts = (5, 5, 5) if net in BY_LENGTH else (5, 9, 7)
            asked = [row(net, number + i, text, CARD) for i, text in enumerate(texts)]
            before = card.counts.copy()
            network.answer(asked)
            counts = card.counts.since(before)
    assert network.replays.counters.replays == 3
    assert (counts.trapped, counts.stalls) == (0, 0), counts.where
    assert (counts.kernels, counts.inside) == card_costs.REPLAYED_TRANSFORMERS[net]


def test_the_one_transformer_whose_host_has_to_wait_in_between_is_known() -> None:
    assert set(TINY) - set(FAMILIES) == {WAITS}
    waits = TINY[WAITS]
    assert isinstance(waits, OneCall)
    assert not waits.padded
    assert waits.variant([]) is None


@torch.inference_mode()
@pytest.mark.parametrize("net", [net for net in NETS if net.startswith("sd3")])
def test_positions_are_read_before_later_layers_weights_may_take_their_place(net: str) -> None:
    """Weights that stream share two slots, and the table of positions belongs to a layer that is not called."""
    family: Any = FAMILIES[net]
    network, rows = copy.deepcopy(module(net)), [row(net, 1)]
    expected = family.run(network, rows, family.call_inputs(network, rows))

    def overwrite(*_: Any) -> None:
        network.pos_embed.pos_embed.fill_(torch.nan)

    network.time_text_embed.text_embedder.register_forward_pre_hook(overwrite)
    assert torch.equal(family.run(network, rows, family.call_inputs(network, rows)), expected)
