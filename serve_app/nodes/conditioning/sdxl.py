"""The nodes that make SDXL's CONDITIONING: text, with the image sizes or the aesthetic score."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, RUNTIME
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import Texts

Line: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]
Side: TypeAlias = Annotated[int, Int(1024, min=0, max=MAX_RESOLUTION)]
Crop: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION)]


@node(
    "CLIPTextEncodeSDXLRefiner",
    "CLIP Text Encode (SDXL Refiner)",
    category="model/conditioning/stable diffusion",
    function="encode",
    order=("ascore", "width", "height", "text"),
)
async def clip_text_encode_sdxl_refiner(
    clip: CLIP,
    ascore: Annotated[float, Float(6.0, min=0.0, max=1000.0, step=0.01)],
    width: Side,
    height: Side,
    text: Line,
    runtime: RUNTIME,
) -> CONDITIONING:
    """Text for SDXL's refiner, with the image's size and its aesthetic score."""
    conditioning = await runtime.encode_text(clip, text)
    return with_options(conditioning, aesthetic_score=ascore, width=width, height=height)


@node(
    "CLIPTextEncodeSDXL", "CLIP Text Encode (SDXL)", category="model/conditioning/stable diffusion", function="encode"
)
async def clip_text_encode_sdxl(
    clip: CLIP,
    width: Side,
    height: Side,
    crop_w: Crop,
    crop_h: Crop,
    target_width: Side,
    target_height: Side,
    text_g: Line,
    text_l: Line,
    runtime: RUNTIME,
) -> CONDITIONING:
    """A text for each of SDXL's two encoders, and the sizes of the picture it describes."""
    conditioning = await runtime.encode_text(clip, Texts(g=text_g, l=text_l))
    return with_options(
        conditioning,
        width=width,
        height=height,
        crop_w=crop_w,
        crop_h=crop_h,
        target_width=target_width,
        target_height=target_height,
    )
