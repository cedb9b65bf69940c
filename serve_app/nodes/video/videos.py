"""The nodes that load VIDEO, make it of images and sound, take it apart, cut it and save it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.media.video_file import Style, webm_from_frames
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.nodes.inputs import Bool, Combo, DynamicCombo, Float, InputType, Text
from serve_app.nodes.sockets import AUDIO, EXTRA_PNGINFO, FLOAT, IMAGE, PROMPT, STORE, VIDEO
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents, VideoFromFile


@node("LoadVideo", "Load Video", category="video", function="load", essentials_category="Basics")
async def load_video(file: Annotated[str, Combo(FolderChoice("input"), video_upload=True)], store: STORE) -> VIDEO:
    """An uploaded file. Return the file as it is; it is decoded where its frames are asked for."""
    return VideoFromFile(await store.read(file), name=file)


@node(
    "CreateVideo",
    "Create Video",
    category="video",
    function="create",
    essentials_category="Video Tools",
    description="Makes a video of images.",
)
def create_video(
    images: IMAGE,
    fps: Annotated[float, Float(30.0, min=1.0, max=120.0, step=1.0)],
    audio: AUDIO | None = None,
    bit_depth: Annotated[int | str, Combo(["auto", 8, 10], default="auto")] = "auto",
    color_space: Annotated[str, Combo(["sRGB", "HDR", "HDR PQ"], default="sRGB")] = "sRGB",
    codec: Annotated[str, Combo(["none", "auto", "h264", "av1"], default="none", advanced=True)] = "none",
) -> VIDEO:
    """Frames and their sound.

    Return the video; it is encoded where it is saved, whatever codec says. bit_depth: of such a file; "auto" is 8.
    Errors: NodeError for frames of another colour space than sRGB.
    """
    if color_space != "sRGB":
        raise NodeError(f"color_space is {color_space}; a video is made of images in sRGB here")
    return VideoFromComponents(
        VideoComponents(images, Fraction(fps), audio), 8 if bit_depth == "auto" else int(bit_depth)
    )


@node(
    "GetVideoComponents",
    "Get Video Components",
    category="video",
    function="take_apart",
    return_names=("images", "audio", "fps", "bit_depth", "color_space"),
    description="Returns a video's frames, sound, frame rate, bit depth and colour space.",
)
def get_video_components(
    video: VIDEO,
) -> tuple[IMAGE, AUDIO | None, FLOAT, Annotated[int, InputType("INT,COMBO")], Annotated[str, InputType("COMBO")]]:
    """What a video is made of.

    Decode; a mute video's sound is None. Errors: NodeError for more than the limits allow.
    """
    made = video.get_components()
    rate = float(made.frame_rate)
    return made.images, made.audio, rate, video.get_bit_depth(), video.get_color_space()


@node("Video Slice", "Trim Video", category="video", function="slice", essentials_category="Video Tools")
def video_slice(
    video: VIDEO,
    start_time: Annotated[float, Float(0.0, max=1e5, min=-1e5, step=0.001)],
    duration: Annotated[float, Float(0.0, min=0.0, step=0.001)],
    strict_duration: Annotated[bool, Bool(False)],
) -> VIDEO:
    """A part of a video.

    Return the part; duration 0 is all that follows, a start below 0 counts from the end.

    Errors: NodeError if there is nothing, or, strict, less than the duration.
    """
    part = video.as_trimmed(start_time, duration, strict_duration=strict_duration)
    if part is None:
        wanted = f"no {duration:g} s" if duration else "nothing"
        raise NodeError(f"there is {wanted} from second {start_time:g} on; the video has {video.get_duration():g} s")
    return part


_SPACES = Combo(["auto", "sRGB", "HDR", "HDR PQ"], default="auto", display_name="color space")


def _reencoded(crf: float, most: float) -> Mapping[str, InputType]:
    again = {"crf": Float(crf, min=0.0, max=most, step=1.0), "color_space": _SPACES}
    return {"encoding": DynamicCombo({"auto": {}, "re-encode": again}, display_name="encoding mode")}


_CODECS: Mapping[str, Mapping[str, InputType]] = {
    "auto": {},
    "h264": _reencoded(23.0, 51.0),
    "av1": _reencoded(30.0, 63.0),
}


def _codec(*names: str, **more: Any) -> InputType:
    return DynamicCombo({name: _CODECS[name] for name in names}, optional=True, **more)


Format: TypeAlias = Annotated[
    Mapping[str, Any],
    DynamicCombo(
        {
            **{name: {"codec": _codec(*_CODECS)} for name in ("auto", "mp4", "mkv")},
            "webm": {"codec": _codec("auto", "av1")},
        },
        optional=True,
    ),
]
# Workflows from before the codec was a part of the format have it beside.
Codec: TypeAlias = Annotated[Mapping[str, Any], _codec(*_CODECS, hidden=True)]


@node(
    "SaveVideo",
    "Save Video",
    category="video",
    function="save",
    return_types=("VIDEO",),
    output_is_list=(True,),
    return_names=("video",),
    skips_blocked=True,
    output_node=True,
    essentials_category="Basics",
    description="Saves the video to the output folder.",
)
async def save_video(
    video: list[VIDEO],
    filename_prefix: list[Annotated[str, Text("video/ComfyUI", multiline=False)]],
    format: Format,
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
    codec: Codec | None = None,
) -> dict[str, Any]:
    """Videos to files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.

    Store every video, show where, and pass them on. Errors: NodeError for a codec that the format has not.
    """
    chosen: Mapping[str, Any] = format.get("codec") or codec or {}
    encoding: Mapping[str, Any] = chosen.get("encoding") or {}
    [space] = encoding.get("color_space", ["auto"])[:1]
    style = Style(
        format["format"][0],
        chosen.get("codec", ["auto"])[0],
        crf=encoding.get("crf", [None])[0],
        color_space=None if space == "auto" else space,
        text=workflow_text(prompt, extra_pnginfo),
    )
    files = []
    for index, one in enumerate(video):
        width, height = await asyncio.to_thread(one.get_dimensions)
        made = await asyncio.to_thread(one.encoded, style)
        files.append((at(filename_prefix, index), (height, width), made))
    shown = await save_together(store[0], "output", f".{style.suffix}", files)
    return {"ui": {"images": shown, "animated": (True,) * len(shown)}, "result": (video,)}


@node(
    "SaveWEBM",
    "Save WEBM",
    category="video",
    function="save",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    skips_blocked=True,
    output_node=True,
    experimental=True,
)
async def save_webm(
    images: list[IMAGE],
    filename_prefix: list[Annotated[str, Text("ComfyUI", multiline=False)]],
    codec: list[Annotated[str, Combo(["vp9", "av1"])]],
    fps: list[Annotated[float, Float(24.0, min=0.01, max=1000.0, step=0.01)]],
    crf: list[Annotated[float, Float(32.0, min=0, max=63.0, step=1)]],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Images to mute WebM files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.

    Store every batch as one file, show where, and pass them on. vp9 keeps the transparency of RGBA.
    """
    text = workflow_text(prompt, extra_pnginfo)
    files = []
    for i, batch in enumerate(images):
        rate = Fraction(round(at(fps, i) * 1000), 1000)
        made = await asyncio.to_thread(webm_from_frames, batch, rate, at(codec, i), at(crf, i), text)
        files.append((at(filename_prefix, i), batch.shape[1:3], made))
    shown = await save_together(store[0], "output", ".webm", files)
    return {"ui": {"images": shown, "animated": (True,) * len(shown)}, "result": (images,)}
