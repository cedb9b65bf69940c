"""`GET /metrics`: what every host of the cluster exports on Ray's metrics port, in one answer for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import httpx
import ray

TIMEOUT_S = 3.0
"""How long a host may take to answer; one that takes longer is left out of the answer."""


class MetricsExport:
    """All hosts' metrics in Prometheus' text format: Ray's, Serve's and this application's.

    Requests that come while the hosts are asked share the answer, so that many cost as much as one.
    """

    def __init__(self, read: Callable[[], Awaitable[str]] | None = None) -> None:
        self._read = read or _exported
        self._reading: asyncio.Future[str] | None = None

    async def __call__(self) -> str:
        """Return the metrics."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        # A client that goes away takes the answer from no other.
        return await asyncio.shield(self._reading)


async def _exported() -> str:
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        answers = await asyncio.gather(*(_read(client, address) for address in addresses))
    missing = [address for address, text in zip(addresses, answers, strict=True) if text is None]
    return merged(filter(None, answers)) + "".join(f"# no answer from {address}\n" for address in missing)


def merged(texts: Iterable[str]) -> str:
    """Return texts of Prometheus' format as one, each metric with one header and all its samples behind that."""
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                header = headers.setdefault(name, [])
                if not any(line[:7] == one[:7] for one in header):
                    header.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(name, []).append(line)
    lines = (line for name, found in samples.items() for line in (*headers.get(name, ()), *found))
    return "".join(f"{line}\n" for line in lines)


async def _read(client: httpx.AsyncClient, address: str) -> str | None:
    try:
        answer = await client.get(f"http://{address}/metrics")
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None
