"""Loads ControlNet and T2I-Adapter files: the layout is recognised by names and shapes.

Every ControlNet layout is mapped to the names of the first one published (Zhang et al. 2023, arXiv:2302.05543), whose
encoder is named as in a backbone's single file. Others: diffusers' names, with or without the union modules, and
control-LoRA, low-rank changes of a backbone's own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.control.controlnet import ControlNetwork
from serve_app.models.control.t2i_adapter import T2iNetwork, T2iSize, single_names
from serve_app.models.families import UNETS
from serve_app.models.families.unet.unet import Unet
from serve_app.models.families.unet.unet_names import RES_BLOCK
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import reverse, translate
from serve_app.models.files.tensors import Shape, Tensors
from serve_app.models.quantization.quantized_linear import widen
from serve_app.models.weights.upload import Ring, SendTensor, uploading

ControlModule: TypeAlias = ControlNetwork | T2iNetwork
"""A network whose outputs are added inside a backbone."""

ENCODER = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
"""The parts that a ControlNet shares with a backbone."""

POOLED_ENDINGS = ("_shuffle", "_shuffle_fp16")
"""Endings of the names of files whose outputs are averaged over the image, as their tensors do not show it."""

CHANGES = (".up", ".down")
"""Endings of a control-LoRA's low-rank changes."""

_FIRST_CONVOLUTION = "input_blocks.0.0.weight"
_DIFFUSERS_MARK = "controlnet_cond_embedding.conv_in.weight"
_UNION = {
    "transformer_layes.0.attn.in_proj": "union.attention_in",
    "transformer_layes.0.attn.out_proj": "union.attention_out",
    "transformer_layes.0.ln_1": "union.norm1",
    "transformer_layes.0.ln_2": "union.norm2",
    "transformer_layes.0.mlp.c_fc": "union.wide",
    "transformer_layes.0.mlp.c_proj": "union.narrow",
    "spatial_ch_projs": "union.shift",
    "control_add_embedding.linear_1": "union.linear_1",
    "control_add_embedding.linear_2": "union.linear_2",
}

_log = log.get("models")


