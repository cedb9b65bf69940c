"""`python -m tests.chaos`: attacks a server of its own. Exits with 1 if anything that it promises broke."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Plan, under_faults
from tests.chaos.faults import faults, named
from tests.chaos.site import Setting, Site


def main() -> int:
    """Run what is asked for, print the reports, return the exit status."""
    arguments = _arguments()
    # As Ctrl-C does, it then stops the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    setting = Setting(
        root,
        arguments.replicas,
        arguments.database,
        arguments.store,
        arguments.clock,
        keep=arguments.keep,
        devices=arguments.devices,
    )
    plan = Plan(
        arguments.jobs,
        arguments.kills,
        arguments.cancels,
        arguments.poison,
        arguments.seed,
        minutes=arguments.minutes,
    )
    site = Site(setting)
    chosen = named(faults(site), arguments.only)
    report = under_faults(plan, site, chosen, setting.title)
    print("\n".join(report.lines()), flush=True)
    if arguments.keep:
        print(f"kept: {root}")
    return 1 if report.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="mixed jobs (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=40, help="kills and stops meanwhile (default: %(default)s)")
    parser.add_argument("--cancels", type=int, default=0, help="of the jobs, how many are cancelled (default: none)")
    parser.add_argument("--poison", type=float, default=0.03, help="share of poison (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only faults with such a name, as `rank: kill`")
    parser.add_argument("--seed", type=int, default=0, help="what all is drawn from (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="after these nothing new comes (default: no end)"
    )
    parser.add_argument("--replicas", type=int, default=1, help="of the one pool (default: %(default)s)")
    parser.add_argument(
        "--devices", type=int, default=1, help="of a replica: processes, which are killed too (default: %(default)s)"
    )
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--store", choices=("volume", "s3"), default="volume")
    parser.add_argument("--clock", action="store_true", help="let the wall clock jump instead, by up to an hour")
    parser.add_argument("--keep", action="store_true", help="keep its directory, logs included")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
