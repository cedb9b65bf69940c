"""The node by which language models, loaded as text encoders, generate text: prompts that are refined, as a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.graph.dynamic import DYNAMIC_COMBO
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Combo, Float, InputType, Int, Text
from serve_app.nodes.sockets import AUDIO, CLIP, IMAGE, RUNTIME, STRING
from serve_app.values import GenerationRequest, TokenSampling

_SAMPLING: Mapping[str, InputType] = {
    "temperature": Float(0.7, min=0.01, max=2.0, step=0.000001),
    "top_k": Int(64, min=0, max=1000),
    "top_p": Float(0.95, min=0.0, max=1.0, step=0.01),
    "min_p": Float(0.05, min=0.0, max=1.0, step=0.01),
    "repetition_penalty": Float(1.05, min=0.0, max=5.0, step=0.01),
    "seed": Int(0, min=0, max=0xFFFFFFFFFFFFFFFF),
}
_PENALTY: Mapping[str, InputType] = {"presence_penalty": Float(0.0, min=0.0, max=5.0, step=0.01)}

SamplingMode: TypeAlias = Annotated[
    Mapping[str, Any],
    InputType(
        DYNAMIC_COMBO,
        {
            "display_name": "Sampling Mode",
            "options": [
                {
                    "key": "on",
                    "inputs": {
                        "required": {name: one.declared() for name, one in _SAMPLING.items()},
                        "optional": {name: one.declared() for name, one in _PENALTY.items()},
                    },
                },
                {"key": "off", "inputs": {"required": {}}},
            ],
        },
    ),
]

Speculation: TypeAlias = Annotated[
    str,
    Combo(
        ["auto", "off", "2", "3", "4", "5"],
        default="auto",
        tooltip="How many tokens a file's draft head guesses ahead. Nothing is guessed here, which changes no text.",
    ),
]
SystemPrompt: TypeAlias = Annotated[
    str,
    Text(
        forceInput=True,
        tooltip="What the model is told before the prompt, in its chat template; nothing where the prompt has its own.",
    ),
]
"""Inputs of ComfyUI 0.36 and later."""

MOST_IMAGES = 16
"""How many images a language model is shown: each may be 16,000 tokens of one prompt, which others wait for."""


@node(
    "TextGenerate",
    "Generate Text",
    category="text",
    function="generate",
    return_names=("generated_text",),
    order=("image", "video", "audio"),
)
async def text_generate(
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
    mtp: Speculation = "auto",
    system_prompt: SystemPrompt | None = None,
) -> STRING:
    """Text from a language model, which may see images.

    Return the text. Errors: NodeError for an encoder that generates none, is blind, or takes no system prompt, or where
    it is to hear or to see a video.
    """
    for name, value in {"video": video, "audio": audio}.items():
        if value is not None:
            raise NodeError(f"language models read texts and images here; '{name}' is linked, so take the link away")
    if image is not None and len(image) > MOST_IMAGES:
        raise NodeError(f"'image' is a batch of {len(image)}; a language model is shown at most {MOST_IMAGES} images")
    system_prompt = (system_prompt or "") if use_default_template else ""
    family = await runtime.family(clip) if image is not None or system_prompt else None
    if image is not None and not getattr(family, "sees", False):
        raise NodeError(
            f"'{clip.name}' reads text alone here, and 'image' is linked: Qwen3.5, LTX-2's Gemma 3 and Gemma 4 E2B and "
            "E4B see images if their file has the part for them, 'visual.' or 'vision_model.'"
        )
    if system_prompt and not getattr(family, "obeys", False):
        raise NodeError(
            f"'{clip.name}' takes no system prompt here, and 'system_prompt' has {len(system_prompt)} characters; "
            "Qwen3.5 takes one. Write it before the prompt, or take the link away"
        )
    numbers = {name: value for name, value in sampling_mode.items() if name != "sampling_mode"}
    sampling = TokenSampling(**numbers) if sampling_mode["sampling_mode"] == "on" else None
    seen = None if image is None else image[..., :3]
    request = GenerationRequest(prompt, max_length, sampling, thinking, use_default_template, seen, system_prompt)
    return await runtime.generate_text(clip, request)
