"""`serve-app doctor`: prints what the checks of a start find, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from serve_app.cli.lines import print_json, print_line
from serve_app.deployments.process.start_checks import Finding


def print_findings(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings as they come, or as a list of JSON; return the exit status: 1 if a server could not start."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            print_line(f"{finding.level:8} {finding.check:11} {finding}")
    if as_json:
        print_json([asdict(finding) for finding in found])
    return int(any(finding.level == "error" for finding in found))
