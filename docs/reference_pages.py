"""Writes the reference pages that are made from the code: configuration keys, the command line, HTTP routes.

python -m docs.reference_pages

Beside them an OpenAPI 3.1 document of each dialect.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from starlette.routing import Route, WebSocketRoute

from serve_app import __version__
from serve_app.api.routing import Routes
from serve_app.config import AppConfig

FOLDER = Path(__file__).parent / "reference"
MADE = "Made by `python -m docs.reference_pages` from the code."
LIMITS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "min_length": "at least {}", "pattern": "`{}`"}


def configuration() -> str:
    """Return the page of every configuration key, with its type, default, limits and meaning."""
    text = [f"# Configuration keys\n\n{MADE} An example: [configs/local.yaml](../../configs/local.yaml).\n"]
    text.append("The keys of `args` of an application. A key that does not exist is refused.\n")
    waiting: list[tuple[str, type[BaseModel]]] = [("The application", AppConfig)]
    seen: set[type[BaseModel]] = set()
    while waiting:
        title, section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        about = " ".join((section.__doc__ or "").split())
        rows = []
        says = _texts(section)
        for name, field in section.model_fields.items():
            waiting += [(f"`{name}`: {each.__name__}", each) for each in _sections(field.annotation)]
            limits = ", ".join(_limits(field))
            rows.append(_row(f"`{name}`", _type(field.annotation), _default(field), limits, says.get(name, "")))
        text.append(f"## {title}\n\n{about}\n\n{_table('key', 'type', 'default', 'limits', 'meaning', rows=rows)}\n")
    return "\n".join(text)


def command_line() -> str:
    """Return the page of every command, with its arguments and options."""
    text = [f"# Command line\n\n{MADE} `serve-app COMMAND --help` says the same.\n"]
    for name, command in commands():
        rows = []
        for each in command.params:
            if each.name == "help":
                continue
            title = (each.name or "").upper() if each.param_type_name == "argument" else ", ".join(each.opts)
            default = "" if each.default in (None, False, ()) or callable(each.default) else f"`{each.default}`"
            rows.append(_row(f"`{title}`", getattr(each, "help", "") or "", default))
        text.append(f"## serve-app {name}\n\n{command.help or ''}\n")
        if rows:
            text.append(_table("argument", "meaning", "default", rows=rows) + "\n")
    return "\n".join(text)


def http() -> str:
    """Return the page of every HTTP route, by dialect."""
    text = [f"# HTTP routes\n\n{MADE} What they are for, and clients: [clients.md](../clients.md).\n"]
    named = ", ".join(f"[{name}](openapi-{name}.json)" for name in documents())
    text.append(f"An OpenAPI document of each dialect: {named}.\n")
    for title, about, prefix, routers in parts():
        rows = [_row(*_of_route(prefix, route)) for router in routers for route in router.routes]
        text.append(f"## {title}\n\n{about}\n\n{_table('method', 'path', 'what it does', rows=sorted(set(rows)))}\n")
    return "\n".join(text)


def parts() -> list[tuple[str, str, str, list[Routes]]]:
    """Return the routes by dialect: a title, a sentence about them, their prefix and their routers."""
    from serve_app.api import webhooks
    from serve_app.api.auth import login
    from serve_app.api.comfy import routes as native
    from serve_app.api.contract import document, routes
    from serve_app.api.operator import admin, model_changes, operator, overview
    from serve_app.api.v2 import routes as v2

    contract = "Its OpenAPI document is at `/openapi.json`."
    return [
        ("The contract, at the root", contract, "", [routes.router, document.router]),
        ("Comfy API v2", "Its OpenAPI document is at `/api/v2/openapi.json`.", "/api/v2", [*v2.ROUTERS]),
        ("ComfyUI's, below `/api`", "At the root too, where the contract has none.", "/api", [*native.ROUTERS]),
        ("ComfyUI's, at the root only", "", "", [*native.UNPREFIXED]),
        ("ComfyUI's, below `/api` only", "", "/api", [*native.PREFIXED]),
        ("Webhooks", "", "/api", [webhooks.router]),
        ("For operators", "", "", [operator.router, overview.router, model_changes.router]),
        ("For operators, with tenants", "", "", [admin.router, login.router]),
    ]


def documents() -> dict[str, dict[str, Any]]:
    """Return an OpenAPI document of each dialect: those that are served, and of the other routes their table."""
    from serve_app.api.v2.document import DOCUMENT

    contract = json.loads(files("serve_app.api.contract").joinpath("openapi.json").read_text())
    return {
        "contract": contract,
        "v2": DOCUMENT,
        "comfyui": _document(
            "ComfyUI's routes", "ComfyUI's, below `/api`", "ComfyUI's, at", "ComfyUI's, below", "Webhooks"
        ),
        "operator": _document("Routes for operators", "For operators"),
    }


def _document(title: str, *of_parts: str) -> dict[str, Any]:
    """Return the document of the parts whose titles begin so. A websocket is the GET that opens it."""
    paths: dict[str, dict[str, Any]] = {}
    for part, _, prefix, routers in parts():
        for route in (route for router in routers for route in router.routes if part.startswith(of_parts)):
            methods = {"GET"} if isinstance(route, WebSocketRoute) else {*(route.methods or ())} - {"HEAD"}
            path = re.sub(r":path}", "}", f"{prefix}{route.path}")
            named = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"{(\w+)}", path)
            ]
            for method in sorted(methods):
                summary = _first(getattr(route.endpoint, "_handler", route.endpoint))
                answers = {
                    "200": {"description": "as the summary says"},
                    "default": {"description": "a refusal, with its reason"},
                }
                paths.setdefault(path, {})[method.lower()] = {
                    "summary": summary,
                    "parameters": named,
                    "responses": answers,
                }
    about = {"title": f"serve-app: {title}", "version": __version__, "description": MADE}
    return {"openapi": "3.1.0", "info": about, "paths": dict(sorted(paths.items()))}


PAGES = {"configuration": configuration, "command-line": command_line, "http": http}


def commands() -> list[tuple[str, Any]]:
    """Return every command by its whole name, such as "keys create"."""
    from serve_app.cli.commands import app

    return sorted(_commands(typer.main.get_command(app)))


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _of_route(prefix: str, route: Route | WebSocketRoute) -> tuple[str, str, str]:
    if isinstance(route, WebSocketRoute):
        return "websocket", f"`{prefix}{route.path}`", _first(route.endpoint)
    methods = ", ".join(sorted(set(route.methods or ()) - {"HEAD"})) or "HEAD"
    return methods, f"`{prefix}{route.path}`", _first(getattr(route.endpoint, "_handler", route.endpoint))


def _first(documented: Any) -> str:
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _texts(section: type[BaseModel]) -> dict[str, str]:
    """Return the texts below the fields of a section and of those it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if each is BaseModel or not issubclass(each, BaseModel):
            continue
        [body] = ast.parse(dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(text, str):
                found[line.target.id] = " ".join(text.split())
    return found


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _sections(each)


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inside if each is not type(None))
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in inside)
    if origin is not None:
        return f"{_name(origin)} of {', '.join(dict.fromkeys(_type(each) for each in inside if each is not ...))}"
    return _name(annotation)


