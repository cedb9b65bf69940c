"""What there is, in ComfyUI's format: node classes, model files, the machine, users and what they keep."""

from __future__ import annotations

import io
import json
import struct

import httpx
import pytest
from PIL import Image

from serve_app.api.app import create_app
from serve_app.api.comfy.object_info import info
from serve_app.api.comfy.system import system_stats
from serve_app.graph.spec import Input, NodeSpec
from serve_app.scheduler.protocol.cluster_view import ClusterView, Gpu, HostStats
from serve_app.scheduler.protocol.messages import Free
from serve_app.service.service import Service
from serve_app.store.page.userdata import UserData
from tests.usual_limits import LIMITS


async def get(client, path: str, **query):
    response = await client.get(path, params=query or None)
    assert response.status_code == 200, response.text
    return response.json()


# Node classes ---------------------------------------------------------------------------------------------------------


async def test_a_class_is_described_by_its_inputs_outputs_and_names(client):
    described = await get(client, "/api/object_info/EmptyLatentImage")
    assert described == {
        "EmptyLatentImage": {
            "input": {
                "required": {
                    "width": ["INT", {"min": 16, "max": 16384}],
                    "height": ["INT", {"min": 16, "max": 16384}],
                    "batch_size": ["INT", {"min": 1, "max": 4096}],
                }
            },
            "input_order": {"required": ["width", "height", "batch_size"]},
            "is_input_list": False,
            "output": ["LATENT"],
            "output_is_list": [False],
            "output_name": ["LATENT"],
            "output_tooltips": [None],
            "output_matchtypes": None,
            "name": "EmptyLatentImage",
            "display_name": "EmptyLatentImage",
            "description": "",
            "python_module": "nodes",
            "category": "",
            "output_node": False,
            "deprecated": False,
            "experimental": False,
            "dev_only": False,
            "api_node": False,
            "price_badge": None,
            "search_aliases": None,
            "essentials_category": None,
            "has_intermediate_output": False,
        }
    }
    assert (await get(client, "/api/object_info"))["EmptyLatentImage"] == described["EmptyLatentImage"]


