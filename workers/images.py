"""Read images: bytes → RGB pixels → model input, with decoding running ahead of the computing.

Pixels are uint8, (channel, row, col), RGB or grey, after resizing and cropping and before
normalisation.
Pillow decodes and resizes: the same pixels as torchvision's classic transforms.
"""

import hashlib
import io
import math
import textwrap
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deconvoy.bombs import refuse_bombs
from deconvoy.errors import ImageUnreadable
from deconvoy.spec import Transform

MAX_PIXELS = 80_000_000
"""Larger images are skipped before decoding: a decompression bomb must not take the worker down.
Less than Pillow's own bound, which it guards with a warning only."""

MAX_BYTES = 256 * 2**20
"""Larger files are skipped before they are read: as many pixels as above without any compression,
three bytes each, take less."""

LARGE_PIXELS = 16_000_000
"""Of what is larger, a process decodes one at a time: at their largest each takes a gigabyte, and
any number of them may come together."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Those data sets are made of, whatever a file is called.  Pillow knows forty more; among them
some that run another program (EPS) or hold images whose size is told nowhere else."""

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Picture:
    """One decoded image as the model sees it, and the size of its file, turned as EXIF says."""

    pixels: UInt8[Tensor, "channel row col"]
    width: int
    height: int

    @property
    def content(self) -> int:
        """A hash of the pixels in 64 bits: of ten million different images, two agree with a
        chance of three in a million."""
        digest = hashlib.blake2b(self.pixels.numpy().tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def decode(content: bytes, transform: Transform) -> Picture:
    """Decode, turn as EXIF says, resize the shorter side, crop the centre.

    Raises:
        ImageUnreadable: not an image, a broken one, or one larger than ``MAX_PIXELS``.
        MemoryError: nothing is wrong with the image.
    """
    try:
        refuse_long(len(content))
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            refuse_bombs(image, content, MAX_PIXELS)
            with _alone_if_large(_largest(image.size, transform)):
                # By way of RGB: of palettes and transparent images, grey is made from it.
                rgb = upright_rgb(image)
                return Picture(_fit(rgb, transform), *rgb.size)
    except (ImageUnreadable, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own sentence holds an address in memory
        told = "it is empty" if not content else f"it is none of {', '.join(FORMATS)}, or cut off"
        raise ImageUnreadable(f"not readable as an image: {told}") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, …
        told = textwrap.shorten(str(error), 300) or type(error).__name__
        raise ImageUnreadable(f"not readable as an image: {told}") from error


def refuse_long(length: int) -> None:
    """Raises ImageUnreadable where a file is longer than ``MAX_BYTES``."""
    if length > MAX_BYTES:
        raise ImageUnreadable(f"{length:,} bytes are more than an image may have, {MAX_BYTES:,}")


def _largest(size: tuple[int, int], transform: Transform) -> int:
    """Pixels before or after resizing, whichever are more."""
    width, height = size
    return max(width * height, math.prod(fitted_size((height, width), transform)))


_large = Lock()


def _alone_if_large(pixels: int) -> AbstractContextManager[Any]:
    return _large if pixels > LARGE_PIXELS else nullcontext()


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as EXIF says, eight bits a channel.  Transparency is dropped, as it was when networks
    were trained; of an animation just opened this is the first frame.

    Raises:
        ImageUnreadable: its numbers have no known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut, not scale, and leave all of it white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageUnreadable(
            f"its pixels are {'floating-point' if image.mode == 'F' else '32-bit'} numbers of no "
            "known range: save it with 8 or 16 bits a channel"
        )
    return image.convert("RGB")


def from_pixels(pixels: UInt8[np.ndarray, "row col rgb"], transform: Transform) -> Picture:
    """The same for pixels that need no decoding."""
    height, width = pixels.shape[:2]
    return Picture(_fit(Image.fromarray(pixels), transform), width, height)


_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def _fit(image: Image.Image, transform: Transform) -> UInt8[Tensor, "channel row col"]:
    image = image if transform.channels == 3 else image.convert("L")
    width, height = image.size
    tall, wide = fitted_size((height, width), transform)
    if (wide, tall) != image.size:
        if wide * tall > MAX_PIXELS:
            raise ImageUnreadable(
                f"{width}×{height} pixels would be {max(wide, tall)}×{transform.resize} after "
                f"resizing, more than {MAX_PIXELS:,}"
            )
        image = image.resize((wide, tall), _RESAMPLING[transform.interpolation])
    pixels = _cropped(np.atleast_3d(np.asarray(image)), transform.crop)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def fitted_size(size: tuple[int, int], transform: Transform) -> tuple[int, int]:
    """Height and width after resizing the shorter side, before the crop."""
    height, width = size
    # The longer side is cut, not rounded, as in torchvision.
    longer = int(transform.resize * max(size) / min(size))
    return (longer, transform.resize) if width <= height else (transform.resize, longer)


def _cropped(
    pixels: UInt8[np.ndarray, "row col channel"], side: int
) -> UInt8[np.ndarray, "side side channel"]:
    height, width = pixels.shape[:2]
    margins = [max(side - height, 0), max(side - width, 0)]
    if any(margins):
        before = [margin // 2 for margin in margins]
        after = [(margin + 1) // 2 for margin in margins]
        pixels = np.pad(pixels, [(before[0], after[0]), (before[1], after[1]), (0, 0)])
        height, width = pixels.shape[:2]
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return pixels[top : top + side, left : left + side]


def on_device(pixels: UInt8[Tensor, "*axis"], device: torch.device) -> UInt8[Tensor, "*axis"]:
    """There; to a GPU from page-locked memory, so that nothing waits for the copy."""
    if device.type != "cuda":
        return pixels.to(device)
    return pixels.pin_memory().to(device, non_blocking=True)


def normalise(
    pixels: UInt8[Tensor, "image channel row col"], transform: Transform
) -> Float[Tensor, "image channel row col"]:
    """uint8 pixels → the model's input: (pixel / 255 − mean) / std, float32."""
    return normalise_levels(pixels.to(torch.float32), transform)


def normalise_levels(
    levels: Float[Tensor, "image channel row col"], transform: Transform
) -> Float[Tensor, "image channel row col"]:
    """The same, in place, of pixels that lie between whole numbers."""
    mean = torch.tensor(transform.mean, device=levels.device).view(-1, 1, 1)
    std = torch.tensor(transform.std, device=levels.device).view(-1, 1, 1)
    return levels.div_(255).sub_(mean).div_(std)


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[S], T], sources: Iterable[S], ahead: int
) -> Iterator[Future[T]]:
    """Futures of ``read(source)`` in order, with up to ``ahead`` of them under way."""
    waiting: deque[Future[T]] = deque()
    for source in sources:
        waiting.append(pool.submit(read, source))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class PictureCache:
    """The most recently used pictures, up to a number of bytes; safe for several threads."""

    def __init__(self, read: Callable[[int], Picture], max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pictures: OrderedDict[int, Picture] = OrderedDict()
        self._lock = Lock()

    def __call__(self, image_id: int) -> Picture:
        with self._lock:
            if image_id in self._pictures:
                self._pictures.move_to_end(image_id)
                return self._pictures[image_id]
        picture = self._read(image_id)
        with self._lock:
            if image_id not in self._pictures:
                self._pictures[image_id] = picture
                self._bytes += picture.pixels.nbytes
            while self._bytes > self._max_bytes and len(self._pictures) > 1:
                _, oldest = self._pictures.popitem(last=False)
                self._bytes -= oldest.pixels.nbytes
        return picture

    def clear(self) -> None:
        with self._lock:
            self._pictures.clear()
            self._bytes = 0


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive pieces of ``size``, the last one as long as what is left."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
