"""The built wheel alone, without the checkout, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.server import Processes

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel as pip installs it; what it needs is found in this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves files beside what it packs
    shutil.copytree(ROOT / "serve_app", source / "serve_app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source), cwd=folder)
    [built] = folder.glob("serve_app-*.whl")
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=folder)
    python = environment / "bin" / "python"
    [packages] = environment.glob("lib/python3*/site-packages")
    # A folder that is named so is searched, and its own .pth files, such as the link to the checkout, are not read.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    run(*pip, "--python", str(python), "install", "--no-deps", str(built), cwd=folder)
    where = run(str(python), "-P", "-c", "import serve_app; print(serve_app.__file__)", cwd=folder)
    assert where.startswith(str(packages))
    return environment / "bin" / "serve-app"


def test_the_wheel_lists_its_examples_and_draws_the_demonstrations_picture(command: Path, tmp_path: Path):
    assert "text-to-image" in json.loads(run(str(command), "examples", "--json", cwd=tmp_path))
    run(str(command), "examples", "--out", "examples", cwd=tmp_path)
    assert (tmp_path / "examples" / "lora.json").is_file()
    said = run(str(command), "demo", cwd=tmp_path)
    assert "that file shows: a large red circle on the left, blue background" in said
    assert (tmp_path / "output" / "demo_00001_.png").stat().st_size > 1000
    for kind in ("checkpoints", "loras", "controlnet", "embeddings"):
        assert list((tmp_path / "models" / kind).glob("*.safetensors")), f"the wheel brings nothing for {kind}"


@pytest.mark.long
def test_the_wheels_server_stays_draws_an_example_and_stops_when_nobody_reads_it_any_more(
    command: Path, tmp_path: Path
):
    with staying(command, tmp_path) as (up, url):
        assert int(url.rpartition(":")[2]) > 0
        run(str(command), "examples", "--out", ".", cwd=tmp_path)
        [path] = run(str(command), "submit", "lora.json", "--server", url, cwd=tmp_path).splitlines()
        assert (tmp_path / path).stat().st_size > 1000
        assert up.stdout is not None
        up.stdout.close()
        up.send_signal(signal.SIGINT)
        assert up.wait(PATIENCE_S) == 0


def environment() -> dict[str, str]:
    """Return this process's environment without what leads to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str, cwd: Path) -> str:
    """Return what a command prints, which must succeed in time."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def staying(command: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Yield `up --demo` on any port and its URL, once it has printed it; end all of it afterwards."""
    processes = Processes()
    with (folder / "up.log").open("w") as log:
        up = subprocess.Popen(
            [str(command), "up", "--demo", "--port", "0"],
            cwd=folder,
            env={**processes.environment, "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield up, url_of(up, folder / "up.log")
    finally:
        up.kill()
        up.wait(PATIENCE_S)
        processes.close()


def url_of(up: subprocess.Popen[bytes], log: Path) -> str:
    """Return the URL that a server prints. Fails with its log when it ends, or prints none in time."""
    assert up.stdout is not None
    deadline, printed = time.monotonic() + PATIENCE_S, b""
    while (left_s := deadline - time.monotonic()) > 0 and select.select([up.stdout], [], [], left_s)[0]:
        if not (more := os.read(up.stdout.fileno(), 4096)):
            break
        printed += more
        for line in printed.decode().splitlines(keepends=True):
            if line.startswith("server:") and line.endswith("\n"):
                return line.split()[1]
    raise AssertionError(f"no server:\n{printed.decode()}\n{log.read_text()}")
