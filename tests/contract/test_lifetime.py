"""Pausing, deadlines, deletion, loading ahead and a copy of the database, on a real server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from serve_app.cli import main
from tests.cluster.server import Server, wait_for


def picture(color: int, **keys: Any) -> dict[str, Any]:
    """A submission of one picture that is saved."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "lifetime"}},
    }
    return {"prompt": prompt, **keys}


def submit(server: Server, color: int, **keys: Any) -> str:
    answer = server.http.post("/prompt", json=picture(color, **keys))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


def test_what_is_paused_waits_ends_by_its_deadline_or_goes_on_and_is_deleted_with_its_file(server: Server):
    assert main(["pause", "--server", server.url]) == 0
    waits = submit(server, 11)
    late = submit(server, 12, extra_data={"deadline_s": 1})
    wait_for(lambda: server.get(f"/history/{late}")[late]["status"]["status_str"] == "error", "the deadline")
    [message] = server.get(f"/history/{late}")[late]["status"]["messages"]
    assert "DeadlineError" in message
    assert "it had not started" in message
    assert server.get("/queue")["running"] == []
    assert server.http.delete(f"/jobs/{waits}").status_code == 409

    assert main(["resume", "--server", server.url]) == 0
    [shown] = server.finished(waits)["outputs"]["2"]["images"]
    assert server.http.get("/view", params=shown).status_code == 200
    assert server.http.delete(f"/jobs/{waits}").json() == {"deleted": True}
    assert server.http.get("/view", params=shown).status_code == 404
    assert server.get(f"/history/{waits}") == {}

    [again] = server.finished(submit(server, 11))["outputs"]["2"]["images"]
    assert server.http.get("/view", params=again).status_code == 200


def test_a_model_is_loaded_ahead_and_replicas_say_so(server: Server):
    [model] = server.get("/catalog")["checkpoints"][:1]
    server.http.post("/api/free", json={"unload_models": True})
    assert main(["warm", "--server", server.url, f"checkpoints/{model}"]) == 0

    def held() -> bool:
        replicas = server.get("/status")["replicas"]
        return any(model in recipe for replica in replicas for recipe in replica["recipes"])

    wait_for(held, "the model")


def test_a_copy_of_a_working_servers_database_is_restored_elsewhere(server: Server, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serve_app.cli.backup.RENEW_S", 0.01)
    job_id = submit(server, 13)
    server.finished(job_id)
    url = f"sqlite:///{server.root}/state/jobs.sqlite"
    assert main(["backup", "copy.gz", "--database-url", url]) == 0
    assert main(["restore", "copy.gz", "--database-url", f"sqlite:///{tmp_path}/other.sqlite"]) == 0
    found = sqlite3.connect(tmp_path / "other.sqlite").execute("SELECT state FROM jobs WHERE job_id = ?", (job_id,))
    assert found.fetchall() == [("success",)]
