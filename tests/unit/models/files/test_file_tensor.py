"""Tensors in a file, views of them, and what is computed with both, are as those in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.files.file_tensor import FileTensor, OpenFile, held

AT = 16
VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t[2:5],
    lambda t: t[:, 1],
    lambda t: t.mT,
    lambda t: t[1:].mT[2:4],
    lambda t: t.reshape(2, 3, 8),
    lambda t: t.flatten()[3:],
    lambda t: t.view(torch.uint8)[:, 4:9],
    lambda t: torch.split(t, 4)[1],
    lambda t: t[0, 0],
    lambda t: t[:0],
]
COMPUTED: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.double(),
    lambda t: t.to(torch.device("cpu"), torch.float16),
    lambda t: t.mT.contiguous(),
    lambda t: t @ t.mT,
    lambda t: torch.empty(48).view(6, 8).copy_(t),
    lambda t: torch.empty(6, 8, dtype=torch.float16).copy_(t),
    lambda t: torch.cat([t, t[:1]]),
    lambda t: t[torch.tensor([3, 1])],
]


@pytest.fixture(autouse=True, params=[False, True])
def inference(request: pytest.FixtureRequest) -> Iterator[None]:
    """As loading and running do, in either mode."""
    with torch.inference_mode(request.param):
        yield


@pytest.fixture
def numbers() -> Tensor:
    return torch.randn(6, 8)


@pytest.fixture
def path(tmp_path: Path, numbers: Tensor) -> Path:
    (path := tmp_path / "model").write_bytes(bytes(AT) + numbers.numpy().tobytes() + bytes(AT))
    return path


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_of_the_file_too(path: Path, numbers: Tensor, view: Callable[[Tensor], Tensor]) -> None:
    made = view(OpenFile(path).tensor(AT, (6, 8), torch.float32))
    assert isinstance(made, FileTensor)
    assert made.shape == view(numbers).shape
    assert torch.equal(held(made), view(numbers))


def test_a_file_opened_outside_of_inference_mode_is_viewed_inside(path: Path, numbers: Tensor) -> None:
    with torch.inference_mode(False):
        tensor = OpenFile(path).tensor(AT, (6, 8), torch.float32)
    assert torch.equal(held(tensor[:, 2:].mT), numbers[:, 2:].mT)


@pytest.mark.parametrize("compute", COMPUTED)
def test_what_is_computed_is_in_memory(
    path: Path, numbers: Tensor, compute: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.models.files.file_tensor.PIECE", 5)
    made = compute(OpenFile(path).tensor(AT, (6, 8), torch.float32))
    assert type(made) is Tensor
    assert torch.equal(made, compute(numbers))


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 100), lambda path: path.write_bytes(bytes(224))])
def test_a_file_that_is_no_longer_as_it_was_opened_is_an_error(path: Path, change: Callable[[Path], object]) -> None:
    os.utime(path, ns=(0, 0))
    tensor = OpenFile(path).tensor(AT, (6, 8), torch.float32)
    change(path)
    with pytest.raises(ModelFileError, match="'model' was changed while it was read"):
        held(tensor)


def test_a_file_that_another_took_the_place_of_is_read_to_its_end(path: Path, numbers: Tensor) -> None:
    tensor = OpenFile(path).tensor(AT, (6, 8), torch.float32)
    path.with_name("new").write_bytes(b"")
    path.with_name("new").rename(path)
    assert torch.equal(held(tensor), numbers)


def test_a_module_of_such_tensors_is_copied_and_changes_its_dtype(path: Path, numbers: Tensor) -> None:
    module = torch.nn.Linear(8, 6, bias=False, device="meta")
    module.load_state_dict({"weight": OpenFile(path).tensor(AT, (6, 8), torch.float32)}, assign=True)
    copied = copy.deepcopy(module)
    for one in (module, copied):
        assert isinstance(one.weight, FileTensor)
        assert type(one.half().weight) is torch.nn.Parameter
        assert torch.equal(one.weight, numbers.half())
