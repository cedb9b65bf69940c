"""The webhook sender: the one process that connects to URLs of clients, so the only one that needs the Internet.

A Ray actor of the scheduler's, started when there is something to send, on the hosts that `webhooks.hosts` of the
configuration names. It resolves a URL's host, connects, sends what it is given, and says what was answered. The outbox
and the keys of signatures stay with the scheduler, so nothing is lost with the sender: what was under way as it ended
is sent again.
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
"""How often a message is given to a sender that ends over it, before that counts as an attempt that failed."""
LATE_S = 10.0
"""How long after a message's own time a sender that says nothing is ended."""
AGAIN_S, WARN_S = 0.5, 60.0
"""How soon a sender that has ended is looked for again; how often the log says that there is none."""
_log = log.get("deployments.webhook_sender")


class WebhookSender:
    """Sends messages; the actor's class."""

    def __init__(self, limits: WebhookLimits, logs: log.Form) -> None:
        log.configure(logs)
        self._outgoing = Outgoing(limits.allowed_networks, limits.timeout_s)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int | str:
        """Return the status that a message is answered, or why there is none."""
        try:
            return await self._outgoing.post(url, headers, body)
        except OutgoingError as error:
            return str(error)


class WebhookSenderHandle:
    """How the scheduler sends. It waits for a sender that is not there, as long as it takes, and gives nothing up."""

    def __init__(self, limits: WebhookLimits, logs: log.Form) -> None:
        self._limits, self._logs = limits, logs
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
        """Return the actor once it runs. One asks for all, so that one alone starts another."""
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
        """Return the actor, which is started if there is none; it ends with the scheduler's process."""
        options = {"label_selector": dict(self._limits.hosts)} if self._limits.hosts else {}
        actor = ray.remote(WebhookSender).options(
            name=NAME, namespace=NAMESPACE, get_if_exists=True, max_restarts=-1, num_cpus=0, **options
        )
        return actor.remote(self._limits, self._logs)
