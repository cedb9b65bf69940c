"""The web page's assets: what its gallery lists and deletes, and its library of models."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from serve_app.api.comfy.assets import uploads as asset_uploads
from serve_app.api.comfy.files import input_files
from serve_app.store.files.store import Area, FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.page import gallery
from tests.unit.api.v2.test_assets import DATA, loading, upload

OUTPUTS = "tags_any=output,temp&tags_none=missing&sort=created_at&include_public=false"
INPUTS = "tags_any=input&tags_none=missing&sort=created_at&include_public=false"
MODELS = "include_tags=models&exclude_tags=missing&include_public=false"
NOBODY = "550e8400-e29b-41d4-a716-446655440000"


async def listed(client: httpx.AsyncClient, query: str, limit: int = 100) -> list[dict[str, Any]]:
    """Return a whole list, by as many answers as it takes."""
    found: list[dict[str, Any]] = []
    after = ""
    for _ in range(50):
        answer = await client.get(f"/api/assets?{query}&limit={limit}{after}")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["assets"]) <= limit
        assert page["has_more"] == ("next_cursor" in page)
        assert page["total"] == len(page["assets"]) + page["has_more"]
        found += page["assets"]
        if not page["has_more"]:
            return found
        after = f"&after={page['next_cursor']}"
    raise AssertionError("the list does not end")


async def drawn(client, replica, volume, example, *names: str, area: Area = "output") -> str:
    """End a job with output images; return its id."""
    for name in names:
        volume.write(FileRef(area, "", name), DATA)
    job_id = (await client.post("/prompt", json=example)).json()["prompt_id"]
    images = [{"filename": name, "subfolder": "", "type": area} for name in names]
    await replica.succeed(job_id, {"6": {"images": images, "text": ["no file"], "animated": [False]}})
    return str(job_id)


async def test_outputs_are_listed_the_newest_job_first_in_stretches_of_any_size(client, replica, volume, example):
    first = await drawn(client, replica, volume, example, "a.png", "b.png", "c.png")
    second = await drawn(client, replica, volume, example, "d.png", area="temp")
    await drawn(client, replica, volume, example)
    expected = [("d.png", second), ("a.png", first), ("b.png", first), ("c.png", first)]
    for limit in (1, 2, 3, 100):
        found = await listed(client, OUTPUTS, limit)
        assert [(asset["name"], asset["job_id"]) for asset in found] == expected
    assert [asset["tags"] for asset in found] == [["temp"], ["output"], ["output"], ["output"]]
    assert (found[1]["size"], found[1]["user_metadata"]["jobId"]) == (len(DATA), first)
    assert (await client.get(found[1]["preview_url"])).content == DATA
    assert [asset["name"] for asset in await listed(client, "tags_any=temp")] == ["d.png"]
    assert [asset["name"] for asset in await listed(client, OUTPUTS + "&name_contains=B.p")] == ["b.png"]


async def test_jobs_that_show_a_great_deal_are_listed_in_more_answers(client, replica, volume, example, monkeypatch):
    monkeypatch.setattr(gallery, "CHARACTERS", 10)
    for name in ("a.png", "b.png", "c.png"):
        await drawn(client, replica, volume, example, name)
    first = (await client.get(f"/api/assets?{OUTPUTS}")).json()
    assert [asset["name"] for asset in first["assets"]] == ["c.png"]
    assert [asset["name"] for asset in await listed(client, OUTPUTS)] == ["c.png", "b.png", "a.png"]


async def test_an_output_is_one_asset_of_the_page_and_of_v2(client, replica, volume, example):
    job_id = await drawn(client, replica, volume, example, "a.png")
    [asset] = await listed(client, OUTPUTS)
    outputs = (await client.get(f"/api/v2/jobs/{job_id}")).json()["outputs"]
    assert asset["id"] in [output["id"] for output in outputs]
    assert (await client.get(f"/api/assets/{asset['id']}")).json() == asset
    content = await client.get(
        f"/api/assets/{asset['id']}/content?disposition=attachment", headers={"Range": "bytes=2-4"}
    )
    assert (content.status_code, content.content) == (206, DATA[2:5])
    assert content.headers["content-disposition"] == 'attachment; filename="a.png"'


async def test_a_deleted_output_is_listed_no_more_and_its_job_keeps_the_file(client, replica, volume, example):
    job_id = await drawn(client, replica, volume, example, "a.png", "b.png")
    asset = (await listed(client, OUTPUTS))[0]
    for expected in (204, 404):
        assert (await client.delete(f"/api/assets/{asset['id']}")).status_code == expected
    assert [left["name"] for left in await listed(client, OUTPUTS)] == ["b.png"]
    shown = (await client.get(f"/api/v2/jobs/{job_id}")).json()["outputs"]
    assert asset["id"] not in [output["id"] for output in shown]
    assert (await client.get("/view?filename=a.png")).content == DATA


async def test_an_output_whose_file_is_gone_is_not_listed(client, replica, volume, example):
    await drawn(client, replica, volume, example, "a.png", "b.png")
    assert len(await listed(client, OUTPUTS)) == 2
    volume.delete(FileRef("output", "", "b.png"))
    assert [asset["name"] for asset in await listed(client, OUTPUTS)] == ["a.png"]


async def test_uploads_of_both_kinds_are_inputs(client, volume):
    await client.post("/upload/image", files={"image": ("mine.png", DATA, "image/png")}, data={"subfolder": "sub"})
    made = (await upload(client)).json()
    volume.write(FileRef("input", "", ".hidden"), b"x")
    for limit in (1, 100):
        found = await listed(client, INPUTS, limit)
        assert [(asset["display_name"], asset["tags"]) for asset in found] == [
            ("a.png", ["input"]),
            ("sub/mine.png", ["input"]),
        ]
    assert found[0]["id"] == made["id"]
    assert found[1]["user_metadata"]["subfolder"] == "sub"
    for asset in found:
        assert (await client.get(f"/api/assets/{asset['id']}/content")).content == DATA
        assert (await client.get(asset["preview_url"])).content == DATA
        assert (await client.delete(f"/api/assets/{asset['id']}")).status_code == 204
        assert (await client.get(f"/api/assets/{asset['id']}")).status_code == 404
    assert await listed(client, INPUTS) == []
    assert [ref.path for ref, _ in volume.files("input")] == [".hidden"]


class Read(Volume):
    """A volume that counts how often an area is read."""

    count = 0

    def files(self, area, subfolder=""):
        self.count += 1
        return super().files(area, subfolder)


async def test_inputs_are_read_from_the_store_once_a_list(client, service, tmp_path, monkeypatch):
    service.store = volume = Read({"input": tmp_path / "input"})
    for number in range(5):
        volume.write(FileRef("input", "", f"{number}.png"), DATA)
    assert len(await listed(client, INPUTS, 1)) == 5
    assert volume.count == 1
    volume.write(FileRef("input", "", "new.png"), DATA)
    assert len(await listed(client, INPUTS, 1)) == 6
    assert volume.count == 2
    monkeypatch.setattr(input_files, "KEPT", 3)
    assert len(await listed(client, INPUTS, 2)) == 6
    assert volume.count == 2 + 3


async def test_lists_that_begin_during_a_reading_share_the_next(service, tmp_path):
    service.store = volume = Read({"input": tmp_path / "input"})
    volume.write(FileRef("input", "", "a.png"), DATA)
    lists = await asyncio.gather(*(input_files.input_files(service, anew=True) for _ in range(20)))
    assert [[path for _, path in files] for files in lists] == [["a.png"]] * 20
    assert volume.count == 2


async def test_an_input_that_a_waiting_job_names_stays(client, replica, volume, example):
    volume.write(FileRef("input", "", "named.png"), DATA)
    node = next(node for node in example["prompt"].values() if "text" in node["inputs"])
    node["inputs"]["text"] = "named.png"
    job_id = (await client.post("/prompt", json=example)).json()["prompt_id"]
    [asset] = await listed(client, INPUTS)
    answer = await client.delete(f"/api/assets/{asset['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "ASSET_IN_USE")
    await replica.succeed(job_id, {})
    assert (await client.delete(f"/api/assets/{asset['id']}")).status_code == 204


async def test_an_upload_that_a_waiting_job_uses_stays(client, example):
    made = (await upload(client)).json()
    answer = await client.post("/api/v2/jobs", json={"workflow": loading(example, made["id"])})
    assert answer.status_code == 201, answer.text
    answer = await client.delete(f"/api/assets/{made['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "ASSET_IN_USE")


async def test_models_are_listed_by_folder_and_neither_deleted_nor_given_out(client, tmp_path):
    for path in ("checkpoints/b.safetensors", "checkpoints/sub/a.safetensors", "loras/a.safetensors"):
        file = tmp_path / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12345678")
    for limit in (1, 2, 500):
        found = await listed(client, MODELS, limit)
        assert [(asset["tags"][1], asset["loader_path"], asset["size"]) for asset in found] == [
            ("checkpoints", "b.safetensors", 8),
            ("checkpoints", "sub/a.safetensors", 8),
            ("loras", "a.safetensors", 8),
        ]
    assert len({asset["id"] for asset in found}) == 3
    assert found[0]["tags"] == ["models", "checkpoints", "model_type:checkpoints"]
    assert [a["loader_path"] for a in await listed(client, "include_tags=models,loras")] == ["a.safetensors"]
    this = f"/api/assets/{found[0]['id']}"
    assert (await client.get(this)).json() == found[0]
    for method, path in (("DELETE", this), ("GET", f"{this}/content")):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert (await client.post(f"{this}/tags", json={"tags": ["mine"]})).status_code == 403
    assert len(await listed(client, MODELS)) == 3


async def test_records_have_tags_of_their_own(client):
    this = f"/api/assets/{(await upload(client, tags=['a'])).json()['id']}/tags"
    answer = await client.post(this, json={"tags": ["a", "b"]})
    assert answer.json() == {"total_tags": ["input", "a", "b"], "added": ["b"], "already_present": ["a"]}
    assert [asset["name"] for asset in await listed(client, "include_tags=input,b")] != []
    answer = await client.request("DELETE", this, json={"tags": ["a", "c"]})
    assert answer.json() == {"total_tags": ["input", "b"], "removed": ["a"], "not_present": ["c"]}
    assert await listed(client, "include_tags=input,a") == []
    many = await client.post(this, json={"tags": [str(number) for number in range(asset_uploads.TAGS)]})
    assert (many.status_code, many.json()["error"]["code"]) == (400, "TOO_MANY_TAGS")
    for bad in ([], ["input"], [1], ["a,b"], ["x" * 257], None):
        assert (await client.post(this, json={"tags": bad})).status_code == 400


@pytest.mark.parametrize(
    "asset_id",
    [
        NOBODY,
        "x",
        "input.",
        "input.!!",
        "input.Li4vc2VjcmV0",  # ../secret
        "input.YXNzZXRzL2EucG5n",  # assets/a.png
        "input.QGEvYS5wbmc",  # @a/a.png
        "models.Y2hlY2twb2ludHMvLi4vYQ",  # checkpoints/../a
        "models.bm93aGVyZS9h",  # nowhere/a
        "output.YS5wbmc",
    ],
)
async def test_what_is_no_assets_id_is_not_there(client, volume, asset_id):
    volume.write(FileRef("input", "assets", "a.png"), DATA)
    volume.write(FileRef("input", "@a", "a.png"), DATA)
    for method, end in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = await client.request(method, f"/api/assets/{asset_id}{end}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ASSET_NOT_FOUND"), (method, end)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "after=no.x", "after=models.x", "after=outputs.a-b"])
async def test_a_list_that_cannot_be_is_refused(client, query):
    answer = await client.get(f"/api/assets?{query}")
    assert (answer.status_code, answer.json()["error"]["code"][:7]) == (400, "INVALID")
    assert query.partition("=")[0] in answer.json()["error"]["message"]


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 400)])
async def test_a_list_is_asked_for_by_at_most_a_hundred_tags(client, count, status):
    answer = await client.get("/api/assets", params={"tags_any": ",".join(map(str, range(count)))})
    assert answer.status_code == status
