"""The web page's user data: files and settings, in a folder for each user.

Several ingress replicas may serve one user, so every change is one atomic step on the file system that they share.
Layout: ComfyUI's (`user/ID/…`, `user/ID/comfy.settings.json`, `user/users.json`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from serve_app.errors import FileMissingError, ForbiddenPathError, InvalidSubmissionError, UserMissingError
from serve_app.store.files.atomic_write import UNFINISHED, write_file
from serve_app.store.tenants.metered import Meter
from serve_app.store.tenants.stored_bytes import name_of
from serve_app.store.tenants.tenants import MARK, folder

AREA = "user"
"""The area name of user data in the count of stored bytes."""
DEFAULT = "default"
"""The only user where there are no others."""
SETTINGS = "comfy.settings.json"
USERS = "users.json"
SETTINGS_BYTES = 4_000_000
"""The largest size of one user's settings."""


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file or folder of a user. path: relative, with forward slashes. Times are Unix seconds; size in bytes."""

    path: str
    is_folder: bool
    size: int
    modified_s: float
    created_s: float


class UserData:
    """Every user's folder under one root. many: whether there are other users than the default one. meter: counts
    stored bytes and enforces the quota with QuotaError; None counts nothing.
    """

    def __init__(self, root: Path, *, many: bool = False, meter: Meter | None = None) -> None:
        self._root = Path(os.path.realpath(root))
        self._meter = meter
        self.many = many

    def within(self, tenant: str, meter: Meter | None = None) -> UserData:
        """Return the user data of a tenant."""
        return UserData(self._root / folder(tenant), many=self.many, meter=meter) if tenant else self

    def counted(self) -> Iterator[tuple[str, str, int]]:
        """Yield the tenant, the name in the count and the bytes of each file that is kept for a tenant."""
        for top, _, names in os.walk(self._root):
            place = Path(top).relative_to(self._root).as_posix()
            tenant = place.partition("/")[0].removeprefix(MARK) if place.startswith(MARK) else ""
            for name in names if tenant else ():
                with contextlib.suppress(FileNotFoundError):
                    found = os.lstat(os.path.join(top, name))
                    if S_ISREG(found.st_mode) and not name.endswith(UNFINISHED):
                        yield tenant, name_of(AREA, f"{place}/{name}"), found.st_size

    # Users --------------------------------------------------------------------------------------------------------

    def users(self) -> dict[str, str]:
        """Return the users' names by id."""
        if not self.many:
            return {DEFAULT: DEFAULT}
        known: dict[str, str] = _read_object(self._root / USERS)
        return known

    def add_user(self, name: str) -> str:
        """Add a user and return the id. Errors: ForbiddenPathError for an empty name or one that is taken."""
        name = name.strip()
        if not name:
            raise ForbiddenPathError("the user's name is empty")
        with self._locked():
            known = self.users()
            if name in known.values():
                raise ForbiddenPathError(f"there is a user named {name[:80]!r} already")
            user = f"{re.sub('[^a-zA-Z0-9-_]+', '-', name)[:80]}_{uuid.uuid4()}"
            self._write(self._root / USERS, json.dumps({**known, user: name}).encode())
        return user

    def exists(self, user: str) -> bool:
        """Whether the user has a folder yet. Errors: UserMissingError."""
        return self._folder(user).is_dir()

    # Files --------------------------------------------------------------------------------------------------------

    def files(self, user: str, folder: str, *, recursive: bool) -> list[UserFile]:
        """Return the files and folders of a folder, by path. Errors: as `path`; FileMissingError without it."""
        top = self.path(user, folder) if folder else self._folder(user)
        if not os.path.isdir(top):  # False also for a name that no file system takes
            raise FileMissingError(f"the user has no folder {folder[:200]!r}")
        found = [_described(path, top) for path in (top.rglob("*") if recursive else top.glob("*"))]
        return sorted((file for file in found if file is not None), key=lambda file: file.path)

    def stat(self, user: str, name: str) -> UserFile:
        """Return one file. Errors: as `path`; FileMissingError."""
        path = self.path(user, name)
        found = _described(path, self._folder(user))
        if found is None or found.is_folder:
            raise FileMissingError(f"the user has no file {name[:200]!r}")
        return found

    def read(self, user: str, name: str) -> bytes:
        """Return a file's content. Errors: as `stat`."""
        self.stat(user, name)
        return self.path(user, name).read_bytes()

    def write(self, user: str, name: str, data: bytes, *, replace: bool) -> None:
        """Store a file.

        Errors: as `path`; FileExistsError for a name that is taken, without `replace`; OSError; InvalidSubmissionError
        for settings that could not be read again.
        """
        path = self.path(user, name)
        if path == self._folder(user) / SETTINGS:
            _check_settings(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, data, replace=replace)

    def delete(self, user: str, name: str) -> None:
        """Delete a file. Errors: as `stat`."""
        self.stat(user, name)
        path = self.path(user, name)
        path.unlink(missing_ok=True)
        self._note(path, None)

    def move(self, user: str, name: str, to: str, *, replace: bool) -> None:
        """Give a file another name. Errors: as `stat` and `write`."""
        size = self.stat(user, name).size
        source, target = self.path(user, name), self.path(user, to)
        target.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            os.replace(source, target)
        elif source != target:
            os.link(source, target)
            source.unlink(missing_ok=True)
        self._note(source, None)
        self._note(target, size)

    def path(self, user: str, name: str) -> Path:
        """Return the path of a user's name.

        Errors: UserMissingError; ForbiddenPathError for one that leaves the user's folder or is the folder itself.
        """
        folder = self._folder(user)
        if "\0" not in name and not name.startswith("/"):
            with contextlib.suppress(OSError, ValueError):
                path = Path(os.path.realpath(folder / name))
                if path.is_relative_to(folder) and path != folder:
                    return path
        raise ForbiddenPathError(f"{name[:200]!r} is not in the user's folder")

    # Settings -----------------------------------------------------------------------------------------------------

    def settings(self, user: str) -> dict[str, Any]:
        """Return the user's settings; {} before the first is made. Errors: UserMissingError."""
        return _read_object(self._folder(user) / SETTINGS)

    def change_settings(self, user: str, changes: Mapping[str, Any]) -> None:
        """Set some settings, keep the others. Errors: UserMissingError; InvalidSubmissionError if they are too many."""
        folder = self._folder(user)
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            merged = {**_read_object(folder / SETTINGS), **changes}
            data = json.dumps(merged, indent=4).encode()
            _check_settings(data)
            self._write(folder / SETTINGS, data)

    def _folder(self, user: str) -> Path:
        if user not in self.users():
            raise UserMissingError(f"there is no user {user[:80]!r}")
        return self._root / user

    def _write(self, path: Path, data: bytes, *, replace: bool = True) -> None:
        if self._meter is None:
            write_file(path, data, replace=replace)
        else:
            name = self._counted_as(path)
            self._meter.write(name, len(data), lambda: write_file(path, data, replace=replace), replace=replace)

    def _note(self, path: Path, size: int | None) -> None:
        if self._meter is not None:
            self._meter.note(self._counted_as(path), size)

    def _counted_as(self, path: Path) -> str:
        return name_of(AREA, path.relative_to(self._root.parent).as_posix())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock a file for a read-modify-write."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _check_settings(data: bytes) -> None:
    """Refuse settings that are too large to be rewritten at every change. Errors: InvalidSubmissionError."""
    if len(data) > SETTINGS_BYTES:
        raise InvalidSubmissionError(f"settings of {len(data)} bytes are too many; at most {SETTINGS_BYTES} are kept")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidSubmissionError(f"{SETTINGS} must be JSON: {type(error).__name__}: {error}"[:200]) from error
    if not isinstance(value, dict):
        raise InvalidSubmissionError(f"{SETTINGS} must hold a JSON object")


def _described(path: Path, top: Path) -> UserFile | None:
    try:
        stat = path.stat()
    except OSError:  # it went away between listing and looking
        return None
    if path.name.endswith(UNFINISHED):
        return None
    name = path.relative_to(top).as_posix()
    return UserFile(name, path.is_dir(), stat.st_size, stat.st_mtime, stat.st_ctime)


def _read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; {} for a file that is absent or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
