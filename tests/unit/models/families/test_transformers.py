"""How diffusion transformers are told apart and read off their files, under every prefix and in both layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import (
    Anima,
    AuraFlow,
    Chroma,
    ErnieImage,
    Flux,
    Flux2,
    HiDream,
    Ideogram4,
    Krea2,
    Lumina2,
    OmniGen2,
    PixArt,
    PixArtAlpha,
    QwenImage,
    Sd3,
    ZImage,
)
from serve_app.models.families.dit.anima import LlmAdapter
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.dit.krea2 import Attention
from serve_app.models.families.family import BackboneFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import placed, places
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import Discrete, Flow, FluxFlow
from serve_app.sampling.forward import Canvas
from serve_app.store.models.kinds import BACKBONE_PREFIXES, refusal
from tests.parity.dit_cases import POOLED_WIDTH, TEXT_WIDTH, weights
from tests.parity.figures import GOLDEN

KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())
TINY: dict[str, BackboneFamily] = {
    "zimage": ZImage(288, 9, 2, 2, TEXT_WIDTH, time_width=288),
    "lumina2": Lumina2(96, 4, 2, 2, 2, TEXT_WIDTH),
    "flux": Flux(64, 2, 2, 2, TEXT_WIDTH, POOLED_WIDTH),
    "chroma": Chroma(64, 2, 1, 2, TEXT_WIDTH, inside=40, layers=2),
    "flux2": Flux2(64, 2, 2, 2, TEXT_WIDTH, guided=True),
    "flux2_klein": Flux2(64, 2, 2, 2, TEXT_WIDTH),
    "krea2": Krea2(Attention(64, 2, 1, 256), Attention(TEXT_WIDTH // 2, 2, 2, 128), 2, 2),
    "ernie_image": ErnieImage(256, 2, 96, TEXT_WIDTH),
    "ideogram4": Ideogram4(256, 2, 2, 96, TEXT_WIDTH, 16),
    "qwen": QwenImage(64, 2, 2, TEXT_WIDTH),
    "qwen_2511": QwenImage(64, 2, 1, TEXT_WIDTH, method="index_timestep_zero"),
    "qwen_layered": QwenImage(64, 2, 1, TEXT_WIDTH, method="negative_index", layered=True),
    "sd3": Sd3(128, 2, TEXT_WIDTH, POOLED_WIDTH, 8),
    "sd35": Sd3(128, 2, TEXT_WIDTH, POOLED_WIDTH, 8, normed=True, dual=1),
    "flux_schnell": Flux(64, 2, 2, 2, TEXT_WIDTH, POOLED_WIDTH, guided=False),
    "flux_depth": Flux(64, 2, 2, 2, TEXT_WIDTH, POOLED_WIDTH, extra_channels=16),
    "flux_fill": Flux(64, 2, 2, 2, TEXT_WIDTH, POOLED_WIDTH, extra_channels=80),
    "anima": Anima(64, 2, 2, 32, LlmAdapter(TEXT_WIDTH, 2, 2, TEXT_WIDTH, 32128)),
    "hidream": HiDream(128, 1, 2, TEXT_WIDTH, TEXT_WIDTH, POOLED_WIDTH),
    "auraflow": AuraFlow(512, 1, 1, TEXT_WIDTH, 8),
    "omnigen2": OmniGen2(96, 4, 2, 2, 1, TEXT_WIDTH),
    "pixart": PixArt(96, 2, TEXT_WIDTH),
    "pixart_alpha": PixArtAlpha(96, 2, TEXT_WIDTH),
}
TRAINED = {
    "zimage": Flow(3.0, 1.0),
    "flux2": FluxFlow(2.02),
    "krea2": FluxFlow(1.15),
    "qwen": FluxFlow(1.15),
    "lumina2": Flow(6.0, 1.0),
    "flux": FluxFlow(1.15),
    "flux_schnell": Flow(1.0, 1.0),
    "chroma": FluxFlow(1.15),
    "sd3": Flow(3.0, 1000.0),
    "anima": Flow(3.0, 1.0),
    "hidream": Flow(1.0, 1000.0),
    "auraflow": Flow(1.73, 1.0),
    "omnigen2": Flow(2.6, 1.0),
    "pixart": Discrete(even=True),
}


def tensors(net: str, prefix: str = "", changed: Mapping[str, tuple[int, ...] | None] | None = None) -> Tensors:
    shapes = {name: tuple(shape) for name, shape in KEYS[net].items()} | dict(changed or {})
    return Tensors({prefix + name: shape for name, shape in shapes.items() if shape is not None}, "'a.safetensors'")


@pytest.mark.parametrize("prefix", BACKBONE_PREFIXES)
@pytest.mark.parametrize("net", TINY)
def test_a_family_and_its_sizes_are_read_off_names_and_shapes(net: str, prefix: str) -> None:
    of_file = tensors(net, prefix)
    found = find_part("backbone", [of_file])
    assert found.family == TINY[net]
    assert not found.unused
    assert refusal("backbone", of_file.shapes) is None


def test_the_authors_own_names_of_norms_are_known_too() -> None:
    renamed = {name.replace("_norm.weight", "_norm.scale"): tuple(shape) for name, shape in KEYS["flux"].items()}
    found = find_part("backbone", [Tensors(renamed, "'a.safetensors'")])
    assert found.family == TINY["flux"]
    assert not found.unused
    assert set(found.sources) == set(find_part("backbone", [tensors("flux")]).sources)


@pytest.mark.parametrize("name", ["zimage", "lumina2"])
def test_norms_of_queries_and_keys_add_the_least_that_the_authors_torch_adds(name: str) -> None:
    norms = [m for end, m in TINY[name].empty().named_modules() if end.endswith(("norm_q", "norm_k"))]
    assert {norm.eps for norm in norms} == {torch.finfo(torch.float32).eps}


@pytest.mark.parametrize(
    ("family", "billions"),
    [
        (Flux(3072, 24, 19, 38, 4096, 768), 11.901),
        (ZImage(3840, 30, 30, 2, 2560), 6.155),
        (Chroma(3072, 24, 19, 38, 4096), 8.9),
        (Flux2(3072, 24, 5, 20, 7680), 3.876),
        (Flux2(6144, 48, 8, 48, 15360, guided=True), 32.223),
        (Flux2(4096, 32, 8, 24, 12288), 9.079),
        (Krea2(Attention(6144, 48, 12, 16384), Attention(2560, 20, 20, 6912), 28, 12), 12.82),
        (QwenImage(3072, 24, 60, 3584), 20.43),
        (Sd3(1536, 24, 4096, 2048, 192), 2.085),
        (Sd3(2432, 38, 4096, 2048, 192, normed=True), 8.146),
        (HiDream(2560, 16, 32, 4096, 4096, 2048), 17.106),
        (OmniGen2(2520, 21, 7, 32, 2, 2048), 3.967),
        (PixArt(1152, 28, 4096), 0.611),
    ],
)
def test_the_published_networks_have_their_size(family: BackboneFamily, billions: float) -> None:
    assert sum(p.numel() for p in family.empty().parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_how_far_positions_are_stretched_is_read_off_the_files_own() -> None:
    of_file = tensors("pixart", changed={"pos_embed": (1, 64 * 64, 96)})
    assert find_part("backbone", [of_file]).family == PixArt(96, 2, TEXT_WIDTH, stretch=2)


def by_diffusers(net: str) -> dict[str, Tensor]:
    """Return a file's tensors under the network's own names, as diffusers writes them."""
    table = TINY[net].table()
    of_file = weights(KEYS[net])
    return {p.name: placed(t, p).contiguous() for name, t in of_file.items() for p in places(name, table)}


@pytest.mark.parametrize(
    "net", ["zimage", "flux", "flux_schnell", "chroma", "sd3", "sd35", "flux2", "krea2", "auraflow", "pixart_alpha"]
)
def test_a_file_with_diffusers_names_is_the_same_network(tmp_path: Path, net: str) -> None:
    save_file(weights(KEYS[net]), tmp_path / "single.safetensors")
    save_file(by_diffusers(net), tmp_path / "diffusers.safetensors")
    (family, one), (other, two) = (
        Checkpoint(tmp_path / f"{n}.safetensors").load("backbone") for n in ("single", "diffusers")
    )
    assert family == other == TINY[net]
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("net", TRAINED)
def test_what_a_network_was_trained_on_follows_from_its_file(tmp_path: Path, net: str) -> None:
    save_file(weights(KEYS[net]), tmp_path / "a.safetensors")
    assert Checkpoint(tmp_path / "a.safetensors").training() == TRAINED[net]


@pytest.mark.parametrize(
    ("net", "changed", "message"),
    [
        ("zimage", {"siglip_embedder.0.weight": (8,)}, "is the omni edition of Z-Image, which is not supported"),
        ("zimage", {"layers.0.feed_forward.w1.weight": (700, 288)}, "288 wide with heads of 32 and 700 inside"),
        ("qwen", {"img_in.weight": (64, 128)}, "with heads of 32, fed 128 numbers a token for 64; supported are"),
        ("qwen", {"controlnet_blocks.0.weight": (8,)}, r"\(it looks like a ControlNet of"),
        ("flux", {"img_in.weight": (64, 80)}, "20 input channels; supported are heads .* 16 or 32 or 96 channels"),
        ("flux", {"controlnet_blocks.0.weight": (8,)}, r"\(it looks like a ControlNet of"),
        ("flux", {"vector_in.in_layer.weight": None}, "no diffusion network of a known layout .*; supported"),
    ],
)
def test_another_build_is_refused_with_what_was_found(
    net: str, changed: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        find_part("backbone", [tensors(net, changed=changed)])


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ("flux", {"reference_latents": [torch.zeros(1, 4, 8, 8)]}, "samples latents"),
        (
            "flux",
            {"reference_latents": [torch.zeros(1, 16, 8, 8)], "reference_latents_method": "index_timestep_zero"},
            "does not place reference latents by 'index_timestep_zero'; allowed are offset, index, uxo",
        ),
        ("qwen", {"reference_latents": [torch.zeros(1, 16, 8, 8)]}, r"samples latents \(batch,16,time,height,width\)"),
        (
            "qwen",
            {"reference_latents": [torch.zeros(1, 16, 1, 8, 8)], "reference_latents_method": "beside"},
            "Qwen-Image does not place reference latents by 'beside'; allowed are .*, negative_index",
        ),
        (
            "omnigen2",
            {"reference_latents": [torch.zeros(1, 16, 8, 8)] * 6},
            "OmniGen2 looks at 5 reference latents at most, and 6 were given",
        ),
        ("flux_depth", {"reference_latents": [torch.zeros(1, 16, 8, 8)]}, "reads x and an image and no"),
        ("flux", {"pooled_output": torch.zeros(1, 8)}, "a pooled output 8 wide; Flux.1 reads one 32 wide"),
    ],
)
def test_conditioning_that_a_network_cannot_take_is_refused(net: str, options: dict[str, object], message: str) -> None:
    latents = torch.zeros(1, 16, 8, 8)
    with pytest.raises(NodeError, match=message):
        TINY[net].inputs(
            torch.zeros(1, 3, TEXT_WIDTH), options, "positive", Canvas(latents, latents), torch.device("cpu"), Flow(1.0)
        )


@pytest.mark.parametrize(
    ("net", "axes", "method"),
    [("flux", (16,), "offset"), ("flux2", (128,), "index"), ("krea2", (16, 1), "index"), ("omnigen2", (16,), "")],
)
def test_references_are_work_of_a_forward_too(net: str, axes: tuple[int, ...], method: str) -> None:
    latents = torch.zeros(2, *axes, 8, 6)
    given = {"reference_latents": [torch.zeros(1, *axes, 4, 4)] * 2, "reference_latents_method": method}
    family, canvas = TINY[net], Canvas(latents, latents)
    text = torch.zeros(1, 3, TEXT_WIDTH)
    alone, beside = (
        family.cells(latents, family.inputs(text, options, "positive", canvas, torch.device("cpu"), Flow(1.0)))
        for options in ({}, given)
    )
    assert (alone, beside) == (2 * 48, 2 * (48 + 2 * 16))


def test_text_of_another_familys_encoder_is_refused() -> None:
    latents = torch.zeros(1, 16, 8, 8)
    with pytest.raises(NodeError, match="the conditioning is 768 wide, and Z-Image reads text 48 wide"):
        TINY["zimage"].inputs(
            torch.zeros(1, 3, 768), {}, "positive", Canvas(latents, latents), torch.device("cpu"), Flow(1.0)
        )


def test_an_image_concatenated_to_x_is_cropped_with_the_area() -> None:
    latents = torch.zeros(1, 16, 8, 8)
    options = {"concat_latent_image": torch.arange(64.0).view(1, 1, 8, 8).expand(1, 16, 8, 8)}
    family = TINY["flux_depth"]
    canvas = Canvas(latents, latents)
    made = family.inputs(torch.zeros(1, 3, TEXT_WIDTH), options, "positive", canvas, torch.device("cpu"), Flow(1.0))
    assert isinstance(made, FluxInputs)
    part = made.within((2, 3, 4, 5))
    assert made.concat is not None
    assert part.concat is not None
    assert torch.equal(part.concat, made.concat[..., 4:6, 5:8])
