"""Ranks meet, and whoever is none of them does not."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import AuthenticationError
from pathlib import Path

import pytest

from serve_app.models.ranks import meeting
from serve_app.models.ranks.meeting import KINDS, Address, Meeting, accepted, connected, listening

LATE_S = 30.0


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_rank_0_has_a_connection_of_each_kind_with_each_other_rank(kind: str, tmp_path: Path) -> None:
    at: Meeting = tmp_path if kind == "folder" else Address.on("127.0.0.1")
    with listening(at, 3) as listener, ThreadPoolExecutor(2) as threads:
        others = [threads.submit(connected, at, rank) for rank in (1, 2)]
        made = accepted(listener, at, 3)
        of_others = [other.result(LATE_S) for other in others]
    assert made.keys() == {(kind, rank) for kind in KINDS for rank in (1, 2)}
    for rank, own in enumerate(of_others, 1):
        made["loads", rank].send("load")
        assert own["loads", 0].poll(LATE_S)
        assert own["loads", 0].recv() == "load"
    for connection in (*made.values(), *(one for own in of_others for one in own.values())):
        connection.close()


def test_whoever_does_not_know_the_key_gives_no_orders_and_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GREETING_S", 1.0)
    at = Address.on("127.0.0.1")
    with listening(at, 2) as listener, ThreadPoolExecutor(1) as threads:
        leading = threads.submit(accepted, listener, at, 2)
        # One that says nothing, one that says something else, and one with another key.
        silent = socket.create_connection((at.host, at.orders_port), LATE_S)
        stranger = socket.create_connection((at.host, at.orders_port), LATE_S)
        stranger.sendall(b"\x00\x00\x00\x05hello")
        with pytest.raises(AuthenticationError):
            connected(replace(at, key=b"guessed"), 1)
        made = connected(at, 1)
        found = leading.result(LATE_S)
    assert found.keys() == {(kind, 1) for kind in KINDS}
    for link in (silent, stranger):
        link.close()
    for connection in (*made.values(), *found.values()):
        connection.close()


def test_ranks_that_do_not_come_are_waited_for_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEET_S", 0.2)
    with listening(tmp_path, 2) as listener, pytest.raises(TimeoutError):
        accepted(listener, tmp_path, 2)
