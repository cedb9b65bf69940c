"""Ends the process of a named actor that Ray has declared dead and not ended, which would keep its share of a GPU.

Ray loses such a process when the head is lost while the actor is being created: the new head finishes the creation
without a lease of its own, and without one it sends nobody the order to kill it (`gcs_actor_manager.cc` of ray 2.60:
"Not sending KillLocalActorRequest because Actor has not been assigned a lease"). Serve replaces just such replicas.
"""

from __future__ import annotations

import contextlib
import os
import time
from threading import Thread

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from serve_app import log

LOOK_S = 30.0
"""How often the head is asked. It answers with the names of all actors, some 25 KB for 500 replicas."""
LOOKS = 2
"""How many answers in a row must lack the actor."""
_log = log.get("replica")


def watch(look_s: float = LOOK_S) -> None:
    """End this process once it is a named actor's that Ray has no more. look_s: seconds between two looks."""
    # Ray's processes that spill objects call this too, and have no actor.
    if ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        Thread(target=_watch, args=(look_s,), name="orphans", daemon=True).start()


def _watch(look_s: float) -> None:
    missed = 0
    while missed < LOOKS:
        time.sleep(look_s)
        # No answer, as while the head is away, says nothing.
        with contextlib.suppress(RayError, RuntimeError):
            missed = missed + 1 if _is_missing() else 0
    _log.warning("Ray has declared this actor dead and not ended its process, which ends itself")
    os._exit(1)


def _is_missing() -> bool:
    name = ray.get_runtime_context().get_actor_name()
    return bool(name) and all(actor["name"] != name for actor in list_named_actors(all_namespaces=True))
