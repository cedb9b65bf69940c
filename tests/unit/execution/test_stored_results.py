"""Results of nodes that outlive their process: the bytes, what is kept, and what is thrown away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.config.results import ResultsConfig
from serve_app.errors import StoreError
from serve_app.execution.call import ExecutionBlocker, NodeResult
from serve_app.execution.stored_results import (
    DamagedResultError,
    StoredResults,
    UnstorableError,
    from_bytes,
    to_bytes,
)
from serve_app.nested_tensor import NestedTensor
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.work.node_results import NodeResultFiles

SIGNATURE = "a" * 64
LATENT = NodeResult(([{"samples": torch.arange(6.0).reshape(1, 2, 3)}],))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and (one.dtype, one.stride()) == (other.dtype, other.stride())
    if isinstance(one, NestedTensor):
        return isinstance(other, NestedTensor) and equal(one.tensors, other.tensors)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


@pytest.fixture
def store(tmp_path: Path) -> Volume:
    return Volume({"work": tmp_path / "work", "output": tmp_path / "output"})


def stored(store: Volume, config: ResultsConfig | None = None) -> StoredResults:
    return StoredResults(lambda: NodeResultFiles(store, "code"), config or ResultsConfig())


async def settled(results: StoredResults, kept: int) -> StoredResults:
    async with asyncio.timeout(30):
        while results.counters.kept + results.counters.failures < kept:
            await asyncio.sleep(0.002)
    return results


def test_values_come_back_with_their_types_numbers_and_order_in_memory() -> None:
    image = torch.rand(1, 3, 4, 5).movedim(1, -1)
    outputs: tuple[list[Any], ...] = (
        [image, image[0], torch.tensor([1, 2], dtype=torch.int64), torch.rand(3).to(torch.bfloat16), torch.empty(0, 4)],
        [None, True, 3, 0.1, "text", float("inf"), (1, [2, "three"])],
        [{"samples": NestedTensor([torch.rand(1, 2), torch.rand(1, 3, 4)]), "batch_index": [0]}],
        [[[torch.rand(1, 77, 8), {"pooled_output": torch.rand(1, 8), "area": (1, 2), "tuple": {"dict": []}}]]],
    )
    ui = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}
    result, tags = from_bytes(SIGNATURE, to_bytes(SIGNATURE, NodeResult(outputs, ui), {"output/a.png": "1"}))
    assert equal(result.outputs, outputs)
    assert (result.ui, tags) == (ui, {"output/a.png": "1"})


@pytest.mark.parametrize("value", [ExecutionBlocker(), object(), {1: 2}, torch.nn.Parameter(torch.zeros(1)), b"bytes"])
def test_other_values_are_not_stored(value: object) -> None:
    with pytest.raises(UnstorableError):
        to_bytes(SIGNATURE, NodeResult(([value],)), {})


def test_damaged_and_foreign_bytes_are_no_result() -> None:
    data = to_bytes(SIGNATURE, LATENT, {})
    other = to_bytes("b" * 64, LATENT, {})
    newer = data.replace(b'"version": 1', b'"version": 2')
    for wrong in (b"", data[:-1], data.replace(b'"outputs"', b'"outsides'), other, newer):
        with pytest.raises(DamagedResultError):
            from_bytes(SIGNATURE, wrong)


async def test_a_result_is_found_after_a_restart_unless_it_is_damaged_old_or_forgotten(
    store: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = stored(store)
    first.keep(SIGNATURE, LATENT, 5.0, "")
    first.keep("b" * 64, LATENT, 5.0, "")
    assert (await settled(first, 2)).counters.bytes > 0
    second = stored(store)
    found = await second.find(SIGNATURE, "")
    assert found is not None
    assert equal(found.outputs, LATENT.outputs)
    second.forget(("b" * 64,))
    [path] = [path for path in tmp_path.rglob("*.safetensors") if SIGNATURE in path.name]
    path.write_bytes(path.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING):
        third = stored(store)
        assert [await third.find(name * 64, "") for name in "ab"] == [None, None]
    assert "damaged" in caplog.text
    assert not path.exists()


async def test_a_result_whose_file_has_changed_is_not_used_and_one_of_a_tenant_has_its_own(store: Volume) -> None:
    mine = FileRef("output", "@acme", "a.png")
    store.write(mine, b"picture")
    shown = NodeResult((), {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]})
    results = stored(store)
    results.keep(SIGNATURE, shown, 5.0, "acme")
    results.keep("b" * 64, shown, 5.0, "")
    await settled(results, 1)
    assert await stored(store).find("b" * 64, "") is None, "its file is not there"
    assert await stored(store).find(SIGNATURE, "acme") == shown
    store.write(mine, b"another")
    assert await stored(store).find(SIGNATURE, "acme") is None


async def test_what_is_quick_large_or_of_this_process_is_not_kept_and_a_full_store_does_no_harm(
    store: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = stored(store, ResultsConfig(max_bytes=8000))
    large = NodeResult(([torch.zeros(30_000_000)],))
    for signature, result, took_s in ((SIGNATURE, LATENT, 0.9), ("b" * 64, large, 5.0), ("unique-1", LATENT, 5.0)):
        results.keep(signature, result, took_s, "")
    # Each takes some 500 bytes: the oldest make room.
    for number in range(40):
        results.keep(f"{number:064x}", LATENT, 5.0, "")
        await settled(results, number + 1)
    assert sum(size for _, size, _ in store.inventory("work")) <= 8000
    assert f"{39:064x}" in NodeResultFiles(store, "code").signatures()

    def full(*arguments: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    results.keep(SIGNATURE, LATENT, 5.0, "")
    assert (await settled(results, 41)).counters.failures == 1
    assert await results.find(SIGNATURE, "") is None
