"""Calls of node packs' routes on their way from the ingress to one replica of a pool, whichever Serve picks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from serve_app.errors import NotReadyError
from serve_app.nodes.routes import PackAnswer, PackCall

REPLICA_S = 30.0
"""How long a call waits for a replica to take it: of a pool at zero, one is started for it."""


class Relay:
    """The handles of the pools' deployments, by pool."""

    def __init__(self, pools: Mapping[str, Any]) -> None:
        self._pools = pools

    async def __call__(self, pool: str, call: PackCall) -> PackAnswer:
        """Return what a replica answers, however long it takes. Errors: NotReadyError if none can, or it has died."""
        answers = self._pools[pool].options(stream=True).answer.remote(call)
        try:
            async with asyncio.timeout(REPLICA_S):
                await anext(answers)
            answer: PackAnswer = await anext(answers)
        except TimeoutError as error:
            answers.cancel()
            reason = f"no replica of pool {pool} has taken the call within {REPLICA_S:g} s"
            raise NotReadyError(reason, retry_after_s=5) from error
        except (RayActorError, RayServeException) as error:
            raise NotReadyError(
                f"the replica of pool {pool} that had the call is gone: {type(error).__name__}"
            ) from error
        return answer
