"""An honest card: tensors that claim to be on a GPU, for machines without one.

Their numbers are those of CPU tensors, so results are to the bit those of a CPU. What a GPU would not do is not done:
an operation on tensors of the card and of the CPU raises, and so does one that nothing keeps from coming too early: on
what another stream makes without waiting for that, or in the host on what a copy has not brought yet (`card_order`).
What it would cost is counted: kernels, copies between card and host, and what makes the host wait for the card. What
the threads ask for that draw noise ahead is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from sys import _getframe
from threading import Lock, current_thread, local
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.engine.card_driver import Driver, Memories, name_of
from tests.unit.engine.card_kernels import FREE, READS, kernel_of, operation
from tests.unit.engine.card_order import Memory, Order, Place, record

CARD = torch.device("cuda", 0)
Work: TypeAlias = Callable[[], Any]
"""Does an operation on the numbers of tensors."""
_UNNUMBERED = torch.device("cuda")
_CPU = torch.device("cpu")
_META = torch.device("meta")
"""What torch's own code takes the card's tensors to be on, which needs no CUDA."""


class MixedDevicesError(AssertionError):
    """An operation was given tensors of the card and of the CPU."""


class OnCard(Tensor):
    """A tensor that claims to be on the card. held: its numbers, on the CPU. memory: None: it has always been there."""

    held: Tensor
    memory: Memory | None

    @staticmethod
    def __new__(cls: type[OnCard], held: Tensor) -> OnCard:
        # In inference mode too, a view of a tensor that was made outside is none of inference.
        with torch.inference_mode(held.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                held.stride(),
                held.storage_offset(),
                dtype=held.dtype,
                device=_META,
                requires_grad=False,
            )
        made.held, made.memory = held, None
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, made: Tensor) -> None:
        assert isinstance(made, OnCard), made
        # Torch would assign the claim alone.
        self.held, self.memory = made.held, made.memory

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def record_stream(self, stream: Any) -> None:
        """Record a driver's stream, which torch's own binding does not know."""
        record(self, name_of(stream.stream_id))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} was asked of the card outside of `Card.used`")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCard({tuple(self.shape)}, {self.dtype})"


@dataclass
class Counts:
    """What was asked of the card. kernels: around networks; inside: in them. copies: told to wait for none.

    blocking: copies that make the host wait, by direction; waits: other reads of the card by the host. where: of both,
    the line of this project that asks for it. trapped: copies and waits within a network: those that wait keep it from
    being captured as a graph, and of others a graph would bring again whatever is in their place by then.
    """

    kernels: int = 0
    inside: int = 0
    copies: int = 0
    to_card: int = 0
    to_host: int = 0
    waits: int = 0
    trapped: int = 0
    where: Counter[str] = field(default_factory=Counter)

    def since(self, earlier: Counts) -> Counts:
        """Return what came after."""
        names = ("kernels", "inside", "copies", "to_card", "to_host", "waits", "trapped")
        return Counts(**{n: getattr(self, n) - getattr(earlier, n) for n in names}, where=self.where - earlier.where)

    def copy(self) -> Counts:
        return Counts(**{**vars(self), "where": Counter(self.where)})

    @property
    def stalls(self) -> int:
        """What makes the host wait, of any kind."""
        return self.to_card + self.to_host + self.waits


class _Within(local):
    """What a thread is in: so many networks, so many operations that it takes apart."""

    networks = 0
    taken_apart = 0


class Card(TorchDispatchMode):
    """The card, as a thread has it that is inside `used`.

    counts: of all threads but those that draw noise, drawing: of these. driver: what `Driver` takes, for one that
    torch's own Python reaches; without any, what production asks torch.cuda for is replaced.
    """

    def __init__(self, **driver: Any) -> None:
        super().__init__()
        self.counts = Counts()
        self.drawing = Counts()
        self.order = Order()
        self.driver = Driver(self.order, **driver) if driver else None
        self._within = _Within()
        self._lock = Lock()

    @contextmanager
    def used(self) -> Iterator[Card]:
        """Let this thread use the card."""
        with _READY if self.driver is None else nullcontext(), _Bindings(self), self:
            yield self

    def place(self, held: Tensor) -> OnCard:
        """Return a tensor as if it had always been on the card."""
        return OnCard(held.detach())

    def settle(self, network: nn.Module) -> nn.Module:
        """Put a network's tensors on the card."""
        for module in network.modules():
            for members in (module._parameters, module._buffers):
                for name, tensor in members.items():
                    if tensor is not None and not isinstance(tensor, OnCard):
                        placed: Any = self.place(tensor)
                        members[name] = (
                            nn.Parameter(placed, requires_grad=False) if members is module._parameters else placed
                        )
        return network

    def watch(self, network: nn.Module) -> None:
        """Count apart what is done inside a network."""
        network.register_forward_pre_hook(self._enters)
        network.register_forward_hook(self._leaves, always_call=True)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count apart what is done meanwhile, as if in a network."""
        self._enters()
        try:
            yield
        finally:
            self._leaves()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Have torch's own code take an operation apart, whose tensors it takes to be on `_META`."""
        self._within.taken_apart += 1
        try:
            yield
        finally:
            self._within.taken_apart -= 1

    @property
    def _counted(self) -> Counts:
        """Those that this thread's asking is counted in."""
        return self.drawing if current_thread().name.startswith("noise") else self.counts

    def _enters(self, *_: Any) -> None:
        self._within.networks += 1

    def _leaves(self, *_: Any) -> None:
        self._within.networks -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = _leaves(args)
        if kwargs:
            leaves += _leaves(tuple(kwargs.values()))
        mine = [leaf for leaf in leaves if isinstance(leaf, OnCard)]
        name, decomposes = operation(func)
        device = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        to_card = device is not None and self._is_card(device)
        if name in ("pin_memory", "_pin_memory"):
            return args[0] if _is_pinned(args[0]) else _pinned(args[0].clone())
        if name == "is_pinned":
            return _is_pinned(args[0])
        if not mine and not to_card:
            if kwargs.pop("pin_memory", False):
                return _pinned(func(*args, **kwargs))
            self._arrived(name, func, leaves)
            return func(*args, **kwargs)
        if decomposes:
            with self.apart(), self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if name in ("_to_copy", "copy_", "to"):
            return self._copied(func, name, args, kwargs, device)
        self._check(name, leaves)
        self._count(name, func)
        if to_card:
            kwargs["device"] = _CPU
        wrappers = {id(leaf.held): leaf for leaf in mine}
        kernel = kernel_of(name, func)
        work = partial(kernel, *_mapped(args, _held), **{key: _mapped(value, _held) for key, value in kwargs.items()})
        wrapped = _mapped(work(), lambda leaf: _wrapped(leaf, wrappers))
        self._place(name, func, mine, wrapped, work)
        return wrapped

    def _place(self, name: str, func: Any, given: Sequence[OnCard], made: Any, work: Work | None = None) -> None:
        """Note which memory an operation has read and written."""
        memories = {leaf.held.untyped_storage()._cdata: leaf.memory for leaf in given}
        results = [leaf for leaf in _leaves(made) if isinstance(leaf, OnCard)]
        for leaf in results:
            storage = leaf.held.untyped_storage()._cdata
            leaf.memory = memories[storage] if storage in memories else self._allocated(leaf.held)
        if not func.is_view and name not in FREE:
            written = [leaf.memory for leaf in results if leaf.memory is not None]
            read = [leaf.memory for leaf in given if leaf.memory is not None]
            self.order.asked(name, read, written)
            if work is not None:
                places = [None if leaf.held.untyped_storage()._cdata in memories else leaf.held for leaf in results]
                self._captured(work, places, read, written)

    def _captured(self, work: Work, places: Sequence[Tensor | None], read: Memories, written: Memories) -> None:
        """Have a capture take an operation in, if this thread's stream captures. work, places: as `Capture.add`."""
        if self.driver is not None and (capture := self.driver.capture) is not None:
            capture.add(lambda: [leaf for leaf in _leaves(work()) if isinstance(leaf, Tensor)], places, read, written)

    def _allocated(self, held: Tensor) -> Memory:
        """Return memory for numbers. Errors: torch.OutOfMemoryError."""
        memory = self.order.allocated()
        if self.driver is not None:
            self.driver.allocate(memory, held.untyped_storage().nbytes())
        return memory

    def _arrived(self, name: str, func: Any, leaves: Sequence[Any]) -> None:
        """See that the host reads nothing that a copy has yet to bring."""
        if not func.is_view and name not in FREE:
            for leaf in leaves:
                # Weights in a layout of a CPU's own have no storage, and no copy brings them.
                on_host = isinstance(leaf, Tensor) and not isinstance(leaf, OnCard) and not leaf.is_mkldnn
                place = getattr(leaf.untyped_storage(), "arrives", None) if on_host else None
                if place is not None:
                    self.order.arrived(name, place)

    def _is_card(self, device: Any) -> bool:
        kind = torch.device(device).type
        return kind == CARD.type or (kind == _META.type and self._within.taken_apart > 0)

    def _check(self, name: str, leaves: Sequence[Any]) -> None:
        # A CPU tensor of no dimension counts as a number, but nothing else of the CPU does.
        for leaf in leaves:
            if isinstance(leaf, Tensor) and not isinstance(leaf, OnCard) and leaf.ndim:
                if name in ("index", "index_put_", "index_put", "_index_put_impl_"):
                    self._stall("to_card")
                    continue
                raise MixedDevicesError(f"{name} was given {tuple(leaf.shape)} of the CPU beside tensors of the card")

    def _count(self, name: str, func: Any) -> None:
        if name in READS:
            self._stall("waits")
        elif not func.is_view and name not in FREE:
            with self._lock:
                if self._within.networks:
                    self._counted.inside += 1
                else:
                    self._counted.kernels += 1

    def _stall(self, kind: str) -> None:
        if self.driver is not None:
            self.driver.refuse_wait()
        with self._lock:
            counts = self._counted
            setattr(counts, kind, getattr(counts, kind) + 1)
            counts.trapped += self._within.networks > 0
            counts.where[_line()] += 1

    def _copied(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], device: Any) -> Any:
        target, source = args[:2] if name == "copy_" else (None, args[0])
        comes = isinstance(source, OnCard)
        goes = (
            isinstance(target, OnCard) if target is not None else (comes if device is None else self._is_card(device))
        )
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        host = source if not comes else target
        if comes != goes:
            # From or to memory that is not pinned the host waits, whatever was asked for.
            if waits or (host is not None and not _is_pinned(host)):
                self._stall("to_host" if comes else "to_card")
            else:
                with self._lock:
                    self._counted.copies += 1
                    self._counted.trapped += self._within.networks > 0
        elif comes:
            self._count(name, func)
        if not comes and (waits or not _is_pinned(source)):
            self._arrived(name, func, [source])
        read = [source.memory] if comes and source.memory is not None else []
        if target is not None:
            _held(target).copy_(_held(source))
            written = [target.memory] if goes and target.memory is not None else []
            place = self.order.asked(name, read, written)
            self._captured(lambda: _held(target).copy_(_held(source)), [None], read, written)
            return target if goes else _brought(target, place, waits)
        changed = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
        made = torch.ops.aten._to_copy.default(_held(source), **changed)
        if not goes:
            return _brought(made, self.order.asked(name, read, []), waits)
        card = OnCard(made)
        card.memory = self._allocated(made)
        self.order.asked(name, read, [card.memory])
        self._captured(lambda: torch.ops.aten._to_copy.default(_held(source), **changed), [made], read, [card.memory])
        return card


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value]
    found: list[Any] = []
    for one in value:
        if isinstance(one, (list, tuple)):
            found += _leaves(one)
        else:
            found.append(one)
    return found


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(one, change) for one in value])
    return change(value)


