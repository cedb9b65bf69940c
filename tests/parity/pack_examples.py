"""Example workflows that node packs publish, in API format, for `packs_end_to_end`.

Each names its source, and what of it is another here: models, sizes and steps are those of the tests' small checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

Prompt: TypeAlias = dict[str, dict[str, Any]]
KSAMPLER = {"steps": 4, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node in API format; a tuple is a link, (node id, slot)."""
    links = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": class_type, "inputs": links}


def video_helper_simple() -> Prompt:
    """VideoHelperSuite tests/simple.json: a film of the tests in place of its own, 76 pixels wide for 304."""
    return {
        "1": node(
            "VHS_LoadVideo",
            video="clip.mp4",
            force_rate=8,
            custom_width=76,
            custom_height=0,
            frame_load_cap=16,
            skip_first_frames=1,
            select_every_nth=1,
            format="None",
        ),
        "3": node("VHS_VideoCombine", images=("1", 0), format="video/webm", crf=20, **_combined(save_metadata=False)),
    }


def video_helper_audio(inputs: Path) -> Prompt:
    """VideoHelperSuite tests/audio.json: a film of the tests in place of its own."""
    return {
        "4": node(
            "VHS_LoadVideoPath",
            video=str(inputs / "clip.mp4"),
            force_rate=8,
            custom_width=0,
            custom_height=0,
            frame_load_cap=30,
            skip_first_frames=0,
            select_every_nth=1,
            format="AnimateDiff",
        ),
        "5": node("VHS_VideoCombine", images=("4", 0), audio=("4", 2), format="video/webm", crf=20, **_combined()),
        "6": node("VHS_VideoCombine", images=("4", 0), audio=("7", 0), format="video/h264-mp4", crf=19, **_combined()),
        "7": node("VHS_LoadAudio", audio_file=str(inputs / "clip.mp4"), seek_seconds=0, duration=1),
    }


def video_helper_batches(inputs: Path) -> Prompt:
    """VideoHelperSuite tests/batch4x4.json: a film of the tests in place of its own, a quarter as large."""
    film = {"video": str(inputs / "clip.mp4"), "force_rate": 8, "frame_load_cap": 16, "skip_first_frames": 0}
    film |= {"select_every_nth": 1, "format": "None", "meta_batch": ("18", 0)}
    combined = _combined(save_output=False, meta_batch=("18", 0))
    return {
        "18": node("VHS_BatchManager", frames_per_batch=4),
        "10": node("VHS_LoadVideoPath", custom_width=128, custom_height=128, **film),
        "14": node("VHS_LoadVideoPath", custom_width=96, custom_height=128, **film),
        "16": node("SolidMask", value=1, width=128, height=128),
        "15": node(
            "ImageCompositeMasked",
            destination=("10", 0),
            source=("14", 0),
            mask=("16", 0),
            x=0,
            y=0,
            resize_source=False,
        ),
        "11": node("VHS_VideoCombine", images=("15", 0), audio=("10", 2), format="video/h264-mp4", crf=19, **combined),
        "17": node("VHS_VideoCombine", images=("10", 0), format="video/webm", crf=20, **combined),
    }


def _combined(**more: Any) -> dict[str, Any]:
    return {
        "frame_rate": 8,
        "loop_count": 0,
        "filename_prefix": "AnimateDiff",
        "pix_fmt": "yuv420p",
        "save_metadata": True,
        "trim_to_audio": False,
        "pingpong": False,
        "save_output": True,
    } | more


