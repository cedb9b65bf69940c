"""YuE 2 against ComfyUI's layers of Qwen3 and of sounds, with the same weights (golden/yue2.npz)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import NodeError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.families.autoencoders.oobleck import YuE2Vae
from serve_app.models.families.family import Rows
from serve_app.models.families.yue2 import text as yue2_text
from serve_app.models.families.yue2.backbone import YuE2
from serve_app.models.families.yue2.text import MUSIC_END, Music, flat
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.text_encoder import Clip
from serve_app.nodes.audio.yue2 import SCORED, UNSCORED, prompted
from serve_app.nodes.conditioning.encode import conditioning_zero_out
from serve_app.recipe.recipe import Recipe
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
    TextGuidance,
    TokenSampling,
)
from tests.parity import yue2_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("yue2")
KEYS = json.loads((GOLDEN / "yue2_keys.json").read_text())
CPU = torch.device("cpu")
NAME = "yue2.safetensors"
FRAMES = cases.CHUNKS[-1][1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with a checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "checkpoints").mkdir()
    save_file(cases.file(KEYS), folder / "checkpoints" / NAME)
    return folder


@pytest.fixture(scope="module")
def clip(root: Path) -> Clip:
    return cpu_weights(Catalog(root), dtype="fp32").clip(Recipe("clip", "checkpoints", NAME))


def conditioning() -> Conditioning:
    return [(noise("kept", (1, cases.CHUNKS[-1][3], cases.KEPT)), {"yue2_chunks": cases.CHUNKS})]


@torch.inference_mode()
def test_the_network_answers_as_comfyuis_layers_do_for_a_song_of_several_parts(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / NAME).load("backbone")
    assert isinstance(family, YuE2)
    x, [(kept, options)] = noise("x", (2, 64, FRAMES)), conditioning()
    rows = []
    for i, level in enumerate(cases.LEVELS):
        canvas = Canvas(x[i : i + 1], x[i : i + 1])
        inputs = family.inputs(kept, options, "positive", canvas, CPU, family.trained_as)
        rows.append(Rows(x[i : i + 1], level, torch.tensor([level]), inputs))
    FIGURES.assert_agrees(torch.cat(family.forward(network, rows)), "net", MODULE_TOLERANCE)


def test_another_conditioning_and_latents_of_another_length_are_refused(root: Path) -> None:
    family = Checkpoint(root / "checkpoints" / NAME).find("backbone").family
    assert isinstance(family, YuE2)
    [(kept, options)] = conditioning()
    canvas = Canvas(torch.zeros(1, 64, FRAMES + 1), torch.zeros(1, 64, FRAMES + 1))
    with pytest.raises(NodeError, match=r"13 frames long, and the song 12: connect the seconds"):
        family.inputs(kept, options, "positive", canvas, CPU, family.trained_as)
    with pytest.raises(NodeError, match="of another node"):
        family.inputs(kept, {}, "positive", canvas, CPU, family.trained_as)
    with pytest.raises(NodeError, match="of different families"):
        family.inputs(torch.zeros(1, 4, 9), options, "positive", canvas, CPU, family.trained_as)


@torch.inference_mode()
def test_sounds_are_decoded_and_encoded_as_by_comfyuis_layers(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / NAME).load("vae")
    assert isinstance(family, YuE2Vae)
    vae = AudioVae(family, network)
    decoded = vae.decode(noise("latents", (1, 64, 5)))
    assert decoded.shape == (1, 2, 5 * 1920)
    FIGURES.assert_agrees(torch.from_numpy(thinned(decoded.numpy())), "decoded", MODULE_TOLERANCE)
    sound = noise("sound of some length", (1, 2, 3 * 1920)).sigmoid() - 0.5
    FIGURES.assert_agrees(vae.encode(sound), "encoded", MODULE_TOLERANCE)


def request(mode: str, score: str | None, count: int) -> GenerationRequest:
    asked, window = (cases.SCORE_SAMPLING, 100) if score is None else (cases.SAMPLING, 50)
    instruction = SCORED.get(mode, UNSCORED)
    sampling = TokenSampling(**asked, seed=cases.SEED, penalty_window=window)
    guidance = TextGuidance(instruction, 1.01 if mode == "off" else 1.0)
    text = prompted(instruction, cases.STYLE, cases.LYRICS)
    return GenerationRequest(text, count, sampling, guidance=guidance, score=score)


def written(clip: Clip, requests: list[GenerationRequest]) -> list[Any]:
    """Return what is written for requests, together."""
    made = [clip.generation(one) for one in requests]
    with torch.inference_mode():
        while left := [one for one in made if not one.over]:
            clip.generate(left)
    return made


def test_songs_are_written_as_the_published_sampler_does_beside_others(clip: Clip) -> None:
    songs = written(clip, [request(mode, score, cases.SONG_FRAMES) for mode, score in cases.MODES.items()])
    for mode, song in zip(cases.MODES, songs, strict=True):
        assert song.tokens == FIGURES[f"{mode} music"].tolist(), mode
        [(kept, options)] = song.result
        FIGURES.assert_agrees(torch.from_numpy(thinned(kept.numpy())), f"{mode} kept", MODULE_TOLERANCE)
        assert options == {"yue2_chunks": ((0, cases.SONG_FRAMES, 0, kept.shape[1]),), "yue2_frames": cases.SONG_FRAMES}


def test_scores_are_written_as_the_published_sampler_does(clip: Clip) -> None:
    modes = ("full", "melody")
    scores = written(clip, [request(mode, None, cases.SCORE_TOKENS) for mode in modes])
    for mode, score in zip(modes, scores, strict=True):
        assert score.tokens == FIGURES[f"{mode} score"].tolist(), mode
        assert isinstance(score.result, str)


def test_a_song_ends_at_its_end_token_which_may_not_come_at_once(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Music, "at_least", 2)
    song = clip.generation(request("full", cases.ABC, 5))
    assert isinstance(song, Music)
    logits = torch.zeros(1, cases.SIZES["vocab_size"])
    logits[:, MUSIC_END] = 1000.0
    drawn = []
    while (token := song.next_of(logits, 1)) is not None:
        drawn.append(token)
        song.tokens.append(token)
    assert len(drawn) == 2
    assert MUSIC_END not in drawn
    assert song.written


def test_a_long_song_is_kept_in_parts_of_the_context(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    [whole] = written(clip, [request("full", cases.ABC, 9)])
    prompt = whole.result[0][0].shape[1] - 9 - 1
    monkeypatch.setattr(yue2_text, "parts", lambda frames, before: [(0, 4), (4, 8), (8, 9)])
    [song] = written(clip, [request("full", cases.ABC, 9)])
    [(kept, options)] = song.result
    assert song.tokens == whole.tokens
    assert [chunk[:2] for chunk in options["yue2_chunks"]] == [(0, 4), (4, 8), (8, 9)]
    assert options["yue2_chunks"][-1][3] == kept.shape[1] == 3 * (prompt + 1) + 9
    # Keys and values of the prompt are in each part, and the same.
    torch.testing.assert_close(kept[:, :prompt], kept[:, prompt + 5 : 2 * prompt + 5], atol=1e-5, rtol=1e-5)


def test_parts_are_as_long_as_the_context_allows() -> None:
    assert yue2_text.parts(9000, 1000) == [(0, 9000)]
    assert yue2_text.parts(20000, 5000) == [(0, 9786), (9786, 19572), (19572, 20000)]


def test_texts_are_refused_and_prompts_that_are_too_long_are(clip: Clip) -> None:
    with pytest.raises(NodeError, match="YuE2GenerateMusic writes"):
        clip.encode(["a text"])
    with pytest.raises(NodeError, match="writes scores and music, and no text"):
        clip.generation(GenerationRequest("a text", 4, TokenSampling()))
    guidance = TextGuidance("a", 1.0)
    with pytest.raises(NodeError, match=r"5,002 tokens; YuE 2's language model reads at most 4,091"):
        clip.generation(GenerationRequest("a " * 5000, 4, TokenSampling(), guidance=guidance))
    with pytest.raises(NodeError, match=r"25,004 tokens; YuE 2's language model reads at most 24,571"):
        clip.generation(GenerationRequest("a " * 25000, 4, TokenSampling(), guidance=guidance, score=""))


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Tensor]:
    """Return every run's latents, all submitted at once."""
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))
    positive = conditioning()

    def asked(figure: str) -> SamplingRequest:
        sampler, schedule, denoise = figure.split("|")
        conds = {"positive": positive, "negative": conditioning_zero_out(positive)}
        guider = Guider(Recipe("backbone", "checkpoints", NAME), conds, Cfg(cases.CFG))
        shape = (1, 64, FRAMES)
        samples = noise("sound", shape) if float(denoise) < 1 else torch.zeros(shape)
        steps = Steps(schedule, cases.STEPS, float(denoise))
        return SamplingRequest(guider, samples, SamplerChoice(sampler), steps, Noise(cases.SEED), None, None, 1920)

    async def sample() -> list[Tensor]:
        bound = [runtime.bind(lambda done, steps: None) for _ in cases.RUNS]
        made = await asyncio.gather(*(one.sample(asked(name)) for one, name in zip(bound, cases.RUNS, strict=True)))
        return [each.latents for each in made]

    return dict(zip(cases.RUNS, asyncio.run(asyncio.wait_for(sample(), 120)), strict=True))


