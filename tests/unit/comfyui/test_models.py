from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.comfyui.models import LinkedModels, models_in_graph

NAMES = (
    "checkpoints/a.safetensors",
    "checkpoints/sub/a.safetensors",
    "loras/a.safetensors",
    "embeddings/style.pt",
    "vae_approx/taesd_decoder.pth",
    "diffusers/sd/unet/model.safetensors",
    "diffusers/sd/model_index.json",
    "diffusers/other/model_index.json",
)
ALWAYS = {"embeddings/style.pt", "vae_approx/taesd_decoder.pth"}


@pytest.mark.parametrize(
    ("constants", "wanted"),
    [
        (["a.safetensors"], {"checkpoints/a.safetensors", "loras/a.safetensors"}),
        (["sub/a.safetensors", "a text"], {"checkpoints/sub/a.safetensors"}),
        (["sub", "style"], set()),
        (["sd"], {"diffusers/sd/unet/model.safetensors", "diffusers/sd/model_index.json"}),
    ],
)
def test_a_graph_may_read_what_its_constants_name_and_what_is_named_within_texts(
    constants: list[str], wanted: set[str]
) -> None:
    assert set(models_in_graph(NAMES, constants)) == wanted | ALWAYS


class Copies:
    """A mirror that has fetched nothing yet."""

    def __init__(self, root: Path, *names: str) -> None:
        self.root = root
        self.names = dict.fromkeys(names, "1")

    def copies(self) -> dict[str, Path]:
        return {name: self.root / tag / name for name, tag in self.names.items()}

    def path(self, name: str) -> Path:
        raise FileNotFoundError(name)


def test_links_follow_the_bucket_and_stay_in_their_folder(tmp_path: Path) -> None:
    mirror = Copies(tmp_path / "cache", "loras/a.pt", "loras/sub/b.pt", "loras/../../out.pt", "note", "loras/.x/c.pt")
    mirror.names |= {"loras/a": "1", "loras/a/under.pt": "1", "vae//d.pt": "1", "vae/": "1"}
    linked = LinkedModels(mirror, tmp_path / "models")
    linked.refresh()
    links = [path for path in tmp_path.rglob("*") if path.is_symlink()]
    names = {path.relative_to(tmp_path / "models").as_posix() for path in links}
    assert {"loras/a.pt", "loras/sub/b.pt"} <= names <= {"loras/a.pt", "loras/sub/b.pt", "loras/a", "loras/a/under.pt"}
    mirror.names = {"loras/a.pt": "2"}
    linked.fetch(["a.pt"])
    [left] = [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert left.readlink() == tmp_path / "cache" / "2" / "loras/a.pt"
