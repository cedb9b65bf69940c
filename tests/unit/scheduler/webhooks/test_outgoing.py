"""Signed messages, and the addresses they may go to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.errors import InvalidSubmissionError, OutgoingError
from serve_app.scheduler.webhooks.deliverer import WebhookDeliverer, WebhookDelivererThread
from serve_app.scheduler.webhooks.outgoing import (
    NOT_ALLOWED,
    Outgoing,
    check_secret,
    check_url,
    is_allowed,
    new_secret,
    signed,
)

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
INSIDE = [
    *("127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1"),
    *("2001:0:7f00:1::", "64:ff9b:1::1"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_the_internets_may_not_be_sent_to(address):
    assert not is_allowed(ipaddress.ip_address(address), ())
    shown = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidSubmissionError, match="its address is not allowed"):
        check_url(f"http://{shown}:8080/x", ())


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_an_address_of_the_internet_may(address):
    assert is_allowed(ipaddress.ip_address(address), ())


def test_a_network_that_the_configuration_allows_may_and_no_other():
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), [ipaddress.ip_network("10.1.0.0/16")])
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), [ipaddress.ip_network("10.1.0.0/16")])
    assert not is_allowed(ipaddress.ip_address("10.2.2.3"), [ipaddress.ip_network("10.1.0.0/16")])
    check_url("http://localhost:1/", LOOPBACK)


@pytest.mark.parametrize(
    "url",
    [
        *(None, 7, "", "example.com", "ftp://example.com", "https://", "https://u:p@example.com/", "http://localhost/"),
        *(
            "http://a.localhost",
            "http://[::1",
            "https://a..b/",
            "https://.a/",
            f"https://{'a' * 64}.example/",
            f"https://{'a.' * 130}example/",
            "http://x:99999/",
            "http://exa mple.com/",
            "http://a\\b/",
            "http://é.de/",
        ),
        "https://example.com/" + "x" * 2000,
    ],
)
def test_a_url_that_cannot_be_sent_to_is_refused(url):
    with pytest.raises(InvalidSubmissionError, match="'url'"):
        check_url(url, ())


def test_a_signature_is_what_the_specification_says():
    key = bytes(range(32))
    headers = signed("whsec_" + base64.b64encode(key).decode(), "msg_1", 1614265330, b'{"test": 1}')
    expected = base64.b64encode(hmac.new(key, b'msg_1.1614265330.{"test": 1}', hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1614265330",
        "webhook-signature": f"v1,{expected}",
    }


def test_the_signature_of_the_reference_implementations_own_example():
    # Source: the tests of the libraries at github.com/standard-webhooks/standard-webhooks.
    headers = signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def secret_of(count: int) -> str:
    return "whsec_" + base64.b64encode(bytes(count)).decode()


@pytest.mark.parametrize("secret", [None, "", "whsec_", "whsec_!!", secret_of(23), secret_of(65), "x"])
def test_an_invalid_secret_is_refused_and_not_printed(secret):
    with pytest.raises(InvalidSubmissionError) as refused:
        check_secret(secret)
    assert not secret or secret in ("x", "whsec_") or secret not in str(refused.value)
    assert [check_secret(good) for good in (secret_of(24), secret_of(64), new_secret())]


class Listener:
    """A server that answers each request with these bytes, and hangs for None."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.requests: list[bytes] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            if self._answer is None:
                await asyncio.sleep(60)
            else:
                writer.write(self._answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(answer)
    server = await asyncio.start_server(listener.take, "127.0.0.1", 0)
    try:
        yield listener, server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_message_arrives_with_its_headers_and_an_endless_answer_is_not_read():
    endless = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n" + b"5\r\naaaaa\r\n" * 100_000
    async with listening(endless) as (listener, port):
        sent = await Outgoing(LOOPBACK, 5).post(f"http://127.0.0.1:{port}/x?y=1", {"webhook-id": "a"}, b'{"b": 1}')
    assert sent == 201
    [request] = listener.requests
    assert request.startswith(b"POST /x?y=1 HTTP/1.1\r\n")
    assert request.endswith(b'\r\n\r\n{"b": 1}')
    assert b"webhook-id: a\r\n" in request
    assert f"host: 127.0.0.1:{port}\r\n".encode() in request


async def test_a_redirect_is_an_answer_like_any_other():
    async with listening(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n") as (
        _,
        port,
    ):
        assert await Outgoing(LOOPBACK, 5).post(f"http://127.0.0.1:{port}/", {}, b"{}") == 302


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "no answer within 0.2 s"),
        (b"nonsense\r\n\r\n", "."),
        (b"", "."),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "."),
    ],
)
async def test_no_answer_and_one_that_is_no_http_are_errors(answer, problem):
    async with listening(answer) as (_, port):
        with pytest.raises(OutgoingError, match=problem):
            await Outgoing(LOOPBACK, 0.2).post(f"http://127.0.0.1:{port}/", {}, b"{}")
    with pytest.raises(OutgoingError):
        await Outgoing(LOOPBACK, 5).post(f"http://127.0.0.1:{port}/", {}, b"{}")


async def test_a_host_name_is_resolved_once_and_its_address_checked(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)
    asked: list[str] = []
    answers = {"outside.example": "127.0.0.1", "both.example": "10.0.0.9"}

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        first = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[host], port))]
        return first + [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * (host == "both.example")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    for unreachable in ("outside.example", "unknown.example"):
        with pytest.raises(OutgoingError) as refused:
            await Outgoing([], 5).post(f"https://{unreachable}/", {}, b"{}")
        assert str(refused.value) == NOT_ALLOWED, "whether a name resolves, and to what, is not told"
    assert "outside.example is 127.0.0.1" in caplog.text
    assert "unknown.example: [Errno -2] no such name" in caplog.text
    async with listening(b"HTTP/1.1 204 No Content\r\n\r\n") as (listener, port):
        assert await Outgoing(LOOPBACK, 5).post(f"http://both.example:{port}/", {}, b"{}") == 204
    assert len(listener.requests) == 1
    assert asked == ["outside.example", "unknown.example", "both.example"]


async def test_a_couriers_thread_wakes_and_ends():
    woken = threading.Event()

    class QueuedTask(WebhookDeliverer):
        def __init__(self) -> None:
            self._event = asyncio.Event()

        def wake(self) -> None:
            self._event.set()

        async def run(self) -> None:
            await self._event.wait()
            woken.set()
            await asyncio.sleep(3600)

    thread = WebhookDelivererThread(QueuedTask)
    thread.close()
    thread = WebhookDelivererThread(QueuedTask)
    thread.start()
    while not woken.is_set():
        thread.wake()
        await asyncio.sleep(0.01)
    await asyncio.to_thread(thread.close)
    thread.wake()
