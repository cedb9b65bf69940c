"""Random workflows in API format over the node classes that two servers share: right ones, and ones slightly wrong.

Made from /object_info alone: every input that takes a link gets a node that gives its type, every other a constant its
declaration allows. Values are small, so that a graph takes a fraction of a second. Equal seeds give equal graphs.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Container, Mapping
from typing import Any

Graph = dict[str, dict[str, Any]]

LEFT_OUT = {
    *("CLIPSave", "CheckpointSave", "LoraSave", "ModelSave", "VAESave", "MakeTrainingDataset"),
    *("SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder", "SaveVideo", "SaveWEBM", "RecordAudio"),
    *("WebcamCapture", "TextGenerate", "MultiGPU_WorkUnits", "SelectModelDevice", "SelectCLIPDevice"),
    *("SelectVAEDevice", "LoadVideo", "LoadAudio", "SamplerDPMAdaptative", "DiffusersLoader", "LoadImageOutput"),
    *("Wan22FunControlToVideo", "Wan22ImageToVideoLatent", "WanFirstLastFrameToVideo", "WanFunControlToVideo"),
    *("WanFunInpaintToVideo", "WanImageToVideo", "WanVaceToVideo", "EmptyHunyuanImageLatent", "CheckpointLoader"),
    *("LoadImageDataSetFromFolder", "LoadImageTextDataSetFromFolder", "LoadVideoDataSetFromFolder"),
    *("LoadVideoTextDataSetFromFolder", "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader"),
    *("unCLIPCheckpointLoader", "LoadLatent", "LoadImageMask", "SplitImageToTileList", "ImageMergeTileList"),
}
"""Classes that write models, need files or devices that are not there, or have no end for some small values there."""

NETWORKS = {"MODEL", "CLIP", "VAE", "CONTROL_NET", "GUIDER", "HOOKS", "SAMPLER"}
"""Types that are seen by what is made with them."""

SHOWN = {
    "MODEL": ("KSampler", "model"),
    "CLIP": ("CLIPTextEncode", "clip"),
    "VAE": ("VAEDecode", "vae"),
    "CONTROL_NET": ("ControlNetApplyAdvanced", "control_net"),
    "SAMPLER": ("SamplerCustom", "sampler"),
    "GUIDER": ("SamplerCustomAdvanced", "guider"),
    "NOISE": ("SamplerCustomAdvanced", "noise"),
    "HOOKS": ("SetClipHooks", "hooks"),
    "LATENT_OPERATION": ("LatentApplyOperation", "operation"),
    "VIDEO": ("GetVideoComponents", "video"),
}
"""By which class's input a value is seen that holds no tensors of its own."""

CHEAP = {
    "IMAGE": "FuzzImage",
    "MASK": "FuzzMask",
    "LATENT": "FuzzLatent",
    "MODEL": "CheckpointLoaderSimple",
    "CLIP": "CheckpointLoaderSimple",
    "VAE": "CheckpointLoaderSimple",
    "CONDITIONING": "CLIPTextEncode",
    "SIGMAS": "ManualSigmas",
    "SAMPLER": "KSamplerSelect",
    "NOISE": "RandomNoise",
    "GUIDER": "BasicGuider",
    "CONTROL_NET": "ControlNetLoader",
    "AUDIO": "EmptyAudio",
    "INT": "PrimitiveInt",
    "FLOAT": "PrimitiveFloat",
    "STRING": "PrimitiveString",
    "BOOLEAN": "PrimitiveBoolean",
    "BOUNDING_BOX": "PrimitiveBoundingBox",
    "VIDEO": "CreateVideo",
}
TEXTS = (
    "",
    "a red fox",
    "(a:1.3) cat, [dog]",
    "1.5, 0.7, 0.2, 0",
    "äöü 猫",
    "line\nline",
    "{a} and {b}",
    "3",
    "a+b*2",
    "%",
)
SMALL = {
    "megapixels": (0.01, 0.02),
    "scale_by": (0.5, 1.5, 2.0),
    "duration": (0.1, 0.25),
    "sample_rate": (44100, 8000),
    "steps": (1, 2, 3),
    "fps": (8.0, 24.0),
    "size": (16, 32),
    "target_size": (16, 64),
    "longer_edge": (16, 64),
    "shorter_edge": (16, 64),
    "largest_size": (16, 64),
    "max_dimension": (16, 64),
    "sampler_name": ("euler", "dpmpp_2m", "heun", "dpmpp_2m_sde", "lcm", "uni_pc", "euler_ancestral"),
    "steps_to_run": (-1, 1),
    "sampler": None,
}
LARGEST = 48
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


