"""Results of nodes that outlive their process: which are kept, as which bytes, and when they are found again.

A result is a safetensors file: its tensors, and as JSON the values around them. Nothing is unpickled. One that is
damaged or foreign is deleted; a store that is full or away only keeps less.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from serve_app import log
from serve_app.config.results import ResultsConfig
from serve_app.errors import FileMissingError, ServeAppError, StoreError
from serve_app.execution.call import NodeResult
from serve_app.execution.size import size_of
from serve_app.nested_tensor import NestedTensor
from serve_app.store.work.node_results import SIGNATURE

_log = log.get("replica")

VERSION = 1
"""Of the bytes."""
BYTES_PER_S = 20_000_000
"""A result of more bytes per second of computing is not kept: to read it would save nothing."""
PENDING = 8
"""The most results that wait to be written; they stay in memory meanwhile."""
_JSON = "json"
"""The name of the tensor of bytes that has the values around the others."""


class UnstorableError(ServeAppError):
    """A value that is no tensor, number or text, nor made of them."""


class DamagedResultError(ServeAppError):
    """Bytes that are not those of the result."""


@dataclass(slots=True)
class StoredResultCounters:
    """Results that were written, their bytes, results found, and failures to write or read."""

    kept: int = 0
    bytes: int = 0
    found: int = 0
    failures: int = 0


class ResultFiles(Protocol):
    """The files, as `store.work.node_results.NodeResultFiles`. Errors: StoreError, a disk's OSError."""

    def signatures(self) -> set[str]: ...

    def read(self, signature: str) -> bytes: ...

    def write(self, signature: str, data: bytes) -> None: ...

    def delete(self, signature: str) -> None: ...

    def trim(self, max_bytes: int, age_s: float) -> None: ...

    def tags(self, ui: Mapping[str, Any] | None, tenant: str) -> dict[str, str]: ...