@pytest.mark.parametrize("figure", cases.RUNS)
def test_a_run_batched_with_another_matches_comfyui(runs: dict[str, Tensor], figure: str) -> None:
    FIGURES.assert_agrees(runs[figure], figure)


@torch.inference_mode()
def test_a_checkpoint_in_int8_is_what_its_numbers_stand_for(tmp_path: Path) -> None:
    """Every layer that the published file has in eight bits is: the embeddings and fused layers too."""
    stored = cases.file(KEYS)
    wide = dict(stored)
    marked = json.dumps({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}).encode()
    for name, tensor in cases.file(KEYS).items():
        layer = name.removesuffix(".weight")
        if tensor.ndim != 2 or layer.endswith(("vae2llm", "pe")) or layer.startswith("vae."):
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127
        numbers = (tensor / scale).round().to(torch.int8)
        mark = torch.tensor(list(marked), dtype=torch.uint8)
        stored |= {name: numbers, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": mark}
        wide[name] = EightBitWeight(numbers, scale, 16).wide()
    (tmp_path / "checkpoints").mkdir()
    songs, answers = [], []
    for file in (stored, wide):
        save_file(file, tmp_path / "checkpoints" / NAME)
        clip = cpu_weights(Catalog(tmp_path), dtype="fp32").clip(Recipe("clip", "checkpoints", NAME))
        [song] = written(clip, [request("full", cases.ABC, 6)])
        songs.append(song)
        family, network = Checkpoint(tmp_path / "checkpoints" / NAME).load("backbone")
        assert isinstance(family, YuE2)
        x, [(kept, options)] = noise("x", (1, 64, FRAMES)), conditioning()
        inputs = family.inputs(kept, options, "positive", Canvas(x, x), CPU, family.trained_as)
        answers += family.forward(network, [Rows(x, 0.5, torch.tensor([0.5]), inputs)])
    assert songs[0].tokens == songs[1].tokens
    torch.testing.assert_close(songs[0].result[0][0], songs[1].result[0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_keys_and_values_are_one_tensor_token_by_token() -> None:
    layers = [(torch.full((1, 2, 3, 4), float(i)), torch.full((1, 2, 3, 4), i + 0.5)) for i in range(2)]
    made = flat(layers)
    assert made.shape == (1, 3, 2 * 2 * 2 * 4)
    assert made[0, 0].view(2, 2, 8)[:, :, 0].tolist() == [[0.0, 0.5], [1.0, 1.5]]
