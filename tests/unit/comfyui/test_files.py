from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from serve_app.comfyui.client import Client
from serve_app.comfyui.files import FileTransfer, prune
from serve_app.store.files.store import Area, FileRef
from serve_app.store.files.volume import Volume


class Readable:
    """A ComfyUI that has any file: its own path."""

    async def read(self, ref: FileRef) -> bytes:
        return f"{ref.area}/{ref.path}".encode()


class Counting:
    """Saves as the store does, one prefix once."""

    def __init__(self) -> None:
        self.saved: dict[str, list[bytes]] = {}

    async def save(self, area: Area, prefix: str, suffix: str, contents: list[bytes]) -> list[dict[str, Any]]:
        assert f"{area}/{prefix}" not in self.saved
        self.saved[f"{area}/{prefix}"] = contents
        subfolder, _, name = prefix.rpartition("/")
        return [
            {"filename": f"{name}_{n:05}_{suffix}", "subfolder": subfolder, "type": area}
            for n, _ in enumerate(contents, start=100)
        ]


async def taken(tmp_path: Path, ui: dict[str, Any]) -> dict[str, Any]:
    client: Client = Readable()  # type: ignore[assignment]
    return await FileTransfer(client, Volume({"input": tmp_path})).store_outputs(ui, Counting())


def file(name: str, subfolder: str = "", area: str = "output", **more: Any) -> dict[str, Any]:
    return {"filename": name, "subfolder": subfolder, "type": area, **more}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (file("ComfyUI_00007_.png"), file("ComfyUI_00100_.png")),
        (file("clip_00007.mp4", "video"), file("clip_00100_.mp4", "video")),
        (file("clip_00007-audio.mp4"), file("clip_00100_-audio.mp4")),
        (file("mesh.glb", "3d", "temp"), file("mesh_00100_.glb", "3d", "temp")),
        (file("noend"), file("noend_00100_")),
        (file("left.png", "", "input"), file("left_00100_.png", "", "temp")),
        (file("a_00001_.png", format="image/png", fullpath="/opt/a.png"), file("a_00100_.png", format="image/png")),
    ],
)
async def test_files_of_any_kind_are_found_by_the_names_we_give(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert await taken(tmp_path, {"images": [theirs]}) == {"images": [ours]}


async def test_files_of_a_process_on_this_host_are_read_from_its_folders_and_a_link_out_of_them_by_asking(
    tmp_path: Path,
) -> None:
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere.png"
    made.mkdir()
    (made / "a_00001_.png").write_bytes(b"in the folder")
    elsewhere.write_bytes(b"not to be read")
    (made / "b_00001_.png").symlink_to(elsewhere)
    client: Client = Readable()  # type: ignore[assignment]
    saver = Counting()
    transfer = FileTransfer(client, Volume({"input": tmp_path}), Volume({"output": made}))
    await transfer.store_outputs({"images": [file("a_00001_.png"), file("b_00001_.png")]}, saver)
    assert saver.saved == {"output/a": [b"in the folder"], "output/b": [b"output/b_00001_.png"]}


async def test_a_batch_keeps_its_order_and_a_file_output_twice_is_saved_once(tmp_path: Path) -> None:
    names = [f"b_{n:05}_.png" for n in (3, 1, 2, 3)]
    shown = await taken(tmp_path, {"images": [file(n) for n in names], "text": ["as it is"], "n": [1]})
    counters = [item["filename"][2:7] for item in shown["images"]]
    assert counters == ["00100", "00101", "00102", "00100"]
    assert (shown["text"], shown["n"]) == (["as it is"], [1])


async def test_ends_that_differ_under_one_prefix_are_saved_apart(tmp_path: Path) -> None:
    shown = await taken(tmp_path, {"gifs": [file("v_00001.png"), file("v_00001.mp4")]})
    assert [item["filename"] for item in shown["gifs"]] == ["v_00100_.png", "v_mp4_00100_.mp4"]


def test_the_oldest_files_go_beyond_the_budget(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "mid", "old"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    prune([tmp_path, tmp_path / "none"], 20)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "mid"}