async def test_choices_are_lists_and_those_of_files_are_read_now(client):
    described = await get(client, "/api/object_info")
    assert described["KSampler"]["input"]["required"]["sampler_name"] == [["euler", "heun"]]
    assert described["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] == [["sd15.safetensors"]]


def test_files_are_listed_by_what_an_input_takes():
    uploaded = ["a.png", "b.mp4", "c.FLAC", "d.mkv", "e.latent", "f.txt", "g.exr"]
    known = {
        "image_upload": ["a.png", "e.latent", "g.exr"],
        "audio_upload": ["b.mp4", "c.FLAC", "d.mkv"],
        "video_upload": ["b.mp4", "d.mkv"],
        "file_upload": uploaded,
    }
    for upload, listed in known.items():
        for more in ({}, {"multiselect": False}):
            file = Input("file", "COMBO", folder="input", options={upload: True, **more})
            kind, *rest = info(NodeSpec("Load", (file,), (), (), ()), {"input": uploaded})["input"]["required"]["file"]
            assert (rest[0]["options"] if more else kind) == listed


def test_a_class_that_another_server_describes_keeps_its_options_and_has_our_files():
    options = {"options": ["theirs.pt"], "tooltip": "which"}
    theirs = {"file": ["COMBO", options], "plain": [["theirs.pt"]], "steps": ["INT"]}
    files = (Input("file", "COMBO", folder="loras", options=options), Input("plain", "COMBO", folder="loras"))
    spec = NodeSpec("Load", (*files, Input("steps", "INT")), (), (), (), described={"input": {"required": theirs}})
    ours = {"file": [["a.pt"], {"tooltip": "which"}], "plain": [["a.pt"]], "steps": ["INT"]}
    assert info(spec, {"loras": ["a.pt"]}) == {"input": {"required": ours}}


async def test_an_unknown_class_is_an_empty_object(client):
    assert await get(client, "/api/object_info/Nope") == {}


def test_hidden_inputs_of_this_server_are_not_listed():
    hidden = {"prompt": "PROMPT", "store": "STORE", "runtime": "RUNTIME"}
    inputs = (Input("a", "INT"), Input("b", "MASK", "optional", options={"tooltip": "b"}))
    spec = NodeSpec("X", inputs, (), (), (), hidden, output_tooltips=("what",), experimental=True)
    described = info(spec, {})
    assert described["input"] == {
        "required": {"a": ["INT"]},
        "optional": {"b": ["MASK", {"tooltip": "b"}]},
        "hidden": {"prompt": "PROMPT"},
    }
    assert described["input_order"] == {"required": ["a"], "optional": ["b"], "hidden": ["prompt"]}
    assert (described["output_tooltips"], described["experimental"]) == (["what"], True)
    assert described["deprecated"] is False


async def test_a_client_with_the_current_description_gets_304(client):
    first = await client.get("/api/object_info")
    again = await client.get("/api/object_info", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


# Model files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path):
    for name in ("checkpoints/a.safetensors", "embeddings/sub/e.safetensors"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True)
        header = json.dumps({"__metadata__": {"title": "A"}}).encode() if "a." in name else b"{}"
        path.write_bytes(struct.pack("<Q", len(header)) + header)


async def test_model_files_are_listed_by_folder(client, models):
    assert "checkpoints" in await get(client, "/api/models")
    assert await get(client, "/api/models/checkpoints") == ["a.safetensors"]
    assert await get(client, "/api/embeddings") == ["sub/e"]
    assert (await client.get("/api/models/secrets")).status_code == 404
    [file] = await get(client, "/api/experiment/models/checkpoints")
    assert (file["name"], file["pathIndex"]) == ("a.safetensors", 0)
    folders = {folder["name"]: folder["folders"] for folder in await get(client, "/api/experiment/models")}
    assert len(folders["checkpoints"]) == 1


@pytest.mark.parametrize("beside", ["a.png", "a.preview.png"])
async def test_the_picture_beside_a_model_is_served(client, models, tmp_path, beside):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "models" / "checkpoints" / beside)
    answer = await client.get("/api/experiment/models/preview/checkpoints/0/a.safetensors")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (3, 2)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("checkpoints/0/a.safetensors", 404),
        ("checkpoints/0/broken.safetensors", 404),
        ("checkpoints/0/", 404),
        ("checkpoints/0/..%2f..%2fsecret.safetensors", 404),
        ("checkpoints/1/a.safetensors", 404),
        ("checkpoints/x/a.safetensors", 400),
        ("secrets/0/a.safetensors", 404),
    ],
)
async def test_where_there_is_no_picture_it_is_not_found(client, models, tmp_path, path, status):
    (tmp_path / "models/checkpoints/broken.png").write_bytes(b"no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    assert (await client.get(f"/api/experiment/models/preview/{path}")).status_code == status


async def test_a_files_metadata_is_returned(client, models):
    assert await get(client, "/api/view_metadata/checkpoints", filename="a.safetensors") == {"title": "A"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("checkpoints", "b.safetensors"), ("embeddings", "sub/e.safetensors"), ("checkpoints", "a.ckpt"), ("x", "a")],
)
async def test_a_file_without_metadata_is_404(client, models, folder, name):
    assert (await client.get(f"/api/view_metadata/{folder}?filename={name}")).status_code == 404


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (120_000, b"[" * 60_000 + b"]" * 60_000),
        (2**63, b"{}"),
        (5, b"{not "),
        (4, b"null"),
    ],
)
async def test_a_file_whose_header_cannot_be_read_is_404(client, models, tmp_path, length, header):
    (tmp_path / "models" / "checkpoints" / "bad.safetensors").write_bytes(length.to_bytes(8, "little") + header)
    assert (await client.get("/api/view_metadata/checkpoints?filename=bad.safetensors")).status_code == 404


# The machine ----------------------------------------------------------------------------------------------------------


