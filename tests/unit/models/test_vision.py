"""Image encoders and style models: what a file is taken for, which images are seen, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import ClipVision, Flux, Redux, StyleAdapter
from serve_app.models.families.family import Family, VisionFamily
from serve_app.models.families.shared.attention_bias import attention_bias
from serve_app.models.families.unet.unclip import image_vector
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.vision import LONGEST, ImageEncoder, StyleModel
from serve_app.recipe.recipe import Part
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Canvas
from serve_app.values import ClipVisionOutput
from tests.parity.dit_cases import noise, weights

CPU = torch.device("cpu")
VIT_L = ClipVision(layers=24, width=32, hidden_width=48, side=4, patch=8, projection=24)
SIGLIP = ClipVision(layers=27, width=32, hidden_width=48, side=4, patch=16, siglip=True)


def named(family: VisionFamily) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an encoder's file."""
    ours = family.empty().state_dict()
    return {
        name if name.startswith("visual_projection") else f"vision_model.{name}": tuple(tensor.shape)
        for name, tensor in ours.items()
    }


def taken_for(shapes: dict[str, tuple[int, ...]], part: Part = "clip_vision") -> Family:
    return find_part(part, [Tensors(shapes, "'a.safetensors'")]).family


@pytest.mark.parametrize("family", [VIT_L, SIGLIP, ClipVision(32, 48, 64, 16, 14, 40), ClipVision(24, 32, 48, 24, 14)])
def test_a_file_is_taken_for_the_encoder_it_is(family: ClipVision) -> None:
    assert taken_for(named(family)) == family


def test_an_encoder_in_a_file_with_a_text_encoder_and_a_head_is_taken_alone() -> None:
    others = {"text_model.final_layer_norm.weight": (32,), "vision_model.head.probe": (1, 1, 32)}
    found = find_part("clip_vision", [Tensors(named(SIGLIP) | others, "'a'")])
    assert (found.family, found.unused) == (SIGLIP, ())


@pytest.mark.parametrize(
    ("family", "size"), [(VIT_L, 32), (ClipVision(27, 32, 48, 27, 14, siglip=True), 384), (SIGLIP, 64)]
)
def test_an_image_is_as_large_as_its_patches_and_siglips_384_a_little_larger(family: ClipVision, size: int) -> None:
    assert family.image_size == size


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "holds no image encoder of a known layout; supported are CLIP's ViT-L, ViT-H and ViT-bigG and SigLIP"),
        (named(ClipVision(12, 32, 48, 4, 8)), "has an image encoder of 12 layers, 32 wide, for 16 patches; supported"),
        (
            named(VIT_L) | {"vision_model.embeddings.position_embedding.weight": (19, 32)},
            "has an image encoder of 24 layers, 32 wide, for 18 patches",
        ),
        (
            named(SIGLIP) | {"vision_model.embeddings.patch_embedding.weight": (32, 768)},
            "has an image encoder for images of any size, as SigLIP 2 NaFlex is",
        ),
        ({"layer.23.attention.o_proj.bias": (1024,)}, r"holds no image encoder .* \(it looks like .* of DINO"),
    ],
)
def test_what_is_no_image_encoder_is_refused_by_name(changed: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelFileError, match=f"'a.safetensors' {message}"):
        taken_for(changed)


def test_a_style_model_is_taken_for_what_it_is() -> None:
    redux = {"redux_up.weight": (48, 32), "redux_up.bias": (48,), "redux_down.weight": (40, 48)}
    assert taken_for(redux | {"redux_down.bias": (40,)}, "style_model") == Redux(32, 48, 40)
    adapter = {"style_embedding": (1, 8, 32), "proj": (32, 24), "transformer_layes.0.mlp.c_fc.weight": (128, 32)}
    assert taken_for(adapter, "style_model") == StyleAdapter(32, 128, 1, 8, 24)
    with pytest.raises(ModelFileError, match=r"holds no style model of a known layout .*; supported are Flux\.1 Redux"):
        taken_for(named(VIT_L), "style_model")
    with pytest.raises(ModelFileError, match="a style model 12 wide, not a multiple of 8"):
        taken_for(adapter | {"style_embedding": (1, 8, 12)}, "style_model")


def test_a_file_that_lacks_a_tensor_says_which(tmp_path: Path) -> None:
    shapes = named(VIT_L)
    del shapes["vision_model.post_layernorm.bias"]
    save_file(weights(shapes), tmp_path / "a.safetensors")
    with pytest.raises(
        ModelFileError, match=r"'a\.safetensors' lacks 1 tensors of its image encoder, 'post_layernorm\.bias'"
    ):
        Checkpoint(tmp_path / "a.safetensors").load("clip_vision")


def encoder(family: ClipVision) -> ImageEncoder:
    network = family.build().eval().requires_grad_(False)
    return ImageEncoder(family, network)


