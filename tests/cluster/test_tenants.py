"""Tenants on a real server: each has its own, a flood leaves others their share, and keys change under load."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection

from tests.cluster.server import Application, Server, wait_for
from tests.cluster.tenants import CLIENT, TenantServer, running

PACK = """
import asyncio

class Sleeps:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"n": ("INT", {"default": 0, "max": 1000000}), "seconds": ("FLOAT", {"max": 600.0})}}

    async def go(self, n, seconds):
        await asyncio.sleep(seconds)
        return {"ui": {"n": [n]}}

NODE_CLASS_MAPPINGS = {"Sleeps": Sleeps}
"""
TENANTS = ("a", "b")
FLOOD, QUIET = 200, 40
LIGHT_S = 0.1
JAIN = 0.95
LARGE, PIECE = 128 * 1024 * 1024, 1024 * 1024
"""Of a model file: more than any other body may be."""
ROTATIONS = 2
REPLACED = [401] * ROTATIONS + [200]
COLOURS = {"a": 0xFF0000, "b": 0x0000FF}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TenantServer]:
    root = tmp_path_factory.mktemp("tenants")
    (root / "packs").mkdir()
    (root / "packs" / "sleeps.py").write_text(PACK)
    pool = {"name": "gpu", "num_cpus": 1, "threads": 1, "tasks_per_replica": 2}
    ingress = {"root_dialect": "comfy", "max_replicas": 2}
    more = {"pools": [pool], "ingress": ingress, "model_changes": {}}
    with running(root, *TENANTS, custom_nodes_dir=str(root / "packs"), **more) as tenants:
        yield tenants


def gpu_s(tenants: TenantServer) -> dict[str, float]:
    """Return the GPU-seconds that each tenant has had today."""
    found = tenants.server.get("/tenants")["tenants"]
    return {one["tenant"]: one["gpu_s_today"] for one in found if one["tenant"]}


def pause(server: Server) -> None:
    """Start nothing more, and return once nothing runs."""
    assert server.http.post("/pause", json={}).status_code == 200
    wait_for(lambda: not server.get("/queue")["queue_running"], "the end of what runs")


def resume(server: Server) -> None:
    assert server.http.post("/resume", json={}).status_code == 200


def sleeping(n: int, seconds: float) -> dict[str, Any]:
    return {"1": {"class_type": "Sleeps", "inputs": {"n": n, "seconds": seconds}}}


def saving(colour: int) -> dict[str, Any]:
    empty = {"width": 16, "height": 16, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "mine"}},
    }


def jobs(client: Application, state: str) -> list[str]:
    """Return the ids of a tenant's jobs in `pending` or `running`, as ComfyUI's queue lists them."""
    return [entry[1] for entry in client.get("/queue")[f"queue_{state}"]]


class Listener:
    """Notes all that a websocket of a client's is told in JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.heard: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for frame in self._socket:
            if isinstance(frame, str):
                self.heard.append(json.loads(frame))

    def about(self) -> set[str]:
        """Return the jobs that it has been told of."""
        return {message["data"]["prompt_id"] for message in list(self.heard) if "prompt_id" in message["data"]}

    def has_heard(self, kind: str, job_id: str) -> bool:
        return any(m["type"] == kind and m["data"].get("prompt_id") == job_id for m in list(self.heard))


