"""The models of one replica: created once, prefetched for coming jobs, and reported to the scheduler.

Knows no task; `runner.py` runs those.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from serve_app import log
from serve_app.errors import ServeAppError, UnavailableError
from serve_app.execution.runtime import Runtime
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.warm import warm_recipes
from serve_app.recipe.weights import Lora
from serve_app.scheduler.core.model_files import files_in
from serve_app.scheduler.protocol.messages import Report, ResidentWeights
from serve_app.values import PreviewMethod

if TYPE_CHECKING:
    from serve_app.engine.autoencoding import Autoencoding
    from serve_app.engine.forwards import Counters
    from serve_app.engine.loads import PrefetchCounters
    from serve_app.engine.run_state import RunStateCounters, StateFiles
    from serve_app.models.forward import ReplayCounters
    from serve_app.models.weights.weights import LoadCounters

_log = log.get("replica")


class Models(Protocol):
    """The interface of `engine.runtime` for a replica: a RUNTIME bound to one node, resident models, and counters."""

    @property
    def alive(self) -> bool: ...

    @property
    def turns(self) -> tuple[int, ...]: ...

    @property
    def unwanted_turn(self) -> int: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def replays(self) -> ReplayCounters: ...

    @property
    def loads(self) -> LoadCounters: ...

    @property
    def autoencoding(self) -> Autoencoding: ...

    def bind(
        self,
        progress: Callable[[int, int], None],
        *,
        strict: bool = False,
        show: Callable[[Any], None] | None = None,
        previews: PreviewMethod = "none",
        remark: Callable[[str], None] = ...,
        loading: Callable[[], contextlib.AbstractContextManager[None]] = ...,
        states: Callable[[], StateFiles] | None = None,
    ) -> Runtime: ...

    @property
    def run_states(self) -> RunStateCounters: ...

    async def hand_over(self, stop: Callable[[], object]) -> None: ...

    def resident(self) -> tuple[str, ...]: ...

    def load_times(self) -> tuple[tuple[str, float], ...]: ...

    @property
    def load_under_way(self) -> object | None: ...

    async def release(self) -> None: ...

    async def warm(self, recipes: Sequence[Recipe]) -> None: ...

    @property
    def prefetched(self) -> PrefetchCounters: ...

    async def prefetch(self, recipe: Recipe, spared: Callable[[str], bool]) -> bool: ...


class ReplicaModels:
    """One replica's models, if it has any.

    make: creates them, in a thread, since it takes seconds; None for a worker, which has none. fetch: (folder, name) ->
    copies a model file to this host. send: takes reports to the scheduler.
    """

    def __init__(
        self, make: Callable[[], Models] | None, fetch: Callable[[str, str], None], send: Callable[[Report], None]
    ) -> None:
        self.made: Models | None = None
        self._make = make
        self._making: asyncio.Task[None] | None = None
        self._fetch = fetch
        self._send = send
        self._resident: tuple[str, ...] = ()

    def joined(self) -> None:
        """Report them to a scheduler that this replica has joined, and begin to create them if that has not begun."""
        self._resident = ()
        self.report()
        if self._making is None and self._make is not None:
            self._making = asyncio.create_task(self._begin(self._make))

    async def _begin(self, make: Callable[[], Models]) -> None:
        self.made = await asyncio.to_thread(make)

    async def wait(self) -> None:
        """Wait until they are created, if there are any. Errors: those of creating them."""
        if self._making is not None:
            await asyncio.shield(self._making)

    @property
    def ended(self) -> bool:
        """Whether they were created and have since stopped."""
        return self.made is not None and not self.made.alive

    def check_health(self) -> None:
        """Raise if they could not be created, or have stopped."""
        if self._making is not None and self._making.done():
            self._making.result()
        if self.ended:
            raise UnavailableError("the engine has ended; what runs here goes to another replica")

    async def fetch(self, files: Iterable[tuple[str, str]]) -> None:
        """Copy model files, each a folder and a name, to this host: the engine must never wait for one.

        A missing file is reported by the node that names it, with its id.
        """
        fetched = (asyncio.to_thread(self._fetch, folder, name) for folder, name in files)
        await asyncio.gather(*fetched, return_exceptions=True)

    async def hand_over(self, stop: Callable[[], object]) -> None:
        """Save the states of the sampler runs, for another replica to go on with them. stop: cancels them."""
        if self.made is None:
            stop()
        else:
            await self.made.hand_over(stop)

    async def release(self) -> None:
        """Free unused weights."""
        if self.made is not None:
            await self.made.release()
            self.report()

    async def warm(self, models: Sequence[str]) -> None:
        """Load models that jobs are expected to use. A missing one is reported by those jobs."""
        await self.wait()
        for model in models:
            if self.made is None:
                return
            recipes = warm_recipes(model)
            try:
                await self._fetch_one(recipes[0])
                await self.made.warm(recipes)
                _log.info("%s is loaded ahead", model)
            except (ServeAppError, OSError) as error:
                _log.warning("%s is not loaded ahead: %s", model, error)
            self.report()

    async def prefetch(self, recipes: Sequence[Recipe], spare: frozenset[str]) -> None:
        """Load models of coming jobs, if there is room.

        spare: the model files whose weights are not evicted for it.
        """

        def spared(resident: str) -> bool:
            return not spare.isdisjoint(files_in(resident))

        await self.wait()
        for recipe in recipes:
            if self.made is None:
                return
            try:
                await self._fetch_one(recipe)
                await self.made.prefetch(recipe, spared)
            except (ServeAppError, OSError) as error:
                _log.info("%s of %s is not loaded ahead of its job: %s", recipe.part, recipe.name, error)
        self.report()

    async def _fetch_one(self, recipe: Recipe) -> None:
        loras = (("loras", lora.name) for lora in recipe.all(Lora))
        for folder, name in (*((recipe.folder, name) for name in recipe.files), *loras):
            await asyncio.to_thread(self._fetch, folder, name)

    def report(self) -> None:
        """Report resident models and new load times to the scheduler."""
        if self.made is None:
            return
        resident, loads = self.made.resident(), self.made.load_times()
        if resident != self._resident or loads:
            self._resident = resident
            self._send(ResidentWeights(resident, loads))
