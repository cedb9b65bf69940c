"""The prompts that a language model writes for LTX-2."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.nodes.text.ltx_prompt import system_prompt, text_generate_ltx2_prompt
from serve_app.recipe.recipe import encoders
from serve_app.values import GenerationRequest

CLIP = encoders("ltxv", "gemma.safetensors")
OFF = {"sampling_mode": "off"}
TOLD = {
    False: "f00b22f47dad68358f5c2c7396c701db95095cf26dc3dbd6b5556eab04692071",
    True: "366efb00c104803e2276af92d6492456ef2b729e030b9112eb49faf5eea589b0",
}
GEMMA4_TOLD = {
    (False, False): "27da7a839879ab3a8d86980b482a651e6cd574eb1240eda9d607bb66756835f8",
    (True, False): "8fd2dbaf78950b511479f4cc25f18109d7688e57290e9fa0db6074ee086f0a82",
    (True, True): "fc8b5f1e5b7302fb328a2e3566610688048cb4b99e2aff2a5540d12a825bf250",
}
"""The same of whole prompts for Gemma 4, with an image or without, to think or not."""
"""Digests of what ComfyUI 0.33.0 tells Gemma 3, with an image and without."""


class Says:
    """A RUNTIME whose language model says the same to every text."""

    def __init__(self, answer: str, turn: str = "") -> None:
        self.answer = answer
        self._family = SimpleNamespace(turn=turn, sees=True)
        self.asked: list[GenerationRequest] = []

    async def family(self, clip: Any) -> Any:
        return self._family

    async def generate_text(self, clip: Any, request: GenerationRequest) -> str:
        self.asked.append(request)
        return self.answer


@pytest.mark.parametrize("of_image", TOLD)
def test_the_model_is_told_what_comfyui_tells_it(of_image: bool) -> None:
    assert sha256(system_prompt(of_image=of_image).encode()).hexdigest() == TOLD[of_image]


async def test_the_short_prompt_is_a_turn_after_what_the_model_is_told() -> None:
    runtime: Any = Says("a red fox in snow")
    assert await text_generate_ltx2_prompt(CLIP, "a fox", 9, OFF, runtime) == "a red fox in snow"
    [asked] = runtime.asked
    assert asked.text.startswith(f"<start_of_turn>system\n{system_prompt(of_image=False)}<end_of_turn>\n")
    assert asked.text.endswith("\nUser Raw Input Prompt: a fox.<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("<think>snow\nor rain</think> a red fox ", "a red fox"),
        ("<think>it never ends", "a fox"),
        ("  ", "a fox"),
    ],
)
async def test_thoughts_are_left_out_and_the_short_prompt_is_kept_where_nothing_is_left(answer: str, kept: str) -> None:
    runtime: Any = Says(answer)
    assert await text_generate_ltx2_prompt(CLIP, "a fox", 9, OFF, runtime) == kept


@pytest.mark.parametrize(("of_image", "thinking"), GEMMA4_TOLD)
async def test_gemma_4_is_told_what_comfyui_tells_it(of_image: bool, thinking: bool) -> None:
    runtime: Any = Says("<think>of snow</think> a red fox", turn="<|turn>")
    image = torch.zeros(1, 4, 4, 3) if of_image else None
    written = await text_generate_ltx2_prompt(CLIP, "a fox", 9, OFF, runtime, thinking=thinking, image=image)
    assert written == "a red fox"
    [asked] = runtime.asked
    assert sha256(asked.text.encode()).hexdigest() == GEMMA4_TOLD[of_image, thinking]
    assert (asked.image is not None) == of_image
