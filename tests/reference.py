"""The slow and obvious method: what every fast part of Deconvoy is compared with.

It runs the *untraced* module, whole images, one at a time, and imports nothing but the standard
library, numpy, Pillow, torch and torchvision: it must never see our graph, or it would share our
mistakes.  A **layer** is counted by its place in the order of execution: the output of every
rectifier call, whoever makes it, and last the model's output.  Numbers have the model's own dtype;
only receptive fields are probed in float64.  Shapes are given in words: ``"unit row col"``.

Source: Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks*, arXiv 1311.2901v3,
section 2.1; its figures 2 to 4 show the nine strongest images of a map.  Rules, op by op:

- rectifier (ReLU, ReLU6, clamp at 0): ReLU of the signal that comes down, never the forward mask
  (2.1 "Rectification"); the ceiling of ReLU6 is forgotten on the way down, like its mask;
- convolution, linear layer: the transposed filters, no bias (2.1 "Filtering");
- max pool: the value goes to the recorded place of the maximum, the switch (2.1 "Unpooling");
  where overlapping windows share a maximum the values add up, as torch's own backward does;
- contrast normalisation (LRN): the signal passes unchanged (the paper does not invert it);
- BatchNorm (eval), average pool, sum, concatenation, slicing, padding, a constant factor: linear or
  affine, hence the transposed linear map;
- anything else that bends (sigmoid, softmax, a product of two signals …) is refused by name.

Two other methods of projection have a rule of their own for the rectifier, and no other:

- the gradient (Simonyan et al. 2013, arXiv 1312.6034): torch's own, of the model's own call;
- guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806, Fig. 1): the signal passes
  where it is positive and the input was positive too, and below the ceiling of ReLU6.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

# --- 1. every layer of an untraced module --------------------------------------------------------

# The functions, besides relu and relu6, that are a rectifier for some of their arguments.
BOUNDS = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "clamp_min": ("min",),
    "hardtanh": ("min_val", "max_val"),
    "threshold": ("threshold", "value"),
}


@dataclass(frozen=True)
class Layer:
    """One layer's values for a batch of images, each ``"image unit row col"``.

    ``ranking`` is what the score is the maximum of: the activation itself, but for a rectifier with
    a ceiling max(0, its input), so that saturated maps can still be ranked.
    """

    activation: Tensor
    ranking: Tensor
    rectified: bool


def layers(model: nn.Module, images: Tensor, also: Sequence[str] = ()) -> list[Layer]:
    """All layers for ``images`` ("image channel row col"), in execution order, logits last.

    ``also`` names modules whose output is a layer too (a linear bottleneck, after its BatchNorm).
    """
    recorder = _Recorder()
    with torch.no_grad(), _watched(model, also, recorder.see), recorder:
        logits = _forward(model, images)
    recorder.layers.append(Layer(_as_maps(logits), _as_maps(logits), rectified=False))
    return recorder.layers


def layer_outputs(model: nn.Module, images: Tensor, also: Sequence[str] = ()) -> list[Tensor]:
    """The activations of all layers, each "image unit row col"; a neuron is a 1x1 map."""
    return [layer.activation for layer in layers(model, images, also)]


class _Recorder(TorchFunctionMode):
    """Copies what every rectifier returns, at once: a later in-place write must not alter it.

    Inside the handler torch switches the mode off, so the ``torch.relu`` within ``F.relu`` within
    ``nn.ReLU`` is counted once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        ceiling = rectifier_ceiling(func, args, kwargs)
        if ceiling is None:
            return func(*args, **kwargs)
        ranking = _first(args, kwargs).clamp(min=0)  # before the call, which may be in place
        activation = func(*args, **kwargs)
        self.layers.append(Layer(_as_maps(activation), _as_maps(ranking), rectified=True))
        return activation

    def see(self, output: Tensor) -> Tensor:
        """Record the output of a named module; the module's own tensor goes on."""
        self.layers.append(Layer(_as_maps(output), _as_maps(output), rectified=False))
        return output


