"""uvicorn's HTTP/1.1 protocol, with a request's headers frozen once they are complete.

A chunked body may end with trailer fields (RFC 9112, section 7.1.2). uvicorn's httptools protocol appends them to the
request's headers, where they would count as credentials, Host or X-Forwarded-For that no proxy has looked at; HAProxy
2.8 has no rule for them. Here they are dropped, as RFC 9110, section 6.5.1, asks. uvicorn's h11 protocol drops them
itself.
"""

from __future__ import annotations

import asyncio

from uvicorn import config

PROTOCOL: type[asyncio.Protocol]
try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    PROTOCOL = H11Protocol
else:

    class WithoutTrailers(HttpToolsProtocol):
        """httptools' parser, of whose fields only those before the body are headers."""

        _is_complete = False

        def on_message_begin(self) -> None:
            """Begin a request."""
            super().on_message_begin()
            self._is_complete = False

        def on_header(self, name: bytes, value: bytes) -> None:
            """Take a header; drop a trailer."""
            if not self._is_complete:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """Freeze the headers."""
            super().on_headers_complete()
            self._is_complete = True

    PROTOCOL = WithoutTrailers


def install() -> None:
    """Make it what every uvicorn server of this process speaks by default, also one that Ray Serve starts."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:PROTOCOL"
