import asyncio
from dataclasses import replace
from threading import Event, get_ident

import pytest
import torch
from safetensors.torch import save_file

from serve_app.config.limits import SizeLimits
from serve_app.engine.preview import in_eight_bits, picture
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.sampling_run import SamplingRun
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import AutoencoderKL, ClipText, Sd, Taesd
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import T5Padding
from serve_app.sampling.latents import latent_formats
from serve_app.sampling.request import Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest, IllustratedText, Noise, Texts
from tests.unit.engine import mixes
from tests.unit.engine.test_engine import arrived, held
from tests.unit.models.sample import cpu_weights, random_tensors

UNET = Sd((32,), (1,), (1,), 1, 64)
VAE = AutoencoderKL((32, 32, 32, 32), 1, 4, 3, True)
TEXT = ClipText(1, 64, 64, 77)
ONE = sum(tensor.numel() for tensor in random_tensors(UNET).values()) * 4


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    for name in ("a", "b"):
        tensors = random_tensors(UNET) | random_tensors(VAE) | random_tensors(TEXT)
        save_file(tensors, root / "checkpoints" / f"{name}.safetensors")
    return Catalog(root)


def recipe(part, name="a"):
    return Recipe(part, "checkpoints", f"{name}.safetensors")


@pytest.fixture
def shared(engine, catalog):
    return EngineRuntime(engine, cpu_weights(catalog))


def ignore(done, steps):
    pass


def request(conditioning, name="a", **changes):
    settings = {
        "backbone": recipe("backbone", name),
        "latents": torch.zeros(1, 4, 4, 4),
        "positive": conditioning,
        "negative": conditioning,
        "schedule": "karras",
        "steps": 3,
        "cfg": 2.0,
        "seed": 5,
        **changes,
    }
    return mixes.request(**settings)


async def test_a_text_becomes_an_image_through_one_runtime(shared):
    steps = []
    runtime = shared.bind(lambda done, of: steps.append((done, of)))
    conditioning = await runtime.encode_text(recipe("clip"), "a (red:1.2) fox")
    latents = (await runtime.sample(request(conditioning))).latents
    images = await runtime.decode(recipe("vae"), latents)
    again = await runtime.encode(recipe("vae"), images)
    assert images.shape == (1, 32, 32, 3)
    assert again.shape == latents.shape == (1, 4, 4, 4)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(shared.resident()) == 3


async def test_many_nodes_at_once_get_what_each_gets_alone(shared, engine):
    runtime = shared.bind(ignore)
    texts = ["a fox", "a hen", "cat " * 80]
    conditionings = [await runtime.encode_text(recipe("clip"), text) for text in texts]
    jobs = [request(c, seed=seed, cfg=cfg) for seed, c in enumerate(conditionings) for cfg in (1.0, 4.0)]
    alone = [await runtime.sample(job) for job in jobs]
    before = engine.counters.forwards
    together = await asyncio.gather(*(runtime.sample(job) for job in jobs))
    assert engine.counters.forwards - before < 3 * len(jobs)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.latents, one.latents, rtol=1e-4, atol=1e-4)


async def test_each_step_can_have_a_preview(shared):
    pictures = []
    runtime = shared.bind(ignore, show=pictures.append, previews="latent2rgb")
    conditioning = await runtime.encode_text(recipe("clip"), "a fox")
    sampled = await runtime.sample(request(conditioning))
    await asyncio.sleep(0)
    assert [shown.shape for shown in pictures] == [(4, 4, 3)] * 3
    # The last step's picture is of what it took for the image.
    wanted = picture(latent_formats.SD.to_model(sampled.denoised), latent_formats.SD)
    assert wanted is not None
    assert (pictures[-1] == in_eight_bits(wanted).numpy()).all()


async def test_without_the_files_of_a_taesd_pictures_are_the_linear_maps(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog))
    pictures = []
    conditioning = [(torch.zeros(1, 77, 64), {})]
    await shared.bind(ignore, show=pictures.append, previews="taesd").sample(request(conditioning))
    await asyncio.sleep(0)
    assert [shown.shape for shown in pictures] == [(4, 4, 3)] * 3


async def test_with_the_files_of_a_taesd_pictures_are_decoded(engine, catalog, tmp_path):
    root = tmp_path / "models"
    (root / "vae_approx").mkdir(parents=True)
    (root / "checkpoints").symlink_to(catalog.path("checkpoints", "a.safetensors").parent)
    tensors = Taesd(latent_formats.SD).build().state_dict()
    for half in ("encoder", "decoder"):
        part = {name.removeprefix(f"{half}."): t for name, t in tensors.items() if name.startswith(half)}
        save_file(part, root / "vae_approx" / f"taesd_{half}.safetensors")
    shared = EngineRuntime(engine, cpu_weights(Catalog(root)))
    pictures = []
    conditioning = [(torch.zeros(1, 77, 64), {})]
    await shared.bind(ignore, show=pictures.append, previews="taesd").sample(request(conditioning))
    await asyncio.sleep(0)
    assert [shown.shape for shown in pictures] == [(32, 32, 3)] * 3


