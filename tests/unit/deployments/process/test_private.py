"""What `serve-app up` writes, as modes: whoever runs these tests may be root, whom no mode keeps out."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.deployments.process import private
from serve_app.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a directory for temporary files of the test's own, and the umask as it was afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_are_their_owners_alone(home: Path):
    private.prepare("sqlite:///x")
    (home / "new").write_text("")
    (home / "folder").mkdir()
    assert (mode(home / "new"), mode(home / "folder")) == (0o600, 0o700)


def test_new_files_have_the_permissions_that_a_umask_leaves_them_but_rays_folder_none(home: Path):
    folder = private.prepare("sqlite:///x", 0o022)
    (home / "new").write_text("")
    assert (mode(home / "new"), mode(folder), mode(home / ".ray")) == (0o644, 0o700, 0o700)


def test_a_token_and_a_database_that_were_open_to_others_are_closed(home: Path):
    (home / ".ray").mkdir()
    files = [home / ".ray" / "auth_token", *(home / f"jobs.sqlite{end}" for end in ("", "-wal", "-shm"))]
    for file in files:
        file.write_text("secret")
    assert {mode(file) for file in files} == {0o644}
    private.prepare(f"sqlite:///{home}/jobs.sqlite")
    assert {mode(file) for file in files} == {0o600}
    assert {file.read_text() for file in files} == {"secret"}


def test_a_database_elsewhere_has_no_file():
    private.prepare("postgresql://user@host/name")


def test_rays_folder_is_the_users_own_and_made_so_again(home: Path):
    folder = private.prepare("sqlite:///x")
    assert folder.parent == home
    folder.chmod(0o777)
    assert private.prepare("sqlite:///x") == folder
    assert mode(folder) == 0o700


def test_a_folder_that_the_user_names_is_rays_if_it_is_closed_and_else_one_inside_it_that_is(home: Path, monkeypatch):
    named = home / "named"
    named.mkdir(0o700)
    monkeypatch.setenv("RAY_TMPDIR", str(named))
    assert private.prepare("sqlite:///x") == named
    named.chmod(0o755)
    folder = private.prepare("sqlite:///x")
    assert (folder.parent, mode(folder), mode(named)) == (named, 0o700, 0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(home / "none"))
    assert private.prepare("sqlite:///x").parent == home / "none"
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ConfigError, match="RAY_TMPDIR"):
        private.prepare("sqlite:///x")


@pytest.mark.parametrize("made", [lambda path: path.symlink_to("/tmp"), lambda path: path.write_text("")])
def test_a_folder_that_somebody_else_may_have_laid_there_is_refused(home: Path, made):
    made(home / f"serve-app-{os.getuid()}")
    with pytest.raises(ConfigError, match="RAY_TMPDIR"):
        private.prepare("sqlite:///x")
