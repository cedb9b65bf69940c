"""Idempotency keys: a tenant can use each once within KEY_S, for the job or asset whose transaction claims it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from serve_app.errors import KeyReusedError
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.schema import IDEMPOTENCY_KEYS

KEY_S = 86_400.0
"""How long a key is its holder's."""


class KeyClaim(NamedTuple):
    """A claim of a key. holder: the id of the job or asset. claimed_s: Unix time."""

    holder: str
    key: str
    claimed_s: float
    tenant: str


def claim_keys(connection: sa.Connection, claims: Sequence[KeyClaim]) -> None:
    """Insert claims; costs no statement without any. Errors: KeyReusedError with the holder that is refused."""
    if not claims:
        return
    old = IDEMPOTENCY_KEYS.c.claimed_s < min(claim.claimed_s for claim in claims) - KEY_S
    connection.execute(sa.delete(IDEMPOTENCY_KEYS).where(old))
    rows = [claim._asdict() for claim in claims]
    if (refused := insert_once(connection, IDEMPOTENCY_KEYS, ("holder", "key", "tenant"), rows)) is not None:
        hours = f"{KEY_S / 3600:g} hours"
        raise KeyReusedError(refused["holder"], f"the idempotency key was used within the last {hours}")