def kjnodes_image_to_video() -> Prompt:
    """KJNodes example_workflows/leapfusion_hunyuuanvideo_i2v_native_testing.json, without HunyuanVideo.

    The small checkpoint in place of that model, a batch in place of its video, no LoRA, and no
    LeapfusionHunyuanI2VPatcher, which patches that model alone; the image, resized and given noise, is sampled on from.
    """
    return {
        **_checkpoint(positive="woman puts on sunglasses"),
        "65": node("LoadImage", image="face.png"),
        "66": node(
            "ImageResizeKJ",
            image=("65", 0),
            width=96,
            height=64,
            upscale_method="lanczos",
            keep_proportion=False,
            divisible_by=2,
            crop="center",
        ),
        "86": node("ImageNoiseAugmentation", image=("66", 0), noise_aug_strength=0.05, seed=123),
        "64": node("VAEEncode", pixels=("86", 0), vae=("4", 2)),
        "53": node("RepeatLatentBatch", samples=("64", 0), amount=4),
        "55": node("ConditioningZeroOut", conditioning=("6", 0)),
        "51": node("KSamplerSelect", sampler_name="euler"),
        "52": node("BasicScheduler", model=("4", 0), scheduler="simple", steps=4, denoise=0.7),
        "42": node(
            "SamplerCustom",
            model=("4", 0),
            add_noise=True,
            noise_seed=6,
            cfg=1.0,
            positive=("6", 0),
            negative=("55", 0),
            sampler=("51", 0),
            sigmas=("52", 0),
            latent_image=("53", 0),
        ),
        "84": node("GetLatentRangeFromBatch", latents=("42", 1), start_index=1, num_frames=-1),
        "57": node("VAEDecodeTiled", samples=("84", 0), vae=("4", 2), tile_size=128, overlap=64),
        "58": node("SaveImage", images=("57", 0), filename_prefix="frames"),
        "50": node("VHS_VideoCombine", images=("57", 0), format="video/h264-mp4", crf=19, **_combined(frame_rate=24)),
    }


def kjnodes_masks() -> Prompt:
    """ComfyUI-workflows SVD_3_Layers_Masks.json's use of KJNodes, without its models: constants, a mask of a colour,
    ranges of a batch, laid over one another."""
    return {
        "1": node("LoadImage", image="face.png"),
        "2": node("ColorToMask", images=("1", 0), invert=False, red=230, green=60, blue=40, threshold=90, per_batch=16),
        "3": node("INTConstant", value=4),
        "4": node("FloatConstant", value=0.75),
        "5": node("RepeatImageBatch", image=("1", 0), amount=("3", 0)),
        "6": node("GetImageRangeFromBatch", images=("5", 0), start_index=1, num_frames=2),
        "7": node("ImageScaleBy", image=("6", 0), upscale_method="bilinear", scale_by=("4", 0)),
        "8": node("GrowMaskWithBlur", mask=("2", 0), expand=3, incremental_expandrate=0.0, tapered_corners=True),
        "9": node(
            "ImageCompositeMasked",
            destination=("6", 0),
            source=("7", 0),
            x=8,
            y=8,
            resize_source=False,
            mask=("8", 0),
        ),
        "10": node("ImageAndMaskPreview", image=("9", 0), mask=("8", 0), mask_opacity=0.6, mask_color="0, 200, 255"),
        "11": node("ColorMatch", image_ref=("1", 0), image_target=("9", 0), method="mkl", strength=0.65),
        "12": node("SaveImage", images=("11", 0), filename_prefix="matched"),
        "13": node("SaveImage", images=("10", 0), filename_prefix="shown"),
    }


def rgthree_context() -> Prompt:
    """rgthree docs/rgthree_context_metadata.png: 64 pixels a side for 512, 4 and 6 steps, shorter texts."""
    return {
        **_rgthree_first_pass(883703990502425),
        "376": node("Context (rgthree)", base_ctx=("369", 0)),
        **_rgthree_upscaled(),
        "382": node("Context (rgthree)", base_ctx=("376", 0), latent=("389", 0), images=("387", 0)),
        "390": _rgthree_second_sampler("382", ("382", 6)),
        "383": node("VAEDecode", samples=("390", 0), vae=("382", 3)),
        "392": node("PreviewImage", images=("369", 7)),
        "396": node("Context (rgthree)", base_ctx=("382", 0), latent=("390", 0), images=("383", 0)),
        "397": node("SaveImage", images=("396", 7), filename_prefix="rgthree_context"),
    }


