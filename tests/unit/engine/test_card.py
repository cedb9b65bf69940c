"""The engine on an honest card: no devices mixed, results a CPU's to the bit, and what each forward costs around it.

`COSTS` is what all samplers cost; `test_card_runtime` has what else a run may be of.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.engine.engine import Engine
from serve_app.sampling.samplers import SAMPLERS
from tests.unit.engine.card import CARD, Card, MixedDevicesError
from tests.unit.engine.card_runs import CardEngine, Forwards, most, on_card, taken_together, tiny, tiny_on_card
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, jobs, request

COSTS = {
    "ddim": (37, 0, 275, 0),
    "ddpm": (40, 1, 299, 8),
    "deis": (44, 0, 331, 0),
    "dpm_2": (37, 0, 275, 0),
    "dpm_2_ancestral": (40, 1, 299, 8),
    "dpm_adaptive": (54, 1, 411, 15),
    "dpm_fast": (41, 0, 307, 0),
    "dpmpp_2m": (40, 0, 299, 0),
    "dpmpp_2m_cfg_pp": (40, 0, 299, 0),
    "dpmpp_2m_sde": (42, 1, 315, 8),
    "dpmpp_2m_sde_gpu": (42, 1, 315, 8),
    "dpmpp_2m_sde_heun": (42, 1, 315, 8),
    "dpmpp_2m_sde_heun_gpu": (42, 1, 315, 8),
    "dpmpp_2s_ancestral": (40, 1, 299, 8),
    "dpmpp_2s_ancestral_cfg_pp": (42, 1, 315, 8),
    "dpmpp_3m_sde": (51, 1, 387, 8),
    "dpmpp_3m_sde_gpu": (51, 1, 387, 8),
    "dpmpp_sde": (42, 1, 315, 8),
    "dpmpp_sde_gpu": (42, 1, 315, 8),
    "er_sde": (47, 1, 355, 8),
    "euler": (37, 0, 275, 0),
    "euler_ancestral": (40, 1, 299, 8),
    "euler_ancestral_cfg_pp": (40, 1, 299, 8),
    "euler_cfg_pp": (37, 0, 275, 0),
    "exp_heun_2_x0": (45, 1, 339, 8),
    "exp_heun_2_x0_sde": (45, 1, 339, 8),
    "gradient_estimation": (41, 0, 307, 0),
    "gradient_estimation_cfg_pp": (41, 0, 307, 0),
    "heun": (39, 0, 291, 0),
    "heunpp2": (41, 0, 307, 0),
    "ipndm": (46, 0, 347, 0),
    "ipndm_v": (46, 0, 347, 0),
    "lcm": (37, 1, 275, 8),
    "lms": (46, 0, 347, 0),
    "res_multistep": (41, 0, 307, 0),
    "res_multistep_ancestral": (43, 1, 323, 8),
    "res_multistep_ancestral_cfg_pp": (43, 1, 323, 8),
    "res_multistep_cfg_pp": (41, 0, 307, 0),
    "sa_solver": (55, 1, 419, 8),
    "sa_solver_pece": (45, 1, 339, 8),
    "seeds_2": (45, 1, 339, 8),
    "seeds_3": (45, 1, 339, 8),
    "uni_pc": (56, 0, 427, 0),
    "uni_pc_bh2": (56, 0, 427, 0),
}
"""By sampler: kernels around a forward of one job, and what waits for the card; the same of eight jobs."""


@pytest.fixture(scope="module")
def card():
    return Card()


@pytest.fixture(scope="module")
def engine(card):
    engine = CardEngine(card)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def on_cpu():
    engine = Engine(MAX_CELLS)
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


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_gives_what_a_cpu_gives_at_its_cost(card, engine, on_cpu, sampler):
    backbone = on_card(card)
    forwards = Forwards(card, backbone.network.module)
    found = []
    for count in (1, 8):
        wanted = [request(sampler=sampler, steps=6, seed=seed, schedule="karras") for seed in range(count)]
        ours, theirs = taken_together(engine, backbone, wanted), taken_together(on_cpu, tiny(), wanted)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))
        steady = forwards.steady()
        found += [most(steady, lambda counts: counts.kernels), most(steady, lambda counts: counts.stalls)]
        assert not any(counts.trapped for counts in steady)
    assert tuple(found) == COSTS[sampler]


@settings(max_examples=15)
@given(st.lists(jobs(), min_size=1, max_size=5))
def test_any_mix_gives_what_a_cpu_gives_to_the_bit(card, engine, on_cpu, mix):
    wanted = [job.request for job in mix]
    ours = taken_together(engine, tiny_on_card(card, TinyBackbone()), wanted)
    theirs = taken_together(on_cpu, TinyBackbone(), wanted)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, theirs, strict=True))
