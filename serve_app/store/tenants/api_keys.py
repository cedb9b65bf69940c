"""API keys and sessions in the database, and the queries on them.

A key is "sa_ID_SECRET". The id is shown and finds the key; of the secret, 256 random bits, only a hash is kept: one
that takes long to compute is for what people think up. A key holds until it ends; to revoke one is to end it now, and
one that is rotated ends once its successor has had time to spread.

A session is a key that a browser keeps in place of the key or token that was given at the page's login: it ends by
itself, with that key, or when its user logs out.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sqlalchemy as sa

from serve_app.errors import InvalidSubmissionError
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import API_KEYS
from serve_app.store.tenants.tenants import is_tenant

PREFIX = "sa"
KEY = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")
KEY_SCOPES = ("submit", "read", "admin", "metrics")
"""The scopes of a key: change its tenant's data, read it, do everything, read the server's metrics."""
USUAL_SCOPES = ("submit", "read")
GRACE_S = 3600.0
"""How long a rotated key stays valid, by default."""
NAME_LENGTH = 100
SESSION_S = 7 * 86_400.0
"""The longest life of a session."""
SESSIONS = 100
"""The most sessions of one key or token user; a new one replaces the oldest."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. tenant: "" is the operator's. name: for people. ends_s: Unix time.

    session_of: the id of the key that a session is of, "" for a token's; None for what is no session.
    """

    key_id: str
    tenant: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_s: float
    ends_s: float | None = None
    session_of: str | None = None

    @property
    def shown(self) -> str:
        """Return the public part of a key."""
        return f"{PREFIX}_{self.key_id}_…"

    @property
    def title(self) -> str:
        """Return what the audit log calls it; a session, as what was given at the login."""
        return f"{self.shown} {self.name}".strip() if self.session_of is None else self.name

    def holds(self, secret: str, at_s: float) -> bool:
        """Whether a secret is its own, and it has not ended."""
        own = hmac.compare_digest(self.hash, _hash(secret))
        return own and not self.ended(at_s)

    def ended(self, at_s: float) -> bool:
        """Whether it has expired, was revoked or replaced."""
        return self.ends_s is not None and self.ends_s <= at_s


def minted(tenant: str, name: str, scopes: Sequence[str], ends_s: float | None) -> tuple[ApiKey, str]:
    """Return a new key, and the text of it, which nobody can find again.

    Errors: InvalidSubmissionError for a tenant, name or scope that cannot be; for a key of the operator's without
    `admin`, which would see what is everyone's.
    """
    if tenant and not is_tenant(tenant):
        raise InvalidSubmissionError(
            f"a tenant's name is of a-z, 0-9 and single . _ - between them, not {tenant[:80]!r}"
        )
    if not scopes or (unknown := [scope for scope in scopes if scope not in KEY_SCOPES]):
        given = ", ".join(unknown)[:80] if scopes else "none"
        raise InvalidSubmissionError(f"scopes are {', '.join(KEY_SCOPES)}, not {given}")
    if not tenant and not {"admin", "metrics"}.intersection(scopes):
        raise InvalidSubmissionError("a key without a tenant is the operator's: it needs the scope admin or metrics")
    if len(name) > NAME_LENGTH or not name.isprintable():
        raise InvalidSubmissionError(f"a key's name is at most {NAME_LENGTH} printable characters, not {name[:80]!r}")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    kept = tuple(scope for scope in KEY_SCOPES if scope in scopes)
    return ApiKey(key_id, tenant, name, _hash(secret), kept, time.time(), ends_s), f"{PREFIX}_{key_id}_{secret}"


def new_session(of: str, tenant: str, name: str, scopes: Collection[str], until_s: float) -> tuple[ApiKey, str]:
    """Return a session and its text. of: the key's id, "" for a token; until_s: when what it is of ends."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    kept = tuple(scope for scope in KEY_SCOPES if scope in scopes)
    now_s = time.time()
    ends_s = min(until_s, now_s + SESSION_S)
    session = ApiKey(key_id, tenant, name[:NAME_LENGTH], _hash(secret), kept, now_s, ends_s, of)
    return session, f"{PREFIX}_{key_id}_{secret}"


def parts(text: str) -> tuple[str, str] | None:
    """Return the id and the secret of a key's text; None if it has not the form of one."""
    found = KEY.fullmatch(text)
    return None if found is None else (found[1], found[2])


_OWNERS = API_KEYS.alias("owners")
_COLUMNS = tuple(column.name for column in API_KEYS.c)


