"""Read arrays of a run, and say in a sentence what is wrong with one that cannot be read."""

from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from deconvoy.errors import DeconvoyError, RunUnreadable


def array_of(group: zarr.Group, name: str) -> Any:
    """An array of a group, unread.

    Raises:
        RunUnreadable: there is none of that name.
    """
    try:
        return group[name]
    except KeyError:
        store: Any = group.store
        url = str(store.root) if isinstance(store, LocalStore) else store.url
        raise RunUnreadable(
            f"The run {url!r} has no array {f'{group.path}/{name}'!r}: `deconvoy verify {url}` "
            "tells what else is missing; copy it again from where it is whole, or make it anew."
        ) from None


def read(group: zarr.Group, name: str, selection: Any = np.s_[:]) -> Any:
    """A part of an array.

    Raises:
        RunUnreadable: no such array, or its bytes do not have the checksum they were written with.
        RunUnreachable: the run is not on a local disk, and cannot be reached.
    """
    return read_from(array_of(group, name), selection)


def read_from(array: Any, selection: Any) -> Any:
    """A part of an array that was found.  Raises as ``read`` does."""
    try:
        return np.asarray(array[selection])
    except DeconvoyError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # each codec raises its own
        raise RunUnreadable(
            f"The array {array.path!r} is broken ({error}): copy it again from where it is whole, "
            "or make the run anew."
        ) from error
