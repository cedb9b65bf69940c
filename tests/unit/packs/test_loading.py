"""Node packs: V1 and V3 classes from files, and what their imports find."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from textwrap import dedent
from typing import Any

import av
import pytest
import torch
from PIL import Image

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker, NodeResult, call, merge
from serve_app.execution.executing import Executing
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents, VideoFromFile
from serve_app.packs.loading import Packs, load_packs
from serve_app.store.files.store import AREAS

V1 = """
    import folder_paths, nodes, comfy.utils, comfy.model_management
    from comfy.comfy_types import IO, ComfyNodeABC
    from comfy_execution.graph import ExecutionBlocker
    from server import PromptServer

    @PromptServer.instance.routes.get("/mine")
    async def handler(request): ...

    class Double(ComfyNodeABC):
        RETURN_TYPES = (IO.ANY,)
        FUNCTION = "go"
        CATEGORY = "mine"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {
                "n": ("INT", {"max": nodes.MAX_RESOLUTION}),
                "model": (folder_paths.get_filename_list("checkpoints"),),
                "picture": (["a.png"], {"image_upload": True}),
            }}

        def go(self, n, **more):
            comfy.utils.ProgressBar(4).update(3)
            return (2 * n,)

    class Broken:
        pass

    class SaveImage(Double):
        pass

    NODE_CLASS_MAPPINGS = {"Double": Double, "Broken": Broken, "SaveImage": SaveImage}
    NODE_DISPLAY_NAME_MAPPINGS = {"Double": "Twice as much"}