class Generator:
    """Graphs over the classes of an /object_info. seed: of all of them."""

    def __init__(self, info: Mapping[str, Any], seed: int) -> None:
        self._info, self._seed = info, seed
        self._givers: dict[str, list[str]] = {}
        for name, declared in sorted(info.items()):
            for kind in declared["output"]:
                if isinstance(kind, str):
                    self._givers.setdefault(kind, []).append(name)
        known: dict[str, int] = {}
        while more := {name for name in info if name not in known and self._possible(name, known)}:
            known |= dict.fromkeys(more, max(known.values(), default=0) + 1)
        self.classes = sorted(known.keys() - {"FuzzShow"})
        # First those that all others are made from, and of these those that need fewest links: with them a graph ends.
        self._givers = {
            kind: sorted((n for n in names if n in known), key=lambda n: (known[n], self._links_of(n), n))
            for kind, names in self._givers.items()
        }
        self._heavy = [name for name in self.classes if self._is_heavy(name)]
        self._light = [name for name in self.classes if name not in set(self._heavy)]

    def _possible(self, name: str, known: Container[str]) -> bool:
        if name in LEFT_OUT:
            return False
        for _, declared in inputs_of(self._info[name], "required"):
            kind, options = kind_of(declared)
            if kind == "COMBO":
                if not options.get("options"):
                    return False
            elif kind not in WIDGETS and not kind.startswith("COMFY_") and kind != "*" and "default" not in options:
                given = set(kind.split(","))
                if not given & WIDGETS and not any(n in known for part in given for n in self._givers.get(part, ())):
                    return False
        return True

    def _links_of(self, name: str) -> int:
        return sum(kind_of(declared)[0] not in WIDGETS for _, declared in inputs_of(self._info[name], "required"))

    def _is_heavy(self, name: str) -> bool:
        kinds = {kind_of(declared)[0] for _, declared in inputs_of(self._info[name])} | {
            k for k in self._info[name]["output"] if isinstance(k, str)
        }
        return bool(kinds & (NETWORKS | {"CONDITIONING"}))

    def graph(self, number: int) -> tuple[Graph, str]:
        """Return a right graph and the class that it is about."""
        draw = random.Random(f"{self._seed}:{number}")
        about = draw.choice(self._heavy if draw.random() < 0.12 else self._light)
        made = _Graph(self._info, self._givers, draw, f"g{self._seed}/{number}")
        node_id = made.node(about, 0)
        made.show(node_id)
        if draw.random() < 0.2:
            made.show(made.node(draw.choice(self._light), 1))
        return made.nodes, about

    def wrong(self, number: int) -> tuple[Graph, str]:
        """Return a graph with something wrong and what that is."""
        graph, _ = self.graph(number)
        draw = random.Random(f"wrong:{self._seed}:{number}")
        for _ in range(20):
            name = draw.choice(sorted(MISTAKES))
            changed = copy.deepcopy(graph)
            if MISTAKES[name](changed, self._info, draw):
                return changed, name
        return graph, "nothing"


