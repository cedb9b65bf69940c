"""Webhooks and their outbox: one delivery for each event of a job that a webhook subscribes to.

Deliveries are written in the transaction of their event (a transactional outbox), so none is lost and none is wrong.
One is due once no earlier one of its webhook and job is pending, which keeps a job's events in order.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa

from serve_app.events import Failure
from serve_app.store.database.changes import Change, JobAccepted, JobEnded, JobStarted
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.database.schema import DELIVERIES, JOBS, OUTPUTS, WEBHOOKS
from serve_app.store.tenants.tenants import prompt_id_of

EVENTS = ("job.queued", "job.running", "job.succeeded", "job.failed", "job.canceled")
"""The events that a webhook can subscribe to."""
PAYLOAD_BYTES = 65_536
"""How large a payload may be; a larger one goes without the job's outputs."""
MESSAGE_CHARACTERS = 2_000
"""Of what a job failed with."""

State: TypeAlias = Literal["pending", "delivered", "failed"]

_ENDINGS: Mapping[str, str] = {"success": "job.succeeded", "error": "job.failed", "cancelled": "job.canceled"}
_IDS = uuid.UUID("2d0b9d53-9a5c-4f0e-8f43-0d6a3c4f7a11")
"""The namespace of deliveries' ids."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription to events of jobs. secret: as given, "whsec_" and base64. disabled: the reason, "" if enabled.

    tenant: of its jobs; "" is the operator, of all jobs.
    """

    webhook_id: str
    url: str
    events: tuple[str, ...]
    secret: str
    created_s: float
    tenant: str = ""
    disabled: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one webhook.

    place: the event's cursor, the order of a job's deliveries. asked_s: since when it is to be sent. attempts: the
    number of tries. status, problem: the last one's HTTP status, or the reason for none.
    """

    delivery_id: str
    webhook_id: str
    job_id: str
    place: int
    event: str
    payload: str
    state: State
    attempts: int
    due_s: float
    asked_s: float
    ended_s: float | None
    status: int | None
    problem: str


class _Told(NamedTuple):
    """An event that webhooks can subscribe to."""

    job_id: str
    event: str
    at_s: float
    place: int


def known(connection: sa.Connection) -> tuple[Webhook, ...]:
    """Return every webhook, the oldest first."""
    rows = connection.execute(sa.select(WEBHOOKS).order_by(WEBHOOKS.c.created_s, WEBHOOKS.c.webhook_id))
    return tuple(map(_webhook, rows))


def enclose(connection: sa.Connection, webhooks: Sequence[Webhook], changes: Iterable[Change]) -> bool:
    """Write deliveries for applied changes to the outbox; return whether there are any."""
    active = [webhook for webhook in webhooks if not webhook.disabled]
    asked = {event for webhook in active for event in webhook.events}
    events = [told for told in _told(changes) if told.event in asked] if asked else []
    if not events:
        return False
    rows = []
    jobs = _jobs(connection, [told.job_id for told in events])
    for told in events:
        job = jobs.get(told.job_id)
        if job is None:
            continue
        hearing = [w for w in active if told.event in w.events and w.tenant in ("", job.tenant)]
        for tenant in {webhook.tenant for webhook in hearing}:
            payload = _payload(connection, told, job, prompt_id_of(told.job_id) if tenant else told.job_id)
            rows += [_row(webhook, told, payload) for webhook in hearing if webhook.tenant == tenant]
    insert_once(connection, DELIVERIES, ("delivery_id",), rows)
    return bool(rows)


def _told(changes: Iterable[Change]) -> Iterator[_Told]:
    for change in changes:
        if isinstance(change, JobAccepted):
            yield _Told(change.job_id, "job.queued", change.row.created_s, change.row.queued_seq)
        elif isinstance(change, JobStarted):
            yield _Told(change.job_id, "job.running", change.started_s, change.started_seq)
        elif isinstance(change, JobEnded):
            yield _Told(change.job_id, _ENDINGS[change.state], change.ended_s, change.ended_seq)


def _jobs(connection: sa.Connection, job_ids: Sequence[str]) -> dict[str, Any]:
    columns = (
        JOBS.c.job_id,
        JOBS.c.created_s,
        JOBS.c.started_s,
        JOBS.c.ended_s,
        JOBS.c.labels,
        JOBS.c.failure,
        JOBS.c.tenant,
    )
    found = {}
    for start in range(0, len(job_ids), 500):
        rows = connection.execute(sa.select(*columns).where(JOBS.c.job_id.in_(job_ids[start : start + 500])))
        found.update({row.job_id: row for row in rows})
    return found


def _payload(connection: sa.Connection, told: _Told, job: Any, job_id: str) -> str:
    """Return the payload of an event: the job at that time, with the members of the v2 API.

    job_id: as the receiver knows it.
    """
    status = told.event.removeprefix("job.")
    ended = told.event in _ENDINGS.values()
    data: dict[str, Any] = {
        "id": job_id,
        "status": status,
        "created_at": _moment(job.created_s),
        "started_at": None if status == "queued" else _moment(job.started_s),
        "completed_at": _moment(job.ended_s) if ended else None,
        "metadata": json.loads(job.labels),
    }
    if told.event == "job.failed":
        failure = Failure.from_json(json.loads(job.failure))
        message = failure.message[:MESSAGE_CHARACTERS]
        named = {"node_id": failure.node or None, "class_type": failure.class_type or None}
        data["error"] = {"type": failure.exception_type, "message": message, **named}
    if ended:
        theirs = sa.select(OUTPUTS.c.node_id, OUTPUTS.c.ui).where(OUTPUTS.c.job_id == told.job_id)
        outputs = {row.node_id: json.loads(row.ui) for row in connection.execute(theirs.order_by(OUTPUTS.c.seq))}
        whole = json.dumps(_message(told, {**data, "outputs": outputs}))
        if len(whole) <= PAYLOAD_BYTES:
            return whole
        data["outputs"] = None
    return json.dumps(_message(told, data))


def _message(told: _Told, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": told.event, "timestamp": _moment(told.at_s), "data": data}


def _row(webhook: Webhook, told: _Told, payload: str) -> dict[str, Any]:
    delivery_id = str(uuid.uuid5(_IDS, f"{webhook.webhook_id} {told.job_id} {told.place}"))
    fresh = Delivery(
        *(delivery_id, webhook.webhook_id, told.job_id, told.place, told.event, payload, "pending"),
        attempts=0,
        due_s=told.at_s,
        asked_s=told.at_s,
        ended_s=None,
        status=None,
        problem="",
    )
    return asdict(fresh)


def _moment(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


# What the ingress asks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddWebhook(TenantScoped):
    """Stores a new webhook, unless its tenant has `most` already."""

    writes: ClassVar[bool] = True

    webhook: Webhook
    most: int
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> bool:
        """Return whether it was stored."""
        new = replace(self.webhook, tenant=self.tenant) if self.tenant else self.webhook
        others = (WEBHOOKS.c.webhook_id != new.webhook_id) & (WEBHOOKS.c.tenant == new.tenant)
        counted = sa.select(sa.func.count()).select_from(WEBHOOKS).where(others)
        if connection.execute(counted).scalar_one() >= self.most:
            return False
        insert_once(connection, WEBHOOKS, ("webhook_id",), [{**asdict(new), "events": json.dumps(new.events)}])
        return True


@dataclass(frozen=True, slots=True)
class Webhooks(TenantScoped):
    """Lists the webhooks of a tenant; "" for all."""

    writes: ClassVar[bool] = False

    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[Webhook, ...]:
        """Return them, the oldest first."""
        return tuple(webhook for webhook in known(connection) if self.tenant in ("", webhook.tenant))


@dataclass(frozen=True, slots=True)
class DeleteWebhook(TenantScoped):
    """Deletes a webhook and its deliveries, also pending ones."""

    writes: ClassVar[bool] = True

    webhook_id: str
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> bool:
        """Return whether it existed."""
        gone = connection.execute(sa.delete(WEBHOOKS).where(_is_its(self.webhook_id, self.tenant))).rowcount > 0
        if gone:
            connection.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.webhook_id == self.webhook_id))
        return gone


@dataclass(frozen=True, slots=True)
class Deliveries(TenantScoped):
    """Lists a webhook's deliveries, the newest first: at most `limit`, with places before `before`, in one state or
    any.
    """

    writes: ClassVar[bool] = False

    webhook_id: str
    limit: int
    before: int | None = None
    state: State | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[Delivery, ...]:
        """Return them."""
        asked = sa.select(DELIVERIES).where(_are_its(self.webhook_id, self.tenant))
        if self.before is not None:
            asked = asked.where(DELIVERIES.c.place < self.before)
        if self.state is not None:
            asked = asked.where(DELIVERIES.c.state == self.state)
        rows = connection.execute(asked.order_by(DELIVERIES.c.place.desc()).limit(self.limit))
        return tuple(_delivery(row, self.tenant) for row in rows)


@dataclass(frozen=True, slots=True)
class SendAgain(TenantScoped):
    """Sends a delivery again, at once, whatever its state. Enables its webhook."""

    writes: ClassVar[bool] = True

    webhook_id: str
    delivery_id: str
    at_s: float
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Delivery | None:
        """Return the delivery, None if there is none."""
        its = _are_its(self.webhook_id, self.tenant) & (DELIVERIES.c.delivery_id == self.delivery_id)
        anew = {"state": "pending", "attempts": 0, "due_s": self.at_s, "asked_s": self.at_s, "ended_s": None}
        connection.execute(sa.update(DELIVERIES).where(its).values(anew))
        row = connection.execute(sa.select(DELIVERIES).where(its)).first()
        if row is None:
            return None
        connection.execute(sa.update(WEBHOOKS).where(WEBHOOKS.c.webhook_id == self.webhook_id).values(disabled=""))
        return _delivery(row, self.tenant)


def _is_its(webhook_id: str, tenant: str) -> sa.ColumnElement[bool]:
    """The condition that a webhook has an id and is a tenant's."""
    its = WEBHOOKS.c.webhook_id == webhook_id
    return its & (WEBHOOKS.c.tenant == tenant) if tenant else its


