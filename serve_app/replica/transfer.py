"""How values get from replica to replica, and to whoever is shown them."""

from __future__ import annotations

from typing import Any, Protocol


class Transfer(Protocol):
    """By reference through the object store, or as they are in one process."""

    def put(self, value: Any) -> Any: ...

    async def get(self, reference: Any) -> Any: ...
