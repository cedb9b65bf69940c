"""The supervisor over real processes that are no Ray: what it starts again, when it gives up, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from serve_app.deployments.process import supervisor

PROGRAM = """
import os, shutil, subprocess, sys, time
lives, told, ready = sys.argv[1], sys.stdin.read(), int(sys.argv[-1])
with open(lives, "a") as file:
    file.write(told + "\\n")
life = open(lives).read().count("\\n")
def part(name):
    link = os.path.join(os.path.dirname(lives), name)
    if not os.path.exists(link):
        os.symlink(shutil.which("sleep"), link)
    return subprocess.Popen([link, "60"])
"""
SLEEP = "os.write(ready, b'1'); time.sleep(60)"
PATIENCE_S = 60.0


class Run:
    """`supervise` in a thread over a program that is told 'hello' and notes each of its lives."""

    def __init__(self, folder: Path, program: str) -> None:
        self.lives_file = folder / "lives"
        self.stop = threading.Event()
        self._status: Future[int] = Future()
        command = [sys.executable, "-c", PROGRAM + program, str(self.lives_file)]
        self._thread = threading.Thread(
            target=lambda: self._status.set_result(
                supervisor.supervise(command, b"hello", os.environ.copy(), self.stop)
            )
        )
        self._thread.start()

    def status(self) -> int:
        return self._status.result(PATIENCE_S)

    def lives(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return self.lives_file.read_text().splitlines()
        return []

    def wait_for_lives(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.lives()) < count:
            assert time.monotonic() < deadline, self.lives()
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """Return the program and its children, living or not yet noticed to be dead."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.lives_file.parent) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def named(self, name: str) -> psutil.Process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    if process.name() == name:
                        return process
            time.sleep(0.02)
        raise AssertionError(f"no process {name}")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.stop.set()
        run.status()


def start(runs: list[Run], tmp_path: Path, program: str) -> Run:
    runs.append(Run(tmp_path, program))
    return runs[-1]


def test_a_stop_ends_the_program_and_is_success(runs, tmp_path):
    run = start(runs, tmp_path, "part('raylet'); " + SLEEP)
    run.named("raylet")
    run.stop.set()
    assert run.status() == 0
    assert run.lives() == ["hello"]
    assert run.processes() == []


@pytest.mark.parametrize("name", supervisor.PARTS)
def test_the_death_of_a_part_of_ray_ends_the_rest_and_starts_all_again(name, runs, tmp_path):
    run = start(runs, tmp_path, "parts = [part(name) for name in ('gcs_server', 'raylet')]; " + SLEEP)
    others = {run.named(other) for other in supervisor.PARTS if other != name}
    run.named(name).kill()
    run.wait_for_lives(2)
    assert run.lives() == ["hello"] * 2
    assert not any(other.is_running() and other.status() != psutil.STATUS_ZOMBIE for other in others)
    assert run.named(name).is_running()


def test_a_program_that_is_killed_is_started_again_and_leaves_no_child_of_its_own(runs, tmp_path):
    run = start(runs, tmp_path, "part('raylet'); " + SLEEP)
    orphan = run.named("raylet")
    parent = orphan.parent()
    assert parent is not None
    parent.kill()
    run.wait_for_lives(2)
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_start_that_says_it_will_never_succeed_is_not_repeated(runs, tmp_path, capfd):
    run = start(runs, tmp_path, f"sys.exit({supervisor.GIVEN_UP})")
    assert run.status() == 1
    assert len(run.lives()) == 1
    assert "does not start" in capfd.readouterr().err


def test_three_starts_that_fail_are_enough(runs, tmp_path, capfd):
    run = start(runs, tmp_path, "sys.exit(5)")
    assert run.status() == 1
    assert len(run.lives()) == supervisor.TRIES
    assert "has ended with status 5" in capfd.readouterr().err


def test_what_once_worked_is_started_again_whatever_a_later_start_says(runs, tmp_path):
    run = start(runs, tmp_path, f"os.write(ready, b'1') if life == 1 else 0; sys.exit({supervisor.GIVEN_UP})")
    run.wait_for_lives(3)
    run.stop.set()
    assert run.status() == 0


def test_a_process_that_becomes_a_supervisor_keeps_its_pid_and_nothing_it_has_imported(tmp_path):
    lives, program = tmp_path / "lives", PROGRAM + "part('raylet'); " + SLEEP
    code = (
        "import os, sys, sqlalchemy\n"
        "from serve_app.deployments.process import supervisor\n"
        "supervisor.become(sys.argv[1:], b'hello', os.environ | {'TOLD': 'yes'}, None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, sys.executable, "-c", program, str(lives)])
    run = Run.__new__(Run)
    run.lives_file = lives
    child = run.named("raylet")
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert child.environ()["TOLD"] == "yes"
    assert process.pid in {parent.pid for parent in child.parents()}
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert run.lives() == ["hello"]
    assert run.processes() == []
    assert "sqlalchemy" not in maps


def test_a_stop_reaches_the_server_also_when_nobody_reads_what_it_prints(tmp_path):
    lives, program = tmp_path / "lives", PROGRAM + "part('raylet'); " + SLEEP
    code = (
        "import os, sys; from serve_app.deployments.process import supervisor;"
        "supervisor.become(sys.argv[1:], b'hello', os.environ, None)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-c", program, str(lives)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    run = Run.__new__(Run)
    run.lives_file = lives
    try:
        run.named("raylet")
        assert process.stdout is not None
        process.stdout.close()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
    assert run.processes() == []


def test_a_supervisor_needs_no_more_than_psutil():
    code = (
        "import sys, serve_app.deployments.process.supervisor;"
        "print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not {"ray", "sqlalchemy", "pydantic", "starlette", "numpy", "yaml"} & set(done.stdout.split())


def test_a_supervisor_that_is_killed_takes_everything_with_it(tmp_path):
    lives = tmp_path / "lives"
    code = (
        "import os, sys, threading\n"
        "from serve_app.deployments.process.supervisor import supervise\n"
        "supervise(sys.argv[1:], b'hello', os.environ, threading.Event())"
    )
    program = PROGRAM + "part('raylet'); " + SLEEP
    outer = subprocess.Popen([sys.executable, "-c", code, sys.executable, "-c", program, str(lives)])
    run = Run.__new__(Run)
    run.lives_file = lives
    child = run.named("raylet")
    outer.kill()
    outer.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
