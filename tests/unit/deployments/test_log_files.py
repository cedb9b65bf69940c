"""Log lines as they are found in the files of several processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from serve_app.deployments import log_files
from serve_app.deployments.log_files import LogFiles
from serve_app.errors import InvalidSubmissionError
from serve_app.log import JsonFormatter, TextFormatter, about
from serve_app.service.log_query import LogQuery


def written(formatter: logging.Formatter, at_s: float, level: int, message: str, error: Exception | None = None) -> str:
    told = (type(error), error, None) if error else None
    record = logging.LogRecord("serve_app.scheduler", level, "", 0, message, (), told)
    record.created, record.msecs = at_s, at_s % 1 * 1000
    return formatter.format(record) + "\n"


async def found(folder: Path, query: LogQuery) -> list[dict[str, str]]:
    return [json.loads(text) async for text in LogFiles(folder)(query)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a process that logs text and of one that logs JSON, with what else is in such files."""
    text, as_json = TextFormatter(), JsonFormatter()
    with about(job="a", request="q"):
        (tmp_path / "worker-1.err").write_text(
            "what a library says\n"
            + written(text, 1000.5, logging.INFO, "began")
            + written(text, 1003.0, logging.ERROR, "broke", ValueError("no such file"))
            + "a line that has no end"
        )
        first = written(as_json, 1002.0, logging.INFO, "goes on")
    with about(job="b", replica="r1"):
        (tmp_path / "worker-2.err").write_text(
            first + '{"at": 1}\n' + written(as_json, 1001.0, logging.WARNING, "late")
        )
    (tmp_path / "raylet.err").write_text(written(text, 1000.0, logging.ERROR, "is not ours"))
    return tmp_path


async def test_lines_of_both_forms_come_in_order_of_time_with_their_ids_and_tracebacks(folder):
    lines = await found(folder, LogQuery(ids={"job": "a", "request": "q"}))
    assert [line["message"].split()[0] for line in lines] == ["began", "goes", "broke"]
    assert lines[0]["at"].startswith("1970-01-01T00:16:40.500")
    assert "no such file" in lines[-1]["traceback"]


async def test_lines_are_chosen_by_level_replica_and_number(folder):
    assert [line["message"] for line in await found(folder, LogQuery("warning", {"replica": "r1"}))] == ["late"]
    assert len(await found(folder, LogQuery(last=1))) == 1
    with pytest.raises(InvalidSubmissionError, match="no level is named 'loud'; there are debug"):
        LogQuery("loud")


async def test_whoever_follows_gets_what_is_written_later_also_into_new_files(folder, monkeypatch):
    monkeypatch.setattr(log_files, "EVERY_S", 0.01)
    lines = LogFiles(folder)(LogQuery(last=0, follow=True))
    assert await anext(lines) == ""
    for name in ("worker-1.err", "worker-3.err"):
        with (folder / name).open("a") as file:
            file.write("\n" + written(TextFormatter(), 2000.0, logging.INFO, f"into {name}"))
    later = [text async for text in _until(lines, 2)]
    assert sorted(json.loads(text)["message"] for text in later) == ["into worker-1.err", "into worker-3.err"]
    (folder / "worker-1.err").unlink()  # as Ray does for a moment when a file is full
    assert await anext(lines) == ""
    await lines.aclose()


async def _until(lines, count):
    while count:
        if text := await anext(lines):
            count -= 1
            yield text
