"""Models that do not fit the honest card, from their files: what they make, with LoRAs too, and what takes turns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.sampling_run import SamplingRun
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import DeviceMemoryError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control.control import ControlNet
from serve_app.models.families import ClipText, Sd
from serve_app.models.families.dit.hidream import STATES
from serve_app.models.forward import EAGER, Replays
from serve_app.models.network import LoadedNetwork
from serve_app.models.weights import streaming
from serve_app.models.weights.host_weights import HostWeights
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.pinned_memory import PinnedMemory
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.streaming import Streaming, nbytes_of
from serve_app.models.weights.upload import Ring
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.recipe.training import Discrete
from serve_app.recipe.weights import Lora, Streams
from serve_app.sampling.forward import Canvas, Piece, denoise
from serve_app.store.models.catalog import Catalog
from serve_app.values import Control
from tests.parity import control_files
from tests.parity.dit_cases import LLAMA_STATES, TEXT_WIDTH, noise, weights
from tests.parity.text_cases import CASES, tensors
from tests.unit.engine.card import CARD, Card, OnCard
from tests.unit.engine.card_order import FORWARDS, SIDE, CardCopies, CardTimeline, copies_of
from tests.unit.engine.mixes import request
from tests.unit.engine.test_card_loading import held
from tests.unit.engine.test_transformers import KEYS, NETS, SHAPES, WITHOUT_IMAGES, text
from tests.unit.models.recorder import FakeRecorder
from tests.unit.models.sample import random_tensors

CHUNK = 2**16
SHARE = 0.75
"""How much of all that weights may take one that streams does where nothing is needed beside it."""
AMPLE = 10**9
BUDGET = 400_000
"""Too little for any of these networks."""
LARGE = {"auraflow"}
"""Whose smallest network takes long here."""


class Models:
    """Weights on the honest card. budget_bytes: of which those may take so much that stream."""

    def __init__(
        self, root: Path, budget_bytes: int, host_bytes: int = AMPLE, dtype: str = "fp32", forwards_bytes: int = 0
    ) -> None:
        self.card = Card()
        room: Any = {"budget_bytes": budget_bytes, "forwards_bytes": forwards_bytes}
        self.weights = Weights(Catalog(root), CARD, dtype=dtype, vae_dtype="fp32", **room)
        loader: Any = self.weights.loader
        loader.ring = Ring(CARD, CardCopies(self.card.order), CHUNK)
        self.weights.host = HostWeights(CARD, host_bytes, copies_of(self.card.order), CHUNK, loader.ring)

    def made(self, work: Callable[[Models], list[Tensor]]) -> list[Tensor]:
        """Return what is made on the card."""
        with torch.inference_mode():
            with self.card.used():
                made = work(self)
            return [(held(tensor) if isinstance(tensor, OnCard) else tensor).clone() for tensor in made]

    @property
    def streaming(self) -> list[Streaming]:
        """Of what is held."""
        held_now = self.weights.residency.resident.values()
        found = (resident.loaded.streaming for resident in held_now if resident.base is None)
        return [streaming for streaming in found if isinstance(streaming, Streaming)]


def rows(recipe: Recipe, shape: tuple[int, ...], conditioning: Any) -> Callable[[Models], list[Tensor]]:
    """Return the work of a forward of a backbone; it is done twice."""

    def work(models: Models) -> list[Tensor]:
        backbone = models.weights.backbone(recipe)
        x = models.card.place(noise("x", shape))
        [(cond, options)] = conditioning
        piece = Piece(backbone, x, 0.7, backbone.inputs(cond, options, "positive", Canvas(x, x)))
        return denoise([piece]) + denoise([piece])

    return work


@pytest.mark.parametrize("net", sorted({*NETS, *WITHOUT_IMAGES} - LARGE))
def test_a_transformer_that_streams_gives_the_same_bits(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = weights(KEYS[net])
    # Whole transformer blocks stream at once, as those of published sizes.
    monkeypatch.setattr(streaming, "BLOCKS", BUDGET / (0.6 * nbytes_of([*tensors.values()])))
    (tmp_path / "diffusion_models").mkdir()
    save_file(tensors, tmp_path / "diffusion_models" / f"{net}.safetensors")
    options: dict[str, Any] = {"guidance": 3.5}
    if net == "hidream":
        options[STATES] = noise("states", (1, LLAMA_STATES, 4, TEXT_WIDTH))
    recipe = Recipe("backbone", "diffusion_models", f"{net}.safetensors")
    work = rows(recipe, (1, *SHAPES.get(net, (16,)), 4, 6), text(1, 5, **options))
    whole, models = Models(tmp_path, AMPLE), Models(tmp_path, BUDGET)
    wanted, ours = whole.made(work), models.made(work)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    [streams] = models.streaming
    # Each block at most once a forward, and one for the next; some do not run.
    assert 0 < models.weights.host.streamed.blocks <= 2 * len(streams.blocks) + 1
    assert models.card.order.early == []


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("case", ["chroma", "z_image"])
def test_a_text_encoder_that_streams_gives_the_same_bits(tmp_path: Path, case: str, dtype: str) -> None:
    (tmp_path / "text_encoders").mkdir()
    [(name, family)] = CASES[case].files.items()
    save_file(tensors(family), tmp_path / "text_encoders" / f"{name}.safetensors")
    recipe = Recipe("clip", "text_encoders", f"{name}.safetensors", (LoadedAs(CASES[case].type),))

    def work(models: Models) -> list[Tensor]:
        texts = models.weights.clip(recipe).encode(["a fox", "a house by the sea"])
        return [cond for made in texts for cond, _ in made]

    models = Models(tmp_path, 200_000, dtype=dtype)
    wanted, ours = Models(tmp_path, AMPLE, dtype=dtype).made(work), models.made(work)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert len(models.streaming) == 1
    assert models.weights.counters.streamed_bytes > 0


UNET = Sd((32,), (1,), (1,), 1, 64)
TEXT = ClipText(2, 64, 256, 77)
QUERY = "input_blocks_1_1_transformer_blocks_0_attn1_to_q"
PLACES = ("input_blocks.1.1", "middle_block.1", "output_blocks.1.1")
CHANGED = [
    f"diffusion_model.{place}.transformer_blocks.0.attn2.to_{name}.diff" for place in PLACES for name in ("k", "v")
]
BUDGET = 600_000
"""Of a backbone's million bytes."""
BACKBONE, CLIP = (Recipe(part, "checkpoints", "a.safetensors") for part in ("backbone", "clip"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "loras"):
        (root / folder).mkdir()
    tensors = random_tensors(UNET) | random_tensors(TEXT)
    for seed, name in enumerate("ab"):
        save_file({key: tensor + seed / 8 for key, tensor in tensors.items()}, root / f"checkpoints/{name}.safetensors")
    pair = {"lora_up": noise("up", (32, 2)) / 4, "lora_down": noise("down", (2, 32)) / 4}
    thin = {f"lora_unet_{QUERY}.{kind}.weight": tensor for kind, tensor in pair.items()}
    pair = {"lora_up": noise("te up", (256, 2)) / 4, "lora_down": noise("te down", (2, 64)) / 4}
    thin |= {f"lora_te_text_model_encoder_layers_1_mlp_fc1.{kind}.weight": tensor for kind, tensor in pair.items()}
    save_file(thin, root / "loras" / "thin.safetensors")
    save_file({name: noise(name, (32, 64)) / 4 for name in CHANGED}, root / "loras" / "whole.safetensors")
    return root


UNET_TEXT: Any = [(noise("cond", (1, 7, 64)), {})]


@pytest.mark.parametrize("loras", [(), ("thin",), ("whole",), ("thin", "whole")])
def test_loras_on_a_backbone_that_streams_give_the_same_bits(root: Path, loras: tuple[str, ...]) -> None:
    recipe = BACKBONE
    for name in loras:
        recipe = recipe.with_patch(Lora(f"{name}.safetensors", 0.8))
    work = rows(recipe, (2, 4, 8, 8), UNET_TEXT)
    models = Models(root, BUDGET)
    wanted, ours = Models(root, AMPLE).made(work), models.made(work)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert len(models.streaming) == 1
    if loras:
        plain = Models(root, AMPLE).made(rows(BACKBONE, (2, 4, 8, 8), UNET_TEXT))
        assert not torch.equal(wanted[0], plain[0])


def test_a_text_encoder_that_streams_has_its_loras_in_it(root: Path) -> None:
    recipe = CLIP.with_patch(Lora("thin.safetensors", 0.8))

    def work(models: Models) -> list[Tensor]:
        return [cond for made in models.weights.clip(recipe).encode(["a fox"]) for cond, _ in made]

    models = Models(root, 300_000)
    need = models.weights.needs.of(recipe)
    assert list(need.nbytes.values()) == [SHARE * 300_000]
    wanted, ours = Models(root, AMPLE).made(work), models.made(work)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert [*models.weights.residency.resident] == [*need.nbytes]
    assert len(models.streaming) == 1


def test_what_streams_takes_its_share_of_the_room_and_no_more(root: Path) -> None:
    models = Models(root, BUDGET)
    need = models.weights.needs.of(BACKBONE)
    assert list(need.nbytes.values()) == [SHARE * BUDGET]
    models.made(rows(BACKBONE, (1, 4, 8, 8), UNET_TEXT))
    assert 0.5 * BUDGET < models.weights.resident_bytes <= SHARE * BUDGET


def test_two_models_that_stream_take_turns_without_reading_their_files_again(root: Path) -> None:
    models = Models(root, BUDGET)
    opened: list[str] = []
    loader: Any = models.weights.loader
    load = loader.load

    def counted(recipe: Recipe, *others: Any) -> Loaded:
        opened.append(recipe.name)
        loaded: Loaded = load(recipe, *others)
        return loaded

    loader.load = counted
    recipes = [Recipe("backbone", "checkpoints", f"{name}.safetensors") for name in "ab"]
    works = [rows(recipe, (1, 4, 8, 8), UNET_TEXT) for recipe in recipes]
    first = [models.made(work)[0] for work in works]
    for work, wanted in [*zip(works, first, strict=True)]:
        assert torch.equal(models.made(work)[0], wanted)
        assert models.weights.resident_bytes <= BUDGET
        assert len(models.weights.resident()) == 1
    assert opened == ["a.safetensors", "b.safetensors"]
    assert models.weights.counters.host_hits == 2
    assert models.card.order.early == []


@pytest.mark.parametrize("host_bytes", [0, 2**18])
def test_what_the_host_has_no_pinned_memory_for_is_read_from_its_file_and_gives_the_same_bits(
    root: Path, host_bytes: int
) -> None:
    recipe = BACKBONE.with_patch(Lora("whole.safetensors", 0.8))
    work = rows(recipe, (1, 4, 8, 8), UNET_TEXT)
    wanted = Models(root, AMPLE).made(work)
    models = Models(root, BUDGET, host_bytes)
    assert all(torch.equal(a, b) for a, b in zip(models.made(work), wanted, strict=True))
    [streaming] = models.streaming
    assert 0 < len(streaming.pageable) <= len(streaming.blocks) - bool(host_bytes)
    assert models.weights.counters.host_bytes <= host_bytes
    assert models.card.order.early == []
    with torch.inference_mode(), models.card.used():
        models.weights.release()
    # With some memory it is kept, and what is not there is read again.
    assert (streaming.pageable == {}) == (host_bytes == 0)
    assert streaming.staging.buffers == []
    assert models.weights.counters.host_bytes <= host_bytes
    assert all(torch.equal(a, b) for a, b in zip(models.made(work), wanted, strict=True))


def test_a_host_that_pins_nothing_reads_blocks_from_their_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PinnedMemory) -> None:
        raise RuntimeError("CUDA error: out of memory")

    work = rows(BACKBONE, (1, 4, 8, 8), UNET_TEXT)
    wanted, models = Models(root, AMPLE).made(work), Models(root, BUDGET)
    monkeypatch.setattr(PinnedMemory, "allocate", refuse)
    assert all(torch.equal(a, b) for a, b in zip(models.made(work), wanted, strict=True))
    assert models.weights.counters.host_bytes == 0


