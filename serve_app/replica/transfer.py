"""Transfer of values between replicas, and of previews to the ingress."""

from __future__ import annotations

from typing import Any, Protocol


class Transfer(Protocol):
    """By reference through Ray's object store, or directly within one process."""

    def put(self, value: Any) -> Any: ...

    async def get(self, reference: Any) -> Any: ...
