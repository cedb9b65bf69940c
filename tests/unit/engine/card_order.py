"""In which order an honest card does what it is asked for: streams, what waits for what, whose memory is used again.

What one stream is asked for is done in order. Between two nothing is ordered but by a wait, so what uses memory that
another stream writes, or writes what another reads, has to wait for it; and memory goes back to the stream that it was
allocated by, which may use it again at once, unless the other's use was recorded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import RLock, local
from time import perf_counter
from typing import NamedTuple

from serve_app.engine.timeline import Mark

FORWARDS, SIDE = "forwards", "side"
"""The streams of an engine."""
COPIES = "copies"
"""That of weights."""
DRAWS = "draws"
"""That of noise."""


class UnorderedError(AssertionError):
    """Something was asked for that may be done too early."""


class Place(NamedTuple):
    """What a stream was asked for as its nth."""

    stream: str
    number: int


@dataclass(eq=False)
class Memory:
    """Of tensors of the card. home: the stream that allocated it. used: by stream, what last read or wrote it.

    freed: told of it as it goes. nbytes, pool: what it takes of a driver's memory, and of which pool of graphs.
    """

    home: str
    freed: Callable[[Memory], None]
    written: Place | None = None
    used: dict[str, int] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)
    nbytes: int = 0
    pool: tuple[int, int] | None = None

    def __del__(self) -> None:
        self.freed(self)


class Order:
    """What the card has been asked for. early: memory that was given back while another stream was to use it.

    default: the stream of threads that have chosen none.
    """

    def __init__(self) -> None:
        self.early: list[str] = []
        self.default = FORWARDS
        self._looked: set[Place] = set()
        self._asked: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        # By stream: up to which number of each other it waits.
        self._awaits: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._thread = local()
        self._lock = RLock()

    @property
    def stream(self) -> str:
        """The stream that this thread asks."""
        return getattr(self._thread, "stream", self.default)

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        """Have this thread ask a stream."""
        earlier, self._thread.stream = self.stream, stream
        try:
            yield
        finally:
            self._thread.stream = earlier

    def ask_from_now_on(self, stream: str) -> None:
        """Have this thread ask a stream."""
        self._thread.stream = stream

    def follow(self, place: Place) -> None:
        """Have the stream that is asked wait for a place, and for all that the place's stream waits for by now."""
        with self._lock:
            for other, number in (*self._awaits[place.stream].items(), place):
                awaits = self._awaits[self.stream]
                awaits[other] = max(awaits[other], number)

    def allocated(self) -> Memory:
        """Return memory of the stream that is asked."""
        return Memory(self.stream, self._freed)

    def asked(self, name: str, read: Sequence[Memory], written: Sequence[Memory]) -> Place:
        """Take in that the stream is asked to read and write memory. Errors: UnorderedError where it may be early."""
        with self._lock:
            stream = self.stream
            self._asked[stream] += 1
            place = Place(stream, self._asked[stream])
            for memory in read:
                if memory.written is not None:
                    self._follows(name, memory.written)
            for memory in written:
                for other, number in memory.used.items():
                    self._follows(name, Place(other, number))
                memory.written = place
            for memory in (*read, *written):
                memory.used[stream] = place.number
            return place

    def arrived(self, name: str, place: Place) -> None:
        """Errors: UnorderedError where the host has not waited for a place."""
        if self._done[place.stream] < place.number:
            raise UnorderedError(f"{name} reads in the host what {place} has yet to bring")

    def awaited(self, stream: str, other: str) -> int:
        """Return how many of what another stream was asked for a stream waits for."""
        return self._awaits[stream][other]

    def place(self, stream: str) -> Place:
        """Return the last that a stream was asked for."""
        return Place(stream, self._asked[stream])

    def wait(self, place: Place) -> None:
        """Have the host wait for a place."""
        with self._lock:
            self._done[place.stream] = max(self._done[place.stream], place.number)

    def done(self, place: Place) -> bool:
        """Whether the host knows that a place is done."""
        return self._done[place.stream] >= place.number

    def seen(self, place: Place) -> bool:
        """Whether a place is done when the host looks, which it is at its second look; that is as good as a wait."""
        if self.done(place):
            return True
        if place not in self._looked:
            self._looked.add(place)
            return False
        self._looked.discard(place)
        self.wait(place)
        return True

    def wait_for_all(self) -> None:
        """Have the host wait for all streams."""
        for stream in [*self._asked]:
            self.wait(self.place(stream))

    def _follows(self, name: str, place: Place) -> None:
        if not self._is_ordered(self.stream, place):
            raise UnorderedError(f"{name} of stream {self.stream} does not wait for {place}")

    def _is_ordered(self, stream: str, place: Place) -> bool:
        other, number = place
        return other == stream or self._awaits[stream][other] >= number or self._done[other] >= number

    def _freed(self, memory: Memory) -> None:
        with self._lock:
            for stream, number in memory.used.items():
                if stream not in memory.recorded and not self._is_ordered(memory.home, Place(stream, number)):
                    self.early.append(f"{memory.home} may use again what {stream} uses")


