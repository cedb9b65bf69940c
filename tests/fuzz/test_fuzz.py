"""The short form: every route several times, nothing answered 500, nothing that hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.inputs import Inputs, Request, table
from tests.fuzz.run import application, fuzz


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_request_is_answered_by_a_failure_of_the_server(tmp_path: Path, seed: int) -> None:
    async with application(tmp_path) as app:
        outcome = await fuzz(500, seed, app=app)
    assert outcome.wrong == []
    assert outcome.sessions
    assert {200, 400, 404} <= outcome.statuses.keys()


def test_every_route_is_asked_and_a_seed_gives_the_same_requests_again() -> None:
    sent = [one for one, _ in zip(Inputs(7), range(300), strict=False)]
    assert sent == [one for one, _ in zip(Inputs(7), range(300), strict=False)]
    assert len(table()) > 100
    assert len({one.target.partition("?")[0] for one in sent if isinstance(one, Request)}) > 100
