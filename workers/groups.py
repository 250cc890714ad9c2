"""Write the group of an analysis: arrays of the schema, made by the driver, a row a work item.

Each row of an array is a chunk of its own, so it has one owner.  The driver makes the group before
an actor writes into it; its attributes come last, so a group that has them is whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from deconvoy.schema import ArrayField
from deconvoy.store import RunStore
from workers.writer import create_array, kept_whole


def create_group(
    run: RunStore,
    name: str,
    fields: Sequence[ArrayField],
    lengths: Mapping[str, int],
    whole: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    dtypes: Mapping[str, np.dtype[Any]] | None = None,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Make a group, over an older one if there is one.

    Args:
        lengths: of the axes.
        whole: values of those arrays that are known at once, and have one chunk.
        dtypes: of arrays whose type the schema leaves open.
        told: further attributes of arrays.
    """
    group = run.zarr("r+").create_group(name, overwrite=True)
    for field in fields:
        values = whole.get(field.name)
        if values is not None:
            create_array(group, field, values.shape, values.shape, None, {})
            kept_whole(group, field.name)[...] = values
        else:
            shape = tuple(lengths[dim] for dim in field.dims)
            dtype = (dtypes or {}).get(field.name)
            more = (told or {}).get(field.name, {})
            create_array(group, field, shape, (1, *shape[1:]), None, more, dtype)
    group.attrs.update(dict(attributes))


def write_row(run: RunStore, name: str, row: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one row of each array, in their order: where the last is there, the row is whole."""
    group: Any = run.zarr("r+")[name]
    assert isinstance(group, zarr.Group)
    for field, values in arrays.items():
        array = kept_whole(group, field)
        array[row] = np.asarray(values).astype(array.dtype)
