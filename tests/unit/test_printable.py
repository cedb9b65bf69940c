"""Text of others, before it reaches a terminal or a log line."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from rich.console import Console

from serve_app import log
from serve_app.cli import lines, tenants
from serve_app.cli.top import screen
from serve_app.log import JsonFormatter, TextFormatter
from serve_app.printable import printable

HOSTILE = "a\n2026-01-01 forged\r\x1b[2J\x9b1m\u202egnp\u2028\u200b\x7f\ud800\U000e0041b"


def is_one_plain_line(text: str) -> bool:
    return text.isprintable()


def test_what_is_not_printable_is_escaped_and_the_rest_stays():
    assert printable("déjà 画像 C:\\x") == "déjà 画像 C:\\x"
    escaped = printable(HOSTILE)
    assert is_one_plain_line(escaped)
    assert escaped.startswith("a\\u000a2026")
    assert json.loads(f'"{escaped}"') == HOSTILE


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()])
def test_no_log_line_is_forged_by_what_it_quotes(form: logging.Formatter):
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        about = (type(error), error, error.__traceback__)
        record = logging.LogRecord("serve_app.api", logging.ERROR, "", 0, "%s failed", (HOSTILE,), about)
    first, *rest = form.format(record).split("\n")
    assert is_one_plain_line(first)
    assert all(line.startswith("    ") and is_one_plain_line(line) for line in rest)


def test_another_packages_logger_is_escaped_once(caplog):
    logger = logging.getLogger("another.package")
    for _ in range(2):
        log.escape(logger.name)
    logger.warning("%s %s", HOSTILE, 200)
    assert caplog.messages == [f"{printable(HOSTILE)} 200"]


def test_the_command_line_prints_each_entry_as_one_plain_line(capsys):
    entry: dict[str, Any] = {"at_s": 0.0, "tenant": "a", "who": HOSTILE, "what": HOSTILE, "result": 404}
    lines.print_line(tenants.entry_line({**entry, "source": HOSTILE, "reason": HOSTILE}))
    lines.print_line(HOSTILE, error=True)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert is_one_plain_line(text.removesuffix("\n"))


def test_top_shows_names_as_they_are_and_no_markup_of_theirs():
    replica: dict[str, Any] = {
        "replica_id": HOSTILE,
        "pool": "[red]p[/red]",
        "host": HOSTILE,
        "rank_hosts": [HOSTILE],
        "running": 0,
        "slots": 1,
        "draining": False,
        "drained": False,
    }
    replica["recipes"] = ["[link=x]m[/link]"]
    load = {"ended": {}, "running": 0, "queued": 0, "oldest_s": 0, "pools": []}
    waiting = {"tenant": "", "client_id": HOSTILE, "wait_s": 5.0, "losses": 1, "alone": False}
    status = {"uptime_s": 1, "load": load, "paused": [], "replicas": [replica], "hosts": [], "epoch": 1}
    status["backoffs"] = [waiting]
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=False).print(screen(status))
    assert all(is_one_plain_line(line) for line in out.getvalue().split("\n"))
    assert "[red]p[/red]" in out.getvalue()
    assert "[link=x]m[/link]" in out.getvalue()
