"""Images, videos and captions of a folder of uploaded files."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from serve_app.errors import NodeError
from serve_app.execution.files import NodeFiles
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.nodes.dataset.folders import repeated
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.replica.files import fingerprints
from serve_app.store.files.input_folders import INPUT_FOLDERS, choices
from serve_app.store.files.reserved import Contents, Reservation
from serve_app.store.files.store import AREAS
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog

COLOURS = {"b.PNG": (255, 0, 0), "a.webp": (0, 255, 0), "2_cats/c.png": (0, 0, 255), "2_cats/deep/d.png": (9, 9, 9)}


def png(colour: tuple[int, int, int], kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 3), colour).save(file, kind, lossless=True)
    return file.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Volume:
    for name, colour in COLOURS.items():
        path = tmp_path / "input" / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour, path.suffix[1:].lower()))
    (tmp_path / "input" / "set" / "b.txt").write_text("  a red tile\n")
    (tmp_path / "input" / "set" / "2_cats" / "c.txt").write_text("ein blaues Plättchen", "utf-8")
    (tmp_path / "input" / "other").mkdir()
    (tmp_path / "input" / "other" / "notes.txt").write_bytes(b"\xff")
    return Volume({area: tmp_path / area for area in AREAS})


def run(class_type: str, store: Volume, folder: str = "set") -> Any:
    async def reserve(*_: Any) -> Any:
        raise AssertionError

    node: Any = BUILTIN[class_type]()
    return asyncio.run(getattr(node, node.FUNCTION)(folder=folder, store=NodeFiles(store, "job", "1", reserve)))


def colours(images: list[torch.Tensor]) -> list[tuple[int, ...]]:
    assert all(image.shape == (1, 3, 2, 3) for image in images)
    return [tuple(int(value) for value in image[0, 0, 0] * 255) for image in images]


def test_the_images_of_a_folder_come_by_name(store: Volume) -> None:
    (images,) = run("LoadImageDataSetFromFolder", store)
    assert colours(images) == [COLOURS["a.webp"], COLOURS["b.PNG"]]


def test_images_come_with_their_captions_and_those_inside_as_often_as_their_folder_says(store: Volume) -> None:
    images, texts = run("LoadImageTextDataSetFromFolder", store)
    assert colours(images) == [COLOURS["2_cats/c.png"]] * 2 + [COLOURS["a.webp"], COLOURS["b.PNG"]]
    assert texts == ["ein blaues Plättchen"] * 2 + ["", "a red tile"]


def test_videos_come_with_their_captions_undecoded(store: Volume, tmp_path: Path) -> None:
    for name, data in (("v.mp4", b"one"), ("v.txt", b"first"), ("u.mkv", b"two")):
        (tmp_path / "input" / "set" / name).write_bytes(data)
    (alone,) = run("LoadVideoDataSetFromFolder", store)
    assert [video.data for video in alone] == [b"two", b"one"]
    videos, texts = run("LoadVideoTextDataSetFromFolder", store)
    assert ([video.data for video in videos], texts) == ([b"two", b"one"], ["", "first"])


@pytest.mark.parametrize("class_type", ["LoadImageDataSetFromFolder", "LoadVideoTextDataSetFromFolder"])
def test_a_folder_without_any_is_an_error(store: Volume, class_type: str) -> None:
    with pytest.raises(NodeError, match=r"folder 'other' has no (image|video); a name of one ends in"):
        run(class_type, store, "other")


def test_a_caption_that_is_no_text_is_named(store: Volume, tmp_path: Path) -> None:
    (tmp_path / "input" / "other" / "notes.png").write_bytes(png((0, 0, 0)))
    with pytest.raises(NodeError, match=r"caption 'other/notes.txt' is no text in UTF-8"):
        run("LoadImageTextDataSetFromFolder", store, "other")


def test_a_folder_that_counts_for_ever_is_refused() -> None:
    assert repeated(["0_none/a.png", "x_y/b.png", "c.png", "1/2/d.png"]) == ["x_y/b.png", "c.png"]
    with pytest.raises(NodeError, match="'2000_x' counts 2,000 times; 1,000 is the most"):
        repeated(["2000_x/a.png"])


def test_only_folders_with_files_in_them_are_chosen_from(store: Volume, tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "models")
    assert choices(store, catalog, INPUT_FOLDERS) == ["other", "set", "set/2_cats", "set/2_cats/deep"]

    def problems(folder: str) -> list[str]:
        nodes = {
            "1": {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        checked = validate(parse(nodes), specs(), lambda name: choices(store, catalog, name))
        return [problem.type for problem in checked.problems]

    assert problems("set/2_cats") == []
    assert problems("../set") == problems("set/dogs") == ["value_not_in_list"]


def test_a_folder_is_another_once_a_file_in_it_is(store: Volume, tmp_path: Path) -> None:
    tag = fingerprints(Catalog(tmp_path / "models"), store)
    before, inside = tag(INPUT_FOLDERS, "set"), tag(INPUT_FOLDERS, "set/2_cats")
    assert tag(INPUT_FOLDERS, "set") == before
    (tmp_path / "input" / "set" / "b.txt").unlink()
    assert tag(INPUT_FOLDERS, "set") != before
    assert tag(INPUT_FOLDERS, "set/2_cats") == inside


def saved(store: Volume, class_type: str, first: int, **inputs: Any) -> dict[str, Any]:
    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        assert key == "output/set/image"
        return first, False

    given = {"folder_name": ["set"], "filename_prefix": ["image"], "mode": ["overwrite"]}
    node: Any = BUILTIN[class_type]()
    files = NodeFiles(store, "job", "1", reserve)
    made: dict[str, Any] = asyncio.run(node.save(**given, **inputs, store=[files]))["ui"]
    return made


def test_images_are_saved_into_a_folder(store: Volume, tmp_path: Path) -> None:
    images = [torch.zeros(2, 3, 2, 3), torch.ones(1, 3, 2, 3)]
    shown = saved(store, "SaveImageDataSetToFolder", 4, images=images)
    assert [file["filename"] for file in shown["images"]] == [f"image_0000{i}.png" for i in (4, 5, 6)]
    assert {file["subfolder"] for file in shown["images"]} == {"set"}
    with Image.open(tmp_path / "output" / "set" / "image_00006.png") as image:
        assert (image.getpixel((0, 0)), image.info) == ((255, 255, 255), {})


def test_a_caption_has_the_name_of_its_image(store: Volume, tmp_path: Path) -> None:
    images = [torch.zeros(2, 3, 2, 3)]
    shown = saved(store, "SaveImageTextDataSetToFolder", 1, images=images, texts=["ein Plättchen"])
    folder = tmp_path / "output" / "set"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"image_0000{i}.{end}" for i in (1, 2) for end in ("png", "txt")
    ]
    assert [(folder / file["filename"]).read_text("utf-8") for file in shown["files"]] == ["ein Plättchen", ""]


def test_files_that_share_a_counter_are_known_by_their_reservation() -> None:
    given = Reservation("job", "1", "output/set/image", 7, 4, ".png|.txt", (frozenset("a"),) * 4)
    named = [ref.filename for ref, _ in given.files()]
    assert named == ["image_00007.png", "image_00007.txt", "image_00008.png", "image_00008.txt"]
