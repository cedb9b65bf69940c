"""`serve-app compare`: run one workflow on two pools and compare the saved files."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from serve_app.cli.lines import print_json, print_line
from serve_app.cli.progress import progress
from serve_app.cli.server import ServerClient
from serve_app.cli.submit import VIEW, follow, node_files
from serve_app.errors import ServerRefusedError
from serve_app.media.pictures import FORMATS

AMPLIFIED = 16
"""The factor by which the drawn difference is amplified, to be visible."""


@dataclass(frozen=True, slots=True)
class FileDifference:
    """The difference of two files. largest, mean: of all channels of all pixels, in 0…255; None if not comparable.

    words: a description, or why they cannot be compared. picture: both side by side and their difference, amplified.
    """

    words: str
    largest: float | None
    mean: float | None
    picture: Image.Image | None = None

    def within(self, tolerance: float) -> bool:
        """Whether no channel of a pixel differs by more than the tolerance."""
        return self.largest is not None and self.largest <= tolerance


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found in one place, in words. same: whether within the tolerance.

    largest, mean: as of `FileDifference`. picture: the path of the drawn difference, "" without one.
    """

    words: str
    same: bool
    largest: float | None = None
    mean: float | None = None
    picture: str = ""


def compare_pools(
    server: ServerClient,
    body: Mapping[str, Any],
    pools: Sequence[str],
    tolerance: float,
    directory: Path,
    *,
    as_json: bool = False,
) -> int:
    """Run the body on both pools, print a line for each file, return the exit status: 1 if one differs by more."""
    found = []
    for each in _comparisons(server, body, pools, tolerance, directory):
        found.append(each)
        if not as_json:
            print_line(each.words + (f"  {each.picture}" if each.picture else ""))
    if as_json:
        print_json([asdict(each) for each in found])
    return int(not all(each.same for each in found))


def _comparisons(
    server: ServerClient, body: Mapping[str, Any], pools: Sequence[str], tolerance: float, directory: Path
) -> Iterator[Comparison]:
    left, right = (run_on_pool(server, body, pool) for pool in pools)
    if left.keys() != right.keys():
        outputs = (f"{', '.join(sorted(nodes))} of {pool}" for nodes, pool in zip((left, right), pools, strict=True))
        yield Comparison(f"outputs differ: {', '.join(outputs)}", same=False)
    for node_id in sorted(left.keys() & right.keys()):
        ours, theirs = list(node_files(left[node_id])), list(node_files(right[node_id]))
        if len(ours) != len(theirs):
            words = f"node {node_id}: {len(ours)} files of {pools[0]}, {len(theirs)} of {pools[1]}"
            yield Comparison(words, same=False)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            found = file_difference(server.download(VIEW, **one), server.download(VIEW, **other))
            path = directory / f"compare_{node_id.replace('/', '_')}_{number}.png"
            if found.picture is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                found.picture.save(path)
            words = f"node {node_id}, file {number}: {_line(found, tolerance)}"
            picture = "" if found.picture is None else str(path)
            yield Comparison(words, found.within(tolerance), found.largest, found.mean, picture)
        if not ours and not theirs and left[node_id] != right[node_id]:
            yield Comparison(f"node {node_id}: what is shown differs", same=False)


def run_on_pool(server: ServerClient, body: Mapping[str, Any], pool: str) -> dict[str, Any]:
    """Run the body on a pool and return its outputs. Errors: ServerRefusedError if the job ends without success."""
    job_id = str(uuid.uuid4())
    extra_data = {**(body.get("extra_data") or {}), "pool": pool}
    server.post("/prompt", {**body, "prompt_id": job_id, "extra_data": extra_data})
    print_line(f"pool {pool}: job {job_id}", error=True)
    with progress(body["prompt"]) as show:
        follow(server, job_id, show)
    entry = server.get(f"/history/{job_id}")[job_id]
    if not entry["status"]["completed"]:
        words = "; ".join(entry["status"]["messages"])
        raise ServerRefusedError(f"the job on pool {pool} ended as {entry['status']['status_str']}: {words}")
    outputs: dict[str, Any] = entry["outputs"]
    return outputs


def file_difference(one: bytes, other: bytes) -> FileDifference:
    """Return how far two files differ."""
    try:
        left, right = (Image.open(io.BytesIO(data), formats=FORMATS).convert("RGBA") for data in (one, other))
    except (UnidentifiedImageError, OSError):
        same = one == other
        words = f"{len(one)} and {len(other)} bytes, {'equal' if same else 'different'}"
        return FileDifference(words, 0.0 if same else None, 0.0 if same else None)
    if left.size != right.size:
        return FileDifference(f"{_size(left)} and {_size(right)}", None, None)
    gap = np.abs(np.asarray(left, np.int16) - np.asarray(right, np.int16))
    drawn = Image.fromarray(np.clip(gap[..., :3] * AMPLIFIED, 0, 255).astype(np.uint8))
    picture = Image.new("RGB", (3 * left.width, left.height))
    for place, image in enumerate((left, right, drawn)):
        picture.paste(image.convert("RGB"), (place * left.width, 0))
    return FileDifference(_size(left), float(gap.max()), float(gap.mean()), picture)


def _line(found: FileDifference, tolerance: float) -> str:
    if found.largest is None or found.mean is None:
        return f"{found.words}: not the same"
    verdict = "" if found.within(tolerance) else f", above {tolerance:g}"
    return f"{found.words}: largest difference {found.largest:g} of 255, mean {found.mean:.4g}{verdict}"


def _size(image: Image.Image) -> str:
    return f"{image.width}×{image.height}"
