"""What `serve-app top` shows."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from serve_app.cli import main
from serve_app.cli.logs import log_line
from serve_app.cli.top import screen


def status(**changes: Any) -> dict[str, Any]:
    load = {
        "queued": 2,
        "running": 3,
        "oldest_s": 42.4,
        "ended": {"success": 5, "error": 1},
        "moved": {"handed_over": 3, "lost": 0},
        "repeated_steps": 2,
        "pools": [{"pool": "denoise", "replicas": 1, "waiting": 7, "running": 16}],
    }
    gpu = {"name": "H100", "vram_used_mb": 20, "vram_free_mb": 60, "vram_total_mb": 80}
    host = {"host": "gpu-1", "ram_used_mb": 1, "ram_available_mb": 3, "ram_total_mb": 4, "gpus": [gpu]}
    replica = {"replica_id": "r1", "pool": "denoise", "slots": 16, "running": 16, "recipes": ["backbone a/b"]}
    replica |= {"host": "gpu-1", "rank_hosts": [], "drained": False}
    whole = {
        "uptime_s": 90,
        "epoch": 1,
        "load": load,
        "hosts": [host],
        "replicas": [replica],
        "paused": [],
        "backoffs": [],
    }
    return {**whole, **changes}


def shown(*arguments: Any) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(screen(*arguments))
    return captured.get()


def test_jobs_pools_replicas_hosts_and_cards_are_on_the_screen():
    text = " ".join(shown(status()).split())
    assert "3 jobs running, 2 waiting (the oldest for 42 s) · ended: 1 error, 5 success" in text
    assert "went on elsewhere: 3 handed over, 2 steps again" in text
    assert "denoise 1 7 16" in text
    assert "r1 denoise gpu-1 16/16 backbone a/b" in text
    assert "gpu-1 memory 25 % 4" in text
    assert "H100 25 % 80" in text


def test_the_second_look_says_how_many_jobs_end_a_minute():
    earlier = status(load={**status()["load"], "ended": {"success": 2}})
    assert "24.0 a minute" in shown(status(), [], earlier, 10.0)


def test_a_scheduler_that_was_replaced_meanwhile_gives_no_rate():
    assert "a minute" not in shown(status(), [], status(epoch=0), 10.0)


def test_without_a_terminal_the_screen_is_printed_once(url, capsys):
    assert main(["top", "--server", url]) == 0
    assert "jobs running" in capsys.readouterr().out


def test_a_drained_replica_drains_until_its_tasks_have_ended():
    [replica] = status()["replicas"]
    for running, state in ((1, "drains"), (0, "drained")):
        text = shown(status(replicas=[replica | {"running": running, "drained": True}]))
        assert f"backbone a/b {state}" in " ".join(text.split())


def test_a_pause_is_displayed():
    paused = [{"kind": "queue", "name": "", "since_s": 1.0}, {"kind": "pool", "name": "gpu", "since_s": 2.0}]
    assert "paused: queue, pool gpu" in shown(status(paused=paused))


def test_a_pause_is_set_and_taken_back_from_the_command_line(url, capsys):
    assert main(["pause", "--server", url]) == 0
    assert main(["status", "--server", url]) == 0
    assert main(["resume", "--server", url]) == 0
    said = capsys.readouterr().out
    assert said.startswith("paused: queue\n")
    assert "paused since" in said
    assert said.endswith("nothing is paused\n")
    assert main(["pause", "--server", url, "--pool", "nowhere"]) == 1


def test_the_log_is_printed_as_lines_for_people_with_the_ids_that_the_message_lacks():
    line = {"at": "1970-01-01T00:00:01.500+00:00", "level": "INFO", "logger": "serve_app.scheduler"}
    text = log_line({**line, "message": "ended: state=success", "state": "success", "job": "j"})
    assert text.endswith("00:01.500 INFO    scheduler: ended: state=success job=j")
