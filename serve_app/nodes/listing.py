"""docs/nodes.md: every node class of ComfyUI and its extras, supported or not and why.

`python -m serve_app.nodes.listing > docs/nodes.md` writes it, from the registry and the table of what there is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from serve_app import COMFYUI_VERSION
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE, PAID


def listing() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    supported = sorted(specs().values(), key=lambda spec: (spec.category, spec.class_type))
    missing = sorted((reason, name) for name, reason in NOT_THERE.items() if reason != PAID)
    paid = sorted(name for name, reason in NOT_THERE.items() if reason == PAID)
    there, not_there = len(supported), len(missing)
    yield "# Nodes"
    yield ""
    classes = f"the node classes of ComfyUI {COMFYUI_VERSION}, its extras, ComfyUI-GGUF and two loaders of KJNodes"
    yield f"Of {classes}, and of the later ones that its newest"
    yield f"help pages (comfyui-embedded-docs 0.5.15) and templates name, {there} are supported, {not_there} are not."
    yield f"Nor are its {len(paid)} API nodes: each calls a paid service online."
    yield "A workflow with a class that is not supported is refused with the reason."
    yield ""
    yield "Written by `python -m serve_app.nodes.listing`."
    yield ""
    yield "## Supported"
    for category, of_category in groupby(supported, key=lambda spec: spec.category):
        yield from ("", f"### {category}", "", "| class | title |", "|---|---|")
        yield from map(_row, of_category)
    yield from ("", "## Not supported")
    for reason, of_reason in groupby(missing, key=lambda entry: entry[0]):
        yield from ("", f"### {reason[0].upper()}{reason[1:]}", "")
        yield from (f"- `{name}`" for _, name in of_reason)
    yield from ("", f"### {PAID[0].upper()}{PAID[1:]}", "", ", ".join(f"`{name}`" for name in paid))


def _row(spec: NodeSpec) -> str:
    return f"| `{spec.class_type}` | {spec.display_name.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(listing(), end="")
