"""The nodes that load AUDIO from files, and save it.

Those that save take their inputs as lists, so that all files of a node are saved at once: a retry then finds the same
names, which have no mark behind their counters, as ComfyUI's of sounds have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files
from serve_app.execution.size import allow, bounds
from serve_app.media import loading
from serve_app.media.audio import rate_for
from serve_app.media.audio_file import encode
from serve_app.media.resampling import length_at
from serve_app.nodes.dynamic_inputs import combo, dynamic_combo
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.store.files.store import Area
from serve_app.values import Audio

PREFIX = ("STRING", {"default": "audio/ComfyUI", "multiline": False})
HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"}
MP3_QUALITY = combo(["V0", "128k", "320k"], default="V0")
OPUS_QUALITY = combo(["64k", "96k", "128k", "192k", "320k"], default="128k")


class LoadAudio:
    """The sound of an uploaded file, which may be a video."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "load"
    CATEGORY = "audio"
    ESSENTIALS_CATEGORY: str | None = "Audio"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        chosen = ("COMBO", {"multiselect": False, "options": FolderChoice("input"), "audio_upload": True})
        return {"required": {"audio": chosen}, "hidden": {"store": "STORE"}}

    async def load(self, audio: str, store: Files) -> tuple[Audio]:
        """Decode the file's first sound. Errors: NodeError for a file without one, and for one over the limits."""
        data = await store.read(audio)
        waveform, rate = await asyncio.to_thread(loading.sound, data, f"the file '{audio}'", bounds(), allow)
        return ({"waveform": waveform, "sample_rate": rate},)


class RecordAudio(LoadAudio):
    """The sound that the browser recorded and uploaded."""

    ESSENTIALS_CATEGORY = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": ("AUDIO_RECORD", {})}, "hidden": {"store": "STORE"}}


class SaveAudio:
    """Sounds to FLAC files of 16 bits that carry their workflow, a file for each of a batch."""

    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "audio"
    DEPRECATED = True
    ESSENTIALS_CATEGORY: str | None = "Audio"

    format = "flac"
    area: Area = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": ("AUDIO", {}), "filename_prefix": PREFIX}, "hidden": HIDDEN}

    async def save(
        self,
        audio: list[Audio | None],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        filename_prefix: list[str],
        quality: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Store every sound of every batch, show where, and pass the batches on. Errors: NodeError for None."""
        return await self._save(self.format, audio, prompt, extra_pnginfo, store, filename_prefix, quality)

    async def _save(
        self,
        format: str,
        audio: list[Audio | None],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        filename_prefix: list[str],
        quality: Sequence[str],
    ) -> dict[str, Any]:
        text = workflow_text(prompt, extra_pnginfo)
        files = []
        for index, batch in enumerate(audio):
            if batch is None:
                raise NodeError("there is no audio to save; a video that it comes from may be mute")
            wanted = at(quality, index) if quality else None
            rate = batch["sample_rate"]
            for waveform in batch["waveform"]:
                allow(len(waveform), length_at(waveform.shape[-1], rate, rate_for(format, rate)))
                made = await asyncio.to_thread(encode, waveform, rate, format, wanted, text)
                files.append((at(filename_prefix, index), (0, 0), made))
        shown = await save_together(store[0], self.area, f".{format}", files, mark="")
        return {"ui": {"audio": shown}, "result": (audio,)}


class SaveAudioMP3(SaveAudio):
    """Sounds to MP3 files that carry their workflow."""

    format = "mp3"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"audio": ("AUDIO", {}), "filename_prefix": PREFIX, "quality": MP3_QUALITY}
        return {"required": required, "hidden": HIDDEN}


class SaveAudioOpus(SaveAudio):
    """Sounds to Opus files that carry their workflow, at the next sample rate that Opus has."""

    ESSENTIALS_CATEGORY = None

    format = "opus"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"audio": ("AUDIO", {}), "filename_prefix": PREFIX, "quality": OPUS_QUALITY}
        return {"required": required, "hidden": HIDDEN}


class PreviewAudio(SaveAudio):
    """Sounds to FLAC files in the temp area, to be listened to."""

    DEPRECATED = False
    ESSENTIALS_CATEGORY = None
    DESCRIPTION = "Plays the audio; it is kept in the temp folder only."

    area: Area = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": ("AUDIO", {})}, "hidden": HIDDEN}

    async def save(
        self,
        audio: list[Audio | None],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        filename_prefix: list[str] | None = None,
        quality: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Store every sound, show where, and pass them on."""
        return await super().save(audio, prompt, extra_pnginfo, store, ["ComfyUI_temp"])


class SaveAudioAdvanced(SaveAudio):
    """Sounds to files of the format that is chosen."""

    FUNCTION = "save_as"
    DEPRECATED = False
    ESSENTIALS_CATEGORY = None
    DESCRIPTION = "Saves the audio to the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        formats = dynamic_combo({"flac": {}, "mp3": {"quality": MP3_QUALITY}, "opus": {"quality": OPUS_QUALITY}})
        return {"required": {"audio": ("AUDIO", {}), "filename_prefix": PREFIX, "format": formats}, "hidden": HIDDEN}

    async def save_as(
        self,
        audio: list[Audio | None],
        filename_prefix: list[str],
        format: Mapping[str, list[str]],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
    ) -> dict[str, Any]:
        """Store every sound, show where, and pass them on. Errors: NodeError for None."""
        quality = format.get("quality", [])
        return await self._save(format["format"][0], audio, prompt, extra_pnginfo, store, filename_prefix, quality)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LoadAudio": LoadAudio,
    "RecordAudio": RecordAudio,
    "SaveAudio": SaveAudio,
    "SaveAudioMP3": SaveAudioMP3,
    "SaveAudioOpus": SaveAudioOpus,
    "SaveAudioAdvanced": SaveAudioAdvanced,
    "PreviewAudio": PreviewAudio,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LoadAudio": "Load Audio",
    "RecordAudio": "Record Audio",
    "SaveAudio": "Save Audio (FLAC) (DEPRECATED)",
    "SaveAudioMP3": "Save Audio (MP3) (DEPRECATED)",
    "SaveAudioOpus": "Save Audio (Opus) (DEPRECATED)",
    "SaveAudioAdvanced": "Save Audio (Advanced)",
    "PreviewAudio": "Preview Audio",
}
