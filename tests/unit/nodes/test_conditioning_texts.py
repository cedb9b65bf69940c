"""The nodes that give each text encoder its own text, and the one that is known but never writes any."""

from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.graph.dynamic import opened
from serve_app.nodes.builtin.conditioning_texts import (
    SYSTEM_PROMPTS,
    CLIPTextEncodeFlux,
    CLIPTextEncodeLumina2,
    CLIPTextEncodePixArtAlpha,
    CLIPTextEncodeSD3,
    T5TokenizerOptions,
)
from serve_app.nodes.builtin.text_generate import TextGenerate
from serve_app.nodes.registry import specs
from serve_app.values import Recipe, T5Padding, Texts

CLIP = Recipe("clip", "text_encoders", "a.safetensors")


class Oracle:
    """A runtime that answers with what it was asked."""

    async def encode_text(self, clip, text):
        return [(torch.zeros(1, 7, 8), {"asked": text})]


ORACLE: Any = Oracle()


async def said(made):
    ((_, options),) = (await made)[0]
    return options


async def test_each_encoder_is_given_its_text_with_what_the_model_is_told_beside_it():
    flux = await said(CLIPTextEncodeFlux().encode(CLIP, "short", "long", 2.5, ORACLE))
    assert flux == {"asked": Texts(l="short", t5xxl="long"), "guidance": 2.5}
    left_out = await said(CLIPTextEncodeSD3().encode(CLIP, "l", "g", "", "none", ORACLE))
    assert left_out == {"asked": Texts(l="l", g="g", t5xxl="", skip_empty=True)}
    kept = await said(CLIPTextEncodeSD3().encode(CLIP, "l", "g", "", "empty_prompt", ORACLE))
    assert kept == {"asked": Texts(l="l", g="g", t5xxl="")}
    pixart = await said(CLIPTextEncodePixArtAlpha().encode(CLIP, 640, 480, "a fox", ORACLE))
    assert pixart == {"asked": "a fox", "width": 640, "height": 480}


async def test_lumina_is_told_a_sentence_before_the_text():
    options = await said(CLIPTextEncodeLumina2().encode(CLIP, "a fox", "superior", ORACLE))
    assert options == {"asked": f"{SYSTEM_PROMPTS['superior']} <Prompt Start> a fox"}


def test_how_t5s_texts_are_filled_up_is_put_on_the_recipe():
    assert T5TokenizerOptions().set_options(CLIP, 1, 3) == (CLIP.with_patch(T5Padding(1, 3)),)


def test_a_language_model_is_known_with_the_inputs_of_each_mode_and_refused_when_it_is_to_write():
    spec = specs()["TextGenerate"]
    on, off = ({declared.name for declared in opened(spec, {"sampling_mode": mode}).inputs} for mode in ("on", "off"))
    assert on - off == {
        f"sampling_mode.{name}"
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "presence_penalty")
    }
    with pytest.raises(NodeError, match="language models do not write text here; switch the prompt's enhancement off"):
        TextGenerate().generate(clip=CLIP, prompt="a fox", max_length=9, sampling_mode={"sampling_mode": "off"})
