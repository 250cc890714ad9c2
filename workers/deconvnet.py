"""Project activations back to pixels with a deconvnet.

Follows Zeiler & Fergus (2013, arXiv:1311.2901) section 2.1: all activations of a layer but one are
set to zero, then the signal goes down: unpool with the recorded switches, rectify, filter with the
transposed weights.  What the paper's network does not have (sums, concatenations, average pools,
BatchNorm) is said in ``workers.ops``.  Pure: no I/O, no state.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from workers.graph import Layer, Network
from workers.ops import Down
from workers.sight import padding_of
from workers.steps import Step

Signal = Tensor
"""(hit, channel, row, col) or (hit, neuron): what comes down through a step."""


def project(
    network: Network,
    layer: Layer,
    switches: Mapping[int, Tensor],
    image_of_hit: Int[Tensor, " hit"],
    unit: Int[Tensor, " hit"],
    position: Int[Tensor, "hit yx"],
    seed: Float[Tensor, " hit"],
) -> Float[Tensor, "hit channel row col"]:
    """Project a batch of hits of one layer, of any units and images.

    Args:
        switches: of the images, from ``network.switches``.
        image_of_hit: row of each hit's image among the images that gave the switches.
        seed: the recorded activation of each hit; all else of the layer is zero.

    Returns:
        Signed, in units of the normalised input.
    """
    signals: dict[int, Signal] = {layer.step: seeded(layer, unit, position, seed)}
    for step in reversed(network.path_to(layer)):
        signal = signals.pop(step.index, None)
        if signal is None:
            continue
        if step.node.op == "placeholder":
            return signal
        places = switches[step.index][image_of_hit] if step.index in switches else None
        for source, part in zip(step.inputs, _down(network, step, signal, places), strict=False):
            if network.steps[source].depends:
                signals[source] = signals[source] + part if source in signals else part
    raise AssertionError(f"layer {layer.name} does not depend on the image")


def seeded(
    layer: Layer,
    unit: Int[Tensor, " hit"],
    position: Int[Tensor, "hit yx"],
    seed: Float[Tensor, " hit"],
) -> Signal:
    """The layer's activations with everything but one recorded activation a hit set to zero."""
    hit = torch.arange(len(unit), device=seed.device)
    signal = seed.new_zeros(len(unit), layer.units, layer.height, layer.width)
    signal[hit, unit, position[:, 0], position[:, 1]] = seed
    return layer.as_output(signal)


def _down(
    network: Network, step: Step, signal: Signal, places: Tensor | None
) -> list[Signal] | tuple[Signal, ...]:
    """What each input of ``step`` receives of ``signal``."""
    assert step.rule is not None and step.rule.down is not None, f"{step.name} has no rule"
    below = [network.steps[source].shape for source in step.inputs]
    match step.rule.down:
        case Down.PASS:
            return [signal]
        case Down.RECTIFY:
            return [signal.clamp(min=0)]
        case Down.COPY:
            return [_unbroadcast(signal, shape) for shape in below]
        case Down.SPLIT:
            return torch.split_with_sizes(signal, [shape[0] for shape in below], dim=1)
        case Down.RESHAPE:
            return [signal.reshape(len(signal), *below[0])]
        case Down.MATRIX:
            assert isinstance(step.module, nn.Linear)
            return [signal @ step.module.weight]
        case Down.UNPOOL:
            assert places is not None
            return [unpool(signal, places, below[0])]
        case Down.FILTER:
            assert isinstance(step.module, nn.Conv2d)
            return [filter_back(step.module, signal, below[0])]
        case Down.TRANSPOSE:
            return [transpose(step, signal, below[0])]


def unpool(
    signal: Float[Tensor, "hit channel row col"],
    places: Int[Tensor, "hit channel row col"],
    shape: tuple[int, ...],
) -> Float[Tensor, "hit channel below_row below_col"]:
    """Send each value to the place its maximum came from; overlapping windows accumulate."""
    channel, height, width = shape
    below = signal.new_zeros(len(signal), channel, height * width)
    below.scatter_add_(2, places.flatten(2), signal.flatten(2))
    return below.view(-1, channel, height, width)


def filter_back(
    conv: nn.Conv2d, signal: Float[Tensor, "hit channel row col"], shape: tuple[int, ...]
) -> Float[Tensor, "hit below_channel below_row below_col"]:
    """Filter with the transposed weights: the adjoint of the convolution, without its bias."""
    padding = padding_of(conv)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    plain = conv.groups == 1 and set(conv.stride) == {1}
    if plain and all(p <= r for p, r in zip(padding, reach, strict=True)):
        # For stride 1 the adjoint is itself a convolution with the flipped kernels, which is
        # several times as fast on a CPU as the transposed convolution.
        kernels = conv.weight.flip(2, 3).transpose(0, 1)
        margin = [r - p for r, p in zip(reach, padding, strict=True)]
        return F.conv2d(signal, kernels, padding=margin, dilation=conv.dilation)
    size = (len(signal), *shape)
    below: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        size, conv.weight, signal, conv.stride, padding, conv.dilation, conv.groups
    )
    return below


def transpose(step: Step, signal: Signal, shape: tuple[int, ...]) -> Signal:
    """The transposed linear map of any step that is linear (or affine: a constant has none)."""
    below = signal.new_zeros(len(signal), *shape).requires_grad_(True)
    with torch.enable_grad():
        above = step.apply_to(below.clone())  # it may write into it
    (transposed,) = torch.autograd.grad(above, below, signal)
    return transposed


def _unbroadcast(signal: Signal, shape: tuple[int, ...]) -> Signal:
    """Undo broadcasting in a sum: add over the axes along which the input was repeated."""
    axes = [a + 1 for a, n in enumerate(shape) if n == 1 and signal.shape[a + 1] != 1]
    return signal.sum(axes, keepdim=True) if axes else signal
