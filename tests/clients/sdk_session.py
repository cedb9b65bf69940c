"""What one client of Comfy API v2 does from upload to deletion, through comfy-sdk as it is published.

Run by the SDK's own Python: `python sdk_session.py sync|async GRAPH.json` goes through everything once,
`python sdk_session.py watch GRAPH.json` follows several jobs at once and prints how each stream ended. COMFY_BASE_URL
names the server. Both kinds of client go through the same lines: what is awaitable is awaited.
"""

import asyncio
import copy
import inspect
import json
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator
from typing import Any

from comfy_sdk import AsyncComfy, Comfy
from comfy_sdk.events import OutputReady, Progress, StatusChange
from comfy_sdk.exceptions import ComfyError, IdempotencyKeyReuse, InvalidWorkflow, MissingAsset, NotFound

PICTURE, SAVED = "image", "saved"
"""The nodes of the graph that load the uploaded image, and save it."""
SAMPLER = "3"
STREAMS = 4


async def done(value: Any) -> Any:
    """Return what a call of either client returns."""
    return await value if inspect.isawaitable(value) else value


async def each(items: Any) -> AsyncIterator[Any]:
    """Yield from an iterator of either client; one that blocks does so in a thread."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
        return
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item


async def refused(call: Any, kind: type[ComfyError], code: str) -> None:
    """Check that a call fails with an error of this kind and code."""
    failed = None
    try:
        await done(call())
    except kind as error:
        failed = error
    assert failed is not None, f"{code} was not refused"
    assert (failed.code, bool(failed.request_id)) == (code, True), failed.code


def graph_with(client: Any, graph: dict[str, Any], picture: Any, seed: int, steps: int = 1) -> Any:
    """Return the graph as a workflow; without a picture, what is to be done with it is left out."""
    graph = copy.deepcopy(graph)
    graph[SAMPLER]["inputs"].update(seed=seed, steps=steps)
    if picture is None:
        del graph[PICTURE], graph[SAVED]
    else:
        graph[PICTURE]["inputs"]["image"] = picture
    return client.workflows.from_json(graph)


async def session(client: Any, graph: dict[str, Any], data: bytes) -> None:
    """Go through everything once."""
    run = uuid.uuid4().hex
    picture = client.assets.from_bytes(data, filename=f"{run}.png", content_type="image/png")
    asset_id = await done(picture.commit())
    again = client.assets.from_bytes(data, filename=f"{run}.png", content_type="image/png")
    assert await done(again.commit()) == asset_id
    assert again.created_new is False

    key = str(uuid.uuid4())
    # It takes longer than a stream to open: of a job that has ended the outputs are told first, and no progress. So it
    # has a seed of its own, for another session's results would end it at once.
    lasting = graph_with(client, graph, picture, seed=uuid.uuid4().int % 2**32, steps=200)
    job = await done(client.submit(lasting, idempotency_key=key, metadata={"run": run, "n": "0"}))
    assert job.metadata == {"run": run, "n": "0"}
    events = [event async for event in each(job.events())]
    assert isinstance(events[0], StatusChange)
    assert events[-1] == StatusChange("succeeded", None), events[-1]
    shown = [event.output.id for event in events if isinstance(event, OutputReady)]
    assert any(isinstance(event, Progress) for event in events)
    await done(job.result())
    assert set(shown) <= {output.id for output in job.outputs}
    assert len(job.outputs) == 2
    for output in job.outputs:
        whole = await done(output.to_bytes())
        assert len(whole) == output.size_bytes
        assert await done(output.to_bytes(range=(1, 7))) == whole[1:8]
        url = (await done(output.get_download_url())).url
        assert urllib.request.urlopen(url).read() == whole
    workflow = await done(job.get_workflow())
    assert workflow.format == "api"
    assert isinstance(workflow.graph[PICTURE]["inputs"]["image"], str)

    await refused(
        lambda: client.submit(graph_with(client, graph, None, seed=2), idempotency_key=key),
        IdempotencyKeyReuse,
        "idempotency_key_reuse",
    )
    twin = str(uuid.uuid4())
    labels = {"run": run, "n": "twin"}

    async def submitted() -> Any:
        workflow = graph_with(client, graph, picture, seed=3)
        call = lambda: client.submit(workflow, idempotency_key=twin, metadata=labels)  # noqa: E731
        return await (call() if isinstance(client, AsyncComfy) else asyncio.to_thread(call))

    twins = await asyncio.gather(*(submitted() for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(one, IdempotencyKeyReuse) for one in twins) == 3, twins
    assert len([found async for found in each(client.list_jobs(metadata=labels))]) == 1

    for n in range(1, 6):
        await done(client.submit(graph_with(client, graph, picture, seed=n), metadata={"run": run, "n": str(n)}))
    listed = [found.metadata["n"] async for found in each(client.list_jobs(metadata={"run": run}, limit=2))]
    assert listed == ["5", "4", "3", "2", "1", "twin", "0"], listed

    long, waiting = [await done(client.submit(graph_with(client, graph, None, seed=n, steps=5000))) for n in (8, 9)]
    async for event in each(long.events()):
        if isinstance(event, Progress) and event.step:
            break
    for cancelled in (waiting, long):
        await done(cancelled.cancel())
        assert cancelled.status == "canceled", cancelled.status
        assert [e async for e in each(cancelled.events())][-1].status == "canceled"

    missing = {"__type": "core/ASSET", "info": {"id": str(uuid.uuid4())}}
    await refused(lambda: client.submit(graph_with(client, graph, missing, seed=1)), MissingAsset, "missing_asset")
    unknown = client.workflows.from_json({"1": {"class_type": "Unknown", "inputs": {}}})
    await refused(lambda: client.submit(unknown), InvalidWorkflow, "invalid_workflow")
    await refused(lambda: client.submit(unknown, metadata={"": ""}), ComfyError, "metadata_invalid")
    await refused(lambda: client.jobs.get(str(uuid.uuid4())), NotFound, "not_found")
    for found in [found async for found in each(client.list_jobs(metadata={"run": run}))]:
        await done((await done(client.jobs.get(found.id))).wait())
    await done(client.assets.delete(asset_id))
    await refused(lambda: client.assets.get(asset_id), NotFound, "not_found")


async def watch(client: AsyncComfy, graph: dict[str, Any]) -> None:
    """Follow jobs at once and print the last event of each; say so once all streams are open."""
    jobs = [await client.submit(graph_with(client, graph, None, seed=n, steps=40)) for n in range(STREAMS)]
    opened = 0

    async def follow(job: Any) -> str:
        nonlocal opened
        last = None
        async for event in job.events():
            if last is None and (opened := opened + 1) == STREAMS:
                print("open", flush=True)
            last = event
        assert isinstance(last, StatusChange)
        return str(last.status)

    print(json.dumps(await asyncio.gather(*map(follow, jobs))), flush=True)


async def main() -> None:
    kind, path = sys.argv[1:]
    with open(path) as file:
        given = json.load(file)
    graph, data = given["graph"], bytes.fromhex(given["picture"])
    if kind == "sync":
        with Comfy() as client:
            await session(client, graph, data)
        return
    async with AsyncComfy() as client:
        await (session(client, graph, data) if kind == "async" else watch(client, graph))


asyncio.run(main())
