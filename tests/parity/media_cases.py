"""Which files ComfyUI made and read for golden/media.npz, and of what."""

from __future__ import annotations

import torch

from tests.parity.image_cases import image

VIDEO_RATE = 16.0
VIDEO_SOUND = (1, 2, 4500, 8000)
"""A sound as `audio_cases.sound` makes it, a little longer than the frames."""
FILES = {"mp4": ["mp4", "h264"], "mkv": ["mkv", "h264"], "webm": ["webm", "av1"]}
"""Container and codec of videos, by the name of their figures."""
WINDOWS = [[0.0, 0.0], [0.125, 0.25], [-0.1875, 0.0], [0.15, 9.0]]
"""Start and duration of what was read from the first of them, in seconds."""
SOUND_FILES = {"flac": None, "mp3": "V0", "opus": "64k"}
"""Quality of files of the sound, by their format."""


def video_images() -> torch.Tensor:
    """Return eight frames whose colours move, (B,H,W,3); their width is no multiple of 32."""
    still = image((1, 16, 20, 3))[0]
    return torch.stack([still.roll(3 * number, 1) * (1 - number / 16) for number in range(8)])
