"""The mailbox of one replica: messages with cursors, for long polls.

A poll acknowledges messages up to a cursor, which are dropped, and gets the later ones. A deferrable task waits for
others if a poll has just been answered: a poll costs both processes more than a message.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from serve_app.scheduler.protocol.messages import Assign, Message, SocketFrame

FRAME_BYTES = 16 * 1024 * 1024
"""The most bytes of websocket frames in one mailbox, as a replica may not read it."""
GATHER_S = 0.03
"""The least time between two answers if the second has deferrable tasks only."""


@dataclass(slots=True)
class Mailbox:
    """Messages on their way to one replica, each with a cursor; kept until the replica has polled past them.

    due: whether a poll is to be answered. sent: the cursor of the last message that was sent.
    """

    messages: list[tuple[int, Message]] = field(default_factory=list)
    cursor: int = 0
    due: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    last_heartbeat_s: float = 0.0
    _sent_s: float = float("-inf")
    _timer: asyncio.TimerHandle | None = None

    def put(self, message: Message) -> None:
        self.cursor += 1
        self.messages.append((self.cursor, message))
        wait_s = 0.0
        if isinstance(message, Assign) and message.task.deferrable:
            wait_s = self._sent_s + GATHER_S - time.monotonic()
        if wait_s <= 0:
            self.due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.due.set)

    def acknowledge(self, cursor: int) -> None:
        """Drop messages up to the cursor. Later ones that were sent have been lost, and are due again."""
        self.messages = [waiting for waiting in self.messages if waiting[0] > cursor]
        if self.messages and self.messages[0][0] <= self.sent:
            self.due.set()

    def take(self) -> list[tuple[int, Message]]:
        """Return all messages, and mark them as sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.due.clear()
        self.sent, self._sent_s = self.cursor, time.monotonic()
        return list(self.messages)

    def has_room(self) -> bool:
        """Whether another websocket frame may be added."""
        contents = (message.frame.content for _, message in self.messages if isinstance(message, SocketFrame))
        return sum(len(content) for content in contents if not isinstance(content, int)) < FRAME_BYTES
