"""VIDEO: frames with their sound, or an encoded file of which a part counts and which is decoded only when asked.

The methods and the constructors are those by which node packs know the two, `comfy_api.latest.InputImpl` of ComfyUI
0.33; what is read is bounded by the limits of the call that runs.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow, bounds
from serve_app.media import loading, video_file
from serve_app.media.muxing import FORMATS
from serve_app.media.video import Facts, Window
from serve_app.media.video_file import Style
from serve_app.values import Audio

ROUNDING_S = 1e-6
"""By how much a time that was worked out may be beside the one that was meant."""


@dataclass
class VideoComponents:
    """A video in parts. images: (B,H,W,3) in 0…1. alpha: (B,H,W,1). audio: None for a mute one. metadata: packs'."""

    images: torch.Tensor
    frame_rate: Fraction
    audio: Audio | None = None
    metadata: dict[str, Any] | None = None
    alpha: torch.Tensor | None = None


class Video(ABC):
    """A VIDEO value. Every method may decode or encode, so it belongs in a thread. Errors: NodeError, from each."""

    @abstractmethod
    def get_components(self) -> VideoComponents:
        """Return its frames and its sound. Errors: NodeError for more than the limits allow."""

    @abstractmethod
    def get_dimensions(self) -> tuple[int, int]:
        """Return (width, height)."""

    @abstractmethod
    def get_duration(self) -> float:
        """Return its length in seconds."""

    @abstractmethod
    def get_frame_rate(self) -> Fraction:
        """Return frames a second, on the average."""

    @abstractmethod
    def get_frame_count(self) -> int:
        """Return how many frames it has, or about how many if its file does not say."""

    @abstractmethod
    def get_bit_depth(self) -> int:
        """Return the bits of a colour: of its file, or those that it is to be written with."""

    @abstractmethod
    def get_color_space(self) -> str:
        """Return "sRGB", "HDR" (hybrid log-gamma) or "HDR PQ"."""

    @abstractmethod
    def get_container_format(self) -> str:
        """Return FFmpeg's name of its container, several with commas between."""

    @abstractmethod
    def encoded(self, style: Style) -> bytes:
        """Return a file of it."""

    @abstractmethod
    def as_trimmed(self, start_time: float = 0, duration: float = 0, strict_duration: bool = True) -> Video | None:
        """Return the part from a second on, counted from the end if it is below 0; duration 0: all that follows.

        None if there is nothing there, or, strict, less than the duration.
        """

    def get_stream_source(self) -> io.BytesIO:
        """Return a file of it, to be read from."""
        return io.BytesIO(self.encoded(Style()))

    def save_to(
        self,
        path: Any,
        format: str = "auto",
        codec: str = "auto",
        metadata: Mapping[str, Any] | None = None,
        bit_depth: int | None = None,
        crf: float | None = None,
        color_space: str | None = None,
    ) -> None:
        """Write a file of it to a path or a buffer. metadata: texts, and values that become JSON. bit_depth: unused."""
        container, wanted = (str(getattr(value, "value", value)) for value in (format, codec))
        ending = "" if hasattr(path, "write") else Path(path).suffix.lstrip(".").lower()
        if container == "auto" and ending in FORMATS and ending != "mp4":
            container = ending
        text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
        data = self.encoded(Style(container, wanted, crf, color_space, text))
        if hasattr(path, "write"):
            path.write(data)
        else:
            Path(path).write_bytes(data)

    def _window(self, start: float, duration: float, strict: bool) -> Window | None:
        """Return the part that `as_trimmed` is asked for, in seconds of this video."""
        length = self.get_duration()
        begin = max(0.0, length + start) if start < 0 else start
        left = length - begin
        if left <= ROUNDING_S or (strict and left < duration - ROUNDING_S):
            return None
        return Window(begin, duration if duration < left else 0.0)


