"""Make golden/yue2.npz and golden/yue2_keys.json: what ComfyUI's layers of Qwen3 and of sounds answer as YuE 2.

ComfyUI 0.33.0 does not have YuE 2: what stands around the layers is written here by the published description. Run it
in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/yue2_figures.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.conds  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models_base  # noqa: E402
from comfy.ldm.audio.autoencoder import AudioOobleckVAE  # noqa: E402
from comfy.ldm.modules.attention import optimized_attention_for_device  # noqa: E402
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding  # noqa: E402
from comfy.text_encoders.llama import (  # noqa: E402
    Llama2_,
    Qwen3_8BConfig,
    RMSNorm,
    TransformerBlock,
    precompute_freqs_cis,
)

from tests.parity import yue2_cases as cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")
OPERATIONS = comfy.ops.disable_weight_init
INSTRUCTIONS = {
    "off": "Generate music with codec tokens from the given conditions.",
    "melody": "Generate a melody-only ABC transcription without chord symbols, then generate music with codec tokens "
    "from the given conditions.",
    "full": "Generate a chord-annotated ABC transcription, then generate music with codec tokens from the given "
    "conditions.",
}


def config() -> Any:
    made = Qwen3_8BConfig(**cases.SIZES, merged_qkv=True, merged_mlp=True)
    made.head_dim = cases.HEAD
    return made


class Network(nn.Module):
    """ComfyUI's layers between what makes tokens of frames and frames of tokens."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        sizes, width = config(), cases.SIZES["hidden_size"]
        self.dtype = torch.float32
        self.model: Any = nn.Module()
        self.model.layers = nn.ModuleList(
            TransformerBlock(sizes, i, CPU, torch.float32, OPERATIONS) for i in range(sizes.num_hidden_layers)
        )
        self.model.norm = RMSNorm(width, 1e-6, device=CPU, dtype=torch.float32)
        self.vae2llm, self.llm2vae = nn.Linear(64, width), nn.Linear(width, 64)
        self.time_embedder: Any = nn.Module()
        self.time_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.latent_pos_embed: Any = nn.Module()
        self.latent_pos_embed.register_buffer("pe", torch.empty(cases.PLACES, width))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, yue2_chunks: Any, **_: Any) -> Tensor:
        time = self.time_embedder.mlp(timestep_embedding(timesteps, 256))[:, None]
        made = torch.zeros_like(x)
        sizes = (cases.SIZES["num_hidden_layers"], 2, cases.SIZES["num_key_value_heads"], cases.HEAD)
        before = context.unflatten(2, sizes)
        for start, end, first, last in yue2_chunks:
            frames = nn.functional.pad(x[..., start:end].transpose(1, 2), (0, 0, 1, 1))
            state = self.vae2llm(frames) + time + self.latent_pos_embed.pe[None, : frames.shape[1]]
            places = torch.arange(last - first, last - first + frames.shape[1])[None]
            rope = precompute_freqs_cis(cases.HEAD, places, 1e6, device=CPU)
            for number, layer in enumerate(self.model.layers):
                kept = before[:, first:last, number].permute(2, 0, 3, 1, 4)
                attention = optimized_attention_for_device(CPU)
                state, _ = layer(state, None, rope, attention, (kept[0], kept[1], last - first))
            made[..., start:end] = self.llm2vae(self.model.norm(state))[:, 1:-1].transpose(1, 2)
        return made


