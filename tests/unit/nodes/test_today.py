"""The classes that ComfyUI has got since 0.3.64: they make what ComfyUI 0.33 makes, and say what is wrong."""

from __future__ import annotations

import contextvars
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import Executing, enter
from serve_app.execution.files import NodeFiles
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.images_deep import to_deep_png, to_exr
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.nodes.unsupported import NOT_THERE
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, Area, FileRef
from serve_app.store.files.volume import Volume
from tests.unit.nodes.today_cases import CASES, decoded, encoded

THEIRS: list[Any] = json.loads(Path(__file__).with_name("today.json").read_text())


def run(class_type: str, **inputs: Any) -> Any:
    node: Any = BUILTIN[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


def close(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    if isinstance(theirs, float):
        return ours == pytest.approx(theirs, abs=2e-4, rel=1e-4)
    return bool(type(ours) is type(theirs) and ours == theirs)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: f"{index}-{CASES[index][0]}")
def test_a_class_makes_what_comfyui_makes(index: int) -> None:
    name, inputs = CASES[index]
    made = run(name, **decoded(inputs))
    made = made["result"] if isinstance(made, dict) else made
    ours = json.loads(json.dumps(encoded(list(made))))
    assert close(ours, THEIRS[index]), f"ours {ours}, theirs {THEIRS[index]}"


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (" ", "is empty"),
        ("a +", "cannot be evaluated"),
        ("nothing", "cannot be evaluated"),
        ("a / 0", "cannot be evaluated"),
        ("9**9**9", "exponent"),
        ("pow(9, 5000)", "exponent"),
        ("'x' * 3", "is no number"),
        ("a.__class__", "cannot be evaluated"),
        ("10.0 ** 400", "too large"),
        ("(" * 4000 + "1" + ")" * 4000, "nested too deep|cannot be evaluated"),
        ("1" * 10_001, "characters"),
        ("__import__('os')", "cannot be evaluated"),
    ],
)
def test_an_expression_that_comes_to_no_number_is_an_error(expression: str, reason: str) -> None:
    with pytest.raises(NodeError, match=reason):
        run("ComfyMathExpression", expression=expression, values={"a": 1})


@pytest.mark.parametrize("value", ["", "x", "inf", float("nan"), None])
def test_what_is_no_number_is_not_converted(value: Any) -> None:
    with pytest.raises(NodeError, match="is no number"):
        run("ComfyNumberConvert", value=value)


@pytest.mark.parametrize("text", ["{a.__class__}", "{b}", "{", "{0}", "{a:>99999999999}", "{a[_x]}", "{a.real.imag:x}"])
def test_a_format_that_cannot_be_filled_in_is_an_error(text: str) -> None:
    with pytest.raises(NodeError):
        run("StringFormat", values={"a": 1.5}, f_string=text)


@pytest.mark.parametrize("colour", ["", "red", "#12345", "#12345g", "x0a141e"])
def test_a_colour_is_six_or_eight_hexadecimal_digits(colour: str) -> None:
    with pytest.raises(NodeError, match="#RRGGBB"):
        run("ColorToRGBInt", color=colour)


def test_a_text_without_numbers_makes_no_sigmas() -> None:
    assert run("ManualSigmas", sigmas="none")[0].tolist() == []


def test_a_switch_asks_only_for_what_it_passes_on() -> None:
    switch: Any = BUILTIN["ComfySwitchNode"]()
    assert switch.check_lazy_status(switch=True, on_true=None, on_false=None) == ["on_true"]
    assert switch.check_lazy_status(switch=False, on_true=None, on_false="a") == ["on_false"]


def test_a_switch_passes_nothing_on_where_nothing_is_connected() -> None:
    switch: Any = BUILTIN["ComfySwitchNode"]()
    assert switch.check_lazy_status(switch=True, on_false=None) == []
    assert run("ComfySwitchNode", switch=True, on_false="a") == (None,)


def test_an_element_of_a_list_is_taken_from_either_end() -> None:
    assert run("GetItemFromList", list=["a", "b", [1, 2]], index=[1]) == (["b"],)
    assert run("GetItemFromList", list=["a", "b", [1, 2]], index=[-1]) == ([1, 2],)
    with pytest.raises(NodeError, match="index 3 is beyond a list of 3"):
        run("GetItemFromList", list=["a", "b", [1, 2]], index=[3])


