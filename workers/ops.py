"""The table of operations: how far each looks, and how a signal comes down through it.

One row an operation; everything else in ``workers`` reads the rows and knows no operation and no
model by name.  ``reach`` is what an output position sees of the input, ``down`` the deconvnet's
step back through it (Zeiler & Fergus 2013, section 2.1; what the paper does not have is said in
the row).  An operation without a row can be scanned, but not projected.  Other methods of
projection differ in their rectifiers alone.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

from deconvoy.spec import Method


class Reach(Enum):
    """What one output position sees of the operation's input."""

    SAME = auto()
    """The same position of every tensor input."""
    WINDOW = auto()
    """A kernel window: kernel, stride, padding and dilation are the module's."""
    CELLS = auto()
    """The cell of an adaptive pooling."""
    SELECTION = auto()
    """The position before padding, slicing, turning or reshaping, which only move values."""
    LAST = auto()
    """All of the last axes, which it multiplies or normalises over; the same position of others."""
    WHOLE = auto()
    """All of it."""


class Down(Enum):
    """The deconvnet's step from an operation's output to its inputs."""

    FILTER = auto()
    """Convolve with the transposed filters."""
    MATRIX = auto()
    """Multiply by the transposed weight matrix."""
    UNPOOL = auto()
    """Send values to the recorded places of the maxima; overlapping windows accumulate."""
    RECTIFY = auto()
    """Let pass what the method of projection does (``RECTIFICATIONS``); the deconvnet's is ReLU on
    the signal coming down, whatever the forward sign was."""
    PASS = auto()
    """Unchanged (contrast normalisation is not inverted; dropout is off)."""
    TRANSPOSE = auto()
    """The transposed linear map (BatchNorm, average pools, padding, a constant factor)."""
    RESHAPE = auto()
    """The same values in the shape before."""
    COPY = auto()
    """To every input (a sum: the signal goes down both ways)."""
    SPLIT = auto()
    """To each input its channels (a concatenation)."""


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    reach: Reach
    down: Down | None
    filters: bool = False
    """A convolution or a linear layer: its outputs are units."""
    rectifier: bool = False
    ceiling: float | None = None
    """Largest value the rectifier lets through."""


@dataclass(frozen=True)
class Rectification:
    """Where a rectifier lets the signal pass on its way down; all that is asked must hold."""

    by_signal: bool
    """Where the signal is positive."""
    by_input: bool
    """Where the rectifier's forward input was positive and below its ceiling.  At zero and at the
    ceiling, where there are two slopes, nothing passes, as in torch's ``relu`` and ``relu6``."""


RECTIFICATIONS: Mapping[Method, Rectification] = {
    "deconvnet": Rectification(by_signal=True, by_input=False),
    "guided": Rectification(by_signal=True, by_input=True),
    "gradient": Rectification(by_signal=False, by_input=True),
}
"""Zeiler & Fergus 2013 (arXiv:1311.2901), section 2.1; Springenberg et al. 2014 (arXiv:1412.6806),
Fig. 1, which has all three; Simonyan et al. 2013 (arXiv:1312.6034), section 3."""


_RECTIFIER = Rule("relu", Reach.SAME, Down.RECTIFY, rectifier=True)
_RELU6 = Rule("relu6", Reach.SAME, Down.RECTIFY, rectifier=True, ceiling=6.0)
_PASS = Rule("identity", Reach.SAME, Down.PASS)
_RESHAPE = Rule("reshape", Reach.SELECTION, Down.RESHAPE)
_PERMUTE = Rule("permute", Reach.SELECTION, Down.TRANSPOSE)
_FACTOR = Rule("mul", Reach.SAME, Down.TRANSPOSE)
"""By a constant; a product of two signals bends, and has no way down."""
_LAYER_NORM = Rule("layer_norm", Reach.LAST, down=None)
"""It divides by a deviation of the signal itself: not linear, and not in the paper."""
_MEAN = Rule("mean", Reach.WHOLE, Down.TRANSPOSE)
_SUM = Rule("add", Reach.SAME, Down.COPY)
_UNEVEN_CONV = Rule("conv2d", Reach.WHOLE, down=None, filters=True)
"""Padded with something else than zeros, or more after than before."""

MODULE_RULES: Mapping[type[nn.Module], Rule] = {
    nn.Conv2d: Rule("conv2d", Reach.WINDOW, Down.FILTER, filters=True),
    nn.Linear: Rule("linear", Reach.LAST, Down.MATRIX, filters=True),
    nn.ReLU: _RECTIFIER,
    nn.ReLU6: _RELU6,
    nn.MaxPool2d: Rule("max_pool2d", Reach.WINDOW, Down.UNPOOL),
    nn.AvgPool2d: Rule("avg_pool2d", Reach.WINDOW, Down.TRANSPOSE),
    nn.AdaptiveAvgPool2d: Rule("adaptive_avg_pool2d", Reach.CELLS, Down.TRANSPOSE),
    nn.BatchNorm2d: Rule("batch_norm", Reach.SAME, Down.TRANSPOSE),
    nn.LocalResponseNorm: Rule("local_response_norm", Reach.SAME, Down.PASS),
    nn.Dropout: _PASS,
    nn.Dropout2d: _PASS,
    nn.Identity: _PASS,
    nn.Flatten: _RESHAPE,
    nn.Unflatten: _RESHAPE,
    nn.LayerNorm: _LAYER_NORM,
    nn.ZeroPad2d: Rule("pad", Reach.SELECTION, Down.TRANSPOSE),
    **{
        kind: Rule(kind.__name__.lower(), Reach.SAME, down=None)
        for kind in (
            *(nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.Tanh),
            *(nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Mish),
        )
    },
}
"""Those without a way down bend the signal, and the paper has no rule for them."""