def _name(kind: Any) -> str:
    plain = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "tuple": "list"}
    name = getattr(kind, "__name__", str(kind))
    return plain.get(name, name if isinstance(kind, type) and issubclass(kind, BaseModel) else name.lower())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.is_required() else ""
    if isinstance(field.default, BaseModel):
        return "its keys' own"
    if isinstance(field.default, tuple) and any(isinstance(each, BaseModel) for each in field.default):
        return f"{len(field.default)} of them"
    if field.default is None:
        return "none"
    return f"`{field.default}`"


def _limits(field: FieldInfo) -> Iterator[str]:
    stack = [*field.metadata, *_metadata(field.annotation)]
    for each in stack:
        inside = getattr(each, "metadata", None)
        for one in [each, *(inside or [])]:
            for name, form in LIMITS.items():
                if (value := getattr(one, name, None)) is not None:
                    yield form.format(value)


def _metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for each in get_args(annotation):
        if get_origin(each) is Annotated:
            yield from _metadata(each)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _table(*columns: str, rows: list[str]) -> str:
    return "\n".join([_row(*columns), "|" + "---|" * len(columns), *rows])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, made in PAGES.items():
        (FOLDER / f"{name}.md").write_text(made())
    for name, document in documents().items():
        (FOLDER / f"openapi-{name}.json").write_text(f"{json.dumps(document, indent=1)}\n")
