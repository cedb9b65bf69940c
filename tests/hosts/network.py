"""Hosts' networks on this machine: network namespaces on one bridge, whose links can be cut, slow and lossy."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

HERE = 254
"""The last part of this machine's own address on the bridge, where clients are."""
MARK = "sahosts"
"""What every name of a namespace and an interface begins with, so that what a killed run has left is known."""
TABLE = "serve_app_faults"
RUN_S = 60.0
Direction = Literal["in", "out"]
BOTH: tuple[Direction, ...] = ("in", "out")


def missing() -> str | None:
    """Return why no hosts can be made here, None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"no `{program}`: install {package}"
    name = f"probe{secrets.token_hex(3)}"
    made = _tried("ip", "netns", "add", name)
    if made.returncode != 0:
        return f"`ip netns add` is refused here: {made.stderr.strip()}"
    try:
        tried = [
            ["ip", "netns", "exec", name, "nft", "add", "table", "inet", TABLE],
            ["ip", "link", "add", name[:12], "type", "bridge"],
        ]
        for command in tried:
            done = _tried(*command)
            if done.returncode != 0:
                return f"`{' '.join(command)}` is refused here: {done.stderr.strip()}"
        _run("ip", "link", "delete", name[:12])
    finally:
        _run("ip", "netns", "delete", name)
    return None


def namespaces() -> list[str]:
    """Return those of any network of this module's that is there."""
    return [name for name in _listed("name", "ip", "-json", "netns", "list") if name.startswith(MARK)]


def interfaces() -> list[str]:
    """Return this machine's ends of such networks: bridges, and hosts' links."""
    return [name for name in _listed("ifname", "ip", "-json", "link", "show") if name.startswith(MARK)]


def remove() -> None:
    """Remove every network of this module's, also of a run that was killed."""
    for name in namespaces():
        _run("ip", "netns", "delete", name)
    for name in interfaces():
        # Hosts' links go with their namespaces, by themselves and a while later.
        _tried("ip", "link", "delete", name)


class Network:
    """A bridge with a namespace for each name. Addresses end in 1, 2, …, in the order of the names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        self.addresses = {name: f"{self._prefix}.{number}" for number, name in enumerate(names, 1)}
        self.here = f"{self._prefix}.{HERE}"
        _run("ip", "link", "add", MARK, "type", "bridge")
        _run("ip", "address", "add", f"{self.here}/24", "dev", MARK)
        _run("ip", "link", "set", MARK, "up")
        for name, address in self.addresses.items():
            self._connect(name, address)

    def _connect(self, name: str, address: str) -> None:
        outside = self._outside(name)
        inside = f"{outside}i"
        _run("ip", "netns", "add", self._namespace(name))
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", outside, "master", MARK, "up")
        _run("ip", "link", "set", inside, "netns", self._namespace(name))
        self._in(name, "ip", "link", "set", inside, "name", "eth0")
        self._in(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        self._in(name, "ip", "link", "set", "lo", "up")
        # Leads nowhere, but by it a program learns which address is the host's own.
        self._in(name, "ip", "route", "add", "default", "via", self.here)

    def within(self, name: str) -> list[str]:
        """Return what a command is prefixed with to run in a host's network."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def drop(self, name: str, *, peer: str = "", port: int = 0, directions: Iterable[Direction] = BOTH) -> None:
        """Let what a host sends and gets vanish, all but its own loopback.

        peer, port: only what goes to that address, and that port of it, and comes from there.
        """
        for direction in directions:
            side = "s" if direction == "in" else "d"
            match = f"ip {side}addr {peer} " if peer else ""
            match += f"tcp {side}port {port} " if port else ""
            self._rule(name, direction, f"{match}drop")

    def lose(self, name: str, percent: int) -> None:
        """Let so many of the packets that a host gets and sends vanish, each by chance."""
        for direction in BOTH:
            self._rule(name, direction, f"numgen random mod 100 < {percent} drop")

    def slow(self, name: str, kilobits: int, queue_ms: int = 400) -> None:
        """Let a host send and get so many kbit/s each way; what is more waits up to queue_ms, then is lost.

        A token bucket and not netem, which not every kernel has: delay comes from the queue, as on a full line.
        """
        shape = ["tbf", "rate", f"{kilobits}kbit", "burst", "16kb", "latency", f"{queue_ms}ms"]
        self._in(name, "tc", "qdisc", "replace", "dev", "eth0", "root", *shape)
        _run("tc", "qdisc", "replace", "dev", self._outside(name), "root", *shape)

    def sent_bytes(self) -> int:
        """Return how much hosts have sent each other since they were made, headers of packets included."""
        of_hosts = sum(_counter(self._outside(name), "rx_bytes") for name in self.addresses)
        return of_hosts - _counter(MARK, "rx_bytes")

    def heal(self, name: str) -> None:
        """Let a host's link be whole again."""
        self._in(name, "nft", "add", "table", "inet", TABLE)
        self._in(name, "nft", "delete", "table", "inet", TABLE)
        delete = ["tc", "qdisc", "delete", "root", "dev"]
        for command in ([*self.within(name), *delete, "eth0"], [*delete, self._outside(name)]):
            # There is none unless it was slow.
            _tried(*command)

    def close(self) -> None:
        """Remove all of it."""
        remove()

    def _rule(self, name: str, direction: Direction, rule: str) -> None:
        hook, interface = {"in": ("input", "iifname"), "out": ("output", "oifname")}[direction]
        self._in(name, "nft", "add", "table", "inet", TABLE)
        self._in(name, "nft", "add", "chain", "inet", TABLE, hook, f"{{ type filter hook {hook} priority -300; }}")
        self._in(name, "nft", "add", "rule", "inet", TABLE, hook, interface, "!=", "lo", *rule.split())

    def _in(self, name: str, *command: str) -> None:
        _run(*self.within(name), *command)

    def _outside(self, name: str) -> str:
        """Return the end of a host's link at the bridge; the other one is its eth0."""
        return f"{MARK}h{self.addresses[name].rpartition('.')[2]}"

    def _namespace(self, name: str) -> str:
        return f"{MARK}-{name}"


def _run(*command: str) -> None:
    done = _tried(*command)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _tried(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S)


def _counter(interface: str, name: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/statistics/{name}").read_text())


def _listed(key: str, *command: str) -> list[str]:
    said = _tried(*command).stdout
    return [found[key] for found in json.loads(said)] if said.strip() else []
