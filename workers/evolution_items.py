"""What follows from an evolution analysis: the checkpoints, the layers, and the work items.

Settled with the job: every checkpoint is read, and fits the model, before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from deconvoy.errors import RequestError
from deconvoy.spec import EvolutionSpec, JobSpec, StorageSpec
from workers.choice import choose, chosen_units
from workers.graph import Layer
from workers.models import PackedModel, pack
from workers.writer import units_per_item


@dataclass(frozen=True)
class Evolving:
    """An evolution analysis with all that follows from it before the scan."""

    spec: EvolutionSpec
    checkpoints: tuple[PackedModel, ...]
    """In training order, without the end."""
    names: tuple[str, ...]
    """Of the checkpoints, and last of the end."""
    layers: tuple[Layer, ...]
    """That are projected."""

    @property
    def columns(self) -> int:
        """Of the arrays: the checkpoints and the end."""
        return len(self.names)


@dataclass(frozen=True)
class EvolutionItem:
    """One Zarr shard of pictures over time to fill."""

    name: str
    layer: Layer
    start: int
    stop: int
    units: Int64[np.ndarray, " unit"]
    """Those of it to compute."""


def evolving_of(spec: JobSpec, packed: PackedModel, layers: Sequence[Layer]) -> Evolving | None:
    """What a spec's evolution analysis comes down to; None where it has none.

    A checkpoint with the very weights of the model is its end, and counts once.

    Raises:
        RequestError: a checkpoint is not there, or does not fit the model; or all are its end.
    """
    asked = spec.evolution
    if asked is None:
        return None
    found: dict[str, PackedModel] = {}
    for path in spec.model.checkpoints:
        model = spec.model.model_copy(update={"weights": path})
        try:
            made = pack(model, spec.seed, packed.transform)
        except RequestError as error:
            raise RequestError(f"model.checkpoints: {error}") from error
        if made.sha256 != packed.sha256:
            found[path] = made
    if not found:
        raise RequestError(
            f"model.checkpoints {list(spec.model.checkpoints)} all hold the weights of "
            f"model.weights {spec.model.weights!r}, so nothing evolves: give earlier ones."
        )
    able = [layer for layer in layers if not layer.obstacle]
    if asked.layers == "maps":
        chosen = tuple(layer for layer in able if layer.is_map)
    else:
        chosen = choose(able, asked.layers, "analyses.evolution.layers")
    names = (*found, str(spec.model.weights))
    return Evolving(asked, tuple(found.values()), names, chosen)


def evolution_items(evolving: Evolving, storage: StorageSpec, seed: int) -> list[EvolutionItem]:
    """Cut from the layers and the spec alone."""
    items = []
    for layer in evolving.layers:
        units = chosen_units(layer, evolving.spec, seed)
        size = units_per_item(layer, evolving.columns, storage)
        for part in np.unique(units // size).tolist():
            start, stop = part * size, min((part + 1) * size, layer.units)
            own = units[(units >= start) & (units < stop)]
            name = f"evolution/{layer.name}/item-{part:06d}"
            items.append(EvolutionItem(name, layer, start, stop, own))
    return items