def rgthree_advanced() -> Prompt:
    """rgthree docs/rgthree_advanced_metadata.png, with its second pass unmuted: sizes, steps and texts as above."""
    return {
        **_rgthree_first_pass(172653301405912),
        "376": node("Context (rgthree)", base_ctx=("369", 0)),
        **_rgthree_upscaled(),
        "390": _rgthree_second_sampler("376", ("389", 0)),
        "383": node("VAEDecode", samples=("390", 0), vae=("376", 3)),
        "396": node("Context (rgthree)", base_ctx=("376", 0), latent=("390", 0), images=("383", 0)),
        "408": node("Context Switch (rgthree)", ctx_01=("396", 0), ctx_02=("376", 0)),
        "406": node("Context (rgthree)", base_ctx=("408", 0)),
        "415": node("Context (rgthree)", base_ctx=("369", 0)),
        "416": node("PreviewImage", images=("415", 7)),
        "397": node("SaveImage", images=("406", 7), filename_prefix="rgthree_context"),
    }


def rgthree_power_lora() -> Prompt:
    """rgthree's Power Lora Loader as its page fills it, a widget a LoRA, Any Switch and Image Resize: no example."""
    return {
        **_checkpoint(),
        "20": node(
            "Power Lora Loader (rgthree)",
            model=("4", 0),
            clip=("4", 1),
            lora_1={"on": True, "lora": "lora.safetensors", "strength": 0.8},
            lora_2={"on": False, "lora": "lora.safetensors", "strength": 1.0},
        ),
        "21": node("Any Switch (rgthree)", any_01=("20", 0)),
        "22": node("CLIPTextEncode", clip=("20", 1), text="a lighthouse"),
        "3": node(
            "KSampler",
            model=("21", 0),
            positive=("22", 0),
            negative=("7", 0),
            latent_image=("5", 0),
            seed=5,
            **KSAMPLER,
        ),
        "8": node("VAEDecode", samples=("3", 0), vae=("4", 2)),
        "9": node("Image Resize (rgthree)", image=("8", 0), measurement="pixels", width=80, height=0),
        "10": node("SaveImage", images=("9", 0), filename_prefix="power_lora"),
    }


def _rgthree_first_pass(seed: int) -> Prompt:
    return {
        "351": node("Seed (rgthree)", seed=seed),
        "353": node("CheckpointLoaderSimple", ckpt_name="mini15.safetensors"),
        "354": node(
            "Context (rgthree)", model=("353", 0), clip=("353", 1), vae=("353", 2), latent=("355", 0), seed=("351", 0)
        ),
        "355": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "356": node("CLIPTextEncode", text="full body portrait, ((junkyard)), (debris)", clip=("354", 2)),
        "357": node("CLIPTextEncode", text="render, illustration, extra limbs:1.5, noise", clip=("354", 2)),
        "358": node("Context (rgthree)", base_ctx=("354", 0), positive=("356", 0), negative=("357", 0)),
        "365": node("Context (rgthree)", base_ctx=("358", 0)),
        "362": node(
            "KSampler",
            seed=("365", 8),
            model=("365", 1),
            positive=("365", 4),
            negative=("365", 5),
            latent_image=("365", 6),
            **KSAMPLER,
        ),
        "368": node("VAEDecode", samples=("362", 0), vae=("365", 3)),
        "369": node("Context (rgthree)", base_ctx=("365", 0), latent=("362", 0), images=("368", 0)),
    }


def _rgthree_upscaled() -> Prompt:
    return {
        "388": node("UpscaleModelLoader", model_name="esrgan.safetensors"),
        "387": node("ImageUpscaleWithModel", upscale_model=("388", 0), image=("376", 7)),
        "391": node("ImageScaleBy", image=("387", 0), upscale_method="area", scale_by=0.5),
        "389": node("VAEEncode", pixels=("391", 0), vae=("376", 3)),
    }


def _rgthree_second_sampler(context: str, latent: tuple[str, int]) -> dict[str, Any]:
    return node(
        "KSamplerAdvanced",
        add_noise="enable",
        noise_seed=(context, 8),
        steps=6,
        cfg=7,
        sampler_name="ddim",
        scheduler="ddim_uniform",
        start_at_step=4,
        end_at_step=1000,
        return_with_leftover_noise="disable",
        model=(context, 1),
        positive=(context, 4),
        negative=(context, 5),
        latent_image=latent,
    )


