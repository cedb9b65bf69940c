"""Draw a picture through comfy-script and print its size. Run with the server's URL; comfy-script loads its nodes."""

import sys

from comfy_script.runtime import Workflow, load

load(f"{sys.argv[1]}/api/")
from comfy_script.runtime.nodes import (  # type: ignore[import-not-found]  # noqa: E402  made by `load`
    CheckpointLoaderSimple,
    CLIPTextEncode,
    EmptyLatentImage,
    KSampler,
    SaveImage,
    VAEDecode,
)

with Workflow(wait=True):
    model, clip, vae = CheckpointLoaderSimple(sys.argv[2])
    text = CLIPTextEncode("a fox", clip)
    latent = KSampler(model, 8, 2, 7, "euler", "normal", text, text, EmptyLatentImage(64, 64, 1), 1)
    saved = SaveImage(VAEDecode(latent, vae), "comfy-script")
print(saved.wait()[0].size)
