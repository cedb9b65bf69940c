from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import node, workflow

FORMATS = {"video/webm": [["crf", "INT", {"default": 20}], ["pix_fmt", ["yuv", "rgb"]]], "image/gif": []}
SHOWING = (
    "ShowText|pysssss",
    "Image Comparer (rgthree)",
    "Display Any (rgthree)",
    "ImageConcatMulti",
    "ImpactSEGSPicker",
)
CLASSES: dict[str, Any] = {
    "Power Lora Loader (rgthree)": {"input": {"required": {}, "optional": {"model": ["MODEL"]}}},
    "VHS_VideoCombine": {
        "input": {
            "required": {
                "rate": ["FLOAT", {"default": 8}],
                "format": [list(FORMATS), {"formats": FORMATS}],
                "pingpong": ["BOOLEAN"],
                "save_output": ["BOOLEAN", {"default": True}],
            }
        }
    },
    "VHS_LoadVideo": {"input": {"required": {"custom_width": ["INT"], "custom_height": ["INT"]}}},
    "LoraLoader|pysssss": {"input": {"required": {"lora_name": [["a.safetensors"]]}}},
    **{kind: {"input": {}} for kind in SHOWING},
    "PreviewBridge": {"input": {"required": {"image": ["STRING", {"default": ""}]}}},
    "Load3D": {
        "input": {"required": {"model_file": [["none"]], "image": ["LOAD_3D", {}], "width": ["INT"], "height": ["INT"]}}
    },
    "Preview3D": {"input": {"required": {"model_file": ["STRING,FILE_3D", {"default": "", "widgetType": "STRING"}]}}},
}


def inputs(kind, values, **keys):
    return convert(workflow(node(4, kind, widgets_values=values, **keys), links={}), CLASSES)["4"]["inputs"]


@pytest.mark.parametrize(("shown", "second"), [("Single Strength", {}), ("Separate Model & Clip", {"strengthTwo": 1})])
def test_the_rows_of_a_list_of_loras_are_numbered(shown, second):
    row = {"on": True, "lora": "a.safetensors", "strength": 0.5, "strengthTwo": None}
    header = {"type": "PowerLoraLoaderHeaderWidget"}
    given = inputs("Power Lora Loader (rgthree)", [{}, header, row, row, {}, ""], properties={"Show Strengths": shown})
    sent = {"on": True, "lora": "a.safetensors", "strength": 0.5, **second}
    assert given == {"PowerLoraLoaderHeaderWidget": header, "lora_1": sent, "lora_2": sent, "➕ Add Lora": ""}


@pytest.mark.parametrize(
    ("values", "of_format"),
    [
        ([9, "video/webm", 30, "rgb", True, False], {"crf": 30, "pix_fmt": "rgb"}),
        ([9, "image/gif", True, False], {}),
        (
            {"rate": 9, "format": "video/webm", "crf": 30, "pingpong": True, "save_image": False},
            {"crf": 30, "pix_fmt": "yuv"},
        ),
    ],
)
def test_a_format_of_videos_brings_widgets_of_its_own(values, of_format):
    chosen = values["format"] if isinstance(values, dict) else values[1]
    expected = {"rate": 9, "format": chosen, **of_format, "pingpong": True, "save_output": False}
    assert inputs("VHS_VideoCombine", values) == expected


@pytest.mark.parametrize(
    ("size", "sides"), [("512x?", (512, 0)), ("?x512", (0, 512)), ("Disabled", (0, 0)), ("Custom Width", (7, 0))]
)
def test_a_size_of_older_files_is_two(size, sides):
    given = inputs("VHS_LoadVideo", {"force_size": size, "custom_width": 7, "custom_height": 9})
    assert (given["custom_width"], given["custom_height"]) == sides


def test_a_model_that_is_saved_with_its_picture_is_named():
    given = inputs("LoraLoader|pysssss", [{"content": "a.safetensors", "image": None}])
    assert given == {"lora_name": "a.safetensors", "example": "[none]"}


@pytest.mark.parametrize(
    ("class_type", "values", "sent"),
    [
        ("ShowText|pysssss", ["", "a", ["b", "c"]], {"text_0": "a", "text_1": "b", "text_2": "c"}),
        ("ShowText|pysssss", [""], {}),
        ("Image Comparer (rgthree)", [], {"rgthree_comparer": {"images": []}}),
        (
            "Image Comparer (rgthree)",
            [["/a", {"url": "/b"}]],
            {"rgthree_comparer": {"images": [{"url": "/a", "name": "A", "selected": True}, {"url": "/b"}]}},
        ),
        ("Display Any (rgthree)", [""], {"output": ""}),
        ("ImageConcatMulti", [2, "right", None], {"Update inputs": None}),
        ("ImpactSEGSPicker", ["1,2", "image"], {"pick": "image"}),
    ],
)
def test_what_a_pack_shows_on_its_node_is_sent_as_a_widget(class_type, values, sent):
    assert inputs(class_type, values) == sent


def test_a_preview_has_the_id_of_a_page_without_previews():
    assert inputs("PreviewBridge", ["$4-17"]) == {"image": "$4-0"}


def test_the_buttons_of_a_3d_model_are_saved_and_sent_as_widgets():
    buttons = {"upload 3d model": "upload3dmodel", "upload extra resources": "uploadExtraResources", "clear": "clear"}
    given = inputs("Load3D", ["a.glb", *buttons.values(), "", 640, 480])
    assert given == {"model_file": "a.glb", **buttons, "image": "", "width": 640, "height": 480}
    assert inputs("Preview3D", ["a.glb"]) == {"model_file": "a.glb", "image": ""}


def test_a_widget_that_a_packs_page_alone_has_is_read_as_one_of_its_type():
    classes = {"Cut": {"input": {"required": {"at": ["FLOAT", {"widgetType": "TIMESTAMP"}], "n": ["INT"]}}}}
    assert convert(workflow(node(4, "Cut", widgets_values=[1.5, 7]), links={}), classes)["4"]["inputs"] == {
        "at": 1.5,
        "n": 7,
    }
