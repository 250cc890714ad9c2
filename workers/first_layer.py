"""Look at the filters of a network's first layer, as the paper does to choose its architecture.

What went wrong in an earlier network showed there: filters that no image excites, one that
dominates all others, and too much of very high and very low frequencies with little between.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 4.1 and Fig. 6.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from deconvoy.study import BANDS

SPECTRUM = 32
"""Side of the spectrum of a filter, which is padded with zeros to it: 7 frequencies would be too
few to tell bands apart."""


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The one that sees the image."""
    modules: Iterator[nn.Module] = iter(model.modules())
    return next(module for module in modules if isinstance(module, nn.Conv2d))


def filters_of(model: nn.Module) -> Float32[np.ndarray, "unit row col channel"]:
    weight = first_convolution(model).weight.detach().float().cpu()
    return weight.permute(0, 2, 3, 1).numpy().copy()


def rms_of(
    filters: Float[np.ndarray, "unit row col channel"],
) -> Float64[np.ndarray, " unit"]:
    """Root mean square of each."""
    squares: np.ndarray = np.square(filters, dtype=np.float64)
    return np.asarray(np.sqrt(squares.mean((1, 2, 3))))


def bands_of(
    filters: Float[np.ndarray, "unit row col channel"],
) -> Float64[np.ndarray, "unit band"]:
    """Share of each filter's power in each band of frequencies, all channels together; NaN of a
    filter that is nothing."""
    spectrum = np.fft.fft2(filters.astype(np.float64), (SPECTRUM, SPECTRUM), axes=(1, 2))
    power = np.square(np.abs(spectrum)).sum(3)
    one = np.fft.fftfreq(SPECTRUM)
    radius = np.hypot(one[:, None], one[None, :])
    band = np.digitize(radius, BANDS)
    shares = np.stack([power[:, band == which].sum(1) for which in range(len(BANDS) + 1)], 1)
    whole = shares.sum(1, keepdims=True)
    nothing = np.full_like(shares, np.nan)
    return np.asarray(np.divide(shares, whole, out=nothing, where=whole > 0))


@torch.no_grad()
def peaks_of(
    model: nn.Module, batches: Iterator[Float[Tensor, "image channel row col"]]
) -> Float32[np.ndarray, " unit"]:
    """The strongest activation of each filter over all images, rectified: of a dead one it is
    0."""
    convolution = first_convolution(model)
    peak = torch.zeros(convolution.out_channels, device=convolution.weight.device)
    for pixels in batches:
        maps = convolution(pixels.to(peak.device))
        peak = torch.maximum(peak, maps.amax((0, 2, 3)).clamp(min=0))
    return peak.cpu().numpy()
