"""A receiver of webhooks that is now and then away, slow or wrong."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = (500, 204, None, 204, 204, 503, 204, 500)
"""What the receiver answers first; None is to let a second pass and close the connection. Then all goes well."""


class Receiver:
    """Notes what it says to have taken. answers: what it answers first."""

    def __init__(self, port: int, host: str = "127.0.0.1", answers: Sequence[int | None] = ANSWERS) -> None:
        self.taken: list[tuple[str, str]] = []
        coming = itertools.chain(answers, itertools.repeat(204))
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = next(coming)
                if answer is None:
                    time.sleep(1.0)
                    return
                if answer == 204:
                    receiver.taken.append((said["data"]["id"], said["type"]))
                self.send_response(answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def stories(self) -> dict[str, list[str]]:
        """Return each job's events in the order in which each first arrived."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for job_id, event in list(self.taken):
            if event not in found[job_id]:
                found[job_id].append(event)
        return dict(found)
