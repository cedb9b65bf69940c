"""What a log line says."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys

import pytest

from serve_app.log import JsonFormatter, TextFormatter, about


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("serve_app.engine", logging.WARNING, "", 0, message, arguments, told)


def test_a_json_line_says_when_what_and_about_which_job_and_task():
    with about(job="j", task="0.1"):
        line = json.loads(JsonFormatter().format(record("a forward failed: rows=%d", 4)))
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "serve_app.engine",
        "message": "a forward failed: rows=4",
        "job": "j",
        "task": "0.1",
    }


def test_a_json_line_stays_one_line_whatever_it_holds():
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        text = JsonFormatter().format(record("line\nbreak", error=error))
    assert "\n" not in text
    assert "ValueError: first\nsecond" in json.loads(text)["traceback"]


def test_a_text_line_has_the_ids_after_the_message_and_none_outside():
    with about(job="j"):
        assert TextFormatter().format(record("loaded")).endswith("WARNING serve_app.engine: loaded job=j")
    assert TextFormatter().format(record("loaded")).endswith("serve_app.engine: loaded")


async def test_what_a_task_starts_is_about_the_same_job_and_its_neighbours_are_not():
    async def says() -> str:
        return await asyncio.to_thread(lambda: TextFormatter().format(record("x")))

    async def job(name: str) -> str:
        with about(job=name):
            await asyncio.sleep(0)
            return await asyncio.create_task(says())

    first, second = await asyncio.gather(job("a"), job("b"))
    assert first.endswith("x job=a")
    assert second.endswith("x job=b")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_configured_process_writes_in_that_form_to_standard_error(form):
    code = f"from serve_app import log\nlog.configure({form!r})\nlog.get('up').info('ready')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr.startswith("{")) == ("", form == "json")
    assert "ready" in done.stderr


@pytest.mark.parametrize(("level", "printed"), [("debug", "diwe"), ("info", "iwe"), ("error", "e")])
def test_lines_below_the_configured_level_are_not_written(level, printed):
    lines = "; ".join(f"logger.{name}({name[0]!r})" for name in ("debug", "info", "warning", "error"))
    code = f"from serve_app import log\nlog.configure('text', {level!r})\nlogger = log.get('up'); {lines}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "".join(line[-1] for line in done.stderr.splitlines()) == printed
