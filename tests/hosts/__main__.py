"""`python -m tests.hosts`: attacks a cluster of hosts of its own, as root. Exits with 1 if a promise broke.

Jobs run while hosts are cut off, deaf, slow, turned off and drained, the head, the database and the bucket among them.
`--upgrade` instead counts what clients see of upgrades, `--scale` has pools go from no replica to several and back,
`--cells` moves a tenant from one cluster to another, `--ranks` has a replica's two ranks on two hosts.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.chaos.campaign import Plan, Report, under_faults
from tests.chaos.faults import named
from tests.hosts import cluster, network, record
from tests.hosts.alone import alone, limit
from tests.hosts.cells import Moved, moved
from tests.hosts.cluster import Cluster
from tests.hosts.faults import faults
from tests.hosts.scaling import Scaled, scaled
from tests.hosts.spanning import Spanned, spanned
from tests.hosts.upgrade import Upgraded, upgraded


def main() -> int:
    """Run what is asked for, print the reports, return the exit status."""
    arguments = _arguments()
    if (why := network.missing() or cluster.missing()) is not None:
        print(f"not run: {why}")
        return 2
    # As Ctrl-C does, they then end the hosts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    limit(arguments.limit)
    with alone(arguments.wait, keep=arguments.keep) as root:
        report = _reported(root, arguments)
    print("\n".join(report.lines()), flush=True)
    if arguments.keep:
        print(f"kept until the next run: {root}")
    return 1 if report.violations else 0


def _reported(root: Path, arguments: argparse.Namespace) -> Report | Upgraded | Scaled | Moved | Spanned:
    if arguments.ranks:
        return spanned(root)
    if arguments.cells:
        return moved(root, arguments.seed)
    with cluster.started(root) as site:
        return _attacked(site, arguments)


def _attacked(site: Cluster, arguments: argparse.Namespace) -> Report | Upgraded | Scaled:
    if arguments.upgrade:
        return upgraded(site, arguments.rate, arguments.seed)
    if arguments.scale:
        return scaled(site, arguments.seed)
    chosen = named(faults(site, short=arguments.short), arguments.only)
    if arguments.short:
        plan = Plan(30, len(chosen), poison=0.0, seed=arguments.seed, short=True, restart=False)
        return under_faults(plan, site, chosen, "three hosts")
    plan = Plan(arguments.jobs, arguments.kills, poison=0.0, seed=arguments.seed, pace_s=arguments.pace)
    report = under_faults(plan, site, chosen, "three hosts, postgres, s3")
    if arguments.record is not None:
        record.add(report, arguments.record)
    return report


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("--jobs", type=int, default=600, help="mixed jobs (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=35, help="faults meanwhile (default: %(default)s)")
    parser.add_argument(
        "--pace", type=float, default=8.0, help="seconds between a client's jobs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="what all is drawn from (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only faults with such a name, as `worker: cut`")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append the faults as JSON, and make the table")
    parser.add_argument("--short", action="store_true", help="30 jobs and the quickest faults, as the tests do")
    parser.add_argument("--scale", action="store_true", help="scale from zero and back instead")
    parser.add_argument("--upgrade", action="store_true", help="upgrade under load instead")
    parser.add_argument("--cells", action="store_true", help="move a tenant between two clusters instead")
    parser.add_argument("--ranks", action="store_true", help="run one replica on two hosts instead")
    parser.add_argument("--rate", type=float, default=20.0, help="submissions a second then (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep its directory, the hosts' logs included")
    parser.add_argument("--limit", type=int, default=7200, help="seconds it may take (default: %(default)s)")
    parser.add_argument(
        "--wait", type=float, default=3600.0, help="seconds to wait for another run's end (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
