"""What people mistype on the command line and in the configuration: one line that says what is wrong, never silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli import main
from serve_app.store.database.jobs import Jobs
from tests.unit.cli.conftest import makes

MISTAKES = [
    ("up --port 99999", "less than or equal to 65535"),
    ("up --port 0 --host nosuch.invalid", "cannot listen on nosuch.invalid: Name or service not known"),
    ("up --port 0 --output-dir a_file", "output_dir: {here}/a_file is a file; give a folder"),
    ("up --port 0 --user-dir a_file/user", "user_dir: the folder {here}/a_file/user cannot be made: Not a directory"),
    ("up --port 0 --database-url foo", "must be sqlite:///FILE or postgresql://USER@HOST/NAME"),
    ("up --port 0 --custom-nodes-dir nosuch", "there is no folder {here}/nosuch; name the folder of node packs by"),
    ("up --config nosuch.yaml", "nosuch.yaml cannot be read: No such file or directory"),
    ("up --config a_file", "a_file: not a Serve config file"),
    ("up --config port.yaml", "http_options.port must be a whole number from 0 to 65535, not 'web'"),
    ("up --config misspelt.yaml", "pools.0.num_gpu: there is no such key; did you mean 'num_gpus'?"),
    ("backup b.gz --database-url sqlite:///no/jobs.sqlite", "there is no database {here}/no/jobs.sqlite"),
    ("check --database-url sqlite:///no/jobs.sqlite", "there is no database {here}/no/jobs.sqlite"),
    ("keys list --database-url sqlite:///no/jobs.sqlite", "there is no database {here}/no/jobs.sqlite"),
    ("tenants", "there is no database {here}/state/jobs.sqlite"),
    ("check --database-url foo", "must be sqlite:///FILE"),
    ("restore nosuch.gz", "there is no backup nosuch.gz"),
    ("keys create studio --days -1", "greater than or equal to 0.01"),
    ("packs a_file", "a_file is no folder"),
    ("submit workflow.json --out a_file", "a_file"),
    ("submit nosuch.json", "nosuch.json: No such file or directory"),
    ("convert nosuch.json --offline", "nosuch.json: No such file or directory"),
    ("add-model nosuch.safetensors loras", "nosuch.safetensors is no file"),
    ("models --server nosuch", "'nosuch' is not an http:// or https:// address"),
    ("pause --tenant nosuch", "no tenant 'nosuch' has a key, a job or a quota"),
    ("pause --pool nosuch", "no pool is named 'nosuch'"),
    ("watch nosuch", "nosuch"),
    ("story nosuch", "no job has the id 'nosuch'"),
    ("cancel nosuch", "nosuch has ended already, or no job has this id"),
]
"""Commands, each with what its output must say. `{here}` is the folder in which they run."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, workflow: Path) -> Path:
    """A folder with a file, two wrong configurations and a workflow; the environment names a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVE_APP_URL", url)
    for name in ("RAY_ADDRESS", "SERVE_APP_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a_file").write_text("a file")
    (tmp_path / "port.yaml").write_text(configuration({}, port="web"))
    (tmp_path / "misspelt.yaml").write_text(configuration({"pools": [{"name": "gpu", "num_gpu": 1}]}))
    return tmp_path


def configuration(arguments: dict, **options: object) -> str:
    return json.dumps({"http_options": options, "applications": [{"name": "serve-app", "args": arguments}]})


@pytest.mark.parametrize(("command", "said"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_fails_with_one_line_that_says_what_is_wrong(here, capfd, server, volume, command, said):
    if command.startswith("submit workflow"):
        server.next_job(makes(volume))
    before = sorted(here.iterdir())
    assert main(command.split()) in (1, 2)
    printed = "".join(capfd.readouterr())
    # typer frames its own messages.
    assert said.format(here=here) in " ".join(printed.replace("│", " ").split())
    assert "Traceback" not in printed
    if not command.startswith("up"):
        assert sorted(here.iterdir()) == before


def test_a_key_for_servers_that_ask_for_none_is_commented(here, capsys):
    assert main(["keys", "create", "studio"]) == 0
    assert "no section `tenants`" in capsys.readouterr().err


def test_too_few_members_are_no_mistake_where_one_is_wrong(here, capsys):
    assert main(["check", "--config", "misspelt.yaml"]) == 1
    assert "at least 1 item" not in capsys.readouterr().err


def test_a_reader_that_leaves_ends_a_command_without_a_word(here, url):
    code = "import sys\nfrom serve_app.cli import main\nsys.exit(main(['nodes']))"
    reading, writing = subprocess.PIPE, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=reading, stderr=writing) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_up_listens_on_the_files_port_unless_the_command_line_names_one(here, monkeypatch):
    from serve_app.deployments.process import supervisor

    Jobs(f"sqlite:///{here}/jobs.sqlite").close()
    (here / "own.yaml").write_text(configuration({"database_url": f"sqlite:///{here}/jobs.sqlite"}, port=28_471))
    ports = []
    monkeypatch.setattr(supervisor, "become", lambda command, *_: ports.append(command[5]) or sys.exit(7))
    assert main(["up", "--config", "own.yaml"]) == 7
    assert main(["up", "--config", "own.yaml", "--port", "28472"]) == 7
    assert ports == ["28471", "28472"]
