"""Encodes images with more than eight bits a channel: PNG of sixteen bits, and EXR of 32-bit floats in linear light.

Sources: RFC 2083, "PNG"; the OpenEXR file layout (openexr.com); IEC 61966-2-1 for sRGB; ITU-R BT.2100 for HLG.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError

PNG_COLOURS = {1: 0, 3: 2, 4: 6}
"""PNG's colour type by the number of channels."""
PLANES = {1: "Y", 3: "BGR", 4: "ABGR"}
"""EXR's channels by their number, in its file order: alphabetical."""
REC_709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
REC_2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290)
"""x and y of red, green, blue and white."""


def to_deep_png(image: Tensor, text: Mapping[str, str]) -> bytes:
    """Return a PNG of sixteen bits of one image (H,W,1|3|4), values outside 0…1 clipped, with text chunks."""
    height, width, channels = _channels(image).shape
    pixels = (image * 65535.0).clamp(0, 65535).to(torch.int32).cpu().numpy().astype(">u2")
    # Each row starts with its filter type: none.
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    texts = (_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1", "replace")) for key, value in text.items())
    parts = [_chunk(b"IHDR", header), *texts, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def to_exr(image: Tensor, text: Mapping[str, str], colour_space: str) -> bytes:
    """Return an EXR of one image (H,W,1|3|4), its text as attributes of the header.

    colour_space: of the image: "sRGB"; "HDR", which is HLG with BT.2020's primaries; "linear".
    """
    height, width, channels = _channels(image).shape
    linear = _linear(image.float(), colour_space).cpu().numpy().astype("<f4")
    # From R, G, B, A to the alphabet's order.
    planes = [linear[..., index] for index in ([0] if channels == 1 else range(channels - 1, -1, -1))]
    listed = b"".join(name.encode() + b"\0" + struct.pack("<iBxxxii", 2, 0, 1, 1) for name in PLANES[channels])
    window = struct.pack("<iiii", 0, 0, width - 1, height - 1)
    attributes = [
        ("channels", "chlist", listed + b"\0"),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1.0)),
        ("screenWindowCenter", "v2f", struct.pack("<ff", 0.0, 0.0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1.0)),
        ("chromaticities", "chromaticities", struct.pack("<8f", *(REC_2020 if colour_space == "HDR" else REC_709))),
        *((key, "string", value.encode()) for key, value in text.items()),
    ]
    header = struct.pack("<ii", 20000630, 2)
    header += b"".join(f"{n}\0{kind}\0".encode() + struct.pack("<i", len(v)) + v for n, kind, v in attributes) + b"\0"
    rows = [
        struct.pack("<ii", y, width * channels * 4) + b"".join(plane[y].tobytes() for plane in planes)
        for y in range(height)
    ]
    first = len(header) + 8 * height
    offsets = np.arange(height, dtype="<u8") * len(rows[0]) + first
    return header + offsets.tobytes() + b"".join(rows)


def _channels(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[-1] not in PNG_COLOURS:
        raise NodeError(f"an image of shape {tuple(image.shape)} cannot be saved; it must have 1, 3 or 4 channels")
    return image


def _linear(image: Tensor, colour_space: str) -> Tensor:
    """Return the linear light of an image (H,W,C); alpha stays."""
    if colour_space == "linear":
        return image
    colours, alpha = image[..., :3], image[..., 3:]
    if colour_space == "HDR":
        a, b, c = 0.17883277, 0.28466892, 0.55991072928
        bright = (torch.exp((colours.clamp(min=0.5) - c) / a) + b) / 12.0
        light = torch.where(colours <= 0.5, colours**2 / 3.0, bright)
    else:
        light = torch.where(colours <= 0.04045, colours / 12.92, ((colours.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    return torch.cat([light, alpha], dim=-1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
