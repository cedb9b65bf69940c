"""Notices that a replica's machine is about to go: Ray's drain of its node, or a cloud's by a file or an address.

Ray drains a node when an operator or an autoscaler does, and when `ray start` gets SIGTERM. Serve then starts another
replica first, and lets this one take tasks until a few seconds before the end.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from pathlib import Path

import httpx

# As Ray Train's watcher does; there is no public name for it.
from ray._private.state import state

from serve_app import log
from serve_app.config.preemption import PreemptionConfig

_log = log.get("replica")

LOOK_S = 2.0
"""How often is looked for a notice."""
ANSWER_S = 1.0
"""How long an address may take to answer."""


async def notice(node_id: str, preemption: PreemptionConfig) -> tuple[str, float]:
    """Wait for a notice of a node's end; return what it is and the Unix time of the end."""
    unseen = ""
    while True:
        try:
            found = await asyncio.to_thread(look, node_id, preemption)
        except Exception as error:
            if (why := str(error)) != unseen:
                _log.warning("whether this machine is about to go cannot be seen: %s", why)
                unseen = why
            found = None
        if found is not None:
            return found
        await asyncio.sleep(LOOK_S)


def look(node_id: str, preemption: PreemptionConfig) -> tuple[str, float] | None:
    """Return a notice that there is by now, as `notice`."""
    soon_s = time.time() + preemption.notice_s
    ends_ms = state.get_draining_nodes().get(node_id)
    if ends_ms is not None:
        # 0 is a drain without an end.
        return "Ray drains this host", ends_ms / 1000 if ends_ms else soon_s
    if preemption.notice is not None and _is_given(preemption.notice):
        return f"notice by {preemption.notice}", soon_s
    return None


def _is_given(place: str) -> bool:
    """Return whether a notice is there. Errors: httpx.HTTPStatusError if the address wants something else first."""
    if not place.startswith("http://"):
        return Path(place).exists()
    try:
        # Google's server answers only requests that say so; others ignore it. No proxy may answer for the machine.
        answer = httpx.get(place, headers={"Metadata-Flavor": "Google"}, timeout=ANSWER_S, trust_env=False)
    except httpx.TransportError:
        return False
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return False
    return answer.raise_for_status().text.strip().upper() not in ("", "FALSE")
