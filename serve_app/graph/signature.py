"""Which work is the same work: a node's signature is a hash of its class, its constants and its ancestry's signatures.

Node ids stay out of it, so equal work is found across jobs and clients. The rule is ComfyUI's caching rule; beside a
node's own fingerprint (IS_CHANGED), the fingerprints of the files that its choices name are part of it.
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
"""The salt of work that is done apart from all other: what was done otherwise does not stand in for it."""


CLIENTS_FOLDERS = ("input", "output", "temp")
"""As what folders begin with whose files are clients' own."""


def salt_of(tenant: str, *, strict: bool) -> str:
    """Return the salt of a tenant's work: what others have made is not shown to it, nor how long it did not take."""
    return (f"{tenant}@" if tenant else "") + (STRICT if strict else "")


def is_impersonal(node: Node, spec: NodeSpec) -> bool:
    """Whether what a node makes is the same for everyone who gives it the same, and names nobody's files.

    Not what saves or shows something, is given its job or a store by a hidden input, is never the same twice or says
    itself when it has changed, and not what a client's own file is given to.
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
    """Return the signature of every node whose ancestry is whole: known classes, no link to nowhere, no circle.

    fingerprint: (folder, name) -> what changes when that file's content does. Signatures do not depend on the order of
    inputs, on the process, or on constants that the class does not declare. everyones: the salt of what is impersonal;
    None for the same.
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
    """Return the signature of one node, given those of the nodes it links to. salt: sets it apart from equal work.

    Errors: KeyError for a link to a node without a signature; TypeError for a constant that is no JSON value.
    """
    parts: dict[str, list[object]] = {}
    spec = opened(spec, node.inputs)
    for name, value in node.inputs.items():
        declared = spec.input(name)
        if isinstance(value, BadLink):
            continue  # where it is declared its node is refused, and elsewhere nobody is given it
        if isinstance(value, Link):
            # A raw link hands the node the id itself, so the id is part of what it works on.
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
