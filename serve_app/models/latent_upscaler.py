"""A network that enlarges the latents of an autoencoder, on its device."""

from __future__ import annotations

from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import LatentUpscalerFamily
from serve_app.sampling.transfer import to_device, to_host


class LatentUpscaler:
    """A latent upscaler. network: as its family builds it."""

    def __init__(self, family: LatentUpscalerFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def enlarged(self, latents: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return latents (B,c,T',h',w') from normalised ones (B,c,T,h,w), float32 on the host.

        mean, deviation: (c,), of the latents before normalisation. Errors: NodeError for latents of other channels.
        """
        family = self.family
        if latents.ndim != 5 or latents.shape[1] != family.latent_channels:
            raise NodeError(
                f"the latents are {tuple(latents.shape)}; the latent upscaler of {family.title} enlarges those of "
                f"videos, of five axes with {family.latent_channels} channels"
            )
        x, centre, spread = (to_device(one, self._device).to(self._dtype) for one in (latents, mean, deviation))
        centre, spread = centre.view(-1, 1, 1, 1), spread.view(-1, 1, 1, 1)
        made = family.enlarged(self._network, x * spread + centre)
        return to_host(((made - centre) / spread).float())
