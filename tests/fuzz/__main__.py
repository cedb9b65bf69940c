"""The long form. Ends with 1 if an answer was wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import Outcome, application, fuzz, with_tenants


async def run(count: int, seed: int, url: str, key: str, *, tenants: bool) -> Outcome:
    """Fuzz the server at a URL, or an application made for it."""
    if url:
        return await fuzz(count, seed, url, key=key)
    with tempfile.TemporaryDirectory() as directory:
        if tenants:
            async with with_tenants(Path(directory)) as (app, key):
                return await fuzz(count, seed, app=app, key=key)
        async with application(Path(directory)) as app:
            return await fuzz(count, seed, app=app)


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", default="", help="of a running server; without it, an application in this process")
    parser.add_argument("--tenants", action="store_true", help="an application with tenants, asked as one of them")
    parser.add_argument("--key", default="", help="of a tenant of the running server")
    asked = parser.parse_args()
    outcome = asyncio.run(run(asked.requests, asked.seed, asked.url.rstrip("/"), asked.key, tenants=asked.tenants))
    print(*outcome.wrong, sep="\n")
    answers = ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(outcome.statuses.items()))
    print(f"{outcome.statuses.total()} answers: {answers}; {outcome.sessions} websockets; {len(outcome.wrong)} wrong")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
