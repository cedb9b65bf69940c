"""A captive portal of the tests: answers every request 200 with its login page, as such networks do."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

XHTML = (
    b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>Welcome</title></head>'
    b"<body><p>Please log in</p></body></html>"
)
HTML = b"<!doctype html><html><head><title>Welcome<body><p>Please log in"


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    page = XHTML
    content_type = "text/html"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(self.page)))
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.page)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class CaptivePortal:
    """One, on a port of loopback. content_type: what it says its page is."""

    def __init__(self, page: bytes, content_type: str = "text/html") -> None:
        handler = type("Page", (_Page,), {"page": page, "content_type": content_type})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
