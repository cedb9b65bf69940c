"""Limits for image files that node packs open by themselves, with Pillow or OpenCV, in the process that loads them.

The server's own nodes have files decoded by other processes (`media/decoder.py`).
"""

from __future__ import annotations

import os
import warnings

from PIL import Image

from serve_app.media.pictures import FORMATS


def limit_image_files(pixels: int) -> None:
    """Limit the formats and sizes that this process's image libraries open.

    Pillow opens the formats that the server's nodes read, and those that packs register, so EPS does not start
    Ghostscript; a larger image raises DecompressionBombError. OpenCV, if it is not loaded yet, refuses it too. pixels:
    the most that an image may have.
    """
    Image.init()
    for name in set(Image.OPEN).difference(FORMATS):
        del Image.OPEN[name]
        Image.ID.remove(name)
    # Pillow warns of more pixels than this, and raises an error for more than twice as many.
    Image.MAX_IMAGE_PIXELS = pixels // 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(pixels))
