"""The websocket over a real loopback server: what a client hears, in which order, and what it hears when it returns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets

from serve_app.api.app import create_app
from serve_app.api.comfy.jobs import subscriptions
from serve_app.errors import NotReadyError
from serve_app.scheduler.events import published_jobs
from serve_app.service.service import Service
from tests.unit.api.http_server import listening

JOB, OTHER = (f"550e8400-e29b-41d4-a716-44665544000{i}" for i in range(2))
SHOWN = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}


@contextlib.asynccontextmanager
async def ingress(service: Service) -> AsyncIterator[str]:
    """Run one ingress replica's application on a free port, in this event loop."""
    async with listening(create_app(service)) as url:
        yield url.removeprefix("http://")


@pytest.fixture
async def server(service: Service) -> AsyncIterator[str]:
    async with ingress(service) as host:
        yield host


class Client:
    """A client's socket; received frames are abbreviated, as ("executing", "3")."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def frame(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self._connection.recv(), 60))

    async def frames(self, until: str) -> list[dict[str, Any]]:
        """Return the frames up to and with the first of a type."""
        heard = [await self.frame()]
        while heard[-1]["type"] != until:
            heard.append(await self.frame())
        return heard

    async def job(self) -> list[dict[str, Any]]:
        """Return the frames up to the end of a job, without the queue's length."""
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1] != {"type": "executing", "data": {"node": None, "prompt_id": JOB}}:
            frame = await self.frame()
            if frame["type"] != "status":
                heard.append(frame)
        return heard

    async def rest(self) -> list[dict[str, Any]]:
        """Return all that was sent up to now, and close the connection."""
        await (await self._connection.ping())
        await self._connection.close()
        heard = []
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                heard.append(await self.frame())
        return heard

    async def say(self, message: Any) -> None:
        await self._connection.send(message if isinstance(message, str) else json.dumps(message))


@contextlib.asynccontextmanager
async def client(host: str, client_id: str = "c", path: str = "/ws") -> AsyncIterator[Client]:
    async with websockets.connect(f"ws://{host}{path}?clientId={client_id}") as connection:
        yield Client(connection)


async def submit(host: str, example: dict[str, Any], job_id: str = JOB, client_id: str | None = "c") -> None:
    body = {**example, "prompt_id": job_id, "client_id": client_id}
    async with httpx.AsyncClient(base_url=f"http://{host}") as http:
        assert (await http.post("/api/prompt", json=body)).status_code == 200


async def run(replica, job_id: str = JOB) -> None:
    """Let a job of one sampling and one output node run through."""
    await replica.cached(job_id, ["1"])
    await replica.start(job_id)
    await replica.executing(job_id, "3")
    await replica.progress(job_id, "3", 1, 2)
    await replica.finish(job_id, "3")
    await replica.executing(job_id, "6")
    await replica.succeed(job_id, {"6": SHOWN})


def kinds(frames: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return each frame's type and what it is about."""
    told = []
    for frame in frames:
        data = frame["data"]
        if frame["type"] == "progress_state":
            told.append(("state", {node_id: node["state"] for node_id, node in data["nodes"].items()}))
        elif frame["type"] == "status":
            told.append(("status", data["status"]["exec_info"]["queue_remaining"]))
        else:
            told.append((frame["type"], data.get("node", data.get("nodes"))))
    return told


STORY = [
    ("execution_start", None),
    ("execution_cached", ["1"]),
    ("state", {"3": "running"}),
    ("executing", "3"),
    ("state", {"3": "running"}),
    ("progress", "3"),
    ("state", {"3": "finished"}),
    ("state", {"3": "finished", "6": "running"}),
    ("executing", "6"),
    ("executed", "6"),
    ("state", {"3": "finished", "6": "finished"}),
    ("execution_success", None),
    ("executing", None),
]


@pytest.mark.parametrize("path", ["/ws", "/api/ws"])
async def test_the_first_frame_is_the_queues_length_and_the_clients_id(server, path):
    async with client(server, "me", path) as me:
        greeting = await me.frame()
    assert greeting == {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}}


async def test_a_client_without_an_id_gets_one(server):
    async with client(server, "") as me:
        assert len((await me.frame())["data"]["sid"]) == 32


