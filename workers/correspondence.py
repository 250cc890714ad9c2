"""How alike the layers of several images change when the same part of each is covered.

Follows Zeiler & Fergus (2013, arXiv:1311.2901) section 4.3 and table 1.  Of every image i and layer
l, with features x in the image and x̃ in the image with its part covered, ε_i = x_i − x̃_i; then

    Δ_l = the mean over all pairs i ≠ j of H(sign ε_i, sign ε_j) / dimension of l,

with H the Hamming distance between vectors of −1, 0 and 1 (the paper's sum over pairs, here a mean,
as in its table).  The lower, the more alike the images change.  Pure: no I/O, no state.

In float32 the sign of a difference that is nearly zero is that of rounding; where the covered box
cannot be seen from, it is zero by definition.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64, UInt8, UInt64
from torch import Tensor

from deconvoy.errors import ActivationInvalid, RequestError
from deconvoy.spec import Transform
from workers.graph import Layer, Network
from workers.images import normalise, normalise_levels
from workers.lanes import Lanes
from workers.portions import MIB

SIGN_BYTES = 512 * MIB
"""Of all signs that are held at a time.  Those of one way of covering must fit: of 830 images over
all layers of squeezenet1_1, or 160 over those of vgg16.  Several ways are done together as long as
they do, which spares forward passes of the clean images."""

CLEAN_BYTES = 256 * MIB
"""Of a batch's features in the clean images, over all layers, in float32: fewer images go together
where these would be more."""

FEWEST = 2
"""Images: there must be a pair."""

InputOf = Callable[[Int64[np.ndarray, " row"]], Float[Tensor, "row channel row_of_pixels col"]]
"""Numbers of images → their normalised pixels, on the device."""


@dataclass(frozen=True)
class Correspondence:
    """How alike several images change under one covering."""

    delta: Float64[np.ndarray, " layer"]
    """Δ, 0 where all signs agree in every pair, 1 where none does in any."""
    deviation: Float64[np.ndarray, " layer"]
    """Standard deviation of the unordered pairs' distances about Δ, of these pairs themselves
    (divided by their number, not by one less)."""
    images: int
    """Compared."""


class Signs:
    """Of ε in several images, of one layer: a plane of bits where it is above zero, and one where
    it is below, so that a feature takes two bits an image.

    Args:
        dimension: features of the layer.
    """

    def __init__(self, images: int, dimension: int) -> None:
        self.images, self.dimension = images, dimension
        self._above = self._plane(images, dimension)
        self._below = self._plane(images, dimension)

    @staticmethod
    def _plane(images: int, dimension: int) -> UInt64[np.ndarray, "image word"]:
        return np.zeros((images, words_of(dimension)), np.uint64)

    def put(
        self,
        rows: slice,
        above: Bool[np.ndarray, "row value"],
        below: Bool[np.ndarray, "row value"],
    ) -> None:
        """Those of some images."""
        for plane, bits in ((self._above, above), (self._below, below)):
            packed = np.packbits(bits, axis=1)
            plane.view(np.uint8)[rows, : packed.shape[1]] = packed

    def distances(self) -> Int64[np.ndarray, " pair"]:
        """How many signs differ in each pair of images: of image 0 and each later one, then of
        image 1 and each later one, …"""
        found = []
        for one in range(len(self._above) - 1):
            differ = self._above[one] ^ self._above[one + 1 :]
            differ |= self._below[one] ^ self._below[one + 1 :]
            found.append(np.bitwise_count(differ).sum(axis=1, dtype=np.int64))
        return np.concatenate(found)


def words_of(dimension: int) -> int:
    """Words of 64 bits that a plane of so many bits fills."""
    return -(-dimension // 64)


def correspondences(
    network: Network,
    layers: Sequence[Layer],
    pixels: Sequence[UInt8[Tensor, "channel row col"]],
    boxes: Int32[np.ndarray, "covering image 4"],
    fill: Sequence[float],
    transform: Transform,
    batch_size: int,
    lanes: Lanes = map,
    advance: Callable[[int], None] = lambda count: None,
    names: Sequence[str] = (),
) -> list[Correspondence]:
    """Cover one box in each of the images, in several ways, and compare how the images change.

    Args:
        pixels: preprocessed images, before normalisation.
        boxes: of every way, the box of every image: (y0, x0, y1, x1) in pixels of the preprocessed
            image, half-open, not empty; ``coverings`` makes them.
        fill: colour of what is covered, 0–255, a number a channel.
        batch_size: images a forward pass, at most.
        lanes: batches are cut from images and layers alone, so results do not depend on how many
            there are.
        advance: told how many images more have been covered and run.
        names: of the images, for errors; else they are counted.

    Returns:
        One for each way.

    Raises:
        RequestError: there is no pair of images, a box does not lie in its image, or the signs
            would take too much memory.
        ActivationInvalid: a layer is NaN or infinite on an image; names both.
    """

    def input_of(numbers: np.ndarray) -> Tensor:
        batch = torch.stack([pixels[number] for number in numbers.tolist()])
        return normalise(batch.to(network.device), transform)

    # By the arithmetic of pixels: covered with its own colour, an image stays as it is.
    levels = torch.tensor(fill, dtype=torch.float32).view(1, -1, 1, 1)
    colour = normalise_levels(levels.to(network.device), transform).flatten()
    return compare(network, layers, input_of, boxes, colour, batch_size, lanes, advance, names)


def compare(
    network: Network,
    layers: Sequence[Layer],
    input_of: InputOf,
    boxes: Int32[np.ndarray, "covering image 4"],
    colour: Float[Tensor, " channel"],
    batch_size: int,
    lanes: Lanes = map,
    advance: Callable[[int], None] = lambda count: None,
    names: Sequence[str] = (),
) -> list[Correspondence]:
    """The same for images that are normalised already, as the colour is."""
    images = boxes.shape[1]
    _require_pair(images)
    _require_inside(boxes, network.input_shape[1:])
    together, batches = coverings_together(layers, images), batches_of(layers, images, batch_size)
    found: list[Correspondence] = []
    for start in range(0, len(boxes), together):
        some = boxes[start : start + together]
        signs = [[Signs(images, dimension_of(layer)) for layer in layers] for _ in some]
        for batch in batches:
            clean = _Clean(network, layers, input_of(batch.rows), batch, names)
            cover = partial(_cover, clean, colour, advance)
            for _ in lanes(cover, zip(some[:, batch.rows], signs, strict=True)):
                pass
        found += lanes(_compared, signs)
    return found


# -- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Images ``start`` to ``stop`` that go through the network together."""

    start: int
    stop: int
    size: int
    """Of the pass, the same for every batch."""

    @property
    def rows(self) -> Int64[np.ndarray, " row"]:
        """Their numbers; the last one again where they do not fill the pass."""
        return np.minimum(np.arange(self.start, self.start + self.size), self.stop - 1)