class _Graph:
    """One graph as it grows."""

    def __init__(
        self, info: Mapping[str, Any], givers: Mapping[str, list[str]], draw: random.Random, prefix: str
    ) -> None:
        self._info, self._givers, self._draw, self._prefix = info, givers, draw, prefix
        self.nodes: Graph = {}

    def node(self, name: str, depth: int) -> str:
        inputs: dict[str, Any] = {}
        given = self._info[name]["input"]
        for section in ("required", "optional"):
            for key, declared in (given.get(section) or {}).items():
                if section == "required" or (depth < 4 and self._draw.random() < 0.4):
                    self._fill(inputs, key, declared, depth)
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": name, "inputs": inputs}
        return node_id

    def _fill(self, inputs: dict[str, Any], key: str, declared: Any, depth: int) -> None:
        kind, options = kind_of(declared)
        draw = self._draw
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = draw.choice(options["options"])
            inputs[key] = chosen["key"]
            for section in ("required", "optional"):
                for name, inner in (chosen["inputs"].get(section) or {}).items():
                    if section == "required" or draw.random() < 0.4:
                        self._fill(inputs, f"{key}.{name}", inner, depth)
        elif kind == "COMFY_AUTOGROW_V3":
            template = options["template"]
            [(_, inner)] = template["input"]["required"].items()
            names = template.get("names") or [f"{template['prefix']}{i}" for i in range(template["max"])]
            least = template.get("min", 0)
            for name in names[: max(least, draw.randint(least, 3))]:
                self._fill(inputs, f"{key}.{name}", inner, depth)
        elif kind in WIDGETS and not (options.get("forceInput")):
            if depth < 4 and draw.random() < 0.07 and kind != "COMBO":
                inputs[key] = self._link(kind, depth + 1)
            else:
                inputs[key] = self._constant(key, kind, options)
        else:
            wanted = draw.choice(["IMAGE", "MASK", "LATENT", "INT", "STRING"]) if kind == "*" else kind
            if kind == "COMFY_MATCHTYPE_V3":
                wanted = self.matched(inputs)
            wanted = draw.choice(wanted.split(","))
            if "default" in options and kind not in WIDGETS and (depth > 3 or draw.random() < 0.7):
                inputs[key] = options["default"]
            elif self._givers.get(wanted):
                inputs[key] = self._link(wanted, depth + 1)

    def matched(self, inputs: Mapping[str, Any]) -> str:
        for value in inputs.values():
            if isinstance(value, list):
                kind = self._info[self.nodes[value[0]]["class_type"]]["output"][value[1]]
                if kind not in WIDGETS:
                    return str(kind)
        return self._draw.choice(["IMAGE", "MASK", "LATENT"])

    def _link(self, kind: str, depth: int) -> list[Any]:
        there = [
            [node_id, slot]
            for node_id, node in self.nodes.items()
            for slot, given in enumerate(self._info[node["class_type"]]["output"])
            if given == kind
        ]
        if there and self._draw.random() < 0.5:
            return self._draw.choice(there)
        name = CHEAP.get(kind, self._givers[kind][0])
        if (depth < 3 and kind not in NETWORKS and self._draw.random() < 0.5) or (
            depth < 2 and self._draw.random() < 0.4
        ):
            name = self._draw.choice(self._givers[kind])
        if name not in self._givers[kind] or depth > 4:
            name = self._givers[kind][0]
        node_id = self.node(name, depth)
        slots = [slot for slot, given in enumerate(self._info[name]["output"]) if given == kind]
        return [node_id, self._draw.choice(slots)]

    def _constant(self, key: str, kind: str, options: Mapping[str, Any]) -> Any:
        draw = self._draw
        name = key.rsplit(".", 1)[-1]
        if name == "filename_prefix":
            return f"{self._prefix}/{draw.choice(['x', 'a b', '%width%x'])}"
        choices = options.get("options")
        if chosen := SMALL.get(name):
            allowed = [c for c in chosen if choices is None or c in choices]
            if allowed and isinstance(allowed[0], str) == (kind in ("COMBO", "STRING")):
                value = draw.choice(allowed)
                return int(value) if kind == "INT" else value
        match kind:
            case "COMBO":
                return draw.choice(choices) if choices else ""
            case "BOOLEAN":
                return draw.random() < 0.5
            case "STRING":
                return draw.choice([*TEXTS, options.get("default") or ""])
            case "INT":
                return self._whole(name, options)
        low, high = max(options.get("min", -4.0), -4.0), min(options.get("max", 4.0), 4.0)
        default = options.get("default", 1.0)
        return draw.choice([default, round(draw.uniform(low, max(low, high)), 2), low])

    def _whole(self, name: str, options: Mapping[str, Any]) -> int:
        draw = self._draw
        low, high = options.get("min", 0), options.get("max", LARGEST)
        if "seed" in name:
            return draw.choice([0, 7, draw.randint(0, high)])
        most = min(high, LARGEST)
        if any(part in name for part in ("batch", "amount", "length", "count", "repeat")):
            most = min(most, 3)
        low = max(low, -LARGEST)
        default = options.get("default", low)
        few = [low, most, draw.randint(low, max(low, most)), default if abs(default) <= most else most]
        return int(draw.choice(few))

    def show(self, node_id: str) -> None:
        """Add what shows the values of a node to the client."""
        declared = self._info[self.nodes[node_id]["class_type"]]
        for slot, kind in enumerate(declared["output"]):
            if kind in SHOWN and (by := SHOWN[kind])[0] in self._info:
                shown = self.node(by[0], 2)
                self.nodes[shown]["inputs"][by[1]] = [node_id, slot]
                if by[0] != self.nodes[node_id]["class_type"]:
                    self.show(shown)
                continue
            self._add("FuzzShow", {"value": [node_id, slot]})
            if self._draw.random() < 0.3:
                if kind == "IMAGE":
                    name = self._draw.choice(["SaveImage", "PreviewImage"])
                    prefix = {"filename_prefix": f"{self._prefix}/y"} if name == "SaveImage" else {}
                    self._add(name, {"images": [node_id, slot], **prefix})
                else:
                    self._add("PreviewAny", {"source": [node_id, slot]})

    def _add(self, name: str, inputs: dict[str, Any]) -> None:
        self.nodes[str(len(self.nodes) + 1)] = {"class_type": name, "inputs": inputs}