class ControlFile:
    """An open file of a ControlNet or a T2I-Adapter. Errors: ModelFileError for any other.

    base: the files of the backbone whose weights a control-LoRA or a diff ControlNet changes.
    """

    dtypes = (torch.float16,)
    reads_latents = False

    def __init__(self, file: Checkpoint, base: Sequence[Checkpoint] = ()) -> None:
        self._file = file
        self._base = base
        self._where = f"'{file.path.name}'"
        self._names = _cldm_names(file.shapes)
        """Name in the file -> name in the canonical layout."""
        shapes = {ours: file.shapes[theirs] for theirs, ours in self._names.items()}
        self._adapter = not self._names
        if self._adapter:
            self._names = single_names(file.shapes)
            shapes = {ours: file.shapes[theirs] for theirs, ours in self._names.items()}
        self._tensors = Tensors(shapes, self._where)
        if self._adapter and not self._tensors.has("body."):
            raise self._tensors.unsupported(
                "is neither a ControlNet of Stable Diffusion or Flux.1 nor a T2I-Adapter of a known layout"
            )

    @property
    def needs_base(self) -> bool:
        """Whether it contains only changes of a backbone's weights."""
        return "lora_controlnet" in self._file.shapes

    @property
    def has_differences(self) -> bool:
        """Whether its weights must be added to a backbone's."""
        return "difference" in self._file.shapes

    def elements(self) -> int:
        """Return how many numbers the network has, about."""
        own = sum(prod(shape) for shape in self._tensors.shapes.values())
        if not self.needs_base:
            return own
        base = (item for file in self._base for item in file.shapes.items())
        return own + sum(prod(shape) for name, shape in base if any(part in name for part in ENCODER))

    def load(self, device: torch.device, dtype: torch.dtype, ring: Ring | None = None) -> ControlModule:
        """Return the network on the device. ring: of a GPU.

        Errors: ModelFileError for missing tensors, other shapes, or a missing base.
        """
        if self._adapter:
            with torch.device("meta"):
                adapter = T2iNetwork(T2iSize.probe(self._tensors)).eval().requires_grad_(False)
            with uploading(device, ring) as send:
                state = self._own(adapter.state_dict(), {}, send, dtype)
            self._fill(adapter, state)
            return adapter
        found = self._changes()
        family = found[0] if found is not None and self.needs_base else self._unet()
        control_net, table = self._empty(family), _table(family)
        wanted, of_base = control_net.state_dict(), {} if found is None else found[1].state_dict()
        with uploading(device, ring) as send:
            state = self._own(wanted, table, send, dtype)
            weights = {name: send(of_base[name], dtype) for name in of_base if name in wanted}
            low_rank = self._low_rank(weights, table, send, dtype) if self.needs_base else {}
        if self.needs_base:
            changed = {
                ours: weights[ours] + (up @ down).view_as(weights[ours]) for ours, (up, down) in low_rank.items()
            }
            state = weights | state | changed
        else:
            state |= {name: state[name] + weights[name] for name in weights if name in state}
        self._fill(control_net, state)
        return control_net

    def _changes(self) -> tuple[Unet, nn.Module] | None:
        """Return the backbone whose weights the file changes, if any."""
        if not self.needs_base and not self.has_differences:
            return None
        if self._base:
            family, backbone = self._base[0].load("backbone", self._base[1:])
            if not isinstance(family, Unet):
                raise self._tensors.unsupported(
                    f"changes a UNet's weights, and {self._base[0].where} has another network"
                )
            widen(backbone)
            return family, backbone
        if self.needs_base:
            raise self._tensors.unsupported("is a control-LoRA, which needs the backbone whose weights it changes")
        _log.warning("%s holds differences from a backbone's weights and is used without one", self._where)
        return None

    def _empty(self, family: Unet) -> ControlNetwork:
        convolutions = [self._tensors.shape(name)[:2] for name in self._hint_convolutions()]
        kinds, kind_channels = self._tensors.shapes.get("task_embedding", (0, 0))
        with torch.device("meta"):
            control_net = ControlNetwork(
                family,
                family.build(),
                [convolutions[0][1], *(after for after, _ in convolutions)],
                kinds=kinds,
                kind_channels=kind_channels,
            )
        control_net.pooled = self._file.path.stem.endswith(POOLED_ENDINGS)
        return control_net.eval().requires_grad_(False)

    def _unet(self) -> Unet:
        # The file has no output layer to show its channels: they equal the input's.
        width, channels = self._tensors.shape(_FIRST_CONVOLUTION)[:2]
        end = {"out.2.weight": (channels, width, 3, 3)}
        whole = Tensors({**self._tensors.shapes, **end}, self._where)
        found = next(found.family for kind in UNETS for found in kind.find([whole]))
        return cast(Unet, found)

    def _hint_convolutions(self) -> list[str]:
        names: list[str] = []
        while (name := f"input_hint_block.{2 * len(names)}.weight") in self._tensors.shapes:
            names.append(name)
        return names

    def _own(
        self, wanted: Mapping[str, Tensor], prefixes: Mapping[str, str], send: SendTensor, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the file's tensors for the network, by our names."""
        state: dict[str, Tensor] = {}
        unknown: list[str] = []
        for theirs, name in self._names.items():
            ours = _ours(name, prefixes) if prefixes else name
            if ours in wanted:
                state[ours] = send(self._file.unread(theirs), dtype)
            elif not name.endswith(CHANGES):
                unknown.append(theirs)
        if unknown:
            _log.warning("%s: %d tensors are not used, '%s' first", self._where, len(unknown), unknown[0])
        return state

    def _low_rank(
        self, weights: Mapping[str, Tensor], prefixes: Mapping[str, str], send: SendTensor, dtype: torch.dtype
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the (up, down) whose product the file adds to each of the backbone's weights."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for theirs, name in self._names.items():
            if not name.endswith(".up"):
                continue
            ours = _ours(f"{name.removesuffix('.up')}.weight", prefixes)
            if ours in weights:
                down = f"{theirs.removesuffix('.up')}.down"
                up_down = (send(self._file.unread(name), dtype).flatten(1) for name in (theirs, down))
                found[ours] = next(up_down), next(up_down)
        return found

    def _fill(self, module: ControlModule, state: dict[str, Tensor]) -> None:
        wanted = module.state_dict()
        if missing := sorted(set(wanted) - set(state)):
            raise self._tensors.unsupported(f"lacks {len(missing)} tensors of its network, '{missing[0]}' first")
        for name, tensor in state.items():
            if tensor.shape != wanted[name].shape:
                raise self._tensors.unsupported(
                    f"has '{name}' of shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
                )
        module.load_state_dict(state, assign=True)


def _ours(name: str, prefixes: Mapping[str, str]) -> str:
    if name == "task_embedding":
        return "union.task_embedding"
    return translate(name, prefixes) or ""


def _table(family: Unet) -> dict[str, str]:
    """Return module names in the first layout -> module names in our network."""
    names = {theirs: ours for ours, theirs in reverse(family.table()).items()}
    encoder = {theirs: ours for theirs, ours in names.items() if theirs.startswith(ENCODER)}
    zero = {f"zero_convs.{i}.0": f"zero_convs.{i}" for i in range(len(family.skip_widths))}
    return {**encoder, **zero, "input_hint_block": "hint_block", "middle_block_out.0": "middle_out", **_UNION}


def _cldm_names(names: Mapping[str, Shape]) -> dict[str, str]:
    """Return name in the file -> name in the canonical layout; {} for another kind of file."""
    if "lora_controlnet" in names:
        return {name: name for name in names if name != "lora_controlnet"}
    if _DIFFUSERS_MARK in names:
        prefixes = dict(_from_diffusers(names))
        return {name: _attention(translate(name, prefixes) or name) for name in names}
    for prefix in ("control_model.", ""):
        if f"{prefix}zero_convs.0.0.weight" in names:
            return {name: name[len(prefix) :] for name in names if name.startswith(prefix)}
    return {}


def _attention(name: str) -> str:
    return name.replace(".attn.in_proj_", ".attn.in_proj.")


def _from_diffusers(names: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """Yield module names of diffusers' layout with those of the first one."""
    tensors = Tensors(names, "")
    yield "conv_in", "input_blocks.0.0"
    for embedding, theirs in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        yield f"{embedding}.linear_1", f"{theirs}.0"
        yield f"{embedding}.linear_2", f"{theirs}.2"
    block = 1
    for level in range(tensors.count("down_blocks.")):
        for i in range(tensors.count(f"down_blocks.{level}.resnets.")):
            yield from _res_block(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{block}.0")
            yield f"down_blocks.{level}.attentions.{i}", f"input_blocks.{block}.1"
            block += 1
        if tensors.has(f"down_blocks.{level}.downsamplers."):
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1
    yield from _res_block("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _res_block("mid_block.resnets.1", "middle_block.2")
    for i in range(tensors.count("controlnet_down_blocks.")):
        yield f"controlnet_down_blocks.{i}", f"zero_convs.{i}.0"
    yield "controlnet_mid_block", "middle_block_out.0"
    blocks = tensors.count("controlnet_cond_embedding.blocks.")
    yield "controlnet_cond_embedding.conv_in", "input_hint_block.0"
    for i in range(blocks):
        yield f"controlnet_cond_embedding.blocks.{i}", f"input_hint_block.{2 * (i + 1)}"
    yield "controlnet_cond_embedding.conv_out", f"input_hint_block.{2 * (blocks + 1)}"


def _res_block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield theirs, ours
    for name, child in RES_BLOCK.items():
        yield f"{theirs}.{child}", f"{ours}.{name}"
