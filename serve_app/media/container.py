"""Opening audio and video files by PyAV: the allowed formats, and conversion of errors."""

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
"""FFmpeg's self-contained formats. Others, for example playlists, make the reader open other files or URLs."""
THREADS = 8
"""The most threads of one file's decoder; each has frame buffers of its own."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""FFmpeg's names of channel layouts, by the number of channels."""


def pyav() -> Any:
    """Import and return the module `av`, which is slow to import and not needed in most processes."""
    os.environ.setdefault("SVT_LOG", "1")  # else its AV1 encoder logs a page about each file
    import av

    return av


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Convert PyAV's errors inside the context to NodeError, except MemoryError. what: the file's name in messages."""
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
    """Convert PyAV's errors inside the context to NodeError. what: the file's name in messages."""
    av = pyav()
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NodeError(f"{what} cannot be written: {reason}") from error


@contextmanager
def open_container(data: bytes, what: str) -> Iterator[Any]:
    """Open a file for reading. Errors: NodeError for invalid data, also while it is read inside the context."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    with reading(what), pyav().open(io.BytesIO(data), mode="r", options=options) as container:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = min(THREADS, os.cpu_count() or 1)
        yield container


def layout_of(channels: int) -> str:
    """Return FFmpeg's layout of a number of channels. Errors: NodeError for a number without one."""
    if channels not in LAYOUTS:
        raise NodeError(f"the sound has {channels} channels; files are written of {', '.join(map(str, LAYOUTS))}")
    return LAYOUTS[channels]