@dataclass(frozen=True, init=False, eq=False)
class VideoFromFile(Video):
    """The part of an encoded file that is in a window. name: the file's, for messages."""

    data: bytes
    window: Window
    name: str

    def __init__(
        self, file: bytes | str | Path | io.BytesIO, *, start_time: float = 0, duration: float = 0, name: str = ""
    ) -> None:
        if isinstance(file, str | Path):
            file = Path(file).read_bytes()
        object.__setattr__(self, "data", file if isinstance(file, bytes) else file.getvalue())
        object.__setattr__(self, "window", Window())
        object.__setattr__(self, "name", name)
        if start_time or duration:
            cut = self._window(start_time, duration, strict=False)
            if cut is None:
                raise NodeError(f"the video ends before second {start_time:g}")
            object.__setattr__(self, "window", cut)

    @cached_property
    def _facts(self) -> Facts:
        return loading.load_facts(self.data, self._what, bounds())

    @property
    def _what(self) -> str:
        return f"the video '{self.name}'" if self.name else "the video"

    def get_components(self) -> VideoComponents:
        """Decode it. Errors: NodeError for more than the limits allow, and for a file without pictures."""
        images, alpha, sound = loading.video(self.data, self._what, self.window, bounds(), allow)
        audio = None if sound is None else {"waveform": sound[0], "sample_rate": sound[1]}
        clear = None if alpha is None else alpha[..., None]
        return VideoComponents(images, self.get_frame_rate(), audio, alpha=clear)

    def get_dimensions(self) -> tuple[int, int]:
        """Return (width, height) as the file says."""
        facts = self._facts
        return facts.width, facts.height

    def get_duration(self) -> float:
        """Return the window's length in seconds, as far as the file goes."""
        return self.window.within(self._facts.duration_s)

    def get_frame_rate(self) -> Fraction:
        """Return frames a second; 1 if the file does not say."""
        return self._facts.frame_rate

    def get_frame_count(self) -> int:
        """Return how many frames there are: the file's word, or the length times the rate."""
        facts = self._facts
        if facts.frames and not self.window:
            return facts.frames
        return round(self.window.within(facts.duration_s) * facts.frame_rate)

    def get_bit_depth(self) -> int:
        """Return the bits of a colour."""
        return self._facts.bit_depth

    def get_color_space(self) -> str:
        """Return the file's; sRGB if it says none."""
        return self._facts.color_space or "sRGB"

    def get_container_format(self) -> str:
        """Return FFmpeg's name."""
        return self._facts.container

    def get_stream_source(self) -> io.BytesIO:
        """Return the whole file: `get_active_trim_window` says which part counts."""
        return io.BytesIO(self.data)

    def get_active_trim_window(self) -> tuple[float, float]:
        """Return the part that counts: the second that it starts at, and how long it is; 0 is until the end."""
        return self.window.start_s, self.window.duration_s

    def encoded(self, style: Style) -> bytes:
        """Return a file of the window; of the whole, with its streams as they are where the style lets them be."""
        return loading.load_rewritten(self.data, self._what, self.window, style, bounds())

    def as_trimmed(
        self, start_time: float = 0, duration: float = 0, strict_duration: bool = True
    ) -> VideoFromFile | None:
        """Return a part; the file stays the same."""
        cut = self._window(start_time, duration, strict_duration)
        if cut is None:
            return None
        # What follows ends where this window does.
        length = cut.duration_s or (self.window.duration_s and self.window.duration_s - cut.start_s)
        trimmed = VideoFromFile(self.data, name=self.name)
        object.__setattr__(trimmed, "window", Window(self.window.start_s + cut.start_s, length))
        return trimmed


@dataclass(frozen=True, eq=False)
class VideoFromComponents(Video):
    """Frames with their sound. bit_depth: 8 or 10, of a file that is made of them."""

    components: VideoComponents
    bit_depth: int = 8

    def get_components(self) -> VideoComponents:
        """Return them as they are."""
        return replace(self.components)

    def get_dimensions(self) -> tuple[int, int]:
        """Return (width, height)."""
        height, width = self.components.images.shape[1:3]
        return width, height

    def get_duration(self) -> float:
        """Return the frames' length in seconds."""
        return float(len(self.components.images) / self.components.frame_rate)

    def get_frame_rate(self) -> Fraction:
        """Return frames a second."""
        return Fraction(self.components.frame_rate)

    def get_frame_count(self) -> int:
        """Return how many frames there are."""
        return len(self.components.images)

    def get_bit_depth(self) -> int:
        """Return the bits of a colour in a file of it."""
        return self.bit_depth

    def get_color_space(self) -> str:
        """Return sRGB."""
        return "sRGB"

    def get_container_format(self) -> str:
        """Return MP4's name, which a file of it has unless another is asked for."""
        return "mov,mp4,m4a,3gp,3g2,mj2"

    def encoded(self, style: Style) -> bytes:
        """Return a file of them; of a batch of sounds, the first."""
        made, sound = self.components, None
        if made.audio is not None:
            rate = int(made.audio["sample_rate"])
            heard = math.ceil(rate * self.get_duration() - ROUNDING_S)
            sound = made.audio["waveform"][0, :, :heard], rate
        return video_file.from_frames(made.images, self.get_frame_rate(), sound, style, self.bit_depth)

    def as_trimmed(
        self, start_time: float = 0, duration: float = 0, strict_duration: bool = True
    ) -> VideoFromComponents | None:
        """Return the frames that begin in the part, and its sound.

        From a start below 0, strict refuses a duration that the video is too short for from its beginning, as ComfyUI.
        """
        too_long = self.get_duration() < start_time + duration
        cut = self._window(start_time, duration, strict=strict_duration and too_long)
        if cut is None:
            return None
        made, rate = self.components, float(self.components.frame_rate)
        first = math.ceil(cut.start_s * rate - ROUNDING_S)
        end = math.ceil(cut.end_s * rate - ROUNDING_S) if cut.duration_s else len(made.images)
        if first >= end:
            return None
        audio = made.audio
        if audio is not None:
            begin = int(cut.start_s * audio["sample_rate"])
            stop = begin + int(cut.duration_s * audio["sample_rate"]) if cut.duration_s else None
            audio = {**audio, "waveform": audio["waveform"][..., begin:stop].clone()}
        return replace(self, components=replace(made, images=made.images[first:end].clone(), audio=audio))