def part_of(
    tensor: torch.Tensor, divide: Any, args: Any, kwargs: Mapping[str, Any], number: int
) -> torch.Tensor:
    """One of the tensors that ``chunk`` and its like return; the trace has it in their place."""
    function = getattr(torch.Tensor, divide) if isinstance(divide, str) else divide
    part: torch.Tensor = function(tensor, *args, **kwargs)[number]
    return part


DIVIDES: frozenset[Any] = frozenset(
    (torch.chunk, torch.split, torch.unbind, torch.tensor_split, "chunk", "split", "unbind")
)
"""Operations that return several parts of one tensor."""

FUNCTION_RULES: Mapping[Callable[..., Any] | str, Rule] = {
    torch.add: _SUM,
    operator.add: _SUM,
    operator.iadd: _SUM,
    "add": _SUM,
    "add_": _SUM,
    torch.cat: Rule("cat", Reach.SAME, Down.SPLIT),
    torch.flatten: _RESHAPE,
    "flatten": _RESHAPE,
    "view": _RESHAPE,
    torch.reshape: _RESHAPE,
    "reshape": _RESHAPE,
    torch.squeeze: _RESHAPE,
    "squeeze": _RESHAPE,
    torch.unsqueeze: _RESHAPE,
    "unsqueeze": _RESHAPE,
    torch.permute: _PERMUTE,
    "permute": _PERMUTE,
    torch.transpose: _PERMUTE,
    "transpose": _PERMUTE,
    part_of: Rule("part", Reach.SELECTION, Down.TRANSPOSE),
    torch.mean: _MEAN,
    "mean": _MEAN,
    "contiguous": _PASS,
    F.pad: Rule("pad", Reach.SELECTION, Down.TRANSPOSE),
    **{function: _FACTOR for function in (operator.mul, operator.imul, torch.mul, "mul", "mul_")},
    **{
        function: Rule("div", Reach.SAME, Down.TRANSPOSE)
        for function in (operator.truediv, operator.itruediv, torch.div, "div", "div_")
    },
    **{
        function: Rule("sub", Reach.SAME, Down.TRANSPOSE)
        for function in (operator.sub, operator.isub, torch.sub, "sub", "sub_")
    },
    **{
        function: Rule("sigmoid", Reach.SAME, down=None)
        for function in (torch.sigmoid, F.sigmoid, "sigmoid")
    },
    **{
        function: Rule(function.__name__, Reach.SAME, down=None)
        for function in (F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu)
    },
    F.layer_norm: _LAYER_NORM,
    operator.getitem: Rule("slice", Reach.SELECTION, Down.TRANSPOSE),
}
"""Keys are functions, and names of tensor methods."""


def _relu_in_place() -> nn.Module:
    return nn.ReLU(inplace=True)


def _clamp(min: Any = None, max: Any = None) -> nn.Module | None:
    if isinstance(min, int | float) and min == 0 and max in (None, 6):
        return nn.ReLU() if max is None else nn.ReLU6()
    return None


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module | None:
    if return_indices:
        return None
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)


def _lrn(size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> nn.Module:
    return nn.LocalResponseNorm(size, alpha, beta, k)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    # The trace is of eval mode; a model that drops out even then has no rule.
    return None if training else nn.Dropout(p)


def _stochastic_depth(p: float, mode: str, training: bool = True) -> nn.Module | None:
    return None if training else nn.Identity()


AS_MODULE: Mapping[Callable[..., Any] | str, Callable[..., nn.Module | None]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: _relu_in_place,
    "relu": nn.ReLU,
    "relu_": _relu_in_place,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    torch.clamp: _clamp,
    "clamp": _clamp,
    torch.clamp_min: _clamp,
    "clamp_min": _clamp,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.local_response_norm: _lrn,
    F.dropout: _dropout,
    stochastic_depth: _stochastic_depth,
}
"""Functions that are a module with its parameters in the call: functional and module ReLU are the
same to us."""


def module_rule(module: nn.Module) -> Rule | None:
    """The row of a module, or none: subclasses that change ``forward`` have no row."""
    for kind, rule in MODULE_RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            if isinstance(module, nn.Conv2d) and not _pads_evenly(module):
                return _UNEVEN_CONV
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
                return None  # it normalises by the batch, so images are not apart
            return rule
    if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0):
        return _RELU6
    return None


def _pads_evenly(conv: nn.Conv2d) -> bool:
    """With zeros, as many before as after."""
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    even = conv.padding != "same" or not any(r % 2 for r in reach)
    return conv.padding_mode == "zeros" and even