@dataclass(frozen=True, slots=True)
class AddKey(ServerScoped):
    """Stores a new key or session. replaces: the id of a key that holds until `grace_s` from now at most.

    Sessions that have ended go, and the oldest beyond SESSIONS.
    """

    writes: ClassVar[bool] = True

    key: ApiKey
    replaces: str | None = None
    grace_s: float = GRACE_S

    def execute(self, connection: sa.Connection) -> None:
        """Insert it."""
        row = {**_values(self.key), "scopes": " ".join(self.key.scopes)}
        insert_once(connection, API_KEYS, ("key_id",), [row])
        if self.replaces is not None:
            _end(connection, self.replaces, self.key.created_s + self.grace_s)
        if self.key.session_of is not None:
            _tidy_sessions(connection, self.key)


@dataclass(frozen=True, slots=True)
class EndKey(ServerScoped):
    """Revokes a key with its sessions, or ends a session."""

    writes: ClassVar[bool] = True

    key_id: str

    def execute(self, connection: sa.Connection) -> bool:
        """Return whether the key exists."""
        _end(connection, self.key_id, time.time())
        return bool(FindKeys((self.key_id,)).execute(connection))


@dataclass(frozen=True, slots=True)
class FindKey(ServerScoped):
    """Finds a key by its id; no session."""

    writes: ClassVar[bool] = False

    key_id: str

    def execute(self, connection: sa.Connection) -> ApiKey | None:
        """Return it."""
        found = FindKeys((self.key_id,)).execute(connection)
        return found[0] if found and found[0].session_of is None else None


@dataclass(frozen=True, slots=True)
class FindKeys(ServerScoped):
    """Finds keys and sessions by their ids."""

    writes: ClassVar[bool] = False

    key_ids: tuple[str, ...]

    def execute(self, connection: sa.Connection) -> tuple[ApiKey, ...]:
        """Return those that there are, in any order; a session with the end of its key, if that is sooner."""
        whose = API_KEYS.outerjoin(_OWNERS, API_KEYS.c.session_of == _OWNERS.c.key_id)
        found = sa.select(API_KEYS, _OWNERS.c.key_id.label("owner"), _OWNERS.c.ends_s.label("owner_ends_s"))
        rows = connection.execute(found.select_from(whose).where(API_KEYS.c.key_id.in_(self.key_ids)))
        return tuple(map(_as_it_holds, rows))


@dataclass(frozen=True, slots=True)
class ListKeys(ServerScoped):
    """Lists all keys, without sessions."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> tuple[ApiKey, ...]:
        """Return them, a tenant's together, the newest last."""
        keys = sa.select(API_KEYS).where(API_KEYS.c.session_of.is_(None))
        ordered = keys.order_by(API_KEYS.c.tenant, API_KEYS.c.created_s, API_KEYS.c.key_id)
        return tuple(_key(row) for row in connection.execute(ordered))


def _end(connection: sa.Connection, key_id: str, at_s: float) -> None:
    """End a key at a time, unless it ends sooner."""
    later = API_KEYS.c.ends_s.is_(None) | (API_KEYS.c.ends_s > at_s)
    connection.execute(sa.update(API_KEYS).where((API_KEYS.c.key_id == key_id) & later).values(ends_s=at_s))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _values(key: ApiKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in _COLUMNS}


def _key(row: Any) -> ApiKey:
    return ApiKey(**{name: row._mapping[name] for name in _COLUMNS} | {"scopes": tuple(row.scopes.split())})


def _as_it_holds(row: Any) -> ApiKey:
    """Return a key; a session ends with the key that it is of, at once where that is gone."""
    key = _key(row)
    if not key.session_of:
        return key
    owner_ends_s = row.owner_ends_s if row.owner is not None else 0.0
    return replace(key, ends_s=min(end for end in (key.ends_s, owner_ends_s) if end is not None))


def _tidy_sessions(connection: sa.Connection, newest: ApiKey) -> None:
    """Delete sessions that have ended, and of the newest one's owner the oldest beyond SESSIONS."""
    c = API_KEYS.c
    connection.execute(sa.delete(API_KEYS).where(c.session_of.is_not(None) & (c.ends_s <= newest.created_s)))
    own = (c.session_of == newest.session_of) & (c.tenant == newest.tenant) & (c.name == newest.name)
    by_age = sa.select(c.key_id).where(own).order_by(c.created_s.desc(), c.key_id).offset(SESSIONS)
    if old := connection.execute(by_age).scalars().all():
        connection.execute(sa.delete(API_KEYS).where(c.key_id.in_(old)))
