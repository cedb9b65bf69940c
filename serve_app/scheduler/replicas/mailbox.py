"""A replica's messages, each behind a cursor, for long polls.

A replica says how far it has read; what lies before that is forgotten, what lies after it is given again. Patient tasks
wait for others to go with them if something has just gone: a poll costs both processes more than what it brings.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from serve_app.scheduler.protocol.messages import Assign, Message, SocketFrame

SAID_BYTES = 16 * 1024 * 1024
"""What clients have said on websockets may take in one mailbox, as a replica may not read it."""
GATHER_S = 0.03
"""How long after the last answer the next one goes out, if it brings patient tasks alone."""


@dataclass(slots=True)
class Mailbox:
    """Messages on their way to one replica, each with a cursor; kept until the replica has polled past them.

    due: whether a poll is to be answered. told: the cursor of the last message that an answer has brought.
    """

    messages: list[tuple[int, Message]] = field(default_factory=list)
    cursor: int = 0
    due: asyncio.Event = field(default_factory=asyncio.Event)
    told: int = 0
    heard_s: float = 0.0
    _told_s: float = float("-inf")
    _timer: asyncio.TimerHandle | None = None

    def put(self, message: Message) -> None:
        self.cursor += 1
        self.messages.append((self.cursor, message))
        wait_s = 0.0
        if isinstance(message, Assign) and message.task.deferrable:
            wait_s = self._told_s + GATHER_S - time.monotonic()
        if wait_s <= 0:
            self.due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.due.set)

    def read(self, cursor: int) -> None:
        """Forget what the replica has read. What it was told beyond that has not reached it, and is due again."""
        self.messages = [waiting for waiting in self.messages if waiting[0] > cursor]
        if self.messages and self.messages[0][0] <= self.told:
            self.due.set()

    def tell(self) -> list[tuple[int, Message]]:
        """Return all messages."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.due.clear()
        self.told, self._told_s = self.cursor, time.monotonic()
        return list(self.messages)

    def has_room(self) -> bool:
        """Whether what clients say may be added."""
        said = (message.frame.content for _, message in self.messages if isinstance(message, SocketFrame))
        return sum(len(content) for content in said if not isinstance(content, int)) < SAID_BYTES
