"""Jobs as the command line lists them, and cancelling many."""

from __future__ import annotations

import json

import httpx
import pytest

from serve_app.cli import main
from serve_app.cli.cancel import cancel_tenant
from serve_app.cli.queue import QueuedJob, queue_lines, queued_jobs
from serve_app.cli.server import ServerClient
from serve_app.errors import ServerRefusedError
from tests.unit.cli.conftest import fails

LOADER = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}}
STATUS = {"load": {"pools": [{"waiting_s": 60.0}]}, "replicas": [{"slots": 2}, {"slots": 1}]}


def test_jobs_have_an_owner_a_model_a_place_and_an_estimate():
    queue = {
        "queue_running": [[1, "a@studio", LOADER, {}, []]],
        "queue_pending": [[2, "b", LOADER, {}, []], [3, "c@lab", {}, {}, []]],
    }
    assert queued_jobs(queue, STATUS) == [
        QueuedJob("a@studio", "studio", "sd15.safetensors"),
        QueuedJob("b", "", "sd15.safetensors", 1, 10.0),
        QueuedJob("c@lab", "lab", "", 2, 20.0),
    ]
    assert list(queue_lines(queued_jobs(queue, STATUS))) == [
        "place          job       owner   model",
        "runs           a@studio  studio  sd15.safetensors",
        "1, about 10 s  b         -       sd15.safetensors",
        "2, about 20 s  c@lab     lab     -",
    ]


@pytest.fixture
def waiting(url, server, workflow, capsys) -> list[str]:
    """The ids of two jobs that wait."""
    for _ in range(2):
        assert main(["submit", str(workflow), "--server", url, "--detach"]) == 0
    return capsys.readouterr().out.split()


def test_what_waits_is_listed_and_cancelled_all_at_once(url, waiting, capsys):
    assert main(["queue", "--server", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == waiting
    assert "sd15.safetensors" in lines[1]
    assert main(["top", "--once", "--server", url]) == 0
    assert waiting[1] in capsys.readouterr().out
    assert main(["jobs", "--state", "pending", "--json", "--server", url]) == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)["jobs"]] == waiting[::-1]
    assert main(["cancel", "--all", "--server", url]) == 0
    assert capsys.readouterr().out == "2 jobs are cancelled\n"
    assert main(["queue", "--server", url]) == 0
    assert capsys.readouterr().out == "no job runs or waits\n"


def test_the_history_says_why_a_job_failed(url, server, workflow, capsys):
    server.next_job(fails)
    assert main(["submit", str(workflow), "--server", url]) == 1
    assert main(["history", "--server", url]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "failed" in line
    assert line.endswith("no such sampler")


def test_nothing_is_cancelled_in_the_name_of_a_tenant_that_is_nobody(url, waiting, capsys):
    assert main(["cancel", "--tenant", "studio", "--server", url]) == 1
    assert main(["pause", "--tenant", "x", "--server", url]) == 1
    assert "did you mean" not in capsys.readouterr().err  # the operator, who has these jobs
    assert main(["cancel", "--server", url]) == 2
    assert main(["queue", "--json", "--server", url]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_tenants_jobs_are_cancelled_in_its_name(monkeypatch):
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, request.headers.get("X-Tenant")))
        return httpx.Response(200, json={"tenants": [{"tenant": "studio"}], "queue_running": [], "queue_pending": [1]})

    client = ServerClient("http://host")
    monkeypatch.setattr(client, "_http", httpx.Client(transport=httpx.MockTransport(answer)))
    assert cancel_tenant(client, "studio") == 1
    assert asked == [
        ("GET", "/tenants", None),
        ("GET", "/api/queue", "studio"),
        ("POST", "/api/queue", "studio"),
        ("POST", "/api/interrupt", "studio"),
    ]
    with pytest.raises(ServerRefusedError, match="did you mean 'studio'"):
        cancel_tenant(client, "studo")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("serve-app 0.")
