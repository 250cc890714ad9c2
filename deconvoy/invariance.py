"""How far features move when an image is shifted, scaled or turned: the curves of Fig. 5.

Zeiler & Fergus (2013, arXiv:1311.2901), Fig. 5: the Euclidean distance between the features of an
image and of the moved one, in a low and in a high layer, and the probability of the true class.
Here they are kept for every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.likeness import nearest
from deconvoy.schema import INVARIANCE_GROUP, MISSING_IMAGE

if TYPE_CHECKING:
    from deconvoy.run import Run

UNITS = {"translation": "pixels down", "scale": "factor", "rotation": "degrees counter-clockwise"}
"""What amounts are, by transformation."""


@dataclass(frozen=True)
class Invariance:
    """Some images, each moved in the same ways."""

    image: Int64[ndarray, " image"]
    """Their ids."""
    uris: tuple[str, ...]
    layers: tuple[str, ...]
    """In execution order."""
    transformation: tuple[str, ...]
    """Of each step: translation, scale or rotation."""
    amount: Float64[ndarray, " step"]
    """By how much: pixels down, a factor, or degrees counter-clockwise."""
    border: str
    """What came in from beyond it: ``mean``, ``edge`` or ``reflect``."""
    distance: Float64[ndarray, "image step layer"]
    """Euclidean, between a layer's whole output in the image and in the moved one."""
    norm: Float64[ndarray, "image layer"]
    """Euclidean, of a layer's output in the image."""
    target: Int64[ndarray, " image"]
    """The class that is watched: the image's label, or the most probable one where it has none."""
    probability: Float32[ndarray, "image step"]
    """Of that class in the moved image; by the softmax, 0–1."""
    clean_probability: Float32[ndarray, " image"]
    """Of it in the image."""
    label: Int64[ndarray, "image step"]
    """The most probable class in the moved image."""
    clean_label: Int64[ndarray, " image"]
    predicted: bool
    """Whether the watched classes are no labels but what the model makes of the images."""
    classes: tuple[str, ...]
    """Names of the model's outputs; empty where unknown."""

    @property
    def relative(self) -> Float64[ndarray, "image step layer"]:
        """Distance ÷ norm; NaN where a layer is silent on an image."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Float64[ndarray, "image step layer"] = self.distance / self.norm[:, None]
        return np.where(self.norm[:, None] > 0, ratio, np.nan)

    @property
    def transformations(self) -> tuple[str, ...]:
        """Those there are, in the order of the steps."""
        return tuple(dict.fromkeys(self.transformation))

    def steps(self, transformation: str) -> Bool[ndarray, " step"]:
        """Which steps are of this transformation."""
        return np.array([name == transformation for name in self.transformation], bool)

    def name_of(self, output: int) -> str:
        """Of a class; its number where it has none."""
        return self.classes[output] if output < len(self.classes) else f"class {output}"

    def table(self) -> pa.Table:
        """One row a layer and step, over all images: layer, transformation, amount, the means of
        the distance and of the relative distance, its deviation over the images, and the mean
        probability of the class."""
        relative, layers, steps = self.relative, len(self.layers), len(self.amount)
        silent = np.isnan(relative)
        counted = np.maximum(1, (~silent).sum(0))
        mean = np.where(silent, 0, relative).sum(0) / counted
        deviation = np.sqrt(np.where(silent, 0, (relative - mean) ** 2).sum(0) / counted)
        never = silent.all(0)
        return pa.table(
            {
                "layer": pa.array(np.repeat(self.layers, steps), pa.string()),
                "transformation": pa.array(list(self.transformation) * layers, pa.string()),
                "amount": np.tile(self.amount, layers),
                "distance": self.distance.mean(0).T.ravel(),
                "relative": pa.array(mean.T.ravel(), mask=never.T.ravel()),
                "deviation": pa.array(deviation.T.ravel(), mask=never.T.ravel()),
                "probability": np.tile(self.probability.mean(0).astype(np.float64), layers),
            }
        )

    def of(self, images: Sequence[int]) -> "Invariance":
        """Of these rows alone."""
        rows = list(images)
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in _BY_IMAGE}
        uris = tuple(self.uris[row] for row in rows)
        return Invariance(**{**vars(self), **kept, "uris": uris})


_BY_IMAGE = (
    "image", "distance", "norm", "target", "probability", "clean_probability", "label",
    "clean_label",
)  # fmt: skip


def invariance_of(run: "Run") -> Invariance:
    """All images that are moved already.

    Raises:
        RunNotFound: the run moves no image, or has not begun to.
    """
    group = run.group_at(INVARIANCE_GROUP)
    if group is None or "layers" not in group.attrs:
        remedy = "an analysis of kind invariance in the spec asks for it."
        if run.status != "done" and run.spec.invariance is not None:
            remedy = f"the run is {run.status}."
        raise RunNotFound(f"The run {run.url!r} has moved no images: {remedy}")
    told: dict[str, Any] = dict(group.attrs.asdict())
    ids = read(group, "image")
    (done,) = np.nonzero(ids != MISSING_IMAGE)
    names = told["transformations"]
    arrays = {name: read(group, name)[done] for name in _BY_IMAGE}
    return Invariance(
        **arrays,
        uris=tuple(run.images_of(ids[done]).column("uri").to_pylist()),
        layers=tuple(told["layers"]),
        transformation=tuple(names[number] for number in read(group, "transformation").tolist()),
        amount=read(group, "amount"),
        border=told["border"],
        predicted=told["labels"] == "predicted",
        classes=run.classes,
    )


def layer_number(found: Invariance, layer: str) -> int:
    """Place of a layer among those of the analysis.

    Raises:
        RunNotFound: it is none of them; names the nearest.
    """
    if layer not in found.layers:
        raise RunNotFound(f"The invariance has no layer {layer!r}; {nearest(layer, found.layers)}.")
    return found.layers.index(layer)
