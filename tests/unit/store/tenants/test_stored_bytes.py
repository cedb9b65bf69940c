"""What tenants have stored is counted once, however often it is noted, and claims never pass a quota together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from serve_app.store.database.jobs import Jobs
from serve_app.store.tenants.stored_bytes import ClaimBytes, ForgetUnseen, NoteFiles, StoredBytes, name_of, new_claim

A, B = name_of("input", "@studio/a.png"), name_of("output", "@studio/" + "long/" * 900 + "b.png")


class Count:
    """A database under its first lease."""

    def __init__(self, url: str) -> None:
        self.jobs = Jobs(url)
        self.epoch = self.jobs.acquire("test")

    def note(self, sizes: dict[str, int | None], tenant: str = "studio") -> None:
        self.jobs.query(self.epoch, NoteFiles(sizes, tenant))

    def claim(self, size: int, replaced: str | None = None, claim: str | None = None) -> tuple[bool, int]:
        asked = ClaimBytes(claim or new_claim(), size, 100, replaced, "studio")
        granted, stored = self.jobs.query(self.epoch, asked)
        return granted, stored

    def forget(self, before_s: float) -> None:
        self.jobs.query(self.epoch, ForgetUnseen(before_s))

    def stored(self, tenant: str = "studio") -> int:
        return self.jobs.query(self.epoch, StoredBytes(tenant))


@pytest.fixture
def count(database_url: str) -> Iterator[Count]:
    made = Count(database_url)
    yield made
    made.jobs.close()


def test_a_file_counts_once_however_often_it_is_noted_and_not_once_it_is_gone(count: Count) -> None:
    for _ in range(2):
        count.note({A: 10, B: 5_000_000_000})
        assert count.stored() == 5_000_000_010
    count.note({A: 30})
    assert count.stored() == 5_000_000_030
    for _ in range(2):
        count.note({B: None})
        assert count.stored() == 30
    count.note({name_of("input", "@other/a.png"): 7}, "other")
    assert (count.stored(), count.stored("other"), count.stored("nobody")) == (30, 7, 0)


def test_claims_do_not_pass_the_quota_together_and_end_with_what_was_written(count: Count) -> None:
    assert count.claim(60, claim="first") == (True, 0)
    assert count.claim(60) == (False, 60)
    assert count.claim(60, claim="first") == (True, 0), "the answer to the first call was lost"
    assert count.claim(40, claim="second") == (True, 60)
    count.note({A: 60, "first": None})
    assert count.stored() == 100
    count.note({"second": None})
    assert count.stored() == 60


def test_what_is_written_over_gives_its_bytes_to_what_takes_its_place(count: Count) -> None:
    count.note({A: 90})
    assert count.claim(95) == (False, 90)
    assert count.claim(95, replaced=A, claim="c") == (True, 90)
    assert count.stored() == 95
    count.note({A: 95, "c": None})
    assert count.stored() == 95
    count.note({B: 50})
    assert count.claim(20, replaced=A, claim="d") == (True, 145), "less may always take the place of more"
    count.note({A: 20, "d": None})
    assert count.stored() == 70


def test_what_nobody_has_seen_is_forgotten_and_an_upload_that_never_ended_after_an_hour(
    count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("serve_app.store.tenants.stored_bytes.time.time", lambda: clock[0])
    count.note({A: 10})
    assert count.claim(20)[0]
    clock[0] = 2000.0
    count.note({B: 5})
    count.forget(1500.0)
    assert count.stored() == 25
    clock[0] = 5000.0
    count.note({B: 5})
    count.forget(4900.0)
    assert count.stored() == 5
    count.forget(math.inf)
    assert count.stored() == 0
