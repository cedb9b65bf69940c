"""What a server answers to a workflow: the POST, the socket's messages, the history's entry; and where two differ."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from serve_app.graph.dynamic import DYNAMIC_COMBO
from serve_app.nodes.registry import specs

TOLERANCE = 1e-4
"""How far values may lie apart, of the largest one."""
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]\d+)?")
LENGTH = re.compile(r"\(list of length \d+\)")
LIMIT_S = 90.0
COUNTED = ("execution_start", "execution_success", "execution_error", "execution_interrupted", "executed")
"""Messages of which both servers send the same ones. Others come as often as a server thinks fit."""


@dataclass
class Answer:
    """One server's answer to one workflow."""

    status: int
    body: Any
    entry: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)


class Server:
    """A server, with ComfyUI's routes."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def object_info(self) -> dict[str, Any]:
        async with self._session.get(f"{self.url}/api/object_info") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def answer(self, graph: Mapping[str, Any], **more: Any) -> Answer:
        """Submit a workflow and wait for its end."""
        # A socket that nobody reads while the other server works would be closed for its silence.
        client_id = uuid.uuid4().hex
        async with self._session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            body = {"prompt": graph, "client_id": client_id, **more}
            async with self._session.post(f"{self.url}/api/prompt", data=json.dumps(body)) as response:
                text = await response.text()
            answer = Answer(response.status, _json(text))
            if response.status != 200:
                return answer
            job_id = answer.body["prompt_id"]
            async with asyncio.timeout(LIMIT_S):
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        continue
                    said = json.loads(message.data)
                    if said["data"].get("prompt_id") != job_id:
                        continue
                    answer.messages.append(said)
                    if said["type"] == "executing" and said["data"]["node"] is None:
                        break
                else:
                    raise ConnectionError(f"the socket of {self.url} was closed")
        async with self._session.get(f"{self.url}/api/history/{job_id}") as response:
            answer.entry = (await response.json())[job_id]
        return answer

    async def abandon(self) -> None:
        """Stop what runs."""
        async with self._session.post(f"{self.url}/api/interrupt"):
            pass


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text[:500]


@dataclass(frozen=True)
class Difference:
    """One thing in which two answers differ. what: its kind, without values; the rest is for people."""

    what: str
    theirs: Any
    ours: Any


def differences(theirs: Answer, ours: Answer, graph: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what differs between ComfyUI's answer to a workflow and ours."""
    if theirs.status != ours.status:
        yield Difference("status of the POST", (theirs.status, _short(theirs.body)), (ours.status, _short(ours.body)))
        return
    if isinstance(theirs.body, dict):
        if theirs.status != 200:
            yield from _unequal("error", _error(theirs.body.get("error")), _error(ours.body.get("error")))
        yield from _unequal_nodes(theirs.body.get("node_errors", {}), ours.body.get("node_errors", {}))
    if theirs.status != 200:
        return
    if _end(theirs.entry)[:1] != _end(ours.entry)[:1] or _end(theirs.entry)[1:]:
        yield from _ends(theirs.entry, ours.entry)
        return
    twins = {
        f"node {message['data']['node']} has run"
        for message in theirs.messages
        if message["type"] == "executed" and not message["data"]["output"]
    }
    said = [_messages(answer, graph) for answer in (theirs, ours)]
    # ComfyUI sends `executed` without output for a node whose equal has run; this server sends nothing.
    yield from _unequal("messages", *({what: n for what, n in one.items() if what not in twins} for one in said))
    yield from _outputs(theirs.entry["outputs"], ours.entry["outputs"], graph)
    yield from _unequal("meta", theirs.entry["meta"], ours.entry["meta"])


def _unequal(what: str, theirs: Any, ours: Any) -> Iterator[Difference]:
    if theirs != ours:
        yield Difference(what, theirs, ours)


def _error(error: Any) -> Any:
    if not isinstance(error, dict):
        return error
    lines = sorted(str(error.get("details")).split("\n")) if "Traceback" not in str(error) else []
    if error.get("type") == "prompt_outputs_failed_validation":
        # Python's own words of an exception are nobody's contract.
        lines = [line for line in lines if not line.startswith("Exception when")]
    if error.get("type") == "missing_node_type":
        # Ours go on with the reason.
        lines = [line.split("': ")[0].removesuffix("'") for line in lines]
    return {**error, "details": lines}


