from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker, NodeResult, call, merge
from serve_app.execution.executing import Executing, executing
from serve_app.execution.protocol import spec_of


def node_class(function: Any, outputs: tuple[str, ...] = ("INT",), **attributes: Any) -> type:
    body = {"FUNCTION": "go", "RETURN_TYPES": outputs, "INPUT_TYPES": classmethod(lambda cls: {}), "go": function}
    return type("Node", (), body | attributes)


async def run(cls: type, **inputs: list[Any]) -> NodeResult:
    spec = spec_of(cls, "Node")
    return merge(await call(cls(), spec, inputs, Executing("job", "7")), spec)


def add(self: Any, a: int, b: int) -> tuple[int]:
    return (a + b,)


async def test_a_class_runs_once_per_element_and_short_lists_repeat_their_last() -> None:
    result = await run(node_class(add), a=[1, 2, 3], b=[10, 20])
    assert result == NodeResult(([11, 22, 23],), None)


async def test_one_tenants_nodes_leave_a_thread_to_others() -> None:
    freed = threading.Event()
    waits = node_class(lambda self: (freed.wait(60),))
    spec = spec_of(waits, "Node")
    many = [asyncio.create_task(call(waits(), spec, {}, Executing("job", str(n), tenant="ann"))) for n in range(99)]
    try:
        await asyncio.sleep(0.05)
        other = call(node_class(lambda self: (7,))(), spec, {}, Executing("other", "7", tenant="ben"))
        assert (await asyncio.wait_for(other, 30))[0].values == (7,)
    finally:
        freed.set()
        await asyncio.gather(*many)


async def test_a_class_without_inputs_runs_once() -> None:
    assert (await run(node_class(lambda self: (7,)))).outputs == ([7],)


async def test_a_class_that_takes_lists_runs_once_with_all_of_them() -> None:
    cls = node_class(lambda self, a, b: ([a, b],), INPUT_IS_LIST=True)
    assert (await run(cls, a=[1, 2], b=[3])).outputs == ([[[1, 2], [3]]],)


async def test_list_outputs_are_joined_and_others_gathered() -> None:
    cls = node_class(lambda self, n: (list(range(n)), n), ("INT", "INT"), OUTPUT_IS_LIST=(True, False))
    assert (await run(cls, n=[2, 3])).outputs == ([0, 1, 0, 1, 2], [2, 3])


async def test_what_a_node_shows_is_joined_over_its_calls() -> None:
    cls = node_class(lambda self, n: {"ui": {"text": [n, n]}, "result": (n,)})
    assert await run(cls, n=["a", "b"]) == NodeResult((["a", "b"],), {"text": ["a", "a", "b", "b"]})
    silent = node_class(lambda self: {"ui": {"images": []}}, ())
    assert await run(silent) == NodeResult((), {"images": []})


async def test_sync_functions_run_in_a_thread_and_async_ones_on_the_loop_both_without_autograd() -> None:
    def sync(self: Any) -> tuple[Any, ...]:
        return (threading.get_ident(), torch.is_inference_mode_enabled())

    async def async_(self: Any) -> tuple[Any, ...]:
        before = torch.is_inference_mode_enabled()
        await asyncio.sleep(0)
        return (threading.get_ident(), before and torch.is_inference_mode_enabled())

    here = threading.get_ident()
    (thread,), (mode,) = (await run(node_class(sync, ("INT", "INT")))).outputs
    assert thread != here
    assert mode
    assert (await run(node_class(async_, ("INT", "INT")))).outputs == ([here], [True])
    assert not torch.is_inference_mode_enabled()


async def test_async_calls_of_one_node_run_at_the_same_time() -> None:
    meeting = asyncio.Barrier(3)

    async def meet(self: Any, n: int) -> tuple[int]:
        await meeting.wait()
        return (n,)

    assert (await asyncio.wait_for(run(node_class(meet), n=[1, 2, 3]), 5)).outputs == ([1, 2, 3],)