def test_two_tenants_see_nothing_of_each_other(tenants: TenantServer) -> None:
    with contextlib.ExitStack() as stack:
        clients = {tenant: stack.enter_context(tenants.client(tenant)) for tenant in TENANTS}
        listeners = {tenant: Listener(stack.enter_context(tenants.socket(tenant))) for tenant in TENANTS}
        runs = {
            tenant: client.submit(sleeping(number, 600.0), client_id=CLIENT)
            for number, (tenant, client) in enumerate(clients.items())
        }
        for tenant, client in clients.items():
            wait_for(lambda c=client: jobs(c, "running"), "a job that runs")  # type: ignore[misc]
            assert jobs(client, "running") == [runs[tenant]]
        waiting = {
            tenant: client.submit(saving(COLOURS[tenant]), client_id=CLIENT) for tenant, client in clients.items()
        }
        for tenant, client in clients.items():
            assert jobs(client, "pending") == [waiting[tenant]]

        # b ends all that it can name of a's, and all that it has itself.
        a, b = clients["a"], clients["b"]
        for job_id in (runs["a"], waiting["a"]):
            assert b.http.post("/interrupt", json={"prompt_id": job_id}).status_code == 200
            assert b.http.post("/queue", json={"delete": [job_id]}).status_code == 200
            assert b.http.delete(f"/jobs/{job_id}").status_code == 404
            assert b.http.get(f"/jobs/{job_id}/events", params={"timeout_s": 0}).status_code == 404
            assert b.get(f"/history/{job_id}") == {}
        assert b.http.post("/interrupt").status_code == 200
        wait_for(lambda: listeners["b"].has_heard("execution_interrupted", runs["b"]), "b's interrupt")
        # A slot is free, and a's and b's pictures are made beside a's job, each under the same name.
        assert runs["a"] in jobs(a, "running")
        for tenant, client in clients.items():
            entry = wait_for(lambda c=client, t=tenant: c.get(f"/history/{waiting[t]}"), "a picture")[waiting[tenant]]  # type: ignore[misc]
            [shown] = entry["outputs"]["2"]["images"]
            assert shown["filename"] == "mine_00001_.png"
            picture = client.http.get("/view", params=shown)
            assert picture.status_code == 200
            assert picture.content == (tenants.root / "output" / f"@{tenant}" / "mine_00001_.png").read_bytes()
        pictures = [clients[t].http.get("/view", params={"filename": "mine_00001_.png"}).content for t in TENANTS]
        assert pictures[0] != pictures[1]

        assert b.http.post("/history", json={"clear": True}).status_code == 200
        assert b.get("/history") == {}
        assert set(a.get("/history")) == {waiting["a"]}
        assert {job["id"] for job in a.get("/api/jobs")["jobs"]} == {runs["a"], waiting["a"]}
        assert a.http.post("/interrupt").status_code == 200
        wait_for(lambda: listeners["a"].has_heard("execution_interrupted", runs["a"]), "a's interrupt")
        for tenant, listener in listeners.items():
            ended = waiting[tenant]
            wait_for(lambda heard=listener, job=ended: heard.has_heard("execution_success", job), "a picture's end")  # type: ignore[misc]
            assert listener.about() == {runs[tenant], waiting[tenant]}


