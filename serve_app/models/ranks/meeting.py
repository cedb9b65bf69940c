"""Where the ranks of a replica meet, and the connections by which rank 0 gives orders.

On one host that is a folder which nobody else may enter, with a file for torch's rendezvous and a Unix socket. On
several hosts it is an address of rank 0's: torch's TCP store, and a port for orders. Orders are pickled, so whoever
connects there proves by HMAC that it knows the replica's key before anything of it is read. Nothing is encrypted.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from secrets import token_bytes
from time import monotonic
from typing import Literal, TypeAlias

# torch.distributed has them too, but not for type checkers.
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from serve_app.errors import RankLostError

Kind: TypeAlias = Literal["forwards", "loads"]
KINDS: Sequence[Kind] = ("forwards", "loads")
"""What orders are about: those of a kind have a connection, and a thread of their own on each rank."""

MEET_S = 120.0
"""How long ranks wait for the others to be there."""

GREETING_S = 10.0
"""How long one that has connected may take for each answer until rank 0 knows it."""

SILENT_S = 30
"""How long a host may answer nothing before a connection to it ends."""


@dataclass(frozen=True, slots=True)
class Address:
    """Rank 0's host, with its ports of torch's store and of orders. key: of this replica alone."""

    host: str
    store_port: int
    orders_port: int
    key: bytes

    @classmethod
    def on(cls, host: str) -> Address:
        """Return an address on this host, with free ports and a new key."""
        with socket.create_server((host, 0)) as one, socket.create_server((host, 0)) as other:
            return cls(host, one.getsockname()[1], other.getsockname()[1], token_bytes(32))


Meeting: TypeAlias = Path | Address


def store(meeting: Meeting, rank: int, size: int) -> Store:
    """Return the store where the ranks of torch's process group find each other. Errors: as torch's."""
    if isinstance(meeting, Path):
        found = FileStore(str(meeting / "meeting"), size)
        found.set_timeout(timedelta(seconds=MEET_S))
        return found
    return TCPStore(
        meeting.host,
        meeting.store_port,
        size,
        is_master=rank == 0,
        timeout=timedelta(seconds=MEET_S),
        wait_for_workers=False,
    )


def wait_for_all(store: Store, rank: int, size: int) -> tuple[str, ...]:
    """Wait until all ranks have come, and return the name of each one's host.

    Errors: RankLostError for those that have not come in time.
    """
    keys = [f"rank {number}" for number in range(size)]
    store.set(keys[rank], socket.gethostname())
    try:
        store.wait(keys, timedelta(seconds=MEET_S))
    except RuntimeError:
        missing = ", ".join(key for key in keys if not store.check([key]))
        raise RankLostError(f"{missing or 'another rank'} has not come in {MEET_S:.0f} s") from None
    return tuple(store.get(key).decode() for key in keys)


def listening(meeting: Meeting, size: int) -> socket.socket:
    """Return rank 0's socket, to which the others connect."""
    if isinstance(meeting, Address):
        return socket.create_server((meeting.host, meeting.orders_port), backlog=len(KINDS) * size)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(meeting / "orders"))
    listener.listen(len(KINDS) * size)
    return listener


def connected(meeting: Meeting, rank: int) -> dict[tuple[Kind, int], Connection]:
    """Return a rank's connections to rank 0, which listens. Errors: OSError, EOFError, AuthenticationError."""
    made: dict[tuple[Kind, int], Connection] = {}
    for kind in KINDS:
        if isinstance(meeting, Address):
            link = socket.create_connection((meeting.host, meeting.orders_port), MEET_S)
        else:
            link = socket.socket(socket.AF_UNIX)
            link.connect(str(meeting / "orders"))
        with _in_time(link, MEET_S) as connection:
            if isinstance(meeting, Address):
                answer_challenge(connection, meeting.key)
                deliver_challenge(connection, meeting.key)
            connection.send((kind, rank))
        made[kind, 0] = connection
    return made


def accepted(listener: socket.socket, meeting: Meeting, size: int) -> dict[tuple[Kind, int], Connection]:
    """Return rank 0's connections to the others, which are about to connect. Errors: TimeoutError if they do not."""
    made: dict[tuple[Kind, int], Connection] = {}
    end = monotonic() + MEET_S
    while len(made) < len(KINDS) * (size - 1):
        listener.settimeout(max(0.001, end - monotonic()))
        link, _ = listener.accept()
        # Whoever is no rank of this replica is sent away, and keeps nobody waiting for long.
        with suppress(AuthenticationError, EOFError, OSError), _in_time(link, GREETING_S) as connection:
            if isinstance(meeting, Address):
                deliver_challenge(connection, meeting.key)
                answer_challenge(connection, meeting.key)
            made[connection.recv()] = connection
    return made


@contextmanager
def _in_time(link: socket.socket, timeout_s: float) -> Iterator[Connection]:
    """Yield a connection of which each answer inside has to come in time. Errors: OSError if it does not."""
    link.settimeout(None)
    if link.family != socket.AF_UNIX:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            link.setsockopt(socket.IPPROTO_TCP, option, value)
        # What was sent and is not acknowledged counts too.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
    with link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _seconds(timeout_s))
        connection = Connection(os.dup(link.fileno()))
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _seconds(0))


def _seconds(timeout_s: float) -> bytes:
    """Return a timeout as the kernel takes it; 0 is none."""
    return struct.pack("ll", int(timeout_s), 0)