def _checkpoint(positive: str = "1girl is sitting in the cafe terrace", side: int = 64) -> Prompt:
    return {
        "4": node("CheckpointLoaderSimple", ckpt_name="mini15.safetensors"),
        "6": node("CLIPTextEncode", clip=("4", 1), text=positive),
        "7": node("CLIPTextEncode", clip=("4", 1), text="text, watermark, low quality:1.4"),
        "5": node("EmptyLatentImage", width=side, height=side, batch_size=1),
    }


def kjnodes_loaders() -> Prompt:
    """KJNodes' loaders of diffusion models and of GGUF, as public workflows have them, on the test's backbone."""
    loaded: dict[str, Any] = {"model_name": "mini15.safetensors", "weight_dtype": "fp32", "compute_dtype": "fp32"}
    loaded |= {"patch_cublaslinear": False, "sage_attention": "disabled", "enable_fp16_accumulation": False}
    blocks: dict[str, Any] = {"model_name": "mini15.gguf", "extra_model_name": "none", "dequant_dtype": "default"}
    blocks |= {"patch_dtype": "default", "patch_on_device": False, "enable_fp16_accumulation": False}
    made = {"positive": ("6", 0), "negative": ("7", 0), "latent_image": ("5", 0), "seed": 5}
    return {
        **_checkpoint(),
        "10": node("DiffusionModelLoaderKJ", **loaded),
        "11": node("KSampler", model=("10", 0), **made, **KSAMPLER),
        "12": node("VAEDecode", samples=("11", 0), vae=("4", 2)),
        "13": node("SaveImage", images=("12", 0), filename_prefix="loaded"),
        "20": node("GGUFLoaderKJ", attention_override="none", **blocks),
        "21": node("KSampler", model=("20", 0), **made, **KSAMPLER),
        "22": node("VAEDecode", samples=("21", 0), vae=("4", 2)),
        "23": node("SaveImage", images=("22", 0), filename_prefix="blocks"),
    }


def impact_latents() -> Prompt:
    """Impact's PreviewBridgeLatent and LatentSender, as public workflows have them."""
    made = {"positive": ("6", 0), "negative": ("7", 0), "latent_image": ("5", 0), "seed": 5}
    return {
        **_checkpoint(),
        "10": node("KSampler", model=("4", 0), **made, **KSAMPLER),
        "11": node("PreviewBridgeLatent", latent=("10", 0), image="", preview_method="Latent2RGB-SD15"),
        "12": node("LatentSender", samples=("10", 0), link_id=0, preview_method="Latent2RGB-SD15"),
        "13": node("VAEDecode", samples=("11", 0), vae=("4", 2)),
        "14": node("SaveImage", images=("13", 0), filename_prefix="bridged"),
    }


