"""What a process may have of its host."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from serve_app.replica import host


@pytest.mark.parametrize("said", ["max", str(1 << 62), None])
def test_a_container_without_a_limit_has_the_hosts_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.setattr(host, "CONTAINER_LIMITS", (tmp_path / "memory.max",))
    if said is not None:
        (tmp_path / "memory.max").write_text(said)
    assert host.memory_bytes() == psutil.virtual_memory().total


def test_a_pool_that_says_nothing_leaves_some_of_the_containers_memory_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(host, "CONTAINER_LIMITS", (tmp_path / "memory.max",))
    assert host.own_limit(0) == 800_000_000
    assert host.own_limit(5_000_000) == 5_000_000
