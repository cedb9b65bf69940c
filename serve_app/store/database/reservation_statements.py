"""Reserves counters for files that nodes save, in the transaction of the jobs' other changes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from serve_app.store.database.changes import CountersReserved
from serve_app.store.database.execute import execute
from serve_app.store.database.schema import COUNTERS, RESERVATIONS
from serve_app.store.files.reserved import Reservation
from serve_app.store.tenants import usage
from serve_app.store.tenants.tenants import tenant_of

SAVED = "output/"
"""What the keys of files begin with that count as saved: others are previews, which go by themselves."""
DAY_S = 86_400
_NAMED = sa.and_(*(RESERVATIONS.c[name] == sa.bindparam(f"the_{name}") for name in ("job_id", "node_id", "key")))
_COUNTER = COUNTERS.c.key == sa.bindparam("the_key")
_EARLIER = sa.select(RESERVATIONS).where(_NAMED)
_FOLLOWING = sa.select(COUNTERS.c.following).where(_COUNTER)
_COUNT_ON = sa.update(COUNTERS).where(_COUNTER).values(following=sa.bindparam("new_following"))
_ADD_DIGESTS = (
    sa.update(RESERVATIONS).where(_NAMED).values(ending=sa.bindparam("new_ending"), digests=sa.bindparam("new_digests"))
)
_LET_GO = sa.delete(RESERVATIONS).where(_NAMED)


def reserve(connection: sa.Connection, changes: Sequence[CountersReserved]) -> None:
    """Reserve counters for each change, in order, and fill them in."""
    for change in changes:
        _reserve(connection, change)


def let_go(connection: sa.Connection, reservations: Sequence[Reservation]) -> None:
    """Delete reservations whose files are recorded or deleted."""
    execute(connection, _LET_GO, [_named(given) for given in reservations])


def reservation_of(row: Any) -> Reservation:
    """Return a row of the table as a reservation."""
    digests = tuple(map(frozenset, json.loads(row.digests)))
    return Reservation(row.job_id, row.node_id, row.key, int(row.first), int(row.amount), row.ending, digests)


def _reserve(connection: sa.Connection, change: CountersReserved) -> None:
    named, count = _named(change), len(change.contents)
    row = connection.execute(_EARLIER, named).first()
    earlier = None if row is None else reservation_of(row)
    fits = earlier if earlier and earlier.amount == count and earlier.first >= change.at_least else None
    if change.again is None:
        change.again = fits is not None
    if fits is not None:
        # What another attempt made may differ in the last bit, and either may be what is there in the end.
        given = fits.digests or (frozenset[str](),) * count
        digests = [sorted(d | {new}) for d, new in zip(given, change.contents.digests, strict=True)]
        made = {"new_ending": change.contents.ending, "new_digests": json.dumps(digests)}
        execute(connection, _ADD_DIGESTS, [named | made])
        change.first = fits.first
        return
    following = connection.execute(_FOLLOWING, {"the_key": change.key}).scalar()
    if following is None and change.at_least == 0:
        change.first = 0
        return
    change.first = first = max(change.at_least, following or 0)
    if following is None:
        execute(connection, sa.insert(COUNTERS), [{"key": change.key, "following": first + count}])
    else:
        execute(connection, _COUNT_ON, [{"the_key": change.key, "new_following": first + count}])
    if earlier is not None:
        execute(connection, _LET_GO, [named])
    new: dict[str, Any] = {
        "job_id": change.job_id,
        "node_id": change.node_id,
        "key": change.key,
        "first": first,
        "amount": count,
        "ending": change.contents.ending,
        "digests": json.dumps([[digest] for digest in change.contents.digests]),
    }
    execute(connection, sa.insert(RESERVATIONS), [new])
    if change.key.startswith(SAVED):
        usage.add_saved(connection, tenant_of(change.job_id), int(time.time() // DAY_S), change.contents.size)


def _named(of: CountersReserved | Reservation) -> dict[str, str]:
    return {"the_job_id": of.job_id, "the_node_id": of.node_id, "the_key": of.key}
