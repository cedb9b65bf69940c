from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from docs.reference_pages import commands
from serve_app.cli import main
from serve_app.cli.drain import is_drained
from serve_app.cli.pages import event_lines, model_lines, node_lines, status_lines
from serve_app.cli.progress import BarProgress, LineProgress
from serve_app.cli.workflow import read_workflow, with_assignments
from serve_app.errors import WorkflowFileError
from serve_app.store.database.jobs import Jobs


def test_models_nodes_and_status_are_listed(url, capsys):
    assert main(["models", "--server", url]) == 0
    assert capsys.readouterr().out == "checkpoints/sd15.safetensors\n"
    assert main(["nodes", "--server", url]) == 0
    assert "KSampler " in capsys.readouterr().out
    assert main(["status", "--server", url]) == 0
    first, host, replica = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"up \d+ s, 0 jobs running, 0 waiting", first)
    assert host == "host host: 48000 of 64000 MB memory available"
    assert replica == "replica cpu-at-rest (cpu): 0 of 0 tasks, holds no model"


def test_answers_are_printed_as_json_for_programs(url, capsys):
    for command, key in (("models", "checkpoints"), ("nodes", "KSampler"), ("status", "replicas")):
        assert main([command, "--json", "--server", url]) == 0
        assert key in json.loads(capsys.readouterr().out)
    assert main(["pause", "--json", "--server", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"paused": ["queue"]}


WITHOUT_JSON = {"up", "demo", "convert", "keys revoke"}
"""Commands that print no answer of their own: servers, a workflow that is JSON already, nothing."""


def test_every_command_that_answers_can_answer_in_json():
    found = {name: [opt for each in command.params for opt in each.opts] for name, command in commands()}
    assert {name for name, options in found.items() if "--json" not in options} == WITHOUT_JSON


def test_the_database_commands_answer_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Jobs(url := f"sqlite:///{tmp_path}/jobs.sqlite").close()
    assert main(["check", "--json", "--database-url", url]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["backup", "jobs.gz", "--json", "--database-url", url]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["lease"] == 1


def test_a_reader_that_has_read_enough_ends_a_command_in_silence():
    command = [sys.executable, "-m", "serve_app.cli", "examples", "lora"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == b""


def test_wrong_arguments_end_with_2_and_say_what_is_allowed(capsys):
    assert main(["up", "--root-dialect", "webui"]) == 2
    said = capsys.readouterr().err
    assert "webui" in said
    assert "'contract', 'comfy'" in said
    assert main(["pause", "--pool", "a", "--tenant", "b"]) == 2
    assert main(["no-such-command"]) == 2


def test_a_shell_is_offered_the_commands(monkeypatch, capsys):
    monkeypatch.setenv("_SERVE_APP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "serve-app sub")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert "submit" in capsys.readouterr().out


def test_cancelling_what_does_not_run_says_so_and_fails(url, capsys):
    job_id = "550e8400-e29b-41d4-a716-446655440000"
    assert main(["cancel", job_id, "--server", url]) == 1
    assert "no job has this id" in capsys.readouterr().out


def test_status_shows_gpus_and_what_replicas_hold():
    gpu = {"name": "H100", "vram_free_mb": 60, "vram_total_mb": 80}
    host = {"host": "a", "ram_available_mb": 1, "ram_total_mb": 2, "gpus": [gpu]}
    replica = {"replica_id": "r1", "pool": "gpu", "slots": 16, "running": 2, "recipes": ["sd15"], "quarantined": "j"}
    replica |= {"draining": True, "drained": True}
    replica["notes"] = ["node pack X could not be imported"]
    answer = {"uptime_s": 1, "jobs": {"running": 2, "pending": 0}, "hosts": [host], "replicas": [replica]}
    answer |= {"paused": [], "drained": [{"kind": "host", "name": "a", "since_s": 0.0}]}
    waits = {"tenant": "studio", "client_id": None, "losses": 2, "wait_s": 9.6, "alone": True}
    answer["backoffs"] = [waits, {**waits, "tenant": "", "losses": 1, "wait_s": 0.0, "alone": False}]
    answer["troubles"] = [{"replica_id": "r2", "pool": "comfyui", "why": "it has no main.py", "working": 0}]
    _, drained, *lines = status_lines(answer)
    assert drained.endswith(": host a")
    assert lines == [
        "tenant studio has ended 2 replicas: its jobs wait 10 s, and run alone",
        "client (without an id) has ended 1 replicas: its jobs wait no longer",
        "host a: 1 of 2 MB memory available",
        "  H100: 60 of 80 MB free",
        "replica r1 (gpu): 2 of 16 tasks, holds sd15, kept for job j alone, takes no more tasks, drains",
        "  node pack X could not be imported",
        "replica r2 (comfyui) cannot work: it has no main.py",
    ]


def test_waiting_for_a_drained_host_waits_for_replicas_with_a_rank_there():
    replica = {"replica_id": "r1", "host": "gpu-1", "rank_hosts": ["gpu-2"]}
    found = [(kind, name) for kind in ("host", "replica") for name in ("gpu-1", "gpu-2", "r1", "gpu-3")]
    expected = [("host", "gpu-1"), ("host", "gpu-2"), ("replica", "r1")]
    assert [each for each in found if is_drained(*each, replica)] == expected


def test_trace_prints_a_line_for_each_thing_that_happened_to_a_job():
    answer = {"job_id": "j", "state": "running", "percent": 50, "story": [{"at_s": 0.5, "what": "arrived"}]}
    first, second = event_lines(answer)
    assert first == "job j: running, 50 %"
    assert second.endswith(".500  arrived")


def test_an_empty_list_of_nodes_prints_nothing():
    assert list(node_lines({})) == []


def test_a_server_without_a_model_that_draws_says_where_to_put_one():
    *listed, hint = model_lines({"checkpoints": [], "loras": ["a.safetensors"], "diffusion_models": []})
    assert listed == ["checkpoints/ (no files)", "loras/a.safetensors", "diffusion_models/ (no files)"]
    assert "models/checkpoints" in hint
    assert list(model_lines({"checkpoints": [], "diffusion_models": ["flux.safetensors"]}))[-1] != hint


def test_up_demo_brings_the_models_that_ship_where_the_server_looks(monkeypatch, tmp_path, capsys):
    up = importlib.import_module("serve_app.deployments.process.up")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(up.supervisor, "become", lambda *_: sys.exit("supervising"))
    with pytest.raises(SystemExit, match="supervising"):
        main(["up", "--demo", "--port", "0", "--models-dir", "mine"])
    assert (tmp_path / "mine" / "checkpoints" / "tiny.safetensors").is_file()
    assert "checkpoints/tiny.safetensors" in capsys.readouterr().out


def test_up_demo_says_why_it_can_bring_none(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("a file")
    assert main(["up", "--demo", "--port", "0", "--models-dir", "mine"]) == 2
    assert "--demo cannot fill models_dir" in capsys.readouterr().err


def test_up_passes_its_options_on(monkeypatch, tmp_path):
    module = importlib.import_module("serve_app.deployments.process.up")
    monkeypatch.chdir(tmp_path)
    passed = {}
    monkeypatch.setattr(module, "up", lambda options: passed.update(asdict(options), **options.changed) or 7)
    assert main(["up", "--port", "9000", "--models-dir", "m", "--database-url", "sqlite:///x"]) == 7
    expected = {"host": "127.0.0.1", "port": 9000, "models_dir": Path("m"), "database_url": "sqlite:///x"}
    unset = dict.fromkeys(["input_dir", "output_dir", "temp_dir", "config"])
    assert {name: passed[name] for name in [*expected, *unset]} == {**expected, **unset}


def test_asking_a_server_imports_neither_torch_nor_ray_nor_the_servers_own_code():
    code = (
        "import sys, serve_app.cli.submit, serve_app.cli.workflow, serve_app.cli.pages\n"
        "print(sorted({'torch', 'ray', 'fastapi', 'serve_app.service.service'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_file_holds_a_workflow_or_a_whole_body(tmp_path):
    path = tmp_path / "w.json"
    path.write_text('{"1": {"class_type": "A", "inputs": {}}}')
    assert read_workflow(path, dict) == {"prompt": {"1": {"class_type": "A", "inputs": {}}}}
    path.write_text('{"prompt": {"1": {}}, "client_id": "c"}')
    assert read_workflow(path, dict) == {"prompt": {"1": {}}, "client_id": "c"}
    path.write_text('{"prompt": {"class_type": "A", "inputs": {}}}')
    assert read_workflow(path, dict) == {"prompt": {"prompt": {"class_type": "A", "inputs": {}}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"nodes": [{}]}', "not as the web page saves one"),
    ],
)
def test_a_file_that_holds_neither_is_refused_saying_what_it_is(tmp_path, text, said):
    path = tmp_path / "w.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(WorkflowFileError, match=said) as refused:
        read_workflow(path, dict)
    assert str(path) in str(refused.value)


BODY: dict[str, Any] = {
    "prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["1", 0]}}, "3.1": {"inputs": {"a": 1}}}
}


@pytest.mark.parametrize(
    ("assignment", "node", "name", "value"),
    [
        ("3.seed=7", "3", "seed", 7),
        ("3.seed=1.5", "3", "seed", 1.5),
        ("3.seed=seven", "3", "seed", "seven"),
        ('3.seed="7"', "3", "seed", "7"),
        ("3.seed=", "3", "seed", ""),
        ("3.seed=a=b", "3", "seed", "a=b"),
        ("3.seed=NaN", "3", "seed", "NaN"),
        ('3.model=["2", 0]', "3", "model", ["2", 0]),
        ("3.1.a=2", "3.1", "a", 2),
    ],
)
def test_an_input_is_set_to_json_or_else_to_the_text_itself(assignment, node, name, value):
    assert with_assignments(BODY, [assignment])["prompt"][node]["inputs"][name] == value
    assert BODY["prompt"]["3"]["inputs"]["seed"] == 1


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("3.sede=7", "KSampler 3 has no input 'sede'; did you mean 'seed'?"),
        ("3.width=7", "KSampler 3 has no input 'width'; inputs are seed, model"),
        ("9.seed=7", "there is no node 9; nodes are 3, 3.1"),
        ("seed=7", "must be NODE.INPUT=VALUE, e.g. 3.seed=7"),
        ("3.seed", "must be NODE.INPUT=VALUE"),
    ],
)
def test_an_assignment_to_what_is_not_there_is_refused_naming_what_is(assignment, said):
    with pytest.raises(WorkflowFileError) as refused:
        with_assignments(BODY, [assignment])
    assert str(refused.value).startswith(f"--set {assignment}")
    assert said in str(refused.value)


def test_lines_say_each_tenth_of_a_nodes_progress_once(capsys):
    lines = LineProgress(BODY["prompt"])
    for value in range(1, 101):
        lines.show("progress", {"node": "3", "value": value, "max": 100})
    lines.show("executing", {"node": "8"})
    lines.show("message", {"node": "3", "type": "progress_text", "data": {"text": "loading sd15, 2.1 of 4.0 GB"}})
    lines.show("message", {"node": "3", "type": "of_a_pack", "data": 7})
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "KSampler 3: 1/100"
    assert printed[1:11] == [f"KSampler 3: {value}/100" for value in range(10, 101, 10)]
    assert printed[11:] == ["node 8", "KSampler 3: loading sd15, 2.1 of 4.0 GB"]


def test_bars_follow_each_node():
    from rich.progress import Progress

    display = Progress()
    bars = BarProgress(BODY["prompt"], display)
    bars.show("started", {})
    bars.show("executing", {"node": "3"})
    bars.show("progress", {"node": "3", "value": 4, "max": 20})
    bars.show("executed", {"node": "3", "output": {}})
    assert [(t.description, t.completed, t.total) for t in display.tasks] == [
        ("KSampler 3", 0, None),
        ("KSampler 3", 4, 20),
    ]


def test_up_ends_with_one_line_when_its_database_is_damaged(tmp_path, capsys):
    database = tmp_path / "jobs.sqlite"
    database.write_bytes(b"no database" * 1000)
    directories = [
        word for name in ("models", "input", "output", "temp", "user") for word in (f"--{name}-dir", str(tmp_path))
    ]
    assert main(["up", "--port", "0", "--database-url", f"sqlite:///{database}", *directories]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(database) in line
    assert "serve-app restore --replace BACKUP" in line
    assert "-wal and -shm" in line