def test_of_what_was_evicted_as_much_goes_as_what_streams_needs(root: Path) -> None:
    models = Models(root, BUDGET, 1_300_000)
    for name in "ab":
        models.made(rows(Recipe("backbone", "checkpoints", f"{name}.safetensors"), (1, 4, 8, 8), UNET_TEXT))
        assert models.weights.counters.host_bytes <= 1_300_000
    assert models.weights.counters.host_hits == 0


def test_a_forward_that_streams_waits_for_no_text_that_does(root: Path) -> None:
    models = Models(root, 4 * 10**7)
    side_stream = CardTimeline(models.card.order).side_stream
    assert side_stream is not None
    clip = Recipe("clip", "checkpoints", "a.safetensors", (Streams(0.25),))
    with torch.inference_mode(), models.card.used():
        encoder = models.weights.clip(clip)
        work = rows(BACKBONE.with_patch(Streams(0.01)), (1, 4, 8, 8), UNET_TEXT)
        for _ in range(2):
            with side_stream.enqueueing():
                encoder.encode(["a fox"])
            work(models)
    assert len(models.streaming) == 2
    order = models.card.order
    assert order.awaited(FORWARDS, SIDE) == 0
    assert order.awaited(SIDE, FORWARDS) > 0
    assert order.early == []


