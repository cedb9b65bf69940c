"""`serve-app tenants` from the database: who has keys, jobs and quotas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.cli import main


def test_tenants_are_listed_with_what_they_may_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    studio = {"gpu_s_a_day": 60, "bytes_stored": 5_000_000_000}
    args = {"quotas": {"default": {"queued": 5}, "tenants": {"studio": studio}}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [{"name": "a", "import_path": "serve_app:app", "args": args}]}))
    asked = ["--database-url", url, "--config", str(config)]
    assert main(["keys", "create", "studio", *asked]) == 0
    assert main(["keys", "create", "", "--scope", "admin", *asked]) == 0
    capsys.readouterr()
    assert main(["tenants", *asked]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "(operator)  keys: 1  jobs: none  GPU-seconds today: 0.0  bytes stored: 0  quotas: weight 1",
        "studio  keys: 1  jobs: none  GPU-seconds today: 0.0  bytes stored: 0  "
        "quotas: weight 1, queued 5, gpu_s_a_day 60, bytes_stored 5000000000",
    ]
