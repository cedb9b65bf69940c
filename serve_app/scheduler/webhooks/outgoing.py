"""What this server sends of its own accord: signed messages to URLs that clients name, and to which addresses it may.

Clients are told that an address is not allowed, and nothing else: not what a name resolves to, nor whether it does. The
log has it for the operator. A name is resolved once and the connection goes to an address that was looked at, so that
no second answer of its DNS leads elsewhere. Redirects are not followed and no proxy is used. Sources: the Standard
Webhooks specification; Python's `ipaddress` for the registries of IANA that say which addresses are global.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import secrets
import socket
import ssl
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from serve_app import log
from serve_app.errors import InvalidSubmissionError, OutgoingError, short_repr

if TYPE_CHECKING:
    import httpcore

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

URL_LENGTH = 2000
SECRET = "whsec_"
SECRET_BYTES = (24, 64)
"""How long the key in a secret may be, as the specification says."""
NAME_LENGTH = 253
NOT_ALLOWED = "its address is not allowed; see webhooks.allowed_networks of the configuration"
"""The whole message to a client about an address outside the Internet and `webhooks.allowed_networks`."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_log = log.get("scheduler")


def new_secret() -> str:
    """Return a secret that nobody knows yet."""
    return SECRET + base64.b64encode(secrets.token_bytes(32)).decode()


def check_secret(secret: Any) -> str:
    """Return a secret that signatures can be made with. Errors: InvalidSubmissionError, which does not say it."""
    least, most = SECRET_BYTES
    if not isinstance(secret, str) or not secret.startswith(SECRET) or not least <= len(_key(secret)) <= most:
        raise InvalidSubmissionError(f"'secret' must be {SECRET} and the base64 of {least} to {most} bytes")
    return secret


def signed(secret: str, message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the headers that say which message a body is, when it was sent, and that who knows the secret sent it."""
    signature = Webhook(secret).sign(message_id, datetime.fromtimestamp(at_s, UTC), body.decode())
    return {"webhook-id": message_id, "webhook-timestamp": str(at_s), "webhook-signature": signature}


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(SECRET), validate=True)
    except (binascii.Error, ValueError):
        return b""


def check_url(url: Any, allowed: Iterable[IPNetwork]) -> str:
    """Return a URL that may be sent to, as far as can be said without asking for its name. Errors: see `check_secret`.

    allowed: networks that may be sent to beside the global ones.
    """
    if not isinstance(url, str) or not 1 <= len(url) <= URL_LENGTH or not url.isascii() or not url.isprintable():
        raise InvalidSubmissionError(f"'url' must be of at most {URL_LENGTH} ASCII characters, not {short_repr(url)}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidSubmissionError(f"'url' {short_repr(url)}: {error}") from None
    if not _is_name(host or ""):
        raise InvalidSubmissionError(
            f"'url' {short_repr(url)}: its host is no name, which has 1 to 63 characters between dots, 253 in all"
        )
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or " " in url or "\\" in url:
        raise InvalidSubmissionError(
            f"'url' must be like https://example.com/path, without a user, not {short_repr(url)}"
        )
    address = _literal(host)
    if host == "localhost" or host.endswith(".localhost"):
        address = ipaddress.IPv4Address("127.0.0.1")
    if address is not None and not is_allowed(address, allowed):
        raise InvalidSubmissionError(f"'url' {short_repr(url)}: {NOT_ALLOWED}")
    return url


def _is_name(host: str) -> bool:
    """Whether a name can be looked up: the names that `socket` makes of text are those of this codec."""
    try:
        return len(host.encode("idna")) <= NAME_LENGTH
    except UnicodeError:
        return False


def is_allowed(address: IPAddress, allowed: Iterable[IPNetwork]) -> bool:
    """Whether an address may be sent to: one of the Internet's, or of a network that the configuration allows."""
    inner = _inner(address)
    if any(a.version == network.version and a in network for network in allowed for a in (address, inner)):
        return True
    return inner.is_global and not inner.is_multicast and not inner.is_reserved and not _leads_inside(inner)


def _leads_inside(address: IPAddress) -> bool:
    # 6to4 and Teredo lead to an address inside them that nothing here reaches by itself.
    return isinstance(address, ipaddress.IPv6Address) and (
        address.sixtofour is not None or address.teredo is not None or address.is_site_local
    )


def _inner(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 one stands for, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Outgoing:
    """Sends messages. allowed: see `check_url`. timeout_s: how long one may take from its name to its status."""

    def __init__(self, allowed: Sequence[IPNetwork], timeout_s: float) -> None:
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._tls: ssl.SSLContext | None = None

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Return the status that a message is answered; of the answer nothing else is read. Errors: OutgoingError."""
        # Only who has webhooks needs it.
        import httpcore

        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        whole = {"content-type": "application/json", "user-agent": "serve-app-webhooks", **headers}
        given = [(name.encode(), value.encode()) for name, value in whole.items()]
        host = urlsplit(url).netloc.encode()
        pool = httpcore.AsyncConnectionPool(self._tls, network_backend=_backend(self._allowed))
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                pool,
                pool.stream("POST", url, headers=[(b"host", host), *given], content=body) as answer,
            ):
                return int(answer.status)
        except TimeoutError:
            raise OutgoingError(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            reason = str(error) or type(error).__name__
            raise OutgoingError(reason[:300]) from None


def _backend(allowed: Sequence[IPNetwork]) -> httpcore.AsyncNetworkBackend:
    """Return what connects to allowed addresses alone."""
    import httpcore

    class Backend(httpcore.AsyncNetworkBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> httpcore.AsyncNetworkStream:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                _log.warning("webhooks: %s: %s", host, error)
                raise OutgoingError(NOT_ALLOWED) from None
            addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
            free = [address for address in dict.fromkeys(addresses) if is_allowed(address, allowed)]
            if not free:
                _log.warning(
                    "webhooks: %s is %s, no address of the Internet nor among webhooks.allowed_networks",
                    host,
                    addresses[0],
                )
                raise OutgoingError(NOT_ALLOWED)
            for last, address in enumerate(free, 1 - len(free)):
                try:
                    return await httpcore.AnyIOBackend().connect_tcp(str(address), port, timeout, local_address)
                except (OSError, httpcore.NetworkError):
                    if last == 0:
                        raise
            raise AssertionError("some address was tried")

    return Backend()
