"""The backbone: a diffusion network on its device, as the engine evaluates it."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.adapted import adapted
from serve_app.models.adapters import Adapters
from serve_app.models.families import UNetArchitecture
from serve_app.models.freeu import freed
from serve_app.models.inputs import concat, vector
from serve_app.models.steering import steered
from serve_app.sampling.denoiser import trained
from serve_app.sampling.forward import Canvas, Inputs, Piece, to_batch
from serve_app.values import ContinuousEdm, Discrete, FreeU, Training

_EPS = Discrete()


class Backbone:
    """A diffusion network with what it was trained on. network: UNet2DConditionModel.

    key: equal for one network, whatever LoRAs go with it. trained_as: what its file says. training: what is taken
    instead of that. adapters: what the recipe's LoRAs change in its rows; features: what its FreeU does.
    """

    # Of a copy, what it was made from: whoever lends weights knows that one only, and it has to stay.
    _original: Backbone | None = None

    def __init__(
        self,
        key: Hashable,
        architecture: UNetArchitecture,
        network: nn.Module,
        *,
        trained_as: Training = _EPS,
        training: Training | None = None,
        adapters: Adapters | None = None,
        features: Sequence[FreeU] = (),
    ) -> None:
        self.key = key
        self.features = features
        self.adapters = adapters
        self.architecture = architecture
        self.latent_format = architecture.latent_format
        self.levels, self._prediction = trained(training or trained_as)
        # CosXL's editing model is the one that was trained on scaled images.
        self._scaled_edit = architecture.vector_dim > 0 and isinstance(trained_as, ContinuousEdm)
        self._network: Any = network
        parameter = next(network.parameters())
        self.device: torch.device = parameter.device
        self._dtype = parameter.dtype
        self._merging = True

    def prepared(self) -> Iterator[None]:
        """Make ready what its first forward would have to wait for, yielding in between; as `Adapters.prepared`."""
        if self.adapters is not None:
            yield from self.adapters.prepared()

    def apart(self) -> Backbone:
        """Return this backbone for one run alone: nothing shares its forwards, and its LoRAs stay unmerged.

        So what it answers does not depend, to the bit, on other runs. The weights are in use as long as it is.
        """
        own = copy.copy(self)
        own._original = self
        own.key, own._merging = object(), False
        return own

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return what an entry of a conditioning tells the network; as sampling.forward.Backbone.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        known = self.architecture
        if cond.shape[-1] != known.context_dim:
            raise NodeError(
                f"the conditioning is {cond.shape[-1]} wide, and this backbone reads text {known.context_dim} wide: "
                "they are of different families"
            )
        height, width = canvas.latents.shape[-2:]
        told = vector(known, options, height, width, role)
        fed = concat(known, options, canvas.latents, canvas.mask, scaled_edit=self._scaled_edit)
        return Inputs(
            to_batch(cond.to(self.device, torch.float32), canvas.rows),
            vector=None if told is None else to_batch(told.to(self.device), canvas.rows),
            concat=None if fed is None else fed.to(self.device),
            controls=options.get("control") or (),
        )

    def network_input(self, piece: Piece) -> Tensor:
        """Return what the network is fed for the piece's x, float32: scaled, beside the channels that go with it."""
        scaled = self._prediction.scale_input(piece.x, _level(piece))
        return scaled if piece.inputs.concat is None else torch.cat([scaled, piece.inputs.concat], dim=1)

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for the piece, float32."""
        return self._prediction.denoised(piece.x, output, _level(piece))

    def denoise(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return each piece's D(x, sigma), float32, from one forward; as sampling.forward.Backbone.

        Pieces may differ in level, in text and its length, in LoRAs and controls, and in what their recipes make of the
        network's output.
        """
        counts = [piece.rows for piece in pieces]
        own = [cast(Backbone, piece.backbone) for piece in pieces]
        x = torch.cat([b.network_input(piece) for b, piece in zip(own, pieces, strict=True)]).to(self._dtype)
        timestep = torch.cat([b.levels.timestep(_level(piece)) for b, piece in zip(own, pieces, strict=True)])
        context, mask = stack_contexts([piece.inputs.context for piece in pieces])
        context = context.to(self._dtype)
        told = _stacked([piece.inputs.vector for piece in pieces], self._dtype)
        # Controls read x alone, without the channels beside it.
        added = steered(pieces, x[:, : self.architecture.latent_channels], timestep, context, mask, told)
        features = [(rows, b.features) for rows, b in zip(counts, own, strict=True)]
        sets = [(rows, b.adapters) for rows, b in zip(counts, own, strict=True)]
        with adapted(sets, merging=self._merging), freed(self._network, features):
            output: Tensor = self._network(
                x,
                timestep,
                context,
                class_labels=told,
                encoder_attention_mask=mask,
                return_dict=False,
                **added,
            )[0]
        answers = torch.split(output.float(), counts)
        return [b.denoised(piece, answer) for b, piece, answer in zip(own, pieces, answers, strict=True)]


def _level(piece: Piece) -> Tensor:
    """Return the piece's sigma for each of its rows, (B,)."""
    return torch.full((piece.rows,), piece.sigma, dtype=torch.float32, device=piece.x.device)


def _stacked(vectors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    given = [vector for vector in vectors if vector is not None]
    return torch.cat(given).to(dtype) if given else None


def stack_contexts(contexts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return contexts (R_i,T_i,D) as one (R,T,D), and which of it counts, (R,T), or None if all of it does.

    Shorter ones are padded to the longest with zeros.
    """
    longest = max(context.shape[1] for context in contexts)
    if all(context.shape[1] == longest for context in contexts):
        return torch.cat(list(contexts)), None
    rows = sum(context.shape[0] for context in contexts)
    stacked = contexts[0].new_zeros(rows, longest, contexts[0].shape[2])
    mask = torch.zeros(rows, longest, dtype=torch.bool, device=stacked.device)
    first = 0
    for context in contexts:
        end, length = first + context.shape[0], context.shape[1]
        stacked[first:end, :length] = context
        mask[first:end, :length] = True
        first = end
    return stacked, mask