def _numbered(value: Any) -> Any:
    return CARD if isinstance(value, torch.device) and value == _UNNUMBERED else value


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnCard) else value


def _wrapped(value: Any, wrappers: Mapping[int, OnCard]) -> Any:
    """Return what an operation gave as of the card. wrappers: what it was given, for what it changed in place."""
    if not isinstance(value, Tensor):
        return value
    known = wrappers.get(id(value))
    return OnCard(value) if known is None else known


class _Ready:
    """While any thread is inside, torch takes CUDA for started: it looks for it before it makes a tensor on a GPU."""

    def __init__(self) -> None:
        self._inside = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            torch.cuda._initialized = True
            # Without a driver there is no cache to empty.
            vars(torch._C).setdefault("_cuda_emptyCache", lambda: None)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            torch.cuda._initialized = self._inside > 0


_READY = _Ready()


_APART = (rms_norm, torch.rms_norm, torch.where)


class _Bindings(TorchFunctionMode):
    """What torch's bindings do for a GPU before any dispatch, which needs CUDA to be there."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Torch's bindings would ask below its Python which device is in use.
        args = tuple([_numbered(value) for value in args])
        kwargs = {key: _numbered(value) for key, value in kwargs.items()} if kwargs else {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == CARD.type:
            made = torch.tensor(*args, **{**kwargs, "device": _CPU})
            return made.to(CARD)
        if func is Tensor.type_as and isinstance(args[1], OnCard):
            if isinstance(args[0], OnCard) and args[0].dtype == args[1].dtype:
                return args[0]
            # Torch would take it to where it takes the card's tensors to be.
            return args[0].to(CARD, args[1].dtype)
        pair = args[:2] if func is Tensor.to and len(args) > 1 else ()
        if pair and all(isinstance(one, Tensor) for one in pair) and any(isinstance(one, OnCard) for one in pair):
            # As for `type_as`.
            device = CARD if isinstance(args[1], OnCard) else args[1].device
            return args[0].to(device, args[1].dtype, *args[2:], **kwargs)
        if func is Tensor.tolist and isinstance(args[0], OnCard):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCard):
            # The tensor of a list's numbers would be made where torch's own code takes the card's to be.
            places = tuple(map(_listed, args[1])) if isinstance(args[1], tuple) else _listed(args[1])
            args = (args[0], places, *args[2:])
        if func is Tensor.__setitem__ and isinstance(args[0], OnCard) and not isinstance(args[2], Tensor):
            # The number would be made where torch's own code takes the tensor to be.
            args = (*args[:2], OnCard(torch.tensor(args[2], dtype=args[0].dtype)))
        apart = func in _APART and any(isinstance(value, OnCard) for value in args)
        if apart or func is scaled_dot_product_attention:
            # Outside of inference mode torch's own code makes tensors where it takes the card's to be.
            with self._card.apart():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _listed(index: Any) -> Any:
    """Return an index as torch takes it: a list is a tensor of the CPU, which a card is sent."""
    return torch.tensor(index) if isinstance(index, list) else index


def _pinned(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned_here = True  # type: ignore[attr-defined]
    return tensor


def _brought(tensor: Tensor, place: Place, waited: bool) -> Tensor:
    """Return what a copy brings to the host. place: of the copy; waited: the host waits for it."""
    tensor.untyped_storage().arrives = None if waited else place  # type: ignore[attr-defined]
    return _pinned(tensor)


def _is_pinned(tensor: Tensor) -> bool:
    return not isinstance(tensor, OnCard) and bool(getattr(tensor.untyped_storage(), "pinned_here", False))


def _line() -> str:
    """Return where in the project the latest call comes from."""
    frame: FrameType | None = _getframe(1)
    while frame is not None:
        if "/serve_app/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('/serve_app/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