def test_a_class_of_a_later_comfyui_is_known_by_name_and_no_other_is_suggested() -> None:
    prompt = parse({"1": {"class_type": "TextEncodeFibo2", "inputs": {}}})
    [problem] = [p for p in validate(prompt, specs(), lambda folder: [], None, NOT_THERE).problems if p.node_id]
    reason = "it is for a model family that is not supported"
    assert problem.message == f"node class 'TextEncodeFibo2' is not supported: {reason}"
    assert not BUILTIN.keys() & NOT_THERE.keys()


def test_a_deep_png_keeps_sixteen_bits_and_its_text() -> None:
    image = torch.tensor([[[0.0, 1.0, 0.50001], [1 / 65535, 2.0, -1.0]]])
    data = to_deep_png(image, {"prompt": '{"1": {}}'})
    assert struct.unpack(">IIBB", data[16:26]) == (2, 1, 16, 2)
    with Image.open(io.BytesIO(data)) as file:
        file.load()
        assert file.info["prompt"] == '{"1": {}}'
        assert np.asarray(file)[0, 0].tolist() == [0, 255, 128]
    grey = to_deep_png(torch.tensor([[[1 / 65535], [0.5]]]), {})
    with Image.open(io.BytesIO(grey)) as file:
        assert np.asarray(file).astype(int).tolist() == [[1, 32767]]


def exr_planes(data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """Read back the pixels of an uncompressed EXR, by its own table of offsets."""
    header = data.index(b"\0\0", data.index(b"screenWindowWidth"))
    rows = []
    table = data.index(struct.pack("<Q", len(data) - height * (8 + width * channels * 4)), header)
    for offset in struct.unpack(f"<{height}Q", data[table : table + 8 * height]):
        y, size = struct.unpack("<ii", data[offset : offset + 8])
        assert (y, size) == (len(rows), width * channels * 4)
        rows.append(np.frombuffer(data[offset + 8 : offset + 8 + size], "<f4").reshape(channels, width))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("space", "made"),
    [("linear", [0.5, 0.25, 2.0]), ("sRGB", [0.21404114, 0.05087609, 4.9538]), ("HDR", [0.0833333, 0.0208333, 261.88])],
)
def test_an_exr_holds_linear_light_in_the_order_of_the_alphabet(space: str, made: list[float]) -> None:
    image = torch.tensor([0.5, 0.25, 2.0]).repeat(2, 3, 1)
    data = to_exr(image, {"workflow": "{}"}, space)
    assert data[:4] == b"\x76\x2f\x31\x01"
    assert b"workflow\0string\0\x02\0\0\0{}" in data
    planes = exr_planes(data, 2, 3, 3)
    np.testing.assert_allclose(planes[1, :, 2], made[::-1], rtol=1e-3)


