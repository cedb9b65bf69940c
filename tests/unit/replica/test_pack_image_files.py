"""Image files that a node pack opens by itself, in its replica."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.replica.cluster import cluster
from tests.usual_limits import LIMITS

PACK = """
import folder_paths, os
from PIL import Image

class Size:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING",)}}
    def go(self, name):
        image = Image.open(os.path.join(folder_paths.get_input_directory(), name))
        image.load()
        return {"ui": {"size": list(image.size)}}

NODE_CLASS_MAPPINGS = {"Size": Size}
"""
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def png(side: int) -> bytes:
    """A PNG that says it is so large and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


async def test_a_pack_cannot_have_pillow_start_ghostscript_or_open_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, packs, inputs = (tmp_path / name for name in ("bin", "packs", "input"))
    for folder in (programs, packs, inputs):
        folder.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    (packs / "size.py").write_text(PACK)
    (inputs / "drawing.png").write_bytes(EPS)
    (inputs / "bomb.png").write_bytes(png(12_000))
    async with cluster(
        tmp_path, (PoolConfig(name="cpu", runtime=False, threads=1),), custom_nodes_dir=packs
    ) as running:
        service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [], LIMITS)

        async def failure(name: str) -> str:
            prompt = {"s": {"class_type": "Size", "inputs": {"name": name}}}
            view = await running.finish((await service.submit({"prompt": prompt})).job_id)
            return f"{view.failure.exception_type}: {view.failure.message}"

        assert "cannot identify image file" in await failure("drawing.png")
        assert "DecompressionBombError" in await failure("bomb.png")
    assert not (tmp_path / "started").exists()
