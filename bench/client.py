"""A client that takes as little of the machine as it can: it shares the cores with the servers it measures.

It speaks what the contract and ComfyUI have in common: POST /prompt, GET /history/{id} and, under `/ws`, ComfyUI's
messages.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from websockets.sync.client import ClientConnection, connect

PAUSE_S = 0.005
GIVE_UP_S = 900.0


class Client:
    """One connection to a server at 127.0.0.1, kept for the length of a run."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def accepts(self, prompt: Mapping[str, Any]) -> bool:
        """Whether the server takes a job now. One that is not there, or not ready, does not."""
        try:
            accepted = self._ask("POST", "/prompt", {"prompt": prompt})[0] == 200
            self.close()
            return accepted
        except (OSError, http.client.HTTPException):
            self.close()
            return False

    def finds(self, path: str) -> bool:
        """Whether a path is there now."""
        try:
            return self._ask("GET", path, None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            self.close()

    def post(self, prompt: Mapping[str, Any], client_id: str = "") -> str:
        """Queue a job and return its id. client_id: who is told of it. Errors: RuntimeError with the server's words."""
        status, answer = self._ask("POST", "/prompt", {"prompt": prompt, "client_id": client_id})
        if status != 200:
            raise RuntimeError(f"POST /prompt was answered {status}: {answer}")
        return str(answer["prompt_id"])

    def wait(self, job_id: str, began_s: float, quiet_s: float) -> None:
        """Return once the job is in the history as success.

        began_s: when it was queued, by time.perf_counter(). quiet_s: for how long after that not to ask. Then it asks
        at intervals of a fiftieth of the time since, so that what asking adds stays small beside it.
        Errors: RuntimeError if the job failed, TimeoutError.
        """
        time.sleep(max(0.0, began_s + quiet_s - time.perf_counter()))
        while (elapsed_s := time.perf_counter() - began_s) < GIVE_UP_S:
            entry = self._ask("GET", f"/history/{job_id}", None)[1].get(job_id)
            if entry and entry["status"]["completed"]:
                return
            if entry and entry["status"]["status_str"] in ("error", "cancelled"):
                raise RuntimeError(f"job {job_id} failed: {entry['status']}")
            time.sleep(max(PAUSE_S, elapsed_s / 50))
        raise TimeoutError(f"job {job_id} has not ended after {GIVE_UP_S:g} s")

    def get(self, path: str) -> Any:
        """Return what is answered to a GET. Errors: RuntimeError if it is not 200."""
        status, answer = self._ask("GET", path, None)
        if status != 200:
            raise RuntimeError(f"GET {path} was answered {status}: {answer}")
        return answer

    def get_s(self, path: str) -> float:
        """Return the seconds that the whole answer to a GET takes. Errors: RuntimeError if it is not 200."""
        began = time.perf_counter()
        self.get(path)
        return time.perf_counter() - began

    def run(self, prompts: Sequence[Mapping[str, Any]], expected_s: float = 0.0) -> float:
        """Queue all, wait for all, and return the seconds from the first POST until the last is in the history.

        expected_s: before nine tenths of this the client asks for nothing, so that asking costs the server nothing.
        """
        began = time.perf_counter()
        for job_id in [self.post(prompt) for prompt in prompts]:
            self.wait(job_id, began, 0.9 * expected_s)
        took_s = time.perf_counter() - began
        # Until its next turn the server may close the connection, as idle ones are.
        self.close()
        return took_s

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, content.decode(errors="replace")


class Awaiting:
    """A client that is told of the ends of its jobs by a websocket.

    Asking for an end measures how often is asked, and what an answer takes.
    """

    def __init__(self, client: Client, port: int, client_id: str) -> None:
        self._client, self._client_id = client, client_id
        self._socket: ClientConnection = connect(f"ws://127.0.0.1:{port}/ws?clientId={client_id}")

    def run(self, prompt: Mapping[str, Any]) -> float:
        """Queue a job, wait for it, and return the seconds from the POST until its end is told.

        Errors: RuntimeError if the job failed; websockets' ConnectionClosed.
        """
        began = time.perf_counter()
        job_id = self._client.post(prompt, self._client_id)
        while not self._tells_of(job_id):
            pass
        return time.perf_counter() - began

    def close(self) -> None:
        self._socket.close()
        self._client.close()

    def _tells_of(self, job_id: str) -> bool:
        """Whether the next message is that a job has ended."""
        if isinstance(received := self._socket.recv(), bytes):
            return False
        message = json.loads(received)
        if message["type"] == "execution_error":
            raise RuntimeError(f"job {job_id} failed: {message['data']}")
        return bool(message["type"] == "executing" and message["data"] == {"node": None, "prompt_id": job_id})
