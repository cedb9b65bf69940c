"""Viewing and uploading files in ComfyUI's format, over a real volume."""

from __future__ import annotations

import asyncio
import io
import json
import os
from dataclasses import replace

import pytest
from PIL import Image, PngImagePlugin

from serve_app.config.limits import SizeLimits
from serve_app.errors import FileMissingError
from serve_app.store.files.store import FileRef


def png(mode: str = "RGBA", colour: tuple[int, ...] = (10, 20, 30, 40), text: str = "", size: int = 4) -> bytes:
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text("workflow", text)
    buffer = io.BytesIO()
    Image.new(mode, (size, size), colour).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.fixture
def stored(volume):
    volume.write(FileRef("output", "", "a.png"), png())
    volume.write(FileRef("output", "sub", "b.png"), png("RGB", (1, 2, 3)))
    volume.write(FileRef("input", "", "page.html"), b"<script>")
    return volume


# Viewing --------------------------------------------------------------------------------------------------------------


async def test_a_file_is_sent_as_it_is(client, stored):
    response = await client.get("/api/view?filename=a.png&t=123")
    assert response.content == png()
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == 'filename="a.png"'
    assert (await client.get("/api/view?filename=a.png", headers={"Range": "bytes=0-3"})).status_code == 206


@pytest.mark.parametrize("query", ["filename=b.png&subfolder=sub", "filename=x/y/b.png&subfolder=sub&type=output"])
async def test_folders_in_the_filename_are_ignored(client, stored, query):
    assert (await client.get(f"/api/view?{query}")).status_code == 200


async def test_a_suffix_overrules_the_type(client, stored):
    assert (await client.get("/api/view", params={"filename": "a.png [output]", "type": "input"})).status_code == 200


async def test_what_a_browser_would_run_is_downloaded(client, stored):
    response = await client.get("/api/view?filename=page.html&type=input")
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 404),
        ("filename=", 400),
        ("filename=/etc/passwd", 400),
        ("filename=../a.png", 400),
        ("filename=a.png&type=secrets", 400),
        ("filename=a.png&subfolder=../..", 403),
        ("filename=a.png&subfolder=/etc", 403),
        ("filename=missing.png", 404),
        ("filename=a.png&type=temp", 404),
    ],
)
async def test_what_cannot_be_viewed_is_an_empty_answer(client, stored, query, status):
    response = await client.get(f"/api/view?{query}")
    assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    ("query", "kind", "mode"),
    [
        ("preview=webp;50", "WEBP", "RGBA"),
        ("preview=jpeg;80", "JPEG", "RGB"),
        ("preview=gif", "WEBP", "RGBA"),
        ("preview=jpeg&channel=a", "WEBP", "RGBA"),
        ("preview=webp&channel=rgb", "WEBP", "RGB"),
    ],
)
async def test_a_preview_is_a_file_of_the_requested_format(client, stored, query, kind, mode):
    response = await client.get(f"/api/view?filename=a.png&{query}")
    image = picture(response.content)
    assert (image.format, image.mode) == (kind, mode)
    assert response.headers["content-type"] == f"image/{kind.lower()}"


async def test_a_channel_is_the_colours_or_the_alpha_alone(client, stored):
    rgb = picture((await client.get("/api/view?filename=a.png&channel=rgb")).content)
    assert (rgb.mode, rgb.getpixel((0, 0))) == ("RGB", (10, 20, 30))
    alpha = picture((await client.get("/api/view?filename=a.png&channel=a")).content)
    assert (alpha.mode, alpha.getpixel((0, 0))) == ("RGBA", (0, 0, 0, 40))
    opaque = picture((await client.get("/api/view?filename=b.png&subfolder=sub&channel=a")).content)
    assert opaque.getpixel((0, 0)) == (0, 0, 0, 255)


async def test_a_preview_of_what_is_no_image_is_404(client, stored):
    assert (await client.get("/api/view?filename=page.html&type=input&preview=webp")).status_code == 404


async def test_a_format_that_another_program_would_run_is_no_image(client, volume):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    volume.write(FileRef("input", "", "eps.png"), buffer.getvalue())
    volume.write(FileRef("input", "", "a.png"), png())
    for query in ("preview=webp", "channel=rgb", "channel=a"):
        assert (await client.get(f"/api/view?filename=eps.png&type=input&{query}")).status_code == 404
    for original, mask in (("eps.png", png()), ("a.png", buffer.getvalue())):
        reference = json.dumps({"filename": original, "type": "input"})
        assert (await upload(client, mask, "m.png", "mask", original_ref=reference)).status_code == 400


# Uploading ------------------------------------------------------------------------------------------------------------


