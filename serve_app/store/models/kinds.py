"""Recognises the family of a model file by its tensors' names, also families that are not supported.

Pure, and without torch, so that a workflow whose file cannot be used is refused before its job is accepted. A
supported family's class reads the details when it loads the file (`models/families`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The tensors of a file: names and shapes."""

BACKBONE_PREFIXES = ("model.diffusion_model.", "model.model.", "net.", "model.", "diffusion_model.", "")
"""The key prefixes of backbones: in a checkpoint, as saved by trainers, and alone."""
VAE_PREFIXES = ("first_stage_model.", "vae.", "pretransform.model.", "")
VISION_PREFIXES = ("visual.", "embedder.model.visual.", "conditioner.embedders.0.open_clip.model.visual.", "")
"""The key prefixes of image encoders: in OpenCLIP's files, in checkpoints of unCLIP and of SVD, and alone."""

FileMark: TypeAlias = "str | tuple[str, int]"
"""A tensor's name, or its name and its number of rows."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A family of networks. groups: a file belongs to it if it has all marks of one group. known: whether it is
    supported.
    """

    title: str
    groups: tuple[tuple[FileMark, ...], ...]
    known: bool = True

    def fits(self, shapes: Shapes, prefixes: Sequence[str]) -> bool:
        """Whether a file is of this kind, under any of the prefixes."""
        return self.prefix(shapes, prefixes) is not None

    def prefix(self, shapes: Shapes, prefixes: Sequence[str]) -> str | None:
        """Return the first prefix under which a file is of this kind, or None."""
        fitting = (p for p in prefixes for group in self.groups if all(_has(shapes, p, mark) for mark in group))
        return next(fitting, None)


@dataclass(frozen=True, slots=True)
class Role:
    """What a loader needs of a file. kinds: the candidates; the first that matches is the file's. open: whether an
    unrecognised file may fit.
    """

    wanted: str
    prefixes: Sequence[str]
    kinds: Sequence[FileKind]
    open: bool = False

    @property
    def one(self) -> str:
        """The needed thing with its article, for messages."""
        return f"{'an' if self.wanted[0] in 'aeiou' else 'a'} {self.wanted}"

    def kind(self, shapes: Shapes) -> FileKind | None:
        """Return the kind of a file, or None."""
        return next((kind for kind in self.kinds if kind.fits(shapes, self.prefixes)), None)

    def kind_of(self, title: str) -> FileKind:
        """Return the kind of a title. Errors: KeyError for an unknown one."""
        return {kind.title: kind for kind in self.kinds}[title]


def _has(shapes: Shapes, prefix: str, mark: FileMark) -> bool:
    name, rows = (mark, None) if isinstance(mark, str) else mark
    shape = shapes.get(prefix + name)
    return shape is not None and (rows is None or shape[:1] == (rows,))


def _known(title: str, *marks: str) -> FileKind:
    return FileKind(title, tuple((mark,) for mark in marks))


def _lacking(title: str, *marks: FileMark) -> FileKind:
    return FileKind(title, tuple((mark,) for mark in marks), known=False)