async def test_the_sigmas_of_a_backbone_are_read_outside_the_event_loop(engine, catalog):
    class Watched(Weights):
        def levels(self, recipe):
            threads.append(get_ident())
            return super().levels(recipe)

    threads = []
    runtime = EngineRuntime(engine, cpu_weights(catalog, kind=Watched)).bind(ignore)
    assert (await runtime.levels(recipe("backbone"))).sigma_max == pytest.approx(14.6, abs=0.1)
    assert threads[0] != get_ident()


async def test_a_file_that_cannot_be_used_is_an_error_and_others_go_on(shared):
    runtime = shared.bind(ignore)
    with pytest.raises(ModelFileError, match="missing"):
        await runtime.encode_text(recipe("clip", "missing"), "a fox")
    assert await runtime.encode_text(recipe("clip"), "a fox")


async def test_a_cancelled_node_leaves_and_others_go_on(shared):
    reached = asyncio.Event()
    conditioning = await shared.bind(ignore).encode_text(recipe("clip"), "a fox")
    endless = asyncio.create_task(
        shared.bind(lambda done, steps: reached.set()).sample(request(conditioning, steps=100_000, schedule="karras"))
    )
    await reached.wait()
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert (await shared.bind(ignore).sample(request(conditioning))).latents.shape == (1, 4, 4, 4)


async def test_what_a_run_begins_with_is_made_while_the_engine_does_other_work(shared):
    drawing, go = Event(), Event()

    def draw(latents, batch_index):
        drawing.set()
        assert go.wait(30)
        return torch.ones_like(latents)

    conditioning = [(torch.zeros(1, 77, 64), {})]
    slow = replace(request(conditioning), noise=Noise(1, draw=draw))
    task = asyncio.create_task(shared.bind(ignore).sample(slow))
    assert await asyncio.to_thread(drawing.wait, 30)
    await asyncio.wait_for(shared.bind(ignore).sample(request(conditioning)), 30)
    go.set()
    assert (await task).latents.shape == (1, 4, 4, 4)


async def test_a_checkpoint_that_does_not_fit_waits_for_the_one_in_use(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog, budget_bytes=ONE))
    reached = asyncio.Event()
    conditioning = [(torch.zeros(1, 77, 64), {})]
    first = asyncio.create_task(
        shared.bind(lambda done, steps: reached.set()).sample(request(conditioning, "a", steps=100_000))
    )
    await reached.wait()
    second = asyncio.create_task(shared.bind(ignore).sample(request(conditioning, "b")))
    third = asyncio.create_task(shared.bind(ignore).sample(request(conditioning, "a")))
    await asyncio.sleep(0.2)
    assert not second.done()
    assert shared.resident() == ("backbone checkpoints/a.safetensors",)
    first.cancel()
    both = asyncio.gather(second, third)
    assert [sampled.latents.shape for sampled in await asyncio.wait_for(both, timeout=30)] == [(1, 4, 4, 4)] * 2
    assert shared.resident() == ("backbone checkpoints/a.safetensors",)


@pytest.mark.parametrize("jobs", [1, 3])
async def test_failed_runs_leave_room_for_the_next_while_their_errors_are_kept(engine, catalog, jobs):
    shared = EngineRuntime(engine, cpu_weights(catalog, budget_bytes=ONE))
    wrong_width, right = [(torch.zeros(1, 77, 63), {})], [(torch.zeros(1, 77, 64), {})]
    failing = [shared.bind(ignore).sample(request(wrong_width, "a")) for _ in range(jobs)]
    kept = await asyncio.gather(*failing, return_exceptions=True)
    sampled = await asyncio.wait_for(shared.bind(ignore).sample(request(right, "b")), timeout=30)
    assert sampled.latents.shape == (1, 4, 4, 4)
    assert all(isinstance(error, NodeError) and error.__traceback__ is not None for error in kept)


async def test_jobs_that_come_together_join_the_same_forward(engine, shared, monkeypatch):
    conditioning = [(torch.zeros(1, 77, 64), {})]
    await shared.bind(ignore).sample(request(conditioning))
    before = engine.counters.forwards
    # Time stands still, so that calls are not the reason why some have to wait.
    monkeypatch.setattr("serve_app.engine.timeline.perf_counter", lambda: 0.0)
    go = held(engine)
    sampling = [asyncio.create_task(shared.bind(ignore).sample(request(conditioning, seed=i))) for i in range(8)]
    await arrived(engine, 8)
    go.set()
    await asyncio.gather(*sampling)
    assert engine.counters.forwards - before == 3


