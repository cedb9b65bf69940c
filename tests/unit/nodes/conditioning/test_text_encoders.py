"""The nodes that give each text encoder its own text, and the one that has a text generated."""

from dataclasses import asdict, fields
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.graph.dynamic import opened
from serve_app.nodes.conditioning.qwen import text_encode_qwen_image_edit, text_encode_qwen_image_edit_plus
from serve_app.nodes.conditioning.text_encoders import (
    SYSTEM_PROMPTS,
    clip_text_encode_flux,
    clip_text_encode_lumina2,
    clip_text_encode_pixart_alpha,
    clip_text_encode_sd3,
    t5_tokenizer_options,
)
from serve_app.nodes.registry import specs
from serve_app.nodes.text.generate import text_generate
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import T5Padding
from serve_app.values import EDIT_TEMPLATE, SEEN, GenerationRequest, Texts, TokenSampling

CLIP = Recipe("clip", "text_encoders", "a.safetensors")
VAE = Recipe("vae", "vae", "v.safetensors")


class Oracle:
    """A runtime that answers with what it was asked."""

    async def encode_text(self, clip, text):
        return [(torch.zeros(1, 7, 8), {"asked": text})]

    async def generate_text(self, clip, request):
        return request

    async def encode(self, vae, images):
        return images

    async def family(self, recipe):
        return recipe


ORACLE: Any = Oracle()


async def said(made):
    ((_, options),) = await made
    return options


async def test_each_encoder_gets_its_text_and_the_models_other_conditioning():
    flux = await said(clip_text_encode_flux(CLIP, "short", "long", 2.5, ORACLE))
    assert flux == {"asked": Texts(l="short", t5xxl="long"), "guidance": 2.5}
    left_out = await said(clip_text_encode_sd3(CLIP, "l", "g", "", "none", ORACLE))
    assert left_out == {"asked": Texts(l="l", g="g", t5xxl="", skip_empty=True)}
    kept = await said(clip_text_encode_sd3(CLIP, "l", "g", "", "empty_prompt", ORACLE))
    assert kept == {"asked": Texts(l="l", g="g", t5xxl="")}
    pixart = await said(clip_text_encode_pixart_alpha(CLIP, 640, 480, "a fox", ORACLE))
    assert pixart == {"asked": "a fox", "width": 640, "height": 480}


async def test_luminas_text_is_preceded_by_a_system_prompt():
    options = await said(clip_text_encode_lumina2(CLIP, "a fox", "superior", ORACLE))
    assert options == {"asked": f"{SYSTEM_PROMPTS['superior']} <Prompt Start> a fox"}


def test_the_padding_of_t5s_texts_is_put_on_the_recipe():
    assert t5_tokenizer_options(CLIP, 1, 3) == CLIP.with_patch(T5Padding(1, 3))


def test_options_of_token_sampling_apply_only_where_tokens_are_sampled():
    spec = specs()["TextGenerate"]
    on, off = ({declared.name for declared in opened(spec, {"sampling_mode": mode}).inputs} for mode in ("on", "off"))
    # The window of the penalty is an option of YuE 2's nodes alone.
    names = {field.name for field in fields(TokenSampling)} - {"penalty_window"}
    assert on - off == {f"sampling_mode.{name}" for name in names}


async def test_a_language_model_generates_with_the_nodes_settings():
    sampling = TokenSampling(temperature=0.7, top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=1.1, seed=5)
    on = {"sampling_mode": "on", **asdict(sampling)}
    modes: Any = {"thinking": True, "use_default_template": False}
    sampled: Any = await text_generate(CLIP, "a fox", 9, on, ORACLE, **modes)
    assert sampled == GenerationRequest("a fox", 9, sampling, thinking=True, use_template=False)
    greedy: Any = await text_generate(CLIP, "a fox", 9, {"sampling_mode": "off"}, ORACLE)
    assert greedy == GenerationRequest("a fox", 9)
    with pytest.raises(NodeError, match="language models read texts and images here; 'video' is linked"):
        await text_generate(CLIP, "", 9, {"sampling_mode": "off"}, ORACLE, video=torch.zeros(1, 8, 8, 3))
    with pytest.raises(NodeError, match=r"'a\.safetensors' reads text alone here, and 'image' is linked"):
        await text_generate(CLIP, "", 9, {"sampling_mode": "off"}, ORACLE, image=torch.zeros(1, 8, 8, 3))
    with pytest.raises(NodeError, match="'image' is a batch of 17; a language model is shown at most 16 images"):
        await text_generate(CLIP, "", 9, {"sampling_mode": "off"}, ORACLE, image=torch.zeros(17, 8, 8, 3))
    with pytest.raises(NodeError, match=r"'a\.safetensors' takes no system prompt here, .* has 9 characters"):
        await text_generate(CLIP, "", 9, {"sampling_mode": "off"}, ORACLE, system_prompt="Be brief.")


async def test_an_image_to_edit_is_seen_and_referred_to_at_about_a_megapixel():
    image = torch.rand(1, 300, 500, 4)
    options = await said(text_encode_qwen_image_edit(CLIP, "make it red", ORACLE, vae=VAE, image=image))
    assert options["asked"].text == "make it red"
    assert options["asked"].template is None
    (seen,) = options["asked"].images
    assert seen.shape == (1, 793, 1322, 3)
    assert torch.equal(options["reference_latents"][0], seen)
    assert await said(text_encode_qwen_image_edit(CLIP, "a fox", ORACLE)) == {"asked": "a fox"}


async def test_several_images_are_numbered_as_they_are_linked_and_seen_small():
    images = {"image1": torch.rand(1, 300, 500, 3), "image3": torch.rand(1, 64, 64, 3)}
    options = await said(text_encode_qwen_image_edit_plus(CLIP, "join them", ORACLE, vae=VAE, **images))
    assert options["asked"].text == f"Picture 1: {SEEN}Picture 3: {SEEN}join them"
    assert options["asked"].template == EDIT_TEMPLATE
    assert [tuple(seen.shape) for seen in options["asked"].images] == [(1, 297, 496, 3), (1, 384, 384, 3)]
    assert [tuple(r.shape) for r in options["reference_latents"]] == [(1, 792, 1320, 3), (1, 1024, 1024, 3)]
    none = await said(text_encode_qwen_image_edit_plus(CLIP, "a fox", ORACLE, vae=VAE))
    assert (none["asked"].images, none["asked"].template) == ((), EDIT_TEMPLATE)
    assert "reference_latents" not in none
