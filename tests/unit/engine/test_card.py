"""The engine on an honest card: no devices mixed, results a CPU's to the bit, and what each forward costs around it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.engine import Engine
from serve_app.engine.preview import picture
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families.autoencoders.taesd import Taesd
from serve_app.models.vae import Vae
from serve_app.recipe.guidance import (
    AdaptiveProjection,
    CfgNorm,
    CfgZeroStar,
    EpsilonScaling,
    FrequencyScaling,
    Mahiro,
    NoiseNorm,
    RenormCfg,
    RescaleCfg,
    TangentialDamping,
    TemporalRescaling,
)
from serve_app.recipe.layers import DifferentialDiffusion, EasyCache
from serve_app.sampling.latents.latent_formats import SD
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.values import PerpNeg
from tests.examples import fewer
from tests.unit.engine import card_costs
from tests.unit.engine.card import CARD, Card, MixedDevicesError
from tests.unit.engine.card_draws import draw_on
from tests.unit.engine.card_runs import CardEngine, Forwards, most, on_card, taken_together, tiny, tiny_on_card
from tests.unit.engine.mixes import MAX_CELLS, RECIPE, TinyBackbone, conditioning, jobs, request

CHOOSES_STEPS = {"dpm_adaptive"}
"""Samplers whose next level follows from numbers that the host has to read, at once for all jobs of a forward."""
ONE_OF_EACH_COST = {costs: name for name, costs in card_costs.SAMPLERS.items()}.values()

UNENDED = 15
"""So many steady forwards of eight jobs come before one of them ends, or all do at once."""

MIXED = ("euler", "uni_pc", "dpmpp_2m", "dpmpp_3m_sde", "er_sde", "lms", "ipndm_v", "sa_solver")
"""Samplers whose steps are nothing alike, with as many evaluations each."""

PATCHES = (
    *(AdaptiveProjection(0.5, 5.0, -0.5), CfgNorm(1.0), CfgZeroStar(), EpsilonScaling(1.01)),
    *(FrequencyScaling(1.1, 1.2, 2), Mahiro(), NoiseNorm(0.5), RenormCfg(20.0, 1.0), RescaleCfg(0.7)),
    *(TangentialDamping(), TemporalRescaling(0.9, 1.0)),
)


@pytest.fixture(scope="module")
def card():
    return Card()


@pytest.fixture(autouse=True)
def _noise_of_a_cpu(card, monkeypatch):
    draw_on(card, monkeypatch)


@pytest.fixture(scope="module")
def engine(card):
    engine = CardEngine(card)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def on_cpu():
    engine = Engine(MAX_CELLS, HostTimeline())
    yield engine
    engine.close()


def test_the_card_refuses_what_a_gpu_would(card):
    with card.used():
        placed = torch.ones(3).to(CARD)
        with pytest.raises(MixedDevicesError):
            placed + torch.ones(3)
        with pytest.raises(MixedDevicesError):
            torch.cat([torch.ones(3), placed])


def test_the_card_counts_kernels_copies_and_what_waits(card):
    with card.used():
        before = card.counts.copy()
        x = torch.ones(3).pin_memory().to(CARD, non_blocking=True)
        y = (x[1:] * 2).view(2, 1)
        counts = card.counts.since(before)
        assert (counts.kernels, counts.copies, counts.stalls) == (1, 1, 0)
        before = card.counts.copy()
        assert float(y.sum()) == 4
        assert torch.tensor([1.0, 2.0], device=CARD).cpu().tolist() == [1, 2]
        torch.ones(3).to(CARD, non_blocking=True)
        counts = card.counts.since(before)
        assert (counts.waits, counts.to_card, counts.to_host) == (1, 2, 1)


def test_a_list_of_numbers_is_sent_to_the_card_which_the_host_waits_for(card):
    with card.used():
        before = card.counts.copy()
        x = card.place(torch.arange(6.0).view(3, 2))
        assert x[[2, 0]].cpu().tolist() == [[4, 5], [0, 1]]
        assert x[:, [1]].cpu().tolist() == [[1], [3], [5]]
        x[[0]] = 7.0
        assert x.cpu()[0].tolist() == [7, 7]
        assert card.counts.since(before).to_card == 3


def test_a_picture_of_latents_takes_one_copy_to_the_host_which_waits_for_nothing(card):
    latents = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    with card.used():
        placed = latents.to(CARD)
        for _ in range(2):
            before = card.counts.copy()
            shown = picture(placed, SD)
            counts = card.counts.since(before)
    assert (counts.copies, counts.stalls) == (1, 0)
    wanted = picture(latents, SD)
    assert shown is not None
    assert wanted is not None
    assert torch.equal(shown, wanted)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_gives_what_a_cpu_gives_at_its_cost(card, engine, on_cpu, sampler):
    backbone = on_card(card)
    forwards = Forwards(card, backbone.network.module)
    found = []
    for count in (1, 8):
        wanted = [request(sampler=sampler, steps=6, seed=seed, schedule="karras") for seed in range(count)]
        ours, theirs = taken_together(engine, backbone, wanted), taken_together(on_cpu, tiny(), wanted)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))
        steady = forwards.steady()[:UNENDED]
        found += [most(steady, lambda counts: counts.kernels), most(steady, lambda counts: counts.stalls)]
        assert not any(counts.trapped for counts in steady)
        if sampler not in CHOOSES_STEPS:
            # A table of coefficients for all jobs.
            assert most(steady, lambda counts: counts.copies) == 1
    assert tuple(found) == card_costs.SAMPLERS[sampler]


@pytest.mark.parametrize(
    "sampler",
    [name if name in ONE_OF_EACH_COST else pytest.param(name, marks=pytest.mark.long) for name in sorted(SAMPLERS)],
)
def test_of_eight_jobs_with_masks_and_pictures_of_each_step_nothing_waits_and_the_bound_holds(card, engine, sampler):
    backbone = on_card(card)
    forwards = Forwards(card, backbone.network.module)
    beside = of_one_job("a mask", 0) | of_one_job("a picture of each step", 0)
    taken_together(engine, backbone, [request(sampler=sampler, steps=4, seed=seed, **beside) for seed in range(8)])
    steady = forwards.steady()[:UNENDED]
    assert most(steady, lambda counts: counts.stalls) == (sampler in CHOOSES_STEPS)
    assert most(steady, lambda counts: counts.kernels) <= 25 + 2 * 8


def test_around_a_forward_are_at_most_25_kernels_and_two_a_job():
    for name, (alone, _, of_eight, _) in (card_costs.SAMPLERS | card_costs.BESIDE).items():
        assert alone <= 25 + 2, name
        assert of_eight <= 25 + 2 * 8, name


def test_nothing_waits_for_the_card_between_forwards_but_samplers_that_choose_their_steps_which_wait_once():
    for name, (_, alone, _, of_eight) in card_costs.SAMPLERS.items():
        assert (alone, of_eight) == ((1, 1) if name in CHOOSES_STEPS else (0, 0))
    assert not any(alone or of_eight for _, alone, _, of_eight in (card_costs.BESIDE | card_costs.NO_SUMS).values())


def test_with_adaptive_samplers_all_other_runs_advance_before_the_host_waits_for_the_card(card, engine):
    backbone = on_card(card)
    forwards, begun, waited = Forwards(card, backbone.network.module), [], []
    backbone.network.module.register_forward_pre_hook(lambda *_: begun.append(card.counts.stalls))
    told = {"after_step": lambda *_: waited.append(card.counts.stalls - begun[-1])}
    beside = [request(sampler="dpm_adaptive", seed=seed) for seed in range(4)]
    taken_together(engine, backbone, [*beside, *(request(steps=12, seed=seed, **told) for seed in range(4))])
    steady = forwards.steady()[:9]
    assert most(steady, lambda counts: counts.stalls) == 1
    assert most(steady, lambda counts: counts.kernels) <= 25 + 2 * 8
    assert waited == [0] * 12 * 4


def of_one_job(case: str, seed: int) -> dict[str, Any]:
    """Return what a job of a case has beside a plain one."""
    [(text, _)] = conditioning(1, 3)
    left = torch.zeros(1, 4, 4)
    left[..., :2] = 1
    cases: dict[str, dict[str, Any]] = {
        **{type(patch).__name__: {"backbone": RECIPE.with_patch(patch)} for patch in PATCHES},
        "DifferentialDiffusion": {
            "backbone": RECIPE.with_patch(DifferentialDiffusion(1.0)),
            "noise_mask": torch.linspace(0, 1, 16).view(1, 4, 4),
        },
        "an area": {"positive": [(text, {}), (text + 1, {"area": (2, 2, 1, 1)})]},
        "perpendicular negatives": {"rule": PerpNeg(5.0, 0.7), "beside": {"empty": conditioning(3, 3)}},
        "a mask": {"noise_mask": left[None]},
        "a picture of each step": {"after_step": lambda step, denoised, x, steps: picture(denoised, SD)},
        "a sampler of its own": {"sampler": MIXED[seed % len(MIXED)]},
        "texts under masks": {"positive": [(text, {"mask": left}), (text + 1, {"mask": 1 - left})]},
        "texts repeated": {"positive": conditioning(1, 77 * (1 + seed % 2)), "negative": conditioning(2, 77)},
        "texts padded": {"positive": conditioning(1, 3 + seed % 2)},
    }
    return cases[case]


@pytest.mark.parametrize("case", sorted(card_costs.BESIDE | card_costs.NO_SUMS))
def test_what_else_a_job_may_have_makes_no_step_wait_for_the_card(card, engine, on_cpu, case):
    backbone = on_card(card)
    forwards = Forwards(card, backbone.network.module)
    found = []
    for count in (1, 8):
        wanted = [request(steps=6, seed=seed, **of_one_job(case, seed)) for seed in range(count)]
        ours, theirs = taken_together(engine, backbone, wanted), taken_together(on_cpu, tiny(), wanted)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))
        steady = forwards.steady()
        found += [most(steady, lambda counts: counts.kernels), most(steady, lambda counts: counts.stalls)]
    assert tuple(found) == (card_costs.BESIDE | card_costs.NO_SUMS)[case]


@pytest.mark.parametrize("whole", [False, True])
def test_a_step_that_may_not_be_computed_makes_the_host_read_one_number(card, engine, on_cpu, whole):
    backbone = on_card(card)
    forwards = Forwards(card, backbone.network.module)
    wanted = [request(steps=6, backbone=RECIPE.with_patch(EasyCache(1e-9, 0.1, 0.9, whole)))]
    ours, theirs = taken_together(engine, backbone, wanted), taken_together(on_cpu, tiny(), wanted)
    assert torch.equal(ours[0].latents, theirs[0].latents)
    assert most(forwards.steady(), lambda counts: counts.stalls) == 1


def test_a_decoded_picture_takes_one_copy_to_the_host_which_waits_for_nothing(card):
    torch.manual_seed(1)
    family = Taesd(SD)
    network = family.build().eval().requires_grad_(False)
    latents = torch.randn(2, 4, 3, 5)
    wanted = (Vae(family, network).decode(latents[:1])[0] * 255).byte()
    with torch.inference_mode(), card.used():
        vae, placed = Vae(family, card.settle(network)), latents.to(CARD)
        before = card.counts.copy()
        shown = vae.picture(placed)
        counts = card.counts.since(before)
    assert (counts.copies, counts.stalls) == (1, 0)
    assert torch.equal(shown, wanted)


@fewer(5)
@given(st.lists(jobs(), min_size=1, max_size=5))
def test_any_mix_gives_what_a_cpu_gives_to_the_bit_and_nothing_waits(card, engine, on_cpu, mix):
    wanted = [job.request for job in mix]
    begun = []
    backbone = TinyBackbone(before=lambda count: begun.append(card.counts.copy()))
    ours = taken_together(engine, tiny_on_card(card, backbone), wanted)
    theirs = taken_together(on_cpu, TinyBackbone(), wanted)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))
    if not CHOOSES_STEPS & {asked.sampler.name for asked in wanted}:
        assert not any(later.since(earlier).stalls for earlier, later in pairwise(begun[2:]))