def _are_its(webhook_id: str, tenant: str) -> sa.ColumnElement[bool]:
    """The condition that deliveries are of a webhook of `_is_its`."""
    its = DELIVERIES.c.webhook_id == webhook_id
    own = sa.exists(sa.select(sa.literal(1)).select_from(WEBHOOKS).where(_is_its(webhook_id, tenant)))
    return its & own if tenant else its


# What the courier asks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heads(ServerScoped):
    """Lists the first pending delivery of each of a webhook's jobs: at most `limit`, in order of due time."""

    writes: ClassVar[bool] = False

    webhook_id: str
    limit: int

    def execute(self, connection: sa.Connection) -> tuple[Delivery, ...]:
        """Return them."""
        earlier = DELIVERIES.alias("earlier")
        same = (earlier.c.job_id == DELIVERIES.c.job_id) & (earlier.c.webhook_id == DELIVERIES.c.webhook_id)
        before = same & (earlier.c.place < DELIVERIES.c.place) & (earlier.c.state == "pending")
        pending = (DELIVERIES.c.webhook_id == self.webhook_id) & (DELIVERIES.c.state == "pending")
        first = ~sa.exists(sa.select(sa.literal(1)).select_from(earlier).where(before))
        asked = sa.select(DELIVERIES).where(pending & first).order_by(DELIVERIES.c.due_s, DELIVERIES.c.place)
        return tuple(map(_delivery, connection.execute(asked.limit(self.limit))))


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of sending a delivery. attempts: their number. due_s: of the next one, while it is pending.

    gone: the reason to disable its webhook, else "".
    """

    delivery: Delivery
    state: State
    attempts: int
    at_s: float
    due_s: float
    status: int | None
    problem: str
    gone: str = ""


@dataclass(frozen=True, slots=True)
class RecordAttempts(ServerScoped):
    """Records the results of attempts."""

    writes: ClassVar[bool] = True

    attempts: tuple[Attempt, ...]

    def execute(self, connection: sa.Connection) -> None:
        """Update deliveries that are still pending; later ones of the job wait as long as their head."""
        for attempt in self.attempts:
            sent = attempt.delivery
            ended_s = None if attempt.state == "pending" else attempt.at_s
            came = {"state": attempt.state, "attempts": attempt.attempts, "due_s": attempt.due_s, "ended_s": ended_s}
            its = (DELIVERIES.c.delivery_id == sent.delivery_id) & (DELIVERIES.c.state == "pending")
            # A request to send it again must not be answered by the attempt in flight.
            its &= DELIVERIES.c.asked_s == sent.asked_s
            noted = {"status": attempt.status, "problem": attempt.problem}
            connection.execute(sa.update(DELIVERIES).where(its).values(**came, **noted))
            pending = (DELIVERIES.c.webhook_id == sent.webhook_id) & (DELIVERIES.c.state == "pending")
            if attempt.state == "pending":
                behind = pending & (DELIVERIES.c.job_id == sent.job_id) & (DELIVERIES.c.due_s < attempt.due_s)
                connection.execute(sa.update(DELIVERIES).where(behind).values(due_s=attempt.due_s))
            if attempt.gone:
                connection.execute(
                    sa.update(WEBHOOKS).where(WEBHOOKS.c.webhook_id == sent.webhook_id).values(disabled=attempt.gone)
                )
                failed = {"state": "failed", "ended_s": attempt.at_s, "problem": attempt.gone}
                connection.execute(sa.update(DELIVERIES).where(pending).values(failed))


@dataclass(frozen=True, slots=True)
class TidyDeliveries(ServerScoped):
    """Fails deliveries pending since before `requested_before_s`; deletes those that ended before `ended_before_s`."""

    writes: ClassVar[bool] = True

    requested_before_s: float
    ended_before_s: float
    at_s: float
    problem: str

    def execute(self, connection: sa.Connection) -> None:
        """Update and delete them."""
        late = (DELIVERIES.c.state == "pending") & (DELIVERIES.c.asked_s < self.requested_before_s)
        failed = {"state": "failed", "ended_s": self.at_s, "problem": self.problem}
        connection.execute(sa.update(DELIVERIES).where(late).values(failed))
        connection.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.ended_s < self.ended_before_s))


def _webhook(row: Any) -> Webhook:
    events = tuple(json.loads(row.events))
    return Webhook(row.webhook_id, row.url, events, row.secret, row.created_s, row.tenant, row.disabled)


def _delivery(row: Any, tenant: str = "") -> Delivery:
    """Return a delivery as the tenant or the server sees it."""
    delivery = Delivery(**{f.name: getattr(row, f.name) for f in fields(Delivery)})
    return replace(delivery, job_id=prompt_id_of(delivery.job_id)) if tenant else delivery
