"""Images that people hand in, each in a folder of its own that a job can take as its data.

They lie beside the runs, where every worker can read.  What is no image that a job could decode is
refused here, not by a job minutes later.  Beside each lies when it was handed in last, by which it
ends: a bucket has no clock that a folder has, too.
"""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
from PIL import Image

from deconvoy.bombs import refuse_bombs
from deconvoy.errors import (
    DeconvoyError,
    FieldInvalid,
    ImageUnreadable,
    RunNotFound,
    RunUnreachable,
)
from deconvoy.run import Run
from deconvoy.store import RunStore
from service.catalogue import STATES, Catalogue
from service.settings import Settings
from service.shelf import Shelf

logger = logging.getLogger(__name__)

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
"""That jobs decode, and how their files end."""

HANDED_IN = ".handed-in"
"""The file with the time.  What begins with a dot is none of a data set."""

OURS = re.compile("[0-9a-f]{16}")
"""Names of their folders."""

SWEEP_SECONDS = 86_400.0


@dataclass(frozen=True)
class Upload:
    """One image, kept."""

    uri: str
    """Its folder: the ``data.uri`` of a job."""
    width: int
    height: int


def keep(content: bytes, settings: Settings) -> Upload:
    """Put an image where jobs can read it; the same image twice is one.

    Raises:
        RequestError: it is no image, of a format that jobs do not decode, or too large.
    """
    kind, width, height = _checked(content, settings.picture_pixels)
    uri = f"{settings.uploads}/{hashlib.sha256(content).hexdigest()[:16]}"
    folder = RunStore(uri)
    folder.write(HANDED_IN, _text(datetime.now(UTC)))  # first: what is old may be swept away
    folder.write(f"image.{FORMATS[kind]}", content)
    return Upload(uri, width, height)


def sweep(
    settings: Settings, named: Callable[[], Collection[str]], now: datetime | None = None
) -> list[str]:
    """Remove what was handed in longer ago than ``upload_days`` and is not named.

    Args:
        named: gives the places that jobs and runs take images from; asked where there is need.
        now: default: the time it is.

    Returns:
        The places that are gone.
    """
    now = now or datetime.now(UTC)
    old = []
    for name in RunStore(settings.uploads).names(""):
        if OURS.fullmatch(name) is None:
            continue
        folder = RunStore(f"{settings.uploads}/{name}")
        if _is_old(folder, settings, now):
            old.append(folder)
    kept = named() if old else ()
    gone = []
    for folder in old:
        if folder.url not in kept and _is_old(folder, settings, now):  # not handed in again since
            folder.remove()
            gone.append(folder)
    return [folder.url for folder in gone]


def _is_old(folder: RunStore, settings: Settings, now: datetime) -> bool:
    try:
        since = datetime.fromisoformat(folder.read(HANDED_IN).decode())
    except (RunNotFound, ValueError):  # nobody knows since when: from now on
        folder.write(HANDED_IN, _text(now))
        return False
    return now - since > timedelta(days=settings.upload_days)


def places_named(catalogue: Catalogue, shelf: Shelf) -> set[str]:
    """Where jobs take their images from, and runs that no job made."""
    return {uri for spec in _specs(catalogue, shelf) for uri in _uris(spec)}


def _specs(catalogue: Catalogue, shelf: Shelf) -> Iterator[Any]:
    jobs = catalogue.in_states(*STATES)
    yield from (job.spec for job in jobs)
    known = {job.id for job in jobs}
    for run_id, url in shelf.urls().items():
        if run_id not in known:
            try:
                yield Run(url).attributes["spec"]
            except RunUnreachable:  # it may well name one
                raise
            except (DeconvoyError, KeyError):  # broken: nobody will look at its images
                continue


def _uris(spec: Any) -> Sequence[str]:
    """As they were submitted: an earlier version may have taken what this one does not."""
    data = spec.get("data") if isinstance(spec, dict) else None
    uri = data.get("uri") if isinstance(data, dict) else None
    return [uri] if isinstance(uri, str) else [one for one in uri or () if isinstance(one, str)]


async def sweep_daily(settings: Settings, catalogue: Catalogue, shelf: Shelf) -> None:
    """Now and once a day, until it is cancelled."""

    def once() -> None:
        for uri in sweep(settings, partial(places_named, catalogue, shelf)):
            logger.info("The image %s was handed in long ago, and no job has it: removed.", uri)

    while True:
        try:
            await anyio.to_thread.run_sync(once, abandon_on_cancel=True)
        except Exception:  # whatever it is, it is no reason to stop serving
            logger.exception("Images that were handed in could not be looked through.")
        await anyio.sleep(SWEEP_SECONDS)


def _text(moment: datetime) -> bytes:
    return moment.isoformat().encode()


def _checked(content: bytes, pixels: int) -> tuple[str, int, int]:
    told = f"The body, of {len(content):,} bytes,"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
            kind, (width, height) = str(picture.format), picture.size
            if width * height > pixels:
                raise FieldInvalid(
                    f"The image has {width} × {height} pixels, more than the {pixels:,} that "
                    "DECONVOY_PICTURE_PIXELS allows: send a smaller one.",
                    "body",
                )
            refuse_bombs(picture, content, pixels)
            picture.load()
    except ImageUnreadable as error:
        raise FieldInvalid(f"{told} is refused: {error}. Save it otherwise.", "body") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise FieldInvalid(
            f"{told} is no image that can be read ({error}): send a file of the kind "
            f"{', '.join(FORMATS)}.",
            "body",
        ) from error
    return kind, width, height
