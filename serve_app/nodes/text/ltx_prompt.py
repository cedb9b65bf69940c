"""The node by which a language model writes LTX-2's prompts. Source of its system prompts: Lightricks, LTX-2."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Int, Text
from serve_app.nodes.sockets import AUDIO, CLIP, IMAGE, RUNTIME, STRING
from serve_app.nodes.text.generate import SamplingMode, text_generate

THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)


@node(
    "TextGenerateLTX2Prompt",
    "Generate LTX2 Prompt",
    category="text",
    return_names=("generated_text",),
    order=("image", "video", "audio"),
)
async def text_generate_ltx2_prompt(
    clip: CLIP,
    prompt: Annotated[str, Text("", multiline=True, dynamicPrompts=True)],
    max_length: Annotated[int, Int(512, min=1, max=32768)],
    sampling_mode: SamplingMode,
    runtime: RUNTIME,
    thinking: Annotated[bool, Bool(False)] = False,
    use_default_template: Annotated[bool, Bool(True, advanced=True)] = True,
    image: IMAGE | None = None,
    video: IMAGE | None = None,
    audio: AUDIO | None = None,
) -> STRING:
    """A prompt that says in detail what a short one asks for. Return the short one where the model writes none.

    Errors: NodeError as of TextGenerate.
    """
    of_image = image is not None
    if getattr(await runtime.family(clip), "turn", "") == GEMMA4_TURN:
        turns = gemma4_turns(prompt, of_image=of_image, thinking=thinking)
    else:
        turns = (
            f"<start_of_turn>system\n{system_prompt(of_image=of_image)}<end_of_turn>\n<start_of_turn>user\n"
            f"{IMAGE_MARK if of_image else ''}\nUser Raw Input Prompt: {prompt}.<end_of_turn>\n<start_of_turn>model\n"
        )
    given = (clip, turns, max_length, sampling_mode, runtime, thinking, use_default_template, image, video, audio)
    return THOUGHT.sub("", await text_generate(*given)).strip() or prompt


IMAGE_MARK = "\n<image_soft_token>\n"
GEMMA4_TURN = "<|turn>"


def gemma4_turns(prompt: str, *, of_image: bool, thinking: bool) -> str:
    """Return what Gemma 4 is told, for LTX-2.5."""
    # Imported here: diffusers' pipelines take seconds, of every replica's start.
    from diffusers.pipelines.ltx2.utils import LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT, LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT

    system = (LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT if of_image else LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT).strip()
    asked = f"User Raw Input Prompt: {prompt}." if of_image else f"user prompt: {prompt}"
    return (
        f"<|turn>system\n{'<|think|>' + chr(10) if thinking else ''}{system}<turn|>\n<|turn>user\n"
        f"{'<|image><|image|><image|>' + chr(10) * 2 if of_image else ''}{asked}<turn|>\n<|turn>model\n"
        f"{'' if thinking else '<|channel>final' + chr(10)}"
    )


@lru_cache
def system_prompt(*, of_image: bool) -> str:
    """Return the model's system prompt. of_image: for a video that begins with an image.

    It is diffusers' copy with its paragraphs in one line each, as the authors and ComfyUI have them.
    """
    # Imported here: diffusers' pipelines take seconds, of every replica's start.
    from diffusers.pipelines.ltx2.utils import I2V_DEFAULT_SYSTEM_PROMPT, T2V_DEFAULT_SYSTEM_PROMPT

    of_text = _unwrapped(T2V_DEFAULT_SYSTEM_PROMPT).replace("\n\n#### Guidelines", "\n#### Guidelines")
    if of_image:
        first, _, _ = of_text.partition("\n")
        return f"{first}\n{_unwrapped(I2V_DEFAULT_SYSTEM_PROMPT)}".replace("output: Style", "output:\nStyle")
    return of_text.replace("Example Input:", "Example\nInput:").replace(" Output: Style", "\nOutput:\nStyle")


def _unwrapped(text: str) -> str:
    lines: list[str] = []
    for line in text.strip().splitlines():
        continues = lines and lines[-1] and line.strip() and not line.strip().startswith(("-", "#"))
        lines[-1:] = [f"{lines[-1]} {line.strip()}"] if continues else [*lines[-1:], line.rstrip()]
    return "\n".join(lines)
