"""What open event streams of v2 cost: memory of a server, age of what is told, and how fast it answers beside them.

`python -m bench.streams --streams 200`. The server is a process of its own, ingress and scheduler in one and without
Ray; nobody runs its jobs, their progress is reported as a replica would, ten times a second each. A progress carries
the moment of its report, so its age on arrival is known; the server tells one every half second at most, and always
the newest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import httpx
import psutil
import uvicorn

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.store import AREAS
from serve_app.store.files.volume import Volume
from tests.unit.api.scripted_replica import scripted
from tests.workflows import txt2img

JOBS = 20
REPORT_S, WATCHED_S, ASK_S = 0.1, 20.0, 0.05
"""Between reports of a job, how long is measured, and between two requests beside the streams."""
GRAPH = txt2img("sd15.safetensors", 1)


def serve(listener: socket.socket) -> None:
    """Serve, with jobs that go on for ever once they are submitted."""
    asyncio.run(_serve(listener))


async def _serve(listener: socket.socket) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume({area: Path(folder) / area for area in AREAS})
        async with scripted() as replica:
            service = Service(
                replica.scheduler.client, volume, lambda _: ["sd15.safetensors"], Limits(1_000_000, 1_000_000)
            )
            app = create_app(service, concurrency=ConcurrencyLimits(listeners=1000))
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

            async def going_on() -> None:
                job_id = await replica.take()
                await replica.executing(job_id, "3")
                while True:
                    await replica.progress(job_id, "3", round(1000 * time.monotonic()), 2**40)
                    await asyncio.sleep(REPORT_S)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(JOBS):
                    tasks.create_task(going_on())
                await server.serve(sockets=[listener])


async def watch(url: str, pid: int, streams: int) -> None:
    """Measure a server, first without streams and then with them."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as client:
        while True:
            try:
                if (await client.get("/healthz")).status_code == 200:
                    break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        made = [await client.post("/api/v2/jobs", json={"workflow": GRAPH}) for _ in range(JOBS)]
        jobs = [answer.json()["id"] for answer in made]
        process = psutil.Process(pid)
        alone = await _asked(client, jobs)
        before = process.memory_full_info().uss
        ages: list[float] = []
        told = [asyncio.create_task(_told(client, jobs[n % JOBS], ages)) for n in range(streams)]
        await asyncio.sleep(5.0)  # until all are open
        ages.clear()
        used = process.cpu_times()
        beside = await _asked(client, jobs)
        spent = process.cpu_times()
        after = process.memory_full_info().uss
        for task in told:
            task.cancel()
        ended = await asyncio.gather(*told, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), "a stream has ended by itself"
    cpu = (spent.user + spent.system - used.user - used.system) / WATCHED_S
    print(f"{streams} streams of {JOBS} jobs: {(after - before) / streams / 1024:.1f} KiB each, {cpu:.2f} of a core")
    for what, seconds in (("age of a progress", ages), ("GET job, no stream", alone), ("GET job, beside", beside)):
        p50, p99 = quantiles(seconds, n=100)[49], quantiles(seconds, n=100)[98]
        print(f"{what}: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, of {len(seconds)}")


async def _asked(client: httpx.AsyncClient, jobs: list[str]) -> list[float]:
    """Return how long each of some requests took, in seconds."""
    taken: list[float] = []
    until_s = time.monotonic() + WATCHED_S
    while (began_s := time.monotonic()) < until_s:
        (await client.get(f"/api/v2/jobs/{jobs[len(taken) % JOBS]}")).raise_for_status()
        taken.append(time.monotonic() - began_s)
        await asyncio.sleep(ASK_S)
    return taken


async def _told(client: httpx.AsyncClient, job_id: str, ages: list[float]) -> None:
    """Read a stream and note how old each progress is."""
    async with client.stream("GET", f"/api/v2/jobs/{job_id}/events") as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and '"step"' in line:
                step = json.loads(line.removeprefix("data: "))["step"]
                if step:
                    ages.append(time.monotonic() - step / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    arguments = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
        server.start()
        assert server.pid is not None
        try:
            asyncio.run(watch(url, server.pid, arguments.streams))
        finally:
            server.kill()
            server.join()


if __name__ == "__main__":
    main()
