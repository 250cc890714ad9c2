"""Build the network of Zeiler & Fergus, and a small one of the same shape for 64-pixel images.

Layers are named after the paper's (conv1, relu1, pool1 … fc8), so a traced graph reads like its
Fig. 3.  No module works in place and none normalises: a recorded activation stays what it was, and
nothing has to be folded.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 3.  The paper's contrast normalisation
after pool1 and pool2 is left out: a deconvnet does not invert it, so without it the projections
account for all that the forward pass does.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

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
    """What the two networks differ in."""

    conv: tuple[int, int, int, int, int]
    """Feature maps of the five convolutions."""
    fc: int
    """Neurons of each of the two hidden linear layers."""
    pad1: int
    pad2: int
    stride2: int
    pad5: int
    final: int
    """Side of the last pool's maps."""


PAPER = Layout((96, 256, 384, 384, 256), fc=4096, pad1=1, pad2=0, stride2=2, pad5=0, final=6)
SMALL = Layout((32, 64, 96, 96, 64), fc=256, pad1=3, pad2=2, stride2=1, pad5=1, final=4)
"""64 pixels are too few for a second strided convolution: conv2 … conv5 keep 16, then 8 a side."""


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


def zfnet(num_classes: int = 1000) -> ZFNet:
    """The network of Fig. 3, for 224-pixel images; contrast normalisation is left out."""
    transform: Transform = {
        "resize": 256,
        "crop": 224,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    return ZFNet(PAPER, num_classes, transform, classes=None)


def zfnet_small(num_classes: int = len(CLASSES)) -> ZFNet:
    """The same eight layers for the 64-pixel images of ``shapes``.

    With as many outputs as ``shapes`` has classes, the outputs carry the classes' names.
    """
    transform: Transform = {
        "resize": SIDE,
        "crop": SIDE,
        "mean": list(SHAPES_MEAN),
        "std": list(SHAPES_STD),
    }
    classes = CLASSES if num_classes == len(CLASSES) else None
    return ZFNet(SMALL, num_classes, transform, classes)


def _stages(layout: Layout, num_classes: int) -> "OrderedDict[str, nn.Module]":
    one, two, three, four, five = layout.conv
    flat = five * layout.final**2
    return OrderedDict(
        conv1=nn.Conv2d(3, one, 7, stride=2, padding=layout.pad1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        conv2=nn.Conv2d(one, two, 5, stride=layout.stride2, padding=layout.pad2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, stride=2, padding=1),
        conv3=nn.Conv2d(two, three, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(three, four, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(four, five, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, stride=2, padding=layout.pad5),
        flatten=nn.Flatten(),
        fc6=nn.Linear(flat, layout.fc),
        relu6=nn.ReLU(),
        dropout6=nn.Dropout(0.5),
        fc7=nn.Linear(layout.fc, layout.fc),
        relu7=nn.ReLU(),
        dropout7=nn.Dropout(0.5),
        fc8=nn.Linear(layout.fc, num_classes),
    )


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
