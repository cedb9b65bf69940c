"""ComfyUI's native dialect on a real server: what its scripts and web page do."""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.cluster.server import Server, txt2img


@contextlib.contextmanager
def listening(server: Server, client_id: str) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}/ws?clientId={client_id}") as socket:
        yield socket


def until_the_end(socket: ClientConnection, job_id: str) -> list[dict[str, Any]]:
    """Return the frames up to the end of a job, as ComfyUI's own script waits for it."""
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1] != {"type": "executing", "data": {"node": None, "prompt_id": job_id}}:
        frames.append(json.loads(socket.recv(timeout=120)))
    return frames


def submit(server: Server, prompt: dict[str, Any], client_id: str) -> str:
    job_id = str(uuid.uuid4())
    body = {"prompt": prompt, "client_id": client_id, "prompt_id": job_id, "extra_data": {"extra_pnginfo": {}}}
    answer = server.http.post("/api/prompt", content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"prompt_id": job_id, "number": answer.json()["number"], "node_errors": {}}
    return job_id


def test_a_script_gets_its_images_when_it_hears_the_end(server: Server):
    with listening(server, "script") as socket:
        job_id = submit(server, txt2img(901, steps=4), "script")
        frames = until_the_end(socket, job_id)
    entry = server.get(f"/api/history/{job_id}")[job_id]
    images = [server.http.get("/api/view", params=shown).content for shown in entry["outputs"]["6"]["images"]]
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(64, 64)]
    executing = [frame["data"]["node"] for frame in frames if frame["type"] == "executing"]
    assert sorted(executing[:-1]) == sorted(set(executing[:-1]))
    # Nodes that another test's job had in common with this one are not run again.
    cached = [node for frame in frames if frame["type"] == "execution_cached" for node in frame["data"]["nodes"]]
    assert {"3", "4", "5", "6"} <= {*executing, *cached}
    assert {"5", "6"} <= set(executing)
    steps = [frame["data"]["value"] for frame in frames if frame["type"] == "progress"]
    assert steps == sorted(steps)
    [executed] = [frame["data"] for frame in frames if frame["type"] == "executed"]
    assert (executed["node"], executed["output"]) == ("6", entry["outputs"]["6"])
    assert [name for name, _ in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]


def test_a_job_that_is_run_again_shows_its_output_without_running(server: Server):
    with listening(server, "again") as socket:
        until_the_end(socket, submit(server, txt2img(902), "again"))
        again = submit(server, txt2img(902), "again")
        frames = until_the_end(socket, again)
    mine = [frame for frame in frames if frame["data"].get("prompt_id") == again]
    assert [frame["type"] for frame in mine if frame["type"] != "progress_state"] == [
        "execution_start",
        "execution_cached",
        "executed",
        "execution_success",
        "executing",
    ]
    assert server.get(f"/api/history/{again}")[again]["outputs"]["6"]["images"]


def test_a_client_that_leaves_and_returns_hears_everything_once(server: Server):
    with listening(server, "roamer") as socket:
        job_id = submit(server, txt2img(903, steps=30, side=128), "roamer")
        before = []
        while not before or before[-1]["type"] != "progress":
            before.append(json.loads(socket.recv(timeout=120)))
    with listening(server, "roamer") as socket:
        after = until_the_end(socket, job_id)
    heard = [frame for frame in before + after if frame["data"].get("prompt_id") == job_id]
    for kind in ("execution_start", "execution_cached", "executed", "execution_success"):
        assert sum(frame["type"] == kind for frame in heard) == 1, kind
    nodes = [frame["data"]["node"] for frame in heard if frame["type"] == "executing"]
    assert sorted(nodes[:-1]) == sorted(set(nodes[:-1]))
    assert {"3", "5", "6"} <= set(nodes)
    steps = [frame["data"]["value"] for frame in heard if frame["type"] == "progress"]
    assert steps == sorted(set(steps))


def test_an_interrupt_ends_the_job_and_stays_in_its_history(server: Server):
    with listening(server, "impatient") as socket:
        job_id = submit(server, txt2img(904, steps=5000), "impatient")
        while json.loads(socket.recv(timeout=120))["type"] != "progress":
            pass
        assert server.http.post("/api/interrupt", json={"prompt_id": job_id}).content == b""
        frames = until_the_end(socket, job_id)
    [interrupted] = [frame["data"] for frame in frames if frame["type"] == "execution_interrupted"]
    assert (interrupted["node_id"], interrupted["node_type"]) == ("3", "KSampler")
    status = server.get(f"/api/history/{job_id}")[job_id]["status"]
    assert (status["status_str"], status["messages"][-1][0]) == ("error", "execution_interrupted")


def test_an_upload_is_a_choice_of_the_loader_at_once_and_can_be_used(server: Server):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "PNG")
    name = f"{uuid.uuid4()}.png"
    uploaded = server.http.post("/api/upload/image", files={"image": (name, buffer.getvalue(), "image/png")})
    assert uploaded.json() == {"name": name, "subfolder": "", "type": "input"}
    choices = server.get("/api/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"][0]
    assert name in choices
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with listening(server, "uploader") as socket:
        job_id = submit(server, prompt, "uploader")
        until_the_end(socket, job_id)
    [shown] = server.get(f"/api/history/{job_id}")[job_id]["outputs"]["2"]["images"]
    image = Image.open(io.BytesIO(server.http.get("/api/view", params=shown).content))
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_the_page_finds_what_it_asks_for_when_it_opens(server: Server):
    assert server.get("/api/system_stats")["system"]["argv"]
    assert server.get("/api/users")["storage"] == "server"
    # The page's own first workflow, where the page is installed; no pack is.
    assert all(path.startswith("/extensions/serve_app/") for path in server.get("/api/extensions"))
    assert server.http.post("/api/settings/Comfy.X", content="true").status_code == 200
    assert server.get("/api/settings")["Comfy.X"] is True
    assert server.http.post("/api/userdata/workflows%2Fa%20b.json", content="{}").json() == "workflows/a b.json"
    assert server.get("/api/userdata", dir="workflows") == ["a b.json"]
    described = server.get("/api/object_info")
    assert "sd15.safetensors" in described["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    jobs = server.get("/api/jobs", status="completed,failed,cancelled", limit=64, offset=0)
    assert all(isinstance(job["create_time"], int) for job in jobs["jobs"])


def test_the_root_speaks_comfyui_when_the_header_asks_for_it(server: Server):
    headers = {"X-Comfy-Dialect": "comfy"}
    assert server.http.get("/queue", headers=headers).json()["queue_running"] == []
    refused = server.http.post("/prompt", content="{}", headers=headers)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "no_prompt")
