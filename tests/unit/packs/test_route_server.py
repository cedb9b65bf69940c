"""What a client says on a websocket whose handler does not read."""

from __future__ import annotations

import asyncio

from serve_app.packs.route_server import UNREAD, UNREAD_MESSAGES, put_frame
from serve_app.packs.routes import PackFrame


async def test_messages_that_nobody_reads_are_kept_up_to_a_number_and_end_the_websocket() -> None:
    said: asyncio.Queue[PackFrame] = asyncio.Queue(UNREAD_MESSAGES)
    for i in range(10 * UNREAD_MESSAGES):
        put_frame(said, PackFrame(str(i)))
    kept = [said.get_nowait().content for _ in range(said.qsize())]
    assert kept == [*map(str, range(UNREAD_MESSAGES - 1)), UNREAD]
