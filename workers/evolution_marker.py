"""The marker of a shard that every checkpoint has scanned: the hits it found, as bytes."""

import dataclasses
import io

import numpy as np

from deconvoy.errors import RunUnreadable
from workers.topk import Hits


def to_bytes(hits: tuple[Hits, ...]) -> bytes:
    """Hits of every checkpoint, as a .npz archive; its members carry checksums."""
    buffer = io.BytesIO()
    columns = {
        f"{number}:{column.name}": getattr(own, column.name)
        for number, own in enumerate(hits)
        for column in dataclasses.fields(Hits)
    }
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def from_bytes(content: bytes, name: str, checkpoints: int) -> tuple[Hits, ...]:
    """Read ``to_bytes`` back.

    Raises:
        RunUnreadable: the bytes are not whole; the message carries ``name``.
    """
    names = [column.name for column in dataclasses.fields(Hits)]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return tuple(
                Hits(*(stored[f"{number}:{column}"] for column in names))
                for number in range(checkpoints)
            )
    except Exception as error:  # zip, zlib, key and shape errors alike: the file is broken
        raise RunUnreadable(
            f"The ledger file {name!r} is broken ({error}): delete it and `deconvoy resume` "
            "computes again what is missing then."
        ) from error
