"""The nodes that take frames out of VIDEO, by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.nodes.dataset.images import SEED, generator
from serve_app.nodes.dynamic_inputs import combo
from serve_app.nodes.video.value import Video, VideoComponents, VideoFromComponents

LENGTH = ("INT", {"default": 16, "min": 1, "max": 99999})


class VideoFrameSample:
    """Some frames of a video."""

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "sample"
    CATEGORY = "video"
    EXPERIMENTAL = True
    DESCRIPTION = "Takes so many frames: evenly spread, the first, the last, or any, in their order."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO", {}),
                "num_frames": ("INT", {"default": 16, "min": 1, "max": 9999}),
                "strategy": combo(["uniform", "head", "tail", "random"], default="uniform"),
                "seed": SEED,
            }
        }

    def sample(self, video: Video, num_frames: int, strategy: str, seed: int) -> tuple[Video]:
        """Return a video of them, at the rate of the whole; only the first or the last keep their sound."""
        there = video.get_frame_count()
        count = min(num_frames, there)
        if strategy in ("head", "tail"):
            return (_part(video, 0 if strategy == "head" else there - count, count),)
        if strategy == "random":
            chosen = sorted(generator(seed).choice(there, size=count, replace=False).tolist())
        elif count == 1:
            chosen = [there // 2]
        else:
            chosen = [round(index * (there - 1) / (count - 1)) for index in range(count)]
        images = video.get_components().images[chosen]
        return (VideoFromComponents(VideoComponents(images, video.get_frame_rate(), None)),)


class VideoTemporalCrop:
    """A part of a video."""

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "crop"
    CATEGORY = "video/transform"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        start = ("INT", {"default": 0, "min": 0, "max": 99999})
        return {"required": {"video": ("VIDEO", {}), "start_frame": start, "length": LENGTH}}

    def crop(self, video: Video, start_frame: int, length: int) -> tuple[Video]:
        """Return the part; what there is of it, and at least the last frame."""
        there = video.get_frame_count()
        start = min(start_frame, max(there - 1, 0))
        return (_part(video, start, min(length, there - start)),)


class VideoRandomTemporalCrop:
    """A part of a video, wherever a seed says."""

    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "crop"
    CATEGORY = "video/transform"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO", {}), "length": LENGTH, "seed": SEED}}

    def crop(self, video: Video, length: int, seed: int) -> tuple[Video]:
        """Return the part; all if the video is no longer."""
        there = video.get_frame_count()
        count = min(length, there)
        start = int(generator(seed).randint(0, there - count + 1)) if there > count else 0
        return (_part(video, start, count),)


def _part(video: Video, start: int, count: int) -> Video:
    rate = float(video.get_frame_rate())
    part = video.as_trimmed(start / rate, count / rate, strict_duration=False)
    if part is None:
        raise NodeError(f"the video has no frames from {start} on; it has {video.get_frame_count()}")
    return part


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "VideoFrameSample": VideoFrameSample,
    "VideoTemporalCrop": VideoTemporalCrop,
    "VideoRandomTemporalCrop": VideoRandomTemporalCrop,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "VideoFrameSample": "Sample Video Frame",
    "VideoTemporalCrop": "Crop Video (Temporal)",
    "VideoRandomTemporalCrop": "Crop Video (Temporal Random)",
}
