"""What an engine does once its device is lost, and which errors say so."""

from __future__ import annotations

import pytest
import torch

from serve_app.engine.device_lost import is_lost
from serve_app.engine.engine import Engine
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, UnavailableError
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import together

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
BLAS = "CUDA error: CUBLAS_STATUS_{} when calling `cublasGemmEx(handle, opa, opb, m, n, k)`"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError(ILLEGAL), True),
        (RuntimeError(ILLEGAL), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError(ILLEGAL), False),
        (RuntimeError(BLAS.format("EXECUTION_FAILED")), True),
        (RuntimeError(BLAS.format("NOT_SUPPORTED")), False),
        (RuntimeError(BLAS.format("ALLOC_FAILED")), False),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), False),
    ],
)
def test_only_errors_of_the_device_itself_mean_that_it_is_lost(error, lost):
    assert is_lost(error) == lost


@pytest.mark.parametrize("where", ["start", "answer", "feed", "call", "gather"])
def test_an_engine_whose_device_is_lost_closes_and_answers_nothing_more(where):
    engine = Engine(MAX_CELLS, HostTimeline())

    def fail(*given):
        raise RuntimeError(ILLEGAL)

    backbone = TinyBackbone()
    struck, other = Trajectory(backbone, request()), Trajectory(TinyBackbone("other"), request(steps=10**6))
    beside = engine.submit(other)
    if where in ("start", "feed"):
        setattr(struck, where, fail)
    elif where == "answer":
        backbone.answer = fail  # type: ignore[method-assign]
    calls = {"call": lambda: [engine.call(fail)], "gather": lambda: [engine.gather(1, fail, "key", most=2)]}
    futures = [beside, *calls.get(where, lambda: [engine.submit(struck)])()]
    for future in futures:
        with pytest.raises(UnavailableError):
            future.result(30)
        assert not engine.alive, "whoever hears of it finds the engine closed"
    with pytest.raises(UnavailableError):
        engine.call(lambda: None)
    engine.close()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError(BLAS.format("ALLOC_FAILED")),
    ],
)
def test_a_device_that_is_out_of_memory_is_not_lost(error):
    engine = Engine(MAX_CELLS, HostTimeline())

    def fail(*given):
        raise error

    backbone = TinyBackbone()
    backbone.answer = fail  # type: ignore[method-assign]
    struck = Trajectory(backbone, request())
    [failed, done] = together(engine, [struck, Trajectory(TinyBackbone("other"), request())])
    assert isinstance(failed.exception(), DeviceMemoryError)
    assert done.exception() is None
    assert engine.alive
    engine.close()
