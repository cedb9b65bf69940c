"""A replica's messages, each behind a cursor, for long polls.

A replica says how far it has read; what lies before that is forgotten, what lies after it is given again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serve_app.scheduler.messages import Message, SocketSaid

SAID_BYTES = 16 * 1024 * 1024
"""What clients have said on websockets may take in one mailbox, as a replica may not read it."""


@dataclass(slots=True)
class Mailbox:
    """Messages on their way to one replica, each with a cursor; kept until the replica has polled past them."""

    messages: list[tuple[int, Message]] = field(default_factory=list)
    cursor: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    heard_s: float = 0.0

    def put(self, message: Message) -> None:
        self.cursor += 1
        self.messages.append((self.cursor, message))
        self.arrived.set()

    def has_room(self) -> bool:
        """Whether what clients say may be added."""
        said = (message.frame.content for _, message in self.messages if isinstance(message, SocketSaid))
        return sum(len(content) for content in said if not isinstance(content, int)) < SAID_BYTES
