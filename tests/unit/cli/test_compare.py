from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.cli.compare import AMPLIFIED, compare_pools, file_difference
from serve_app.errors import ServerRefusedError


def png(colour: tuple[int, int, int], size: tuple[int, int] = (4, 3), odd: int = 0) -> bytes:
    pixels = np.full((size[1], size[0], 3), colour, np.uint8)
    pixels[0, 0, 0] += odd
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class TwoPools:
    """A server that keeps what each pool saves for a job of it."""

    def __init__(self, **files: list[bytes]) -> None:
        self._files = files
        self._asked: dict[str, str] = {}
        self.states: dict[str, str] = {}

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self._asked[body["prompt_id"]] = body["extra_data"]["pool"]

    def get(self, path: str, **query: Any) -> Any:
        job_id = path.split("/")[2]
        if path.endswith("/events"):
            return {"events": [], "last": True}
        pool = self._asked[job_id]
        images = [{"filename": f"{pool}/{n}", "type": "output"} for n in range(len(self._files[pool]))]
        state = self.states.get(pool, "success")
        status = {"completed": state == "success", "status_str": state, "messages": ["the reason"]}
        return {job_id: {"outputs": {"9": {"images": images, "text": ["x"]}}, "status": status}}

    def download(self, path: str, filename: str, **query: Any) -> bytes:
        pool, number = filename.split("/")
        return self._files[pool][int(number)]


BODY = {"prompt": {"9": {"class_type": "SaveImage", "inputs": {}}}}


def run(server: TwoPools, tolerance: float, directory: Path) -> int:
    given: Any = server
    return compare_pools(given, BODY, ["shared", "comfyui"], tolerance, directory)


def test_a_difference_is_measured_and_drawn() -> None:
    found = file_difference(png((10, 20, 30)), png((10, 20, 30), odd=6))
    assert (found.words, found.largest, found.mean) == ("4×3", 6.0, 6 / (4 * 3 * 4))
    assert found.within(6)
    assert not found.within(5.9)
    assert found.picture is not None
    assert found.picture.size == (12, 3)
    assert [found.picture.getpixel((x, 0)) for x in (0, 4, 8)] == [(10, 20, 30), (16, 20, 30), (6 * AMPLIFIED, 0, 0)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (png((1, 2, 3)), png((1, 2, 3), size=(3, 4)), False),
        (b"film", b"film", True),
        (b"film", b"other", False),
        (png((1, 2, 3)), b"film", False),
    ],
)
def test_what_cannot_be_compared_is_the_same_only_if_it_is_equal(one: bytes, other: bytes, same: bool) -> None:
    assert file_difference(one, other).within(255) == same


def test_the_exit_status_says_whether_a_file_is_above_the_tolerance(tmp_path: Path, capsys: Any) -> None:
    server = TwoPools(shared=[png((1, 2, 3))], comfyui=[png((1, 2, 3), odd=2)])
    assert run(server, 2, tmp_path) == 0
    assert run(server, 1, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert compare_pools(server, BODY, ["shared", "comfyui"], 1, tmp_path, as_json=True) == 1  # type: ignore[arg-type]
    [found] = json.loads(capsys.readouterr().out)
    assert (found["same"], found["largest"], found["picture"]) == (False, 2.0, f"{tmp_path}/compare_9_0.png")
    assert lines[0].startswith("node 9, file 0: 4×3: largest difference 2 of 255, mean 0.04167")
    assert lines[1].endswith(f", above 1  {tmp_path}/compare_9_0.png")
    assert Image.open(tmp_path / "compare_9_0.png").size == (12, 3)


def test_a_file_too_few_is_a_difference(tmp_path: Path, capsys: Any) -> None:
    assert run(TwoPools(shared=[png((1, 2, 3))] * 2, comfyui=[png((1, 2, 3))]), 0, tmp_path) == 1
    assert "2 files of shared, 1 of comfyui" in capsys.readouterr().out


def test_compare_reports_a_job_that_fails(tmp_path: Path) -> None:
    server = TwoPools(shared=[], comfyui=[])
    server.states["comfyui"] = "error"
    with pytest.raises(ServerRefusedError, match="on pool comfyui ended as error: the reason"):
        run(server, 0, tmp_path)
