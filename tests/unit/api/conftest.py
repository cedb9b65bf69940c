from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.userdata import UserData
from tests.unit.api.scripted_replica import Reached, ScriptedReplica, scripted

DOCUMENT: dict[str, Any] = json.loads(files("serve_app.api.contract").joinpath("openapi.json").read_text())
EXAMPLE = DOCUMENT["paths"]["/prompt"]["post"]["requestBody"]["content"]["application/json"]["examples"]
FILES = {"checkpoints": ["sd15.safetensors"], "input": [], "text_encoders": ["l.safetensors", "t5"]}


@pytest.fixture
def example() -> dict[str, Any]:
    """The contract's own example of a submission."""
    body: dict[str, Any] = copy.deepcopy(EXAMPLE["simple_txt2img"]["value"])
    return body


@pytest.fixture
async def replica() -> AsyncIterator[ScriptedReplica]:
    """What runs the scheduler's jobs, as the test says."""
    async with scripted() as replica:
        yield replica


@pytest.fixture
def scheduler(replica: ScriptedReplica) -> Reached:
    """The scheduler, as the ingress reaches it."""
    return replica.scheduler


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    for area in ("input", "output", "temp"):
        (tmp_path / area).mkdir()
    return Volume({"input": tmp_path / "input", "output": tmp_path / "output", "temp": tmp_path / "temp"})


@pytest.fixture
def service(scheduler: Reached, volume: Volume, tmp_path: Path) -> Service:
    limits = Limits(body_bytes=10_000, upload_bytes=200_000, poll_s=1.0)
    catalog, users = Catalog(tmp_path / "models"), UserData(tmp_path / "user")
    return Service(scheduler.client, volume, lambda folder: FILES[folder], limits, catalog=catalog, user_data=users)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