async def test_an_async_function_can_be_cancelled_and_sees_it() -> None:
    seen = asyncio.Event()

    async def wait(self: Any) -> tuple[()]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.set()
            raise
        return ()

    task = asyncio.create_task(run(node_class(wait)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(seen.wait(), 60)


async def test_an_exception_of_the_function_comes_out_as_it_is() -> None:
    async def fail(self: Any) -> tuple[()]:
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await run(node_class(fail))


@pytest.mark.parametrize("value", [5, None, "text"])
async def test_a_result_that_is_no_tuple_is_refused(value: Any) -> None:
    with pytest.raises(NodeError, match=r"must be a tuple of \(INT\)"):
        await run(node_class(lambda self: value))


async def test_an_empty_list_has_nothing_to_run_on() -> None:
    with pytest.raises(NodeError, match="'a' is an empty list"):
        await run(node_class(add), a=[], b=[1])


async def test_only_empty_lists_are_one_call_without_them() -> None:
    assert (await run(node_class(lambda self, a=5: (a,)), a=[])).outputs == ([5],)


async def test_a_blocked_element_is_not_run_and_passed_on_in_its_place() -> None:
    blocker = ExecutionBlocker()
    cls = node_class(lambda self, n: (n + 1, [n]), ("INT", "INT"), OUTPUT_IS_LIST=(False, True))
    assert (await run(cls, n=[1, blocker, 3])).outputs == ([2, blocker, 4], [1, blocker, 3])


async def test_one_blocked_element_blocks_a_class_that_takes_lists() -> None:
    blocker = ExecutionBlocker()
    assert (await run(node_class(lambda self, n: (n,), INPUT_IS_LIST=True), n=[1, blocker])).outputs == ([blocker],)


async def test_a_class_that_takes_lists_may_ask_to_get_them_without_what_is_blocked() -> None:
    blocker = ExecutionBlocker()
    cls = node_class(lambda self, n, k: ([n, k],), INPUT_IS_LIST=True, SKIPS_BLOCKED=True)
    assert (await run(cls, n=[1, blocker, 3], k=["a"])).outputs == ([[[1, 3], ["a", "a"]]],)
    assert isinstance((await run(cls, n=[blocker], k=["a"])).outputs[0][0], ExecutionBlocker)


async def test_a_blocker_for_a_result_blocks_every_slot() -> None:
    blocker = ExecutionBlocker("no")
    for returned in (blocker, {"result": blocker}):
        cls = node_class(lambda self, value=returned: value, ("INT", "INT"))
        assert (await run(cls)).outputs == ([blocker], [blocker])


async def test_every_call_knows_its_node_and_element_in_threads_and_coroutines() -> None:
    def sync(self: Any, n: int) -> tuple[str]:
        return (executing().prefix(),)  # type: ignore[union-attr]

    async def async_(self: Any, n: int) -> tuple[str]:
        await asyncio.sleep(0)
        return (executing().prefix(),)  # type: ignore[union-attr]

    for function in (sync, async_):
        assert sorted((await run(node_class(function), n=[1, 2])).outputs[0]) == ["7.0.0.", "7.1.0."]
    assert executing() is None


async def test_sync_functions_of_packs_run_one_at_a_time_and_async_ones_beside_them() -> None:
    running, most = 0, 0
    asked = asyncio.Event()

    def sync(self: Any, n: int) -> tuple[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.02)
        running -= 1
        return (executing().node_id,)  # type: ignore[union-attr]

    async def async_(self: Any, n: int) -> tuple[int]:
        await asked.wait()
        return (n,)

    pack: dict[str, Any] = {"RELATIVE_PYTHON_MODULE": "custom_nodes.mine"}
    waiting = asyncio.create_task(run(node_class(async_, **pack), n=[1]))
    made = await asyncio.gather(*(run(node_class(sync, **pack), n=[i]) for i in range(4)))
    assert [result.outputs for result in made] == [(["7"],)] * 4
    assert most == 1
    asked.set()
    assert (await waiting).outputs == ([1],)
