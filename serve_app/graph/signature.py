"""Cache keys of nodes: a signature is a hash of a node's class, its constants and its ancestors' signatures.

Node ids are not part of it, so equal work is found across jobs and clients. The rule is ComfyUI's caching rule; a
node's own fingerprint (IS_CHANGED) and the fingerprints of the files that it names are part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from serve_app.errors import FileMissingError, ModelFileError
from serve_app.graph.dynamic import opened
from serve_app.graph.graph import BadLink, Graph, Link, Node
from serve_app.graph.spec import NodeSpec

STRICT = "strict"
"""The salt of strict jobs, so that other jobs' results are not used for them."""


CLIENTS_FOLDERS = ("input", "output", "temp")
"""Prefixes of folders with clients' own files."""


def salt_of(tenant: str, *, strict: bool) -> str:
    """Return the salt of a tenant's signatures, so that it can neither get others' results nor notice them by
    timing.
    """
    return (f"{tenant}@" if tenant else "") + (STRICT if strict else "")


def is_impersonal(node: Node, spec: NodeSpec) -> bool:
    """Whether a node's result depends on its inputs only, and contains no tenant's files, so that tenants may share it.

    Not for nodes that save or output something, have the job or store as a hidden input, are never cached or have
    IS_CHANGED, or read a client's own file.
    """
    if spec.output_node or spec.not_idempotent or spec.fingerprinted or node.fingerprint is not None:
        return False
    if set(spec.hidden.values()) - {"RUNTIME"}:
        return False
    folders = (declared.folder for declared in opened(spec, node.inputs).inputs if declared.folder is not None)
    return not any(folder.partition(" ")[0] in CLIENTS_FOLDERS for folder in folders)


def signatures(
    graph: Graph,
    specs: Mapping[str, NodeSpec],
    fingerprint: Callable[[str, str], str],
    salt: str = "",
    everyones: str | None = None,
) -> dict[str, str]:
    """Return the signature of every node with a valid ancestry: known classes, no broken link, no cycle.

    fingerprint: (folder, name) -> a fingerprint of the file's content. Signatures do not depend on the order of inputs,
    on the process, or on undeclared constants. everyones: the salt of impersonal nodes; None for the same.
    """
    waiting = {node.id: {link.node_id for _, link in node.links()} for node in graph.nodes.values()}
    consumers: dict[str, list[str]] = {}
    for node_id, needs in waiting.items():
        for source in needs:
            consumers.setdefault(source, []).append(node_id)
    ready = [node_id for node_id, needs in waiting.items() if not needs]
    found: dict[str, str] = {}
    while ready:
        node = graph.nodes[ready.pop()]
        if node.class_type not in specs:
            continue
        spec = specs[node.class_type]
        salted = salt if everyones is None or not is_impersonal(node, spec) else everyones
        found[node.id] = signature(node, spec, found, fingerprint, salted)
        for consumer in consumers.get(node.id, ()):
            waiting[consumer].discard(node.id)
            if not waiting[consumer]:
                ready.append(consumer)
    return found


def _print(folder: str, name: str, fingerprint: Callable[[str, str], str]) -> str:
    # A missing file is for the node that reads it to report, with its id, when it runs.
    try:
        return fingerprint(folder, name)
    except (FileMissingError, ModelFileError):
        return "absent"


def signature(
    node: Node, spec: NodeSpec, found: Mapping[str, str], fingerprint: Callable[[str, str], str], salt: str = ""
) -> str:
    """Return the signature of one node, given those of its sources. salt: separates it from equal work.

    Errors: KeyError for a link to a node without a signature; TypeError for a constant that is no JSON value.
    """
    parts: dict[str, list[object]] = {}
    spec = opened(spec, node.inputs)
    for name, value in node.inputs.items():
        declared = spec.input(name)
        if isinstance(value, BadLink):
            continue  # if it is declared its node is refused, else it is unused
        if isinstance(value, Link):
            # A raw link passes the id itself to the node, so the id is part of its input.
            raw = declared is not None and declared.raw_link
            parts[name] = ["link", found[value.node_id], value.slot, *([value.node_id] if raw else [])]
        elif declared is not None and declared.folder is not None and isinstance(value, str) and value:
            parts[name] = ["file", declared.folder, value, _print(declared.folder, value, fingerprint)]
        elif spec.uses(name):
            parts[name] = ["constant", value]
    own = node.id if spec.not_idempotent or "UNIQUE_ID" in spec.hidden.values() else None
    identity = [
        node.class_type,
        own,
        parts,
        *([node.fingerprint, salt] if salt or node.fingerprint is not None else []),
    ]
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
