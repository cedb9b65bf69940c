"""Jobs are removed with their files and nothing else, whichever step a process ends at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from serve_app.store.database.changes import JobAccepted, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import FileRef, WholeStore
from serve_app.store.page.assets import Asset, MintAsset
from serve_app.store.retention.named_files import FEW, NeededFiles, StoredPath, places
from serve_app.store.retention.removal import Doomed, RemoveJobs, SettleDoomed
from serve_app.store.retention.sweep import Sweep
from tests.unit.store.retention.test_sweep import ROW, Saves


@pytest.fixture
def saves(database_url: str, store: WholeStore) -> Iterator[Saves]:
    made = Saves(database_url, store)
    yield made
    made.jobs.close()


def finish(saves: Saves) -> None:
    """Delete what is on the list, as the scheduler does."""
    doomed = saves.jobs.query(saves.epoch, Doomed())
    Sweep(saves.jobs, saves.store, 1e9).doomed(doomed)
    saves.jobs.query(saves.epoch, SettleDoomed(doomed))
    assert saves.jobs.query(saves.epoch, Doomed()) == ()


def test_a_job_goes_with_its_files_and_others_stay(saves):
    gone = saves.save("a", b"1", b"2", recorded=True)
    kept = saves.save("b", b"3", recorded=True)
    removed = saves.jobs.query(saves.epoch, RemoveJobs(("a", "unknown")))
    assert (removed.ended, removed.unfinished, removed.more) == (("a",), (), False)
    assert {*removed.files} == {*places(gone)}
    assert saves.jobs.job("a") is None
    finish(saves)
    assert saves.there() == {*kept}


def test_a_process_that_ends_between_the_steps_leaves_the_files_on_the_list(saves, database_url):
    gone = saves.save("a", b"1", recorded=True)
    saves.jobs.query(saves.epoch, RemoveJobs(("a",)))
    saves.jobs.close()
    saves.jobs = Jobs(database_url)
    saves.epoch = saves.jobs.acquire("later")
    assert saves.there() == {*gone}
    finish(saves)
    assert saves.there() == set()


def test_what_another_job_shows_or_is_about_to_read_or_an_asset_refers_to_stays(saves):
    refs = [saves.save(name, name.encode(), recorded=True)[0] for name in ("shown", "read", "asset", "gone")]
    image = {"filename": refs[0].filename, "subfolder": refs[0].subfolder, "type": refs[0].area}
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": f"{refs[1].path} [output]"}}}
    saves.jobs.write(
        saves.epoch,
        [
            JobAccepted(replace(ROW, job_id="other", order=8, queued_seq=8, prompt=prompt)),
            OutputRecorded("other", "1", {"images": [image]}, 9),
        ],
    )
    asset = Asset("id", "blake3:0", "output", refs[2].path, 5, "image/png", None, (), 5.0)
    saves.jobs.query(saves.epoch, MintAsset(asset, True))
    removed = saves.jobs.query(saves.epoch, RemoveJobs(None))
    assert removed.ended == ("shown", "read", "asset", "gone")
    finish(saves)
    assert saves.there() == {*refs[:3]}


def test_unfinished_jobs_stay_and_are_named(saves):
    saves.jobs.write(saves.epoch, [JobAccepted(replace(ROW, job_id="a"))])
    removed = saves.jobs.query(saves.epoch, RemoveJobs(("a",)))
    assert (removed.ended, removed.unfinished) == ((), ("a",))
    removed = saves.jobs.query(saves.epoch, RemoveJobs(None))
    assert (removed.ended, removed.unfinished) == ((), ())
    assert saves.jobs.job("a") is not None


def test_a_tenant_removes_its_own_alone(saves):
    for name in ("a", "b"):
        saves.jobs.write(saves.epoch, [JobAccepted(replace(ROW, job_id=name, order=ord(name), tenant=name))])
    assert saves.jobs.query(saves.epoch, RemoveJobs(("a", "b"), "b")).unfinished == ("b",)


def test_what_a_node_shows_of_uploads_or_under_no_name_at_all_is_never_deleted(saves):
    saves.save("a", recorded=False)
    saves.store.write(FileRef("input", "", "mine.png"), b"mine")
    shown = [{"filename": "mine.png", "type": "input"}, {"filename": "../x", "subfolder": "..", "type": "output"}]
    saves.jobs.write(saves.epoch, [OutputRecorded("a", "1", {"images": shown}, 9)])
    assert saves.jobs.query(saves.epoch, RemoveJobs(("a",))).files == ()
    finish(saves)
    assert saves.there() == {FileRef("input", "", "mine.png")}


def test_every_name_in_a_prompt_is_found_wherever_it_stands_and_is_its_tenants(saves):
    named = ["c.png [temp]", 3, "./sub//ä_%.png"]
    prompt = {"1": {"inputs": {"image": "a/b.png", "list": named}}, "2": {"text": "no/../name"}}
    for tenant in ("", "acme"):
        row = replace(ROW, job_id=tenant or "job", order=len(tenant), prompt=prompt, tenant=tenant)
        saves.jobs.write(saves.epoch, [JobAccepted(row)])
    asked: tuple[StoredPath, ...] = (
        ("input", "a/b.png"),
        ("temp", "c.png"),
        ("input", "@acme/a/b.png"),
        ("input", "sub/ä_%.png"),
        ("input", "@other/a/b.png"),
        ("input", "sub/äx%.png"),
    )
    many = tuple[StoredPath, ...](("input", f"{number}.png") for number in range(FEW))
    for among in (asked, asked + many):
        assert saves.jobs.query(0, NeededFiles(among)) == {*asked[:4]}