def files(tmp_path: Path) -> NodeFiles:
    async def reserved(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    return NodeFiles(Volume({area: tmp_path / area for area in AREAS}), "job", "1", reserved)


def saved(tmp_path: Path, area: Area, shown: dict[str, Any]) -> bytes:
    return (tmp_path / area / shown["subfolder"] / shown["filename"]).read_bytes()


@pytest.mark.parametrize(
    ("format", "head"),
    [
        ({"format": "png", "bit_depth": "8-bit", "input_color_space": "sRGB"}, b"\x89PNG"),
        ({"format": "png", "bit_depth": "16-bit", "input_color_space": "sRGB"}, b"\x89PNG"),
        ({"format": "exr", "bit_depth": "32-bit float", "input_color_space": "HDR"}, b"\x76\x2f\x31\x01"),
    ],
)
async def test_images_are_saved_in_the_format_asked_for_and_passed_on(
    tmp_path: Path, format: dict[str, str], head: bytes
) -> None:
    images = [torch.rand(2, 4, 4, 3), torch.rand(1, 5, 4, 3)]
    made = await run(
        "SaveImageAdvanced",
        images=images,
        filename_prefix=["x"],
        format={name: [value] for name, value in format.items()},
        prompt=[{}],
        extra_pnginfo=[None],
        store=[files(tmp_path)],
    )
    assert made["result"] == (images,)
    assert [saved(tmp_path, "output", one)[:4] for one in made["ui"]["images"]] == [head] * 3
    assert made["ui"]["images"][0]["filename"].endswith(f".{format['format']}")


async def test_compared_images_are_reported_apart(tmp_path: Path) -> None:
    given = {"prompt": {}, "extra_pnginfo": None, "store": files(tmp_path)}
    shown = (await run("ImageCompare", image_a=torch.rand(2, 4, 4, 3), image_b=torch.rand(1, 4, 4, 3), **given))["ui"]
    assert (len(shown["a_images"]), len(shown["b_images"])) == (2, 1)
    assert shown["b_images"][0]["type"] == "temp"
    assert (await run("ImageCompare", **given))["ui"] == {"a_images": [], "b_images": []}


async def test_a_region_is_cut_as_far_as_the_image_goes(tmp_path: Path) -> None:
    image = torch.rand(1, 5, 6, 3)
    region = {"x": 4, "y": 1, "width": 9, "height": 2}
    made = await run("ImageCropV2", image=image, crop_region=region, store=files(tmp_path))
    assert torch.equal(made["result"][0], image[:, 1:3, 4:])
    with pytest.raises(NodeError, match="x, y, width and height"):
        await run("ImageCropV2", image=image, crop_region=[1], store=files(tmp_path))


async def test_a_painting_lies_over_the_image_and_says_where(tmp_path: Path) -> None:
    store = files(tmp_path)
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:] = (255, 0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    Volume({area: tmp_path / area for area in AREAS}).write(FileRef("input", "", "p.png"), buffer.getvalue())
    image, mask = (await run("Painter", mask="p.png [input]", width=4, height=4, bg_color="#0000ff", store=store))[
        "result"
    ]
    assert image[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert mask[0, 0].tolist() == [0, 0, 1, 1]
    plain, none = (
        await run("Painter", mask="", width=64, height=64, image=torch.ones(2, 3, 5, 3), store=files(tmp_path))
    )["result"]
    assert (plain.shape, none.shape, none.any().item()) == ((1, 3, 5, 3), (1, 3, 5), False)


async def test_json_is_laid_out_in_its_file(tmp_path: Path) -> None:
    texts = ['{"a":1}', "{"]
    store = files(tmp_path)
    made = await run("SaveText", text=texts, filename_prefix=["x"], format=["json"], store=[store])
    written = [saved(tmp_path, "output", one) for one in made["ui"]["files"]]
    assert written == [b'{\n  "a": 1\n}', b"{"]
    assert (made["ui"]["text"], made["result"]) == (texts, (texts,))
    assert [one["filename"] for one in made["ui"]["files"]] == ["x_00001.json", "x_00002.json"]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("((9**4000)**4000)**4000", "bits"),
        ("*".join(["(9**4000)"] * 20), "bits"),
        ("(1 << 9999)**4000", "bits"),
        ("round(5, -100000000)", "digits"),
        ("'a'.zfill(2000000000) == 'b'", "is no number"),
        ("('%999999999d' % 1) == 'b'", "is no number"),
        ("f'{1:1000000000}' == 'b'", "is no number"),
    ],
)
def test_an_expression_that_would_fill_memory_or_never_end_is_refused_before_it_is_worked_out(
    expression: str, why: str
) -> None:
    with pytest.raises(NodeError, match=why):
        run("ComfyMathExpression", expression=expression, values={"a": 1})


def test_an_expression_takes_numbers_only() -> None:
    with pytest.raises(NodeError, match="value a is a str"):
        run("ComfyMathExpression", expression="a % 5", values={"a": "%999999999d"})


@pytest.mark.parametrize("text", ["{a}" * 100, "{b:900000}" * 100])
def test_the_parts_of_a_formatted_text_are_bounded_together(text: str) -> None:
    with pytest.raises(NodeError, match="text_characters"):
        run("StringFormat", values={"a": "x" * 900_000, "b": 1}, f_string=text)


def test_tiles_that_would_together_be_too_large_are_refused_before_they_are_cut() -> None:
    def split() -> None:
        enter(Executing("job", "1", limits=SizeLimits(value_bytes=2**24)))
        run("SplitImageToTileList", image=torch.zeros(1, 512, 512, 3), tile_width=64, tile_height=64, overlap=60)

    with pytest.raises(NodeError, match="value_bytes"):
        contextvars.copy_context().run(split)


def test_a_text_too_long_to_be_laid_out_is_refused() -> None:
    options = {"font_size": 5.0, "color": "#ffffff", "position": "top", "align": "left", "outline": True}
    with pytest.raises(NodeError, match="4000 are allowed"):
        run("TextOverlay", images=torch.zeros(1, 64, 64, 3), text="a" * 4001, **options)
