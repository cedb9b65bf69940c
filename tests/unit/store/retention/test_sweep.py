"""Files that no job recorded go, and no other: not what another job or a person put there, whatever it is called."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.results import ResultsConfig
from serve_app.events import Failure
from serve_app.execution.files import NodeFiles
from serve_app.store.database.changes import JobAccepted, JobEnded, JobRow, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents, shown
from serve_app.store.files.store import AREAS, FileRef, WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.retention.sweep import Sweep
from serve_app.store.work.node_results import NodeResultFiles
from serve_app.store.work.run_states import JobStates
from tests.unit.store import reserving

SIGNATURE = "0" * 64
ROW = JobRow("", 0.0, 0, {}, ("1",), None, {}, created_s=5.0, queued_seq=1)
LATER_S = 100.0


class Saves:
    """Jobs whose node 1 saves files, by a database and a store as a server has them."""

    def __init__(self, url: str, store: WholeStore) -> None:
        self.jobs = Jobs(url)
        self.store = store
        self.epoch = self.jobs.acquire("test")

    def save(self, job_id: str, *contents: bytes, prefix: str = "a/b", recorded: bool = False) -> list[FileRef]:
        """Save as a node does, and let the job end, with its output recorded or not."""
        row = replace(ROW, job_id=job_id, order=self.jobs.next_order(), queued_seq=self.jobs.next_order())
        self.jobs.write(self.epoch, [JobAccepted(row)])
        refs = self.attempt(job_id, *contents, prefix=prefix)
        if recorded:
            images = [{"filename": r.filename, "subfolder": r.subfolder, "type": r.area} for r in refs]
            self.jobs.write(self.epoch, [OutputRecorded(job_id, "1", {"images": images}, 3)])
        self.jobs.write(self.epoch, [JobEnded(job_id, "success" if recorded else "cancelled", 9.0, 4, Failure())])
        return refs

    def attempt(self, job_id: str, *contents: bytes, prefix: str = "a/b") -> list[FileRef]:
        async def reserve(key: str, at_least: int, what: Contents) -> tuple[int, bool]:
            return reserving.reserve(self.jobs, self.epoch, job_id, "1", key, at_least, what)

        saving = NodeFiles(self.store, job_id, "1", reserve).save("output", prefix, ".png", contents)
        return list(shown({"images": asyncio.run(saving)}))

    def sweep(self, *kept: FileRef) -> None:
        done = Sweep(self.jobs, self.store, 1e9).unrecorded(LATER_S, kept)
        self.jobs.settle(self.epoch, done)

    def there(self) -> set[FileRef]:
        return {ref for area in AREAS for ref, _ in self.store.files(area)}


@pytest.fixture
def saves(tmp_path: Path, store: WholeStore) -> Iterator[Saves]:
    made = Saves(f"sqlite:///{tmp_path}/jobs.sqlite", store)
    yield made
    made.jobs.close()


def test_what_a_job_saved_and_nobody_recorded_goes_and_what_is_recorded_stays(saves):
    kept = saves.save("a", b"1", b"2", recorded=True)
    gone = saves.save("b", b"3", b"4")
    saves.sweep()
    assert saves.there() == {*kept}
    assert gone[0].filename == "b_00003_.png"
    assert saves.jobs.unsettled(LATER_S, None) == []


def test_reservations_of_jobs_that_run_or_have_just_ended_are_left_alone(saves):
    refs = saves.save("a", b"1")
    saves.jobs.write(saves.epoch, [JobAccepted(replace(ROW, job_id="b", order=1))])
    refs += saves.attempt("b", b"2")
    assert Sweep(saves.jobs, saves.store, 1e9).unrecorded(9.0, ()) == []
    saves.sweep(*refs)
    assert saves.there() == {*refs}
    saves.sweep()
    assert saves.there() == {refs[1]}


def test_a_file_of_another_content_under_a_reserved_name_stays(saves):
    (ref,) = saves.save("a", b"mine")
    saves.store.write(ref, b"a person's")
    saves.sweep()
    assert saves.there() == {ref}


def test_a_file_that_another_job_came_to_show_stays(saves):
    (ref,) = saves.save("a", b"1")
    image = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.area}
    other = [JobAccepted(replace(ROW, job_id="b", order=9)), OutputRecorded("b", "1", {"images": [image]}, 3)]
    saves.jobs.write(saves.epoch, other)
    saves.sweep()
    assert saves.there() == {ref}


@pytest.mark.parametrize("place", [0, 1])
def test_what_either_attempt_of_a_node_saved_is_known_as_its_own(saves, place):
    row = replace(ROW, job_id="a")
    saves.jobs.write(saves.epoch, [JobAccepted(row)])
    attempts = [[b"one", b"two"], [b"one, differently", b"two, differently"]]
    first, second = (saves.attempt("a", *contents) for contents in attempts)
    assert first == second
    saves.store.write(first[1], attempts[place][1])
    saves.jobs.write(saves.epoch, [JobEnded("a", "error", 9.0, 4, Failure())])
    saves.sweep()
    assert saves.there() == set()


def test_reservations_from_before_contents_were_written_down_are_let_go_of_with_their_files_kept(saves):
    refs = saves.save("a", b"1")
    with saves.jobs.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE reservations SET digests = '[]', ending = ''")
    saves.sweep()
    assert saves.there() == {*refs}
    assert saves.jobs.unsettled(LATER_S, None) == []


async def preview(store: WholeStore) -> FileRef:
    files = NodeFiles(store, str(uuid.uuid4()), "1", None)  # type: ignore[arg-type]
    (ref,) = shown({"images": await files.save("temp", "ComfyUI_temp_abcde", ".png", [b"x"])})
    return ref


async def test_previews_go_by_age_but_those_still_needed_and_other_peoples_files_stay(saves, store):
    needed, old = await preview(store), await preview(store)
    others = [FileRef("temp", "", "notes.txt"), FileRef("temp", "sub", "ComfyUI_temp_abcde_00001_.png")]
    for ref in others:
        store.write(ref, b"x")
    assert Sweep(saves.jobs, store, 1e9).previews(None, [needed]) == 0
    assert Sweep(saves.jobs, store, 1e9).previews(time.time() + 60, [needed]) == 1
    assert saves.there() == {needed, *others}
    assert Sweep(saves.jobs, store, -60).previews(None, []) == 1
    assert old not in saves.there()


def test_half_written_files_go_once_no_one_can_be_writing_them(tmp_path, saves):
    volume = Volume({area: tmp_path / area for area in (*AREAS, "work")})
    names = [f".{uuid.uuid4().hex}.part" for _ in range(2)]
    for name in (*names, ".mine.part"):
        (tmp_path / "output" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "output" / "sub" / name).write_bytes(b"x")
        os.utime(tmp_path / "output" / "sub" / name, (1, 1) if name != names[1] else None)
    assert Sweep(saves.jobs, volume, 1e9).half_written() == 1
    assert sorted(os.listdir(tmp_path / "output" / "sub")) == sorted([names[1], ".mine.part"])


def test_states_of_runs_and_results_of_nodes_go_once_they_are_old_and_nothing_else_does(saves: Saves) -> None:
    files = JobStates(saves.store, "a").of("3", 0, "recipe")
    files.write(0, b"state")
    results = NodeResultFiles(saves.store, "code")
    for signature in (SIGNATURE, "f" * 64):
        results.write(signature, b"result")
    other = FileRef("work", "", "a.safetensors")
    saves.store.write(other, b"a person's")
    keep = ResultsConfig(age_s=1e9)
    young = Sweep(saves.jobs, saves.store, 1e9)
    assert (young.run_states(), young.results(keep)) == (0, 0)
    assert (files.read(5), files.read(4)) == ([b"state"], [])
    assert young.results(ResultsConfig(max_bytes=11)) == 1
    assert len(results.signatures()) == 1
    assert Sweep(saves.jobs, saves.store, -60).run_states() == 1
    assert young.results(ResultsConfig(max_bytes=0)) == 1
    assert [ref for ref, _ in saves.store.files("work")] == [other]