async def test_a_client_hears_its_job_in_comfyuis_order(server, replica, example):
    async with client(server) as me:
        await me.frame()
        await submit(server, example)
        assert kinds([await me.frame()]) == [("status", 1)]
        await run(replica)
        frames = await me.job()
    assert kinds(frames) == STORY
    assert all(frame["data"]["prompt_id"] == JOB for frame in frames)
    assert frames[9]["data"] == {"node": "6", "display_node": "6", "output": SHOWN, "prompt_id": JOB}
    assert frames[5]["data"] == {"value": 1, "max": 2, "prompt_id": JOB, "node": "3"}


async def test_the_queues_new_length_comes_between_a_jobs_success_and_its_end(server, replica, example):
    async with client(server) as me:
        await submit(server, example)
        await run(replica)
        await me.frames("execution_success")
        assert kinds([await me.frame(), await me.frame()]) == [("status", 0), ("executing", None)]


async def test_the_history_is_there_when_the_end_event_arrives(server, replica, example):
    async with client(server) as me, httpx.AsyncClient(base_url=f"http://{server}") as http:
        await submit(server, example)
        await run(replica)
        await me.job()
        assert (await http.get(f"/api/history/{JOB}")).json()[JOB]["status"]["completed"] is True


async def test_other_clients_get_the_queues_length_and_nothing_of_the_job(server, replica, example):
    async with client(server, "other") as other, client(server) as me:
        await other.frame()
        await submit(server, example)
        assert kinds([await other.frame()]) == [("status", 1)]
        await run(replica)
        await me.job()
        assert kinds([await other.frame()]) == [("status", 0)]


async def test_no_client_hears_of_a_job_without_a_client(server, replica, example):
    async with client(server) as me:
        await me.frame()
        await submit(server, example, client_id=None)
        assert kinds([await me.frame()]) == [("status", 1)]
        await run(replica)
        assert kinds([await me.frame()]) == [("status", 0)]


async def test_a_failure_ends_with_its_error_and_no_success(server, replica, example):
    failure = {"node": "3", "class_type": "KSampler", "exception_type": "ValueError", "message": "hot", "traceback": []}
    async with client(server) as me:
        await submit(server, example)
        await replica.start(JOB)
        await replica.executing(JOB, "3")
        await replica.fail(JOB, failure)
        frames = await me.job()
    assert kinds(frames)[-2:] == [("execution_error", None), ("executing", None)]
    error = frames[-2]["data"]
    assert (error["node_id"], error["node_type"], error["exception_message"]) == ("3", "KSampler", "hot\n")
    assert {"executed", "exception_type", "traceback", "current_inputs", "current_outputs"} <= error.keys()


async def test_an_interrupt_names_the_node_that_ran(server, replica, example):
    async with client(server) as me, httpx.AsyncClient(base_url=f"http://{server}") as http:
        await submit(server, example)
        await replica.start(JOB)
        await replica.executing(JOB, "3")
        await http.post("/api/interrupt", json={"prompt_id": JOB})
        frames = await me.job()
    assert kinds(frames)[-2:] == [("execution_interrupted", None), ("executing", None)]
    assert (frames[-2]["data"]["node_id"], frames[-2]["data"]["node_type"]) == ("3", "KSampler")


async def test_a_job_that_is_withdrawn_while_it_waits_is_a_change_of_the_queue_only(server, example):
    async with client(server) as me, httpx.AsyncClient(base_url=f"http://{server}") as http:
        await me.frame()
        await submit(server, example)
        await http.post("/api/queue", json={"delete": [JOB]})
        while kinds([await me.frame()]) != [("status", 0)]:
            pass
        await submit(server, example, OTHER)
        assert kinds([await me.frame()]) == [("status", 1)]


async def test_no_event_of_a_job_arrives_before_its_submission_is_answered(
    server, service, replica, example, monkeypatch
):
    monkeypatch.setattr(published_jobs, "ANSWER_S", 3600)
    async with client(server) as me, client(server, "other") as beside:
        await me.frame()
        submitted = await service.submit({**example, "prompt_id": JOB, "client_id": "c"})
        await run(replica)
        await beside.frame()
        while kinds([await beside.frame()]) != [("status", 0)]:
            pass
        await service.answered(submitted)
        heard = kinds(await me.frames("execution_success"))
    assert heard == STORY[: len(heard)]


