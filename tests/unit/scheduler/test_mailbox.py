"""How much of what clients say waits for one replica."""

from __future__ import annotations

from serve_app.nodes.routes import PackFrame
from serve_app.scheduler.mailbox import SAID_BYTES, Mailbox
from serve_app.scheduler.messages import Free, SocketSaid


def test_what_clients_say_waits_up_to_a_size_and_messages_of_the_scheduler_count_for_nothing() -> None:
    mailbox = Mailbox()
    for _ in range(1000):
        mailbox.put(Free(weights=True, results=True))
    while mailbox.has_room():
        mailbox.put(SocketSaid("socket", PackFrame(bytes(1_000_000))))
    said = [m for _, m in mailbox.messages if isinstance(m, SocketSaid)]
    assert len(said) == -(-SAID_BYTES // 1_000_000)
    mailbox.messages = [m for m in mailbox.messages if m[0] > mailbox.cursor - 1]
    assert mailbox.has_room()
