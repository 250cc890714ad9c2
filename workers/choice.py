"""Choose layers by name, and units of a layer."""

import difflib
import fnmatch
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from deconvoy.errors import RequestError
from deconvoy.spec import EvolutionSpec, Ids, ProjectionSpec
from workers.graph import Layer


def choose(layers: Sequence[Layer], patterns: Sequence[str], field: str) -> tuple[Layer, ...]:
    """Layers that match any of the names or globs, in execution order.

    Raises:
        RequestError: a pattern that matches none; names the nearest.
    """
    names = [layer.name for layer in layers]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise RequestError(
                f"{field}: no layer matches {pattern!r}; nearest: {', '.join(near)}. "
                "`deconvoy layers MODEL` lists them all."
            )
        chosen.update(found)
    return tuple(layer for layer in layers if layer.name in chosen)


def chosen_units(
    layer: Layer, asked: ProjectionSpec | EvolutionSpec, seed: int
) -> Int64[np.ndarray, " unit"]:
    """Units of a layer the projection takes, sorted."""
    if asked.units == "all":
        return np.arange(layer.units, dtype=np.int64)
    if isinstance(asked.units, Ids):
        ids = sorted({i for i in asked.units.ids if i < layer.units})
        return np.array(ids, dtype=np.int64)
    count = max(1, round(asked.units.sample * layer.units))
    drawn = random.Random(f"{seed}/{layer.name}").sample(range(layer.units), count)
    return np.array(sorted(drawn), dtype=np.int64)
