"""What a decoder's process adds to a file: `python -m bench.decoding`.

Each file is decoded in this process and by a decoder in turn, so that other work of the machine slows both; so are a
decoder that is warm and one that has to start first. Told are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from fractions import Fraction
from statistics import median

import numpy as np
import torch
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.media import decoder, frames, loading
from serve_app.media.decoder import DecoderLimits
from serve_app.media.video_file import Style, from_frames

PIXELS = 1 << 27
BOUNDS = DecoderLimits(SizeLimits())


def picture(side: int, format: str) -> bytes:
    """Return a file of smooth colours with some noise, as photographs are."""
    y, x = np.mgrid[0:side, 0:side] / side
    colours = np.stack([np.sin(9 * x + 4 * y + c) for c in range(3)], -1) * 100 + 128
    noise = np.random.default_rng(0).normal(0, 4, colours.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(colours + noise, 0, 255).astype(np.uint8)).save(buffer, format)
    return buffer.getvalue()


def clip() -> bytes:
    """Return two seconds of 480 lines."""
    still = torch.rand(480 // 8, 832 // 8, 3).repeat_interleave(8, 0).repeat_interleave(8, 1)
    return from_frames(torch.stack([still.roll(4 * i, 1) for i in range(32)]), Fraction(16), None, Style())


FILES: dict[str, Callable[[], bytes]] = {
    f"{format} {side}": lambda side=side, format=format: picture(side, format)
    for side in (64, 512, 1024, 2048)
    for format in ("PNG", "JPEG", "WEBP")
} | {"MP4 832×480, 32 frames": clip}


def here(data: bytes) -> None:
    """Decode a file in this process, to one tensor."""
    arrays = frames.decode_frames(data, "the file", PIXELS)
    batch = torch.cat([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays])
    batch.float().div_(1.0 if batch.dtype == torch.float32 else 255.0)


def there(data: bytes) -> None:
    """Have a decoder do it."""
    loading.images(data, "the file", BOUNDS, lambda *shape: None)


def milliseconds(work: Callable[[bytes], None], data: bytes) -> float:
    begun = time.perf_counter()
    work(data)
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, {rounds} rounds\n")
    print("| file | here | decoder | more |\n|---|---|---|---|")
    for name, make in FILES.items():
        data = make()
        there(data)
        taken = [(milliseconds(here, data), milliseconds(there, data)) for _ in range(rounds)]
        inside, outside = (median(column) for column in zip(*taken, strict=True))
        more = median(there - here for here, there in taken)
        print(f"| {name} | {inside:.1f} | {outside:.1f} | {more:+.1f} |", flush=True)
    small = picture(64, "PNG")
    cold = []
    for _ in range(rounds):
        while decoder.idle_decoders:
            decoder.idle_decoders.pop().close()
        cold.append(milliseconds(there, small))
    print(f"| PNG 64, the first of a process | | {median(cold):.1f} | |")


if __name__ == "__main__":
    main()
