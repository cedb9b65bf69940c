"""What Qwen-Image 2.1's files are taken for, where the tokens of its sequence lie, and what its nodes say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import QwenImage21, Wan22Vae
from serve_app.models.families.autoencoders.qwen_image21 import QwenImage21Vae
from serve_app.models.families.dit.qwen_image21 import sequence_runs
from serve_app.models.families.family import Rows
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.kernels.packing import move_to
from serve_app.nodes.conditioning.qwen21 import qwen_image21_cache, text_encode_qwen_image21
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.store.models.kinds import BACKBONE_PREFIXES
from tests.parity.dit_cases import noise
from tests.parity.qwen21_cases import BACKBONE, VAE, drawn, file_of

CPU = torch.device("cpu")
CLIP, VAE_FILE = Recipe("clip", "text_encoders", "a.safetensors"), Recipe("vae", "vae", "v.safetensors")


def named(
    tensors: dict[str, Tensor], prefix: str = "", changed: Mapping[str, tuple[int, ...]] | None = None
) -> Tensors:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()} | dict(changed or {})
    return Tensors({prefix + name: shape for name, shape in shapes.items()}, "'a.safetensors'")


@pytest.mark.parametrize("prefix", BACKBONE_PREFIXES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_backbone_is_read_off_either_layout(prefix: str, fused: bool) -> None:
    tensors = drawn(BACKBONE)
    found = find_part("backbone", [named(file_of(BACKBONE, tensors) if fused else tensors, prefix)])
    assert found.family == BACKBONE
    assert not found.unused
    assert set(found.sources) == set(tensors)


def test_the_published_networks_have_the_size_of_their_files() -> None:
    """13.25 GB and 644.2 MB in bfloat16, where a thousand is 1024."""
    backbone, vae = QwenImage21(4096, 32, 32, 4096).empty(), QwenImage21Vae(96, 144).empty()
    assert sum(p.numel() for p in backbone.parameters()) * 2 / 2**30 == pytest.approx(13.25, abs=0.005)
    assert sum(p.numel() for p in vae.parameters()) * 2 / 2**20 == pytest.approx(644.2, abs=0.1)


def test_an_autoencoder_is_distinguished_from_wan_22s_by_its_flat_convolutions() -> None:
    tensors = file_of(VAE, drawn(VAE))
    assert find_part("vae", [named(tensors)]).family == VAE
    found = find_part("vae", [named(tensors, "", {"decoder.head.2.weight": (12, 16, 3, 3, 3)})])
    assert isinstance(found.family, Wan22Vae)


def test_another_build_and_a_controlnet_are_refused() -> None:
    tensors = file_of(BACKBONE, drawn(BACKBONE))
    with pytest.raises(ModelFileError, match="64 wide with heads of 24 and 192 inside; supported are heads"):
        find_part("backbone", [named(tensors, "", {"transformer_blocks.0.attn.norm_q.weight": (24,)})])
    with pytest.raises(ModelFileError, match="no diffusion network of a known layout"):
        find_part("backbone", [named(tensors, "", {"control_blocks.0.after_proj.weight": (64, 64)})])


def test_a_tower_of_a_depth_that_is_not_known_is_refused() -> None:
    shapes = {"visual.deepstack_merger_list.0.norm.weight": (8,), "visual.blocks.0.norm1.weight": (8,)}
    with pytest.raises(ModelFileError, match="has a Qwen3-VL tower of 1 layers; supported are 24 or 27"):
        Qwen3VisionTower.probe(Tensors(shapes, "'a.safetensors'"))


def test_images_lie_in_the_text_where_their_slots_say_and_are_centred_on_the_image_to_make() -> None:
    first, image, rest, made = sequence_runs(3, (2,), [(3, 2), (4, 4)])
    assert [(run.start, run.length, run.image) for run in (first, image, rest, made)] == [
        (0, 2, None),
        (2, 6, 0),
        (8, 1, None),
        (9, 16, 1),
    ]
    assert first.at.tolist() == [[0, 0, 0], [1, 1, 1]]
    # A side of three on one of four: its middle is between two tokens of the other.
    assert image.at[:, 0].tolist() == [2] * 6
    assert image.at[:, 1].tolist() == [-1.5, -1.5, -0.5, -0.5, 0.5, 0.5]
    assert image.at[:, 2].tolist() == [-1, 0] * 3
    # The image takes three places of the count: as many as its longer side has.
    assert rest.at.tolist() == [[5, 5, 5]]
    assert made.at[0].tolist() == [6, -2, -2]


def network() -> Any:
    made = BACKBONE.build().eval()
    made.load_state_dict(drawn(BACKBONE))
    return made


def row(sigma: float, length: int = 5, **options: Any) -> Rows:
    x = noise(f"x {sigma}", (1, 64, 4, 6))
    cond = noise(f"text {sigma}", (1, length, BACKBONE.text_width))
    return Rows(
        x, sigma, torch.tensor([sigma]), BACKBONE.inputs(cond, options, "positive", Canvas(x, x), CPU, Discrete())
    )


@torch.inference_mode()
def test_rows_that_share_a_forward_are_as_if_alone() -> None:
    references = [noise("first", (1, 64, 3, 4)), noise("second", (1, 64, 2, 2))]
    rows = [row(sigma, reference_latents=references, image_slots=[1, 3]) for sigma in (0.9, 0.4)]
    backbone = network()
    for alone, together in zip(rows, BACKBONE.forward(backbone, rows), strict=True):
        torch.testing.assert_close(together, BACKBONE.forward(backbone, [alone])[0], rtol=1e-4, atol=1e-5)
    moved = row(0.9, reference_latents=references, image_slots=[1, 4])
    assert (BACKBONE.forward(backbone, [moved])[0] - BACKBONE.forward(backbone, rows[:1])[0]).abs().max() > 1e-3


@torch.inference_mode()
def test_in_half_the_bits_a_network_and_its_autoencoder_answer_nearly_the_same() -> None:
    asked = row(0.4, reference_latents=[noise("first", (1, 64, 3, 4))], image_slots=[1])
    (whole,), (half,) = (BACKBONE.forward(made, [asked]) for made in (network(), network().bfloat16()))
    assert half.dtype == torch.float32
    assert float((half - whole).norm() / whole.norm()) < 0.05
    vae = VAE.build().eval()
    vae.load_state_dict(drawn(VAE))
    latents = noise("latents", (1, 64, 2, 3))
    pixels = VAE.decode(vae, latents)
    rounded = VAE.decode(vae.bfloat16(), latents.bfloat16()).float()
    assert float((rounded - pixels).norm() / pixels.norm()) < 0.05
    assert VAE.encode(vae, rounded.bfloat16()).shape == latents.shape


def test_a_lora_of_the_files_fused_layer_changes_both_of_the_networks() -> None:
    names = BACKBONE.lora_names([f"{layer}.weight" for layer, _ in network().named_modules() if layer])
    fused = names["diffusion_model.transformer_blocks.1.img_mlp.gate_up"]
    assert [(place.name, place.rows) for place in fused if not isinstance(place, str)] == [
        ("transformer_blocks.1.img_mlp.gate_layer.weight", (0, 192)),
        ("transformer_blocks.1.img_mlp.proj.weight", (192, 384)),
    ]
    assert names["diffusion_model.transformer_blocks.0.attn.to_out.0"] == "transformer_blocks.0.attn.to_out.0.weight"


def test_rows_of_unlike_sequences_do_not_share_a_forward() -> None:
    key = lambda asked: BACKBONE.group_key(asked.x, asked.inputs)  # noqa: E731
    reference = [noise("first", (1, 64, 2, 2))]
    assert key(row(0.9)) == key(row(0.4))
    unlike = [row(0.9), row(0.9, 6), row(0.9, reference_latents=reference)]
    unlike += [row(0.9, reference_latents=reference, image_slots=[2])]
    assert len({key(asked) for asked in unlike}) == 4


def test_references_of_another_autoencoder_are_refused() -> None:
    with pytest.raises(NodeError, match=r"this model samples latents \(batch,64,height,width\)"):
        row(0.9, reference_latents=[torch.zeros(1, 16, 8, 8)])


@torch.inference_mode()
def test_the_autoencoder_is_the_same_where_layers_are_packed() -> None:
    plain, packed = VAE.build().eval().requires_grad_(False), VAE.build().eval().requires_grad_(False)
    for vae in (plain, packed):
        vae.load_state_dict(drawn(VAE))
    move_to(packed, CPU, torch.float32)
    latents = noise("latents", (1, 64, 2, 3))
    torch.testing.assert_close(VAE.decode(packed, latents), VAE.decode(plain, latents), rtol=1e-4, atol=1e-5)


class Oracle:
    """A runtime that answers with what it was asked."""

    async def encode_text(self, clip: Recipe, text: Any) -> Any:
        return [(torch.zeros(1, 7, 8), {"asked": text})]

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return images


async def told(**given: Any) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    runtime: Any = Oracle()
    made = await text_encode_qwen_image21(CLIP, "a fox", "", runtime=runtime, **given)
    ((_, positive),), ((_, negative),), latent = made
    return positive, negative, latent["samples"]


async def test_images_are_resized_once_for_the_encoder_and_the_vae_and_the_first_gives_the_size() -> None:
    images = {"image_10": torch.rand(1, 64, 64, 3), "image_2": torch.rand(2, 100, 200, 4)}
    positive, negative, latent = await told(resolution=64, images=images, vae=VAE_FILE)
    assert [tuple(r.shape) for r in positive["reference_latents"]] == [(1, 32, 96, 4), (1, 64, 64, 3)]
    assert [tuple(seen.shape) for seen in positive["asked"].images] == [(1, 32, 96, 3), (1, 64, 64, 3)]
    assert (positive["asked"].text, negative["asked"].text) == ("a fox", " ")
    assert positive["asked"].placed
    assert positive["asked"].template is None
    assert latent.shape == (1, 64, 2, 6)


async def test_what_is_transparent_is_seen_over_white() -> None:
    image = torch.zeros(1, 32, 32, 4)
    positive, _, _ = await told(resolution=0, images={"image_1": image}, vae=VAE_FILE)
    assert torch.equal(positive["asked"].images[0], torch.ones(1, 32, 32, 3))
    assert torch.equal(positive["reference_latents"][0], image)


async def test_without_a_vae_the_model_has_what_the_encoder_sees() -> None:
    positive, _, latent = await told(resolution=0, images={"image_1": torch.rand(1, 50, 20, 3)})
    assert not positive["asked"].placed
    assert "reference_latents" not in positive
    assert latent.shape == (1, 64, 4, 2)
    alone, _, square = await told(resolution=512)
    assert alone["asked"].images == ()
    assert square.shape == (1, 64, 32, 32)


def test_the_cache_changes_nothing() -> None:
    model = Recipe("backbone", "diffusion_models", "a.safetensors")
    assert qwen_image21_cache(model, "cpu", "int4") == model
