"""A stand-in for ComfyUI: its protocol over a handful of classes, some of which misbehave. Started as ComfyUI is.

Honest in what matters to who runs jobs there: one queue and one graph at a time, frames in ComfyUI's order to the
client that asked, results cached by content, history, files in the folders that it is given. Arguments of its own make
it refuse to start; the variable STANDIN_LOG names a file in which each graph that begins leaves a line.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

IMAGE, TEXT, FLOAT = "IMAGE", "STRING", "FLOAT"


def described(name: str, inputs: dict[str, Any], outputs: list[str], *, output_node: bool = False) -> dict[str, Any]:
    return {
        "input": {"required": inputs},
        "input_order": {"required": list(inputs)},
        "output": outputs,
        "output_is_list": [False] * len(outputs),
        "output_name": outputs,
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "custom_nodes.standin",
        "category": "standin",
        "output_node": output_node,
    }


CLASSES = {
    "StandInDraw": described("StandInDraw", {"seed": ["INT", {"default": 0, "min": 0, "max": 2**63}]}, [IMAGE]),
    "StandInWork": described(
        "StandInWork",
        {"image": [IMAGE], "seconds": [FLOAT, {"default": 0.1}], "steps": ["INT", {"default": 4}]},
        [IMAGE],
    ),
    "StandInMisbehave": described(
        "StandInMisbehave",
        {"image": [IMAGE], "how": [["kill", "exit", "raise", "deaf", "cancel", "expand"], {}]},
        [IMAGE],
    ),
    "StandInFilm": described("StandInFilm", {"image": [IMAGE], "prefix": [TEXT, {}]}, [], output_node=True),
    "StandInSay": described("StandInSay", {"text": [TEXT, {}]}, [], output_node=True),
    "StandInModel": described(
        "StandInModel", {"name": [["a.safetensors", "b.safetensors"], {}], "image": [IMAGE]}, [IMAGE]
    ),
    "LoadImage": {**described("LoadImage", {"image": [[], {"image_upload": True}]}, [IMAGE]), "python_module": "nodes"},
    "SaveImage": {
        **described(
            "SaveImage", {"images": [IMAGE], "filename_prefix": [TEXT, {"default": "ComfyUI"}]}, [], output_node=True
        ),
        "python_module": "nodes",
    },
}


class Interrupted(Exception):
    pass


class StandIn:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folders = {
            "input": Path(arguments.input_directory),
            "output": Path(arguments.output_directory),
            "temp": Path(arguments.temp_directory) / "temp",
        }
        self.version = arguments.version
        self.models = arguments.extra_model_paths_config
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.pending: list[str] = []
        self.running: dict[str, Any] | None = None
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.history: dict[str, Any] = {}
        self.cache: dict[str, tuple[Any, Any]] = {}
        self.interrupted = False
        self.freed: list[Any] = []

    # HTTP -------------------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_get("/system_stats", self.stats)
        app.router.add_get("/object_info", lambda _: _json(self.classes()))
        app.router.add_get("/extensions", lambda _: _json(["/extensions/standin/page.js"]))
        app.router.add_get("/extensions/standin/page.js", lambda _: _text("// a page of the stand-in"))
        app.router.add_get("/standin/route", lambda _: _json({"pid": os.getpid()}))
        app.router.add_get("/ws", self.ws)
        app.router.add_post("/prompt", self.prompt)
        app.router.add_get("/queue", self.get_queue)
        app.router.add_post("/queue", self.post_queue)
        app.router.add_post("/interrupt", self.interrupt)
        app.router.add_post("/free", self.free)
        app.router.add_get("/freed", lambda _: _json(self.freed))
        app.router.add_get(
            "/history/{id}", lambda r: _json({k: v for k, v in self.history.items() if k == r.match_info["id"]})
        )
        app.router.add_get("/history", lambda _: _json(self.history))
        app.router.add_post("/history", self.post_history)
        app.router.add_get("/view", self.view)
        app.router.add_post("/upload/image", self.upload)
        app.on_startup.append(self.start)
        return app

    def checkpoints(self) -> dict[str, Path]:
        """List files as ComfyUI does: a link counts, wherever it leads."""
        if self.models is None:
            return {}
        folders = yaml.safe_load(Path(self.models).read_text())["serve_app"]
        root = Path(folders["base_path"], folders["checkpoints"])
        found = [Path(where, name) for where, _, names in os.walk(root, followlinks=True) for name in names]
        return {path.relative_to(root).as_posix(): path for path in sorted(found)}

    def classes(self) -> dict[str, Any]:
        names = {"ckpt_name": [list(self.checkpoints()), {}]}
        return {**CLASSES, "StandInCheckpoint": described("StandInCheckpoint", names, [IMAGE])}

    async def start(self, _: web.Application) -> None:
        self.working = asyncio.create_task(self.work())

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": self.version}, "devices": []})

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        errors = {}
        for node_id, node in body["prompt"].items():
            declared = self.classes()[node["class_type"]]["input"]["required"]
            for name, (kind, *_) in declared.items():
                value = node["inputs"].get(name)
                if isinstance(kind, list) and kind and value not in kind:
                    error = {
                        "type": "value_not_in_list",
                        "message": "Value not in list",
                        "details": f"{name}: {value!r}",
                    }
                    errors[node_id] = {"errors": [error], "class_type": node["class_type"], "dependent_outputs": []}
        if errors:
            reason = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
            return web.json_response({"error": reason, "node_errors": errors}, status=400)
        self.pending.append(body["prompt_id"])
        self.queue.put_nowait(body)
        return web.json_response({"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}})

    async def get_queue(self, _: web.Request) -> web.Response:
        running = [] if self.running is None else [[0, self.running["prompt_id"], {}, {}, []]]
        return web.json_response(
            {"queue_running": running, "queue_pending": [[0, p, {}, {}, []] for p in self.pending]}
        )

    async def post_queue(self, request: web.Request) -> web.Response:
        gone = (await request.json()).get("delete", [])
        self.pending = [p for p in self.pending if p not in gone]
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        asked = (await request.json()).get("prompt_id")
        if self.running is not None and asked in (None, self.running["prompt_id"]):
            self.interrupted = True
        return web.Response()

    async def free(self, request: web.Request) -> web.Response:
        wish = await request.json()
        self.freed.append(wish)
        if wish.get("free_memory"):
            self.cache.clear()
        return web.Response()

    async def post_history(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json()).get("delete", []):
            self.history.pop(prompt_id, None)
        return web.Response()

    async def view(self, request: web.Request) -> web.StreamResponse:
        path = self.folders[request.query["type"]] / request.query.get("subfolder", "") / request.query["filename"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["image"]
        folder = self.folders[str(form["type"])] / str(form["subfolder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.filename).write_bytes(file.file.read())
        return web.json_response({"name": file.filename, "subfolder": form["subfolder"], "type": form["type"]})

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        await socket.send_json(
            {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "x"}}
        )
        async for message in socket:
            if message.type == WSMsgType.TEXT and json.loads(message.data)["type"] == "feature_flags":
                await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return socket

    # Running ----------------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        while True:
            body = await self.queue.get()
            if body["prompt_id"] not in self.pending:
                continue
            self.pending.remove(body["prompt_id"])
            self.running, self.interrupted = body, False
            _note(body["prompt_id"])
            outputs: dict[str, Any] = {}
            try:
                await self.execute(body, outputs)
            finally:
                self.history[body["prompt_id"]] = {"outputs": outputs}
                self.running = None
            await self.say("executing", {"node": None}, body)

    async def say(self, kind: str, data: dict[str, Any], body: dict[str, Any]) -> None:
        if socket := self.sockets.get(body.get("client_id", "")):
            await socket.send_json({"type": kind, "data": {**data, "prompt_id": body["prompt_id"]}})

    async def execute(self, body: dict[str, Any], outputs: dict[str, Any]) -> None:
        prompt, order = body["prompt"], []

        def visit(node_id: str) -> None:
            for value in prompt[node_id]["inputs"].values():
                if isinstance(value, list):
                    visit(value[0])
            if node_id not in order:
                order.append(node_id)

        for target in body.get("partial_execution_targets") or []:
            visit(target)
        await self.say("execution_start", {}, body)
        keys: dict[str, str] = {}
        for node_id in order:
            node = prompt[node_id]
            linked = {k: keys[v[0]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
            keys[node_id] = hashlib.sha256(json.dumps([node["class_type"], linked]).encode()).hexdigest()
        cached = [node_id for node_id in order if keys[node_id] in self.cache]
        await self.say("execution_cached", {"nodes": cached}, body)
        values: dict[str, Any] = {}
        for node_id in order:
            if node_id in cached:
                values[node_id], ui = self.cache[keys[node_id]]
                if ui is not None:
                    outputs[node_id] = ui
                    await self.say("executed", {"node": node_id, "display_node": node_id, "output": ui}, body)
                continue
            await self.say("executing", {"node": node_id, "display_node": node_id}, body)
            node = prompt[node_id]
            inputs = {k: values[v[0]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
            try:
                values[node_id], ui = await self.run(node_id, node["class_type"], inputs, body)
            except Interrupted:
                await self.say(
                    "execution_interrupted", {"node_id": node_id, "node_type": node["class_type"], "executed": []}, body
                )
                return
            except Exception as error:
                told = {
                    "node_id": node_id,
                    "node_type": node["class_type"],
                    "exception_message": str(error),
                    "exception_type": type(error).__name__,
                    "traceback": ["Traceback\n", f'  File "{__file__}", line 1, in run\n'],
                    "current_inputs": {},
                    "current_outputs": [],
                    "executed": [],
                }
                await self.say("execution_error", told, body)
                return
            self.cache[keys[node_id]] = (values[node_id], ui)
            if ui is not None:
                outputs[node_id] = ui
                await self.say("executed", {"node": node_id, "display_node": node_id, "output": ui}, body)
            state = {"value": 1, "max": 1, "state": "finished", "node_id": node_id, "display_node_id": node_id}
            await self.say("progress_state", {"nodes": {node_id: state}}, body)
        await self.say("execution_success", {}, body)

    async def run(self, node_id: str, class_type: str, inputs: dict[str, Any], body: dict[str, Any]) -> tuple[Any, Any]:
        match class_type:
            case "StandInDraw":
                return Image.new("RGB", (32, 32), (inputs["seed"] % 256, inputs["seed"] // 256 % 256, 7)), None
            case "StandInWork":
                await self.steps(node_id, inputs, body)
                return inputs["image"], None
            case "StandInCheckpoint":
                return Image.new("RGB", (32, 32), tuple(self.checkpoints()[inputs["ckpt_name"]].read_bytes()[:3])), None
            case "StandInModel":
                return inputs["image"], None
            case "StandInMisbehave":
                return await self.misbehave(node_id, inputs, body), None
            case "LoadImage":
                return Image.open(self.folders["input"] / inputs["image"]).convert("RGB"), None
            case "SaveImage":
                return None, {"images": [self.save(inputs["filename_prefix"], inputs["images"], body)]}
            case "StandInFilm":
                name = self.free_name("output", inputs["prefix"], ".mp4")
                (self.folders["output"] / name).write_bytes(b"film of " + inputs["image"].tobytes()[:3])
                still = self.save(inputs["prefix"], inputs["image"], body)
                film = {
                    "filename": name,
                    "subfolder": "",
                    "type": "output",
                    "format": "video/h264-mp4",
                    "fullpath": "/x",
                }
                return None, {"gifs": [film], "images": [still], "animated": [True]}
            case _:
                await self.text(node_id, "about to say", body)
                return None, {"text": [inputs["text"]]}

    async def steps(self, node_id: str, inputs: dict[str, Any], body: dict[str, Any]) -> None:
        for step in range(inputs["steps"]):
            await asyncio.sleep(inputs["seconds"] / inputs["steps"])
            if self.interrupted:
                raise Interrupted
            await self.say("progress", {"node": node_id, "value": step + 1, "max": inputs["steps"]}, body)
            if body.get("extra_data", {}).get("preview_method", "none") != "none":
                await self.preview(node_id, inputs["image"], body)

    async def misbehave(self, node_id: str, inputs: dict[str, Any], body: dict[str, Any]) -> Any:
        match inputs["how"]:
            case "kill":
                print("about to be killed", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                print("about to exit", flush=True)
                os._exit(3)
            case "raise":
                raise ValueError("the stand-in was told to raise")
            case "deaf":
                await asyncio.sleep(600)
            case "cancel":
                raise Interrupted
            case "expand":
                made = f"{node_id}.0.0.1"
                await self.say("executing", {"node": made, "display_node": node_id}, body)
                ui = {"text": ["made by a node"]}
                await self.say("executed", {"node": made, "display_node": node_id, "output": ui}, body)
        return inputs["image"]

    def free_name(self, area: str, prefix: str, end: str) -> str:
        self.folders[area].mkdir(parents=True, exist_ok=True)
        there = [
            p.name for p in self.folders[area].iterdir() if p.name.startswith(prefix + "_") and p.name.endswith(end)
        ]
        return f"{prefix}_{len(there) + 1:05}_{end}"

    def save(self, prefix: str, image: Image.Image, body: dict[str, Any]) -> dict[str, Any]:
        name = self.free_name("output", prefix, ".png")
        text = PngInfo()
        text.add_text("prompt", json.dumps(body["prompt"]))
        image.save(self.folders["output"] / name, pnginfo=text)
        return {"filename": name, "subfolder": "", "type": "output"}

    async def preview(self, node_id: str, image: Image.Image, body: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        about = json.dumps({"node_id": node_id, "prompt_id": body["prompt_id"]}).encode()
        frame = struct.pack(">II", 4, len(about)) + about + buffer.getvalue()
        if socket := self.sockets.get(body.get("client_id", "")):
            await socket.send_bytes(frame)

    async def text(self, node_id: str, text: str, body: dict[str, Any]) -> None:
        if socket := self.sockets.get(body.get("client_id", "")):
            await socket.send_bytes(struct.pack(">II", 3, len(node_id)) + node_id.encode() + text.encode())


async def _json(value: Any) -> web.Response:
    return web.json_response(value)


async def _text(value: str) -> web.Response:
    return web.Response(text=value, content_type="text/javascript")


def _note(prompt_id: str) -> None:
    if path := os.environ.get("STANDIN_LOG"):
        with open(path, "a") as log:
            log.write(f"{prompt_id} {os.getpid()}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("input", "output", "temp", "user"):
        parser.add_argument(f"--{name}-directory", required=True)
    for name in ("--listen", "--database-url", "--max-upload-size", "--extra-model-paths-config", "--failed-pack"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--version", default="0.33.0")
    parser.add_argument("--start", choices=["well", "exit", "hang", "no-torch", "port"], default="well")
    parser.add_argument("--disable-auto-launch", action="store_true")
    arguments = parser.parse_args()
    print("the stand-in starts", flush=True)
    print("it can do without: ImportError: No module named 'triton'", flush=True)
    match arguments.start:
        case "exit":
            sys.exit("it was told to exit")
        case "hang":
            time.sleep(600)
        case "no-torch":
            import torch_that_is_not_there  # type: ignore[import-not-found] # noqa: F401
        case "port":
            print(f"Port {arguments.port} is already in use on address {arguments.listen}.", flush=True)
            sys.exit(1)
    if arguments.failed_pack:
        print(f"   0.0 seconds (IMPORT FAILED): /comfy/custom_nodes/{arguments.failed_pack}", flush=True)
    web.run_app(StandIn(arguments).app(), host=arguments.listen, port=arguments.port, print=None)


if __name__ == "__main__":
    main()