_REFINED = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
_BACKBONES = (
    _known("SAM 3.1", "detector.backbone.vision_backbone.propagation_convs.0.conv_1x1.weight"),
    _lacking("SAM 3", "detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight"),
    _known("RT-DETR v4", "encoder.pan_blocks.1.cv4.conv.weight"),
    _known("Stable Audio 3", "transformer.global_cond_embedder.0.weight"),
    _lacking("Stable Audio", "transformer.rotary_pos_emb.inv_freq"),
    _lacking("Stable Cascade", "clf.1.weight"),
    _known("Stable Video Diffusion", "input_blocks.1.0.time_stack.emb_layers.1.weight"),
    _lacking("Hunyuan-DiT", "mlp_t5.0.weight"),
    FileKind("HunyuanVideo", ((_REFINED, "vision_in.proj.0.weight"), (_REFINED, "vector_in.in_layer.weight"))),
    _lacking("HunyuanImage", _REFINED),
    _lacking("Mochi", "t5_yproj.weight"),
    _known("MiniMax H3", "video_patch_proj.weight"),
    FileKind(
        "PixArt",
        (("t_block.1.weight",), ("adaln_single.emb.timestep_embedder.linear_1.bias", "pos_embed.proj.bias")),
    ),
    _known("LTX-2", "audio_adaln_single.linear.weight"),
    _known("LTX-Video", "adaln_single.emb.timestep_embedder.linear_1.bias"),
    _lacking("ACE-Step", "genre_embedder.weight"),
    _known("MiniMax Music 3", "latent_conditioners.0.weight"),
    FileKind("YuE 2", (("vae2llm.weight", "latent_pos_embed.pe"),)),
    _known("ACE-Step 1.5", "encoder.lyric_encoder.layers.0.input_layernorm.weight"),
    _lacking("Cosmos", "blocks.block0.blocks.0.block.attn.to_q.0.weight"),
    _lacking("PixelDiT", "core.pixel_embedder.proj.weight"),
    _lacking("CogVideoX", "blocks.0.norm1.linear.weight"),
    _known(
        "SeedVR2",
        "blocks.0.attn.proj_qkv.vid.weight",
        "blocks.0.attn.proj_qkv.all.weight",
    ),
    _lacking("Wan S2V", "casual_audio_encoder.encoder.final_linear.weight"),
    _lacking("Wan HuMo", "audio_proj.audio_proj_glob_1.layer.bias"),
    _lacking("Wan Animate", "face_adapter.fuser_blocks.0.k_norm.weight"),
    _known("Wan SCAIL 2", "patch_embedding_mask.weight"),
    _lacking("Wan SCAIL", "patch_embedding_pose.weight"),
    _lacking("Wan Dancer", "patch_embedding_global.weight"),
    _known("Wan", "head.modulation"),
    _lacking("Hunyuan3D", "latent_in.weight"),
    _lacking("TripoSplat", "cam_out_layer.weight"),
    _lacking("HiDream-O1", "x_embedder.proj1.weight"),
    _known("HiDream", "caption_projection.0.linear.weight"),
    _known("Boogu-Image", "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight"),
    _known("OmniGen2", "time_caption_embed.timestep_embedder.linear_1.bias"),
    _lacking("Lens", "transformer_blocks.0.img_mlp.w1.weight"),
    _known("Ideogram 4", "embed_image_indicator.weight"),
    _known("Kandinsky 5", "visual_transformer_blocks.0.cross_attention.key_norm.weight"),
    _lacking("RT-DETR", "encoder.pan_blocks.1.cv4.conv.weight"),
    _lacking("Depth Anything 3", "backbone.embeddings.patch_embeddings.projection.weight"),
    _known("ERNIE-Image", "layers.0.mlp.linear_fc2.weight"),
    _lacking("JoyImage", "double_blocks.0.attn.img_attn_qkv.weight"),
    _known("AuraFlow", "double_layers.0.attn.w1q.weight", "joint_transformer_blocks.0.attn.add_k_proj.weight"),
    _known("Chroma Radiance", "nerf_blocks.0.norm.scale", "nerf_blocks.0.norm.weight"),
    _known("Ovis-Image", "double_blocks.0.img_mlp.gate_proj.weight"),
    _known("Anima", "llm_adapter.blocks.0.cross_attn.q_proj.weight"),
    _lacking("Cosmos-Predict2", "blocks.0.mlp.layer1.weight"),
    _known("Chroma", "distilled_guidance_layer.norms.0.scale", "distilled_guidance_layer.norms.0.weight"),
    _known("Flux.3", "content_mode_blocks.image.0.q_proj.weight", "mode_blocks.image.0.attn.to_q.weight"),
    _known("Flux.2", "double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
    _known("Flux.1", "vector_in.in_layer.weight", "single_transformer_blocks.0.attn.norm_k.weight"),
    _known("LongCat-Image", "double_blocks.0.img_mlp.0.weight"),
    _known("Z-Image", "layers.0.adaLN_modulation.0.weight"),
    _known("Lumina 2", "layers.0.adaLN_modulation.1.weight"),
    _known("Krea 2", "txtfusion.projector.weight", "text_fusion.projector.weight"),
    _known("Qwen-Image 2.1", "txt_in.text_norm.weight"),
    _known("Qwen-Image", "transformer_blocks.0.txt_mod.1.weight"),
    _known(
        "Stable Diffusion 3",
        "joint_blocks.0.context_block.attn.qkv.weight",
        "transformer_blocks.0.attn.add_q_proj.weight",
    ),
    _known("Stable Diffusion", "input_blocks.0.0.weight", "conv_in.weight"),
)

_FIRST = "layers.0.self_attn"
_ROOTS = ("model.", "model.language_model.", "")
_NORM = "layers.0.post_attention_layernorm.weight"
_TEXTS = (
    _known("SAM 3.1's text", "detector.backbone.language_backbone.encoder.token_embedding.weight"),
    _known(
        "CLIP",
        "text_model.embeddings.token_embedding.weight",
        "embeddings.token_embedding.weight",
        "token_embedding.weight",
    ),
    _lacking("Jina CLIP 2", "encoder.layers.0.mixer.Wqkv.weight"),
    FileKind("ByT5", ((("encoder.block.0.layer.0.SelfAttention.k.weight", 384),),)),
    _known("T5, UMT5 and Pile-T5", "encoder.block.0.layer.1.DenseReluDense.wi_1.weight"),
    _lacking("T5 1.0, of Cosmos and of audio", "encoder.block.0.layer.1.DenseReluDense.wi.weight"),
    _known("T5Gemma", "encoder.layers.0.pre_self_attn_layernorm.weight"),
    _known("Gemma 4", "layers.0.layer_scalar"),
    FileKind("Gemma 3", (("layers.0.post_feedforward_layernorm.weight", f"{_FIRST}.q_norm.weight"),)),
    _known("Gemma 2", "layers.0.post_feedforward_layernorm.weight"),
    _lacking("GPT-OSS", f"{_FIRST}.sinks"),
    _known("Qwen3.5", "layers.0.linear_attn.A_log"),
    _known("Qwen2.5-VL", f"{_FIRST}.k_proj.bias"),
    _known("MiniMax Music 3's language model", "audio_decoder.projection.weight"),
    _known("YuE 2's language model", "yue2_tokenizer_json"),
    FileKind("ACE-Step 1.5's language model", ((("embed_tokens.weight", 217204),),)),
    _known("Qwen3", f"{_FIRST}.q_norm.weight"),
    FileKind("Ministral 3", (((_NORM, 3072),),)),
    _known("Mistral 3 and Llama 3.1", _NORM),
    _known(
        "LTX-2's projection",
        "text_embedding_projection.aggregate_embed.weight",
        "text_embedding_projection.video_aggregate_embed.weight",
    ),
)

_SOUNDS = (
    _known("LTX-2's sounds", "vocoder.resblocks.0.convs1.0.weight", "vocoder.vocoder.resblocks.0.convs1.0.weight"),
    _known("MiniMax H3's sounds", "pre_block.attn.zero_k_bias"),
    _known("Stable Audio 3's sounds", "decoder.layers.3.transformers.0.pre_norm.alpha"),
    _known("MiniMax Music 3's sounds", "dec_in_proj.weight"),
    _known("ACE-Step 1.5's, YuE 2's and Stable Audio Open's sounds", "decoder.layers.1.layers.0.beta"),
)

_NESTED = "decoder.upsamples.0.upsamples.0.residual.2.weight"
_VAES = (
    _known("SeedVR2", "decoder.up_blocks.2.upsamplers.0.upscale_conv.weight"),
    FileKind("Wan 2.2", ((_NESTED, ("conv2.weight", 48)),)),
    _known("Qwen-Image 2.1", _NESTED),
    _known("Wan 2.1 and Qwen-Image", "decoder.middle.0.residual.0.gamma"),
    _known("LTX-2", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight", "decoder.conv_in_x_t.weight"),
    _known("MiniMax H3", "decoder.transformer_blocks.0.scale1"),
    *_SOUNDS,
    _known("HunyuanVideo 1.5", "decoder.up.0.upsample.conv.conv.weight"),
    _known("Mage-Flow", "student.dconv_encoder.proj_out.weight"),
    _known("HunyuanVideo", "decoder.mid.block_1.conv1.conv.weight"),
    _lacking("CogVideoX", "decoder.conv_in.conv.weight"),
    _lacking("ACE-Step", "vocoder.backbone.channel_layers.0.0.bias"),
    _known("Stable Video Diffusion", "decoder.mid.block_1.mix_factor"),
    _known("Stable Diffusion, Flux.1 and Flux.2", "decoder.conv_in.weight"),
    _known("pixels", "pixel_space_vae"),
    _known("tiny ones of videos", "decoder.22.bias"),
)

_PATCHES = (
    _known("DiffSynth's of Qwen-Image", "controlnet_blocks.0.y_rms.weight"),
    _known("Fun's of Z-Image", "control_all_x_embedder.2-1.weight"),
    _known("Fun's of MiniMax H3", "control_blocks.0.attn.qkv_proj.weight"),
    _known("Anima's LLLite", "lllite_conditioning1.conv1.weight"),
    _known("GLIGEN", "position_net.null_positive_feature"),
    _known("USO's of Flux.1", "feature_embedder.mid_layer_norm.bias"),
    _lacking("Uni3C's of Wan", "controlnet_patch_embedding.weight"),
    _lacking("MultiTalk's of Wan", "audio_proj.proj1.weight"),
    _lacking("SUPIR", "control_model.input_hint_block.0.weight", "model.control_model.input_hint_block.0.weight"),
)

_CONTROLS = (
    _lacking("Hunyuan-DiT", "after_proj_list.18.bias"),
    _known(
        "Stable Diffusion, Flux.1, Stable Diffusion 3 or Qwen-Image",
        "controlnet_blocks.0.weight",
        "controlnet_blocks.0.linear.weight",
        "control_blocks.0.after_proj.weight",
        "zero_convs.0.0.weight",
        "control_model.zero_convs.0.0.weight",
        "controlnet_cond_embedding.conv_in.weight",
        "lora_controlnet",
    ),
)

_SEEING = (
    _known(
        "CLIP or SigLIP",
        "transformer.resblocks.0.attn.in_proj_weight",
        "vision_model.embeddings.patch_embedding.weight",
    ),
    _lacking("DINOv2", "encoder.layer.0.layer_scale2.lambda1"),
    _lacking("DINOv3", "layer.9.attention.o_proj.bias", "layer.23.attention.o_proj.bias"),
)
_LATENT_UPSCALERS = (
    _known("LTX-2", "post_upsample_res_blocks.0.conv2.bias"),
    _lacking("HunyuanVideo 1.5", "blocks.0.block.0.conv.weight", "up.0.block.0.conv1.conv.weight"),
)
_DEPTHS = (_known("Depth Anything 3", "backbone.embeddings.patch_embeddings.projection.weight"),)
_GEOMETRIES = (
    _lacking("MoGe 3", "refiner.encoder_fuse.weight"),
    _known("MoGe", "encoder.output_projections.0.weight", "head.upsample_blocks.0.0.0.weight"),
)
_BACKGROUNDS = (_known("BiRefNet", "bb.layers.1.blocks.0.attn.relative_position_bias_table"),)
_FRAME_INTERPOLATORS = (
    _known("FILM", "extract.extract_sublevels.convs.0.0.conv.weight"),
    _known("RIFE", "encode.cnn3.weight"),
)
_STYLES = (_known("Flux.1 Redux", "redux_down.weight"), _known("T2I-Adapters", "style_embedding"))

ROLES: Mapping[str, Role] = {
    "backbone": Role("diffusion network", BACKBONE_PREFIXES, _BACKBONES),
    "clip": Role("text encoder", _ROOTS, _TEXTS),
    "vae": Role("VAE", VAE_PREFIXES, _VAES),
    "audio_vae": Role("audio VAE", ("",), _SOUNDS),
    "controlnet": Role("ControlNet", ("",), _CONTROLS, open=True),
    "model_patch": Role("model patch", ("",), _PATCHES),
    "clip_vision": Role("image encoder", VISION_PREFIXES, _SEEING),
    "latent_upscaler": Role("latent upscaler", ("",), _LATENT_UPSCALERS),
    "style_model": Role("style model", ("",), _STYLES),
    "depth_estimator": Role("depth estimator", ("",), _DEPTHS),
    "geometry_estimator": Role("geometry estimator", ("",), _GEOMETRIES),
    "background_remover": Role("background remover", ("",), _BACKGROUNDS),
    "frame_interpolator": Role(
        "frame interpolator", ("", "module.", "flownet.", "module.flownet."), _FRAME_INTERPOLATORS
    ),
}
"""What loaders need, by the part of a recipe."""

_LORA = ("lora_down.", "lora_up.", "lora_A.", "lora_B.")


def refusal(part: str, shapes: Shapes) -> str | None:
    """Return the file's kind if it cannot be used as a part, and the kinds that can; None if it can."""
    role = ROLES[part]
    kind = role.kind(shapes)
    if role.open if kind is None else kind.known:
        return None
    what = f"holds no {role.wanted} that is known{_shown(shapes)}"
    if kind is not None:
        what = f"holds {role.one} of {kind.title}, which is not supported"
    return f"{what}; supported are {', '.join(sorted(kind.title for kind in role.kinds if kind.known))}"


def looks_like(shapes: Shapes) -> str:
    """Return the kind of a file, in any role; "" if unknown."""
    if any(part in name for name in shapes for part in _LORA):
        return "a LoRA"
    for part in (
        "controlnet",
        "model_patch",
        "backbone",
        "vae",
        "latent_upscaler",
        "style_model",
        "depth_estimator",
        "geometry_estimator",
        "background_remover",
        "frame_interpolator",
        "clip_vision",
        "clip",
    ):
        if (kind := ROLES[part].kind(shapes)) is not None:
            return f"{ROLES[part].one} of {kind.title}"
    return ""


def _shown(shapes: Shapes) -> str:
    looks = looks_like(shapes)
    return f" (it looks like {looks})" if looks else ""
