"""Synchronous access for packs' code, in a node's thread, to capabilities and coroutines of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError, TimeoutError
from typing import Any, TypeVar

from serve_app.errors import NodeError
from serve_app.execution.executing import executing
from serve_app.execution.runtime import Runtime
from serve_app.packs.comfy.model_management import throw_exception_if_processing_interrupted

T = TypeVar("T")

LOOK_S = 0.2
"""How often a waiting call checks for cancellation."""


def capability(kind: str, caller: str) -> Any:
    """Return the value of a hidden input of the running node. Errors: NodeError outside one."""
    call = executing()
    if call is None or call.hidden is None:
        raise NodeError(f"{caller} was called outside a running node, where it cannot get its {kind}")
    return call.hidden(kind)


def runtime(caller: str) -> Runtime:
    """Return the running node's RUNTIME. Errors: NodeError outside a node, or in a pool without models."""
    found: Runtime | None = capability("RUNTIME", caller)
    if found is None:
        raise NodeError(f"{caller} needs models, and this replica has none; a pool with models must accept the class")
    return found


runtime._asks_for_runtime = True  # type: ignore[attr-defined]


def run_on_loop(coroutine: Coroutine[Any, Any, T], caller: str) -> T:
    """Run a coroutine in the replica's event loop and return its result.

    Errors: its own; NodeError without a loop; InterruptProcessingException once the job is cancelled.
    """
    call = executing()
    if call is None or call.loop is None or _in_loop():
        coroutine.close()
        if call is None or call.loop is None:
            raise NodeError(f"{caller} was called outside a running node")
        raise NodeError(f"{caller} was called in an event loop, which it would stop; call it in asyncio.to_thread")
    answer = asyncio.run_coroutine_threadsafe(coroutine, call.loop)
    while True:
        try:
            return answer.result(LOOK_S)
        except TimeoutError:
            if answer.done():
                raise
            if call.stopped.is_set():
                answer.cancel()
        except CancelledError:
            throw_exception_if_processing_interrupted()
            raise NodeError(f"{caller} was cancelled") from None


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
