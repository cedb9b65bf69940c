"""Files of sound and pictures, opened by PyAV: what may be read, and errors that say so."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import NodeError

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,gif,apng,mjpeg,ogg,flac,"
    "mp3,wav,w64,aac,ac3,eac3,aiff,au,caf,amr,opus,wv,tta,ape,mxf"
)
IMAGE_FORMATS = (
    "png_pipe,jpeg_pipe,webp_pipe,gif_pipe,bmp_pipe,tiff_pipe,j2k_pipe,jpegxl_pipe,jpegxl_anim,qoi_pipe,ico,hdr_pipe,"
    "exr_pipe,dds_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe"
)
FORMATS = f"{VIDEO_FORMATS},{IMAGE_FORMATS}"
"""FFmpeg's formats that hold what they say. Others, such as playlists, make their reader open what an upload names."""
THREADS = 8
"""Threads of one file's decoder at most; each has frames of its own."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""FFmpeg's names of how so many channels stand around a listener."""


def pyav() -> Any:
    """Return the module `av`, which takes a while to be imported and most processes never need."""
    os.environ.setdefault("SVT_LOG", "1")  # else its AV1 encoder writes a page about each file
    import av

    return av


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Let what PyAV raises in this block out as NodeError, but MemoryError. what: the file, as messages name it."""
    av = pyav()
    try:
        yield
    except MemoryError:
        raise
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
    with reading(what), pyav().open(io.BytesIO(data), mode="r", options=options) as container:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = min(THREADS, os.cpu_count() or 1)
        yield container


def layout_of(channels: int) -> str:
    """Return the layout of so many channels. Errors: NodeError for a number that has none here."""
    if channels not in LAYOUTS:
        raise NodeError(f"the sound has {channels} channels; files are written of {', '.join(map(str, LAYOUTS))}")
    return LAYOUTS[channels]
