"""The watchdog beside a real loop that is blocked or not, and a real process that runs out of memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.replica.watchdog import BLOCKED, FULL, LOOK_S, RELIEF_S, STUCK, Watchdog

GB = 1 << 30


class Watched:
    """A loop in a thread of its own, and a watchdog that the test makes look."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.exits: list[int] = []
        self.relieved = threading.Event()
        self.bytes = self.turn = self.load = self.unwanted = 0
        self.told_s: list[float] = []
        self.waited_s = 0.0
        """How long the loop's thread has had no processor."""
        self.running = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.running.start()
        self.watchdog = Watchdog(
            self.loop,
            **{"hang_s": 2 * LOOK_S, "memory_bytes": 0, **settings},
            relieve=self.relieved.set,
            underway=lambda: ["node 7 (Sleep) of job j"],
            turns=lambda: (self.turn, self.load),
            turn_s=3 * LOOK_S,
            unwanted_turn=lambda: self.unwanted,
            unwanted=self.told_s.append,
            exit=self.exits.append,
            own_bytes=lambda: self.bytes,
            waited_s=lambda thread: self.waited_s if thread == self.thread else 0.0,
        )

    @property
    def thread(self) -> int | None:
        return self.running.native_id

    def look(self, times: int) -> None:
        for _ in range(times):
            self.watchdog.look()
            if not self.exits:
                self.settle()

    blocked = False

    def settle(self) -> None:
        """Let the loop do what it was given before, if it can."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        done.wait(0.05 if self.blocked else 10)

    def block(self) -> Callable[[], None]:
        """Block the loop until the function returned is called."""
        entered, go = threading.Event(), threading.Event()
        self.loop.call_soon_threadsafe(lambda: (entered.set(), go.wait(30)))
        assert entered.wait(10)
        self.blocked = True
        return go.set


def test_a_loop_that_is_blocked_ends_the_process_with_last_words_and_stacks(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = Watched()
    watched.look(4)
    assert watched.exits == []
    go = watched.block()
    watched.look(4)
    go()
    assert watched.exits[0] == BLOCKED
    assert "node 7 (Sleep) of job j" in caplog.text
    assert "in <lambda>" in capfd.readouterr().err


def test_a_loop_that_answers_in_between_is_not_blocked() -> None:
    watched = Watched()
    for _ in range(3):
        go = watched.block()
        watched.look(2)
        watched.blocked = False
        go()
        watched.settle()
    assert watched.exits == []


def test_a_loop_that_has_no_processor_is_not_blocked_and_one_that_has_is() -> None:
    watched = Watched()
    watched.look(2)
    go = watched.block()
    for _ in range(20):
        watched.waited_s += 3600
        watched.look(1)
    assert watched.exits == [], "on a busy machine it is late"
    watched.look(4)
    go()
    assert watched.exits[0] == BLOCKED


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the figure is Linux's")
def test_a_thread_that_others_keep_from_its_processor_has_waited() -> None:
    done = process(
        """
import os, subprocess, sys, threading, time
from serve_app.replica.watchdog import _waited_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
me, before_s = threading.get_native_id(), _waited_s(threading.get_native_id())
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    while _waited_s(me) - before_s < 0.1: pass
finally:
    other.kill()
