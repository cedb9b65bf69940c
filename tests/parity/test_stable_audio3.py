"""Stable Audio 3 against ComfyUI's modules, with the same weights (golden/stable_audio3.npz)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.families.audio.stable_audio3 import StableAudio3
from serve_app.models.families.autoencoders.same import SameVae
from serve_app.models.families.family import Rows
from serve_app.models.families.text.t5gemma import T5GemmaEncoder, T5GemmaText
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.weights.memory_plan import PartSize
from serve_app.models.weights.planner import Model, Size, usual_size
from serve_app.nodes.audio.latents import conditioning_stable_audio, empty_latent_audio
from serve_app.nodes.image.match_size import allow_decoded
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.latent_formats import STABLE_AUDIO_3
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Conditioning, Guider, Noise, SamplerChoice
from tests.parity import stable_audio3_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("stable_audio3")
KEYS = json.loads((GOLDEN / "stable_audio3_keys.json").read_text())
CPU = torch.device("cpu")
NAME = "stable_audio_3.safetensors"
PREFIXES = {"net": "model.model.", "vae": "pretransform.model.", "conditioners": "conditioner.conditioners."}


def checkpoint() -> dict[str, Tensor]:
    """Return a checkpoint's tensors, named as the published one's are."""
    made = {}
    for part, prefix in PREFIXES.items():
        made |= {prefix + name: tensor for name, tensor in cases.weights(KEYS[part]).items()}
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with the checkpoint and the text encoder."""
    folder = tmp_path_factory.mktemp("models")
    for part in ("checkpoints", "text_encoders"):
        (folder / part).mkdir()
    save_file(checkpoint(), folder / "checkpoints" / NAME)
    text = {f"model.{name}": tensor for name, tensor in cases.weights(KEYS["text"]).items()}
    save_file(text, folder / "text_encoders" / "t5gemma.safetensors")
    return folder


def encoder_table(network: Any) -> Tensor:
    """Return the vectors of a text encoder's tokens."""
    table: Tensor = network.encoder.embed_tokens.weight
    return table


def texts() -> dict[str, Tensor]:
    return {"positive": noise("positive", (1, 6, cases.TEXT)), "negative": noise("negative", (1, 1, cases.TEXT)) * 0}


@torch.inference_mode()
def test_the_network_answers_as_comfyuis_does_for_several_sounds_at_once(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / NAME).load("backbone")
    assert isinstance(family, StableAudio3)
    x = noise("x", (2, 256, cases.LENGTH))
    rows = []
    for i, level in enumerate((0.3, 0.9)):
        canvas = Canvas(x[i : i + 1], x[i : i + 1])
        inputs = family.inputs(texts()["positive"], {}, "positive", canvas, CPU, family.trained_as)
        rows.append(Rows(x[i : i + 1], level, torch.tensor([level]), inputs))
    made = torch.cat(family.forward(network, rows))
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), "net", MODULE_TOLERANCE)


@torch.inference_mode()
def test_sounds_are_decoded_and_encoded_as_by_comfyui(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / NAME).load("vae")
    assert isinstance(family, SameVae)
    vae = AudioVae(family, network)
    decoded = vae.decode(noise("latents", (1, 256, 5)))
    assert decoded.shape == (1, 2, 5 * 4096)
    FIGURES.assert_agrees(torch.from_numpy(thinned(decoded.numpy())), "decoded", MODULE_TOLERANCE)
    sound = noise("sound of some length", (1, 2, 3 * 4096)).sigmoid() - 0.5
    FIGURES.assert_agrees(vae.encode(sound), "encoded", MODULE_TOLERANCE)
    with pytest.raises(NodeError, match="decodes latents of 3 axes with 256 channels"):
        vae.decode(torch.zeros(1, 64, 5))


