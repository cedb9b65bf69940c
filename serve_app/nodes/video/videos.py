"""The nodes that load VIDEO, make it of images and sound, take it apart, cut it and save it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files
from serve_app.media.video_file import Style, webm_from_frames
from serve_app.nodes.dynamic_inputs import combo, dynamic_combo
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.nodes.video.value import Video, VideoComponents, VideoFromComponents, VideoFromFile
from serve_app.values import Audio

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"}


class LoadVideo:
    """An uploaded file."""

    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "load"
    CATEGORY = "video"
    ESSENTIALS_CATEGORY = "Basics"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        chosen = ("COMBO", {"multiselect": False, "options": FolderChoice("input"), "video_upload": True})
        return {"required": {"file": chosen}, "hidden": {"store": "STORE"}}

    async def load(self, file: str, store: Files) -> tuple[Video]:
        """Return the file as it is; it is decoded where its frames are asked for."""
        return (VideoFromFile(await store.read(file), name=file),)


class CreateVideo:
    """Frames and their sound."""

    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"
    CATEGORY = "video"
    ESSENTIALS_CATEGORY = "Video Tools"
    DESCRIPTION = "Makes a video of images."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        depth = {"default": 8, "min": 8, "max": 10, "step": 2, "display": "number"}
        return {
            "required": {
                "images": ("IMAGE", {}),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {"audio": ("AUDIO", {}), "bit_depth": ("INT", depth)},
        }

    def create(self, images: torch.Tensor, fps: float, audio: Audio | None = None, bit_depth: int = 8) -> tuple[Video]:
        """Return the video; it is encoded where it is saved. bit_depth: of such a file, 8 or 10."""
        return (VideoFromComponents(VideoComponents(images, Fraction(fps), audio), bit_depth),)


class GetVideoComponents:
    """What a video is made of."""

    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "INT", "COMBO")
    RETURN_NAMES = ("images", "audio", "fps", "bit_depth", "color_space")
    FUNCTION = "take_apart"
    CATEGORY = "video"
    DESCRIPTION = "Returns a video's frames, sound, frame rate, bit depth and colour space."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO", {})}}

    def take_apart(self, video: Video) -> tuple[torch.Tensor, Audio | None, float, int, str]:
        """Decode; a mute video's sound is None. Errors: NodeError for more than the limits allow."""
        made = video.get_components()
        rate = float(made.frame_rate)
        return made.images, made.audio, rate, video.get_bit_depth(), video.get_color_space()


class VideoSlice:
    """A part of a video."""

    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "slice"
    CATEGORY = "video"
    ESSENTIALS_CATEGORY = "Video Tools"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO", {}),
                "start_time": ("FLOAT", {"default": 0.0, "max": 1e5, "min": -1e5, "step": 0.001}),
                "duration": ("FLOAT", {"default": 0.0, "min": 0.0, "step": 0.001}),
                "strict_duration": ("BOOLEAN", {"default": False}),
            }
        }

    def slice(self, video: Video, start_time: float, duration: float, strict_duration: bool) -> tuple[Video]:
        """Return the part; duration 0 is all that follows, a start below 0 counts from the end.

        Errors: NodeError if there is nothing, or, strict, less than the duration.
        """
        part = video.as_trimmed(start_time, duration, strict_duration=strict_duration)
        if part is None:
            wanted = f"no {duration:g} s" if duration else "nothing"
            raise NodeError(
                f"there is {wanted} from second {start_time:g} on; the video has {video.get_duration():g} s"
            )
        return (part,)


_SPACES = combo(["auto", "sRGB", "HDR", "HDR PQ"], default="auto", display_name="color space")


def _reencoded(crf: float, most: float) -> Mapping[str, Any]:
    options = {"default": crf, "min": 0.0, "max": most, "step": 1.0}
    again = {"crf": ("FLOAT", options), "color_space": _SPACES}
    return {"encoding": dynamic_combo({"auto": {}, "re-encode": again}, display_name="encoding mode")}


_CODECS = {"auto": {}, "h264": _reencoded(23.0, 51.0), "av1": _reencoded(30.0, 63.0)}


def _codec(*names: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return dynamic_combo({name: _CODECS[name] for name in names}, optional=True, **more)


class SaveVideo:
    """Videos to files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "video"
    ESSENTIALS_CATEGORY = "Basics"
    DESCRIPTION = "Saves the video to the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        every = _codec(*_CODECS)
        containers = {name: {"codec": every} for name in ("auto", "mp4", "mkv")}
        containers["webm"] = {"codec": _codec("auto", "av1")}
        return {
            "required": {
                "video": ("VIDEO", {}),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI", "multiline": False}),
                # Workflows from before the codec was a part of the format have it beside.
                "format": dynamic_combo(containers, optional=True),
            },
            "optional": {"codec": _codec(*_CODECS, hidden=True)},
            "hidden": HIDDEN,
        }

    async def save(
        self,
        video: list[Video],
        filename_prefix: list[str],
        format: Mapping[str, Any],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        codec: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store every video, show where, and pass them on. Errors: NodeError for a codec that the format has not."""
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


class SaveWEBM:
    """Images to mute WebM files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "video"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "codec": combo(["vp9", "av1"]),
                "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
            },
            "hidden": HIDDEN,
        }

    async def save(
        self,
        images: list[torch.Tensor],
        filename_prefix: list[str],
        codec: list[str],
        fps: list[float],
        crf: list[float],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
    ) -> dict[str, Any]:
        """Store every batch as one file, show where, and pass them on. vp9 keeps the transparency of RGBA."""
        text = workflow_text(prompt, extra_pnginfo)
        files = []
        for i, batch in enumerate(images):
            rate = Fraction(round(at(fps, i) * 1000), 1000)
            made = await asyncio.to_thread(webm_from_frames, batch, rate, at(codec, i), at(crf, i), text)
            files.append((at(filename_prefix, i), batch.shape[1:3], made))
        shown = await save_together(store[0], "output", ".webm", files)
        return {"ui": {"images": shown, "animated": (True,) * len(shown)}, "result": (images,)}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LoadVideo": LoadVideo,
    "CreateVideo": CreateVideo,
    "GetVideoComponents": GetVideoComponents,
    "Video Slice": VideoSlice,
    "SaveVideo": SaveVideo,
    "SaveWEBM": SaveWEBM,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LoadVideo": "Load Video",
    "CreateVideo": "Create Video",
    "GetVideoComponents": "Get Video Components",
    "Video Slice": "Trim Video",
    "SaveVideo": "Save Video",
    "SaveWEBM": "Save WEBM",
}
