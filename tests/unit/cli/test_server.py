"""The command line's HTTP client understands a server whatever its root dialect is."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.cli import main
from serve_app.cli.server import refusal_reason
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.api.conftest import FILES
from tests.unit.api.http_server import serve
from tests.unit.cli.conftest import Server, makes
from tests.usual_limits import LIMITS


@pytest.fixture
def comfy_url(server: Server, volume: Volume) -> Iterator[str]:
    """The address of a server whose root routes speak ComfyUI's dialect."""
    service = Service(server.replica.scheduler.client, volume, lambda folder: FILES[folder], LIMITS)
    yield from serve(create_app(service, "comfy"), server.background)


def test_a_job_runs_and_is_refused_with_reasons_where_the_root_is_comfyuis(
    comfy_url, server, volume, workflow, tmp_path, capsys
):
    server.next_job(makes(volume))
    assert main(["submit", str(workflow), "--server", comfy_url, "--out", str(tmp_path / "out")]) == 0
    assert main(["submit", str(workflow), "--server", comfy_url, "--set", "3.sampler_name=eular"]) == 1
    assert "KSampler 3: sampler_name 'eular' is not in the list; did you mean 'euler'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "Queue full", "detail": "1 job waits", "status_code": 503}, "Queue full: 1 job waits"),
        ({"error": {"code": "not_found", "message": "no asset"}}, "not_found: no asset"),
        (
            {
                "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt failed", "details": ""},
                "node_errors": {"3": {"errors": [{"message": "Value not in list", "details": "sampler: 'x'"}]}},
            },
            "prompt_outputs_failed_validation: Prompt failed; Value not in list (sampler: 'x')",
        ),
        ({"unknown": 1}, "400 Bad Request from http://host/prompt"),
    ],
)
def test_a_refusal_is_read_in_the_form_of_every_dialect(body, said):
    answer = httpx.Response(400, json=body, request=httpx.Request("POST", "http://host/prompt"))
    assert refusal_reason(answer) == said
