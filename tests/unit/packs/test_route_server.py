"""What a client says on a websocket whose handler does not read."""

from __future__ import annotations

import asyncio

from serve_app.packs.route_server import SAID_KEPT, UNREAD, _keep
from serve_app.packs.routes import PackFrame


async def test_messages_that_nobody_reads_are_kept_up_to_a_number_and_end_the_websocket() -> None:
    said: asyncio.Queue[PackFrame] = asyncio.Queue(SAID_KEPT)
    for i in range(10 * SAID_KEPT):
        _keep(said, PackFrame(str(i)))
    kept = [said.get_nowait().content for _ in range(said.qsize())]
    assert kept == [*map(str, range(SAID_KEPT - 1)), UNREAD]
