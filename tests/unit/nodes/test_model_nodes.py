"""The nodes that name models, and those that say what a model was trained on and is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.conditioning.edit import instruct_pix_to_pix_conditioning
from serve_app.nodes.conditioning.sdxl import clip_text_encode_sdxl, clip_text_encode_sdxl_refiner
from serve_app.nodes.loaders.models import (
    checkpoint_loader,
    clip_loader,
    diffusers_loader,
    dual_clip_loader,
    quadruple_clip_loader,
    triple_clip_loader,
    unet_loader,
    vae_loader,
)
from serve_app.nodes.model.patches import attention_backend, torch_compile_model
from serve_app.nodes.model.training import (
    model_sampling_continuous_edm,
    model_sampling_continuous_v,
    model_sampling_discrete,
)
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip, LoadedAs
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete
from serve_app.recipe.weights import Rounded
from serve_app.values import Texts

MODEL = Recipe("backbone", "checkpoints", "a.safetensors")
CLIP = Recipe("clip", "checkpoints", "a.safetensors")


@pytest.mark.parametrize(
    ("config", "backbone_patches", "clip_patches"),
    [
        ("v1-inference.yaml", (), ()),
        ("v1-inference_clip_skip_2.yaml", (), (ClipSkip(-2),)),
        ("v2-inference-v.yaml", (Discrete("v_prediction"),), ()),
    ],
)
def test_a_configuration_changes_the_prediction_or_the_text_layer_alone(config, backbone_patches, clip_patches):
    backbone, clip, vae = checkpoint_loader(config, "a.safetensors")
    assert (backbone.patches, clip.patches, vae.patches) == (backbone_patches, clip_patches, ())
    assert {recipe.name for recipe in (backbone, clip, vae)} == {"a.safetensors"}


def test_parts_of_their_own_files_are_named_by_folder():
    assert unet_loader("u.sft", "default") == Recipe("backbone", "diffusion_models", "u.sft")
    assert clip_loader("c.sft") == Recipe("clip", "text_encoders", "c.sft")
    assert vae_loader("v.sft") == Recipe("vae", "vae", "v.sft")
    assert [recipe.part for recipe in diffusers_loader("mine")] == ["backbone", "clip", "vae"]


@pytest.mark.parametrize(
    ("asked", "rounded"),
    [("fp8_e4m3fn", "float8_e4m3fn"), ("fp8_e4m3fn_fast", "float8_e4m3fn"), ("fp8_e5m2", "float8_e5m2")],
)
def test_an_eight_bit_format_rounds_the_weights(asked, rounded):
    recipe = unet_loader("u.sft", asked)
    assert recipe.patches == (Rounded(rounded),)


def test_what_a_pool_decides_leaves_the_model_as_it_is():
    assert torch_compile_model(MODEL, "inductor") == attention_backend(MODEL, "pytorch attention") == MODEL


def test_a_type_and_every_file_of_text_encoders_travel_in_the_recipe():
    def encoders(type, name, *beside):
        return Recipe("clip", "text_encoders", name, (LoadedAs(type),), beside)

    assert clip_loader("c.sft", "wan") == encoders("wan", "c.sft")
    assert dual_clip_loader("l.sft", "t5.sft", "flux") == encoders("flux", "l.sft", "t5.sft")
    assert triple_clip_loader("a", "b", "c") == encoders("sd3", "a", "b", "c")
    assert quadruple_clip_loader("a", "b", "c", "d") == encoders("hidream", "a", "b", "c", "d")


def test_training_is_put_on_the_recipe():
    discrete = model_sampling_discrete(MODEL, "v_prediction", True)
    edm = model_sampling_continuous_edm(MODEL, "edm", 120.0, 0.002)
    angle = model_sampling_continuous_v(MODEL, "v_prediction", 500.0, 0.03)
    assert discrete.patches == (Discrete("v_prediction", zsnr=True),)
    assert edm.patches == (ContinuousEdm("edm", 120.0, 0.002),)
    assert angle.patches == (ContinuousV(500.0, 0.03),)


@pytest.mark.parametrize(
    ("sampling", "low", "message"),
    [
        ("cosmos_rflow", 0.002, "is for Cosmos models"),
        ("edm_playground_v2.5", 0.002, "is for Playground"),
        ("edm", 0.0, "sigma_min 0.0 and sigma_max 120.0 leave no levels"),
    ],
)
def test_unsupported_training_is_refused_at_its_node(sampling, low, message):
    with pytest.raises(NodeError, match=message):
        model_sampling_continuous_edm(MODEL, sampling, 120.0, low)


class Oracle:
    """A runtime that answers with what it was asked."""

    async def encode_text(self, clip, text):
        return [(torch.zeros(1, 77, 8), {"pooled_output": torch.zeros(1, 8), "asked": text})]

    async def encode(self, vae, images):
        return images[:, ::8, ::8].movedim(-1, 1)


ORACLE: Any = Oracle()


def test_sdxls_text_carries_both_texts_and_all_sizes():
    sizes = {"width": 1, "height": 2, "crop_w": 3, "crop_h": 4, "target_width": 5, "target_height": 6}
    encode = clip_text_encode_sdxl(CLIP, **sizes, text_g="fox", text_l="hen", runtime=ORACLE)
    ((_, options),) = asyncio.run(encode)
    assert options["asked"] == Texts(g="fox", l="hen")
    assert {name: options[name] for name in sizes} == sizes
    assert "pooled_output" in options


def test_the_refiners_text_carries_the_size_and_the_score():
    ((_, options),) = asyncio.run(clip_text_encode_sdxl_refiner(CLIP, 7.5, 640, 480, "fox", ORACLE))
    assert (options["asked"], options["aesthetic_score"]) == ("fox", 7.5)
    assert (options["width"], options["height"]) == (640, 480)


def test_an_image_to_edit_joins_both_conditionings_and_empty_latents_take_its_size():
    image = torch.rand(1, 16, 24, 3)
    conditioning = [(torch.zeros(1, 77, 8), {"strength": 0.5})]
    vae = Recipe("vae", "vae", "v.sft")
    encode = instruct_pix_to_pix_conditioning(conditioning, conditioning, image, vae, ORACLE)
    positive, negative, latent = asyncio.run(encode)
    for ((_, options),) in (positive, negative):
        assert torch.equal(options["concat_latent_image"], image[:, ::8, ::8].movedim(-1, 1))
        assert options["strength"] == 0.5
    assert "concat_latent_image" not in conditioning[0][1]
    assert torch.equal(latent["samples"], torch.zeros(1, 3, 2, 3))
