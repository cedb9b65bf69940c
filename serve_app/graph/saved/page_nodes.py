"""Table of the node types that exist in the web page only.

The page queues none of them. One that passes something on makes of each output what comes into its input of the same
number; notes, labels and switches of other nodes' modes have nothing that comes out of them.
"""

from __future__ import annotations

PRIMITIVE = "PrimitiveNode"
"""Writes its value into the widgets that it is linked to, through core reroutes too."""
REROUTE = "Reroute"
GETTERS = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
"""Give what a node of the other type is given that has the same name as value, as KJNodes' and Easy Use's do."""

_RGTHREE = (
    "Bookmark",
    "Fast Actions Button",
    "Fast Bypasser",
    "Fast Groups Bypasser",
    "Fast Groups Muter",
    "Fast Muter",
    "Label",
    "Mute / Bypass Relay",
    "Mute / Bypass Repeater",
    "Node Collector",
    "Node Combiner",
    "Random Unmuter",
    "Reroute",
)
PAGE_ONLY = frozenset(
    {PRIMITIVE, REROUTE, "Note", "MarkdownNote", "Note Plus (mtb)", *GETTERS, *GETTERS.values()}
    | {f"{name} (rgthree)" for name in _RGTHREE}
)
