"""A process is killed with its parent, however that dies, together with its descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve_app.comfyui import guard
from serve_app.comfyui.process import Installation, environment_of, model_folders
from serve_app.errors import ComfyUIError

FAMILY = """
import os, subprocess, sys, time
print(os.getpid(), flush=True)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""
"""A process and a child of it that has left its group."""


def gone(pid: int) -> bool:
    """Wait for the end of a process; whether it came."""
    for _ in range(3000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def guarded(folder: Path) -> tuple[subprocess.Popen[str], int, list[int]]:
    """Return the guard, the pipe that holds it, and its family."""
    read, write = os.pipe()
    command = [sys.executable, "-S", "-E", guard.__file__, str(read), str(folder), sys.executable, "-c", FAMILY]
    held = subprocess.Popen(command, pass_fds=[read], stdout=subprocess.PIPE, text=True, start_new_session=True)
    os.close(read)
    assert held.stdout is not None
    return held, write, [int(held.stdout.readline()) for _ in range(2)]


def test_when_its_parent_is_gone_the_whole_family_and_its_folder_go(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    held, pipe, family = guarded(folder)
    os.close(pipe)  # as the parent's death does, SIGKILL included
    assert all(gone(pid) for pid in [held.pid, *family])
    held.wait()
    assert not folder.exists()


def test_when_the_guard_is_killed_the_process_dies_with_it(tmp_path: Path) -> None:
    held, pipe, family = guarded(tmp_path / "none")
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert gone(family[0])
    os.close(pipe)
    os.kill(family[1], signal.SIGKILL)  # what had left the group outlives both


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 247)])
def test_the_error_says_how_the_process_ended(tmp_path: Path, code: str, status: int) -> None:
    read, write = os.pipe()
    command = [sys.executable, guard.__file__, str(read), str(tmp_path / "none"), sys.executable, "-c", code]
    assert subprocess.run(command, pass_fds=[read], check=False).returncode == status
    os.close(read)
    os.close(write)


def test_what_is_missing_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ComfyUIError, match=r"has no main\.py"):
        Installation(tmp_path).command()
    (tmp_path / "main.py").touch()
    with pytest.raises(ComfyUIError, match=r"neither .*/venv/bin/python nor .*/\.venv/bin/python"):
        Installation(tmp_path).command()
    with pytest.raises(ComfyUIError, match="is no program"):
        Installation(tmp_path, tmp_path / "python").command()
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(sys.executable)
    assert Installation(tmp_path).command() == [str(tmp_path / "venv/bin/python"), "main.py"]


def test_our_secrets_and_our_pythons_paths_stay_ours(tmp_path: Path) -> None:
    own = {"AWS_SECRET_ACCESS_KEY": "s", "RAY_AUTH_TOKEN": "t", "PGPASSWORD": "p", "PYTHONPATH": "/ours", "HOME": "/h"}
    env = environment_of({**own, "CUDA_VISIBLE_DEVICES": "1"}, tmp_path)
    assert env == {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}


def test_our_model_folders_are_written_as_it_reads_them(tmp_path: Path) -> None:
    assert model_folders(tmp_path / "none", tmp_path) is None
    (tmp_path / "models/loras").mkdir(parents=True)
    file = model_folders(tmp_path / "models", tmp_path)
    assert file is not None
    assert file.read_text() == f"serve_app:\n  base_path: {tmp_path}/models\n  loras: loras\n"
