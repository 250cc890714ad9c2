"""A picture of one image of a run: what the run keeps of it, else its file.

Files are read only below the operator's data roots, and only where a data set is a folder; what is
sent is drawn anew, never the file itself.
"""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.files import Files, is_remote
from deconvoy.run import Run
from service.settings import Settings

LONGER_SIDE = 1024
"""Of a picture from a file, in pixels at most."""

FILE_BYTES = 64 * 2**20
"""Of a file that is read, at most."""


def of(run: Run, image: int, uri: str, settings: Settings) -> Image.Image:
    """The picture.

    Raises:
        RunNotFound: the run keeps none, and the file may not be read or is none.
    """
    kept = _of_occlusion(run, image)
    if kept is None:
        kept = _of_hits(run, image)
    if kept is not None:
        return Image.fromarray(kept)
    for folder in _folders(run, settings):
        found = _of_file(folder, uri, settings.picture_pixels)
        if found is not None:
            return found
    raise RunNotFound(
        f"The run {run.url!r} keeps no whole picture of image {image}, and its file {uri!r} cannot "
        "be read below the data roots of the service: add its folder to data_roots, or occlude it."
    )


def _of_occlusion(run: Run, image: int) -> UInt8[np.ndarray, "row col rgb"] | None:
    """The preprocessed image, of those a square was slid over."""
    try:
        return run.occlusion(image).picture
    except RunNotFound:
        return None


def _of_hits(run: Run, image: int) -> UInt8[np.ndarray, "row col rgb"] | None:
    """The preprocessed image, where a unit that sees all of it has it among its strongest."""
    side = run.attributes["provenance"]["transform"]["crop"]
    for layer in reversed(run.layer_names):
        try:
            group = run.layer_group(layer)
        except RunNotFound:
            continue
        projected = run.projected_units(layer)
        if not projected:
            continue
        images, windows = read(group, "image")[projected], read(group, "window")[projected]
        whole = (windows == (0, 0, side, side)).all(-1) & (images == image)
        for unit, rank in np.argwhere(whole)[:1].tolist():
            return np.asarray(run.unit(layer, projected[unit]).patches[rank])
    return None


def _folders(run: Run, settings: Settings) -> Iterator[str]:
    """Folders of the run's data set that the service may read."""
    for place in run.spec.data.places:
        if place.uri.startswith("shapes"):
            continue
        if is_remote(place.uri):
            roots = [root.rstrip("/") + "/" for root in settings.data_roots if is_remote(root)]
            if place.uri.startswith("s3:") and f"{place.uri}/".startswith(tuple(roots)):
                yield place.uri
        elif any(_below(Path(place.uri), root) for root in settings.data_roots):
            yield place.uri


def _below(path: Path, root: str) -> bool:
    return not is_remote(root) and path.resolve().is_relative_to(Path(root).resolve())


def _of_file(folder: str, uri: str, pixels: int) -> Image.Image | None:
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
            picture = Image.open(io.BytesIO(files.read(uri)))
            if picture.width * picture.height > pixels:
                return None
            picture.draft("RGB", (LONGER_SIDE, LONGER_SIDE))
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning):
        return None
    upright.thumbnail((LONGER_SIDE, LONGER_SIDE))
    return upright
