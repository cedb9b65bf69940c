"""A real GPU against the CPU, and what may be claimed of it. Skipped where there is none; `pytest -m gpu` runs these.

What `tests/unit/engine/test_card` counts on an honest card, a real one proves here.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from itertools import pairwise
from math import log2

import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.memory import CardMemory
from serve_app.engine.timeline import HostTimeline, timeline_of
from serve_app.engine.trajectory import Trajectory
from serve_app.models import forward
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.forward import EAGER, ROW_BUCKETS, Replays
from serve_app.models.kernels import comfy_kitchen
from serve_app.models.kernels.cuda_graphs import GraphRecorder
from serve_app.models.kernels.rotary import normed_and_rotated, rotated, turns_of
from serve_app.models.network import LoadedNetwork
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.weights.upload import Ring, uploading
from serve_app.recipe.training import Discrete
from serve_app.replica.assemble import FP8_CAPABILITY
from serve_app.sampling.forward import denoise
from serve_app.sampling.noise import brownian_noise, gaussian_noise
from serve_app.sampling.samplers.samplers import SAMPLERS
from tests.gpu import rehearsal
from tests.gpu.models import FULL, SMALL, random_weights, streamed
from tests.philox import CardNoise
from tests.unit.engine.mixes import relative_error
from tests.unit.engine.test_engine import together

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")]

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
REHEARSED = rehearsal.LEDGER in os.environ
"""Whether the card only claims to be one."""
SD = SMALL[0]
BUSY = 64 if REHEARSED else 4096
"""Rows of a matrix whose products keep a card busy."""
DRAWN_ON_THE_CARD = {name for name, spec in SAMPLERS.items() if spec.noise is gaussian_noise or name.endswith("_gpu")}
"""Samplers whose noise a card draws, which is another than a CPU's."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(2**20, timeline_of(CARD))
    yield engine
    engine.close()
    # The next has a stream of its own, and recordings of the networks that it shares with this one.
    torch.cuda.synchronize()


@pytest.fixture(scope="module")
def networks() -> tuple[RecipeBackbone, RecipeBackbone]:
    """The same small network on the CPU and on the card, both in float32."""
    with torch.no_grad():
        on_card = random_weights(SD.family, CARD, torch.float32)
        on_cpu = copy.deepcopy(on_card).to(CPU)
    return SD.of(on_cpu), SD.of(on_card)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_gives_on_a_card_what_it_gives_on_a_cpu(engine, networks, sampler):
    on_cpu, on_card = networks
    wanted = [SD.request(seed, sampler, steps=6) for seed in range(3)]
    ours = [future.result() for future in together(engine, [Trajectory(on_card, r) for r in wanted])]
    assert all(torch.isfinite(one.latents).all() for one in ours)
    if sampler in DRAWN_ON_THE_CARD:
        again = [future.result() for future in together(engine, [Trajectory(on_card, r) for r in wanted])]
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, again, strict=True))
        return
    beside = Engine(2**20, HostTimeline())
    theirs = [future.result() for future in together(beside, [Trajectory(on_cpu, r) for r in wanted])]
    beside.close()
    assert all(relative_error(a.latents, b.latents) <= 1e-3 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.skipif(REHEARSED, reason="it draws as a CPU does")
@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_a_card_draws_what_the_published_algorithm_says(seed):
    generator, expected = torch.Generator(CARD).manual_seed(seed), CardNoise(seed)
    for shape in ((1, 4, 64, 64), (2, 4, 8, 8), (5,)):
        drawn = torch.randn(shape, generator=generator, device=CARD).cpu()
        assert torch.allclose(drawn, expected.randn(shape), atol=1e-5)


@pytest.mark.parametrize("on_device", [False, True])
def test_noise_is_the_same_drawn_ahead_while_the_card_is_busy_and_graphs_are_captured(on_device):
    levels = torch.linspace(14.6, 0.1, 20)
    pairs = list(pairwise(levels.tolist()))
    x, busy, recorder = (
        torch.zeros(1, 4, 128, 128, device=CARD),
        torch.randn(BUSY, BUSY, device=CARD),
        GraphRecorder(CARD),
    )
    plain, ahead = (brownian_noise(x, levels, 7, on_device=on_device) for _ in range(2))
    wanted = [plain(*pair).clone() for pair in pairs]
    ahead.expect(pairs)
    found = []
    for pair in pairs:
        recorder.record(lambda: [torch.sin(busy)]).replay()
        # A copy alone is kept: what was drawn goes while the card has yet to read it.
        found.append(ahead(*pair) * 1)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"dpm_adaptive"}))