@torch.inference_mode()
def test_texts_are_encoded_as_by_comfyui_the_padding_as_zeros(root: Path) -> None:
    family, network = Checkpoint(root / "text_encoders" / "t5gemma.safetensors").load("clip")
    assert isinstance(family, T5GemmaText)
    encoder = T5GemmaEncoder(lambda text: [], cast("Any", network).encoder, lambda name, width, key: None)  # type: ignore[arg-type]
    tokens = torch.tensor(cases.TOKENS)
    seen = tokens != 0
    states = encoder.forward(torch.nn.functional.embedding(tokens, encoder_table(network)), seen, None)
    FIGURES.assert_agrees(states * seen[..., None], "text", MODULE_TOLERANCE)


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Tensor]:
    """Return every run's latents, all submitted at once."""
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))

    def request(figure: str) -> SamplingRequest:
        sampler, schedule, denoise = figure.split("|")
        conds = {role: [(text, {})] for role, text in texts().items()}
        guider = Guider(Recipe("backbone", "checkpoints", NAME), conds, Cfg(cases.CFG))
        latent = empty_latent_audio(cases.SECONDS, 1)
        samples, mask, factor = latent["samples"], None, latent["downscale_ratio_temporal"]
        if float(denoise) < 1:
            samples = noise("sound", STABLE_AUDIO_3.accept(samples, factor).shape)
            mask = (torch.arange(samples.shape[2]) > 4).float()[None, None]
        steps = Steps(schedule, cases.STEPS, float(denoise))
        return SamplingRequest(guider, samples, SamplerChoice(sampler), steps, Noise(cases.SEED), None, mask, factor)

    async def sample() -> list[Tensor]:
        bound = [runtime.bind(lambda done, steps: None) for _ in cases.RUNS]
        made = await asyncio.gather(*(one.sample(request(name)) for one, name in zip(bound, cases.RUNS, strict=True)))
        return [each.latents for each in made]

    return dict(zip(cases.RUNS, asyncio.run(asyncio.wait_for(sample(), 60)), strict=True))


@pytest.mark.parametrize("figure", cases.RUNS)
def test_a_run_batched_with_another_matches_comfyui(runs: dict[str, Tensor], figure: str) -> None:
    FIGURES.assert_agrees(runs[figure], figure)


def test_a_conditionings_own_length_is_read_and_latents_of_another_length_are_not_needed() -> None:
    text: Conditioning = [(noise("positive", (1, 6, cases.TEXT)), {})]
    positive, negative = conditioning_stable_audio(text, text, 0.0, 192.0)
    assert positive[0][1] == negative[0][1] == {"seconds_start": 0.0, "seconds_total": 192.0}
    family = StableAudio3(128, 64, 2, 96, 4, cases.TEXT)
    x = noise("x", (1, 256, cases.LENGTH))
    inputs = family.inputs(*positive[0], "positive", Canvas(x, x), CPU, family.trained_as)
    assert inputs.length.tolist() == [0.5]


def test_empty_latents_of_a_sound_become_the_models_own() -> None:
    latent = empty_latent_audio(150.0, 2)
    assert latent["samples"].shape == (2, 64, 3230)
    assert STABLE_AUDIO_3.accept(latent["samples"], latent["downscale_ratio_temporal"]).shape == (2, 256, 1615)
    with pytest.raises(NodeError, match=r"this model samples latents \(batch,256,time\)"):
        STABLE_AUDIO_3.accept(torch.zeros(1, 4, 8, 8))


async def test_images_are_not_decoded_of_a_sound() -> None:
    with pytest.raises(NodeError, match=r"are of a sound, \(1, 256, 20\); VAEDecodeAudio decodes these"):
        await allow_decoded(torch.zeros(1, 256, 20), Recipe("vae", "checkpoints", NAME), cast("Any", None))


def test_a_plan_of_a_sound_is_of_its_length() -> None:
    family = StableAudio3(128, 64, 1, 96, 4, cases.TEXT)
    size = replace(usual_size(family), samples=40 * 4096)
    model = Model(family, family.empty(), PartSize(0, lambda room: 0), PartSize(0, lambda room: 0))
    assert 0 < model.cost(replace(size, samples=size.samples // 2)).flops < model.cost(size).flops
    latents = size.latents(family.latent_format)
    assert isinstance(latents, torch.Tensor)
    assert Size.of(latents, family.latent_format) == size


def test_a_file_without_what_embeds_lengths_is_refused(tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in checkpoint().items() if not name.startswith("conditioner.")}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ModelFileError, match=r"without 'conditioner\.conditioners\.seconds_total"):
        Checkpoint(tmp_path / "bare.safetensors").load("backbone")