time.sleep(0.05)
print(_waited_s(0), "waited")
"""
    )
    assert done.stdout.strip() == "0.0 waited", done.stderr


def test_memory_above_its_limit_is_first_freed_and_ends_the_process_only_if_that_did_not_help() -> None:
    watched = Watched(memory_bytes=GB)
    watched.bytes = GB
    watched.look(10)
    assert not watched.relieved.is_set()
    watched.bytes = GB + 1
    watched.look(1)
    assert watched.relieved.wait(10)
    assert watched.exits == []
    watched.bytes = GB
    watched.look(10)
    assert watched.exits == []
    watched.bytes = GB + 1
    watched.look(int(RELIEF_S / LOOK_S) + 1)
    assert watched.exits == [FULL]


def test_a_turn_of_the_engine_that_does_not_end_ends_the_process_with_last_words_and_stacks(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = Watched()
    for turn in range(1, 10):
        watched.turn = turn
        watched.look(2)
        watched.turn = 0
        watched.look(1)
    watched.look(10)
    assert watched.exits == [], "every turn has ended in time"
    watched.turn = 10
    watched.look(3)
    assert watched.exits == []
    watched.look(1)
    assert watched.exits == [STUCK]
    assert "node 7 (Sleep) of job j" in caplog.text
    assert "Thread 0x" in capfd.readouterr().err


def test_a_blocking_turn_of_the_loop_is_reported_for_as_long_as_it_lasts() -> None:
    watched = Watched()
    watched.unwanted = 7
    watched.look(3)
    watched.unwanted = 8
    watched.look(2)
    watched.unwanted = 0
    watched.look(1)
    assert watched.told_s == [LOOK_S, 2 * LOOK_S, 0.0, LOOK_S, 0.0]


def test_a_load_that_does_not_end_ends_the_process_though_the_engine_goes_on() -> None:
    watched = Watched()
    for watched.load in (1, 2):
        for watched.turn in range(1, 4):
            watched.look(1)
    assert watched.exits == []
    watched.turn += 1
    watched.look(1)
    assert watched.exits == [STUCK]


def test_a_closed_loop_is_watched_no_more() -> None:
    watched = Watched()
    watched.loop.call_soon_threadsafe(watched.loop.stop)
    while watched.loop.is_running():
        pass
    watched.loop.close()
    for _ in range(10):
        watched.watchdog.look()
    assert watched.exits == []


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_process_that_blocks_its_loop_or_fills_memory_really_ends() -> None:
    start = """
import asyncio, time
from serve_app.replica.watchdog import Watchdog
async def main():
    Watchdog(asyncio.get_running_loop(), hang_s=HANG, memory_bytes=MEMORY, relieve=lambda: None,
             underway=lambda: ["node 7"]).start()
    await asyncio.sleep(0.1)
"""
    blocked = process(start.replace("HANG", "0.5").replace("MEMORY", "0") + "    time.sleep(60)\nasyncio.run(main())")
    assert blocked.returncode == BLOCKED
    assert "in main" in blocked.stderr
    full = process(
        # A loop that has its turns late is not what ends this one.
        start.replace("HANG", "60").replace("MEMORY", str(GB // 2))
        + "    kept = []\n    while True: kept.append(b'x' * (1 << 24)); await asyncio.sleep(0.01)\nasyncio.run(main())"
    )
    assert full.returncode == FULL
    assert "node 7" in full.stderr


LOADS = """
import sys
from pathlib import Path
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.replica.assemble import assemble
root = Path(sys.argv[1])
config = AppConfig(custom_nodes_dir=root / "packs", models_dir=root, pack_import_s=1)
assemble(config, PoolConfig(name="cpu", runtime=False), "r", None, None)
"""
"""What a replica does before it joins."""


def test_a_pack_whose_import_does_not_end_ends_the_process_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "a_fine_one.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (tmp_path / "packs" / "endless.py").write_text("import threading; threading.Event().wait()")
    stuck = process(LOADS, str(tmp_path))
    assert stuck.returncode == STUCK
    assert "importing node pack endless.py has taken longer than 1 s" in stuck.stderr
    assert 'packs/endless.py", line 1' in stuck.stderr, "the stack says where"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_model_files_are_opened_beyond_the_limit_of_allocations_which_stays(tmp_path: Path) -> None:
    done = process(
        """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from serve_app.models.files.tensor_file import open_tensors
from serve_app.replica import watchdog
path = Path(sys.argv[1]) / "large.safetensors"
save_file({"a": torch.zeros(1 << 24, dtype=torch.bfloat16)}, path)
watchdog.RESERVED_BYTES = 1 << 27
watchdog.limit_allocations(1 << 27)
files = [open_tensors(path) for _ in range(20)]
assert sum(file.shapes["a"][0] for file in files) == 20 << 24
try:
    torch.zeros(1 << 29, dtype=torch.uint8)
except RuntimeError:
    print("refused")
""",
        str(tmp_path),
    )
    assert done.stdout.strip() == "refused", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_huge_allocation_fails_cleanly_and_everything_else_goes_on() -> None:
    done = process(
        """
import threading, time, torch
from serve_app.replica.watchdog import limit_allocations
limit_allocations(1 << 28)
for huge in (lambda: torch.zeros(1 << 30), lambda: bytearray(1 << 32), lambda: "a" * (1 << 32)):
    try:
        huge()
        raise SystemExit("it was given")
    except (MemoryError, RuntimeError):
        pass
threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(40)]
[thread.start() for thread in threads]
print(float((torch.ones(500, 500) @ torch.ones(500, 500)).sum()))
"""
    )
    assert done.stdout.strip() == str(500.0**3), done.stderr