@torch.inference_mode()
def test_the_middle_is_seen_where_an_image_is_cropped_and_all_of_it_where_not() -> None:
    see = encoder(VIT_L).see
    image = noise("image", (1, 32, 96, 3)).sigmoid()
    middle = image[:, :, 32:64]
    [cropped], [alone] = see([image], crop=True), see([middle], crop=True)
    assert torch.equal(cropped.image_embeds, alone.image_embeds)
    [squeezed] = see([image], crop=False)
    assert not torch.allclose(squeezed.image_embeds, alone.image_embeds)


def test_how_opaque_an_image_is_is_not_seen() -> None:
    see, image = encoder(VIT_L).see, noise("image", (1, 32, 32, 4)).sigmoid()
    [with_alpha], [without] = see([image], crop=True), see([image[..., :3]], crop=True)
    assert torch.equal(with_alpha.image_embeds, without.image_embeds)


@torch.inference_mode()
def test_an_image_whose_whole_would_have_to_be_made_huge_is_refused() -> None:
    image = torch.zeros(1, 2, 2 * LONGEST + 1, 3)
    with pytest.raises(NodeError, match=r"an image of 201×2 pixels is more than 100 times as long as wide"):
        encoder(VIT_L).see([image], crop=True)
    [seen] = encoder(VIT_L).see([image], crop=False)
    assert seen.last_hidden_state.shape == (1, 17, 32)


def test_a_style_model_refuses_what_another_encoder_sees() -> None:
    style = StyleModel(Redux(32, 48, 40), Redux(32, 48, 40).build().requires_grad_(False))
    assert style.tokens(torch.zeros(2, 5, 32)).shape == (1, 10, 40)
    with pytest.raises(NodeError, match=r"are 24 wide; Flux\.1 Redux reads states 32 wide"):
        style.tokens(torch.zeros(2, 5, 24))


def test_unclip_refuses_what_another_encoder_sees() -> None:
    output = ClipVisionOutput(*(torch.zeros(1, 17, 32),) * 3)
    told = {"clip_vision_output": output, "strength": 1.0, "noise_augmentation": 0.0}
    with pytest.raises(NodeError, match="are of shape 17×32; this backbone reads a vector 768 wide, of CLIP's ViT-L"):
        image_vector({"unclip_conditioning": [told]}, 768, 0)


def test_unclips_noise_is_of_the_runs_seed() -> None:
    output = ClipVisionOutput(*(noise("seen", (1, 768)),) * 3)
    told = {"unclip_conditioning": [{"clip_vision_output": output, "strength": 1.0, "noise_augmentation": 0.5}]}
    one, again, another = (image_vector(told, 768, seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.allclose(one, another)
    assert torch.equal(one[:, 768:], another[:, 768:])


def test_a_bias_of_attention_is_stretched_to_the_image() -> None:
    mask = torch.zeros(1, 2 + 6, 2 + 6)
    mask[:, 2:, 1] = torch.arange(6.0)
    bias = attention_bias({"attention_mask": mask, "attention_mask_img_shape": (2, 3)}, 2, 1, CPU)
    assert bias is not None
    assert bias.stretched((2, 3)) is bias
    stretched = bias.stretched((4, 3)).added
    assert stretched.shape == (1, 14, 14)
    assert torch.allclose(stretched[0, 2:, 1].view(4, 3)[[0, 3]], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    assert float(stretched[0, :2].abs().max()) == 0


def test_a_bias_of_attention_that_forbids_can_be_stretched() -> None:
    mask = torch.zeros(1, 3, 3)
    mask[:, 2, 0] = -torch.inf
    bias = attention_bias({"attention_mask": mask, "attention_mask_img_shape": (1, 1)}, 2, 2, CPU)
    assert bias is not None
    stretched = bias.stretched((3, 4)).added
    assert stretched.shape == (2, 14, 14)
    assert bool(stretched.isfinite().all())
    assert bool((stretched[:, 2:, 0] < -6e4).all())


def test_a_bias_of_attention_is_work_that_is_counted() -> None:
    family = Flux(64, 2, 1, 1, 48, 32)
    x, text = torch.zeros(2, 16, 8, 7), torch.zeros(1, 5, 48)
    options = {"attention_mask": torch.zeros(1, 6, 6), "attention_mask_img_shape": (1, 1)}
    plain, biased = (family.inputs(text, said, "positive", Canvas(x, x), CPU, Flow(1.0)) for said in ({}, options))
    assert family.cells(x, plain) == 2 * 56
    assert family.cells(x, biased) == 2 * 56 + 2 * (5 + 4 * 4) ** 2 // 64
    # None shares its forward that would have to have one too.
    assert family.group_key(x, plain) != family.group_key(x, biased)


def test_a_bias_of_another_size_is_refused() -> None:
    options = {"attention_mask": torch.zeros(1, 9, 9), "attention_mask_img_shape": (1, 1)}
    with pytest.raises(NodeError, match=r"of shape 1×9×9; 5 tokens of text and an image of 1×1 tokens need N×6×6"):
        attention_bias(options, 5, 1, CPU)
