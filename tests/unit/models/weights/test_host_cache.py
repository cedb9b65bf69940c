"""Which copies stay in host memory: models that take turns find as much there as fits, whatever else comes by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.models.weights.host_cache import HostCache

CHUNK = 4


class Host:
    """A GPU with room for a number of bytes of models, the least recently used of which are evicted to host memory.

    Models have chunks of CHUNK bytes; all that a copy lacks is read from the file.
    """

    def __init__(self, gpu_bytes: int, budget_bytes: int, models: Sequence[int]) -> None:
        self.cache = HostCache(budget_bytes)
        self._gpu_bytes, self._models = gpu_bytes, models
        self._resident: list[int] = []
        self.wanted = self.found = self.copied = 0

    def use(self, model: int, required: int = 0) -> None:
        """Use a model, which is brought to the GPU if it is absent."""
        if model in self._resident:
            self._resident.remove(model)
            self._resident.append(model)
            return
        while self._resident and self._bytes(*self._resident, model) > self._gpu_bytes:
            self._evict(self._resident.pop(0), required)
        copy = self.cache.take(model)
        self.wanted += self._bytes(model)
        self.found += 0 if copy is None else copy.nbytes
        self._resident.append(model)

    def _evict(self, model: int, required: int) -> None:
        before = self.cache.take(model)
        had = 0 if before is None else before.present
        copy = self.cache.evict(model, [CHUNK] * self._models[model], required)
        self.copied += max(0, (0 if copy is None else copy.present) - had)
        assert self.cache.nbytes <= self.cache.budget_bytes

    def _bytes(self, *models: int) -> int:
        return sum(self._models[model] for model in models) * CHUNK

    def rate(self, turns: Sequence[int]) -> float:
        """Return what share of the bytes that these turns brought to the GPU was found in host memory."""
        self.wanted = self.found = self.copied = 0
        for model in turns:
            self.use(model)
        return self.found / self.wanted if self.wanted else 1.0


MODELS = st.lists(st.integers(1, 40), min_size=2, max_size=6)


@given(MODELS, st.floats(0, 1.2), st.integers(0, 60))
def test_models_in_turn_find_as_large_a_share_of_them_as_fits_and_copy_nothing_back(
    models: list[int], share: float, gpu_chunks: int
) -> None:
    total = sum(models) * CHUNK
    host = Host(gpu_chunks * CHUNK, int(share * total), models)
    turns = [*range(len(models))]
    host.rate(turns * 4)
    found = host.rate(turns * 4)
    # A chunk of each is what rounding may cost.
    assert found >= min(1.0, share) - len(models) * CHUNK / total - 0.01
    if gpu_chunks < min(models):
        assert host.copied == 0


def test_of_two_models_with_the_memory_of_nearly_two_nearly_all_is_found() -> None:
    host = Host(100 * CHUNK, 190 * CHUNK, [100, 100])
    assert host.rate([0, 1] * 5) > 0.7
    assert host.rate([0, 1] * 5) == pytest.approx(0.95)


def test_while_most_models_are_on_the_gpu_their_copies_give_way_to_those_that_are_not() -> None:
    # Of ten models eight are on the GPU, and host memory has room for three.
    host = Host(8 * CHUNK, 3 * CHUNK, [1] * 10)
    host.rate([*range(10)] * 2)
    assert host.rate([*range(10)] * 5) == 1.0


def test_models_that_are_used_once_do_not_keep_what_others_need_in_turn() -> None:
    host = Host(10 * CHUNK, 20 * CHUNK, [10] * 8)
    host.rate([0, 1] * 3)
    host.rate([*range(2, 8)])
    host.rate([0, 1] * 20)
    assert host.rate([0, 1] * 5) == 1.0


def test_a_copy_without_what_no_file_has_is_of_no_use() -> None:
    shrunk: list[tuple[str, int]] = []
    cache = HostCache(10 * CHUNK, shrunk=lambda copy: shrunk.append((str(copy.key), copy.present)))
    assert cache.evict("plain", [CHUNK] * 8) is not None
    merged = cache.evict("merged", [CHUNK] * 8, required=8)
    # Of the other all but a chunk may be read from its file.
    assert merged is not None
    assert merged.present == 8
    assert shrunk[-1] == ("plain", 2)
    assert cache.evict("another", [CHUNK] * 8, required=8) is None
    assert "merged" in cache


def test_what_streams_has_its_room_before_any_copy() -> None:
    streams = [0]
    cache = HostCache(10, beside=lambda: streams[0])
    cache.evict("a", [2, 2, 2])
    cache.make_room(8)
    assert cache.nbytes == 2
    streams[0] = 8
    cache.make_room(4)
    assert (cache.nbytes, "a" in cache) == (8, False)
