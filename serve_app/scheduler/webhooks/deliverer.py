"""Delivers the outbox to webhooks: at least once, each job's events in order, with retries.

Runs in a thread with its own event loop, so that a slow receiver delays no job. Results are recorded under the
scheduler's lease. Messages in flight when a scheduler ends are sent again by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from serve_app import log
from serve_app.config.limits import WebhookLimits
from serve_app.errors import OutgoingError, StaleEpochError
from serve_app.scheduler.durability.writer import persistently
from serve_app.scheduler.webhooks.outgoing import signed
from serve_app.store.database.queries import Query
from serve_app.store.database.webhooks import (
    Attempt,
    Delivery,
    Heads,
    RecordAttempts,
    TidyDeliveries,
    Webhook,
    Webhooks,
)

T = TypeVar("T")
_log = log.get("scheduler")

CONCURRENT, CONCURRENT_EACH = 32, 4
"""The most messages in flight, in all and to one webhook; to a failing webhook one at a time.

A tenant may have as many in flight as are left for others: half of all for one tenant, a third each for two, and so
on. So a tenant with nothing in flight need not wait. Source: Choudhury and Hahne, "Dynamic queue length thresholds".
"""
GROWTH, LONGEST_S = 4.0, 14_400.0
"""The factor of the exponential backoff, and its longest delay."""
REST_S = 60.0
"""The longest pause after a failure before a webhook is tried with another delivery."""
GATHER_S = 0.02
"""Results within this time are recorded in one transaction."""
GIVEN_UP_S, KEPT_S, TIDY_S = 3 * 86_400.0, 7 * 86_400.0, 3600.0
"""When pending deliveries fail, how long ended ones are listed, and the interval of that clean-up."""
GONE = 410
"""The status by which a receiver unsubscribes. Source: the Standard Webhooks specification."""


Post: TypeAlias = Callable[[str, dict[str, str], bytes], Awaitable[int]]
"""(url, headers, body) -> the HTTP status. Errors: OutgoingError."""


class RunQuery(Protocol):
    """Runs a database query: see `Scheduler.query`."""

    def __call__(self, query: Query[T], /) -> Awaitable[T]:
        """Return the result."""
        ...


@dataclass(slots=True)
class _WebhookState:
    """The state of one webhook. failures: in a row."""

    under_way: int = 0
    failures: int = 0
    rests_until_s: float = -math.inf


class WebhookDeliverer:
    """Delivers the outbox. ask: runs a query. post: sends a message. clock: Unix time. jitter: 0 to 1."""

    def __init__(
        self,
        ask: RunQuery,
        post: Post,
        limits: WebhookLimits,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._ask, self._post, self._limits = ask, post, limits
        self._clock, self._jitter = clock, jitter
        self._states: defaultdict[str, _WebhookState] = defaultdict(_WebhookState)
        self._under_way: dict[str, str] = {}
        self._of_tenant: Counter[str] = Counter()
        self._came: list[Attempt] = []
        self._woken = asyncio.Event()
        self._sends: set[asyncio.Task[None]] = set()
        self._tidy_s = 0.0

    def wake(self) -> None:
        """Check the outbox; from the deliverer's own loop."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled, or until a newer scheduler holds the lease."""
        try:
            while True:
                self._woken.clear()
                wait_s = await self._round()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._woken.wait()
                await asyncio.sleep(GATHER_S)
        except StaleEpochError:
            return
        finally:
            for send in self._sends:
                send.cancel()
            await asyncio.gather(*self._sends, return_exceptions=True)

    async def _round(self) -> float:
        """Record results, start sending due deliveries, and return the seconds until the next one may be due."""
        await self._note()
        now_s = self._clock()
        if now_s >= self._tidy_s:
            late = f"not delivered within {GIVEN_UP_S / 86_400:g} days"
            tidy = TidyDeliveries(now_s - GIVEN_UP_S, now_s - KEPT_S, now_s, late)
            await persistently(lambda: self._ask(tidy))
            self._tidy_s = now_s + TIDY_S
        next_s = self._tidy_s
        webhooks = list(await persistently(lambda: self._ask(Webhooks())))
        for webhook_id in self._states.keys() - {webhook.webhook_id for webhook in webhooks}:
            del self._states[webhook_id]
        random.shuffle(webhooks)  # so that none is always the last when all have too many
        for webhook in webhooks:
            if not webhook.disabled:
                next_s = min(next_s, await self._begin(webhook, now_s))
        return max(0.0, next_s - self._clock())

    async def _note(self) -> None:
        if self._came:
            came, self._came = self._came, []
            await persistently(lambda: self._ask(RecordAttempts(tuple(came))))
            for attempt in came:
                self._of_tenant[self._under_way.pop(attempt.delivery.delivery_id)] -= 1
            self._of_tenant += Counter()  # removes zero counts

    async def _begin(self, webhook: Webhook, now_s: float) -> float:
        """Start sending a webhook's due deliveries within the limits; return when more is due."""
        state = self._states[webhook.webhook_id]
        most = 1 if state.failures else CONCURRENT_EACH
        if state.under_way >= most or not self._may_have_another(webhook.tenant):
            return math.inf  # the end of a message in flight wakes
        if state.rests_until_s > now_s:
            return state.rests_until_s
        asked = Heads(webhook.webhook_id, 2 * CONCURRENT_EACH + 1)
        for head in await persistently(lambda: self._ask(asked)):
            if head.delivery_id in self._under_way:
                continue
            if head.due_s > now_s:
                return head.due_s
            if state.under_way >= most or not self._may_have_another(webhook.tenant):
                return math.inf
            state.under_way += 1
            self._under_way[head.delivery_id] = webhook.tenant
            self._of_tenant[webhook.tenant] += 1
            send = asyncio.create_task(self._send(webhook, head, state))
            self._sends.add(send)
            send.add_done_callback(self._sends.discard)
        return math.inf

    def _may_have_another(self, tenant: str) -> bool:
        return self._of_tenant[tenant] < CONCURRENT - len(self._under_way)

    async def _send(self, webhook: Webhook, sent: Delivery, state: _WebhookState) -> None:
        body = sent.payload.encode()
        headers = signed(webhook.secret, sent.delivery_id, int(self._clock()), body)
        status, problem = None, ""
        try:
            status = await self._post(webhook.url, headers, body)
            if not 200 <= status < 300:
                problem = f"answered {status}"
        except OutgoingError as error:
            problem = str(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # unexpected, but must not stop other deliveries
            _log.error("webhook %s: %s", webhook.webhook_id, type(error).__name__, exc_info=error)
            problem = f"{type(error).__name__} on this side"
        now_s = self._clock()
        state.under_way -= 1
        self._came.append(self._attempt(webhook, sent, status, problem, now_s))
        if problem:
            state.failures += 1
            state.rests_until_s = now_s + min(REST_S, 2.0 ** min(state.failures, 10) - 1.0)
        else:
            state.failures, state.rests_until_s = 0, -math.inf
        self._woken.set()

    def _attempt(self, webhook: Webhook, sent: Delivery, status: int | None, problem: str, now_s: float) -> Attempt:
        attempts = sent.attempts + 1
        if not problem:
            return Attempt(sent, "delivered", attempts, now_s, sent.due_s, status, "")
        if status == GONE:
            _log.warning("webhook %s is disabled: %s answered %d", webhook.webhook_id, webhook.url, GONE)
            return Attempt(sent, "failed", attempts, now_s, sent.due_s, status, problem, f"its URL answered {GONE}")
        if attempts >= self._limits.attempts:
            _log.warning(
                "webhook %s: %s of job %s is given up: %s", webhook.webhook_id, sent.event, sent.job_id, problem
            )
            return Attempt(sent, "failed", attempts, now_s, sent.due_s, status, problem)
        delay_s = min(LONGEST_S, self._limits.retry_s * GROWTH ** (attempts - 1)) * (1.0 + 0.2 * self._jitter())
        return Attempt(sent, "pending", attempts, now_s, now_s + delay_s, status, problem)


class WebhookDelivererThread:
    """A WebhookDeliverer in its own thread. make: builds it there."""

    def __init__(self, make: Callable[[], WebhookDeliverer]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._deliverer: WebhookDeliverer | None = None
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Wake the deliverer, as the outbox may have more; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Stop, and wait until nothing is in flight."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        if self._deliverer is not None:
            self._deliverer.wake()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._work())
        except Exception as error:
            _log.error("webhooks get no deliveries until the next start", exc_info=error)
        finally:
            self._loop.close()

    async def _work(self) -> None:
        self._deliverer = self._make()
        self._running = asyncio.create_task(self._deliverer.run())
        await self._running
