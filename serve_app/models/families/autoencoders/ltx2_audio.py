"""The autoencoder of LTX-2's sounds, through mel spectrograms, with the vocoder that makes sounds of these.

Reads the authors' file, whose metadata has the sizes; run by the layers of diffusers' AutoencoderKLLTX2Audio and
LTX2Vocoder, in single precision. LTX-2.3's vocoder makes 16 kHz and then widens the band. Source: HaCohen et al. 2026,
arXiv:2601.03233.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, MelSTFT, UpSample1d
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.audio_utils import mel_filter_bank

from serve_app.media.resampling import resample
from serve_app.models.families.family import AudioVaeFamily, Located
from serve_app.models.families.shared.buffers import buffers_as_weights
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors

MARKS = ("vocoder.resblocks.0.convs1.0.weight", "vocoder.vocoder.resblocks.0.convs1.0.weight")
AUTOENCODER, VOCODER = "audio_vae.", "vocoder."
"""The prefixes of the file's two networks."""
DOWN = 4
"""Spectra, and groups of their frequencies, that a latent covers."""
LEAST = 1e-5
"""Spectra are at least this loud before their logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Ltx2AudioVae(AudioVaeFamily):
    """An autoencoder of sounds. sizes, vocoder: the metadata's, as JSON. mel_rate: samples a second behind spectra."""

    title = "LTX-2"
    rate = 44100
    step = 4096

    sizes: str
    vocoder: str
    latent_channels: int
    bins: int
    mel_rate: int
    hop: int
    window: int

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        whole = files[0]
        if len(files) == 1 and any(mark in whole.shapes for mark in MARKS):
            family = cls.probe(whole)
            for prefix in (AUTOENCODER, VOCODER):
                yield Located(family, whole.within(prefix), prefix=prefix, module=prefix)

    @classmethod
    def probe(cls, tensors: Tensors) -> Ltx2AudioVae:
        """Read the networks' sizes off the metadata. Errors: ModelFileError for an unsupported variant."""
        config, vocoder = tensors.config("audio_vae"), tensors.config("vocoder")
        if not config or not vocoder:
            raise tensors.unsupported(
                "holds an LTX-2 audio VAE without the 'config' in its metadata that has its sizes; a file as published "
                "has it"
            )
        model = config.get("model", {}).get("params", {})
        sizes = model.get("encoder") or model.get("ddconfig") or {}
        if model.get("decoder", sizes) != sizes:
            raise tensors.unsupported("holds an LTX-2 audio VAE whose encoder and decoder are of different sizes")
        stft = config.get("preprocessing", {}).get("stft", {})
        for one in (vocoder["vocoder"], vocoder["bwe"]) if "bwe" in vocoder else (vocoder,):
            if one.get("resblock", "1") not in ("1", "AMP1") or (
                _is_snake(one) and one.get("activation") != "snakebeta"
            ):
                raise tensors.unsupported(f"holds a vocoder with {one.get('activation')!r}, which is not supported")
        return cls(
            json.dumps(sizes, sort_keys=True),
            json.dumps(vocoder, sort_keys=True),
            int(sizes.get("z_channels", 8)),
            int(sizes.get("mel_bins", 64)),
            int(model.get("sampling_rate", config.get("sampling_rate", 16000))),
            int(stft.get("hop_length", 160)),
            int(stft.get("filter_length", 1024)),
        )

    @property
    def output_rate(self) -> int:
        vocoder = json.loads(self.vocoder)
        if "bwe" in vocoder:
            return int(vocoder["bwe"]["output_sampling_rate"])
        stated = vocoder.get("output_sample_rate")
        return int(stated or self.mel_rate * prod(vocoder.get("upsample_rates", (5, 4, 2, 2, 2))) / self.hop)

    @property
    def latent_bins(self) -> int:
        """Groups of frequencies of a latent."""
        return self.bins // DOWN

    @property
    def latents_per_second(self) -> float:
        """Latents of a second of sound."""
        return self.mel_rate / self.hop / DOWN

    def table(self, tensors: Tensors | None = None) -> Table:
        names = {
            "encoder": "encoder",
            "decoder": "decoder",
            "per_channel_statistics.mean-of-means": "latents_mean",
            "per_channel_statistics.std-of-means": "latents_std",
            "mel_stft": "mel_stft",
        }
        vocoder = json.loads(self.vocoder)
        for prefix, one in _parts(vocoder):
            names |= {
                f"{prefix}conv_pre": f"{prefix}conv_in",
                f"{prefix}conv_post": f"{prefix}conv_out",
                f"{prefix}ups": f"{prefix}upsamplers",
                f"{prefix}resblocks": f"{prefix}resnets",
                f"{prefix}act_post": f"{prefix}act_out",
                f"{prefix}act_post.downsample.lowpass": f"{prefix}act_out.downsample",
            }
            for block in range(len(_rates(one)) * len(_kernels(one))):
                for acts in ("acts1", "acts2"):
                    for layer in range(len(_dilations(one)[0])):
                        theirs = f"{prefix}resblocks.{block}.{acts}.{layer}.downsample"
                        names[f"{theirs}.lowpass"] = f"{prefix}resnets.{block}.{acts}.{layer}.downsample"
        return names

    def build(self) -> nn.Module:
        sizes, vocoder = json.loads(self.sizes), json.loads(self.vocoder)
        network = nn.Module()
        autoencoder = AutoencoderKLLTX2Audio(
            base_channels=sizes["ch"],
            output_channels=sizes["out_ch"],
            ch_mult=tuple(sizes["ch_mult"]),
            num_res_blocks=sizes["num_res_blocks"],
            attn_resolutions=tuple(sizes.get("attn_resolutions") or ()) or None,
            in_channels=sizes["in_channels"],
            resolution=sizes["resolution"],
            latent_channels=self.latent_channels,
            norm_type=sizes.get("norm_type", "pixel"),
            causality_axis=sizes.get("causality_axis", "height"),
            mid_block_add_attention=bool(sizes.get("mid_block_add_attention", False)),
            mel_bins=self.bins,
            double_z=bool(sizes.get("double_z", True)),
        )
        for name in ("latents_mean", "latents_std"):
            autoencoder.register_buffer(name, torch.empty(self.latent_channels * self.latent_bins))
        network.add_module("audio_vae", autoencoder)
        network.add_module("vocoder", _widening(vocoder) if "bwe" in vocoder else _vocoder(vocoder))
        buffers_as_weights(network)
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        vae = network.audio_vae
        shaped = (self.latent_channels, 1, self.latent_bins)
        spread, mean = (part.to(latents).view(shaped) for part in (vae.latents_std, vae.latents_mean))
        spectra = vae.decoder(latents * spread + mean)
        if "bwe" not in json.loads(self.vocoder):
            waveform: Tensor = network.vocoder(spectra)
            return waveform
        return self._widened(network.vocoder, spectra)

    def _widened(self, network: Any, spectra: Tensor) -> Tensor:
        """Return a sound of spectra with the high frequencies that the first vocoder lacks."""
        widening = json.loads(self.vocoder)["bwe"]
        rate, output_rate, hop = (
            int(widening[name]) for name in ("input_sampling_rate", "output_sampling_rate", "hop_length")
        )
        low = network.vocoder(spectra)
        length = low.shape[-1] * output_rate // rate
        low = pad(low, (0, -low.shape[-1] % hop))
        mel = torch.unflatten(network.mel_stft(low.flatten(0, 1))[0], 0, (-1, low.shape[1]))
        more = network.bwe_generator(mel, time_last=True)
        # Its filter follows from the rates alone, so no file has it.
        same = UpSample1d(output_rate // rate, window_type="hann", persistent=False).to(low)(low)
        widened: Tensor = (more + same).clamp(-1, 1)[..., :length]
        return widened

    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        return self.latents(network, self._spectra(resample(waveform, self.rate, self.mel_rate)))

    def latents(self, network: Any, spectra: Tensor) -> Tensor:
        """Return the mean latents of the logarithms of mel spectra (B,C,n,bins)."""
        vae = network.audio_vae
        made = vae.encoder(spectra)[:, : self.latent_channels]
        shaped = (self.latent_channels, 1, self.latent_bins)
        spread, mean = (part.to(made).view(shaped) for part in (vae.latents_std, vae.latents_mean))
        latents: Tensor = (made - mean) / spread
        return latents

    def _spectra(self, waveform: Tensor) -> Tensor:
        """Return the logarithms of the mel spectra of sounds (B,C,T), (B,C,n,bins)."""
        window = torch.hann_window(self.window, device=waveform.device)
        flat = waveform.flatten(0, 1)
        spectra = torch.stft(
            flat, self.window, self.hop, window=window, center=True, pad_mode="reflect", return_complex=True
        ).abs()
        filters = _mel_filters(self.mel_rate, self.window // 2 + 1, self.bins).to(spectra)
        mel = (spectra.transpose(1, 2) @ filters).clamp(min=LEAST).log()
        return torch.unflatten(mel, 0, tuple(waveform.shape[:2]))


def _widening(sizes: Mapping[str, Any]) -> nn.Module:
    """Return a vocoder with the one that adds high frequencies to its sounds."""
    both, widening = nn.Module(), sizes["bwe"]
    both.add_module("vocoder", _vocoder(sizes["vocoder"]))
    both.add_module("bwe_generator", _vocoder({**widening, "apply_final_activation": False}))
    stft = MelSTFT(widening["n_fft"], widening["hop_length"], widening["n_fft"], widening["num_mels"])
    both.add_module("mel_stft", stft)
    return both


@lru_cache(maxsize=8)
def _mel_filters(rate: int, frequencies: int, bins: int) -> Tensor:
    """Return Slaney's mel filters (frequencies,bins), each of equal area."""
    made = mel_filter_bank(frequencies, bins, 0.0, rate / 2.0, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(made).float()


def _is_snake(config: Mapping[str, Any]) -> bool:
    return bool(config.get("resblock", "1") == "AMP1")


def _rates(config: Mapping[str, Any]) -> Sequence[int]:
    return tuple(config.get("upsample_rates", (5, 4, 2, 2, 2)))


def _kernels(config: Mapping[str, Any]) -> Sequence[int]:
    return tuple(config.get("resblock_kernel_sizes", (3, 7, 11)))


def _dilations(config: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    return tuple(map(tuple, config.get("resblock_dilation_sizes", ((1, 3, 5),) * 3)))


def _parts(vocoder: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Return the vocoders of a file, each with its prefix and sizes."""
    return (
        (("vocoder.", vocoder["vocoder"]), ("bwe_generator.", vocoder["bwe"])) if "bwe" in vocoder else (("", vocoder),)
    )


def _vocoder(config: Mapping[str, Any]) -> nn.Module:
    """Return a vocoder of the metadata's sizes."""
    stereo, snake = config.get("stereo", True), _is_snake(config)
    end = "tanh" if config.get("use_tanh_at_final", True) else "clamp"
    made: nn.Module = LTX2Vocoder(
        in_channels=128 if stereo else 64,
        hidden_channels=config.get("upsample_initial_channel", 1024),
        out_channels=2 if stereo else 1,
        upsample_kernel_sizes=list(config.get("upsample_kernel_sizes", (16, 16, 8, 4, 4))),
        upsample_factors=list(_rates(config)),
        resnet_kernel_sizes=list(_kernels(config)),
        resnet_dilations=[list(one) for one in _dilations(config)],
        act_fn="snakebeta" if snake else "leaky_relu",
        antialias=snake,
        final_act_fn=end if config.get("apply_final_activation", True) else None,
        final_bias=bool(config.get("use_bias_at_final", True)),
    )
    return made
