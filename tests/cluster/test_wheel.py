"""The built wheel alone, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel has, as pip installs it; what it needs is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves files beside what it packs
    shutil.copytree(ROOT / "serve_app", source / "serve_app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source), cwd=folder)
    [built] = folder.glob("serve_app-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(built), cwd=folder)
    return folder / "site"


def test_the_wheel_lists_its_examples_and_draws_the_demonstrations_picture(wheel: Path, tmp_path: Path):
    # Its packages are found before the checkout, to which this environment has a link.
    environment = {"PYTHONPATH": f"{wheel}{os.pathsep}{sysconfig.get_path('purelib')}"}
    command = (sys.executable, "-P", "-m", "serve_app.cli")
    where = "import serve_app; print(serve_app.__file__)"
    assert run(sys.executable, "-P", "-c", where, cwd=tmp_path, **environment).startswith(str(wheel))
    assert "text-to-image" in json.loads(run(*command, "examples", "--json", cwd=tmp_path, **environment))
    said = run(*command, "demo", cwd=tmp_path, **environment)
    assert "that file shows: a large red circle on the left, blue background" in said
    assert (tmp_path / "output" / "demo_00001_.png").stat().st_size > 1000
