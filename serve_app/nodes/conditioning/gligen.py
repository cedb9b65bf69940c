"""The nodes of GLIGEN: texts with the boxes of the image that they belong in."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, File, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, GLIGEN, RUNTIME
from serve_app.recipe.controls import Grounding
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning

CELL = 8
"""Pixels along a side of a latent cell."""


@node("GLIGENLoader", "Load GLIGEN Model", category="model/loaders", function="load_gligen")
def gligen_loader(gligen_name: Annotated[str, File("gligen")]) -> GLIGEN:
    """A GLIGEN model."""
    return Recipe("model_patch", "gligen", gligen_name)


Side: TypeAlias = Annotated[int, Int(64, min=8, max=MAX_RESOLUTION, step=8)]
Corner: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=8)]


@node("GLIGENTextBoxApply", "Apply GLIGEN Text Box", category="model/conditioning/gligen", function="append")
async def gligen_text_box_apply(
    conditioning_to: CONDITIONING,
    clip: CLIP,
    gligen_textbox_model: GLIGEN,
    text: Annotated[str, Text(multiline=True, dynamicPrompts=True)],
    width: Side,
    height: Side,
    x: Corner,
    y: Corner,
    runtime: RUNTIME,
) -> CONDITIONING:
    """A text in a box of the picture, beside those that a conditioning has.

    Return every entry with one more box, in pixels; this model reads all boxes of an entry.

    Errors: NodeError for a text encoder that does not make one vector of a text.
    """
    pooled = (await runtime.encode_text(clip, text))[0][1].get("pooled_output")
    if pooled is None:
        raise NodeError("the text encoder makes no one vector of a text, which GLIGEN reads; CLIP's do")
    box = (pooled, (height // CELL, width // CELL, y // CELL, x // CELL))
    made: Conditioning = []
    for cond, options in conditioning_to:
        before = options.get("gligen")
        boxes = (*(() if before is None else before.boxes), box)
        made.append((cond, {**options, "gligen": Grounding(gligen_textbox_model, boxes)}))
    return made