def test_the_cluster_is_described_as_one_machine_with_a_device_for_every_card():
    cards = tuple(Gpu(f"uuid-{i}", f"card {i}", 1000, 600, 400) for i in range(2))
    hosts = (HostStats("a", 100, 40, 60, cards), HostStats("b", 50, 20, 30, cards[:1]))
    stats = system_stats(ClusterView(hosts, (), 1.0, 1))
    mb = 1024 * 1024
    assert (stats["system"]["ram_total"], stats["system"]["ram_free"]) == (150 * mb, 90 * mb)
    assert isinstance(stats["system"]["argv"], list)
    assert [(d["name"], d["type"], d["index"]) for d in stats["devices"]] == [
        ("card 0", "cuda", 0),
        ("card 1", "cuda", 1),
    ]
    assert (stats["devices"][0]["vram_total"], stats["devices"][0]["vram_free"]) == (1000 * mb, 600 * mb)


def test_without_a_card_the_processor_is_the_device():
    [device] = system_stats(ClusterView((HostStats("a", 100, 40, 60, ()),), (), 1.0, 1))["devices"]
    assert (device["type"], device["vram_total"]) == ("cpu", 100 * 1024 * 1024)


async def test_the_page_gets_the_replacements_of_removed_classes(client):
    [scaled] = (await get(client, "/api/node_replacements"))["ImageScaleBy"]
    assert scaled == {
        "new_node_id": "ResizeImageMaskNode",
        "old_node_id": "ImageScaleBy",
        "old_widget_ids": ["upscale_method", "scale_by"],
        "input_mapping": [
            {"new_id": "input", "old_id": "image"},
            {"new_id": "resize_type.multiplier", "old_id": "scale_by"},
            {"new_id": "scale_method", "old_id": "upscale_method"},
            {"new_id": "resize_type", "set_value": "scale by multiplier"},
        ],
        "output_mapping": None,
    }


async def test_the_page_gets_the_servers_features(client):
    assert await get(client, "/api/i18n") == {}
    features = await get(client, "/api/features")
    for name in ("supports_preview_metadata", "assets", "supports_model_type_tags", "node_replacements"):
        assert features[name] is True
    assert features["max_upload_size"] == 200_000


async def test_free_is_passed_on_to_replicas(client, replica):
    for body in ({"unload_models": True}, {"free_memory": True, "unload_models": False}, {}):
        response = await client.post("/api/free", json=body)
        assert (response.status_code, response.content) == (200, b"")
    assert await replica.messages() == [Free(weights=True, results=False), Free(weights=False, results=True)]


async def test_a_subscription_to_logs_is_accepted(client):
    assert (await client.patch("/internal/logs/subscribe", json={"clientId": "c", "enabled": True})).status_code == 200


# Users ----------------------------------------------------------------------------------------------------------------


async def test_settings_are_kept_one_by_one_and_together(client):
    assert await get(client, "/api/settings") == {}
    assert (await client.post("/api/settings", content='{"a": 1, "b": 2}')).content == b""
    assert (await client.post("/api/settings/Comfy.c", content='"text"')).content == b""
    await client.post("/api/settings", content='{"b": 3}')
    assert await get(client, "/api/settings") == {"a": 1, "b": 3, "Comfy.c": "text"}
    assert await get(client, "/api/settings/Comfy.c") == "text"
    assert await get(client, "/api/settings/none") is None


@pytest.mark.parametrize("name", ["workflows%2Fa.json", "workflows/a.json"])
async def test_a_file_is_kept_under_a_name_with_folders(client, name):
    stored = await client.post(f"/api/userdata/{name}", content=b'{"x": 1}')
    assert stored.json() == "workflows/a.json"
    assert (await client.get(f"/api/userdata/{name}")).content == b'{"x": 1}'
    assert (await client.post(f"/api/userdata/{name}?overwrite=false", content=b"")).status_code == 409
    described = (await client.post(f"/api/userdata/{name}?full_info=true", content=b"abc")).json()
    assert (described["path"], described["size"]) == ("workflows/a.json", 3)
    assert (await client.delete(f"/api/userdata/{name}")).status_code == 204
    assert (await client.get(f"/api/userdata/{name}")).status_code == 404