class StoredResults:
    """The stored results that one replica may use. files: opens them, in a thread."""

    def __init__(self, files: Callable[[], ResultFiles], config: ResultsConfig) -> None:
        self.counters = StoredResultCounters()
        self._config = config
        self._open = files
        self._files: ResultFiles
        self._pending = 0
        # What may be written until the store is trimmed again.
        self._left_bytes = config.max_bytes // 10
        self._writer = ThreadPoolExecutor(1, "results")
        self._known = self._writer.submit(self._listed)

    def _listed(self) -> set[str]:
        self._files = self._open()
        try:
            self._files.trim(self._config.max_bytes, self._config.age_s)
            return self._files.signatures()
        except (StoreError, OSError) as error:
            _log.warning("stored results of nodes cannot be listed, so none is used: %s", error)
            return set()

    async def find(self, signature: str, tenant: str) -> NodeResult | None:
        """Return a node's stored result whose files are as they were; None if there is none."""
        known = await asyncio.shield(asyncio.wrap_future(self._known))
        if signature not in known:
            return None
        result = await asyncio.to_thread(self._read, signature, tenant)
        if result is None:
            known.discard(signature)
        else:
            self.counters.found += 1
        return result

    def _read(self, signature: str, tenant: str) -> NodeResult | None:
        try:
            result, tags = from_bytes(signature, self._files.read(signature))
            if tags == self._files.tags(result.ui, tenant):
                return result
            _log.info("what a stored result of a node has shown has changed, so it is computed again")
        except FileMissingError:
            _log.info("a stored result of a node, or what it has shown, is gone, so it is computed again")
        except DamagedResultError as error:
            _log.warning("a stored result of a node is deleted, and computed again: %s", error)
        except (StoreError, OSError) as error:
            self.counters.failures += 1
            _log.warning("a stored result of a node cannot be read, and is computed again: %s", error)
            return None
        with contextlib.suppress(StoreError, OSError):
            self._files.delete(signature)
        return None

    def keep(self, signature: str, result: NodeResult, took_s: float, tenant: str) -> None:
        """Store a result in the background, if that is worth it. took_s: how long it took to compute."""
        worth = took_s >= self._config.after_s and size_of(result.outputs) <= took_s * BYTES_PER_S
        if worth and SIGNATURE.fullmatch(signature) and self._pending < PENDING:
            self._pending += 1
            self._writer.submit(self._write, signature, result, tenant)

    def _write(self, signature: str, result: NodeResult, tenant: str) -> None:
        try:
            data = to_bytes(signature, result, self._files.tags(result.ui, tenant))
            if len(data) > self._config.max_bytes:
                return
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                self._left_bytes = self._config.max_bytes // 10 - len(data)
                self._files.trim(self._config.max_bytes - self._config.max_bytes // 10, self._config.age_s)
            self._files.write(signature, data)
        except (UnstorableError, FileMissingError):
            return
        except Exception as error:
            self.counters.failures += 1
            _log.warning("a node's result cannot be stored, so it is computed again after a restart: %s", error)
            return
        finally:
            self._pending -= 1
        self._known.result().add(signature)
        self.counters.kept += 1
        self.counters.bytes += len(data)

    def forget(self, signatures: tuple[str, ...] | None = None) -> None:
        """Delete these results in the background, or all that are known."""
        self._writer.submit(self._delete, signatures)

    def _delete(self, signatures: tuple[str, ...] | None) -> None:
        known = self._known.result()
        for signature in known.copy() if signatures is None else known.intersection(signatures):
            known.discard(signature)
            with contextlib.suppress(StoreError, OSError):
                self._files.delete(signature)


def to_bytes(signature: str, result: NodeResult, tags: Mapping[str, str]) -> bytes:
    """Return a result as bytes. tags: of the files that it names. Errors: UnstorableError."""
    tensors: dict[str, torch.Tensor] = {}
    content = {
        "version": VERSION,
        "signature": signature,
        "outputs": [_plain(list(values), tensors) for values in result.outputs],
        "ui": result.ui,
        "tags": tags,
    }
    tensors[_JSON] = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    try:
        data: bytes = save(tensors)
    except (RuntimeError, KeyError) as error:
        raise UnstorableError(f"its tensors cannot be in one file: {error}") from error
    return data


def from_bytes(signature: str, data: bytes) -> tuple[NodeResult, dict[str, str]]:
    """Return the result and the tags of its files. Errors: DamagedResultError for other bytes than the result's."""
    try:
        tensors = load(data)
        content = json.loads(tensors[_JSON].numpy().tobytes())
        if (content["version"], content["signature"]) != (VERSION, signature):
            raise DamagedResultError(f"it is of version {content['version']} and of {content['signature']!r:.80}")
        outputs = tuple(_value(values, tensors) for values in content["outputs"])
        return NodeResult(outputs, content["ui"]), dict(content["tags"])
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise DamagedResultError(f"it is damaged: {error!r:.200}") from error


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value as JSON, in which lists stand for themselves and objects name another type."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_plain(item, tensors) for item in value]
    if kind is tuple:
        return {"tuple": [_plain(item, tensors) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item, tensors) for key, item in value.items()}}
    if kind is NestedTensor:
        return {"nested": [_plain(part, tensors) for part in value.tensors]}
    if kind is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu":
        # As it lies in memory, since kernels may round otherwise where it lies in another order.
        order = sorted(range(value.ndim), key=lambda dim: -value.stride(dim))
        name = str(len(tensors))
        # A clone, as views of one tensor cannot be in one file.
        tensors[name] = value.detach().permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "order": order}
    raise UnstorableError(f"{kind.__name__} cannot be stored")


def _value(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(plain, list):
        return [_value(item, tensors) for item in plain]
    match plain:
        case {"tuple": items}:
            return tuple(_value(item, tensors) for item in items)
        case {"dict": items}:
            return {key: _value(item, tensors) for key, item in items.items()}
        case {"nested": parts}:
            return NestedTensor([_value(part, tensors) for part in parts])
        case {"tensor": name, "order": order}:
            return tensors[name].permute([order.index(dim) for dim in range(len(order))])
    return plain