def test_no_step_makes_the_host_wait_for_the_card(engine, networks, sampler):
    """torch itself raises then; what waits for a mark is no read of the card."""
    _, on_card = networks
    module, forwards = on_card.network.module, []

    def enters(*_):
        forwards.append(1)
        torch.cuda.set_sync_debug_mode("error" if 2 < len(forwards) < 8 else "default")

    hook = module.register_forward_pre_hook(enters)
    try:
        futures = together(engine, [Trajectory(on_card, SD.request(seed, sampler, steps=12)) for seed in range(8)])
        for future in futures:
            future.result()
    finally:
        hook.remove()
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_rows_in_the_same_places_give_the_same_bits():
    with torch.inference_mode():
        backbone = SD.backbone(CARD, torch.float16)
        pieces = SD.pieces(backbone, 16)
        first, second = denoise(pieces), denoise(pieces)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(REHEARSED, reason="of a small network jobs take more memory than rows")
def test_a_forward_that_does_not_fit_is_learned_once():
    """Of full-size Stable Diffusion 1.x a row takes about 65 MiB beside its 1.6 GiB of weights."""
    model = FULL[0]
    with torch.no_grad():
        backbone = model.backbone(CARD, torch.float16)
    total = torch.cuda.get_device_properties(CARD).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.2 * 2**30) / total)
    engine = Engine(2**20, timeline_of(CARD))
    try:
        futures = together(engine, [Trajectory(backbone, model.request(seed, steps=6)) for seed in range(32)])
        assert all(torch.isfinite(future.result().latents).all() for future in futures)
        assert 0 < engine.counters.failures <= log2(64)
    finally:
        engine.close()
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_arrive_whole_while_the_card_is_busy(dtype):
    source = [torch.randn(3000, 5000), torch.randn(4000, 3000).half().t(), torch.randn(7)]
    busy = torch.randn(BUSY, BUSY, device=CARD)
    ring = Ring(CARD)
    for _ in range(20):
        busy = busy @ busy / 64
    with uploading(CARD, ring) as send:
        sent = [send(tensor, dtype) for tensor in source]
    for ours, wanted in zip(sent, source, strict=True):
        assert torch.equal(ours.cpu(), wanted.to(dtype))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_network_that_streams_gives_the_same_bits_and_the_host_waits_for_nothing(share):
    with torch.inference_mode():
        whole = SD.backbone(CARD, torch.float16)
        wanted = denoise(SD.pieces(whole, 4))
        module = copy.deepcopy(whole.network.module).to(CPU)
        before = torch.cuda.memory_allocated(CARD)
        streaming = streamed(module, CARD, torch.float16, share)
        # Every tensor begins a piece of memory of its own.
        rounding = 512 * len(list(module.parameters()))
        assert torch.cuda.memory_allocated(CARD) - before <= streaming.nbytes + rounding
        pieces = SD.pieces(RecipeBackbone(LoadedNetwork(SD.name, SD.family, module, Discrete(), streamed=True)), 4)
        for debug in ("default", "error", "error"):
            torch.cuda.set_sync_debug_mode(debug)
            try:
                made = denoise(pieces)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
        streaming.leave()
        streaming.allocate_slots()
        assert all(torch.equal(a, b) for a, b in zip(denoise(pieces), wanted, strict=True))


@pytest.fixture(params=[torch.float16, torch.float32], ids=["fp16", "fp32"])
def replayed(request) -> tuple[RecipeBackbone, RecipeBackbone, Replays]:
    """A small network whose forwards are replayed, the same whose are not, and the replays."""
    module = random_weights(SD.family, CARD, request.param)
    replays = Replays(GraphRecorder(CARD), ROW_BUCKETS)
    eager = LoadedNetwork(SD.name, SD.family, module, Discrete(), Replays(None, ROW_BUCKETS))
    return (
        RecipeBackbone(LoadedNetwork(SD.name, SD.family, module, Discrete(), replays)),
        RecipeBackbone(eager),
        replays,
    )


