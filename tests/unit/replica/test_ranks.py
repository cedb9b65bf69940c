"""What a replica of several devices says, in a line, where its ranks cannot compute together."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError
from serve_app.models.ranks import meeting
from serve_app.replica.ranks import interface_to, lead, reason_against


def test_a_rank_without_a_card_says_which_it_is_and_where() -> None:
    said = reason_against(PoolConfig(name="video", devices_per_replica=2, num_gpus=1), 1)
    assert said is not None
    assert said.startswith(f"rank 1 on host {socket.gethostname()}: pool video: torch ")
    assert "finds no GPU here" in said
    assert "\n" not in said
    assert reason_against(PoolConfig(name="video", devices_per_replica=2, device="cpu"), 1) is None


def test_ranks_that_do_not_reach_each_other_say_which_interface_and_what_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "none0")
    with pytest.raises(ConfigError) as refused:
        lead(PoolConfig(name="video", device="cpu"), tmp_path)
    said = str(refused.value)
    assert said.startswith(f"pool video: rank 0 on host {socket.gethostname()} does not reach the others of ")
    assert "by the interface none0; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name another one: " in said
    assert "\n" not in said


@pytest.mark.parametrize("spans_hosts", [False, True])
def test_a_rank_whose_others_do_not_come_says_which_it_is_and_where(
    spans_hosts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "MEET_S", 1.0)
    pool = PoolConfig(name="video", device="cpu", devices_per_replica=2, spans_hosts=spans_hosts)
    with pytest.raises(ConfigError) as refused:
        lead(pool, meeting.Address.on("127.0.0.1") if spans_hosts else tmp_path)
    said = str(refused.value)
    at = " at 127.0.0.1" if spans_hosts else ""
    assert said.startswith(f"pool video: rank 0 on host {socket.gethostname()} does not reach the others{at} of ")
    assert said.endswith(" name another one: rank 1 has not come in 1 s")
    assert "\n" not in said


def test_the_interface_is_the_one_by_which_a_host_is_reached() -> None:
    assert interface_to("127.0.0.1") == "lo"