def inputs_of(declared: Mapping[str, Any], *sections: str) -> list[tuple[str, Any]]:
    """Return (name, declaration) of a class's inputs."""
    return [
        item
        for section in sections or ("required", "optional")
        for item in (declared["input"].get(section) or {}).items()
    ]


def kind_of(declared: Any) -> tuple[str, Mapping[str, Any]]:
    """Return an input's type and options, a list of choices as COMBO."""
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    return ("COMBO", {**options, "options": kind}) if isinstance(kind, list) else (kind, options)


# Mistakes: each changes a graph in place and says whether it found a place. -------------------------------------------

Mistake = Callable[[Graph, Mapping[str, Any], random.Random], bool]


def _places(graph: Graph, info: Mapping[str, Any], *kinds: str) -> list[tuple[dict[str, Any], str, Mapping[str, Any]]]:
    found = []
    for node in graph.values():
        for name, declared in inputs_of(info[node["class_type"]]):
            kind, options = kind_of(declared)
            if name in node["inputs"] and kind in kinds and not isinstance(node["inputs"][name], list):
                found.append((node["inputs"], name, options))
    return found


def _links(graph: Graph) -> list[tuple[dict[str, Any], str]]:
    inputs = ((node["inputs"], name, value) for node in graph.values() for name, value in node["inputs"].items())
    return [(given, name) for given, name, value in inputs if isinstance(value, list) and len(value) == 2]