"""

V3 = """
    import asyncio
    from comfy_api.latest import io, ui, ComfyExtension

    class Scale(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Scale", display_name="Scale it", category="mine", is_output_node=True,
                inputs=[
                    io.Int.Input("n", default=1, min=0, max=10, tooltip="how many"),
                    io.Combo.Input("by", options=["two", "three"]),
                    io.Image.Input("image", optional=True),
                    io.MultiType.Input(io.Float.Input("either", optional=True), [io.Mask]),
                ],
                outputs=[io.Int.Output(display_name="scaled"), io.Int.Output(is_output_list=True)],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def validate_inputs(cls, n):
            return True if n != 7 else "never 7"

        @classmethod
        def fingerprint_inputs(cls, **given):
            return cls.hidden.unique_id

        @classmethod
        async def execute(cls, n, by, image=None, either=None):
            await asyncio.sleep(0)
            scaled = n * {"two": 2, "three": 3}[by]
            return io.NodeOutput(scaled, [scaled, n], ui=ui.PreviewText(cls.hidden.unique_id))

    class Stateful(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Stateful", outputs=[io.AnyType.Output()], inputs=[io.AnyType.Input("how")])

        @classmethod
        def execute(cls, how):
            if how == "state":
                cls.count = 1
            if how == "block":
                return io.NodeOutput(block_execution="stop")
            if how == "expand":
                return {"result": (["x", 0],), "expand": {"x": {"class_type": "Scale"}}}
            return (how,)

    class Extension(ComfyExtension):
        async def on_load(self):
            Extension.loaded = True

        async def get_node_list(self):
            return [Scale, Stateful] if Extension.loaded else []

    async def comfy_entrypoint():
        return Extension()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for packs, in a process whose modules are put back afterwards."""
    before = dict(sys.modules)
    packs = tmp_path / "packs"
    packs.mkdir()
    yield packs
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))


def loaded(folder: Path, **files: str) -> Packs:
    for name, text in files.items():
        write(folder, f"{name}/__init__.py", text)
    root = folder.parent
    (root / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (root / "models" / "checkpoints" / "a.safetensors").touch()
    return load_packs(folder, root / "models", {area: root / area for area in ("input", "output", "temp")})  # type: ignore[misc]


async def run(packs: Packs, name: str, **inputs: list[Any]) -> NodeResult:
    cls, spec = packs.classes[name], packs.specs[name]
    return merge(await call(cls(), spec, inputs, Executing("job", "9")), spec)


async def test_a_v1_pack_is_loaded_and_runs(folder: Path) -> None:
    packs = loaded(folder, mine=V1)
    spec = packs.specs["Double"]
    assert (spec.display_name, spec.python_module, spec.outputs) == ("Twice as much", "custom_nodes.mine", ("*",))
    assert spec.input("n").options == {"max": 16384}  # type: ignore[union-attr]
    assert (await run(packs, "Double", n=[4])).outputs == ([8],)


def test_choices_of_files_name_their_folder_so_that_they_are_never_old(folder: Path) -> None:
    spec = loaded(folder, mine=V1).specs["Double"]
    assert [(i.name, i.folder, i.choices) for i in spec.inputs if i.type == "COMBO"] == [
        ("model", "checkpoints", None),
        ("picture", "input", None),
    ]


def test_a_class_that_is_none_is_left_out_and_built_in_names_stay(folder: Path) -> None:
    packs = loaded(folder, mine=V1)
    assert "Broken" not in packs.classes
    assert "SaveImage" not in packs.classes
    assert sys.modules["nodes"].NODE_CLASS_MAPPINGS["SaveImage"] is sys.modules["nodes"].SaveImage


def test_a_pack_that_fails_hurts_no_other(folder: Path) -> None:
    write(folder, "single.py", V1)
    write(folder, "off.disabled/__init__.py", "raise LookupError")
    ends = {"b": "import sys; sys.exit(3)", "e": "raise KeyboardInterrupt", "f": "raise GeneratorExit"}
    packs = loaded(folder, a="raise LookupError('no')", c="import comfy.ldm", d="x = 1", **ends)
    assert set(packs.failures) == {"a", "b", "c", "d", "e", "f"}
    assert packs.failures["a"] == "LookupError: no"
    assert "NODE_CLASS_MAPPINGS nor comfy_entrypoint" in packs.failures["d"]
    assert packs.specs["Double"].python_module == "custom_nodes.single"


def test_every_prestartup_script_runs_before_any_pack(folder: Path) -> None:
    write(folder, "z/prestartup_script.py", "import sys; sys.early = 1")
    packs = loaded(folder, a="import sys; assert sys.early\nNODE_CLASS_MAPPINGS = {}", z="NODE_CLASS_MAPPINGS = {}")
    assert packs.failures == {}
    del sys.early  # type: ignore[attr-defined]


async def test_progress_goes_to_the_replica_that_runs_the_node(folder: Path) -> None:
    packs = loaded(folder, mine=V1)
    told: list[Any] = []
    executing = Executing("job", "9", progress=lambda value, maximum, preview: told.append((value, maximum)))
    await call(packs.classes["Double"](), packs.specs["Double"], {"n": [1]}, executing)
    assert told == [(3, 4)]


async def test_progress_ends_a_node_that_nobody_waits_for(folder: Path) -> None:
    packs = loaded(folder, mine=V1)
    executing = Executing("job", "9")
    executing.stopped.set()
    with pytest.raises(sys.modules["comfy.model_management"].InterruptProcessingException):
        await call(packs.classes["Double"](), packs.specs["Double"], {"n": [1]}, executing)


async def test_a_v3_pack_is_adapted_onto_the_same_protocol(folder: Path) -> None:
    packs = loaded(folder, mine=V3)
    spec = packs.specs["Scale"]
    assert (spec.display_name, spec.category, spec.output_node) == ("Scale it", "mine", True)
    assert [(i.name, i.type, i.section) for i in spec.inputs] == [
        ("n", "INT", "required"),
        ("by", "COMBO", "required"),
        ("image", "IMAGE", "optional"),
        ("either", "FLOAT,MASK", "optional"),
    ]
    assert spec.inputs[0].options == {"default": 1, "min": 0, "max": 10, "tooltip": "how many"}
    assert spec.inputs[1].choices == ("two", "three")
    assert (spec.outputs, spec.output_names, spec.output_is_list) == (("INT", "INT"), ("scaled", "INT"), (False, True))
    assert spec.hidden == {"unique_id": "UNIQUE_ID", "prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    assert (spec.validator, spec.fingerprinted) == (("n",), True)
    hidden: dict[str, list[Any]] = {"unique_id": ["9"], "prompt": [{}], "extra_pnginfo": [None]}
    result = await run(packs, "Scale", n=[2, 3], by=["three"], **hidden)
    assert result == NodeResult(([6, 9], [6, 2, 9, 3]), {"text": ["9", "9"]})


async def test_v3_classes_hold_no_state_may_block_and_must_say_that_they_expand(folder: Path) -> None:
    packs = loaded(folder, mine=V3)
    assert (await run(packs, "Stateful", how=["plain"])).outputs == (["plain"],)
    [[blocker]] = (await run(packs, "Stateful", how=["block"])).outputs
    assert isinstance(blocker, ExecutionBlocker)
    assert blocker.message == "stop"
    with pytest.raises(AttributeError, match="cannot be set while the node runs"):
        await run(packs, "Stateful", how=["state"])
    with pytest.raises(Exception, match="enable_expand=True"):
        await run(packs, "Stateful", how=["expand"])


def test_saved_files_are_numbered_on_and_stay_in_their_folder(folder: Path) -> None:
    loaded(folder)
    paths = sys.modules["folder_paths"]
    output = folder.parent / "output"
    (output / "sub").mkdir(parents=True)
    (output / "sub" / "x_00007_.png").touch()
    directory, name, counter, subfolder, _ = paths.get_save_image_path("sub/x", str(output))
    assert (directory, name, counter, subfolder) == (str(output / "sub"), "x", 8, "sub")
    with pytest.raises(Exception, match="leaves the folder"):
        paths.get_save_image_path("../x", str(output))
    assert paths.get_annotated_filepath("a.png [output]") == str(output / "a.png")
    assert paths.get_full_path("checkpoints", "../../a.safetensors") == str(
        folder.parent / "models" / "checkpoints" / "a.safetensors"
    )


def test_preview_images_are_in_the_temp_area(folder: Path) -> None:
    loaded(folder)
    (folder.parent / "temp").mkdir()
    shown = sys.modules["comfy_api.latest"].ui.PreviewImage(torch.zeros(2, 8, 8, 3)).as_dict()
    assert [image["type"] for image in shown["images"]] == ["temp", "temp"]
    assert all((folder.parent / "temp" / image["filename"]).is_file() for image in shown["images"])


def test_a_network_of_a_packs_own_goes_where_it_belongs(folder: Path) -> None:
    loaded(folder)
    own = sys.modules["comfy.model_patcher"].ModelPatcher(torch.nn.Linear(2, 2), load_device=torch.device("meta"))
    sys.modules["comfy.model_management"].load_models_gpu([own])
    assert own.model.weight.is_meta
    with pytest.raises(NodeError, match="of a network of its own"):
        own.plain()


def test_packs_may_save_through_the_classes_they_know(folder: Path) -> None:
    loaded(folder)
    nodes = sys.modules["nodes"]
    for area, cls in (("output", nodes.SaveImage), ("temp", nodes.PreviewImage)):
        [shown] = cls().save_images(torch.zeros(1, 8, 8, 3), "sub/x", {"1": {}}, {"workflow": 2})["ui"]["images"]
        assert (shown["type"], shown["subfolder"]) == (area, "sub")
        with Image.open(folder.parent / area / "sub" / shown["filename"]) as image:
            assert image.info == {"prompt": '{"1": {}}', "workflow": "2"}


ran: list[str] = []
"""What ran in the test below, in its order."""


def test_the_code_of_every_pack_runs_under_watch_by_its_name(tmp_path: Path) -> None:
    files = {
        "packs/one/prestartup_script.py": "ran.append('prestartup'); 1 / 0",
        "packs/two/__init__.py": "ran.append('import'); NODE_CLASS_MAPPINGS = {}",
        "packs/zero.py": "ran.append('import'); 1 / 0",
    }
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"from tests.unit.packs.test_loading import ran; {code}")
    (tmp_path / "packs/one/__init__.py").touch()

    @contextmanager
    def watched(pack: str) -> Iterator[None]:
        ran.append(f"{pack} begins")
        yield
        ran.append(f"{pack} ends")

    load_packs(tmp_path / "packs", tmp_path, dict.fromkeys(AREAS, tmp_path), watched)
    assert " ".join(ran) == (
        "one begins prestartup one ends two begins two ends zero.py begins zero.py ends "
        "two begins import two ends zero.py begins import zero.py ends"
    )


VIDEOS = """
from fractions import Fraction

import av
import torch
from comfy_api.input import VideoInput
from comfy_api.input_impl import VideoFromFile
from comfy_api.latest import ComfyExtension, Input, InputImpl, Types, io


class Reverse(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Reverse",
            inputs=[io.Video.Input("video"), io.Combo.Input("codec", options=Types.VideoCodec.as_input())],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, video: Input.Video, codec):
        assert isinstance(video, VideoInput)
        parts = video.get_components()
        assert (parts.audio is None, parts.frame_rate) == (True, Fraction(5))
        made = InputImpl.VideoFromComponents(
            Types.VideoComponents(images=parts.images.flip(0), audio=None, frame_rate=parts.frame_rate)
        )
        path = "%s/reversed." % FOLDER + Types.VideoContainer.get_extension("auto")
        tags = {"by": {"pack": 1}}
        made.save_to(path, format=Types.VideoContainer.AUTO, codec=Types.VideoCodec(codec), metadata=tags)
        return io.NodeOutput(VideoFromFile(path))


class Pack(ComfyExtension):
    async def get_node_list(self):
        return [Reverse]


async def comfy_entrypoint():
    return Pack()
"""


async def test_a_pack_takes_and_makes_videos_as_comfyui_has_them(folder: Path) -> None:
    packs = loaded(folder, mine=VIDEOS.replace("FOLDER", repr(str(folder.parent))))
    grey = torch.linspace(0.1, 0.9, 4)[:, None, None, None].expand(4, 16, 32, 3)
    video = VideoFromComponents(VideoComponents(grey, Fraction(5)))
    [[made]] = (await run(packs, "Reverse", video=[video], codec=["h264"])).outputs
    assert isinstance(made, VideoFromFile)
    assert (made.get_components().images - grey.flip(0)).abs().max() < 0.02
    with av.open(made.get_stream_source()) as container:
        assert container.metadata["by"] == '{"pack": 1}'


def test_preview_sounds_are_in_the_temp_area_and_saved_under_comfyuis_names(folder: Path) -> None:
    loaded(folder)
    (folder.parent / "temp").mkdir()
    ui = sys.modules["comfy_api.latest"].ui
    sound = {"waveform": torch.zeros(2, 1, 4000), "sample_rate": 8000}
    shown = ui.PreviewAudio(sound).as_dict()["audio"]
    assert all((folder.parent / "temp" / one["filename"]).stat().st_size for one in shown)
    for count in (1, 3):
        first, second = ui.AudioSaveHelper.get_save_audio_ui(sound, "a/x", None, "opus", "64k").as_dict()["audio"]
        assert first == {"filename": f"x_{count:05}.opus", "subfolder": "a", "type": "output"}
        assert (folder.parent / "output" / "a" / second["filename"]).read_bytes()[:4] == b"OggS"
