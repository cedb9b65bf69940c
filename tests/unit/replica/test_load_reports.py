"""What the client is told of a node that waits for its models."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.replica import load_reports


async def test_a_long_load_is_reported_until_it_is_over_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(load_reports, "EVERY_S", 0.01)
    with load_reports.reported(lambda: "loading sd15, 2.1 of 4.0 GB", said.append):
        while len(said) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert (set(said[:-1]), said[-1]) == ({"loading sd15, 2.1 of 4.0 GB"}, "its models are loaded")
    said.clear()
    with load_reports.reported(lambda: None, said.append):
        await asyncio.sleep(0.03)
    assert said == []