def _unequal_nodes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    for node_id in {**theirs, **ours}:
        a, b = theirs.get(node_id), ours.get(node_id)
        if a is None or b is None:
            yield Difference("a node that is wrong for one only", a, b)
            continue
        yield from _unequal("dependent_outputs", sorted(a["dependent_outputs"]), sorted(b["dependent_outputs"]))
        yield from _unequal("class_type", a["class_type"], b["class_type"])
        mine, other = ({_key(e): _plain(e) for e in node["errors"]} for node in (a, b))
        for key in {**mine, **other}:
            kind = key[0] if isinstance(key, tuple) else key
            yield from _unequal(f"error {kind}", mine.get(key), other.get(key))


def _key(error: Mapping[str, Any]) -> Any:
    # ComfyUI looks at outputs, and at inputs, in the order of a set: which of two consumers an exception names,
    # and whether as an output's own, differs from start to start.
    if error["type"].startswith("exception_during"):
        return ("exception",)
    return error["type"], str(error["extra_info"].get("input_name"))


def _plain(error: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error without what is Python's own words, and a declaration, which has a test of its own."""
    left_out = {"traceback", "exception_message", "exception_type", "input_config"}
    kept = {name: value for name, value in error["extra_info"].items() if name not in left_out}
    if error["type"].startswith("exception_during"):
        return {}
    if error["type"] == "dependency_cycle":
        return {"nodes": sorted(kept["cycle_nodes"])}
    if error["type"] == "value_not_in_list":
        # Lists of samplers and of classes' files are longer in later versions.
        return {"message": error["message"], **kept, "details": LENGTH.sub("(list)", error["details"])}
    return {**error, "extra_info": kept}


def _ends(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    a, b = _end(theirs), _end(ours)
    if a[0] != b[0]:
        yield Difference(f"ends in {a[0]}, ours in {b[0]}", a, b)
    elif a[1:3] != b[1:3]:
        yield Difference("fails in another node", a, b)


def _end(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    status = entry["status"]
    for kind, data in status["messages"]:
        if kind == "execution_error":
            words = str(data["exception_message"])[:300]
            return status["status_str"], data["node_id"], data["node_type"], data["exception_type"], words
    return (status["status_str"],)


def _messages(answer: Answer, graph: Mapping[str, Any]) -> Counter[str]:
    if answer.entry["status"]["status_str"] != "success":
        return Counter()
    said: Counter[str] = Counter()
    begun: set[str] = set()
    # ComfyUI also names nodes that it knows and no output needs.
    needed = ancestors(graph, answer.entry["meta"])
    for message in answer.messages:
        kind, data = message["type"], message["data"]
        if kind in COUNTED and not (kind == "executed" and not data["output"]):
            said[f"{kind} {data.get('node', '')}"] += 1
        elif kind == "executing" and data["node"] is not None:
            begun.add(f"node {data['node']} has run")
        elif kind == "execution_cached":
            begun.update(f"node {node} has run" for node in data["nodes"] if node in needed)
    return said + Counter(begun)


def ancestors(graph: Mapping[str, Any], outputs: Iterable[str]) -> set[str]:
    """Return the nodes of a graph that some nodes need, and these."""
    found: set[str] = set()
    stack = list(outputs)
    while stack:
        node_id = str(stack.pop())
        if node_id in graph and node_id not in found:
            found.add(node_id)
            values = graph[node_id]["inputs"].values()
            stack.extend(value[0] for value in values if isinstance(value, list) and len(value) == 2)
    return found


def _outputs(theirs: Mapping[str, Any], ours: Mapping[str, Any], graph: Mapping[str, Any]) -> Iterator[Difference]:
    for node_id in {**theirs, **ours}:
        kind = graph.get(node_id, {}).get("class_type", "made")
        a, b = theirs.get(node_id), ours.get(node_id)
        if a is None or b is None:
            yield Difference(f"only one shows something of {kind}", _short(a), _short(b))
        elif kind == "FuzzShow":
            yield from _leaves(a["leaves"], b["leaves"], _source(node_id, graph))
        else:
            a, b = (_without_random(item) for item in (a, b))
            if a != b and not (kind == "PreviewAny" and _same_text(a["text"][0], b["text"][0])):
                yield Difference(f"what {kind} shows of {_source(node_id, graph)}", _short(a), _short(b))


def _same_text(theirs: str, ours: str) -> bool:
    """Whether two texts of a value differ by rounding alone, or theirs is of an object of ComfyUI's own."""
    if " object at 0x" in theirs or "<comfy" in theirs:
        return True
    words, numbers = zip(*(_read(text) for text in (theirs, ours)), strict=True)
    return words[0] == words[1] and bool(np.allclose(numbers[0], numbers[1], rtol=1e-3, atol=2e-4))


def _read(text: str) -> tuple[list[str], list[float]]:
    """Return what stands between a text's numbers, and these."""
    words = [re.sub(r"\s+", " ", word) for word in NUMBER.split(text)]
    return words, [float(number) for number in NUMBER.findall(text)]


def _source(node_id: str, graph: Mapping[str, Any]) -> str:
    for value in graph[node_id]["inputs"].values():
        if isinstance(value, list) and value and str(value[0]) in graph:
            return str(graph[str(value[0])]["class_type"])
    return ""


def _without_random(ui: Any) -> Any:
    """Return what a node shows without the letters that ComfyUI draws for the names of temporary files."""
    if isinstance(ui, dict):
        found = {key: _without_random(value) for key, value in ui.items()}
        if found.get("type") == "temp" and isinstance(name := found.get("filename"), str):
            found["filename"] = name.rsplit(".", 1)[-1]
        return found
    return [_without_random(item) for item in ui] if isinstance(ui, list) else ui


def _leaves(theirs: list[dict[str, Any]], ours: list[dict[str, Any]], source: str) -> Iterator[Difference]:
    a, b = ({leaf["path"]: leaf for leaf in leaves} for leaves in (theirs, ours))
    objects = tuple(path for path, leaf in a.items() if leaf.get("value") == "an object")
    for path in {**a, **b}:
        mine, other = a.get(path), b.get(path)
        if objects and path.startswith(objects):
            continue  # of a class of ComfyUI's own, which is plain data here
        if mine is None or other is None:
            yield Difference(f"members of {source}", _short(mine), _short(other))
        elif ("data" in mine) != ("data" in other) or mine.get("shape") != other.get("shape"):
            yield Difference(f"shape of {source}", _short(mine), _short(other))
        elif "data" not in mine:
            if mine["value"] != other["value"] and not _near(mine["value"], other["value"]):
                yield Difference(f"value of {source}", mine, other)
        else:
            x, y = (array(leaf) for leaf in (mine, other))
            if (error := distance(x, y)) > TOLERANCE:
                yield Difference(
                    f"values of {source}", f"{path}: {error:.1e} of {_short(x.ravel()[:6])}", _short(y[:6])
                )
            elif mine["kind"] != other["kind"]:
                yield Difference(f"kind of {source}", mine["kind"], other["kind"])


def _near(a: str, b: str) -> bool:
    try:
        return abs(float(a) - float(b)) <= 1e-6 * max(1.0, abs(float(a)))
    except ValueError:
        return False


def array(leaf: Mapping[str, Any]) -> np.ndarray:
    """Return the values of a tensor that FuzzShow has shown, flat."""
    return np.frombuffer(zlib.decompress(base64.b64decode(leaf["data"])), np.float32)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference, of the largest finite value; infinite where one has NaN or infinity alone."""
    if not a.size:
        return 0.0
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(1e-3, float(np.abs(a[finite]).max())))


def _short(value: Any) -> Any:
    text = str(value)
    return text if len(text) < 1500 else f"{text[:1500]}…"


CONSEQUENCES = ("messages", "meta", "only one shows", "error")
TEXT_LISTS = {"StripWhitespace", "TextToLowercase", "TextToUppercase", "TruncateText", "AddTextPrefix", "AddTextSuffix"}
TEXT_LISTS |= {"ReplaceText", "MergeTextLists"}


def deliberate(difference: Difference, graph: Mapping[str, Any]) -> str:
    """Return why a difference is as it is to be, "" for one that is not."""
    what, theirs, ours = difference.what, str(difference.theirs), str(difference.ours)
    if what == "dependent_outputs" and set(difference.ours) <= set(difference.theirs):
        return "ComfyUI names outputs that failed after a node, whether they need it or not"
    if what.startswith("values of") and "inf of [nan" in theirs and "nan" not in ours:
        return "ours has numbers where ComfyUI divides by zero"
    if "comes by a link" in ours:
        return "a constant for a socket is refused before the job, and fails in the job there"
    if what in ("status of the POST", "a node that is wrong for one only") and "(COMFY_MATCHTYPE_V3)" in ours:
        return "a value of a type that the class does not name is refused before the job, and fails in the job there"
    if "required_input_missing" in ours and "required_input_missing" not in theirs and _misses_a_choice(ours, graph):
        return "a missing choice that brings inputs is refused before the job, and fails in the job there"
    if what == "ends in success, ours in error" and "it has made an empty" in ours:
        return "empty images, masks and latents are refused where they are made"
    if what == "ends in error, ours in success":
        return "ours runs what fails there"
    if what == "fails in another node":
        return "nodes that do not need each other run in another order, so another one of those that fail is the first"
    if what == "error dependency_cycle" and difference.theirs is None:
        return "a circle through a link of a wrong type is named too"
    if any(name in ours and name not in theirs for name in ("dependency_cycle", "Dependency cycle")):
        return "a circle through a link of a wrong type is named too"
    if _has_slots_below_0(graph):
        return "a slot below 0 counts from the end there"
    if _has_whole_ids(graph):
        return "ids of links may be numbers, as in the contract's own example"
    if TEXT_LISTS & {node.get("class_type") for node in graph.values()} and (
        what.startswith(("members", "what ", "value of ", "ends in error, ours in success"))
    ):
        return "a text node that changes one text makes a list of it there, which no other text node takes"
    if "'filename': '._" in theirs and "'filename': 'ComfyUI_" in ours:
        return "an empty prefix of files is the default one, and a hidden file there"
    if "avcodec_open2" in theirs or "Video" in what:
        return "its PyAV has an encoder that refuses the size"
    return ""


def unexplained(found: Sequence[Difference], graph: Mapping[str, Any]) -> tuple[set[str], list[Difference]]:
    """Return the reasons that there are for differences, and the differences without any.

    Where an output is refused for a reason, that it shows nothing is none of its own.
    """
    reasons = [deliberate(difference, graph) for difference in found]
    rest = [difference for difference, reason in zip(found, reasons, strict=True) if not reason]
    refused = (d for d, reason in zip(found, reasons, strict=True) if reason)
    if any(difference.what.startswith(("error", "a node that is wrong")) for difference in refused):
        rest = [difference for difference in rest if not difference.what.startswith(CONSEQUENCES)]
    return set(reasons) - {""}, rest


def _misses_a_choice(ours: str, graph: Mapping[str, Any]) -> bool:
    """Whether an input that is said to be missing is one of a class's dynamic choices."""
    declared = (specs().get(node.get("class_type", "")) for node in graph.values())
    missing = re.findall(r"'input_name': '([^']+)'", ours)
    found = (spec.input(name) for spec in declared if spec is not None for name in missing)
    return any(one is not None and one.type == DYNAMIC_COMBO for one in found)


def _links(graph: Mapping[str, Any]) -> list[list[Any]]:
    values = (value for node in graph.values() for value in node["inputs"].values())
    return [value for value in values if isinstance(value, list) and len(value) == 2]


def _has_whole_ids(graph: Mapping[str, Any]) -> bool:
    return any(isinstance(link[0], int) for link in _links(graph))


def _has_slots_below_0(graph: Mapping[str, Any]) -> bool:
    return any(isinstance(link[1], int) and link[1] < 0 for link in _links(graph))
