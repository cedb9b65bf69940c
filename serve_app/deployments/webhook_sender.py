"""The webhook sender: the one process that connects to URLs of clients, so the only one that needs the Internet.

A Ray actor, started by the scheduler for the first message, on the hosts in `webhooks.hosts` of the configuration. It
resolves a URL's host, connects, sends, and returns the status. The outbox and the signing keys stay with the
scheduler, so nothing is lost with the sender: messages in flight are sent again.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError

from serve_app import log
from serve_app.config.limits import WebhookLimits
from serve_app.deployments.handles import NAMESPACE
from serve_app.errors import OutgoingError
from serve_app.scheduler.webhooks.outgoing import Outgoing

NAME = "webhook_sender"
TRIES = 2
"""How often a message is sent if the sender dies, before the attempt has failed."""
LATE_S = 10.0
"""How long after a message's timeout a silent sender is killed."""
AGAIN_S, WARN_S = 0.5, 60.0
"""The delay before a dead sender is replaced, and the interval of log lines about it."""
_log = log.get("deployments.webhook_sender")


class WebhookSender:
    """The actor class: sends messages."""

    def __init__(self, limits: WebhookLimits, logs: log.Form, log_level: log.Level) -> None:
        log.configure(logs, log_level)
        self._outgoing = Outgoing(limits.allowed_networks, limits.timeout_s)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int | str:
        """Return the HTTP status of a message's answer, or the reason for none."""
        try:
            return await self._outgoing.post(url, headers, body)
        except OutgoingError as error:
            return str(error)


class WebhookSenderHandle:
    """The scheduler's client of the sender. Waits without a timeout while there is no sender."""

    def __init__(self, limits: WebhookLimits, logs: log.Form, log_level: log.Level) -> None:
        self._limits, self._logs, self._log_level = limits, logs, log_level
        self._actor: Any = None
        self._looking = asyncio.Lock()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """As `Outgoing.post`."""
        for _ in range(TRIES):
            actor = await self._ready()
            try:
                async with asyncio.timeout(self._limits.timeout_s + LATE_S):
                    answer = await actor.post.remote(url, headers, body)
            except TimeoutError:
                _log.error("the webhook sender says nothing and is ended")
                await asyncio.to_thread(ray.kill, actor, no_restart=False)
            except RayActorError as error:
                _log.warning("the webhook sender has ended: %s", type(error).__name__)
            else:
                if isinstance(answer, str):
                    raise OutgoingError(answer)
                return int(answer)
        raise OutgoingError("the webhook sender ended")

    async def _ready(self) -> Any:
        """Return the actor once it runs. Concurrent callers share one start."""
        began_s = time.monotonic()
        async with self._looking:
            while True:
                try:
                    if self._actor is None:
                        self._actor = await asyncio.to_thread(self._found)
                    async with asyncio.timeout(WARN_S):
                        await self._actor.__ray_ready__.remote()
                    return self._actor
                except TimeoutError:
                    waited_s = time.monotonic() - began_s
                    _log.warning("no webhook sender for %.0f s: is there a host as webhooks.hosts says?", waited_s)
                except (ActorDiedError, ValueError):  # the second while the name is still that of one that has ended
                    self._actor = None
                    await asyncio.sleep(AGAIN_S)
                except RayActorError:
                    await asyncio.sleep(AGAIN_S)

    def _found(self) -> Any:
        """Return the actor, starting it if there is none; it ends with the scheduler's process."""
        options = {"label_selector": dict(self._limits.hosts)} if self._limits.hosts else {}
        actor = ray.remote(WebhookSender).options(
            name=NAME, namespace=NAMESPACE, get_if_exists=True, max_restarts=-1, num_cpus=0, **options
        )
        return actor.remote(self._limits, self._logs, self._log_level)