def rectifier_ceiling(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> float | None:
    """Above which input this call's output stays constant; None if it is no rectifier at 0."""
    name = _name(func)
    if name == "relu":
        return math.inf
    if name == "relu6":
        return 6.0
    if name not in BOUNDS:
        return None
    given = dict(zip(BOUNDS[name], args[1:], strict=False)) | kwargs
    if name == "threshold":
        return math.inf if given["threshold"] == 0 and given["value"] == 0 else None
    default = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    low = given.get(BOUNDS[name][0], default[0])
    high = given.get(BOUNDS[name][-1], default[1]) if len(BOUNDS[name]) == 2 else None
    ceiling = math.inf if high is None else high
    if isinstance(low, int | float) and isinstance(ceiling, int | float):
        return float(ceiling) if low == 0 and ceiling > 0 else None
    return None


def _name(func: Callable[..., Any]) -> str:
    """``relu`` for ``Tensor.relu_`` and ``F.relu_``, ``threshold`` for torch's ``_threshold``."""
    return getattr(func, "__name__", "").strip("_")


def _is_in_place(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    positional = any(argument is True for argument in args[1:])
    return func.__name__.endswith("_") or positional or bool(kwargs.get("inplace"))


def _first(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    signal: Tensor = args[0] if args else kwargs["input"]
    return signal


def _as_maps(values: Tensor) -> Tensor:
    """A copy as "image unit row col"; a neuron sits at (0, 0)."""
    if values.ndim == 2:
        return values.detach().clone()[:, :, None, None]
    if values.ndim != 4:
        raise ValueError(f"a layer of shape {tuple(values.shape)} is neither maps nor neurons")
    return values.detach().clone()


def _forward(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The untraced model with its parameters cut from autograd (and cast, if ``dtype`` is given).

    Cut, so that "requires grad" means "depends on the image" and nothing else.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() first")
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: value.detach() for name, value in own.items()}
    if dtype is not None:
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    output: Tensor = torch.func.functional_call(model, state, (images,))
    return output


@contextmanager
def _watched(
    model: nn.Module, names: Sequence[str], see: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Show ``see`` the output of every named module and go on with what it returns."""
    hooks = []
    try:
        for name in names:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_hook(lambda m, _args, out: _seen(m, out, see)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _seen(module: nn.Module, output: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
    """A linear layer over maps has its units in the last axis; ``see`` wants them in the first."""
    if isinstance(module, nn.Linear) and output.ndim == 4:
        return see(output.movedim(3, 1)).movedim(1, 3)
    return see(output)


# --- 2. the strongest nine -----------------------------------------------------------------------


class Hit(NamedTuple):
    """Where one image excites a unit most; ``y, x`` are positions in the feature map."""

    score: float
    image: int
    y: int
    x: int


MISSING = Hit(-math.inf, -1, -1, -1)


def _strongest_first(hit: Hit) -> tuple[float, int, int, int]:
    return (-hit.score, hit.image, hit.y, hit.x)


def top_nine(
    scores_per_image: Iterable[tuple[int, Tensor]], k: int = 9, rectified: bool = True
) -> list[list[Hit]]:
    """For each unit its ``k`` strongest images from (image id, "unit row col" or "unit") pairs.

    One hit an image, at the first maximum in reading order; in a rectified layer a zero is no hit.
    Lists are filled up to ``k`` with ``MISSING``.
    """
    best: list[dict[int, Hit]] = []
    for image, scores in scores_per_image:
        maps = scores.reshape(len(scores), 1, 1) if scores.ndim == 1 else scores
        best = best or [{} for _ in maps]
        for unit, feature_map in enumerate(maps.tolist()):
            for y, row in enumerate(feature_map):
                for x, score in enumerate(row):
                    _require_finite(score, image)
                    hit = Hit(score, image, y, x)
                    known = best[unit].setdefault(image, hit)
                    best[unit][image] = min(known, hit, key=_strongest_first)
    return [_strongest(hits.values(), k, rectified) for hits in best]


def _strongest(hits: Iterable[Hit], k: int, rectified: bool) -> list[Hit]:
    alive = [hit for hit in hits if hit.score > 0 or not rectified]
    chosen = sorted(alive, key=_strongest_first)[:k]
    return chosen + [MISSING] * (k - len(chosen))


def _require_finite(score: float, image: int) -> None:
    if not math.isfinite(score):
        raise ValueError(f"image {image} has the activation {score}; scores must be finite")


@dataclass
class _Maxima:
    """One layer over the data set, an entry an image: each unit's maximum and its flat place."""

    rectified: bool
    columns: int
    scores: list[np.ndarray[Any, Any]]  # each "unit"
    places: list[np.ndarray[Any, Any]]  # each "unit"


def brute_force(
    model: nn.Module,
    images: Iterable[tuple[int, Tensor]],
    batch_size: int = 1,
    k: int = 9,
    also: Sequence[str] = (),
) -> list[list[list[Hit]]]:
    """``top_nine`` of every layer, by a full forward pass over all images: layer, unit, rank.

    ``images`` are (id, "channel row col").  Kept are one score and one place for each layer, unit
    and image, 12 bytes in float32: 100 MB for 8,000 units and 1,000 images.
    """
    found: list[_Maxima] = []
    ids: list[int] = []
    for batch in _batches(images, batch_size):
        ids += [image for image, _ in batch]
        seen = layers(model, torch.stack([pixels for _, pixels in batch]), also)
        found = found or [_Maxima(s.rectified, s.ranking.shape[-1], [], []) for s in seen]
        for maxima, layer in zip(found, seen, strict=True):
            _keep_maxima(maxima, layer)
    if len(set(ids)) != len(ids):
        raise ValueError("an image id comes twice; ids must be distinct")
    return [_strongest_of_layer(maxima, np.array(ids), k) for maxima in found]


def _batches(images: Iterable[tuple[int, Tensor]], size: int) -> Iterator[list[tuple[int, Tensor]]]:
    batch: list[tuple[int, Tensor]] = []
    for item in images:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep_maxima(maxima: _Maxima, layer: Layer) -> None:
    for maps in layer.ranking.flatten(2).numpy():  # "unit place", one image
        places = maps.argmax(axis=1)  # the first in reading order, where several are equal
        maxima.places.append(places)
        maxima.scores.append(maps[np.arange(len(maps)), places])


def _strongest_of_layer(maxima: _Maxima, ids: np.ndarray[Any, Any], k: int) -> list[list[Hit]]:
    scores, places = np.stack(maxima.scores), np.stack(maxima.places)  # "image unit"
    if not np.isfinite(scores).all():
        raise ValueError(
            f"image {ids[~np.isfinite(scores).all(1)][0]} has an activation not finite"
        )
    units = []
    for unit in range(scores.shape[1]):
        order = np.lexsort((ids, -scores[:, unit]))[:k]  # by -score, then by id
        hits = []
        for i in order:
            y, x = divmod(int(places[i, unit]), maxima.columns)
            hits.append(Hit(float(scores[i, unit]), int(ids[i]), y, x))
        units.append(_strongest(hits, k, maxima.rectified))
    return units


# --- 3. the deconvnet ----------------------------------------------------------------------------

# Bend the signal, and the paper gives no rule for them.  Names without their underscores.
NO_RULE = frozenset(
    "abs amax amin celu clamp clamp_max clamp_min clip elu exp gelu glu group_norm hardshrink "
    "hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu log log_softmax logsigmoid "
    "lp_pool2d max max_pool2d_with_indices maximum min minimum mish pow prelu rdiv reciprocal "
    "norm normalize prod rms_norm rrelu rsqrt rtruediv selu sigmoid silu softmax softmin softplus "
    "softshrink softsign sqrt square std tanh tanhshrink threshold var where".split()
)
PRODUCTS = frozenset("mul multiply div divide true_divide matmul mm bmm einsum".split())
MAX_POOLS = frozenset(("max_pool2d", "adaptive_max_pool2d"))


@dataclass(frozen=True)
class Seed:
    """The one activation of a layer that is kept; ``value`` None means: as recorded.

    The recorded one is the layer's own output: of a ReLU6 the clipped activation, of the logits the
    signed value.
    """

    layer: int
    unit: int
    y: int = 0
    x: int = 0
    value: float | None = None


def deconvnet(
    model: nn.Module,
    image: Tensor,
    layer_index: int,
    unit: int,
    y: int = 0,
    x: int = 0,
    seed: float | None = None,
    also: Sequence[str] = (),
) -> Tensor:
    """Project one activation of ``image`` ("channel row col") down to the pixels, section 2.1."""
    return deconvnets(model, image, [Seed(layer_index, unit, y, x, seed)], also)[0]


def deconvnets(
    model: nn.Module, image: Tensor, seeds: Sequence[Seed], also: Sequence[str] = ()
) -> list[Tensor]:
    """Several projections into one image, each "channel row col": one forward, a backward each."""
    return projections(model, image, seeds, "deconvnet", also)


def projections(
    model: nn.Module,
    image: Tensor,
    seeds: Sequence[Seed],
    method: str,
    also: Sequence[str] = (),
) -> list[Tensor]:
    """``deconvnets``, or what another method has in their place: ``gradient`` or ``guided``."""
    ascent = _ascend(model, image, also, method)
    return [_descend(ascent, seed, [ascent.pixels])[0][0] for seed in seeds]


@dataclass(frozen=True)
class _Pool:
    """One max pool call: how many layers came before, its input, its output, its windows."""

    layers_before: int
    input: Tensor
    output: Tensor
    window: Callable[[int, int], Tensor]  # (row, col of the output) -> "channel value"


@dataclass(frozen=True)
class _Ascent:
    """A forward pass ready to be descended."""

    pixels: Tensor
    layers: list[Tensor]
    pools: list[_Pool]


def _ascend(
    model: nn.Module, image: Tensor, also: Sequence[str], method: str = "deconvnet"
) -> _Ascent:
    pixels = image.detach()[None].clone().requires_grad_()
    mode = _Rules(RECTIFIERS[method])
    with torch.enable_grad(), _watched(model, also, mode.tap), mode:
        mode.layers.append(_forward(model, pixels.clone()))  # a clone: in-place ops on a leaf fail
    return _Ascent(pixels, mode.layers, mode.pools)


def _descend(ascent: _Ascent, seed: Seed, targets: Sequence[Tensor]) -> list[Tensor]:
    """The signal that arrives at each target when all of the layer but the seed is zero."""
    layer = ascent.layers[seed.layer]
    place = (0, seed.unit) if layer.ndim == 2 else (0, seed.unit, seed.y, seed.x)
    if layer.ndim == 2 and (seed.y, seed.x) != (0, 0):
        raise ValueError(f"a neuron sits at (0, 0), not at ({seed.y}, {seed.x})")
    signal = torch.zeros_like(layer)
    signal[place] = layer[place].detach() if seed.value is None else seed.value
    arrived = torch.autograd.grad(
        layer, targets, signal, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return list(arrived)


class _Rules(TorchFunctionMode):
    """Runs the model forward unaltered and gives each op the backward rule named in the head.

    The model always gets a copy and we keep the original, so an in-place write of the model cannot
    turn a kept layer into something later.
    """

    def __init__(self, rectifier: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rectifier = rectifier
        self.layers: list[Tensor] = []
        self.pools: list[_Pool] = []

    def tap(self, output: Tensor) -> Tensor:
        """Keep ``output`` as a layer and hand the model a copy of it."""
        self.layers.append(output)
        return output.clone()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        ceiling = rectifier_ceiling(func, args, kwargs)
        if ceiling is not None:
            handed_on = self.tap(self.rectifier(func, args, kwargs, ceiling))
            if _is_in_place(func, args, kwargs):
                return _first(args, kwargs).copy_(handed_on)  # others may hold this very tensor
            return handed_on
        if _name(func) == "local_response_norm":
            return _PassUnchanged.apply(_first(args, kwargs), func(*args, **kwargs).detach())
        if _name(func) in MAX_POOLS:
            return self._pool(func, args, kwargs)
        _refuse_without_rule(func, args, kwargs)
        return func(*args, **kwargs)

    def _pool(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        pooled: Tensor = func(*args, **kwargs)
        window = _adaptive_window if _name(func) == "adaptive_max_pool2d" else _window
        values = _first(args, kwargs).detach().clone()
        named = {name: value for name, value in kwargs.items() if name != "input"}

        def look(row: int, col: int) -> Tensor:
            return window((row, col), values[0], *args[1:], **named)

        self.pools.append(_Pool(len(self.layers), values, pooled, look))
        return pooled.clone()


class _Rectify(torch.autograd.Function):
    """Forward: clamp to [0, ceiling].  Down: ReLU of the signal, blind to the forward values."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, ceiling: float) -> Tensor:
        return signal.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0), None


class _RectifyByBoth(torch.autograd.Function):
    """Forward: clamp to [0, ceiling].  Down: ReLU of the signal, where the input was inside."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, ceiling: float) -> Tensor:
        ctx.inside = (signal > 0) & (signal < ceiling)
        return signal.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return torch.where(ctx.inside, signal.clamp(min=0), 0.0), None


def _by_torch(func: Callable[..., Any], args: Any, kwargs: Any, ceiling: float) -> Tensor:
    """The model's own call, on a copy, which it may overwrite."""
    own = _first(args, kwargs).clone()
    called: Tensor = func(own, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
    return called


RECTIFIERS: dict[str, Callable[..., Tensor]] = {
    "deconvnet": lambda func, args, kwargs, top: _Rectify.apply(_first(args, kwargs), top),
    "guided": lambda func, args, kwargs, top: _RectifyByBoth.apply(_first(args, kwargs), top),
    "gradient": _by_torch,
}


class _PassUnchanged(torch.autograd.Function):
    """Forward: the normalised values.  Down: the signal as it is."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, normalised: Tensor) -> Tensor:
        return normalised.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal, None


def _refuse_without_rule(func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    inputs = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
    name = _name(func)
    if inputs and name in NO_RULE:
        raise NotImplementedError(f"the deconvnet has no rule for {name!r}")
    if len(inputs) > 1 and name in PRODUCTS:
        raise NotImplementedError(f"the deconvnet has no rule for {name!r} of two signals")


# --- 4. switches that rounding may flip ----------------------------------------------------------


def pooling_margins(
    model: nn.Module, image: Tensor, seed: Seed, also: Sequence[str] = ()
) -> list[Tensor]:
    """For each max pool below ``seed``, how clear each maximum is on the signal's way.

    Each tensor is "channel row col" of the pool's output: (first - second) / |first|, where first
    and second are the two largest values of the window, at different places.  Infinite, because
    nothing can go wrong there, are: a window that receives no signal; a window of one value; and a
    window whose two largest are both exactly zero, which is how most windows after a rectifier
    look (the first zero is the switch for everyone; that rounding elsewhere turns one of the zeros
    into a tiny positive value is possible, rare, and not counted here).  Two largest that are equal
    but not zero have the margin 0.
    """
    ascent = _ascend(model, image, also)
    count = len(ascent.layers)
    layer = range(count)[seed.layer]
    pools = [pool for pool in ascent.pools if pool.layers_before <= layer]
    signals = _descend(ascent, seed, [pool.output for pool in pools]) if pools else []
    return [
        torch.where(signal[0] != 0, _clearness(pool), math.inf)
        for pool, signal in zip(pools, signals, strict=True)
    ]


def has_close_switch(
    model: nn.Module,
    image: Tensor,
    layer_index: int,
    tolerance: float = 1e-6,
    seed: Seed | None = None,
    also: Sequence[str] = (),
) -> bool:
    """Whether some pooling window before the layer has two largest values closer than tolerance.

    Relative, in the sense of ``pooling_margins``: ties of zeros do not count, other ties do.
    Without ``seed`` every window of every max pool executed before the layer is looked at; with it
    only those that the seed's signal goes through.  Either way a close switch only *may* explain a
    difference: flat regions of a photograph have exact ties, and of correct SqueezeNet projections
    about four in ten pass one.  So assert the share of agreeing items first, then this.
    """
    if seed is not None:
        margins = pooling_margins(model, image, replace(seed, layer=layer_index), also)
    else:
        ascent = _ascend(model, image, also)
        layer = range(len(ascent.layers))[layer_index]
        margins = [_clearness(pool) for pool in ascent.pools if pool.layers_before <= layer]
    return any(bool((margin < tolerance).any()) for margin in margins)


def _clearness(pool: _Pool) -> Tensor:
    """The margin of every window of one pool, "channel row col"."""
    margins = torch.full_like(pool.output[0], math.inf).detach()
    for row in range(margins.shape[1]):
        for col in range(margins.shape[2]):
            values = pool.window(row, col)
            if values.shape[1] > 1:
                first, second = values.topk(2).values.T
                both_zero = (first == 0) & (second == 0)
                margin = (first - second) / first.abs().clamp(min=torch.finfo(first.dtype).tiny)
                margins[:, row, col] = margin.masked_fill(both_zero, math.inf)
    return margins


def _window(
    place: tuple[int, int],
    values: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The values "channel value" in the window of one output place of ``max_pool2d``.

    ``ceil_mode`` needs no care: it only adds output places, whose windows the image cuts off.
    """
    del ceil_mode, return_indices
    for axis in (0, 1):
        step = _pair(kernel_size if stride in (None, []) else stride)[axis]
        first = place[axis] * step - _pair(padding)[axis]
        taps = [first + i * _pair(dilation)[axis] for i in range(_pair(kernel_size)[axis])]
        inside = [tap for tap in taps if 0 <= tap < values.shape[1 + axis]]
        values = values.index_select(1 + axis, torch.tensor(inside))
    return values.flatten(1)


def _adaptive_window(
    place: tuple[int, int], values: Tensor, output_size: Any, return_indices: bool = False
) -> Tensor:
    """The same for ``adaptive_max_pool2d``: output i of n sees floor(iH/n) to ceil((i+1)H/n)."""
    del return_indices
    for axis in (0, 1):
        length = values.shape[1 + axis]
        cells = _pair(output_size)[axis] or length
        first = place[axis] * length // cells
        last = -(-(place[axis] + 1) * length // cells)
        values = values.narrow(1 + axis, first, last - first)
    return values.flatten(1)


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, int) or value is None:
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


# --- 5. receptive fields -------------------------------------------------------------------------

PROBES = 4  # images in one forward pass; float64 maps of a large network fill memory fast


def receptive_box(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    layer_index: int,
    y: int,
    x: int,
    also: Sequence[str] = (),
) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) of the pixels that place (y, x) of a layer sees; half-open, in the image."""
    return receptive_boxes(model, image_shape, [(layer_index, y, x)], also)[0]


def receptive_boxes(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    places: Sequence[tuple[int, int, int]],
    also: Sequence[str] = (),
) -> list[tuple[int, int, int, int]]:
    """The boxes of many places (layer, y, x) from one sweep: H + W forward passes.

    A row of pixels belongs to the field if NaN in all of it makes some unit at the place NaN;
    likewise a column.  The box is the hull: holes of a dilated field are inside it.  A place that
    sees padding only has the empty box (0, 0, 0, 0).  NaN is a faithful dye: 0 · NaN is NaN, so
    neither zero weights nor dead units hide it; torch's rectifiers, max pools, LRN and average
    pools let it through; and float64 convolutions have no transformed (Winograd) algorithm on the
    CPU that would smear it over neighbours (float32 ones may).
    """
    _, height, width = image_shape
    rows = _stained(model, image_shape, places, 1, also)
    cols = _stained(model, image_shape, places, 2, also)
    boxes = []
    for of_rows, of_cols in zip(rows, cols, strict=True):
        ys = [r for r in range(height) if of_rows[r]]
        xs = [c for c in range(width) if of_cols[c]]
        boxes.append((ys[0], xs[0], ys[-1] + 1, xs[-1] + 1) if ys and xs else (0, 0, 0, 0))
    return boxes


def _stained(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    places: Sequence[tuple[int, int, int]],
    axis: int,
    also: Sequence[str],
) -> list[list[bool]]:
    """For each place, for each row (``axis`` 1) or column (2) of pixels: is it seen from there?"""
    seen: list[list[bool]] = [[] for _ in places]
    for start in range(0, image_shape[axis], PROBES):
        lines = range(start, min(start + PROBES, image_shape[axis]))
        probes = torch.zeros(len(lines), *image_shape, dtype=torch.float64)
        for probe, line in zip(probes, lines, strict=True):
            probe.select(axis, line).fill_(math.nan)
        outputs = _layer_outputs_float64(model, probes, also)
        for line_of_place, (layer, y, x) in zip(seen, places, strict=True):
            line_of_place += outputs[layer][:, :, y, x].isnan().any(1).tolist()
    return seen


def _layer_outputs_float64(model: nn.Module, images: Tensor, also: Sequence[str]) -> list[Tensor]:
    recorder = _Recorder()
    with torch.no_grad(), _watched(model, also, recorder.see), recorder:
        logits = _forward(model, images, torch.float64)
    return [layer.activation for layer in recorder.layers] + [_as_maps(logits)]


# --- 6. images -----------------------------------------------------------------------------------


def preprocess(path: str | Path, resize: int, crop: int, interpolation: str = "bilinear") -> Tensor:
    """Upright RGB, shorter side to ``resize``, centre crop; u8 "channel row col"."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        if upright.mode == "I;16":  # 0 … 65535
            upright = Image.fromarray(np.floor(np.asarray(upright) / 256).astype(np.uint8))
        upright = upright.convert("RGB")
    steps = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation), antialias=True),
            transforms.CenterCrop(crop),
        ]
    )
    pixels: Tensor = pil_to_tensor(steps(upright))
    return pixels


def normalise(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(pixels / 255 - mean) / std a channel, "channel row col" in both."""
    scaled = pixels.to(dtype) / 255
    centre = torch.tensor(mean, dtype=dtype)[:, None, None]
    return (scaled - centre) / torch.tensor(std, dtype=dtype)[:, None, None]


def outliers(maxima: np.ndarray, multiple: float, at_most: int) -> tuple[list[int], float]:
    """Images whose norm is above the multiple of the median image's, largest first; the median."""
    norms = [math.sqrt(sum(float(value) ** 2 for value in row)) for row in maxima]
    median = sorted(norms)[(len(norms) - 1) // 2]
    bin_start = 2 ** (math.floor(32 * math.log2(median)) / 32)
    above = [i for i, norm in enumerate(norms) if norm > multiple * bin_start]
    return sorted(above, key=lambda i: (-norms[i], i))[:at_most], median


# --- 7. occlusion --------------------------------------------------------------------------------


def square_starts(begin: int, end: int, side: int, stride: int) -> list[int]:
    """Where a square of ``side`` pixels stands along an axis; the last is flush with the end."""
    starts = [start for start in range(begin, end, stride) if start + side <= end]
    if starts[-1] + side < end:
        starts.append(end - side)
    return starts


def occluded(
    image: Tensor, patch: int, stride: int, fill: Tensor, box: Sequence[int] | None = None
) -> Tensor:
    """Copies of the image ("channel row col"), each under one square: "position channel row col".

    Positions in reading order, over the image or within a box (y0, x0, y1, x1), to which a larger
    square is cut.
    """
    y0, x0, y1, x1 = box if box is not None else (0, 0, image.shape[1], image.shape[2])
    height, width = min(patch, y1 - y0), min(patch, x1 - x0)
    copies = []
    for y in square_starts(y0, y1, height, stride):
        for x in square_starts(x0, x1, width, stride):
            copy = image.clone()
            copy[:, y : y + height, x : x + width] = fill[:, None, None]
            copies.append(copy)
    return torch.stack(copies)


def occlusion(
    model: nn.Module,
    image: Tensor,
    patch: int,
    stride: int,
    fill: Tensor,
    also: Sequence[str] = (),
    box: Sequence[int] | None = None,
) -> list[list[Layer]]:
    """All layers for every position of the square, section 4.2: position, layer."""
    copies = occluded(image, patch, stride, fill, box)
    return [layers(model, copy[None], also) for copy in copies]


# --- 8. invariance -------------------------------------------------------------------------------


def moved(
    pixels: Tensor, transformation: str, amount: float, border: str, fill: Sequence[float]
) -> Tensor:
    """The image ("channel row col", 0–255) under one move, pixel by pixel, in float64.

    A pixel of the result shows what lay at its place before the move, about the centre of the
    image; between pixels bilinearly.
    """
    channels, height, width = pixels.shape
    result = torch.zeros(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for col in range(width):
            y, x = row + 0.5 - height / 2, col + 0.5 - width / 2  # from the centre
            if transformation == "translation":
                y = y - amount
            elif transformation == "scale":
                y, x = y / amount, x / amount
            else:
                turn = math.radians(amount)  # y points down, so this turns to the left
                y, x = (
                    x * math.sin(turn) + y * math.cos(turn),
                    x * math.cos(turn) - y * math.sin(turn),
                )
            place = y + height / 2 - 0.5, x + width / 2 - 0.5
            for channel in range(channels):
                result[channel, row, col] = _between(
                    pixels[channel].double(), place, border, fill[channel]
                )
    return result


def _between(values: Tensor, place: tuple[float, float], border: str, fill: float) -> float:
    """Bilinearly between the four pixels around a place, of which some may lie outside."""
    y, x = (_inside(at, length, border) for at, length in zip(place, values.shape, strict=True))
    found = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for col in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - col))
            there = 0 <= row < values.shape[0] and 0 <= col < values.shape[1]
            if there:
                found += weight * float(values[row, col])
            elif border == "mean":
                found += weight * fill
            else:
                assert abs(weight) < 1e-9  # such places were brought inside
    return found


def _inside(at: float, length: int, border: str) -> float:
    if border == "mean":
        return at
    if border == "reflect":  # about the outer edges of the first and the last pixel
        while not -0.5 <= at <= length - 0.5:
            at = -1 - at if at < -0.5 else 2 * length - 1 - at
    return min(max(at, 0.0), length - 1.0)


def distances(
    model: nn.Module, image: Tensor, other: Tensor, also: Sequence[str] = ()
) -> list[tuple[float, float]]:
    """Of every layer the Euclidean distance between two images' features, and the norm of the
    first's; images are "channel row col", normalised."""
    found = []
    for one, two in zip(
        layer_outputs(model, image[None], also),
        layer_outputs(model, other[None], also),
        strict=True,
    ):
        a, b = one.double().flatten().tolist(), two.double().flatten().tolist()
        apart = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
        found.append((apart, math.sqrt(sum(x**2 for x in a))))
    return found


# --- 9. correspondence ---------------------------------------------------------------------------


def covered(image: Tensor, box: Sequence[int], fill: Tensor) -> Tensor:
    """A copy of the image ("channel row col") with the pixels of (y0, x0, y1, x1) filled."""
    y0, x0, y1, x1 = box
    copy = image.clone()
    for y in range(y0, y1):
        for x in range(x0, x1):
            copy[:, y, x] = fill
    return copy


def sign_changes(
    model: nn.Module, image: Tensor, box: Sequence[int], fill: Tensor, also: Sequence[str] = ()
) -> list[list[int]]:
    """Of every layer sign(x - x~) of each feature, with x~ under the covered image: section 4.3."""
    clean = layer_outputs(model, image[None], also)
    hidden = layer_outputs(model, covered(image, box, fill)[None], also)
    return [
        [(a > b) - (a < b) for a, b in zip(one, two, strict=True)]
        for one, two in zip(
            [layer.flatten().tolist() for layer in clean],
            [layer.flatten().tolist() for layer in hidden],
            strict=True,
        )
    ]


def correspondence(
    model: nn.Module,
    images: Sequence[Tensor],
    boxes: Sequence[Sequence[int]],
    fill: Tensor,
    also: Sequence[str] = (),
) -> list[tuple[float, float]]:
    """Of every layer the mean, over all i and j that differ, of H(sign eps_i, sign eps_j), and the
    standard deviation over the pairs i < j; H is the share of features whose signs differ."""
    signs = [
        sign_changes(model, image, box, fill, also)
        for image, box in zip(images, boxes, strict=True)
    ]
    found = []
    for layer in range(len(signs[0])):
        ordered, unordered = [], []
        for i in range(len(images)):
            for j in range(len(images)):
                if i != j:
                    one, other = signs[i][layer], signs[j][layer]
                    differing = sum(a != b for a, b in zip(one, other, strict=True))
                    ordered.append(differing / len(one))
                    if i < j:
                        unordered.append(differing / len(one))
        mean = sum(ordered) / len(ordered)
        variance = sum((distance - mean) ** 2 for distance in unordered) / len(unordered)
        found.append((mean, math.sqrt(variance)))
    return found


# --- 10. probe -----------------------------------------------------------------------------------


def cell_means(maps: Tensor, grid: int) -> Tensor:
    """Means of maps ("unit row col") over a grid of cells: "unit cell_row cell_col"; a cell begins
    at the whole part of its share of the side and ends at the next whole number."""
    units, rows, cols = maps.shape
    found = torch.zeros(units, grid, grid, dtype=maps.dtype)
    for unit in range(units):
        for row in range(grid):
            for col in range(grid):
                y0, y1 = row * rows // grid, -(-(row + 1) * rows // grid)
                x0, x1 = col * cols // grid, -(-(col + 1) * cols // grid)
                values = [float(maps[unit, y, x]) for y in range(y0, y1) for x in range(x0, x1)]
                found[unit, row, col] = sum(values) / len(values)
    return found


def class_accuracy(found: Sequence[int], label: Sequence[int]) -> float:
    """The mean over the classes of the share of their images that are told right."""
    shares = []
    for number in sorted(set(label)):
        own = [f == t for f, t in zip(found, label, strict=True) if t == number]
        shares.append(sum(own) / len(own))
    return sum(shares) / len(shares)


def softmax_regression(
    features: Tensor, label: Tensor, classes: int, c: float, steps: int = 20_000
) -> tuple[Tensor, Tensor]:
    """Weights ("class feature") and biases that minimise c · Σ cross-entropy + ½ Σ weight², by
    plain gradient descent in float64."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64)
    truth = torch.nn.functional.one_hot(label, classes).double()
    # The curvature of the objective is at most this, so every step goes down.
    rate = 1 / (1 + c * float(features.square().sum(1).max() + 1) * len(features) / 2)
    for _ in range(steps):
        wrong = torch.softmax(features @ weight.T + bias, 1) - truth
        weight = weight - rate * (c * wrong.T @ features + weight)
        bias = bias - rate * c * wrong.sum(0)
    return weight, bias


def trained(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    orders: Iterable[Sequence[int]],
    rates: Sequence[float],
    batch: int,
    momentum: float,
    max_rms: float,
    classes: int | None = None,
) -> nn.Module:
    """The network after an epoch for each order and rate, by stochastic gradient descent with
    momentum, each filter of a convolution scaled back to a root mean square of ``max_rms``
    (Zeiler & Fergus 2013, section 3).  ``pixels`` are normalised.  An order is asked for
    when its epoch begins; dropout, if the model is in training mode, draws on from there.  With
    ``classes`` the first so many outputs alone are trained."""
    velocity = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for order, rate in zip(orders, rates, strict=True):
        for begin in range(0, len(order), batch):
            chosen = list(order[begin : begin + batch])
            logits = model(pixels[chosen])[:, :classes]
            log_share = logits - torch.logsumexp(logits, 1, keepdim=True)
            loss = -sum(log_share[row, labels[i]] for row, i in enumerate(chosen)) / len(chosen)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for (name, value), gradient in zip(
                    model.named_parameters(), gradients, strict=True
                ):
                    velocity[name] = momentum * velocity[name] + gradient
                    value -= rate * velocity[name]
                    if value.ndim == 4:
                        for one in value:
                            rms = float(one.square().mean().sqrt())
                            if rms > max_rms:
                                one *= max_rms / rms
    return model


def errors(model: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
    """Shares of images whose label is not the highest output, and not among the five highest."""
    wrong = [0, 0]
    for image, label in zip(pixels, labels.tolist(), strict=True):
        logits = model(image[None])[0].tolist()
        above = sum(one > logits[label] for one in logits)
        wrong[0] += above > 0
        wrong[1] += above > 4
    return wrong[0] / len(labels), wrong[1] / len(labels)


def power_by_frequency(filter_: np.ndarray, side: int, edges: Sequence[float]) -> list[float]:
    """Shares of a filter's power ("row col channel") in bands of frequencies, by the sum that
    defines the Fourier transform, on a grid of ``side`` × ``side`` frequencies."""
    height, width, channels = filter_.shape
    power = [0.0] * (len(edges) + 1)
    steps = [n if n < side / 2 else n - side for n in range(side)]
    for u in steps:
        for v in steps:
            radius = ((u / side) ** 2 + (v / side) ** 2) ** 0.5
            band = sum(radius >= edge for edge in edges)
            for channel in range(channels):
                real = imaginary = 0.0
                for y in range(height):
                    for x in range(width):
                        angle = 2 * np.pi * (u * y + v * x) / side
                        real += filter_[y, x, channel] * np.cos(angle)
                        imaginary -= filter_[y, x, channel] * np.sin(angle)
                power[band] += real**2 + imaginary**2
    return [one / sum(power) for one in power]


def order_of(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the images in an epoch (from 1); dropout goes on drawing from the same
    generator, torch's global one."""
    drawn = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(drawn) // 2)
    order: list[int] = torch.randperm(count).tolist()
    return order
