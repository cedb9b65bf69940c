"""Outputs of V3 nodes for clients, `comfy_api.latest.ui`: saved files, previews and text.

Source: the facts of ComfyUI 0.3.64's `comfy_api/latest/_ui.py`.
"""

from __future__ import annotations

import uuid
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.images import PNG_LEVEL
from serve_app.media.audio_file import encode
from serve_app.packs import folder_paths
from serve_app.packs.saving import SaveImage, carried, write_new
from serve_app.values import Audio

SOUND_FORMATS = ("flac", "mp3", "opus")


class SavedResult(dict[str, str]):
    """One stored file."""

    def __init__(self, filename: str, subfolder: str, type: Any) -> None:
        super().__init__(filename=filename, subfolder=subfolder, type=str(getattr(type, "value", type)))


class UiOutput:
    """An output of a node for its client. members: its ui dict."""

    def __init__(self, **members: Any) -> None:
        self.members = members

    def as_dict(self) -> dict[str, Any]:
        """Return the ui dict."""
        return self.members


class SavedImages(UiOutput):
    """Stored images."""

    def __init__(self, results: list[SavedResult], is_animated: bool = False) -> None:
        super().__init__(images=results, **({"animated": (True,)} if is_animated else {}))


class SavedAudios(UiOutput):
    """Stored sounds."""

    def __init__(self, results: list[SavedResult]) -> None:
        super().__init__(audio=results)


class PreviewVideo(UiOutput):
    """Stored videos."""

    def __init__(self, values: list[Any], **more: Any) -> None:
        super().__init__(images=values, animated=(True,))


class PreviewText(UiOutput):
    """A text."""

    def __init__(self, value: str, **more: Any) -> None:
        super().__init__(text=(value,))


class PreviewUI3D(UiOutput):
    """A model file and the camera that looks at it."""

    def __init__(self, model_file: Any, camera_info: Any, **more: Any) -> None:
        super().__init__(result=[model_file, camera_info])


class ImageSaveHelper:
    """Stores images from nodes that save by themselves."""

    @staticmethod
    def save_images(
        images: torch.Tensor, filename_prefix: str, folder_type: Any, cls: Any = None, compress_level: int = PNG_LEVEL
    ) -> list[SavedResult]:
        """Store images (B,H,W,C) as PNG files and return them."""
        area = str(getattr(folder_type, "value", folder_type))
        saver = SaveImage()
        saver.output_dir = folder_paths.get_directory_by_type(area) or saver.output_dir
        saver.type, saver.compress_level = area, compress_level
        hidden = getattr(cls, "hidden", None)
        known = () if hidden is None else (hidden.prompt, hidden.extra_pnginfo)
        shown = saver.save_images(images, filename_prefix, *known)["ui"]["images"]
        return [SavedResult(**one) for one in shown]

    @staticmethod
    def get_save_images_ui(
        images: torch.Tensor, filename_prefix: str, cls: Any, compress_level: int = PNG_LEVEL
    ) -> SavedImages:
        """Store images in the output area and return what shows them."""
        return SavedImages(ImageSaveHelper.save_images(images, filename_prefix, "output", cls, compress_level))


class AudioSaveHelper:
    """Stores sounds from nodes that save by themselves."""

    @staticmethod
    def save_audio(
        audio: Audio,
        filename_prefix: str,
        folder_type: Any,
        cls: Any = None,
        format: str = "flac",
        quality: str = "128k",
    ) -> list[SavedResult]:
        """Store every sound of a batch as a file and return them. Errors: NodeError for an unknown format."""
        if format not in SOUND_FORMATS:
            raise NodeError(f"format {format!r} is none of {', '.join(SOUND_FORMATS)}")
        area = str(getattr(folder_type, "value", folder_type))
        directory = folder_paths.get_directory_by_type(area) or folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, directory)
        hidden = getattr(cls, "hidden", None)
        text = carried(None, None) if hidden is None else carried(hidden.prompt, hidden.extra_pnginfo)
        wanted = None if format == "flac" else quality
        saved = []
        for index, waveform in enumerate(audio["waveform"]):
            stem = name.replace("%batch_num%", str(index))
            content = encode(waveform, int(audio["sample_rate"]), format, wanted, text)
            counter = write_new(folder, stem, counter, f".{format}", content)
            saved.append(SavedResult(f"{stem}_{counter:05}.{format}", subfolder, area))
            counter += 1
        return saved

    @staticmethod
    def get_save_audio_ui(
        audio: Audio, filename_prefix: str, cls: Any, format: str = "flac", quality: str = "128k"
    ) -> SavedAudios:
        """Store sounds in the output area and return what shows them."""
        return SavedAudios(AudioSaveHelper.save_audio(audio, filename_prefix, "output", cls, format, quality))


class PreviewAudio(SavedAudios):
    """Sounds, stored in the temp area."""

    def __init__(self, audio: Audio, cls: Any = None, **more: Any) -> None:
        super().__init__(AudioSaveHelper.save_audio(audio, f"ComfyUI_temp_{uuid.uuid4().hex[:8]}", "temp", cls))


class PreviewImage(SavedImages):
    """Images, stored in the temp area."""

    def __init__(self, image: torch.Tensor, animated: bool = False, cls: Any = None, **more: Any) -> None:
        prefix = f"ComfyUI_temp_{uuid.uuid4().hex[:8]}"
        super().__init__(ImageSaveHelper.save_images(image, prefix, "temp", cls, 1), animated)


class PreviewMask(PreviewImage):
    """A mask (B,H,W), shown as a grey image."""

    def __init__(self, mask: torch.Tensor, animated: bool = False, cls: Any = None, **more: Any) -> None:
        grey = mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3)
        super().__init__(grey, animated, cls)
