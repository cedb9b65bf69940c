"""Protects the files of `serve-app up` from the machine's other users: database, logs, Ray's token and sockets."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from sqlalchemy.engine import make_url

from serve_app import log
from serve_app.errors import ConfigError

OTHERS = 0o077
"""The mode bits that give access to anyone but the owner."""
_log = log.get("up")


def prepare(database_url: str, umask: int = OTHERS) -> Path:
    """Restrict what this process and its children write to their user. Return the folder for Ray's sessions.

    umask: what new files are restricted by. Files of earlier starts that have secrets are restricted too.
    Errors: ConfigError if the folder is another user's.
    """
    os.umask(umask)
    # Ray makes its token with whatever permissions the umask leaves.
    secrets = Path.home() / ".ray"
    secrets.mkdir(exist_ok=True)
    secrets.chmod(0o700)
    url = make_url(database_url)
    kept = [secrets / "auth_token"]
    if url.get_backend_name() == "sqlite" and url.database:
        kept += [Path(url.database + end) for end in ("", "-wal", "-shm")]
    for path in kept:
        _close(path)
    return _folder()


def _close(path: Path) -> None:
    try:
        if path.stat().st_mode & OTHERS:
            path.chmod(0o600)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("%s can be read by other users and stays so: %s", path, error.strerror)


def _folder() -> Path:
    """Return a folder that only this user can enter, in RAY_TMPDIR or the temporary folder; create it if needed.

    Ray makes its files readable by all, whatever the umask. The path is short, as paths of sockets must be.
    """
    within = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if _is_own(within) and not within.stat().st_mode & OTHERS:
        return within
    path = within / f"serve-app-{os.getuid()}"
    try:
        path.mkdir(0o700, parents=True)
    except FileExistsError:
        if not _is_own(path):
            raise ConfigError(
                f"{path} is not this user's own folder; remove it, or name another in RAY_TMPDIR"
            ) from None
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"Ray's folder {path} cannot be made: {error.strerror}; see RAY_TMPDIR") from None
    return path


def _is_own(path: Path) -> bool:
    """Whether a path is a folder of this user's, and no link to one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