async def test_flags_in_the_first_message_are_answered_with_the_servers(server):
    async with client(server) as me, httpx.AsyncClient(base_url=f"http://{server}") as http:
        await me.say({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        answer = (await me.frames("feature_flags"))[-1]
        assert answer["data"] == (await http.get("/api/features")).json()
        assert answer["data"]["supports_preview_metadata"] is True


@pytest.mark.parametrize("first", ["not JSON", "[]", '{"type": "other"}'])
async def test_flags_after_another_message_and_nonsense_are_ignored(server, replica, example, first):
    async with client(server) as me:
        await me.say(first)
        await me.say({"type": "feature_flags", "data": {}})
        await submit(server, example)
        await run(replica)
        assert "feature_flags" not in dict(kinds(await me.job()))


async def test_a_silent_client_hears_the_queues_length_again_and_again(server, monkeypatch):
    monkeypatch.setattr(subscriptions, "KEEPALIVE_S", 0.1)
    async with client(server) as me:
        await me.frame()
        assert kinds([await me.frame(), await me.frame()]) == [("status", 0)] * 2


# Pictures -------------------------------------------------------------------------------------------------------------


async def picture(host: str, replica, example, flags: dict[str, Any] | None) -> bytes:
    """Return the first binary frame of a client with these feature flags."""
    async with websockets.connect(f"ws://{host}/ws?clientId=c") as connection:
        if flags is not None:
            await connection.send(json.dumps({"type": "feature_flags", "data": flags}))
            await Client(connection).frames("feature_flags")
        await submit(host, example)
        await replica.start(JOB)
        await replica.executing(JOB, "3")
        await replica.preview(JOB, "3", b"a JPEG")
        while True:
            if isinstance(heard := await asyncio.wait_for(connection.recv(), 60), bytes):
                return heard


@pytest.mark.parametrize("flags", [None, {}, {"supports_preview_metadata": False}])
async def test_a_picture_is_the_kind_of_frame_the_kind_of_image_and_the_image(server, replica, example, flags):
    assert await picture(server, replica, example, flags) == struct.pack(">II", 1, 1) + b"a JPEG"


async def test_a_client_that_asks_for_metadata_gets_the_node_of_a_preview(server, replica, example):
    frame = await picture(server, replica, example, {"supports_preview_metadata": True})
    kind, length = struct.unpack(">II", frame[:8])
    assert (kind, frame[8 + length :]) == (4, b"a JPEG")
    assert json.loads(frame[8 : 8 + length]) == {
        "node_id": "3",
        "prompt_id": JOB,
        "display_node_id": "3",
        "parent_node_id": None,
        "real_node_id": "3",
        "image_type": "image/jpeg",
    }


# The log --------------------------------------------------------------------------------------------------------------


async def subscribe(host: str, client_id: str, *, enabled: bool = True) -> None:
    async with httpx.AsyncClient(base_url=f"http://{host}") as http:
        wish = {"clientId": client_id, "enabled": enabled}
        assert (await http.patch("/internal/logs/subscribe", json=wish)).status_code == 200


def logged(frames: list[dict[str, Any]]) -> str:
    shown = [frame["data"] for frame in frames if frame["type"] == "logs"]
    assert all(data["size"] == {"cols": 80, "rows": 24} for data in shown)
    return "".join(entry["m"] for data in shown for entry in data["entries"])


async def test_a_client_that_subscribes_gets_the_log_of_its_jobs(server, replica, example):
    async with client(server) as me, client(server, "other") as other:
        for name, socket in (("c", me), ("other", other)):
            await socket.frames("status")
            await subscribe(server, name)
        await submit(server, example)
        await run(replica)
        assert re.fullmatch(r"got prompt\nPrompt executed in \d+\.\d\d seconds\n", logged(await me.job()))
        assert logged(await other.rest()) == ""


async def test_a_failure_is_logged_with_its_traceback(server, replica, example):
    async with client(server) as me:
        await me.frames("status")
        await subscribe(server, "c")
        await submit(server, example)
        await replica.start(JOB)
        failure = {"node": "3", "class_type": "KSampler", "exception_type": "ValueError", "message": "too hot"}
        await replica.fail(JOB, {**failure, "traceback": ("line 1\n", "line 2\n")})
        assert logged(await me.job()) == "got prompt\n!!! Exception during processing !!! too hot\nline 1\nline 2\n"


async def test_a_client_that_unsubscribes_gets_no_log(server, replica, example):
    async with client(server) as me:
        await me.frames("status")
        await subscribe(server, "c")
        await subscribe(server, "c", enabled=False)
        await submit(server, example)
        await run(replica)
        assert logged(await me.job()) == ""


# Returning ------------------------------------------------------------------------------------------------------------


async def test_a_client_that_comes_after_its_job_hears_all_of_it(server, replica, example):
    await submit(server, example)
    await run(replica)
    async with client(server) as me:
        assert kinds(await me.job()) == STORY


async def test_a_client_that_returns_hears_what_it_missed_once_and_in_order(server, replica, example):
    await submit(server, example)
    async with client(server) as me:
        await replica.cached(JOB, ["1"])
        await replica.start(JOB)
        await replica.executing(JOB, "3")
        first = await me.frames("executing")
    await replica.progress(JOB, "3", 1, 2)
    await replica.finish(JOB, "3")
    await replica.executing(JOB, "6")
    await replica.succeed(JOB, {"6": SHOWN})
    async with client(server) as me:
        rest = await me.job()
    assert [frame for frame in kinds([*first, *rest]) if frame[0] != "status"] == STORY


async def test_a_client_that_reconnects_gets_its_running_jobs_state_first(server, replica, example):
    await submit(server, example)
    async with client(server) as me:
        await replica.start(JOB)
        await replica.executing(JOB, "3")
        await me.frames("executing")
    async with client(server) as me:
        assert kinds(await me.frames("progress_state")) == [("status", 1), ("state", {"3": "running"})]


async def test_a_client_may_return_through_another_replica(service, replica, example):
    async with ingress(service) as one, ingress(service) as two:
        async with client(one) as me:
            await submit(two, example)
            await replica.start(JOB)
            await replica.executing(JOB, "3")
            await me.frames("executing")
        await replica.finish(JOB, "3")
        async with client(two) as me:
            await replica.executing(JOB, "6")
            heard = kinds(await me.frames("executing"))
    assert heard == [
        ("status", 1),
        ("state", {"3": "running"}),
        ("state", {"3": "finished"}),
        ("state", {"3": "finished", "6": "running"}),
        ("executing", "6"),
    ]


async def test_each_output_event_arrives_once_though_a_replica_dies(service, replica, example):
    heard: list[str] = []
    example["prompt"] |= {"7": example["prompt"]["6"], "8": example["prompt"]["6"]}
    async with ingress(service) as two:
        async with ingress(service) as one:
            me = await websockets.connect(f"ws://{one}/ws?clientId=c")
            await submit(one, example)
            await replica.start(JOB)
            await replica.output(JOB, "6", SHOWN)
            heard += [frame["type"] for frame in await Client(me).frames("executed")]
        await replica.output(JOB, "7", SHOWN)
        async with client(two) as again:
            await replica.output(JOB, "8", SHOWN)
            frames = await again.job()
        await me.close()
    assert heard.count("executed") == 1
    assert [frame["data"]["node"] for frame in frames if frame["type"] == "executed"] == ["7", "8"]


async def test_a_newer_socket_takes_over_and_the_older_one_falls_silent(service, replica, example):
    async with ingress(service) as one, ingress(service) as two, client(one) as old, client(two) as new:
        async with client(one, "other") as beside:
            await submit(one, example)
            await run(replica)
            assert kinds(await new.job()) == STORY
            await beside.frame()
            while kinds([await beside.frame()]) != [("status", 0)]:
                pass
        assert {kind for kind, _ in kinds(await old.rest())} <= {"status"}


async def test_a_socket_of_the_same_client_that_goes_does_not_take_the_newer_one_with_it(server, replica, example):
    async with client(server) as new:
        async with client(server) as old:
            await old.frame()
        async with client(server) as newest:
            await newest.frame()
            await submit(server, example)
            await run(replica)
            assert kinds(await newest.job()) == STORY
        await new.frame()


async def test_a_server_that_is_not_ready_refuses_the_connection(server, scheduler):
    scheduler.refusal = NotReadyError("starting")
    with pytest.raises(websockets.InvalidStatus):
        async with client(server):
            pass


async def test_sockets_outlive_a_scheduler_that_is_away(server, replica, scheduler, example, monkeypatch):
    monkeypatch.setattr(subscriptions, "RETRY_S", 0.02)
    monkeypatch.setattr(subscriptions, "KEEPALIVE_S", 0.1)
    async with client(server) as me:
        await me.frame()
        scheduler.refusal = NotReadyError("restarting")
        await scheduler.refused.wait()
        scheduler.refusal = None
        await submit(server, example)
        await run(replica)
        assert kinds(await me.job()) == STORY
