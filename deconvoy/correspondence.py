"""Whether a network knows that parts of objects correspond: the paper's Table 1, as arrays.

Zeiler & Fergus (2013, arXiv:1311.2901), section 4.3: the same part is covered in several images,
and where the features of all of them change alike (a low Δ), the network has some notion of it.
Beside each part boxes of the same sizes were covered at random, again and again.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64
from numpy import ndarray

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.schema import CORRESPONDENCE_GROUP

if TYPE_CHECKING:
    from deconvoy.run import Run


@dataclass(frozen=True)
class Correspondence:
    """Some parts, covered in the same images."""

    parts: tuple[str, ...]
    layers: tuple[str, ...]
    """In execution order."""
    image: Int64[ndarray, " image"]
    """Ids of the images."""
    delta: Float64[ndarray, "part layer"]
    """Δ: mean over all pairs of images of the Hamming distance between the signs of what covering
    the part changes, by dimension; the lower, the more alike they change."""
    deviation: Float64[ndarray, "part layer"]
    """Standard deviation of the pairs' distances."""
    random: Float64[ndarray, "part draw layer"]
    """Δ of boxes of the same sizes at random."""

    @property
    def p(self) -> Float64[ndarray, "part layer"]:
        """How probable a Δ as low as each would be, were the part a place like any other."""
        pairs = zip(self.delta, self.random, strict=True)
        return np.stack([p_values(delta, random) for delta, random in pairs])

    def table(self) -> pa.Table:
        """One row a layer and part: layer, part, delta, deviation, random (the mean Δ of the
        draws), random_deviation (of the draws), p."""
        layers, parts = len(self.layers), len(self.parts)
        columns = {
            "delta": self.delta,
            "deviation": self.deviation,
            "random": self.random.mean(1),
            "random_deviation": self.random.std(1),
            "p": self.p,
        }
        return pa.table(
            {
                "layer": pa.array(np.repeat(self.layers, parts), pa.string()),
                "part": pa.array(list(self.parts) * layers, pa.string()),
                **{name: values.T.ravel() for name, values in columns.items()},
            }
        )


def correspondence_of(run: "Run") -> Correspondence:
    """That of a run.

    Raises:
        RunNotFound: the run has no such analysis, or has not finished it.
    """
    group = run.group_at(CORRESPONDENCE_GROUP)
    if group is None or "layers" not in group.attrs:
        remedy = "an analysis of kind correspondence in the spec asks for it."
        if run.status != "done" and run.spec.correspondence is not None:
            remedy = f"the run is {run.status}."
        raise RunNotFound(f"The run {run.url!r} has no correspondence: {remedy}")
    told: dict[str, Any] = dict(group.attrs.asdict())
    delta = read(group, "delta")
    if np.isnan(delta).any():
        raise RunNotFound(
            f"The correspondence of {run.url!r} is not finished: the run is {run.status}."
        )
    return Correspondence(
        parts=tuple(told["parts"]),
        layers=tuple(told["layers"]),
        image=read(group, "image"),
        delta=delta[:, 0],
        deviation=read(group, "deviation")[:, 0],
        random=delta[:, 1:],
    )


def p_values(
    delta: Float64[np.ndarray, " layer"], of_random: Float64[np.ndarray, "draw layer"]
) -> Float64[np.ndarray, " layer"]:
    """How probable a Δ as low as this is, were the part a place like any other: of each layer, one-
    sided, (1 + number of draws whose Δ is no higher) / (draws + 1).

    With the observation counted among the draws it is never 0, and a test by it errs no more often
    than its level says; 20 draws give 1/21 at the least.

    Source: Phipson & Smyth, *Permutation P-values Should Never Be Zero*, Statistical Applications
    in Genetics and Molecular Biology 9 (2010), article 39; the test is Barnard's (1963).
    """
    as_low = (of_random <= delta).sum(axis=0)
    shares: Float64[np.ndarray, " layer"] = (1 + as_low) / (1 + len(of_random))
    return shares
