"""The nodes that load AUDIO from files, and save it.

Those that save take their inputs as lists, so that all files of a node are saved at once: a retry then finds the same
names, which have no mark behind their counters, as ComfyUI's of sounds have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import NodeStore
from serve_app.execution.size import allow, bounds
from serve_app.media import loading
from serve_app.media.audio import rate_for
from serve_app.media.audio_file import encode
from serve_app.media.resampling import length_at
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.nodes.inputs import Combo, DynamicCombo, InputType, Text
from serve_app.nodes.sockets import AUDIO, EXTRA_PNGINFO, PROMPT, STORE
from serve_app.store.files.store import Area
from serve_app.values import Audio

MP3_QUALITY = Combo(["V0", "128k", "320k"], default="V0")
OPUS_QUALITY = Combo(["64k", "96k", "128k", "192k", "320k"], default="128k")

Format: TypeAlias = Annotated[
    Mapping[str, list[str]],
    DynamicCombo({"flac": {}, "mp3": {"quality": MP3_QUALITY}, "opus": {"quality": OPUS_QUALITY}}),
]
Prefix: TypeAlias = Annotated[str, Text("audio/ComfyUI", multiline=False)]


@node("LoadAudio", "Load Audio", category="audio", function="load", essentials_category="Audio")
async def load_audio(audio: Annotated[str, Combo(FolderChoice("input"), audio_upload=True)], store: STORE) -> AUDIO:
    """The sound of an uploaded file, which may be a video.

    Decode the file's first sound. Errors: NodeError for a file without one, and for one over the limits.
    """
    data = await store.read(audio)
    waveform, rate = await asyncio.to_thread(loading.load_sound, data, f"the file '{audio}'", bounds(), allow)
    return {"waveform": waveform, "sample_rate": rate}


@node("RecordAudio", "Record Audio", category="audio", function="load")
async def record_audio(audio: Annotated[str, InputType("AUDIO_RECORD")], store: STORE) -> AUDIO:
    """The sound that the browser recorded and uploaded."""
    return await load_audio(audio, store)


saving = partial(
    node,
    category="audio",
    return_types=("AUDIO",),
    return_names=("audio",),
    output_is_list=(True,),
    output_node=True,
    skips_blocked=True,
)
"""Declares a node that saves AUDIO and passes it on."""


async def _saved(
    store: NodeStore,
    area: Area,
    format: str,
    audio: list[Audio | None],
    prefixes: list[str],
    qualities: Sequence[str],
    text: dict[str, str],
) -> dict[str, Any]:
    """Store every sound of every batch, show where, and pass the batches on. Errors: NodeError for None."""
    files = []
    for index, batch in enumerate(audio):
        if batch is None:
            raise NodeError("there is no audio to save; a video that it comes from may be mute")
        wanted = at(qualities, index) if qualities else None
        rate = batch["sample_rate"]
        for waveform in batch["waveform"]:
            allow(len(waveform), length_at(waveform.shape[-1], rate, rate_for(format, rate)))
            made = await asyncio.to_thread(encode, waveform, rate, format, wanted, text)
            files.append((at(prefixes, index), (0, 0), made))
    shown = await save_together(store, area, f".{format}", files, mark="")
    return {"ui": {"audio": shown}, "result": (audio,)}


@saving("SaveAudio", "Save Audio (FLAC) (DEPRECATED)", function="save", deprecated=True, essentials_category="Audio")
async def save_audio(
    audio: list[AUDIO | None],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
    filename_prefix: list[Prefix],
) -> dict[str, Any]:
    """Sounds to FLAC files of 16 bits that carry their workflow, a file for each of a batch."""
    text = workflow_text(prompt, extra_pnginfo)
    return await _saved(store[0], "output", "flac", audio, filename_prefix, (), text)


@saving(
    "SaveAudioMP3",
    "Save Audio (MP3) (DEPRECATED)",
    function="save",
    deprecated=True,
    essentials_category="Audio",
    required=("quality",),
)
async def save_audio_mp3(
    audio: list[AUDIO | None],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
    filename_prefix: list[Prefix],
    quality: list[Annotated[str, MP3_QUALITY]] | None = None,
) -> dict[str, Any]:
    """Sounds to MP3 files that carry their workflow."""
    text = workflow_text(prompt, extra_pnginfo)
    return await _saved(store[0], "output", "mp3", audio, filename_prefix, quality or (), text)


@saving("SaveAudioOpus", "Save Audio (Opus) (DEPRECATED)", function="save", deprecated=True, required=("quality",))
async def save_audio_opus(
    audio: list[AUDIO | None],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
    filename_prefix: list[Prefix],
    quality: list[Annotated[str, OPUS_QUALITY]] | None = None,
) -> dict[str, Any]:
    """Sounds to Opus files that carry their workflow, at the next sample rate that Opus has."""
    text = workflow_text(prompt, extra_pnginfo)
    return await _saved(store[0], "output", "opus", audio, filename_prefix, quality or (), text)


@saving(
    "SaveAudioAdvanced",
    "Save Audio (Advanced)",
    function="save_as",
    description="Saves the audio to the output folder.",
)
async def save_audio_advanced(
    audio: list[AUDIO | None],
    filename_prefix: list[Prefix],
    format: Format,
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Sounds to files of the format that is chosen."""
    quality = format.get("quality", [])
    text = workflow_text(prompt, extra_pnginfo)
    return await _saved(store[0], "output", format["format"][0], audio, filename_prefix, quality or (), text)


@saving(
    "PreviewAudio", "Preview Audio", function="save", description="Plays the audio; it is kept in the temp folder only."
)
async def preview_audio(
    audio: list[AUDIO | None], prompt: list[PROMPT], extra_pnginfo: list[EXTRA_PNGINFO], store: list[STORE]
) -> dict[str, Any]:
    """Sounds to FLAC files in the temp area, to be listened to."""
    text = workflow_text(prompt, extra_pnginfo)
    return await _saved(store[0], "temp", "flac", audio, ["ComfyUI_temp"], (), text)