def record(tensor: object, stream: str) -> None:
    """Record that a stream uses a tensor, so that its memory does not go back before that is done."""
    memory = getattr(tensor, "memory", None)
    if isinstance(memory, Memory):
        memory.recorded.add(stream)


class CardTimeline:
    """An honest card's stream, as the engine uses it. `side_stream` has a lower priority."""

    at_once = False

    def __init__(self, order: Order, stream: str = FORWARDS) -> None:
        self.order, self.stream = order, stream
        self.side_stream = CardTimeline(order, SIDE) if stream == FORWARDS else None

    @contextmanager
    def enqueueing(self) -> Iterator[None]:
        """Enqueue this thread's work on it; a side stream first waits for the main one."""
        with self.order.on(self.stream):
            if self.stream == SIDE:
                self.order.follow(self.order.place(FORWARDS))
            yield

    def keep(self, tensor: object) -> None:
        """Record that it uses a tensor."""
        record(tensor, self.stream)

    def mark(self) -> Mark:
        """Return a mark behind all that it was asked for by now."""
        return CardMark(self.order, self.order.place(self.stream), perf_counter())


class CardCopies:
    """An honest card's stream of weights, each with a name of its own."""

    def __init__(self, order: Order, stream: str = COPIES) -> None:
        self._order = order
        self._stream = stream

    def follow(self) -> None:
        """Have it wait for the stream that this thread asks."""
        asked = self._order.place(self._order.stream)
        with self._order.on(self._stream):
            self._order.follow(asked)

    def lead(self) -> None:
        """Have that wait for it."""
        self._order.follow(self._order.place(self._stream))

    def keep(self, tensor: object) -> None:
        """Record that it uses a tensor."""
        record(tensor, self._stream)

    def enqueueing(self) -> AbstractContextManager[None]:
        """Have this thread ask it."""
        return self._order.on(self._stream)

    def mark(self) -> Callable[[], object]:
        """Return what has the host wait for all it was asked for by now."""
        place = self._order.place(self._stream)
        return lambda: self._order.wait(place)


def copies_of(order: Order) -> Callable[[], CardCopies]:
    """Return what makes streams of weights of an honest card."""
    numbers = count(1)
    return lambda: CardCopies(order, f"{COPIES} {next(numbers)}")


@dataclass(frozen=True)
class CardMark:
    """A mark, done once the host has waited for it: nothing else tells it of a card without a clock."""

    order: Order
    place: Place
    enqueued_s: float

    def done(self) -> bool:
        return self.order.done(self.place)

    def wait(self) -> None:
        self.order.wait(self.place)

    def since(self, earlier: Mark) -> float:
        return self.enqueued_s - earlier.enqueued_s