class Sounds(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
    latent_channels, latent_dimensions = 64, 1


class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
    sampling_settings = {"multiplier": 1.0}  # noqa: RUF012
    latent_format = Sounds


class Base(comfy.model_base.BaseModel):  # type: ignore[misc]
    def extra_conds(self, **given: Any) -> dict[str, Any]:
        return {
            "c_crossattn": comfy.conds.CONDRegular(given["cross_attn"]),
            "yue2_chunks": comfy.conds.CONDConstant(given["yue2_chunks"]),
        }


def loaded(module: Any, name: str, keys: dict[str, Any]) -> Any:
    """Return a module with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: list(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict(cases.weights(keys[name]))
    return module.eval()


def next_token(logits: Tensor, history: list[int], phase: str, asked: dict[str, Any], draws: Any) -> int:
    """Return a token as the published sampler draws it."""
    scores, window, surest = logits.clone(), (100 if phase == "score" else 50), (3 if phase == "off" else 1)
    allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
    allowed[: 151643 if phase == "score" else 0] = True
    allowed[151853 : 151853 if phase == "score" else 151853 + 32768] = True
    scores[~allowed] = -torch.inf
    for token in set(history[-window:]):
        alpha = asked["repetition_penalty"] ** history[-window:].count(token)
        scores[token] = scores[token] * alpha if scores[token] < 0 else scores[token] / alpha
    scores = scores / asked["temperature"]
    scores[scores < scores.topk(asked["top_k"]).values[-1]] = -torch.inf
    values, order = scores.sort(descending=True)
    shares = values.softmax(-1)
    removed = shares.cumsum(-1) - shares > asked["top_p"]
    removed[:surest] = False
    values = values.masked_fill(removed, -torch.inf)[: asked["top_k"]]
    return int(order[torch.multinomial(values.softmax(-1)[None], 1, generator=draws)])


def written(model: Any, prompts: list[list[int]], phase: str, count: int, asked: dict[str, Any]) -> list[int]:
    """Return generated tokens; the end token may not come before the least number. All are read anew for each."""
    draws, tokens = torch.Generator().manual_seed(cases.SEED), []
    while len(tokens) < count:
        logits = [model.lm_head(model(torch.tensor([prompt + tokens]))[0][:, -1])[0] for prompt in prompts]
        guided = logits[0] if len(logits) == 1 else logits[1] + 1.01 * (logits[0] - logits[1])
        tokens.append(next_token(guided, tokens, phase, asked, draws))
    return tokens


def kept(model: Any, tokens: list[int]) -> Tensor:
    caches = model.init_kv_cache(1, len(tokens), CPU, torch.float32)
    caches = model(torch.tensor([tokens]), past_key_values=caches)[2]
    both = torch.stack([torch.stack(cache[:2]) for cache in caches])
    return both.permute(2, 4, 0, 1, 3, 5).flatten(2)


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    base = Base(Config({"disable_unet_model_creation": True}), comfy.model_base.ModelType.FLOW, device=CPU)
    base.diffusion_model = loaded(Network(), "net", keys)
    context, frames = noise("kept", (1, cases.CHUNKS[-1][3], cases.KEPT)), cases.CHUNKS[-1][1]
    x = noise("x", (2, 64, frames))
    figures["net"] = base.diffusion_model(
        x, torch.tensor(cases.LEVELS), context.expand(2, -1, -1), cases.CHUNKS
    ).numpy()
    patcher = comfy.model_patcher.ModelPatcher(base, CPU, CPU)
    for figure in cases.RUNS:
        sampler, schedule, denoise = figure.split("|")
        latent = torch.zeros(1, 64, frames) if float(denoise) == 1 else noise("sound", (1, 64, frames))
        conds = [[[context * by, {"yue2_chunks": cases.CHUNKS}]] for by in (1.0, 0.0)]
        asked = (patcher, comfy.sample.prepare_noise(latent, cases.SEED), cases.STEPS, cases.CFG, sampler, schedule)
        figures[figure] = comfy.sample.sample(*asked, *conds, latent, denoise=float(denoise), seed=cases.SEED).numpy()

    vae = AudioOobleckVAE(channels=cases.WIDTH, c_mults=list(cases.MULTIPLES), strides=list(cases.STRIDES))
    vae = loaded(vae, "vae", keys)
    for layer in vae.decoder.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            layer.output_padding = (layer.stride[0] % 2,)
    figures["decoded"] = thinned(vae.decode(noise("latents", (1, 64, 5))).numpy())
    sound = noise("sound of some length", (1, 2, 3 * 1920)).sigmoid() - 0.5
    figures["encoded"] = vae.encoder(sound).chunk(2, dim=1)[0].numpy()

    model = loaded(Llama2_(config(), CPU, torch.float32, OPERATIONS), "text", keys)
    read = Tokenizer.from_str(cases.tokenizer_json()).encode
    for mode, score in cases.MODES.items():
        text = f"{INSTRUCTIONS[mode]}\n[Tags]\n{cases.STYLE}\n[Lyrics]\n{cases.LYRICS}\n"
        said, unsaid = ([151643, *read(each).ids] for each in (text, INSTRUCTIONS[mode]))
        if score:
            tokens = written(model, [[*said, 151847]], "score", cases.SCORE_TOKENS, cases.SCORE_SAMPLING)
            figures[f"{mode} score"] = np.array(tokens)
        prompt = [*said, 151847, *read(score).ids, 151848, 151851]
        prompts = [prompt] if score else [prompt, [*unsaid, 151851]]
        tokens = written(model, prompts, mode, cases.SONG_FRAMES, cases.SAMPLING)
        figures[f"{mode} music"] = np.array(tokens)
        figures[f"{mode} kept"] = thinned(kept(model, [*prompt, *tokens, 151852]).numpy())
    (GOLDEN / "yue2_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "yue2.npz", **figures)


main()
