"""Uploaded files run no code in a browser: they are displayed as one of a few types, or downloaded."""

from __future__ import annotations

import pytest

from serve_app.store.files.store import FileRef

SHOWN = {
    "a.png": "image/png",
    "a.JPG": "image/jpeg",
    "a.webp": "image/webp",
    "a.avif": "image/avif",
    "a.mp4": "video/mp4",
    "a.webm": "video/webm",
    "a.mkv": "video/x-matroska",
    "a.flac": "audio/flac",
    "a.mp3": "audio/mpeg",
    "a.opus": "audio/ogg",
    "a.txt": "text/plain",
    "a.json": "application/json",
}
DOWNLOADED = ["a.html", "a.svg", "a.xml", "a.js", "a.xhtml", "a.css", "a.pdf", "a.mht", "a.xsl", "a", "a.png.html"]


@pytest.mark.parametrize("name", [*SHOWN, *DOWNLOADED])
@pytest.mark.parametrize("door", ["view", "userdata"])
async def test_a_file_is_served_inline_only_if_its_type_runs_no_code(client, volume, door, name):
    content = b"<script>1</script>"
    if door == "view":
        volume.write(FileRef("input", "", name), content)
        answer = await client.get("/api/view", params={"filename": name, "type": "input"})
    else:
        await client.post(f"/api/userdata/{name}", content=content)
        answer = await client.get(f"/api/userdata/{name}")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"].partition(";")[0] == SHOWN.get(name, "application/octet-stream")
    assert answer.headers["content-disposition"].startswith("attachment") == (name not in SHOWN)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_the_contracts_images_are_disarmed_too(client, volume):
    volume.write(FileRef("output", "", "a.png"), b"png")
    answer = await client.get("/view?filename=a.png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"
