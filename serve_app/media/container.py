"""Files of sound and pictures, opened: PyAV where it is installed, what may be read, and errors that say so."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from serve_app.errors import NodeError

Allow: TypeAlias = Callable[..., None]
"""Refuses a float32 tensor of this shape that would be too large. Errors: NodeError."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,gif,apng,mjpeg,ogg,flac,"
    "mp3,wav,w64,aac,ac3,eac3,aiff,au,caf,amr,opus,wv,tta,ape,mxf"
)
"""Formats that hold what they say. Others, such as playlists, make their reader open what an upload names."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""FFmpeg's names of how so many channels stand around a listener."""


def pyav() -> Any:
    """Return the module `av`. Errors: NodeError where it is not installed."""
    try:
        os.environ.setdefault("SVT_LOG", "1")  # else its AV1 encoder writes a page about each file
        import av
    except ImportError as error:
        message = "audio and video files are read and written by PyAV, which is not installed here"
        raise NodeError(f"{message}: pip install 'serve-app[media]'") from error
    return av


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Let what PyAV raises in this block out as NodeError. what: the file, as messages name it."""
    av = pyav()
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NodeError(f"{what} cannot be read: {reason}") from error


@contextmanager
def encoding(what: str) -> Iterator[None]:
    """Let what PyAV raises in this block out as NodeError. what: the file, as messages name it."""
    av = pyav()
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NodeError(f"{what} cannot be written: {reason}") from error


@contextmanager
def opened(data: bytes, what: str) -> Iterator[Any]:
    """Open a file to read it. Errors: NodeError for data that is no such file, also while it is read in this block."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    with decoding(what), pyav().open(io.BytesIO(data), mode="r", options=options) as container:
        yield container


def layout_of(channels: int) -> str:
    """Return the layout of so many channels. Errors: NodeError for a number that has none here."""
    if channels not in LAYOUTS:
        raise NodeError(f"the sound has {channels} channels; files are written of {', '.join(map(str, LAYOUTS))}")
    return LAYOUTS[channels]