def test_a_flood_leaves_a_quiet_tenant_its_share_of_the_gpu(tenants: TenantServer) -> None:
    with tenants.client("a") as flood, tenants.client("b") as quiet:
        pause(tenants.server)
        for n in range(FLOOD):
            flood.submit(sleeping(n, LIGHT_S), client_id="flood")
        resume(tenants.server)
        wait_for(lambda: len(jobs(flood, "pending")) < FLOOD - 10, "the first of the flood")
        pause(tenants.server)
        asked = [quiet.submit(sleeping(1000 + n, LIGHT_S)) for n in range(QUIET)]
        before, began_s = gpu_s(tenants), time.time()
        resume(tenants.server)
        wait_for(lambda: len(jobs(quiet, "pending")) <= QUIET // 2, "half of the quiet tenant's jobs")
        pause(tenants.server)
        assert jobs(quiet, "pending"), "it waited no longer"
        assert jobs(flood, "pending"), "the flood is over"
        after = gpu_s(tenants)
        had = [after[tenant] - before.get(tenant, 0.0) for tenant in TENANTS]
        jain = sum(had) ** 2 / (len(had) * sum(one**2 for one in had))
        assert jain >= JAIN, had
        # Whoever comes is served at once: at most what fills the replica starts before it.
        starts = sorted(
            (started_s, job["id"] in asked)
            for client in (flood, quiet)
            for job in client.get("/api/jobs", status="completed", limit=FLOOD)["jobs"]
            if (started_s := job["execution_start_time"] / 1000) > began_s
        )
        assert [is_quiet for _, is_quiet in starts].index(True) <= 2
        assert flood.http.post("/queue", json={"clear": True}).status_code == 200
        resume(tenants.server)
        for job_id in asked:
            assert wait_for(lambda j=job_id: quiet.get(f"/history/{j}"), "a job")[job_id]["status"]["completed"]  # type: ignore[misc]


def test_a_model_that_an_admin_uploads_is_listed_by_every_ingress_at_once(tenants: TenantServer) -> None:
    http, path = tenants.server.http, "/models/loras/large.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE]}}).encode()

    def pieces() -> Iterator[bytes]:
        yield len(header).to_bytes(8, "little") + header
        for _ in range(LARGE // PIECE):
            yield bytes(PIECE)

    def listed() -> list[bool]:
        """Ask by connections of their own, which go to either ingress."""
        asked = (httpx.get(f"{tenants.server.url}/models/loras", headers=dict(http.headers)) for _ in range(6))
        return ["large.safetensors" in answer.json() for answer in asked]

    with tenants.client("a") as a:
        assert a.http.put(path, content=b"no model").status_code == 403
        assert a.http.delete(path).status_code == 403
    put = http.put(path, content=pieces())
    assert (put.status_code, put.json()["size"]) == (201, 8 + len(header) + LARGE)
    assert listed() == [True] * 6
    assert (tenants.root / "models" / "loras" / "large.safetensors").stat().st_size == put.json()["size"]
    assert http.delete(path).status_code == 200
    assert listed() == [False] * 6


class Load(threading.Thread):
    """Asks over and over, with the key that its tenant has at that moment; notes what failed."""

    def __init__(self, tenants: TenantServer, tenant: str, number: int) -> None:
        super().__init__(daemon=True)
        self._tenants, self._tenant, self._number = tenants, tenant, number
        self._ended = threading.Event()
        self.by_key: dict[str, int] = {}
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        with httpx.Client(base_url=self._tenants.server.url, timeout=60.0) as http:
            while not self._ended.wait(0.05):
                key = self._tenants.keys[self._tenant]
                headers = {"Authorization": f"Bearer {key}"}
                self._number += 10
                for method, path, body in (
                    ("POST", "/prompt", {"prompt": sleeping(self._number, 0.0)}),
                    ("GET", "/queue", None),
                    ("GET", "/api/jobs", None),
                ):
                    try:
                        answer = http.request(method, path, headers=headers, json=body)
                    except httpx.HTTPError as error:
                        self.failed.append(f"{method} {path}: {error!r}")
                        continue
                    self.by_key[key] = self.by_key.get(key, 0) + 1
                    if answer.status_code != 200:
                        self.failed.append(f"{method} {path}: {answer.status_code} {answer.text}")

    def end(self) -> None:
        self._ended.set()
        self.join(120)


def test_keys_are_rotated_under_load_and_no_request_fails(tenants: TenantServer) -> None:
    threads = [Load(tenants, tenant, 10_000 + number) for number, tenant in enumerate(TENANTS * 2)]
    used: dict[str, list[str]] = {tenant: [tenants.keys[tenant]] for tenant in TENANTS}

    def all_ask() -> bool:
        now = set(tenants.keys.values())
        return all(now & thread.by_key.keys() or thread.failed for thread in threads)

    try:
        for _ in range(ROTATIONS):
            wait_for(all_ask, "requests with the keys of now")
            for tenant in TENANTS:
                tenants.keys[tenant] = tenants.told("keys", "rotate", shown(tenants.keys[tenant]))
                used[tenant].append(tenants.keys[tenant])
        wait_for(all_ask, "requests with the last keys")
    finally:
        for thread in threads:
            thread.end()
    assert [thread.failed for thread in threads] == [[]] * len(threads)
    assert [len(thread.by_key) for thread in threads] == [ROTATIONS + 1] * len(threads)
    for keys in used.values():
        assert statuses(tenants.server, keys) == [200] * (ROTATIONS + 1), "the old ones hold for a while"
        for key in keys[:-1]:
            tenants.told("keys", "revoke", shown(key))
        wait_for(lambda k=keys: statuses(tenants.server, k) == REPLACED, "the end of the keys before")  # type: ignore[misc]


def shown(key: str) -> str:
    """Return what is shown of a key."""
    return "_".join(key.split("_")[:2])


def statuses(server: Server, keys: list[str]) -> list[int]:
    """Return what a server answers each key with."""
    return [httpx.get(f"{server.url}/queue", headers={"Authorization": f"Bearer {key}"}).status_code for key in keys]