def batches_of(layers: Sequence[Layer], images: int, most: int) -> list[Batch]:
    """All images, in as few batches as ``CLEAN_BYTES`` and ``most`` allow, of one size, even.

    Cut from the layers and the number of images alone: bits depend on the size of a batch.
    """
    fitting = CLEAN_BYTES // (4 * sum(map(dimension_of, layers)))
    count = -(-images // max(1, min(most, fitting)))
    size = -(-images // count)
    return [Batch(n, min(n + size, images), size) for n in range(0, images, size)]


def coverings_together(layers: Sequence[Layer], images: int) -> int:
    """How many ways of covering all the images are done at a time.

    Raises:
        RequestError: the signs of one take more than ``SIGN_BYTES``.
    """
    an_image = sum(16 * words_of(dimension_of(layer)) for layer in layers)
    if images * an_image > SIGN_BYTES:
        raise RequestError(
            f"analyses.correspondence compares {images:,} images, whose signs over the job's "
            f"layers take {images * an_image / MIB:,.0f} MiB, more than {SIGN_BYTES // MIB}: take "
            f"at most {SIGN_BYTES // an_image:,} images, or name fewer layers."
        )
    return SIGN_BYTES // (images * an_image)


def dimension_of(layer: Layer) -> int:
    """Features of the layer in one image."""
    return layer.units * layer.height * layer.width


# -- forward passes ------------------------------------------------------------------------------


class _Clean:
    """The features of a batch of images, to compare those with covered parts with.

    Image and covered image have the same row of a pass of the same size, so that what the covering
    does not change has the same bits in both.

    Args:
        images: normalised, as many as the batch's rows.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        images: Float[Tensor, "row channel row_of_pixels col"],
        batch: Batch,
        names: Sequence[str],
    ) -> None:
        self._network, self._layers, self._images = network, layers, images
        self._names, self.batch = names, batch
        self._values: dict[str, Tensor] = {}

        def keep(number: int, values: Tensor) -> None:
            self._values[layers[number].name] = values.clone()  # it may be overwritten

        self._run(images, keep)

    def cover(
        self,
        boxes: Int32[np.ndarray, "row 4"],
        colour: Float[Tensor, " channel"],
        signs: Sequence[Signs],
    ) -> None:
        """Run the images with their boxes covered, and put down the signs of each layer."""
        batch, covered = self.batch, self._images.clone()
        for image, (y0, x0, y1, x1) in zip(covered, boxes.tolist(), strict=True):
            image[:, y0:y1, x0:x1] = colour[:, None, None]

        def put(number: int, values: Tensor) -> None:
            layer = self._layers[number]
            clean = self._values[layer.name]
            seen = torch.from_numpy(_seeing(layer, boxes)).to(values.device)[:, None]
            own = slice(batch.stop - batch.start)
            above, below = (
                _in_memory_order(changed.bitwise_and_(seen))[own].cpu().numpy()
                for changed in (clean > values, clean < values)
            )
            signs[number].put(slice(batch.start, batch.stop), above, below)

        self._run(covered, put)

    @torch.inference_mode()
    def _run(self, images: Tensor, take: Callable[[int, Tensor], None]) -> None:
        """One pass; ``take`` gets the number of each chosen layer, and its activations as (row,
        unit, row of the map, col)."""
        numbers = {layer.name: number for number, layer in enumerate(self._layers)}

        def visit(layer: Layer, values: Tensor) -> None:
            number = numbers.get(layer.name)
            if number is None:
                return
            if layer.ceiling is not None:  # seen before it is cut off
                values = values.clamp(0, layer.ceiling)
            values = values.reshape(len(values), layer.units, layer.height, layer.width)
            self._require_finite(layer, values)
            take(number, values)

        self._network.forward(images, visit)

    def _require_finite(self, layer: Layer, values: Float[Tensor, "row unit y x"]) -> None:
        if bool(values.sum().isfinite()):  # of numbers that are, unless it overflows
            return
        finite = torch.isfinite(values).flatten(1).all(1)
        if bool(finite.all()):
            return
        row = int((~finite).nonzero()[0])
        number = int(self.batch.rows[row])
        raise ActivationInvalid(
            f"Layer {layer.name!r} has an activation that is NaN or infinite on image "
            f"{self._names[number] if self._names else number} or on that image with a part "
            "covered, but activations must be finite: check the weights for NaN and the transform "
            "for the right mean and deviation, and start a new run."
        )


def _in_memory_order(values: Tensor) -> Bool[Tensor, "row value"]:
    """Channels last, as maps lie in memory on a CPU: what counts is that it is always the same."""
    return values.permute(0, 2, 3, 1).flatten(1)


def _cover(
    clean: _Clean,
    colour: Tensor,
    advance: Callable[[int], None],
    covering: tuple[np.ndarray, Sequence[Signs]],
) -> None:
    boxes, signs = covering
    clean.cover(boxes, colour, signs)
    advance(clean.batch.stop - clean.batch.start)


def _seeing(layer: Layer, boxes: Int32[np.ndarray, "row 4"]) -> Bool[np.ndarray, "row y x"]:
    """Which positions of a map see anything of the boxes.

    Elsewhere nothing changes, but not every convolution computes it alike: those by Winograd or
    Fourier transforms, which GPUs like, let the roundings of neighbours mix.
    """
    y0, x0, y1, x1 = (boxes[:, side, None] for side in range(4))
    rows, cols = layer.field.rows, layer.field.cols
    in_rows = (rows.low < y1) & (rows.high > y0) & (rows.low < rows.high)
    in_cols = (cols.low < x1) & (cols.high > x0) & (cols.low < cols.high)
    seeing: Bool[np.ndarray, "row y x"] = in_rows[:, :, None] & in_cols[:, None, :]
    return seeing


def _compared(signs: Sequence[Signs]) -> Correspondence:
    """Of all layers."""
    dimensions = np.array([own.dimension for own in signs])
    distances = [own.distances() for own in signs]
    return Correspondence(
        # Divided last, so that sums are exact and equal distances give an equal Δ in any order.
        delta=np.array([own.mean() for own in distances]) / dimensions,
        deviation=np.array([own.std() for own in distances]) / dimensions,
        images=signs[0].images,
    )


# -- checks --------------------------------------------------------------------------------------


def _require_pair(images: int) -> None:
    if images < FEWEST:
        raise RequestError(
            f"analyses.correspondence has {images} image{'' if images == 1 else 's'} to compare, "
            f"but images are compared in pairs: give at least {FEWEST} that have all the parts."
        )


def _require_inside(boxes: Int32[np.ndarray, "covering image 4"], size: Sequence[int]) -> None:
    """Compare boxes with the height and width of the preprocessed images."""
    low, high = boxes[..., :2], boxes[..., 2:]
    fits = ((low >= 0) & (low < high) & (high <= np.array(size))).all(-1)
    if not fits.all():
        covering, image = np.argwhere(~fits)[0].tolist()
        y0, x0, y1, x1 = boxes[covering, image].tolist()
        raise RequestError(
            f"The box to cover in image {image} is rows {y0} to {y1} and columns {x0} to {x1}, but "
            f"must hold at least a pixel of the preprocessed image of {size[0]}×{size[1]}: leave "
            "the image out."
        )


# -- against chance ------------------------------------------------------------------------------


def coverings(
    boxes: Int32[np.ndarray, "image 4"],
    images: Sequence[int],
    side: int,
    seed: int,
    part: str,
    draws: int,
) -> Int32[np.ndarray, "covering image 4"]:
    """The boxes of one part, and then so many drawings of random ones of the same sizes.

    Args:
        boxes: in pixels of the preprocessed image, half-open.
        images: ids.
        side: of the preprocessed images, in pixels.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    drawn = [random_boxes(sizes, side, seed, part, draw, images) for draw in range(draws)]
    return np.stack([boxes, *drawn])


def random_boxes(
    sizes: Int32[np.ndarray, "image hw"],
    side: int,
    seed: int,
    part: str,
    draw: int,
    images: Sequence[int],
) -> Int32[np.ndarray, "image 4"]:
    """A box of each size, placed uniformly in a square image; a pure function of its arguments, and
    of each image by itself.

    Args:
        sizes: height and width in pixels, at most ``side``.
        images: ids.
    """
    of_part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little")
    found = np.zeros((len(sizes), 4), np.int32)
    for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
        rng = np.random.Generator(np.random.PCG64([seed, of_part, draw, image]))
        corner = [int(rng.random() * (side - int(length) + 1)) for length in size]
        found[row] = [*corner, *(corner + size)]
    return found