def impact_advanced_sampler() -> Prompt:
    """Impact test/advanced-sampler.json: 64 pixels a side, 4 steps, the mask of a file for what is drawn in a page."""
    return {
        **_checkpoint("photorealistic:1.4, masterpiece, 1girl is sitting in the cafe terrace"),
        "10": node("ToBasicPipe", model=("4", 0), clip=("4", 1), vae=("4", 2), positive=("6", 0), negative=("7", 0)),
        "12": node("CLIPTextEncode", clip=("4", 1), text="1girl in the cafe terrace, (colorful hair:1.1)"),
        "11": node("EditBasicPipe", basic_pipe=("10", 0), positive=("12", 0)),
        "13": _impact_sampler("10"),
        "15": _impact_sampler("11"),
        "22": node("FromBasicPipe", basic_pipe=("10", 0)),
        "19": node(
            "KSampler",
            model=("22", 0),
            positive=("22", 3),
            negative=("22", 4),
            latent_image=("5", 0),
            seed=1107040072933062,
            steps=4,
            cfg=8.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "20": node("VAEDecode", samples=("19", 0), vae=("4", 2)),
        "21": node("SaveImage", images=("20", 0), filename_prefix="first"),
        "23": node("LoadImageMask", image="mask.png", channel="red"),
        "27": node(
            "TwoAdvancedSamplersForMask",
            seed=1107040072933062,
            steps=4,
            denoise=1.0,
            samples=("5", 0),
            base_sampler=("13", 0),
            mask_sampler=("15", 0),
            mask=("23", 0),
            overlap_factor=10,
        ),
        "24": node("VAEDecode", samples=("27", 0), vae=("22", 2)),
        "25": node("PreviewImage", images=("24", 0)),
    }


def impact_regional() -> Prompt:
    """Impact test/regional_prompt.json: two of its four regions, its group node unfolded, 64 pixels a side, 5 steps."""
    regions: Prompt = {}
    for number, text in (("1", "1girl black hair"), ("2", "1girl pink jacket")):
        regions |= {
            f"t{number}": node("CLIPTextEncode", clip=("34", 2), text=text),
            f"e{number}": node("EditBasicPipe", basic_pipe=("5p", 0), positive=(f"t{number}", 0)),
            f"s{number}": _impact_sampler(f"e{number}", sampler_name="dpm_fast", scheduler="sgm_uniform"),
            f"m{number}": node("LoadImageMask", image="mask.png", channel="red" if number == "1" else "green"),
            f"r{number}": node("RegionalPrompt", mask=(f"m{number}", 0), advanced_sampler=(f"s{number}", 0)),
        }
    return {
        **_checkpoint("a photograph of a girl is standing in the cafe terrace"),
        "5p": node("ToBasicPipe", model=("4", 0), clip=("4", 1), vae=("4", 2), positive=("6", 0), negative=("7", 0)),
        "34": node("FromBasicPipe_v2", basic_pipe=("5p", 0)),
        **regions,
        "4s": _impact_sampler("5p", cfg=5.0, sampler_name="dpm_fast", scheduler="simple"),
        "22": node("CombineRegionalPrompts", regional_prompts1=("r1", 0), regional_prompts2=("r2", 0)),
        "2": node(
            "RegionalSampler",
            seed=1019854126263754,
            seed_2nd=0,
            seed_2nd_mode="ignore",
            steps=5,
            base_only_steps=1,
            denoise=1.0,
            samples=("5", 0),
            base_sampler=("4s", 0),
            regional_prompts=("22", 0),
            overlap_factor=5,
            restore_latent=True,
            additional_mode="ratio between",
            additional_sampler="AUTO",
            additional_sigma_ratio=0.3,
        ),
        "7d": node("VAEDecode", samples=("2", 0), vae=("34", 3)),
        "8": node("SaveImage", images=("7d", 0), filename_prefix="regional"),
    }


def _impact_sampler(pipe: str, **options: Any) -> dict[str, Any]:
    given = {"cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "sigma_factor": 1.0, **options}
    return node("KSamplerAdvancedProvider", basic_pipe=(pipe, 0), **given)


def efficiency_high_res() -> Prompt:
    """efficiency workflows/HiResFix Script.png: 64 pixels a side, 4 and 3 steps, no detector."""
    return {
        "110": _efficient_loader("masterpiece, best quality, 1girl, floating in the sky, (close-up:1.1)"),
        "111": node(
            "HighRes-Fix Script",
            upscale_type="latent",
            hires_ckpt_name="(use same)",
            latent_upscaler="nearest-exact",
            pixel_upscaler="esrgan.safetensors",
            upscale_by=1.25,
            use_same_seed=False,
            seed=914146367174090,
            hires_steps=3,
            denoise=0.56,
            iterations=1,
            control_net_name="controlnet.safetensors",
            strength=1.0,
            preprocessor_imgs=False,
        ),
        "55": _efficient_sampler("111", seed=1106939166727686, cfg=7.5, sampler_name="dpmpp_2m"),
        "56": node("SaveImage", images=("55", 5), filename_prefix="high_res"),
    }


def efficiency_tiled() -> Prompt:
    """efficiency workflows/EFF_TiledscriptWorkflow.png: tiles of 256 pixels, 2 steps, without its ControlNet."""
    return {
        "110": _efficient_loader("Large Moss beast redwood forest landscape", side=256),
        "129": node(
            "Tiled Upscaler Script",
            upscale_by=1.25,
            tile_size=256,
            tiling_strategy="random",
            tiling_steps=2,
            seed=7,
            denoise=0.4,
            use_controlnet=False,
            tile_controlnet="controlnet.safetensors",
            strength=1.0,
        ),
        "55": _efficient_sampler("129", seed=1046036195170979, cfg=6.0, sampler_name="dpmpp_2m", steps=2),
        "127": node("SaveImage", images=("55", 5), filename_prefix="eff_tile"),
    }


def efficiency_plot() -> Prompt:
    """efficiency workflows/XYPlot - LoRA Model vs Clip Strengths.png: 64 pixels a side, 2 by 2 for 4 by 4, 3 steps."""
    return {
        "112": _efficient_loader("master, chief 1girl, pink hair, cat ears"),
        "116": node(
            "XY Input: LoRA Plot",
            input_mode="X: Model Strength, Y: Clip Strength",
            lora_name="lora.safetensors",
            model_strength=1.0,
            clip_strength=1.0,
            X_batch_count=2,
            X_batch_path="",
            X_subdirectories=False,
            X_batch_sort="ascending",
            X_first_value=0.0,
            X_last_value=1.0,
            Y_batch_count=2,
            Y_first_value=0.0,
            Y_last_value=1.0,
        ),
        "109": node(
            "XY Plot",
            grid_spacing=0,
            XY_flip="False",
            Y_label_orientation="Vertical",
            cache_models="True",
            ksampler_output_image="Plot",
            dependencies=("112", 6),
            X=("116", 0),
            Y=("116", 1),
        ),
        "55": _efficient_sampler("109", loader="112", seed=593927061734304, cfg=7.0, sampler_name="dpmpp_2m", steps=3),
        "117": node("SaveImage", images=("55", 5), filename_prefix="plot"),
    }


def _efficient_loader(positive: str, side: int = 64) -> dict[str, Any]:
    return node(
        "Efficient Loader",
        ckpt_name="mini15.safetensors",
        vae_name="Baked VAE",
        clip_skip=-2,
        lora_name="None",
        lora_model_strength=1.0,
        lora_clip_strength=1.0,
        positive=positive,
        negative="lowres, low quality, worst quality",
        token_normalization="none",
        weight_interpretation="comfy",
        empty_latent_width=side,
        empty_latent_height=side,
        batch_size=1,
    )


def _efficient_sampler(script: str, loader: str = "110", steps: int = 4, **options: Any) -> dict[str, Any]:
    slots = ("model", "positive", "negative", "latent_image", "optional_vae")
    return node(
        "KSampler (Efficient)",
        **{name: (loader, slot) for slot, name in enumerate(slots)},
        script=(script, 0),
        steps=steps,
        scheduler="karras",
        denoise=1.0,
        preview_method="none",
        vae_decode="true",
        **options,
    )


def ip_adapter(apply: dict[str, Any], more: Prompt | None = None, batch: int = 1, conditioned: str = "") -> Prompt:
    """A workflow of IPAdapter_plus' examples: 64 pixels a side, 4 steps, an adapter and an encoder of random weights.

    apply: the node "a", which changes the model. more: nodes that it needs beside the usual ones. batch: images.
    conditioned: the node that has the conditioning.
    """
    image = {"ipadapter": ("15", 0), "clip_vision": ("16", 0)}
    needed = {name: link for name, link in image.items() if apply["class_type"] != "IPAdapterEmbeds"}
    text = {"positive": (conditioned, 1), "negative": (conditioned, 2)} if conditioned else {}
    return {
        **_checkpoint("a woman wearing a white shirt is sitting in a park on a bench"),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
        "12": node("LoadImage", image="face.png"),
        "15": node("IPAdapterModelLoader", ipadapter_file="seen.safetensors"),
        "16": node("CLIPVisionLoader", clip_name="vit_l.safetensors"),
        **(more or {}),
        "a": node(apply["class_type"], **{"model": ("4", 0), **needed, "ipadapter": ("15", 0)}, **apply["inputs"]),
        "3": node(
            "KSampler",
            **{"model": ("a", 0), "positive": ("6", 0), "negative": ("7", 0), **text, "latent_image": ("5", 0)},
            seed=2,
            **KSAMPLER,
        ),
        "8": node("VAEDecode", samples=("3", 0), vae=("4", 2)),
        "9": node("SaveImage", images=("8", 0), filename_prefix="IPAdapter"),
    }


def ip_adapter_regional() -> Prompt:
    """IPAdapter_plus examples/ipadapter_regional_conditioning.json with two of its three regions."""
    regions = {
        str(number): node(
            "IPAdapterRegionalConditioning",
            image=("12", 0),
            mask=(f"m{number}", 0),
            positive=("6", 0),
            negative=("7", 0),
            image_weight=0.7,
            prompt_weight=1.0,
            weight_type="linear",
            start_at=0.0,
            end_at=1.0,
        )
        for number in (79, 80)
    }
    masks = {
        f"m{number}": node("LoadImageMask", image="mask.png", channel=channel)
        for number, channel in ((79, "red"), (80, "green"))
    }
    combined = node("IPAdapterCombineParams", params_1=("79", 0), params_2=("80", 0))
    given = {"ipadapter_params": ("87", 0), "combine_embeds": "concat", "embeds_scaling": "V only"}
    return ip_adapter(node("IPAdapterFromParams", **given), {**regions, **masks, "87": combined}, conditioned="79")


def ip_adapters() -> dict[str, Prompt]:
    """Return workflows of IPAdapter_plus' examples by name, each for other classes."""
    prepared = node(
        "PrepImageForClipVision", image=("12", 0), interpolation="LANCZOS", crop_position="top", sharpening=0.15
    )
    encoder = {"ipadapter": ("15", 0), "image": ("12", 0), "clip_vision": ("16", 0)}
    return {
        "IPAdapter|tiled": ip_adapter(node("IPAdapterTiled", image=("12", 0), weight=0.7, weight_type="ease in")),
        "IPAdapter|weighted embeds": ip_adapter(
            node("IPAdapterEmbeds", pos_embed=("18", 0), neg_embed=("16e", 1), clip_vision=("16", 0), weight=0.8),
            {
                "16e": node("IPAdapterEncoder", **encoder, weight=0.6),
                "17e": node("IPAdapterEncoder", **encoder, weight=1.5),
                "18": node("IPAdapterCombineEmbeds", embed1=("16e", 0), embed2=("17e", 0), method="average"),
            },
        ),
        "IPAdapter|weights": ip_adapter(
            node("IPAdapterBatch", image=("17", 0), weight=("22", 0)),
            {
                "17": prepared,
                "22": node("IPAdapterWeights", weights="1.0, 0.0", timing="linear", frames=3, method="full batch"),
            },
            batch=3,
        ),
        "IPAdapter|noise injection": ip_adapter(
            node("IPAdapterAdvanced", image=("17", 0), image_negative=("18", 0), weight=0.7),
            {
                "17": prepared,
                "18": node("IPAdapterNoise", image_optional=("17", 0), type="fade", strength=0.3, blur=5),
            },
        ),
        "IPAdapter|regional": ip_adapter_regional(),
        "IPAdapter|mad scientist": ip_adapter(
            node("IPAdapterMS", image=("12", 0), weight_type="composition", layer_weights="0:0.5, 1:0, 4:0.8")
        ),
        "IPAdapter|precise composition": ip_adapter(
            node("IPAdapterPreciseComposition", image=("12", 0), weight=0.8, composition_boost=0.35)
        ),
    }


def examples(inputs: Path) -> dict[str, Prompt]:
    """Return the workflows by name. inputs: the folder of uploaded files."""
    return {
        "VideoHelperSuite|simple": video_helper_simple(),
        "VideoHelperSuite|audio": video_helper_audio(inputs),
        "VideoHelperSuite|batches": video_helper_batches(inputs),
        "KJNodes|image to video": kjnodes_image_to_video(),
        "KJNodes|masks": kjnodes_masks(),
        "KJNodes|loaders": kjnodes_loaders(),
        "rgthree|context": rgthree_context(),
        "rgthree|advanced": rgthree_advanced(),
        "rgthree|power lora": rgthree_power_lora(),
        "Impact|advanced sampler": impact_advanced_sampler(),
        "Impact|regional": impact_regional(),
        "Impact|latents": impact_latents(),
        "efficiency|high-res fix": efficiency_high_res(),
        "efficiency|plot": efficiency_plot(),
        "efficiency|tiled": efficiency_tiled(),
        **ip_adapters(),
    }
