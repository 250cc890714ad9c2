"""How much of other classes each layer's features tell: the paper's tables 4 to 7, and Fig. 9.

Zeiler & Fergus (2013, arXiv:1311.2901), section 5: the network is frozen, and linear classifiers
are fitted on its features of other labelled images.  Beside it stands the same network with random
weights, and where that was asked for the whole network, trained on those images from scratch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64
from numpy import ndarray

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.schema import PROBE_GROUP, PROBE_SCRATCH

if TYPE_CHECKING:
    from deconvoy.run import Run

WHOLE = "whole network"
"""What stands for a layer in the table, where not one layer's features were classified."""


@dataclass(frozen=True)
class Probe:
    """Classifiers on the features of layers."""

    weights: tuple[str, ...]
    """``trained``, and ``random`` where that was asked for."""
    layers: tuple[str, ...]
    """In execution order."""
    pooled: tuple[str, ...]
    """How each layer's maps became features."""
    classifiers: tuple[str, ...]
    train: tuple[int, ...]
    """Images of each class that were learned from."""
    classes: tuple[str, ...]
    """Of the images, which are not those of the model."""
    accuracy: Float64[ndarray, "weights layer classifier size fold"]
    """Mean over the classes, 0–1."""
    converged: Bool[ndarray, "weights layer classifier size fold"]
    scratch: Float64[ndarray, "size fold"] | None = None
    """Accuracy of the whole network, trained from scratch on the images that the classifiers
    learned from: mean over the classes, 0–1.  None where that was not asked for."""

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / len(self.classes)

    def table(self) -> pa.Table:
        """One row a layer, weights, classifier and size: layer, features (how they were made),
        weights, classifier, train (images of each class), accuracy (mean over the folds),
        deviation (of the folds), converged (share of the fits).

        Last, where it was trained from scratch, the layer ``whole network`` of weights ``scratch``,
        classifier ``softmax``: features is empty and converged null, since a training has no end of
        its own.
        """
        axes = np.array(list(np.ndindex(self.accuracy.shape[:4])), dtype=np.int64).reshape(-1, 4)
        order = np.lexsort((axes[:, 3], axes[:, 2], axes[:, 0], axes[:, 1]))
        weights, layer, classifier, size = axes[order].T
        own = self.accuracy[weights, layer, classifier, size]
        done = self.converged[weights, layer, classifier, size]
        table = pa.table(
            {
                "layer": pa.array([self.layers[n] for n in layer], pa.string()),
                "features": pa.array([self.pooled[n] for n in layer], pa.string()),
                "weights": pa.array([self.weights[n] for n in weights], pa.string()),
                "classifier": pa.array([self.classifiers[n] for n in classifier], pa.string()),
                "train": pa.array([self.train[n] for n in size], pa.int64()),
                "accuracy": own.mean(1),
                "deviation": own.std(1),
                "converged": done.mean(1),
            }
        )
        return table if self.scratch is None else pa.concat_tables([table, self._scratch_table()])

    def _scratch_table(self) -> pa.Table:
        """A row a size."""
        assert self.scratch is not None
        count = len(self.train)
        told = {"layer": WHOLE, "features": "", "weights": "scratch", "classifier": "softmax"}
        return pa.table(
            {
                **{name: pa.array([value] * count, pa.string()) for name, value in told.items()},
                "train": pa.array(self.train, pa.int64()),
                "accuracy": self.scratch.mean(1),
                "deviation": self.scratch.std(1),
                "converged": pa.nulls(count, pa.float64()),
            }
        )


def probe_of(run: "Run") -> Probe:
    """That of a run.

    Raises:
        RunNotFound: the run has no such analysis, or has not finished it.
    """
    group = run.group_at(PROBE_GROUP)
    if group is None or "layers" not in group.attrs:
        remedy = "an analysis of kind probe in the spec asks for it."
        if run.status != "done" and run.spec.probe is not None:
            remedy = f"the run is {run.status}."
        raise RunNotFound(f"The run {run.url!r} has no probe: {remedy}")
    told: dict[str, Any] = dict(group.attrs.asdict())
    accuracy = read(group, "accuracy")
    scratch = read(group, PROBE_SCRATCH.name) if "recipe" in told else None
    if np.isnan(accuracy).any() or (scratch is not None and np.isnan(scratch).any()):
        raise RunNotFound(f"The probe of {run.url!r} is not finished: the run is {run.status}.")
    names = ("weights", "layers", "pooled", "classifiers", "train", "classes")
    return Probe(
        **{name: tuple(told[name]) for name in names},
        accuracy=accuracy,
        converged=read(group, "converged"),
        scratch=scratch,
    )
