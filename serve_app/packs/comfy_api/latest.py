"""`comfy_api.latest` and its numbered versions for node packs: the V3 interface as a pack imports it.

Source: the facts of ComfyUI 0.33.0's package of this name.
"""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import torch

from serve_app.execution.executing import executing
from serve_app.media.video_file import Style
from serve_app.nodes.video.value import Video, VideoComponents, VideoFromComponents, VideoFromFile
from serve_app.packs.comfy.model_management import throw_exception_if_processing_interrupted
from serve_app.packs.comfy_api import dynamic_io
from serve_app.packs.comfy_api import io as types
from serve_app.packs.comfy_api import ui as shown
from serve_app.packs.comfy_api.node import ComfyNode, HiddenHolder, NodeOutput

io = SimpleNamespace(
    **{name: value for part in (dynamic_io, types) for name, value in vars(part).items() if not name.startswith("_")},
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
    HiddenHolder=HiddenHolder,
)
"""Types, Schema, ComfyNode and NodeOutput."""

ui = SimpleNamespace(
    **{name: value for name, value in vars(shown).items() if not name.startswith("_")}, _UIOutput=shown.UiOutput
)
"""What nodes show."""

IO, UI = io, ui


class ComfyExtension:
    """What a pack's `comfy_entrypoint` returns."""

    async def on_load(self) -> None:
        """Prepare whatever the nodes need; called once, before get_node_list."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        """Return the pack's node classes."""
        raise NotImplementedError(f"{type(self).__name__} has no get_node_list")


def _report(value: float, max_value: float, preview_image: Any) -> None:
    throw_exception_if_processing_interrupted()
    if (call := executing()) is not None:
        call.progress(value, max_value, preview_image)


class _Execution:
    async def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: Any = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """Report that the running node has done `value` of `max_value`. Errors: InterruptProcessingException."""
        _report(value, max_value, preview_image)


class _ExecutionSync:
    def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: Any = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """Report that the running node has done `value` of `max_value`. Errors: InterruptProcessingException."""
        _report(value, max_value, preview_image)


class ComfyAPI:
    """The server's functions for async nodes."""

    VERSION = "latest"
    STABLE = False
    execution = _Execution()


class ComfyAPISync:
    """The server's functions for nodes in threads."""

    VERSION = "latest"
    STABLE = False
    execution = _ExecutionSync()


class VideoContainer(StrEnum):
    """Containers that videos are saved in."""

    AUTO = "auto"
    MP4 = "mp4"
    MKV = "mkv"
    WEBM = "webm"

    @classmethod
    def as_input(cls) -> list[str]:
        """Return the choices of an input."""
        return [member.value for member in cls]

    @classmethod
    def get_extension(cls, value: str) -> str:
        """Return the container's file suffix, without its dot."""
        return Style(cls(value).value).suffix


class VideoCodec(StrEnum):
    """Codecs that videos are saved in."""

    AUTO = "auto"
    H264 = "h264"
    AV1 = "av1"

    @classmethod
    def as_input(cls) -> list[str]:
        """Return the choices of an input."""
        return [member.value for member in cls]


Input = SimpleNamespace(Image=torch.Tensor, Mask=torch.Tensor, Audio=dict, Latent=dict, Video=Video)
"""What annotations of inputs name."""

InputImpl = SimpleNamespace(VideoFromFile=VideoFromFile, VideoFromComponents=VideoFromComponents)
"""VIDEO values, as packs make them."""

Types = SimpleNamespace(VideoComponents=VideoComponents, VideoContainer=VideoContainer, VideoCodec=VideoCodec)
"""What VIDEO values are made of and saved as."""
