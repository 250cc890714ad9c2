"""A picture of one image of a run: what the run keeps of it, else its file.

Files are read only below the operator's data roots, and only where a data set is a folder; what is
sent is drawn anew, never the file itself.  Images of ``shapes`` are drawn by their number.
"""

import io
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from deconvoy.arrays import read
from deconvoy.bombs import refuse_bombs
from deconvoy.errors import RunNotFound
from deconvoy.files import Files, is_remote
from deconvoy.run import Run
from deconvoy.spec import Place
from service import launcher
from service.settings import Settings

LONGER_SIDE = 1024
"""Of a picture from a file, in pixels at most."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Whatever a file is called; of the others Pillow knows, some run another program."""

FILE_BYTES = 64 * 2**20
"""Of a file that is read, at most."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")

LATER = re.compile(r"\+(\d+):")
"""How images of a later place of ``data.uri`` are named."""


def of(
    run: Run, image: int, uri: str, side: int, preprocessed: bool, settings: Settings
) -> Image.Image:
    """The picture: whole, from its file, else as the run keeps it.

    Args:
        side: the longer one, in pixels at most.
        preprocessed: only as the model sees it, resized and cropped, which a run keeps of some.

    Raises:
        RunNotFound: the run keeps none, and the file may not be read or is none.
    """
    if not preprocessed:
        place, name = _place_of(run, uri)
        if _is_drawn(place):
            return _within(side, launcher.drawing(place.uri, name))
        if _readable(place, settings):
            picture = _of_file(place.uri, name, side, settings.picture_pixels)
            if picture is not None:
                return picture
    kept = _of_run(run, image)
    if kept is None:
        raise RunNotFound(
            f"The run {run.url!r} keeps no whole picture of image {image}, and its file {uri!r} "
            "cannot be read below the data roots of the service: add its folder to data_roots, or "
            "occlude it."
        )
    return _within(side, kept)


def _within(side: int, pixels: UInt8[np.ndarray, "row col rgb"]) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return picture


def drawable(run: Run, images: Iterable[tuple[int, str]], settings: Settings) -> set[int]:
    """Of these images, by id and uri, those there is likely a picture of: nothing is decoded."""
    kept = occluded(run) | _seen_whole(run).keys()
    found = set()
    for image, uri in images:
        place, name = _place_of(run, uri)
        if image in kept or _is_drawn(place) or _is_file(place, name, settings):
            found.add(image)
    return found


def occluded(run: Run) -> set[int]:
    """Images that a square was slid over."""
    try:
        return set(run.occluded()["image_id"].to_pylist())
    except RunNotFound:
        return set()


def _of_run(run: Run, image: int) -> UInt8[np.ndarray, "row col rgb"] | None:
    """The preprocessed image, of those a square was slid over; or that a unit which sees all of an
    image has among its strongest."""
    try:
        return run.occlusion(image).picture
    except RunNotFound:
        pass
    place = _seen_whole(run).get(image)
    if place is None:
        return None
    layer, unit, rank = place
    return np.asarray(run.unit(layer, unit).patches[rank])


_whole: WeakKeyDictionary[Run, dict[int, tuple[str, int, int]]] = WeakKeyDictionary()


def _seen_whole(run: Run) -> dict[int, tuple[str, int, int]]:
    """Image → layer, unit and rank of a hit whose patch is all of the image."""
    if run in _whole:
        return _whole[run]
    side = run.attributes["provenance"]["transform"]["crop"]
    found: dict[int, tuple[str, int, int]] = {}
    for layer in run.layer_names:
        try:
            group = run.layer_group(layer)
        except RunNotFound:
            continue
        projected = run.projected_units(layer)
        if not projected:
            continue
        images, windows = read(group, "image")[projected], read(group, "window")[projected]
        for row, rank in np.argwhere((windows == (0, 0, side, side)).all(-1)).tolist():
            found[int(images[row, rank])] = (layer, projected[row], rank)
    _whole[run] = found
    return found


def _place_of(run: Run, uri: str) -> tuple[Place, str]:
    """The place of the job's data that an image comes from, and what it is called there."""
    places = run.spec.data.places
    later = LATER.match(uri) if len(places) > 1 else None
    return (places[0], uri) if later is None else (places[int(later[1])], uri[later.end() :])


def _is_drawn(place: Place) -> bool:
    """Whether its images are drawn by number."""
    return place.uri.partition("?")[0] == "shapes"


def _readable(place: Place, settings: Settings) -> bool:
    """Whether it is a folder that the service may read."""
    if is_remote(place.uri):
        roots = [root.rstrip("/") + "/" for root in settings.readable if is_remote(root)]
        return place.uri.startswith("s3:") and f"{place.uri}/".startswith(tuple(roots))
    return any(_below(Path(place.uri), root) for root in settings.readable)


def _is_file(place: Place, name: str, settings: Settings) -> bool:
    """Of a bucket nobody asks for every image of a list."""
    if not _readable(place, settings) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
        return False
    return is_remote(place.uri) or Path(place.uri, name).is_file()


def _below(path: Path, root: str) -> bool:
    if is_remote(root):
        return False
    # Of links that lead in a circle ``resolve`` would raise.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _of_file(folder: str, uri: str, side: int, pixels: int) -> Image.Image | None:
    if any(part in ("", ".", "..") for part in uri.split("/")) or "\0" in uri:
        return None
    if not is_remote(folder) and not _below(Path(folder, uri), folder):  # a link that leads away
        return None
    files = Files(folder)
    try:
        if not 0 < files.entry(uri).size <= FILE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = files.read(uri, FILE_BYTES)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            refuse_bombs(picture, content, pixels)
            picture.draft("RGB", (side, side))
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # a bomb; decoders raise OSError, ValueError, SyntaxError, struct.error, …
        return None
    upright.thumbnail((side, side))
    return upright
