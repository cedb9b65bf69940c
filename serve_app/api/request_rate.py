"""How many requests a minute a tenant makes of one process: a bucket of tokens for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from cachetools import LRUCache

from serve_app.errors import QuotaError, QuotaLeft
from serve_app.limits import refused

KEY = "requests_a_minute"
TENANTS = 10_000
"""Whose buckets a process keeps; that of whoever has asked for nothing for longest is made anew, full."""


class RequestRate:
    """One a process. quota: how many requests a minute a tenant may make; None for any number.

    A bucket holds what comes to it in a minute, so as many may come at once.
    """

    def __init__(self, quota: Callable[[str], int | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._quota, self._clock = quota, clock
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(TENANTS)

    def take(self, tenant: str) -> QuotaLeft | None:
        """Count one request and return what is left; None without a quota.

        Errors: QuotaError, which says when there will be room for the next.
        """
        most = self._quota(tenant)
        if most is None:
            return None
        now_s = self._clock()
        left, at_s = self._buckets.get(tenant, (float(most), now_s))
        left = min(float(most), left + (now_s - at_s) * most / 60)
        enough = left >= 1
        self._buckets[tenant] = (left - enough, now_s)
        if enough:
            full_s = math.ceil((most - left + 1) * 60 / most)
            return QuotaLeft(KEY, most, math.floor(left - 1), full_s)
        refused(f"quotas.{KEY}")
        wait_s = math.ceil((1 - left) * 60 / most) if most else 60
        reason = f"this tenant has made as many requests of this process as its quota '{KEY}' allows ({most})"
        raise QuotaError(reason, max(1, wait_s), KEY, most, 0)
