"""Read a part of the images table; each of its pages has a checksum."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from deconvoy.errors import RunUnreadable
from deconvoy.store import RunStore


def images_part(run: RunStore, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """
    Args:
        columns: only these.

    Raises:
        RunNotFound: it is not there.
        RunUnreadable: it was cut short or altered.
    """
    content = io.BytesIO(run.read(path))
    try:
        return pq.read_table(content, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise RunUnreadable(
            f"{path!r} of {run.url!r} is broken ({error}): copy it again from where it is whole, "
            "or make the run anew."
        ) from error