CONTROLLED = Recipe("backbone", "checkpoints", "unet_sd1.safetensors")
NET = Recipe("controlnet", "controlnet", "sd1.safetensors")


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("controls")
    for folder, name in (("checkpoints", "unet_sd1"), ("controlnet", "sd1")):
        (root / folder).mkdir()
        control_files.write(root / folder, name)
    return root


def under_control(models: Models) -> list[Tensor]:
    """Return what a backbone makes under a ControlNet, both of which have their room first."""
    recipe = models.weights.needs.fitted(CONTROLLED, NET)
    hold = models.weights.hold(models.weights.needs.of(recipe, NET))
    assert hold is not None
    with hold:
        models.weights.load(hold)
        return controlled(models, models.weights.backbone(recipe, hold), models.weights.control_net(NET, hold))


def controlled(models: Models, backbone: RecipeBackbone, net: ControlNet) -> list[Tensor]:
    """Return what a backbone makes under a ControlNet."""
    x = models.card.place(noise("x", (1, 4, 8, 8)))
    control = Control(NET, noise("hint", (1, 64, 64, 3)).sigmoid(), 0.7)
    conds = {"positive": [(noise("cond", (1, 7, 48)), {"control": control})]}
    [(cond, options)] = backbone.activated(conds, {NET: net})["positive"]
    piece = Piece(backbone, x, 0.7, backbone.inputs(cond, options, "positive", Canvas(x, x)))
    return denoise([piece]) + denoise([piece])


