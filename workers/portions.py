"""How much is computed at once: enough to keep a device busy, and no more than it has room for.

A CPU wants little at a time, which stays in its caches; a GPU much, since it is started for each
step anew.  Bits depend on it: what goes together in one convolution decides how sums are ordered.
So it is fixed for each kind of device, and not fitted to the memory that happens to be free.
"""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Portions:
    """For one kind of device."""

    scan_pixels: int
    """Of a batch of images whose size is chosen automatically: 16 images of 224 px keep two cores
    busy within 1 GB."""
    map_bytes: int
    """Of the largest activation of such a batch: lanes share a cache."""
    images: int
    """Run forward together for their switches.  A batch is filled up to this size, so that an image
    gives the same bits whichever others are with it."""
    switch_bytes: int
    """Of the switches held for the hits at hand, and again of those kept for the next leases: 256
    MiB are those of 170 images of vgg16, or of 3,000 of alexnet; with masks of rectifiers besides,
    of 83 and 1,790."""
    hits: int
    """Projected together, at most: enough for matrices to be read once for many, and few enough
    that each of a worker's lanes has a batch of its own."""
    grouped: int
    """Hits that share the size of a window, on average, at least: of fewer, windows are smaller."""
    signal_bytes: int
    """Of a signal on its way down; there are two at a time while it goes through a step."""
    squares: int
    """Grey squares in a batch: of more, their windows differ more in size, and all are computed as
    large as the largest (alexnet, 224 px: 12 % more multiply-adds with 147 than with 32)."""
    square_bytes: int
    """Of such a batch: enough for convolutions to be at their full speed, and, on a CPU, so little
    that the C library keeps the memory from one step to the next."""
    grid_parts: int
    """Of an image's positions of the square: enough for the lanes of most workers, and few, since
    the clean image is run for each of them."""


PORTIONS = {
    "cpu": Portions(
        scan_pixels=16 * 224 * 224,
        map_bytes=100 * MIB,
        images=1,
        switch_bytes=256 * MIB,
        hits=48,
        grouped=12,
        signal_bytes=8 * MIB,
        squares=32,
        square_bytes=64 * MIB,
        grid_parts=4,
    ),
    "cuda": Portions(
        scan_pixels=128 * 224 * 224,
        map_bytes=4096 * MIB,
        images=32,
        switch_bytes=2048 * MIB,
        hits=512,
        grouped=96,
        signal_bytes=256 * MIB,
        squares=1024,
        square_bytes=4096 * MIB,
        grid_parts=1,
    ),
}


def portions_on(device_type: str) -> Portions:
    """Those of a kind of device, by torch's name of it."""
    return PORTIONS.get(device_type, PORTIONS["cuda"])
