from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any, ClassVar

import pytest

from serve_app.execution.node_failure import NodeFailedError
from serve_app.graph.plan import Task
from serve_app.packs.lasting import mark_stateful, returns_itself
from serve_app.packs.server import PromptServer
from tests.unit.nodes.one_replica import Constant, Node, OneReplica, Show, task

FILM = [1, 2, 3, 4, 5]


class Manager(Node):
    """Holds a film open, as VideoHelperSuite's VHS_BatchManager does."""

    RETURN_TYPES = ("MANAGER",)
    inputs = ("size",)
    hidden: ClassVar = {"prompt": "PROMPT", "own": "UNIQUE_ID"}
    living: ClassVar[list[weakref.ref[Any]]] = []
    rounds: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.film = iter(FILM)
        self.closed = False
        Manager.living.append(weakref.ref(self))

    def go(self, size: int, prompt: Any, own: str) -> tuple[Any]:
        self.size = size
        Manager.rounds.append(prompt[own]["inputs"].get("requeue", 0))
        return (self,)


class Read(Node):
    RETURN_TYPES = ("LIST",)
    inputs = ("manager",)

    def go(self, manager: Manager) -> tuple[list[int]]:
        frames = []
        while len(frames) < manager.size and not manager.closed:
            try:
                frames.append(next(manager.film))
            except StopIteration:
                manager.closed = True
        return (frames,)


class Combine(Node):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    inputs = ("frames", "manager")
    changes: ClassVar[dict[str, Any]] = {}

    def go(self, frames: list[int], manager: Manager) -> dict[str, Any]:
        queue = PromptServer.instance.prompt_queue
        [(number, job_id, prompt, extra_data, outputs, credentials)] = queue.currently_running.values()
        assert job_id == "job"
        assert outputs == ["out", "beside"]
        assert extra_data == {"extra_pnginfo": {"workflow": 1}}
        if not manager.closed:
            inputs = prompt["manager"]["inputs"]
            inputs["requeue"] = inputs.get("requeue", 0) + 1
            prompt["out"]["inputs"].update(self.changes)
            queue.put((-number, "another id", prompt, extra_data, outputs, credentials))
        return {"ui": {"frames": frames}}


class Store(Node):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    inputs = ("frames",)
    hidden: ClassVar = {"store": "STORE"}

    def go(self, frames: Any, store: str) -> dict[str, Any]:
        return {"ui": {"stores": [store]}}


mark_stateful(Manager)
CLASSES: dict[str, type] = {cls.__name__: cls for cls in (Constant, Manager, Read, Combine, Show, Store)}


class Replica(OneReplica):
    classes = CLASSES


def film(**more: Any) -> Task:
    Manager.rounds.clear()
    Manager.living.clear()
    return task(
        CLASSES,
        "out",
        "beside",
        manager=("Manager", {"size": 2}),
        read=("Read", {"manager": ["manager", 0]}),
        out=("Combine", {"frames": ["read", 0], "manager": ["manager", 0]}),
        still=("Constant", {"value": 7}),
        **{"beside": ("Show", {"value": ["still", 0]}), **more},
    )


async def test_a_node_that_queues_its_jobs_workflow_has_it_run_again_with_the_same_node_objects() -> None:
    replica = Replica()
    await replica.run(film())
    assert Manager.rounds == [0, 1, 2]
    assert len(Manager.living) == 1
    ended = [(node_id, ui) for node_id, ui in replica.finished_nodes if ui]
    assert ended == [("beside", {"text": [7]}), ("out", {"frames": FILM})], "once, with what all rounds have shown"
    assert replica.started_nodes.count("still") == 1, "what the change does not reach is not made again"


async def test_what_lasted_for_the_rounds_goes_with_the_job() -> None:
    replica = Replica()
    await replica.run(film())
    async with asyncio.timeout(10):
        # The thread that called the node drops its arguments a moment after the call has returned.
        while any(living() for living in Manager.living):
            gc.collect()
            await asyncio.sleep(0.05)


async def test_what_is_saved_in_a_later_round_is_no_retry_of_the_first() -> None:
    replica = Replica()
    await replica.run(film(beside=("Store", {"frames": ["read", 0]})))
    stores = [f"files of beside{of_round}" for of_round in ("", " round 2", " round 3")]
    assert ("beside", {"stores": stores}) in replica.finished_nodes


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"frames": 3}, "another node out"), ({"requeue": 1}, "")],
)
async def test_only_inputs_that_nothing_declares_may_differ(
    changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Combine, "changes", changes)
    if not named:
        await Replica().run(film())
        return
    with pytest.raises(NodeFailedError, match=named):
        await Replica().run(film())


def test_nothing_is_queued_outside_a_job() -> None:
    queue = PromptServer.instance.prompt_queue
    assert not queue.currently_running
    assert queue.get_current_queue() == ([], [])
    with pytest.raises(Exception, match="submit it over HTTP"):
        queue.put((0, "id", {}, {}, [], {}))


def test_a_class_that_returns_its_object_is_known_by_its_source() -> None:
    assert [cls.__name__ for cls in CLASSES.values() if returns_itself(cls)] == ["Manager"]
