"""Rate limit per tenant: how many requests a minute it may make of one process, by token buckets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from cachetools import LRUCache

from serve_app.errors import QuotaError, QuotaLeft
from serve_app.limits import refused

KEY = "requests_a_minute"
TENANTS = 10_000
"""How many tenants' buckets a process keeps; the least recently used one is dropped, and starts full again."""


class RequestRate:
    """The rate limiter of a process. quota: requests per minute and tenant; None for no limit.

    A bucket has the capacity of one minute, so a burst of that size is allowed.
    """

    def __init__(self, quota: Callable[[str], int | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._quota, self.clock = quota, clock
        self.buckets: LRUCache[str, tuple[float, float]] = LRUCache(TENANTS)

    def take(self, tenant: str) -> QuotaLeft | None:
        """Count one request and return what is left; None without a quota.

        Errors: QuotaError, with the time until the next request is allowed.
        """
        most = self._quota(tenant)
        if most is None:
            return None
        now_s = self.clock()
        left, at_s = self.buckets.get(tenant, (float(most), now_s))
        left = min(float(most), left + (now_s - at_s) * most / 60)
        enough = left >= 1
        self.buckets[tenant] = (left - enough, now_s)
        if enough:
            full_s = math.ceil((most - left + 1) * 60 / most)
            return QuotaLeft(KEY, most, math.floor(left - 1), full_s)
        refused(f"quotas.{KEY}")
        wait_s = math.ceil((1 - left) * 60 / most) if most else 60
        reason = f"this tenant has made as many requests of this process as its quota '{KEY}' allows ({most})"
        raise QuotaError(reason, max(1, wait_s), KEY, most, 0)
