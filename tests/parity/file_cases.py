"""Image files of every kind that people upload, made by Pillow and PyAV; ComfyUI's pixels of them are golden/files.npz.

The files themselves are there too, as other versions of their encoders write other bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

WIDTH, HEIGHT = 26, 18
"""No multiple of what decoders like."""

Array = np.ndarray[Any, np.dtype[np.uint8]]


def picture(channels: int = 3, shift: float = 0.0, width: int = WIDTH) -> Array:
    """Return colours that change with hard edges between them, (H,W,C), as JPEG's chroma likes least."""
    y, x = np.mgrid[0:HEIGHT, 0:width]
    planes = [np.sin(x * (0.3 + 0.21 * c) + y * (0.5 - 0.17 * c) + shift + c) for c in range(channels)]
    values = np.stack(planes, -1) * 110 + 128
    values[(x // 5 + y // 4) % 3 == 0] = 255 - values[(x // 5 + y // 4) % 3 == 0]
    return np.clip(values, 0, 255).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(shift: float = 0.0, width: int = WIDTH) -> Image.Image:
    """Return a picture."""
    return Image.fromarray(picture(3, shift, width))


def rgba(shift: float = 0.0) -> Image.Image:
    """Return a picture that is clear in places."""
    return Image.fromarray(picture(4, shift))


def grey() -> Image.Image:
    """Return a picture without colours."""
    return Image.fromarray(picture(1)[..., 0])


def deep() -> Image.Image:
    """Return grey of sixteen bits."""
    return Image.fromarray(picture(1)[..., 0].astype(np.uint16) * 257 + 31)


def animated(format: str, images: list[Image.Image], **options: Any) -> bytes:
    """Return an animation."""
    return saved(images[0], format, save_all=True, append_images=images[1:], duration=80, loop=0, **options)


def turned(orientation: int) -> bytes:
    """Return a JPEG with this EXIF orientation, as a camera writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(rgb(), "JPEG", quality=92, exif=exif)


def palette(**options: Any) -> bytes:
    """Return a PNG of 16 colours."""
    return saved(rgb().quantize(16, dither=Image.Dither.NONE), "PNG", **options)


def deep_png(channels: int) -> bytes:
    """Return a PNG of sixteen bits a channel, which Pillow does not write."""
    kind = {3: 2, 4: 6}[channels]
    values = picture(channels).astype(np.uint16) * 257 + 19
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0), rows)


def interlaced() -> bytes:
    """Return a PNG in Adam7's seven passes, which Pillow does not write."""
    values, rows = picture(), b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in values[y0::dy, x0::dx])
    return png(struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1), rows)


def png(header: bytes, rows: bytes) -> bytes:
    """Return a PNG of a header and rows with their filters."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def clip(codec: str, format: str, pixels: str, channels: int = 3, **options: str) -> bytes:
    """Return three frames as a video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(8), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for shift in range(3):
            kind = "rgba" if channels == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture(channels, shift), format=kind)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def profile() -> bytes:
    """Return a colour profile that is not sRGB's."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def shown_by(gamma: int) -> PngImagePlugin.PngInfo:
    """Return a PNG's gamma."""
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", gamma))
    return info


MOVING = [rgb(shift) for shift in (0.0, 1.0, 2.0)]
CLEAR = [rgba(shift) for shift in (0.0, 1.0, 2.0)]

