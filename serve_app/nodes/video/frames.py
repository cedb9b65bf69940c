"""The nodes that take frames out of VIDEO, by number."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.dataset.images import Seed, generator
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, Int
from serve_app.nodes.sockets import VIDEO
from serve_app.nodes.video.value import Video, VideoComponents, VideoFromComponents

Length: TypeAlias = Annotated[int, Int(16, min=1, max=99999)]


@node(
    "VideoFrameSample",
    "Sample Video Frame",
    category="video",
    function="sample",
    return_names=("video",),
    experimental=True,
    description="Takes so many frames: evenly spread, the first, the last, or any, in their order.",
)
def video_frame_sample(
    video: VIDEO,
    num_frames: Annotated[int, Int(16, min=1, max=9999)],
    strategy: Annotated[str, Combo(["uniform", "head", "tail", "random"], default="uniform")],
    seed: Seed,
) -> VIDEO:
    """Some frames of a video.

    Return a video of them, at the rate of the whole; only the first or the last keep their sound.
    """
    there = video.get_frame_count()
    count = min(num_frames, there)
    if strategy in ("head", "tail"):
        return _part(video, 0 if strategy == "head" else there - count, count)
    if strategy == "random":
        chosen = sorted(generator(seed).choice(there, size=count, replace=False).tolist())
    elif count == 1:
        chosen = [there // 2]
    else:
        chosen = [round(index * (there - 1) / (count - 1)) for index in range(count)]
    images = video.get_components().images[chosen]
    return VideoFromComponents(VideoComponents(images, video.get_frame_rate(), None))


@node(
    "VideoTemporalCrop",
    "Crop Video (Temporal)",
    category="video/transform",
    function="crop",
    return_names=("video",),
    experimental=True,
)
def video_temporal_crop(video: VIDEO, start_frame: Annotated[int, Int(0, min=0, max=99999)], length: Length) -> VIDEO:
    """A part of a video. Return the part; what there is of it, and at least the last frame."""
    there = video.get_frame_count()
    start = min(start_frame, max(there - 1, 0))
    return _part(video, start, min(length, there - start))


@node(
    "VideoRandomTemporalCrop",
    "Crop Video (Temporal Random)",
    category="video/transform",
    function="crop",
    return_names=("video",),
    experimental=True,
)
def video_random_temporal_crop(video: VIDEO, length: Length, seed: Seed) -> VIDEO:
    """A part of a video, wherever a seed says. Return the part; all if the video is no longer."""
    there = video.get_frame_count()
    count = min(length, there)
    start = int(generator(seed).randint(0, there - count + 1)) if there > count else 0
    return _part(video, start, count)


def _part(video: Video, start: int, count: int) -> Video:
    rate = float(video.get_frame_rate())
    part = video.as_trimmed(start / rate, count / rate, strict_duration=False)
    if part is None:
        raise NodeError(f"the video has no frames from {start} on; it has {video.get_frame_count()}")
    return part