def test_a_backbone_that_does_not_fit_with_its_controlnet_streams_with_equal_bits(
    controls: Path,
) -> None:
    whole = Models(controls, AMPLE)
    wanted = whole.made(under_control)
    assert whole.streaming == []
    own, net = (sum(whole.weights.needs.of(recipe).nbytes.values()) for recipe in (CONTROLLED, NET))
    models = Models(controls, own + net // 2)
    assert all(torch.equal(a, b) for a, b in zip(models.made(under_control), wanted, strict=True))
    [streaming] = models.streaming
    assert models.weights.resident_bytes == streaming.nbytes + net <= own + net // 2
    assert models.card.order.early == []
    # A job without it has the whole, once what streams has left.
    assert models.weights.needs.fitted(CONTROLLED) == CONTROLLED
    with torch.inference_mode(), models.card.used():
        assert not models.weights.backbone(CONTROLLED).network.streamed
    assert models.weights.resident_bytes <= own + net // 2


@pytest.mark.parametrize(
    ("others", "share"), [(0.3, None), (0.5, 0.5), (0.6, 0.375), (0.95, 0.125)], ids=lambda part: str(part)
)
def test_what_streams_has_the_eighths_that_the_others_leave(
    controls: Path, monkeypatch: pytest.MonkeyPatch, others: float, share: float | None
) -> None:
    models = Models(controls, AMPLE)
    monkeypatch.setattr(
        models.weights.loader, "nbytes", lambda recipe, _: round(AMPLE * {NET: others}.get(recipe, 0.7))
    )
    wanted = CONTROLLED if share is None else CONTROLLED.with_patch(Streams(share))
    assert models.weights.needs.fitted(CONTROLLED, NET) == wanted


def test_a_text_encoder_is_expected_as_jobs_load_it(root: Path) -> None:
    """It has its LoRAs beside it, and streams by its own size."""
    recipe = CLIP.with_patch(Lora("thin.safetensors", 0.8))
    [own, loras] = Models(root, AMPLE).weights.needs.of(recipe).nbytes.values()
    needs = Models(root, own + loras // 2).weights.needs
    assert needs.expected(recipe) == needs.of(recipe)


async def test_a_backbone_streams_where_its_jobs_forwards_need_the_room_and_gives_the_same_bits(root: Path) -> None:
    whole = Models(root, AMPLE)
    own = sum(whole.weights.needs.of(BACKBONE).nbytes.values())
    models = Models(root, own, forwards_bytes=own // 4)
    cond = {"positive": UNET_TEXT, "negative": UNET_TEXT}
    engine = Engine(1024, HostTimeline())

    def needed(side: int) -> Need:
        job = request(shape=(2, 4, side, side), backbone=BACKBONE, **cond)
        return SamplingRun(engine, models.weights, job, lambda done, steps: None).requirements()

    small, large = needed(8), needed(16)
    engine.close()
    assert small.recipes == (BACKBONE,)
    assert 0 < small.activation_bytes <= own // 4 < large.activation_bytes
    [recipe] = large.recipes
    assert sum(large.nbytes.values()) + large.activation_bytes <= own + own // 4
    # Counted for one row: a forward is split down to that.
    a_cell = small.activation_bytes / 8**2
    assert large.activation_bytes == pytest.approx(a_cell * 16**2, rel=0.2)
    with_hold = models.weights.hold(large)
    assert with_hold is not None
    # While its forwards run, nobody else has the room that they need, though the budget has it.
    other = Need({"another": own - sum(large.nbytes.values())})
    assert not models.weights.fits(other)
    with_hold.close()
    assert models.weights.fits(other)
    work, streams = (rows(one, (2, 4, 16, 16), UNET_TEXT) for one in (BACKBONE, recipe))
    assert all(torch.equal(a, b) for a, b in zip(models.made(streams), whole.made(work), strict=True))
    assert len(models.streaming) == 1


async def test_a_job_whose_forward_has_no_room_is_refused_before_it_runs_with_what_would_fit(root: Path) -> None:
    models = Models(root, BUDGET, forwards_bytes=BUDGET)
    job = request(shape=(1, 4, 64, 64), backbone=BACKBONE, positive=UNET_TEXT, negative=UNET_TEXT)
    engine = Engine(1024, HostTimeline())
    run = SamplingRun(engine, models.weights, job, lambda done, steps: None)
    with pytest.raises(DeviceMemoryError, match=r"^512×512: .* what would fit: (\d+)×\1 or a card of 8 GB$") as refused:
        run.requirements()
    engine.close()
    side = int(re.findall(r"(\d+)×", str(refused.value))[-1])
    fits = replace(job, latents=torch.zeros(1, 4, side // 8, side // 8))
    assert SamplingRun(engine, models.weights, fits, lambda done, steps: None).requirements().recipes


PARTS: tuple[Part, ...] = ("backbone", "clip")


@pytest.mark.parametrize("part", PARTS)
def test_on_a_cpu_nothing_streams(root: Path, part: Part) -> None:
    weights = Weights(Catalog(root), torch.device("cpu"), dtype="fp32", vae_dtype="fp32", budget_bytes=1000)
    recipe = Recipe(part, "checkpoints", "a.safetensors")
    getattr(weights, part)(recipe)
    [resident] = weights.residency.resident.values()
    assert resident.loaded.streaming is None


@pytest.mark.parametrize("streamed", [False, True])
def test_a_network_that_streams_is_not_recorded(root: Path, streamed: bool) -> None:
    replays = Replays(FakeRecorder())
    module = UNET.build().eval().requires_grad_(False)
    backbone = RecipeBackbone(LoadedNetwork("unet", UNET, module, Discrete(), replays, streamed))
    x = noise("x", (1, 4, 8, 8))
    [(cond, options)] = UNET_TEXT
    with torch.inference_mode():
        piece = Piece(backbone, x, 0.7, backbone.inputs(cond, options, "positive", Canvas(x, x)))
        for _ in range(EAGER + 1):
            denoise([piece])
    assert replays.counters.recordings == (not streamed)


@pytest.mark.parametrize(("budget", "streamed"), [(AMPLE, False), (BUDGET, True)])
def test_a_backbone_knows_whether_it_streams(root: Path, budget: int, streamed: bool) -> None:
    models = Models(root, budget)
    with torch.inference_mode(), models.card.used():
        assert models.weights.backbone(BACKBONE).network.streamed == streamed
