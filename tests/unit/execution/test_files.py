from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import FileMissingError, NodeError, StoreError
from serve_app.execution.files import NodeFiles
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.bucket import PART_BYTES
from serve_app.store.files.reserved import LONGEST_KEY, Contents
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import AREAS, FileRef, Store
from serve_app.store.files.volume import Volume
from tests.unit.store.reserving import reserve

AT_S = time.mktime((2024, 3, 5, 7, 8, 9, 0, 0, -1))


class Counters:
    """Reservations as the scheduler makes them, in a database of their own."""

    def __init__(self, root: Path) -> None:
        self._jobs = Jobs(f"sqlite:///{root}/{uuid.uuid4().hex}.sqlite")
        self._epoch = self._jobs.acquire("test")

    def of(self, job_id: str, node_id: str):
        async def ask(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return reserve(self._jobs, self._epoch, job_id, node_id, key, at_least, contents)

        return ask


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in AREAS})


@pytest.fixture
def counters(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    return Counters(tmp_path_factory.mktemp("counters"))


@pytest.fixture
def other_counters(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    return Counters(tmp_path_factory.mktemp("counters"))


@pytest.fixture(params=["volume", "s3"])
def store(request: pytest.FixtureRequest, volume: Volume) -> Store:
    return volume if request.param == "volume" else S3(request.getfixturevalue("bucket"))


def files(volume: Volume, counters: Counters, job_id: str = "job", node_id: str = "9") -> NodeFiles:
    return NodeFiles(volume, job_id, node_id, counters.of(job_id, node_id), AT_S)


async def saved(store: NodeFiles, prefix: str, count: int = 1, area="output", **size: Any) -> list[str]:
    items = await store.save(area, prefix, ".png", [bytes([i]) for i in range(count)], **size)
    assert all(item["type"] == area for item in items)
    return [f"{item['subfolder']}/{item['filename']}".removeprefix("/") for item in items]


async def test_a_repeated_batch_number_is_looked_for_in_time_linear_in_the_names(
    volume: Volume, counters: Counters
) -> None:
    volume.write(FileRef("output", "", "0" * 200), b"")
    volume.write(FileRef("output", "", "0000_00007_.png"), b"")
    assert await saved(files(volume, counters), "%batch_num%" * 4) == ["0000_00008_.png"]
    assert await saved(files(volume, counters), "%batch_num%" * 12) == ["0" * 12 + "_00001_.png"]


async def test_names_count_on_from_the_highest_in_the_folder(volume: Volume, counters: Counters) -> None:
    for name in ("x_00007_.png", "x_00002_.png", "x_y_00040_.png", "xx_00050_.png", "x_00009.flac", "x_a_.png", "x_7"):
        volume.write(FileRef("output", "", name), b"")
    assert await saved(files(volume, counters), "x", 2) == ["x_00010_.png", "x_00011_.png"]
    assert await saved(files(volume, counters), "y") == ["y_00001_.png"]


async def test_a_name_without_a_mark_counts_with_the_others(volume: Volume, counters: Counters) -> None:
    assert await saved(files(volume, counters, "a"), "x") == ["x_00001_.png"]
    for _ in range(2):
        [sound] = await files(volume, counters, "b").save("output", "x", ".flac", [b"1"], mark="")
        assert sound["filename"] == "x_00002.flac"
    assert sorted(volume.names("output")) == ["x_00001_.png", "x_00002.flac"]


async def test_a_retry_that_made_other_bytes_leaves_what_the_first_attempt_saved(
    volume: Volume, counters: Counters
) -> None:
    """In other company a picture's last bits may differ; it is still this job's one picture."""
    await files(volume, counters).save("output", "x", ".png", [b"first"])
    [again] = await files(volume, counters).save("output", "x", ".png", [b"other"])
    assert again["filename"] == "x_00001_.png"
    assert sorted(volume.names("output", "")) == ["x_00001_.png"]
    with volume.open(FileRef("output", "", "x_00001_.png")) as file:
        assert file.read() == b"first"


class Long:
    """A content in pieces, some of which end in the middle of a part that goes to a bucket."""

    def __init__(self, fill: int, fails: bool = False) -> None:
        self.pieces = [bytes([fill]) * size for size in (3, PART_BYTES, 7, PART_BYTES // 2)]
        self._fails = fails

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self.pieces[0]
        yield memoryview(bytearray(self.pieces[1])).cast("H")
        if self._fails:
            raise OSError("the file that it is made of is gone")
        yield from self.pieces[2:]


async def test_a_content_in_pieces_is_saved_whole(store: Store, counters: Counters) -> None:
    contents = [Long(1), Long(2)]
    for attempt in range(2):
        saved_as = await NodeFiles(store, "job", "9", counters.of("job", "9"), AT_S).save(
            "output", "m/x", ".safetensors", contents
        )
        assert [item["filename"] for item in saved_as] == ["x_00001_.safetensors", "x_00002_.safetensors"], attempt
    for item, content in zip(saved_as, contents, strict=True):
        with store.open(FileRef("output", "m", item["filename"])) as file:
            assert file.read() == b"".join(content.pieces)
    [other] = await NodeFiles(store, "other", "9", counters.of("other", "9"), AT_S).save(
        "output", "m/x", ".safetensors", [Long(3)]
    )
    assert other["filename"] == "x_00003_.safetensors"


async def test_a_content_that_ends_in_an_error_leaves_no_file(store: Store) -> None:
    with pytest.raises(OSError, match="is gone"):
        store.write(FileRef("output", "", "x.safetensors"), Long(1, fails=True), replace=False)
    assert list(store.names("output")) == []


def test_a_name_that_is_taken_is_not_written_over_by_pieces(store: Store) -> None:
    ref = FileRef("output", "", "x.safetensors")
    store.write(ref, b"mine")
    with pytest.raises(FileExistsError):
        store.write(ref, Long(1), replace=False)
    with store.open(ref) as file:
        assert file.read() == b"mine"
    store.write(ref, Long(2))
    assert store.stat(ref).size == sum(map(len, Long(2).pieces))


async def test_a_retry_writes_the_same_names_again(volume: Volume, counters: Counters) -> None:
    first = await saved(files(volume, counters), "x", 2)
    assert await saved(files(volume, counters), "x", 2) == first
    assert await saved(files(volume, counters, "other"), "x") == ["x_00003_.png"]
    assert sorted(volume.names("output")) == ["x_00001_.png", "x_00002_.png", "x_00003_.png"]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("a/b/x", "a/b/x_00001_.png"),
        ("a\\b\\x", "a/b/x_00001_.png"),
        ("./a//x", "a/x_00001_.png"),
        ("a/../b/x", "b/x_00001_.png"),
        ("x/", "x_00001_.png"),
        ("", "ComfyUI_00001_.png"),
        ("%width%x%height%", "64x32_00001_.png"),
        ("%year%-%month%-%day%/%hour%.%minute%.%second%", "2024-03-05/07.08.09_00001_.png"),
        ("%date:yyyy% %KSampler.seed%", "%date:yyyy% %KSampler.seed%_00001_.png"),
        ("ünï", "ünï_00001_.png"),
    ],
)
async def test_prefixes_name_subfolders_and_hold_tokens(
    volume: Volume, counters: Counters, prefix: str, name: str
) -> None:
    assert await saved(files(volume, counters), prefix, width=64, height=32) == [name]
    assert volume.stat(FileRef.parse(name, "output")).size == 1


async def test_the_batch_number_is_the_index_and_counters_still_go_on(
    volume: Volume, counters: Counters, other_counters: Counters
) -> None:
    assert await saved(files(volume, counters), "x%batch_num%", 2) == ["x0_00001_.png", "x1_00002_.png"]
    assert await saved(files(volume, other_counters, "other"), "x%batch_num%") == ["x0_00003_.png"]


async def test_a_file_that_came_in_unnoticed_is_not_written_over(volume: Volume, counters: Counters) -> None:
    assert await saved(files(volume, counters, "a"), "x") == ["x_00001_.png"]
    volume.write(FileRef("output", "", "x_00003_.png"), b"foreign")
    assert await saved(files(volume, counters, "b"), "x", 2) == ["x_00004_.png", "x_00005_.png"]
    assert await saved(files(volume, counters, "b"), "x", 2) == ["x_00004_.png", "x_00005_.png"]
    assert await saved(files(volume, counters, "c"), "x") == ["x_00006_.png"]
    with volume.open(FileRef("output", "", "x_00003_.png")) as file:
        assert file.read() == b"foreign"


async def test_servers_that_share_nothing_but_the_store_lose_no_file(store, counters, other_counters) -> None:
    """Two databases count for themselves: only the store can see that a name is taken."""
    nodes = [NodeFiles(store, f"job{n}", "9", [counters, other_counters][n % 2].of(f"job{n}", "9")) for n in range(8)]
    contents = [[f"{n} {i}".encode() for i in range(2)] for n in range(8)]
    made = await asyncio.gather(
        *(node.save("output", "sub/x", ".png", content) for node, content in zip(nodes, contents, strict=True))
    )
    names = [item["filename"] for items in made for item in items]
    assert len(set(names)) == 16
    for items, content in zip(made, contents, strict=True):
        for item, data in zip(items, content, strict=True):
            with store.open(FileRef("output", "sub", item["filename"])) as file:
                assert file.read() == data


async def test_eight_threads_that_save_under_one_prefix_in_a_bucket_get_names_of_their_own(bucket, counters) -> None:
    store, made = S3(bucket), []

    def save(n: int) -> None:
        node = NodeFiles(store, f"job{n}", "9", counters.of(f"job{n}", "9"))
        made.extend(asyncio.run(node.save("output", "x", ".png", [f"{n} {i}".encode() for i in range(4)])))

    threads = [threading.Thread(target=save, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item["filename"] for item in made) == [f"x_{n:05}_.png" for n in range(1, 33)]
    assert sorted(store.names("output")) == [f"x_{n:05}_.png" for n in range(1, 33)]


async def test_a_store_that_refuses_is_the_reason_a_node_fails_with(bucket_of, counters) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket"):
        await NodeFiles(S3(bucket_of("no-such-bucket")), "job", "9", counters.of("job", "9")).save(
            "output", "x", ".png", [b"x"]
        )


@pytest.mark.parametrize("prefix", ["../x", "/etc/x", "a/../../x", "..", "\\x", "x\0", "y" * 300])
async def test_a_prefix_that_leaves_the_area_or_is_no_name_is_a_node_error(
    volume: Volume, counters: Counters, tmp_path: Path, prefix: str
) -> None:
    before = set(tmp_path.rglob("*"))
    with pytest.raises((NodeError, OSError)):
        await saved(files(volume, counters), prefix)
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()


async def test_temp_names_are_the_nodes_own_and_need_no_reservation(volume: Volume) -> None:
    async def refuse(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        raise AssertionError("asked for a reservation")

    def names(job_id: str, node_id: str):
        return saved(NodeFiles(volume, job_id, node_id, refuse), "ComfyUI_temp", 2, area="temp")

    first = await names("job", "9")
    assert await names("job", "9") == first
    assert len({*first, *await names("job", "8"), *await names("other", "9")}) == 6
    assert first[0].startswith("ComfyUI_temp_")
    assert first[0].endswith("_00001_.png")


async def test_saving_twice_under_one_prefix_is_refused_not_overwritten(volume: Volume, counters: Counters) -> None:
    store = files(volume, counters)
    await saved(store, "x")
    with pytest.raises(NodeError, match="saves twice under 'x'"):
        await saved(store, "x")


@pytest.mark.parametrize("prefix", ["a\0b", "\ud800", "b/\udfff"])
async def test_a_prefix_that_no_file_can_have_is_refused_before_counters_are_reserved(
    volume: Volume, counters: Counters, prefix: str
) -> None:
    with pytest.raises(NodeError, match="a character that no file's name can have"):
        await saved(files(volume, counters), prefix)


async def test_a_prefix_longer_than_the_database_holds_is_refused_with_both_lengths(
    volume: Volume, counters: Counters
) -> None:
    longest = "/".join(["y" * 95] * 7)
    assert await saved(files(volume, counters), longest + "/" + "y" * (LONGEST_KEY - len(f"output/{longest}/")))
    with pytest.raises(NodeError, match="makes a path of 768 characters; 767 are allowed"):
        await saved(files(volume, counters), longest + "/" + "y" * (LONGEST_KEY - len(f"output/{longest}/") + 1))


async def test_files_are_read_from_the_area_their_name_says(volume: Volume, counters: Counters) -> None:
    volume.write(FileRef("input", "sub", "a.png"), b"in")
    volume.write(FileRef("output", "", "a.png"), b"out")
    store = files(volume, counters)
    assert await store.read("sub/a.png") == b"in"
    assert await store.read("a.png [output]") == b"out"
    for name in ("a.png", "../output/a.png", "nowhere.png [temp]"):
        with pytest.raises(FileMissingError):
            await store.read(name)