def _constants(*kinds: str, to: Callable[[Mapping[str, Any], random.Random], Any]) -> Mistake:
    def change(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
        if not (places := _places(graph, info, *kinds)):
            return False
        inputs, name, options = draw.choice(places)
        inputs[name] = to(options, draw)
        return True

    return change


def _relinked(to: Callable[[list[Any], random.Random], Any]) -> Mistake:
    def change(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
        if not (places := _links(graph)):
            return False
        inputs, name = draw.choice(places)
        inputs[name] = to(inputs[name], draw)
        return True

    return change


def _dropped(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    places = [n["inputs"] for n in graph.values() if n["inputs"]]
    if places:
        inputs = draw.choice(places)
        del inputs[draw.choice(sorted(inputs))]
    return bool(places)


def _crossed(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    if not (places := _links(graph)):
        return False
    inputs, name = draw.choice(places)
    inputs[name] = [draw.choice(sorted(graph)), 0]
    return True


def _renamed(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    draw.choice(list(graph.values()))["class_type"] = draw.choice(["NoSuchClass", "KSamplr", ""])
    return True


def _no_class(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    node = draw.choice(list(graph.values()))
    del node["class_type"]
    if draw.random() < 0.5:
        node["_meta"] = {"title": "Mine"}
    return True


def _no_outputs(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    for node_id in [i for i, node in graph.items() if info[node["class_type"]]["output_node"]]:
        del graph[node_id]
    return bool(graph)


def _extra(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    draw.choice(list(graph.values()))["inputs"]["no_such_input"] = draw.choice([3, "x", None, ["1", 0], {"a": 1}])
    return True


def _beyond(options: Mapping[str, Any], draw: random.Random) -> Any:
    return draw.choice([options.get("min", -(2**70)) - 1, options.get("max", 2**70) + 1])


def _linked(graph: Graph, info: Mapping[str, Any], draw: random.Random) -> bool:
    if not (places := _places(graph, info, "INT", "FLOAT")):
        return False
    inputs, name, options = draw.choice(places)
    whole = isinstance(inputs[name], int)
    value = options.get("min", 0) - draw.choice([1, 8] if whole else [0.1, 1.5])
    if not whole and draw.random() < 0.5:
        value = options.get("max", 1.0) + draw.choice([0.1, 1.5])
    graph["linked"] = {"class_type": "PrimitiveInt" if whole else "PrimitiveFloat", "inputs": {"value": value}}
    inputs[name] = ["linked", 0]
    return True


MISTAKES: dict[str, Mistake] = {
    "a linked number out of range": _linked,
    "an input is missing": _dropped,
    "a number out of range": _constants("INT", "FLOAT", to=_beyond),
    "a text for a number": _constants(
        "INT", "FLOAT", to=lambda o, d: d.choice(["x", "", "1e3", " 12 ", "0x10", "3.5"])
    ),
    "a null": _constants("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", to=lambda o, d: None),
    "an object": _constants("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", to=lambda o, d: {"a": 1}),
    "a wrapped value": _constants("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", to=lambda o, d: {"__value__": [1, 2]}),
    "a number for a choice": _constants("COMBO", to=lambda o, d: d.choice([0, 1, 2.5, True, 10**30])),
    "a huge number": _constants("INT", "FLOAT", "STRING", to=lambda o, d: d.choice([10**30, "1" * 40, -(10**25)])),
    "a number for a text": _constants("STRING", to=lambda o, d: d.choice([3, 2.5, True])),
    "a text for a boolean": _constants("BOOLEAN", to=lambda o, d: d.choice(["false", "", 0, 2, "x"])),
    "a choice that there is not": _constants("COMBO", to=lambda o, d: d.choice(["nothing", "", "EULER", "a'b"])),
    "a file that there is not": _constants("COMBO", to=lambda o, d: "missing.png"),
    "a list": _constants("INT", "STRING", "COMBO", to=lambda o, d: d.choice([[], [1], ["1"], [1, 2, 3]])),
    "a link to no node": _relinked(lambda link, draw: [draw.choice(["999", "x", ""]), 0]),
    "a slot that there is not": _relinked(lambda link, draw: [link[0], draw.choice([7, -1, -9])]),
    "a slot that is no number": _relinked(lambda link, draw: [link[0], draw.choice(["0", 0.0, True, None])]),
    "a whole number as id": _relinked(lambda link, draw: [int(link[0]), link[1]]),
    "a longer link": _relinked(lambda link, draw: [*link, 0]),
    "a constant for a link": _relinked(lambda link, draw: draw.choice([None, 3, "x", {"a": 1}])),
    "another node's value": _crossed,
    "a class that there is not": _renamed,
    "no class": _no_class,
    "no output": _no_outputs,
    "an input that there is not": _extra,
}
