"""Images that people hand in, each in a folder of its own that a job can take as its data.

They lie beside the runs, where every worker can read.  What is no image that a job could decode is
refused here, not by a job minutes later.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from deconvoy.errors import FieldInvalid
from deconvoy.store import RunStore
from service.settings import Settings

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
"""That jobs decode, and how their files end."""


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
    RunStore(uri).write(f"image.{FORMATS[kind]}", content)
    return Upload(uri, width, height)


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
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise FieldInvalid(
            f"{told} is no image that can be read ({error}): send a file of the kind "
            f"{', '.join(FORMATS)}.",
            "body",
        ) from error
    return kind, width, height
