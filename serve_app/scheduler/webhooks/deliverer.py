"""Sends what the outbox holds for webhooks, each event of a job after the one before, until it has arrived.

One a scheduler's life, in a thread with an event loop of its own: a receiver, however slow, holds up no job. What has
arrived is noted under the scheduler's lease; what was under way as a life ended is sent again by the next, so whoever
is told something may be told it twice.
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
"""How much is under way at once, in all and to one webhook; to one that fails, one at a time.

Of a tenant's, no more than what is left for others: half of all for one alone, a third each for two, and so on, so that
there is room at once for whoever has nothing under way. Source: Choudhury and Hahne, "Dynamic queue length thresholds".
"""
GROWTH, LONGEST_S = 4.0, 14_400.0
"""By what factor a delivery waits longer after each further failure, and at most how long."""
REST_S = 60.0
"""How long a webhook that fails is left alone at most, whatever else is due to it."""
GATHER_S = 0.02
"""What is answered within so long is noted in one transaction."""
GIVEN_UP_S, KEPT_S, TIDY_S = 3 * 86_400.0, 7 * 86_400.0, 3600.0
"""When what waits is given up, for how long what ended is listed, and how often it is looked at."""
GONE = 410
"""The status by which a receiver says that it wants nothing more. Source: the Standard Webhooks specification."""


Post: TypeAlias = Callable[[str, dict[str, str], bytes], Awaitable[int]]
"""(url, headers, body) -> the status that is answered, or OutgoingError."""


class RunQuery(Protocol):
    """How the database is asked: see `Scheduler.query`."""

    def __call__(self, query: Query[T], /) -> Awaitable[T]:
        """Return the answer."""
        ...


@dataclass(slots=True)
class _Line:
    """How it goes with one webhook. failures: in a row."""

    under_way: int = 0
    failures: int = 0
    rests_until_s: float = -math.inf


class WebhookDeliverer:
    """ask: the database. post: sends a message. clock: Unix time. jitter: 0 to 1."""

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
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._under_way: dict[str, str] = {}
        self._of_tenant: Counter[str] = Counter()
        self._came: list[Attempt] = []
        self._woken = asyncio.Event()
        self._sends: set[asyncio.Task[None]] = set()
        self._tidy_s = 0.0

    def wake(self) -> None:
        """Look into the outbox, for it may have more; from the courier's own loop."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled, or until a newer scheduler holds the lease."""
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
        """Note what came back, begin to send what is due, and return after how long something may be again."""
        await self._note()
        now_s = self._clock()
        if now_s >= self._tidy_s:
            late = f"not delivered within {GIVEN_UP_S / 86_400:g} days"
            tidy = TidyDeliveries(now_s - GIVEN_UP_S, now_s - KEPT_S, now_s, late)
            await persistently(lambda: self._ask(tidy))
            self._tidy_s = now_s + TIDY_S
        next_s = self._tidy_s
        webhooks = list(await persistently(lambda: self._ask(Webhooks())))
        for webhook_id in self._lines.keys() - {webhook.webhook_id for webhook in webhooks}:
            del self._lines[webhook_id]
        random.shuffle(webhooks)  # where all together have too much, none is always the last
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
            self._of_tenant += Counter()  # without those who have nothing left

    async def _begin(self, webhook: Webhook, now_s: float) -> float:
        """Begin to send what is due to a webhook, as far as may be; return when more is due."""
        line = self._lines[webhook.webhook_id]
        most = 1 if line.failures else CONCURRENT_EACH
        if line.under_way >= most or not self._may_have_another(webhook.tenant):
            return math.inf  # the end of something under way wakes
        if line.rests_until_s > now_s:
            return line.rests_until_s
        asked = Heads(webhook.webhook_id, 2 * CONCURRENT_EACH + 1)
        for head in await persistently(lambda: self._ask(asked)):
            if head.delivery_id in self._under_way:
                continue
            if head.due_s > now_s:
                return head.due_s
            if line.under_way >= most or not self._may_have_another(webhook.tenant):
                return math.inf
            line.under_way += 1
            self._under_way[head.delivery_id] = webhook.tenant
            self._of_tenant[webhook.tenant] += 1
            send = asyncio.create_task(self._send(webhook, head, line))
            self._sends.add(send)
            send.add_done_callback(self._sends.discard)
        return math.inf

    def _may_have_another(self, tenant: str) -> bool:
        return self._of_tenant[tenant] < CONCURRENT - len(self._under_way)

    async def _send(self, webhook: Webhook, sent: Delivery, line: _Line) -> None:
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
        except Exception as error:  # none is foreseen; whatever it is, the next delivery goes on
            _log.error("webhook %s: %s", webhook.webhook_id, type(error).__name__, exc_info=error)
            problem = f"{type(error).__name__} on this side"
        now_s = self._clock()
        line.under_way -= 1
        self._came.append(self._attempt(webhook, sent, status, problem, now_s))
        if problem:
            line.failures += 1
            line.rests_until_s = now_s + min(REST_S, 2.0 ** min(line.failures, 10) - 1.0)
        else:
            line.failures, line.rests_until_s = 0, -math.inf
        self._woken.set()

    def _attempt(self, webhook: Webhook, sent: Delivery, status: int | None, problem: str, now_s: float) -> Attempt:
        attempts = sent.attempts + 1
        if not problem:
            return Attempt(sent, "delivered", attempts, now_s, sent.due_s, status, "")
        if status == GONE:
            _log.warning("webhook %s is told nothing more: %s answered %d", webhook.webhook_id, webhook.url, GONE)
            return Attempt(sent, "failed", attempts, now_s, sent.due_s, status, problem, f"its URL answered {GONE}")
        if attempts >= self._limits.attempts:
            _log.warning(
                "webhook %s: %s of job %s is given up: %s", webhook.webhook_id, sent.event, sent.job_id, problem
            )
            return Attempt(sent, "failed", attempts, now_s, sent.due_s, status, problem)
        delay_s = min(LONGEST_S, self._limits.retry_s * GROWTH ** (attempts - 1)) * (1.0 + 0.2 * self._jitter())
        return Attempt(sent, "pending", attempts, now_s, now_s + delay_s, status, problem)


class WebhookDelivererThread:
    """A courier in a thread of its own. make: builds it, in that thread."""

    def __init__(self, make: Callable[[], WebhookDeliverer]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._deliverer: WebhookDeliverer | None = None
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the courier that there may be something to send; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Stop sending, and wait until nothing is under way."""
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
            _log.error("webhooks are told nothing until the next start", exc_info=error)
        finally:
            self._loop.close()

    async def _work(self) -> None:
        self._deliverer = self._make()
        self._running = asyncio.create_task(self._deliverer.run())
        await self._running
