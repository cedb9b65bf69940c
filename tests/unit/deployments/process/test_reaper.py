"""No marked process outlives the one that marked it, and no other process is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import psutil

from serve_app.deployments.process import reaper

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def start(mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEPER, env={**os.environ, reaper.MARK: mark})


def test_only_processes_with_the_mark_are_ended():
    mark, other = str(uuid.uuid4()), str(uuid.uuid4())
    marked, bystander = start(mark), start(other)
    try:
        assert reaper.reap(mark) == 1
        assert not psutil.pid_exists(marked.pid)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_parent_that_is_killed_takes_its_marked_children_with_it():
    mark = str(uuid.uuid4())
    program = (
        "import os, subprocess, sys, time\n"
        "from serve_app.deployments.process import reaper\n"
        f"reaper.watch({mark!r})\n"
        f"os.environ[reaper.MARK] = {mark!r}\n"
        f"child = subprocess.Popen({SLEEPER!r}, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_reaper_that_is_let_go_of_has_ended_its_processes_and_itself():
    mark = str(uuid.uuid4())
    reaping, marked = reaper.watch(mark), start(mark)
    reaping.close()
    marked.wait(60)
    assert marked.returncode == -signal.SIGKILL
    assert not [child for child in psutil.Process().children() if "reaper" in " ".join(child.cmdline())]
