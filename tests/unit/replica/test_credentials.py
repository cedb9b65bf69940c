"""A job's credentials reach its nodes and nothing else: no answer, no event, no file of the database afterwards."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.store.database.changes import Submission
from serve_app.store.tenants.credentials import HIDDEN
from tests.unit.replica.cluster import Cluster, cluster

TOKEN, KEY = "token-of-'somebody'-5f2c", "key-9d81c6"
CREDENTIALS = {"auth_token_comfy_org": TOKEN, "api_key_comfy_org": KEY}
PACK = """
from server import PromptServer

class Node:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        hidden = {"token": "AUTH_TOKEN_COMFY_ORG", "key": "API_KEY_COMFY_ORG", "prompt": "PROMPT"}
        return {"required": {"text": ("STRING",)}, "hidden": hidden}

class Raises(Node):
    def go(self, text, token, key, prompt):
        PromptServer.instance.send_sync("said", {"token": token, key: [text]})
        raise ValueError(f"{text} {token!r} {key}")

class Shows(Node):
    def go(self, text, token, key, prompt):
        return {"ui": {"text": [text, token, key]}}

NODE_CLASS_MAPPINGS = {"Raises": Raises, "Shows": Shows}
"""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "cred.py").write_text(PACK)
    pools = (PoolConfig(name="cpu", runtime=False),)
    async with cluster(tmp_path, pools, custom_nodes_dir=tmp_path / "packs") as running:
        yield running


async def run(running: Cluster, class_type: str) -> tuple[str, Any]:
    """Run a node with credentials; return all events of its job, and the job."""
    job_id = str(uuid.uuid4())
    prompt = {"1": {"class_type": class_type, "inputs": {"text": "given"}}}
    await running.scheduler.submit(Submission(job_id, prompt, ("1",), "c", {"a": 1, **CREDENTIALS}))
    job = await running.finish(job_id)
    return repr((job, await running.events(job_id))), job


@pytest.mark.parametrize("class_type", ["Raises", "Shows"])
async def test_credentials_reach_the_node_and_nobody_else(running, tmp_path, class_type):
    told, job = await run(running, class_type)
    assert HIDDEN in told
    assert dict(job.extra_data) == {"a": 1}
    await running.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite*"))
    for secret in (TOKEN, KEY, repr(TOKEN)[1:-1], json.dumps(TOKEN)[1:-1]):
        assert secret not in told
        assert secret.encode() not in kept


async def test_a_failure_shows_the_inputs_that_a_client_gave_and_names_files_by_their_ends(running, tmp_path):
    told, job = await run(running, "Raises")
    assert job.failure.current_inputs == {"text": ["given"]}
    assert str(tmp_path) not in told
    assert any('File "' in line and 'packs/cred.py", line' in line for line in job.failure.traceback)


async def test_the_same_submission_is_known_again_once_its_credentials_are_gone(running):
    _, job = await run(running, "Shows")
    again = Submission(job.job_id, job.prompt, ("1",), "c", {"a": 1, **CREDENTIALS})
    assert (await running.scheduler.submit(again)).job_id == job.job_id
