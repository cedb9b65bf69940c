"""Lazily read tensors: their numbers stay in the file until an operation needs them.

So opening a network takes no memory. Mapping a file is avoided: when someone truncates it, even much later, access ends
the process by SIGBUS. Reading raises an error in the caller instead. Source: PyTorch's "Extending PyTorch", wrapper
subclasses; mmap(2).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.nn import Parameter

from serve_app.errors import ModelFileError

PIECE = 1 << 21
"""Numbers read at once when converting dtypes: they fit a processor's cache."""


_NOTE_READ: ContextVar[Callable[[int], object] | None] = ContextVar("note_read", default=None)


@contextmanager
def noting_reads(note: Callable[[int], object]) -> Iterator[None]:
    """Inside the context call `note` with the number of bytes of each read of this thread."""
    token = _NOTE_READ.set(note)
    try:
        yield
    finally:
        _NOTE_READ.reset(token)


class OpenFile:
    """A file that stays open while any of its tensors is in use. where: its name in errors. Errors: ModelFileError."""

    def __init__(self, path: Path) -> None:
        self.where = f"'{path.name}'"
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ModelFileError(f"{self.where} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._look()
        self.nbytes = self._state[0]

    def from_start(self) -> BinaryIO:
        """Return a sequential reader from the first byte on, for one user at a time."""
        file = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115
        file.seek(0)
        return file

    def fill(self, memory: Tensor, at: int) -> None:
        """Fill contiguous memory from an offset.

        Errors: ModelFileError where the file is too short or was replaced.
        """
        left = memory.reshape(-1).view(torch.uint8).numpy().data
        while left:
            if not (count := os.preadv(self._descriptor, [left], at)):
                break
            left, at = left[count:], at + count
            if (note := _NOTE_READ.get()) is not None:
                note(count)
        if left or self._look() != self._state:
            size = os.fstat(self._descriptor).st_size
            raise ModelFileError(
                f"{self.where} was changed while it was read: it had {self.nbytes:,} bytes and has {size:,}; put files "
                "in place whole, by renaming them, and submit the job again"
            )

    def tensor(self, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> FileTensor:
        """Return the tensor at an offset."""
        return FileTensor(self, at, torch.empty(shape, dtype=dtype, device="meta"))

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns


class FileTensor(Tensor):
    """A CPU tensor, or a view of one, whose numbers are in a file. layout: shape and strides, without numbers.

    Views are FileTensors too; any other operation reads it first.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[FileTensor], file: OpenFile, at: int, layout: Tensor) -> FileTensor:
        made: FileTensor = torch.Tensor._make_wrapper_subclass(
            cls, layout.shape, strides=layout.stride(), dtype=layout.dtype, device=torch.device("cpu")
        )
        return made

    def __init__(self, file: OpenFile, at: int, layout: Tensor) -> None:
        self._file, self._at, self._layout = file, at, layout

    @property
    def data(self) -> Tensor:
        """As torch's. An assigned tensor replaces this one everywhere, as in a module whose dtype is changed."""
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, made: Tensor) -> None:
        # Torch would replace the storage behind this object and keep its class, which reads the file.
        swapped = _as_parameter(made) if isinstance(self, Parameter) else made
        torch.utils.swap_tensors(self, swapped)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return another tensor for the same range of the file."""
        made = FileTensor(self._file, self._at, self._layout)
        return _as_parameter(made) if isinstance(self, Parameter) else made

    def read(self) -> Tensor:
        """Return it as a tensor in memory. Errors: ModelFileError."""
        layout = self._layout
        last = sum((size - 1) * stride for size, stride in zip(layout.shape, layout.stride(), strict=True))
        memory = torch.empty(last + 1 if layout.numel() else 0, dtype=layout.dtype)
        self._file.fill(memory, self._begin)
        return memory.as_strided(layout.shape, layout.stride())

    def read_as(self, dtype: torch.dtype) -> Tensor:
        """Return it in memory in another dtype. Errors: ModelFileError."""
        if not self._layout.is_contiguous():
            return self.read().to(dtype)
        made = torch.empty(self.shape, dtype=dtype)
        piece = torch.empty(min(PIECE, self.numel()), dtype=self.dtype)
        at = self._begin
        for target in torch.split(made.view(-1), PIECE):
            source = piece[: len(target)]
            self._file.fill(source, at)
            target.copy_(source)
            at += source.nbytes
        return made

    def read_into(self, memory: Tensor) -> None:
        """Read it into a contiguous tensor of the same size. Errors: ModelFileError."""
        self._file.fill(memory, self._begin)

    @property
    def _begin(self) -> int:
        return self._at + int(self._layout.storage_offset()) * self._layout.dtype.itemsize

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operations arrive, such as `to`, which may or may not be a view.
        if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
            return made
        if _is_view(func):
            [whole] = [argument for argument in args if isinstance(argument, FileTensor)]
            made = func(*(_each(_layout, argument) for argument in args), **kwargs)
            # In inference mode too, torch allows a version-counting view of a version-counting tensor.
            with torch.inference_mode(whole.is_inference()):
                return _each(lambda view: FileTensor(whole._file, whole._at, view), made)
        if func is torch.ops.aten.copy_.default and _copies_plainly(args[0], args[1]):
            args[1].read_into(args[0])
            return args[0]
        if func is torch.ops.aten._to_copy.default and _changes_dtype_alone(kwargs):
            return args[0].read_as(kwargs["dtype"])
        return func(*(_each(held, one) for one in args), **{name: _each(held, one) for name, one in kwargs.items()})


def _as_parameter(tensor: Tensor) -> Tensor:
    return Parameter(tensor, requires_grad=False)


def held(value: Any) -> Any:
    """Return a file tensor read into memory, anything else unchanged. Errors: ModelFileError."""
    return value.read() if isinstance(value, FileTensor) else value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to an operation's argument or result: one value, or each of several."""
    return [change(one) for one in value] if isinstance(value, list | tuple) else change(value)


def _layout(value: Any) -> Any:
    return value._layout if isinstance(value, FileTensor) else value


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _changes_dtype_alone(asked: dict[str, Any]) -> bool:
    """Whether `Tensor.to` only changes the dtype, in plain CPU memory."""
    device, others = asked.get("device"), ("layout", "pin_memory", "memory_format")
    on_cpu = device is None or torch.device(device).type == "cpu"
    return asked.get("dtype") is not None and on_cpu and not any(asked.get(name) for name in others)


def _copies_plainly(target: Any, source: Any) -> bool:
    alike = isinstance(source, FileTensor) and not isinstance(target, FileTensor) and target.device.type == "cpu"
    return alike and (
        (target.shape, target.dtype) == (source.shape, source.dtype)
        and target.is_contiguous()
        and source._layout.is_contiguous()
    )
