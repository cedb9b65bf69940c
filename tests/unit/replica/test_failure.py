"""Reports of nodes that raised."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import torch

from serve_app.graph.plan import Task, TaskId
from serve_app.replica.failure import CHARACTERS, LINES, failed

TASK = Task(TaskId("job", 0, 0), {}, (), {}, frozenset(), {}, {})


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("unable to mmap 18202870 bytes from file <tiny.safetensors>: Cannot allocate memory (12)"),
    ],
    ids=["python", "system", "torch", "a mapped file"],
)
def test_a_failed_allocation_of_the_process_has_an_error_of_its_own(cause: Exception) -> None:
    assert failed(TASK, "1", "Show", cause).out_of_memory


def test_a_device_without_memory_and_any_other_failure_are_the_nodes_own() -> None:
    assert not failed(TASK, "1", "Show", torch.OutOfMemoryError("CUDA out of memory")).out_of_memory
    assert not failed(TASK, "1", "Show", ValueError("Cannot allocate memory")).out_of_memory


def test_torch_says_that_it_got_no_memory_in_the_words_that_are_looked_for() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert failed(TASK, "1", "Show", raised.value).out_of_memory


ONEDNN = """
import resource, psutil, torch
torch.set_num_threads(1)
convolve = torch.nn.Conv2d(64, 64, 3)
with torch.inference_mode():
    convolve(torch.zeros(1, 64, 8, 8))
    for room in range(0, 64 << 20, 16 << 20):
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, -1))
        for size in range(9, 60):
            try:
                convolve(torch.zeros(2, 64, size, size + 3))
            except RuntimeError as error:
                print(error, flush=True)
"""


def test_onednn_says_that_it_got_no_memory_in_the_words_that_are_looked_for() -> None:
    done = subprocess.run([sys.executable, "-c", ONEDNN], capture_output=True, text=True, check=False)
    messages = {line for line in done.stdout.splitlines() if "primitive" in line}
    assert messages
    assert all(failed(TASK, "1", "Show", RuntimeError(message)).out_of_memory for message in messages)


def test_a_giant_message_of_an_exception_is_truncated() -> None:
    report = failed(TASK, "1", "Show", ValueError("a" * 10_000_000))
    assert len(report.message) == CHARACTERS
    assert sum(map(len, report.traceback)) <= LINES * CHARACTERS
    assert max(map(len, report.traceback)) <= CHARACTERS