async def upload(client, data: bytes, name: str = "a.png", path: str = "image", **fields: str):
    return await client.post(f"/api/upload/{path}", files={"image": (name, data, "image/png")}, data=fields)


async def test_an_upload_goes_to_the_input_directory(client, volume):
    response = await upload(client, png())
    assert response.json() == {"name": "a.png", "subfolder": "", "type": "input"}
    assert volume.open(FileRef("input", "", "a.png")).read() == png()


async def test_its_fields_say_where_it_goes(client, volume):
    response = await upload(client, png(), subfolder="clipspace/x", type="temp", client_id="ignored")
    assert response.json() == {"name": "a.png", "subfolder": "clipspace/x", "type": "temp"}
    assert volume.stat(FileRef("temp", "clipspace/x", "a.png")).size == len(png())


async def test_the_same_content_keeps_its_name_and_another_gets_a_number(client):
    one, two, three = png(), png(colour=(0, 0, 0, 0)), png("RGB", (9, 9, 9))
    names = [(await upload(client, data)).json()["name"] for data in (one, one, two, three, two)]
    assert names == ["a.png", "a.png", "a (1).png", "a (2).png", "a (1).png"]


@pytest.mark.parametrize("overwrite", ["true", "1"])
async def test_overwriting_replaces_the_content(client, volume, overwrite):
    await upload(client, png())
    assert (await upload(client, b"new", overwrite=overwrite)).json()["name"] == "a.png"
    assert volume.open(FileRef("input", "", "a.png")).read() == b"new"


@pytest.mark.parametrize("fields", [{"subfolder": "../.."}, {"subfolder": "/etc"}])
async def test_an_upload_that_would_leave_its_directory_is_400(client, fields):
    response = await upload(client, png(), **fields)
    assert (response.status_code, response.content) == (400, b"")


async def test_an_upload_without_a_file_is_400(client):
    assert (await client.post("/api/upload/image", data={"image": "text"})).status_code == 400


async def test_an_upload_that_is_too_large_is_413(client):
    assert (await upload(client, b"x" * 300_000)).status_code == 413


async def test_two_uploads_at_once_of_one_name_never_share_it(client):
    answers = await asyncio.gather(*(upload(client, bytes([i]) * 10) for i in range(8)))
    assert len({answer.json()["name"] for answer in answers}) == 8


async def test_a_mask_gives_its_alpha_to_the_original_which_keeps_its_text(client, volume):
    volume.write(FileRef("input", "", "original.png"), png("RGB", (1, 2, 3), text="graph"))
    reference = json.dumps({"filename": "original.png", "subfolder": "", "type": "input"})
    response = await upload(client, png(), "m.png", "mask", original_ref=reference, subfolder="clipspace")
    assert response.json() == {"name": "m.png", "subfolder": "clipspace", "type": "input"}
    painted = picture(volume.open(FileRef("input", "clipspace", "m.png")).read())
    assert (painted.getpixel((0, 0)), painted.info) == ((1, 2, 3, 40), {"workflow": "graph"})


@pytest.mark.parametrize("reference", ["", "[]", '{"filename": "../x"}', '{"filename": "missing.png"}'])
async def test_a_mask_of_no_original_is_400_and_stores_nothing(client, volume, reference):
    assert (await upload(client, png(), "m.png", "mask", original_ref=reference)).status_code == 400
    with pytest.raises(FileMissingError):
        volume.stat(FileRef("input", "", "m.png"))


async def test_the_pages_file_list_has_the_newest_first(client, volume, tmp_path):
    for age, name in enumerate(["new.png", "old.png"]):
        volume.write(FileRef("output", "", name), b"x")
        os.utime(tmp_path / "output" / name, (1000 - age, 1000 - age))
    assert (await client.get("/internal/files/output")).json() == ["new.png [output]", "old.png [output]"]
    assert (await client.get("/internal/files/secrets")).json() == {"error": "Invalid directory type"}


async def test_an_image_over_the_limit_is_not_drawn(service, client, stored):
    service.limits = replace(service.limits, sizes=SizeLimits(image_pixels=15))
    for query in ("preview=webp", "channel=rgb"):
        assert (await client.get(f"/api/view?filename=a.png&{query}")).status_code == 404
    assert (await client.get("/api/view?filename=a.png")).status_code == 200


async def test_no_more_images_are_drawn_at_once_than_the_limit(service, client, stored):
    for _ in range(service.limits.sizes.renders):
        await service.rendering.acquire()
    asked = asyncio.create_task(client.get("/api/view?filename=a.png&channel=rgb"))
    assert (await client.get("/api/view?filename=a.png")).status_code == 200
    assert not asked.done()
    service.rendering.release()
    assert (await asked).status_code == 200
