"""Build the network of Zeiler & Fergus, and a small one of the same shape for 64-pixel images.

Layers are named after the paper's (conv1, relu1, pool1 … fc8), so a traced graph reads like its
Fig. 3.  No module works in place and none normalises: a recorded activation stays what it was, and
nothing has to be folded.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 3; networks without some of the layers,
or with wider ones, Table 3.  The paper's contrast normalisation after pool1 and pool2 is left out:
a deconvnet does not invert it, so without it the projections account for all that the forward pass
does.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from deconvoy.study_spec import REMOVABLE, WIDE
from workers.shapes import CLASSES, SIDE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SHAPES_MEAN = (0.49, 0.49, 0.49)
SHAPES_STD = (0.26, 0.26, 0.26)
"""Of ``shapes``, measured; every channel is treated alike there, so the three agree."""

FIRST_STD = {"conv1": 0.01, "conv2": 0.1, "fc8": 0.02}
"""Spread of the first weights where it is not fan-in's.  conv1 has the paper's 1e-2 and conv2 the
largest its filter clipping allows: so a step changes conv1 by much of its size, and within a few
epochs its filters are edges and colours; with like spreads they stay the noise they began as."""

Transform: TypeAlias = dict[str, int | list[float]]


class Layout(NamedTuple):
    """What the networks differ in."""

    widths: tuple[int, ...]
    """Feature maps of the five convolutions, neurons of the two hidden linear layers."""
    pad1: int
    pad2: int
    stride2: int
    pad5: int
    final: int
    """Side of the last pool's maps."""
    removed: frozenset[int] = frozenset()
    """Layers that are left out, counted from 1."""


PAPER = Layout((96, 256, 384, 384, 256, 4096, 4096), pad1=1, pad2=0, stride2=2, pad5=0, final=6)
SMALL = Layout((32, 64, 96, 96, 64, 256, 256), pad1=3, pad2=2, stride2=1, pad5=1, final=4)
"""64 pixels are too few for a second strided convolution: conv2 … conv5 keep 16, then 8 a side."""


def edited(layout: Layout, remove: Iterable[int], widths: Mapping[Any, int]) -> Layout:
    """The layout without some layers, and with others of another width.

    Args:
        widths: by layer, counted from 1; JSON has the numbers as text.

    Raises:
        ValueError: a layer that cannot be edited so.
    """
    given = {int(layer): width for layer, width in widths.items()}
    removed = frozenset(remove)
    if not removed <= set(REMOVABLE):
        raise ValueError(f"remove is of {REMOVABLE}, not {sorted(removed - set(REMOVABLE))}")
    for layer, width in given.items():
        if layer not in WIDE or layer in removed or width < 1:
            raise ValueError(
                f"widths has {width} of layer {layer}: it takes 1 or more, of layers "
                f"{[one for one in WIDE if one not in removed]}"
            )
    wide = [given.get(layer, width) for layer, width in zip(WIDE, layout.widths, strict=True)]
    return layout._replace(widths=tuple(wide), removed=layout.removed | removed)


class ZFNet(nn.Sequential):
    """Five convolutions and three linear layers; takes normalised images, gives logits."""

    def __init__(
        self, layout: Layout, num_classes: int, transform: Transform, classes: Sequence[str] | None
    ) -> None:
        super().__init__(_stages(layout, num_classes))
        self.transform = transform
        """Resize and crop in pixels, mean and std of channels in 0 … 1."""
        self.classes = None if classes is None else list(classes)
        """The outputs' names, where they are known."""
        _initialise(self)


def zfnet(
    num_classes: int = 1000, remove: Sequence[int] = (), widths: Mapping[Any, int] | None = None
) -> ZFNet:
    """The network of Fig. 3, for 224-pixel images; contrast normalisation is left out.

    Args:
        remove: layers that are left out, of 3 to 7.
        widths: feature maps of layers 1 to 5 and neurons of 6 and 7, where they are not the
            paper's.
    """
    transform: Transform = {
        "resize": 256,
        "crop": 224,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    layout = edited(PAPER, remove, widths or {})
    return ZFNet(layout, num_classes, transform, classes=None)


def zfnet_small(
    num_classes: int = len(CLASSES),
    remove: Sequence[int] = (),
    widths: Mapping[Any, int] | None = None,
) -> ZFNet:
    """The same eight layers for the 64-pixel images of ``shapes``; edited as ``zfnet`` is.

    With as many outputs as ``shapes`` has classes, the outputs carry the classes' names.
    """
    transform: Transform = {
        "resize": SIDE,
        "crop": SIDE,
        "mean": list(SHAPES_MEAN),
        "std": list(SHAPES_STD),
    }
    classes = CLASSES if num_classes == len(CLASSES) else None
    return ZFNet(edited(SMALL, remove, widths or {}), num_classes, transform, classes)


def _stages(layout: Layout, num_classes: int) -> "OrderedDict[str, nn.Module]":
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    kernels = {
        1: (7, 2, layout.pad1), 2: (5, layout.stride2, layout.pad2),
        3: (3, 1, 1), 4: (3, 1, 1), 5: (3, 1, 1),
    }  # fmt: skip
    pools = {1: 1, 2: 1, 5: layout.pad5}
    below = 3
    for layer, (kernel, stride, padding) in kernels.items():
        if layer not in layout.removed:
            width = layout.widths[layer - 1]
            stages[f"conv{layer}"] = nn.Conv2d(below, width, kernel, stride, padding)
            stages[f"relu{layer}"] = nn.ReLU()
            below = width
        if layer in pools:
            stages[f"pool{layer}"] = nn.MaxPool2d(3, stride=2, padding=pools[layer])
    stages["flatten"] = nn.Flatten()
    below *= layout.final**2
    for layer in (6, 7):
        if layer not in layout.removed:
            width = layout.widths[layer - 1]
            stages[f"fc{layer}"] = nn.Linear(below, width)
            stages[f"relu{layer}"] = nn.ReLU()
            stages[f"dropout{layer}"] = nn.Dropout(0.5)
            below = width
    stages["fc8"] = nn.Linear(below, num_classes)
    return stages


def _initialise(model: ZFNet) -> None:
    """Gaussian weights, biases 0; chosen so that training starts at once and conv1 is learned.

    The paper's 1e-2 everywhere leaves eight layers at chance for many epochs.  Variance 1 / fan-in
    rather than He's 2 / fan-in, because max-pooling makes up for what a rectifier loses; with the
    latter the rectifiers of the small network died in the first epoch at the paper's learning
    rate.  fc8 starts small, from undecided outputs.
    """
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=FIRST_STD.get(name, fan_in**-0.5))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