async def test_a_file_of_no_name_is_refused_and_takes_no_users_place(client):
    for name in ("", ".", "a%2F..", "%2e"):
        assert (await client.post(f"/api/userdata/{name}", content=b"x")).status_code in (400, 403, 404, 405)
    assert (await client.post("/api/settings/Comfy.A", content=b"1")).status_code == 200


async def test_files_are_listed_as_names_parts_or_descriptions(client):
    await client.post("/api/userdata/workflows%2Fa.json", content=b"1")
    await client.post("/api/userdata/workflows%2Fsub%2Fb.json", content=b"22")
    assert await get(client, "/api/userdata", dir="workflows") == ["a.json"]
    recursive = await get(client, "/api/userdata", dir="workflows", recurse="true")
    assert recursive == ["a.json", "sub/b.json"]
    split = await get(client, "/api/userdata", dir="workflows", recurse="true", split="true")
    assert split == [["a.json", "a.json"], ["sub/b.json", "sub", "b.json"]]
    [described] = await get(client, "/api/userdata", dir="workflows/sub", full_info="true")
    assert (described["path"], described["size"]) == ("b.json", 2)
    tree = await get(client, "/api/v2/userdata?path=workflows")
    assert [(e["path"], e["type"]) for e in tree] == [
        ("workflows/sub", "directory"),
        ("workflows/a.json", "file"),
        ("workflows/sub/b.json", "file"),
    ]
    assert await get(client, "/api/v2/userdata") != []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/userdata", 400),
        ("/api/userdata?dir=missing", 404),
        ("/api/userdata?dir=../..", 403),
        ("/api/v2/userdata?path=../..", 400),
        ("/api/v2/userdata?path=missing", 404),
        ("/api/userdata/..%2F..%2Fetc%2Fpasswd", 403),
        ("/api/userdata/missing.json", 404),
    ],
)
async def test_other_users_files_are_not_listed(client, path, status):
    assert (await client.get(path)).status_code == status


async def test_a_file_is_moved_but_not_onto_another_unless_it_may(client):
    for name in ("a", "b"):
        await client.post(f"/api/userdata/{name}", content=name.encode())
    moved = await client.post("/api/userdata/a/move/sub%2Fc")
    assert moved.json() == "sub/c"
    assert (await client.get("/api/userdata/sub%2Fc")).content == b"a"
    assert (await client.post("/api/userdata/b/move/sub%2Fc?overwrite=false")).status_code == 409
    assert (await client.post("/api/userdata/b/move/sub%2Fc")).status_code == 200
    assert (await client.get("/api/userdata/sub%2Fc")).content == b"b"
    assert (await client.post("/api/userdata/missing/move/x")).status_code == 404


async def test_with_one_user_there_is_no_list_of_users(client):
    assert await get(client, "/api/users") == {"storage": "server", "migrated": False}
    await client.post("/api/settings", content="{}")
    assert await get(client, "/api/users") == {"storage": "server", "migrated": True}


async def test_with_several_users_each_has_settings_of_its_own(scheduler, volume, tmp_path):
    service = Service(
        scheduler.client, volume, lambda folder: [], LIMITS, user_data=UserData(tmp_path / "users", many=True)
    )
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert await get(client, "/api/users") == {"storage": "server", "users": {}}
        ann, bob = [(await client.post("/api/users", json={"username": n})).json() for n in ("Ann", "Bob")]
        assert (await client.post("/api/users", json={"username": "Ann"})).status_code == 400
        assert (await get(client, "/api/users"))["users"] == {ann: "Ann", bob: "Bob"}
        await client.post("/api/settings", content='{"a": 1}', headers={"Comfy-User": ann})
        assert (await client.get("/api/settings", headers={"Comfy-User": ann})).json() == {"a": 1}
        assert (await client.get("/api/settings", headers={"Comfy-User": bob})).json() == {}
        assert (await client.get("/api/settings")).status_code == 401
