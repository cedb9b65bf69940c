"""The nodes of Flux.3: several references for both conditionings at once, and a prompt with a layout of boxes.

The versions of ComfyUI that have these classes cannot be read: names and widgets are those of the official templates,
the layout is that of the authors' prompt upsampler as diffusers documents it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Autogrow, DynamicCombo, Float, InputType, Text
from serve_app.nodes.sockets import ARRAY, CONDITIONING, LATENT, RUNTIME, STRING, VAE
from serve_app.sampling.guidance.conditioning import with_more

REFERENCES = 10
CELL = 16
"""Pixels of a latent cell along each side."""
_REFERENCE = re.compile(r"<(ref_image_\d+)>")


@node(
    "ReferenceMultiLatent",
    "Set Reference Multi Latent",
    category="model/conditioning",
    function="append",
    return_names=("positive", "negative", "empty_latent"),
    description="Gives a model that edits images several images to go by, with both conditionings.",
)
async def reference_multi_latent(
    positive: CONDITIONING,
    scaling: Annotated[
        Mapping[str, Any],
        DynamicCombo({"resize": {"megapixels": Float(1.0, min=0.01, max=16.0, step=0.01)}, "keep": {}}),
    ],
    runtime: RUNTIME,
    negative: CONDITIONING | None = None,
    vae: VAE | None = None,
    images: Annotated[
        Mapping[str, Tensor] | None,
        Autogrow(InputType("IMAGE"), name="image", prefix="image", least=0, most=REFERENCES),
    ] = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """Several images to go by, in the order of their inputs.

    Return both conditionings with the images' latents after those that they have, and empty latents of the first
    image's size; without a negative one, the positive one with nothing added.

    scaling: "resize", with about how many megapixels an image then has, or "keep". Sides become multiples of a cell.
    Errors: NodeError for images without a VAE, or without any image.
    """
    given = [image for _, image in sorted((images or {}).items(), key=lambda item: int(item[0].removeprefix("image")))]
    if not given:
        raise NodeError("no image is given; this node needs at least image0, whose size the empty latents take")
    if vae is None:
        raise NodeError(f"{len(given)} images are given without a VAE, which makes latents of them")
    latents = [await runtime.encode(vae, _sized(image[:1, ..., :3], scaling.get("megapixels"))) for image in given]
    allow(*latents[0].shape)
    without = positive if negative is None else negative
    for latent in latents:
        positive = with_more(positive, reference_latents=latent)
        if negative is not None:
            without = with_more(without, reference_latents=latent)
    return positive, without, {"samples": torch.zeros(latents[0].shape)}


@node(
    "Flux3LayoutPrompt",
    "FLUX 3 Layout Prompt",
    category="utilities",
    function="compose",
    return_names=("prompt",),
    description="Writes boxes and what is in them after a prompt, which cites them as <obj_1>, <obj_2> and so on.",
)
def flux3_layout_prompt(prompt: Annotated[str, Text(multiline=True, dynamicPrompts=True)], element: ARRAY) -> STRING:
    """A prompt and the table of its boxes as Flux.3 was trained to read them.

    Of a prompt that cites a reference (<ref_image_0>) each box is where the element is in the first one cited, and
    stays. Return the prompt alone without boxes. Errors: NodeError for elements without a box.
    """
    if not element:
        return prompt
    cited = _REFERENCE.search(prompt)
    rows = [_row(number, one, None if cited is None else cited[1]) for number, one in enumerate(element, 1)]
    return f"{prompt.rstrip()} {json.dumps(rows, ensure_ascii=False)}"


def _row(number: int, element: Any, reference: str | None) -> dict[str, Any]:
    box = element.get("bbox") if isinstance(element, Mapping) else None
    if not isinstance(box, Sequence) or len(box) != 4:
        raise NodeError(f"element {number} is {str(element)[:200]}; it must have a bbox of four numbers")
    written = str(element.get("text") or "")
    text = f'the text "{written}"' if written else ""
    says = ", ".join(part for part in (text, str(element.get("desc") or "")) if part)
    if reference is None:
        return {"id": f"obj_{number}", "bbox": [*box], "desc": says}
    return {"id": f"obj_{number}", "from": reference, "src_bbox": [*box], "tgt_bbox": [*box], "desc": says}


def _sized(image: Tensor, megapixels: float | None) -> Tensor:
    """Return an image (1,H,W,C) of about this many megapixels, or of its own, with sides that are multiples of CELL."""
    height, width = image.shape[1:3]
    scale = 1.0 if megapixels is None else math.sqrt(megapixels * 1024**2 / (width * height))
    wide, high = (max(CELL, round(side * scale / CELL) * CELL) for side in (width, height))
    return image if (wide, high) == (width, height) else resize(image, wide, high, "lanczos")
