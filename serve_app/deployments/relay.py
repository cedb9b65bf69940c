"""Forwards calls of node packs' routes from the ingress to a replica of a pool, chosen by Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from serve_app.errors import NotReadyError
from serve_app.packs.routes import PackCall, Piece

REPLICA_S = 30.0
"""The timeout of a call until a replica takes it; a pool at zero starts one."""


class Relay:
    """The handles of the pools' deployments, by pool."""

    def __init__(self, pools: Mapping[str, Any]) -> None:
        self._pools = pools

    async def __call__(self, pool: str, call: PackCall) -> AsyncGenerator[str | Piece]:
        """Yield the id of the replica that has the call, then its answer, however long it takes.

        Closing the generator ends the answer. Errors: NotReadyError if none can, or it has died.
        """
        pieces = self._pools[pool].options(stream=True).answer.remote(call)
        whole = False
        try:
            try:
                async with asyncio.timeout(REPLICA_S):
                    replica_id = await anext(pieces)
            except TimeoutError as error:
                reason = f"no replica of pool {pool} has taken the call within {REPLICA_S:g} s"
                raise NotReadyError(reason, retry_after_s=5) from error
            yield replica_id
            while True:
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    whole = True
                    return
                yield piece
        except (RayActorError, RayServeException) as error:
            raise NotReadyError(
                f"the replica of pool {pool} that had the call is gone: {type(error).__name__}"
            ) from error
        finally:
            if not whole:
                pieces.cancel()