@pytest.mark.parametrize("moment", ["prepare", "submit"])
async def test_a_run_that_begins_while_its_node_is_cancelled_is_cancelled_too(engine, catalog, monkeypatch, moment):
    def cancelling(of, name):
        begin = getattr(of, name)

        def begins(*args, **options):
            monkeypatch.setattr(of, name, begin)
            made = begin(*args, **options)
            asyncio.run_coroutine_threadsafe(cancel(), loop).result(30)
            return made

        monkeypatch.setattr(of, name, begins)

    async def cancel():
        endless.cancel()
        await asyncio.wait({endless}, timeout=1)

    loop = asyncio.get_running_loop()
    shared = EngineRuntime(engine, cpu_weights(catalog, budget_bytes=ONE))
    cancelling(*{"prepare": (SamplingRun, "prepare"), "submit": (engine, "submit")}[moment])
    conditioning = [(torch.zeros(1, 77, 64), {})]
    endless = asyncio.create_task(shared.bind(ignore).sample(request(conditioning, "a", steps=100_000)))
    with pytest.raises(asyncio.CancelledError):
        await endless
    sampled = await asyncio.wait_for(shared.bind(ignore).sample(request(conditioning, "b")), timeout=30)
    assert sampled.latents.shape == (1, 4, 4, 4)
    before = engine.counters.forwards
    await asyncio.sleep(0.2)
    assert engine.counters.forwards == before


@pytest.mark.parametrize(
    ("cond", "options", "words"),
    [
        (torch.zeros(1, 65, 64), {}, "0 cells of references each and 65 tokens of text"),
        (torch.zeros(1, 7, 64), {"reference_latents": [torch.zeros(1, 16, 4, 4)] * 4}, "64 cells of references each"),
    ],
)
async def test_what_a_forward_would_attend_to_for_too_long_is_refused(engine, catalog, cond, options, words):
    shared = EngineRuntime(engine, cpu_weights(catalog), latent_cells=64)
    with pytest.raises(NodeError, match=words):
        await shared.bind(ignore).sample(request([(cond, options)]))
    assert shared.resident() == ()


async def test_images_too_large_for_a_text_encoder_to_see_are_refused(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog), latent_cells=64)
    text = IllustratedText("a", (torch.zeros(1, 64, 64, 3), torch.zeros(1, 8, 8, 3)))
    with pytest.raises(NodeError, match="images of 65 cells of 64 pixels; latent_cells of this pool allows 64"):
        await shared.bind(ignore).encode_text(recipe("clip"), text)
    assert shared.resident() == ()


async def test_texts_that_are_too_long_are_refused_before_they_are_read_with_others(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog), limits=SizeLimits(prompt_bytes=8, generated_tokens=4))
    runtime = shared.bind(ignore)
    for text in ("ninebytes", "äöüßé", Texts(g="", t5xxl="ninebytes")):
        with pytest.raises(NodeError, match="prompt_bytes of the configuration allows 8"):
            await runtime.encode_text(recipe("clip"), text)
    padded = recipe("clip").with_patch(T5Padding(0, 9))
    with pytest.raises(NodeError, match="9 bytes or tokens"):
        await runtime.encode_text(padded, "a")
    with pytest.raises(NodeError, match="max_length is 5; limits"):
        await runtime.generate_text(recipe("clip"), GenerationRequest("a", 5, None, False, True))
    assert shared.resident() == ()
    assert await runtime.encode_text(recipe("clip"), "ninebyte")


async def test_latents_too_large_to_stop_are_refused_before_anything_is_loaded(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog), latent_cells=64)
    runtime = shared.bind(ignore)
    with pytest.raises(NodeError, match="shape 5×4×4×4 are 80 cells at once; latent_cells of this pool allows 64"):
        await runtime.sample(request([], latents=torch.zeros(5, 4, 4, 4)))
    coarse = replace(request([], latents=torch.zeros(1, 4, 5, 4)), factor=16)
    with pytest.raises(NodeError, match="shape 1×4×5×4 are 80 cells"):
        await runtime.sample(coarse)
    with pytest.raises(NodeError, match="72 cells"):
        await runtime.decode(recipe("vae"), torch.zeros(1, 4, 9, 8))
    with pytest.raises(NodeError, match="72 cells"):
        await runtime.encode(recipe("vae"), torch.zeros(1, 72, 64, 3))
    assert shared.resident() == ()
    assert (await runtime.decode(recipe("vae"), torch.zeros(2, 4, 8, 8))).shape == (2, 64, 64, 3)


async def test_runs_of_too_many_levels_or_pairs_are_refused_before_their_schedule_is_made(engine, catalog):
    shared = EngineRuntime(engine, cpu_weights(catalog), latent_pairs=3 * 16**2, limits=SizeLimits(levels=1000))
    runtime = shared.bind(ignore)
    words = "steps 10 and denoise 1e-07 make a schedule of 100,000,000 levels; limits.levels of the configuration"
    with pytest.raises(NodeError, match=words):
        await runtime.sample(replace(request([]), sigmas=Steps("beta", 10, 1e-7)))
    with pytest.raises(NodeError, match="sigmas are 1,001 levels"):
        await runtime.sample(replace(request([]), sigmas=torch.zeros(1002)))
    with pytest.raises(NodeError, match="4 latents of 16 cells each have 1,024 pairs of cells that attend"):
        await runtime.sample(request([], latents=torch.zeros(4, 4, 4, 4)))
    assert shared.resident() == ()