FILES: dict[str, Callable[[], bytes]] = {
    "jpeg 420.jpg": lambda: saved(rgb(), "JPEG", quality=90, subsampling="4:2:0"),
    "jpeg 422.jpg": lambda: saved(rgb(), "JPEG", quality=90, subsampling="4:2:2"),
    "jpeg 444.jpg": lambda: saved(rgb(), "JPEG", quality=90, subsampling="4:4:4"),
    "jpeg 420 wide.jpg": lambda: saved(rgb(width=64), "JPEG", quality=75),
    "jpeg progressive.jpg": lambda: saved(rgb(), "JPEG", quality=90, progressive=True),
    "jpeg grey.jpg": lambda: saved(grey(), "JPEG", quality=90),
    "jpeg cmyk.jpg": lambda: saved(rgb().convert("CMYK"), "JPEG", quality=90),
    "jpeg rgb.jpg": lambda: saved(rgb(), "JPEG", quality=90, keep_rgb=True),
    "jpeg profile.jpg": lambda: saved(rgb(), "JPEG", quality=90, icc_profile=profile()),
    "mpo.jpg": lambda: animated("MPO", MOVING[:2]),
    "png.png": lambda: saved(rgb(), "PNG"),
    "png wide.png": lambda: saved(rgb(width=64), "PNG"),
    "png alpha.png": lambda: saved(rgba(), "PNG"),
    "png grey.png": lambda: saved(grey(), "PNG"),
    "png grey alpha.png": lambda: saved(rgba().convert("LA"), "PNG"),
    "png one bit.png": lambda: saved(grey().convert("1"), "PNG"),
    "png sixteen bit grey.png": lambda: saved(deep(), "PNG"),
    "png sixteen bit.png": lambda: deep_png(3),
    "png sixteen bit alpha.png": lambda: deep_png(4),
    "png palette.png": palette,
    "png clear colour of a palette.png": lambda: palette(transparency=3),
    "png half clear palette.png": lambda: palette(transparency=bytes(range(0, 256, 16))),
    "png clear colour.png": lambda: saved(rgb(), "PNG", transparency=tuple(map(int, picture()[0, 0]))),
    "png interlaced.png": interlaced,
    "png gamma.png": lambda: saved(rgb(), "PNG", pnginfo=shown_by(100_000)),
    "png profile.png": lambda: saved(rgb(), "PNG", icc_profile=profile()),
    "apng.png": lambda: animated("PNG", MOVING),
    "apng alpha.png": lambda: animated("PNG", CLEAR),
    "webp.webp": lambda: saved(rgb(), "WEBP", quality=80),
    "webp wide.webp": lambda: saved(rgb(width=64), "WEBP", quality=80),
    "webp lossless.webp": lambda: saved(rgb(), "WEBP", lossless=True),
    "webp alpha.webp": lambda: saved(rgba(), "WEBP", quality=80),
    "webp lossless alpha.webp": lambda: saved(rgba(), "WEBP", lossless=True, exact=True),
    "webp animated.webp": lambda: animated("WEBP", MOVING, lossless=True),
    "webp animated alpha.webp": lambda: animated("WEBP", CLEAR, quality=80),
    "gif.gif": lambda: saved(rgb(), "GIF"),
    "gif clear.gif": lambda: saved(rgb().quantize(16), "GIF", transparency=3),
    "gif animated.gif": lambda: animated("GIF", MOVING),
    "gif animated clear.gif": lambda: animated("GIF", CLEAR),
    "bmp.bmp": lambda: saved(rgb(), "BMP"),
    "bmp palette.bmp": lambda: saved(rgb().quantize(16), "BMP"),
    "tiff.tiff": lambda: saved(rgb(), "TIFF"),
    "tiff lzw alpha.tiff": lambda: saved(rgba(), "TIFF", compression="tiff_lzw"),
    "tiff sixteen bit grey.tiff": lambda: saved(deep(), "TIFF"),
    "avif.avif": lambda: saved(rgb(), "AVIF", quality=80),
    "avif alpha.avif": lambda: saved(rgba(), "AVIF", quality=80),
    "avif animated.avif": lambda: animated("AVIF", MOVING, quality=80),
    "jpeg 2000.jp2": lambda: saved(rgb(), "JPEG2000"),
    "tga.tga": lambda: saved(rgb(), "TGA"),
    "ppm.ppm": lambda: saved(rgb(), "PPM"),
    "ico.ico": lambda: saved(rgba(), "ICO", sizes=[(16, 16)]),
    "video h264.mp4": lambda: clip("libx264", "mp4", "yuv420p"),
    "video vp9 alpha.webm": lambda: clip("libvpx-vp9", "webm", "yuva420p", channels=4),
    "video of png.mov": lambda: clip("png", "mov", "rgb24"),
} | {f"jpeg turned {number}.jpg": lambda number=number: turned(number) for number in (2, 3, 4, 5, 6, 7, 8)}  # type: ignore[misc]
"""The bytes of each file, by its name."""

BY_CHANNEL = ("png sixteen bit alpha.png", "gif animated clear.gif", "png palette.png")
"""The files that LoadImageMask is asked for too."""
CHANNELS = ("alpha", "red", "green", "blue")