def test_graphs_are_captured_after_two_forwards_and_give_the_same_bits(replayed):
    ours, theirs, replays = replayed
    with torch.inference_mode():
        for rows in (1, 2, 3, 7, 16):
            before = replays.counters.replays
            for _ in range(EAGER + 3):
                made, wanted = denoise(SD.pieces(ours, rows)), denoise(SD.pieces(theirs, rows))
                assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True)), rows
            assert replays.counters.replays - before == 3
    assert (replays.counters.recordings, replays.counters.failures) == (5, 0)


def test_within_a_bucket_the_bits_of_a_row_do_not_depend_on_its_neighbours(replayed):
    ours, *_ = replayed
    with torch.inference_mode():
        pieces = SD.pieces(ours, 16)
        alone = denoise(pieces[:13])
        for _ in range(EAGER + 2):
            others = denoise([pieces[0], *pieces[15:2:-1]])
            assert torch.equal(others[0], alone[0])


def test_the_pool_of_graphs_is_counted_and_comes_back(replayed):
    ours, _, replays = replayed
    memory = CardMemory(CARD, 2**30, replays)
    with torch.inference_mode():
        for _ in range(EAGER + 1):
            denoise(SD.pieces(ours, 8))
    assert memory.replay_bytes() > 0
    assert memory.allocated_bytes() == torch.cuda.memory_allocated(CARD) + memory.replay_bytes()
    assert memory.empty_with_replays()
    assert memory.replay_bytes() == 0
    assert not memory.empty_with_replays()


def test_graphs_that_are_least_recently_used_go(replayed, monkeypatch):
    monkeypatch.setattr(forward, "SHAPES_KEPT", 2)
    ours, _, replays = replayed
    with torch.inference_mode():
        for rows in (1, 2, 4, 1):
            for _ in range(EAGER + 1):
                denoise(SD.pieces(ours, rows))
    assert replays.counters.recordings == 4


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each output"])
def test_a_product_of_eight_bits_is_that_of_the_rounded_numbers(by_row: bool) -> None:
    if torch.cuda.get_device_capability(CARD) < FP8_CAPABILITY:
        pytest.skip("this card has no products of eight bits")
    source = torch.Generator().manual_seed(1)
    stored = torch.randn(256, 512, generator=source).to(torch.float8_e4m3fn)
    scale = torch.rand(256, 1, generator=source) + 0.5 if by_row else torch.tensor([0.25])
    x, bias = torch.randn(64, 512, generator=source), torch.randn(256, generator=source)
    weight = EightBitWeight(stored, scale, inputs=torch.tensor(0.5), may=True).sent(lambda tensor: tensor.to(CARD))
    made = weight.multiplied(x.to(CARD, torch.bfloat16), bias.to(CARD, torch.bfloat16)).float().cpu()
    rounded = (x.bfloat16().float() / 0.5).to(torch.float8_e4m3fn).float() * 0.5
    assert relative_error(made, rounded @ (stored.float() * scale).T + bias) < 1e-2


def test_the_fused_kernels_give_what_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    if not comfy_kitchen.has_kernels(CARD):
        pytest.skip("comfy_kitchen is not installed, or not for this build of torch")
    with CARD, torch.no_grad():
        q, k = torch.randn(2, 2, 96, 4, 64, dtype=torch.bfloat16)
        norms = torch.nn.RMSNorm(64, eps=1e-6), torch.nn.RMSNorm(64, eps=1e-6)
        angles = torch.rand(96, 32)

    def heads(kind: str) -> torch.Tensor:
        return q if kind == "q" else k

    def computed() -> list[torch.Tensor]:
        turns = turns_of(angles)
        made = [*rotated(q, k, turns), *normed_and_rotated(heads, norms, turns)]
        return [tensor.float().cpu() for tensor in made]

    fused = computed()
    monkeypatch.setattr(comfy_kitchen, "DEVICES", frozenset())
    for one, other in zip(fused, computed(), strict=True):
        assert relative_error(one, other) < 1e-2
