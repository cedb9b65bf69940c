"""Model files that cannot be what a workflow's loaders want of them."""

from __future__ import annotations

from typing import Any

from serve_app.graph.model_files import LOADERS, with_known_files
from serve_app.graph.parse import parse
from serve_app.graph.validate import Validated
from serve_app.nodes.registry import BUILTIN, specs

SPECS = specs()


def refusal(part: str, folder: str, name: str) -> str | None:
    return f"is no {part} of {folder}" if name.startswith("bad") else None


def checked(prompt: dict[str, Any], *outputs: str) -> Validated:
    return with_known_files(Validated(parse(prompt), outputs, ()), SPECS, refusal)


def shown(of: str, slot: int = 0) -> dict[str, Any]:
    return {"class_type": "PreviewAny", "inputs": {"source": [of, slot]}}


def test_a_file_that_cannot_be_used_is_refused_with_its_input_and_only_what_needs_it_is_left_out() -> None:
    prompt = {
        "u": {"class_type": "UNETLoader", "inputs": {"unet_name": "bad.safetensors", "weight_dtype": "default"}},
        "v": {"class_type": "VAELoader", "inputs": {"vae_name": "good.safetensors"}},
        "p": shown("u"),
        "q": shown("v"),
    }
    validated = checked(prompt, "p", "q")
    [problem] = validated.problems
    assert (problem.type, problem.node_id, problem.class_type) == ("model_file_not_supported", "u", "UNETLoader")
    assert problem.message == "unet_name 'bad.safetensors' is no backbone of diffusion_models"
    assert problem.extra == {"input_name": "unet_name", "received_value": "bad.safetensors"}
    assert validated.outputs == ("q",)


def test_a_loader_that_no_output_needs_is_not_looked_at() -> None:
    prompt = {
        "u": {"class_type": "VAELoader", "inputs": {"vae_name": "bad.safetensors"}},
        "v": {"class_type": "VAELoader", "inputs": {"vae_name": "good.safetensors"}},
        "p": shown("u"),
        "q": shown("v"),
    }
    assert checked(prompt, "q").problems == ()


def test_a_file_that_only_a_lazy_input_needs_is_left_to_who_asks_for_it() -> None:
    prompt = {
        "u": {"class_type": "VAELoader", "inputs": {"vae_name": "bad.safetensors"}},
        "s": {"class_type": "ComfySwitchNode", "inputs": {"switch": False, "on_true": ["u", 0], "on_false": "none"}},
        "p": shown("s"),
    }
    assert checked(prompt, "p").problems == ()
    assert checked(prompt | {"q": shown("u")}, "p", "q").problems != ()


def test_a_checkpoint_is_looked_at_for_its_backbone_where_that_is_used() -> None:
    prompt = {
        "c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "bad.safetensors"}},
        "p": shown("c", 2),
        "q": shown("c", 0),
    }
    assert checked(prompt, "p").problems == ()
    assert [problem.node_id for problem in checked(prompt, "p", "q").problems] == ["c"]


def test_a_name_that_comes_by_a_link_is_left_to_the_loader() -> None:
    prompt = {
        "n": {"class_type": "PrimitiveString", "inputs": {"value": "bad.safetensors"}},
        "u": {"class_type": "VAELoader", "inputs": {"vae_name": ["n", 0]}},
        "p": shown("u"),
    }
    assert checked(prompt, "p").problems == ()


def test_every_listed_loader_exists_and_its_inputs_are_of_the_listed_folders() -> None:
    for class_type, inputs in LOADERS.items():
        declared = {i.name: i.folder for i in SPECS[class_type].inputs if i.folder is not None}
        assert class_type in BUILTIN
        for name, folder in declared.items():
            assert inputs[name][1] == folder
