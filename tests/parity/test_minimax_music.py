"""MiniMax Music 3 against ComfyUI's modules, with the same weights (golden/minimax_music.npz)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.families.family import Rows
from serve_app.models.families.minimax_music.backbone import MiniMaxMusic3
from serve_app.models.families.minimax_music.text import MiniMaxMusic3Encoder
from serve_app.models.families.minimax_music.vae import MiniMaxMusic3Vae
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.weights.memory_plan import PartSize
from serve_app.models.weights.planner import Model, usual_size
from serve_app.nodes.audio.minimax_music import empty_minimax_music3_latent_audio, prompted
from serve_app.nodes.conditioning.encode import conditioning_zero_out
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.sampling.forward import Canvas
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import (
    Cfg,
    Conditioning,
    GenerationRequest,
    Guider,
    Noise,
    SamplerChoice,
    SoundTiling,
    TextGuidance,
    TokenSampling,
)
from tests.parity import minimax_music_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("minimax_music")
KEYS = json.loads((GOLDEN / "minimax_music_keys.json").read_text())
CPU = torch.device("cpu")
NAME = "minimax_music3.safetensors"


def text_file() -> dict[str, Tensor]:
    return {**cases.weights(KEYS["text"]), "tokenizer_json": cases.tokenizer_tensor()}


def merged(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a language model's tensors with queries, keys and values as one, and gates with what they open."""
    made = dict(made)
    for group, fused in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
        for name in [name for name in made if f".{group[0]}." in name]:
            parts = [made.pop(name.replace(group[0], one)) for one in group]
            made[name.replace(group[0], fused)] = torch.cat(parts)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with all parts."""
    folder = tmp_path_factory.mktemp("models")
    files = {
        "diffusion_models": cases.weights(KEYS["net"]),
        "vae": cases.vae_file(KEYS["vae"]),
        "text_encoders": text_file(),
    }
    for part, tensors in files.items():
        (folder / part).mkdir()
        save_file(tensors, folder / part / NAME)
    return folder


def conditioning() -> Conditioning:
    states = noise("states", (1, cases.FRAMES, 8 * cases.STATE))
    return [(states[:, :30], {"conditioning_scale": torch.ones(1, 1, 1)})]


@torch.inference_mode()
def test_the_network_answers_as_comfyuis_does_for_a_song_of_several_windows(root: Path) -> None:
    family, network = Checkpoint(root / "diffusion_models" / NAME).load("backbone")
    assert isinstance(family, MiniMaxMusic3)
    x, states = noise("x", (2, 128, cases.LENGTH)), noise("states", (1, cases.FRAMES, 8 * cases.STATE))
    rows = []
    for i, level in enumerate(cases.LEVELS):
        canvas = Canvas(x[i : i + 1], x[i : i + 1])
        inputs = family.inputs(states, {}, "positive", canvas, CPU, family.trained_as)
        rows.append(Rows(x[i : i + 1], level, torch.tensor([level]), inputs))
    made = torch.cat(family.forward(network, rows))
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), "net", MODULE_TOLERANCE)


@torch.inference_mode()
def test_sounds_are_decoded_as_by_comfyui_whole_and_in_tiles(root: Path) -> None:
    family, network = Checkpoint(root / "vae" / NAME).load("vae")
    assert isinstance(family, MiniMaxMusic3Vae)
    vae, latents = AudioVae(family, network), noise("latents", (1, 128, 19))
    decoded = vae.decode(latents[..., :5])
    assert decoded.shape == (1, 2, 5 * 512)
    FIGURES.assert_agrees(torch.from_numpy(thinned(decoded.numpy())), "decoded", MODULE_TOLERANCE)
    tiles, steps = vae.decode_tiled(latents, SoundTiling(cases.TILE, cases.OVERLAP)), []
    while True:
        try:
            steps.append(next(tiles))
        except StopIteration as ended:
            made = ended.value
            break
    assert steps == [(1, 3), (2, 3), (3, 3)]
    FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), "tiled", MODULE_TOLERANCE)
    with pytest.raises(NodeError, match="has no encoder"):
        vae.encode(torch.zeros(1, 2, 1024))


def written(root: Path, name: str, prompts: list[Any]) -> list[Tensor]:
    """Return the songs of a language model for prompts, tokens or texts, written together."""
    recipe = Recipe("clip", "text_encoders", name, (LoadedAs("minimax"),))
    clip = cpu_weights(Catalog(root), dtype="fp32").clip(recipe)
    encoder = clip.encoder
    assert isinstance(encoder, MiniMaxMusic3Encoder)
    sampling, guidance = TokenSampling(top_k=50, seed=cases.SEED), TextGuidance("", cases.CFG)
    songs = []
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else ""
        request = GenerationRequest(text, cases.SONG_FRAMES + 1, sampling, guidance=guidance)
        songs.append(encoder.generation(request) if text else encoder.song(request, prompt))
    with torch.inference_mode():
        while left := [song for song in songs if not song.over]:
            clip.generate(left)
    return [song.result[0][0] for song in songs]


def test_a_song_is_written_as_by_comfyui_beside_another(root: Path) -> None:
    song, other = written(root, NAME, [cases.TOKENS, prompted("a b", "[Verse]\nc d e")])
    FIGURES.assert_agrees(song, "song", MODULE_TOLERANCE)
    assert other.shape == song.shape
    assert not torch.equal(other, song)


def test_layers_that_are_one_in_a_file_are_read(root: Path) -> None:
    save_file(merged(text_file()), root / "text_encoders" / "merged.safetensors")
    [song] = written(root, "merged.safetensors", [cases.TOKENS])
    FIGURES.assert_agrees(song, "song", MODULE_TOLERANCE)


def test_a_language_model_with_every_token_is_refused_and_texts_are_too(root: Path) -> None:
    whole = {name.replace("_prefill", ""): tensor for name, tensor in text_file().items()}
    save_file(whole, root / "text_encoders" / "whole.safetensors")
    with pytest.raises(ModelFileError, match="supported is the pruned one"):
        Checkpoint(root / "text_encoders" / "whole.safetensors").find("clip")
    clip = cpu_weights(Catalog(root), dtype="fp32").clip(Recipe("clip", "text_encoders", NAME))
    with pytest.raises(NodeError, match="MiniMaxMusic3TextEncode"):
        clip.encode(["a text"])
    with pytest.raises(NodeError, match="writes songs and no text"):
        clip.generation(GenerationRequest("a text", 4))
    request = GenerationRequest("a " * 5001, 4, TokenSampling(), guidance=TextGuidance("", 1.5))
    with pytest.raises(NodeError, match="5,001 tokens; MiniMax Music 3 reads at most 5,000"):
        clip.generation(request)


@pytest.mark.parametrize("number", range(len(cases.TEXTS)))
def test_prompts_are_comfyuis(number: int) -> None:
    assert prompted(*cases.TEXTS[number]) == bytes(FIGURES[f"prompt {number}"].tolist()).decode()


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Tensor]:
    """Return every run's latents, all submitted at once."""
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))
    positive = conditioning()

    def request(figure: str) -> SamplingRequest:
        sampler, schedule, denoise = figure.split("|")
        conds = {"positive": positive, "negative": conditioning_zero_out(positive)}
        guider = Guider(Recipe("backbone", "diffusion_models", NAME), conds, Cfg(cases.CFG))
        latent = empty_minimax_music3_latent_audio(cases.SECONDS, 1)
        samples, factor = latent["samples"], latent["downscale_ratio_temporal"]
        if float(denoise) < 1:
            samples = noise("sound", samples.shape)
        steps = Steps(schedule, cases.STEPS, float(denoise))
        return SamplingRequest(guider, samples, SamplerChoice(sampler), steps, Noise(cases.SEED), None, None, factor)

    async def sample() -> list[Tensor]:
        bound = [runtime.bind(lambda done, steps: None) for _ in cases.RUNS]
        made = await asyncio.gather(*(one.sample(request(name)) for one, name in zip(bound, cases.RUNS, strict=True)))
        return [each.latents for each in made]

    return dict(zip(cases.RUNS, asyncio.run(asyncio.wait_for(sample(), 60)), strict=True))


@pytest.mark.parametrize("figure", cases.RUNS)
def test_a_run_batched_with_another_matches_comfyui(runs: dict[str, Tensor], figure: str) -> None:
    FIGURES.assert_agrees(runs[figure], figure)


def test_a_plan_of_a_song_is_of_its_length(root: Path) -> None:
    family = Checkpoint(root / "diffusion_models" / NAME).find("backbone").family
    assert isinstance(family, MiniMaxMusic3)
    size = usual_size(family)
    model = Model(family, family.empty(), PartSize(0, lambda room: 0), PartSize(0, lambda room: 0))
    assert 0 < model.cost(replace(size, samples=size.samples // 2)).flops < model.cost(size).flops
