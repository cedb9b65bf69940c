"""MODEL, CLIP, VAE and the rest in a pack's hands: what it does with them is what the server's own nodes do."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.execution.node_failure import NodeFailedError
from serve_app.packs.loading import Packs, load_packs
from serve_app.recipe.training import Discrete
from serve_app.sampling.denoiser import trained
from tests.parity.stack import Stack
from tests.unit.models.sample import write_sample_checkpoint

PACK = """
    import torch
    import comfy.sample, comfy.samplers, comfy.sd, comfy.utils, comfy.model_sampling, comfy.latent_formats
    import comfy.k_diffusion.sampling as k
    import comfy.sd1_clip, comfy.sdxl_clip
    import folder_paths, latent_preview, nodes
    from comfy.ldm.modules.attention import optimized_attention
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise

    NODE_CLASS_MAPPINGS = {}

    def node(returns="MODEL", **kinds):
        def made(function):
            class Made:
                RETURN_TYPES = tuple(returns.split())
                FUNCTION = "go"
                @classmethod
                def INPUT_TYPES(cls):
                    return {"required": {name: (kind,) for name, kind in kinds.items()}}
                def go(self, **given):
                    return function(**given)
            NODE_CLASS_MAPPINGS[function.__name__] = Made
            return function
        return made

    SAMPLING = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}

    # Functions of a model ---------------------------------------------------------------------------------------------

    @node(model="MODEL")
    def PlainGuidance(model):
        m = model.clone()
        def guide(args):
            assert args["input"].shape == args["cond"].shape and args["sigma"].ndim == 1
            assert args["model"].model_sampling.sigma_max > 14
            levels = args["model_options"]["transformer_options"]["sample_sigmas"]
            assert levels.shape == (4,) and args["sigma"][0] in levels
            return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]
        m.set_model_sampler_cfg_function(guide)
        return (m,)

    @node(model="MODEL")
    def HalfOfGuidance(model):
        m = model.clone()
        m.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0] / 2, args["conds_out"][1] / 2])
        m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 2)
        return (m,)

    @node(model="MODEL")
    def AskedAgain(model):
        m = model.clone()
        def after(args):
            [cond, uncond] = comfy.samplers.calc_cond_batch(
                args["model"], [args["cond"], args["uncond"]], args["input"], args["sigma"], args["model_options"])
            assert torch.allclose(cond, args["cond_denoised"], atol=1e-4)
            return uncond + (cond - uncond) * args["cond_scale"]
        m.set_model_sampler_post_cfg_function(after)
        return (m,)

    def plain_attention(q, k, v, options):
        assert options["sample_sigmas"].shape == (4,) and options["sigmas"][0] in options["sample_sigmas"]
        return optimized_attention(q, k, v, options["n_heads"])

    @node(model="MODEL")
    def PlainAttention(model):
        m = model.clone()
        to = m.model_options["transformer_options"].copy()
        to["patches_replace"] = {"attn2": {("middle", 0): plain_attention, ("input", 3): plain_attention}}
        m.model_options["transformer_options"] = to
        return (m,)

    @node(model="MODEL")
    def NoAttention(model):
        m = model.clone()
        for number in range(12):
            m.set_model_attn1_replace(lambda q, k, v, options: v * 0, "input", number)
            m.set_model_attn1_replace(lambda q, k, v, options: v * 0, "output", number)
        return (m,)

    @node(model="MODEL")
    def OutputBlocks(model):
        m = model.clone()
        m.set_model_output_block_patch(lambda h, hsp, options: (h * 1.3, hsp))
        return (m,)

    @node(model="MODEL")
    def Wrapped(model):
        m = model.clone()
        m.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
        return (m,)

    @node(model="MODEL")
    def DoubleBlock(model):
        m = model.clone()
        m.set_model_patch(lambda *a: a, "double_block")
        return (m,)

    @node(model="MODEL")
    def WeightPatch(model):
        m = model.clone()
        m.add_patches({"diffusion_model.out.2.weight": (torch.ones(1),)}, 1.0)
        return (m,)

    @node(model="MODEL")
    def VPrediction(model):
        class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
            pass
        m = model.clone()
        m.add_object_patch("model_sampling", Sampling(m.model.model_config))
        assert m.get_model_object("model_sampling").percent_to_sigma(1.0) == 0.0
        return (m,)

    @node(model="MODEL")
    def InPlace(model):
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0)
        return (model.clone(),)

    @node("STRING", model="MODEL")
    def Looked(model):
        inner = model.model
        config, format = inner.model_config.unet_config, inner.latent_format
        sampling = model.get_model_object("model_sampling")
        assert not hasattr(model, "nothing_of_this_name")
        own = comfy.latent_formats.SD15()
        assert isinstance(format, comfy.latent_formats.SD15) and isinstance(own, comfy.latent_formats.LatentFormat)
        latents = torch.ones(1, 4, 2, 2)
        assert (own.process_in(latents) == format.process_in(latents)).all()
        assert comfy.latent_formats.Wan21().process_out(torch.zeros(1, 16, 1, 2, 2)).std() > 0
        assert comfy.latent_formats.Wan22().process_out(torch.zeros(1, 48, 1, 2, 2)).std() > 0
        return (f"{config['context_dim']} {format.scale_factor} {float(sampling.percent_to_sigma(0.5)):.3f} "
                f"{sampling.percent_to_sigma(0)} {inner.model_type.name}",)

    # Texts and images -------------------------------------------------------------------------------------------------

    @node("CONDITIONING", clip="CLIP", text="STRING")
    def Encoded(clip, text):
        clip = clip.clone()
        clip.clip_layer(-2)
        cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        return ([[cond, {"pooled_output": pooled}]],)

    @node("CONDITIONING", clip="CLIP", text="STRING")
    def OwnTokens(clip, text):
        tokens = clip.tokenize(text, return_word_ids=True)
        assert len(tokens["l"]) == 2 and {number for _, _, number in tokens["l"][0]} == {0, 1, 2}
        pairs = [[(token, weight) for token, weight, _ in section] for section in tokens["l"]]
        assert pairs == list(clip.tokenize(text)["l"])
        assert len(clip.tokenize("")["l"] + clip.tokenize("")["l"]) == 2
        cond = clip.encode_from_tokens({"l": pairs})
        assert isinstance(clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel)
        assert not isinstance(clip.cond_stage_model, comfy.sdxl_clip.SDXLClipModel)
        again, pooled = clip.cond_stage_model.clip_l.encode_token_weights(pairs)
        assert torch.equal(again, cond)
        return ([[cond, {"pooled_output": pooled}]],)

    @node("CONDITIONING", clip="CLIP", text="STRING")
    def Scheduled(clip, text):
        return (clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict={"mine": 1}),)

    @node("CONDITIONING", conditioning="CONDITIONING")
    def Assigned(conditioning):
        for entry in conditioning:
            entry[0] = entry[0] * 2
            entry[1]["strength"] = 0.5
        return (conditioning,)

    @node("IMAGE", vae="VAE", samples="LATENT")
    def Decoded(vae, samples):
        assert (vae.latent_channels, vae.downscale_ratio) == (4, 8)
        return (vae.decode(samples["samples"]),)

    @node("LATENT", vae="VAE", pixels="IMAGE")
    def EncodedImage(vae, pixels):
        return ({"samples": vae.encode(pixels)},)

    @node("MODEL CLIP VAE")
    def Loaded():
        path = folder_paths.get_full_path("checkpoints", "sample.safetensors")
        return comfy.sd.load_checkpoint_guess_config(path)[:3]

    @node("MODEL CLIP VAE", pipe="PIPE")
    def FromPipe(pipe):
        return pipe

    @node("PIPE", model="MODEL", clip="CLIP", vae="VAE")
    def ToPipe(model, clip, vae):
        return ((model, clip, vae),)

    # Sampling ---------------------------------------------------------------------------------------------------------

    @node("LATENT", **SAMPLING)
    def Sampled(model, positive, negative, latent):
        noise = comfy.sample.prepare_noise(latent["samples"], 5)
        x0, seen = {}, []
        preview = latent_preview.prepare_callback(model, 3, x0)
        def callback(step, denoised, x, steps):
            seen.append((step, steps))
            preview(step, denoised, x, steps)
        made = comfy.sample.sample(model, noise, 3, 4.0, "euler", "normal", positive, negative,
                                   latent["samples"], callback=callback, seed=5)
        assert seen == [(0, 3), (1, 3), (2, 3)]
        assert torch.allclose(model.model.process_latent_out(x0["x0"]), made, atol=1e-4)
        return ({"samples": made},)

    @node("LATENT", **SAMPLING)
    def CommonSampled(model, positive, negative, latent):
        return nodes.common_ksampler(model, 5, 3, 4.0, "euler", "normal", positive, negative, latent)

    @node("LATENT", **SAMPLING)
    def LibrarySampled(model, positive, negative, latent):
        return nodes.KSampler().sample(model, 5, 3, 4.0, "euler", "normal", positive, negative, latent)

    @node("LATENT", **SAMPLING)
    def Guided(model, positive, negative, latent):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(4.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
        noise = Noise_RandomNoise(5).generate_noise(latent)
        return ({"samples": guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas)},)

    @node("LATENT", **SAMPLING)
    def Repatched(model, positive, negative, latent):
        patcher = comfy.model_patcher.ModelPatcher(model.model, load_device=model.load_device)
        sampler = comfy.samplers.KSampler(patcher, 3, sampler="euler", scheduler="normal", denoise=1.0)
        noise = comfy.sample.prepare_noise(latent["samples"], 5)
        return ({"samples": sampler.sample(noise, positive, negative, 4.0, latent["samples"], seed=5)},)

    @node("SAMPLER")
    def OwnSampler():
        def steps(model, x, sigmas, extra_args=None, callback=None, disable=None, scale=0.5):
            for i in range(len(sigmas) - 1):
                denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
                if callback is not None:
                    callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
                x = x + k.to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i]) * scale
            return x
        return (comfy.samplers.KSAMPLER(steps, {"scale": 1.0}),)

    @node("SAMPLER")
    def BorrowedSampler():
        def steps(model, x, sigmas, **given):
            return k.sample_dpmpp_2m(model, x, sigmas, **given)
        return (comfy.samplers.KSAMPLER(steps),)

    @node("LATENT", **SAMPLING)
    def AddedByName(model, positive, negative, latent):
        return nodes.common_ksampler(model, 5, 3, 4.0, "walk", "spread", positive, negative, latent)

    @node("SAMPLER")
    def BrokenSampler():
        def steps(model, x, sigmas, **given):
            model(x, sigmas[:1])
            raise LookupError("a step too far")
        return (comfy.samplers.KSAMPLER(steps),)

    # Samplers and schedules by names that a pack adds ---------------------------------------------------------------

    from comfy.samplers import KSampler, SCHEDULER_HANDLERS, SCHEDULER_NAMES, SchedulerHandler, k_diffusion_sampling
    import importlib

    def walk(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
            x = x + k.to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
        return x

    KSampler.SAMPLERS.insert(KSampler.SAMPLERS.index("uni_pc_bh2") + 1, "walk")
    k_diffusion_sampling.sample_walk = walk
    importlib.reload(k_diffusion_sampling)

    def spread(n, sigma_min, sigma_max):
        return comfy.samplers.kl_optimal_scheduler(n=n, sigma_min=sigma_min, sigma_max=sigma_max)

    SCHEDULER_HANDLERS["spread"] = SchedulerHandler(spread, use_ms=False)
    SCHEDULER_NAMES.append("spread")

    @node("NOISE")
    def OwnNoise():
        class Mine:
            seed = 5
            def generate_noise(self, latent):
                return comfy.sample.prepare_noise(latent["samples"], self.seed)
        return (Mine(),)

    @node("GUIDER", model="MODEL", positive="CONDITIONING")
    def OwnGuider(model, positive):
        guider = Guider_Basic(model)
        guider.set_conds(positive)
        return (guider,)

    GUIDED = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING"}

    @node("GUIDER", **GUIDED)
    def LatelyUnguided(model, positive, negative):
        class Mine(comfy.samplers.CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):
                steps = model_options["transformer_options"]["sample_sigmas"]
                early = bool(timestep[0] > steps[2] + 1e-3)
                cond, uncond = self.conds["positive"], self.conds["negative"] if early else None
                scale = self.cfg if early else 1.0
                return comfy.samplers.sampling_function(
                    self.inner_model, x, timestep, uncond, cond, scale, model_options=model_options, seed=seed
                )
        guider = Mine(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(4.0)
        return (guider,)

    @node("GUIDER", **GUIDED)
    def Rescaled(model, positive, negative):
        class Mine(comfy.samplers.CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):
                self.cfg = 4.0
                return super().predict_noise(x, timestep, model_options, seed)
        guider = Mine(model)
        guider.set_conds(positive, negative)
        return (guider,)

    @node("GUIDER", **GUIDED)
    def ThirdBranch(model, positive, negative):
        class Mine(comfy.samplers.CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):
                branches = [self.conds["third"], None]
                seen, nothing = comfy.samplers.calc_cond_batch(self.inner_model, branches, x, timestep, model_options)
                assert not nothing.any()
                return seen
        guider = Mine(model)
        guider.inner_set_conds({"positive": negative, "negative": negative, "third": positive})
        return (guider,)

    @node("GUIDER", **GUIDED)
    def SamplesItself(model, positive, negative):
        class Mine(comfy.samplers.CFGGuider):
            def sample(self, *given, **options):
                return super().sample(*given, **options)
        guider = Mine(model)
        guider.set_conds(positive, negative)
        return (guider,)
"""

CHECKPOINT = {"checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": "sample.safetensors"})}
TEXTS = {
    "positive": ("CLIPTextEncode", {"text": "a hill", "clip": ["checkpoint", 1]}),
    "negative": ("CLIPTextEncode", {"text": "fog", "clip": ["checkpoint", 1]}),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
}
NODES: dict[str, Any] = {**CHECKPOINT, **TEXTS}
LINKS = {"positive": ["positive", 0], "negative": ["negative", 0]}
SETTINGS = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Packs, Path]]:
    root = tmp_path_factory.mktemp("packs")
    modules, finders = dict(sys.modules), list(sys.meta_path)
    (root / "packs").mkdir()
    (root / "packs" / "mine.py").write_text(dedent(PACK))
    write_sample_checkpoint(root / "models" / "checkpoints" / "sample.safetensors")
    found = load_packs(root / "packs", root / "models", dict.fromkeys(("input", "output", "temp"), root))  # type: ignore[arg-type]
    assert found.failures == {}
    yield found, root
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)
    sys.meta_path[:] = finders


@pytest.fixture
async def stack(packs: tuple[Packs, Path]) -> AsyncIterator[Stack]:
    found, root = packs
    stack = Stack(root / "models", root / "files", found.classes)
    yield stack
    stack.engine.close()


def sampled(model: Any) -> dict[str, Any]:
    return {"k": ("KSampler", {"model": model, "latent_image": ["latent", 0], **LINKS, **SETTINGS})}


async def samples(stack: Stack, target: str = "k", **nodes: Any) -> torch.Tensor:
    made: torch.Tensor = (await stack.run(target, **{**NODES, **nodes}))["samples"]
    return made


def custom(sampler: Any, **more: Any) -> dict[str, Any]:
    """A SamplerCustomAdvanced of three steps, of one conditioning unless `more` has a guider."""
    inputs = {
        "noise": ["noise", 0],
        "guider": ["guider", 0],
        "sampler": ["sampler", 0],
        "sigmas": ["sigmas", 0],
        "latent_image": ["latent", 0],
    }
    sigmas = {"model": ["checkpoint", 0], "scheduler": "normal", "steps": 3, "denoise": 1.0}
    return {
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "guider": ("BasicGuider", {"model": ["checkpoint", 0], "conditioning": ["positive", 0]}),
        "sampler": sampler,
        "sigmas": ("BasicScheduler", sigmas),
        "k": ("SamplerCustomAdvanced", inputs),
        **more,
    }


@pytest.mark.parametrize("patch", ["PlainGuidance", "HalfOfGuidance", "AskedAgain", "PlainAttention"])
async def test_functions_that_do_what_is_done_anyway_change_nothing(stack: Stack, patch: str) -> None:
    patched = await samples(stack, patch=(patch, {"model": ["checkpoint", 0]}), **sampled(["patch", 0]))
    torch.testing.assert_close(patched, await samples(stack, **sampled(["checkpoint", 0])), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("patch", ["NoAttention", "OutputBlocks", "VPrediction", "InPlace"])
async def test_other_functions_change_what_is_sampled_and_not_the_model_they_began_with(
    stack: Stack, patch: str
) -> None:
    patched = await samples(stack, patch=(patch, {"model": ["checkpoint", 0]}), **sampled(["patch", 0]))
    plain = await samples(stack, **sampled(["checkpoint", 0]))
    assert not torch.allclose(patched, plain, atol=1e-2)
    assert torch.equal(plain, await samples(stack, **sampled(["checkpoint", 0])))


async def test_described_training_is_that_of_the_servers_own_node(stack: Stack) -> None:
    own = ("ModelSamplingDiscrete", {"model": ["checkpoint", 0], "sampling": "v_prediction", "zsnr": False})
    theirs = await samples(stack, patch=("VPrediction", {"model": ["checkpoint", 0]}), **sampled(["patch", 0]))
    assert torch.equal(theirs, await samples(stack, patch=own, **sampled(["patch", 0])))


async def test_a_sampler_and_a_schedule_that_a_pack_adds_run_by_their_names(stack: Stack) -> None:
    inputs = {"model": ["checkpoint", 0], "latent": ["latent", 0], **LINKS}
    theirs = await samples(stack, k=("AddedByName", inputs))
    own = {"model": ["checkpoint", 0], "latent_image": ["latent", 0], **LINKS, **SETTINGS, "scheduler": "kl_optimal"}
    torch.testing.assert_close(theirs, await samples(stack, k=("KSampler", own)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["simple", "ddim", "normal", "beta"])
def test_a_schedule_as_a_function_is_that_of_its_name(packs: tuple[Packs, Path], name: str) -> None:
    samplers = sys.modules["comfy.samplers"]
    levels = trained(Discrete("eps"))[0]
    by_name = samplers.calculate_sigmas(levels, {"ddim": "ddim_uniform"}.get(name, name), 7)
    assert torch.equal(getattr(samplers, f"{name}_scheduler")(levels, 7), by_name)


def test_an_unknown_schedule_is_refused_with_those_that_there_are(packs: tuple[Packs, Path]) -> None:
    with pytest.raises(NodeError, match=r"'karas' is unknown; there are simple, .*spread"):
        sys.modules["comfy.samplers"].calculate_sigmas(None, "karas", 7)


async def test_a_pack_looks_into_a_model(stack: Stack) -> None:
    looked = await stack.run("look", look=("Looked", {"model": ["checkpoint", 0]}), **NODES)
    assert looked == "64 0.18215 1.616 999999999.9 EPS"


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ("Wrapped", "model_function_wrapper"),
        ("DoubleBlock", "sets double_block on this model; Stable Diffusion"),
        ("WeightPatch", "ModelPatcher.add_patches"),
    ],
)
async def test_what_no_patch_of_a_recipe_can_be_is_refused_by_its_name(stack: Stack, patch: str, reason: str) -> None:
    with pytest.raises(NodeFailedError, match=reason):
        await samples(stack, patch=(patch, {"model": ["checkpoint", 0]}), **sampled(["patch", 0]))


async def test_texts_are_encoded_as_by_the_servers_own_nodes(stack: Stack) -> None:
    clip = {"clip": ["checkpoint", 1], "text": "a hill"}
    skipped = ("CLIPSetLastLayer", {"clip": ["checkpoint", 1], "stop_at_clip_layer": -2})
    own = await stack.run("t", skip=skipped, t=("CLIPTextEncode", {**clip, "clip": ["skip", 0]}), **NODES)
    theirs = await stack.run("t", t=("Encoded", clip), **NODES)
    assert torch.equal(own[0][0], theirs[0][0])
    assert torch.equal(own[0][1]["pooled_output"], theirs[0][1]["pooled_output"])
    [[cond, options]] = await stack.run("t", t=("Scheduled", clip), **NODES)
    assert torch.equal(cond, (await stack.run("positive", **NODES))[0][0])
    assert options["mine"] == 1


async def test_a_pack_encodes_tokens_of_its_own(stack: Stack) -> None:
    clip = {"clip": ["checkpoint", 1], "text": "(a hill:1.3) " + "word " * 90}
    [[expected, options]] = await stack.run("t", t=("CLIPTextEncode", clip), **NODES)
    [[cond, own]] = await stack.run("t", t=("OwnTokens", clip), **NODES)
    assert torch.equal(cond, expected)
    assert torch.equal(own["pooled_output"], options["pooled_output"])


async def test_an_assigned_conditioning_is_the_packs_own(stack: Stack) -> None:
    before = (await stack.run("positive", **NODES))[0][0].clone()
    [[cond, options]] = await stack.run("a", a=("Assigned", {"conditioning": ["positive", 0]}), **NODES)
    assert torch.equal(cond, before * 2)
    assert options["strength"] == 0.5
    [(kept, untouched)] = await stack.run("positive", **NODES)
    assert torch.equal(kept, before)
    assert "strength" not in untouched


async def test_images_go_through_a_vae_as_by_the_servers_own_nodes(stack: Stack) -> None:
    links = {"samples": ["latent", 0], "vae": ["checkpoint", 2]}
    own = await stack.run("d", d=("VAEDecode", links), **NODES)
    assert torch.equal(own, await stack.run("d", d=("Decoded", links), **NODES))
    image = {"image": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 255})}
    pixels = {"pixels": ["image", 0], "vae": ["checkpoint", 2]}
    theirs = await samples(stack, "e", e=("EncodedImage", pixels), **image)
    assert torch.equal(theirs, await samples(stack, "e", e=("VAEEncode", pixels), **image))


async def test_a_checkpoint_is_loaded_by_its_path_and_goes_through_a_pipe(stack: Stack) -> None:
    loaded = ("Loaded", {})
    pipe = ("ToPipe", {"model": ["loaded", 0], "clip": ["loaded", 1], "vae": ["loaded", 2]})
    theirs = await samples(
        stack, loaded=loaded, pipe=pipe, out=("FromPipe", {"pipe": ["pipe", 0]}), **sampled(["out", 0])
    )
    assert torch.equal(theirs, await samples(stack, **sampled(["checkpoint", 0])))


@pytest.mark.parametrize("way", ["Sampled", "CommonSampled", "LibrarySampled", "Guided", "Repatched"])
async def test_every_way_to_sample_gives_what_ksampler_gives(stack: Stack, way: str) -> None:
    links = {"model": ["checkpoint", 0], "latent": ["latent", 0], **LINKS}
    theirs = await samples(stack, k=(way, links))
    torch.testing.assert_close(theirs, await samples(stack, **sampled(["checkpoint", 0])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sampler", "same"), [("OwnSampler", "euler"), ("BorrowedSampler", "dpmpp_2m")])
async def test_a_packs_sampler_shares_forwards_with_the_servers(stack: Stack, sampler: str, same: str) -> None:
    own = await samples(stack, **custom(("KSamplerSelect", {"sampler_name": same})))
    theirs = await samples(stack, **custom((sampler, {})))
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4)


async def test_a_packs_sampler_that_fails_ends_its_job_alone(stack: Stack) -> None:
    with pytest.raises(NodeFailedError, match="a step too far"):
        await samples(stack, **custom(("BrokenSampler", {})))
    await samples(stack, **sampled(["checkpoint", 0]))


async def test_a_packs_noise_and_guider_go_into_the_servers_own_node(stack: Stack) -> None:
    euler = ("KSamplerSelect", {"sampler_name": "euler"})
    guider = ("OwnGuider", {"model": ["checkpoint", 0], "positive": ["positive", 0]})
    theirs = await samples(stack, **custom(euler, noise=("OwnNoise", {}), guider=guider))
    assert torch.equal(theirs, await samples(stack, **custom(euler)))


EULER = ("KSamplerSelect", {"sampler_name": "euler"})


def guided(guider: str) -> dict[str, Any]:
    return custom(EULER, guider=(guider, {"model": ["checkpoint", 0], **LINKS}))


async def test_a_guider_may_combine_the_branches_itself(stack: Stack) -> None:
    theirs = await samples(stack, **guided("Rescaled"))
    torch.testing.assert_close(theirs, await samples(stack, **sampled(["checkpoint", 0])), rtol=1e-4, atol=1e-4)


async def test_a_guider_may_scale_by_the_step(stack: Stack) -> None:
    theirs = await samples(stack, **guided("LatelyUnguided"))
    window = {"noise_seed": 5, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "model": ["checkpoint", 0]}
    early = {"add_noise": "enable", "cfg": 4.0, "start_at_step": 0, "end_at_step": 2, "latent_image": ["latent", 0]}
    late = {"add_noise": "disable", "cfg": 1.0, "start_at_step": 2, "end_at_step": 3, "latent_image": ["early", 0]}
    own: dict[str, Any] = {
        "early": ("KSamplerAdvanced", {**window, **early, **LINKS, "return_with_leftover_noise": "enable"}),
        "k": ("KSamplerAdvanced", {**window, **late, **LINKS, "return_with_leftover_noise": "disable"}),
    }
    torch.testing.assert_close(theirs, await samples(stack, **own), rtol=1e-4, atol=1e-4)


async def test_a_guider_may_ask_a_branch_of_its_own(stack: Stack) -> None:
    theirs = await samples(stack, **guided("ThirdBranch"))
    torch.testing.assert_close(theirs, await samples(stack, **custom(EULER)), rtol=1e-4, atol=1e-4)


async def test_a_guider_that_samples_itself_is_refused(stack: Stack) -> None:
    with pytest.raises(NodeFailedError, match=r"CFGGuider\.sample of a subclass"):
        await samples(stack, **guided("SamplesItself"))


def test_classes_that_hold_models_run_where_models_are(packs: tuple[Packs, Path]) -> None:
    specs = packs[0].specs
    assert all(specs[name].models for name in ("Sampled", "Encoded", "PlainGuidance", "ToPipe"))
    assert not specs["OwnNoise"].models
    assert all(spec.lacks == () for spec in specs.values())
