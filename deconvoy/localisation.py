"""Does a model look where the object is: the pointing game, played with a grey square.

For each occluded image whose object has a box, the point is the centre of the square under which
the target is least probable; it hits if it lies in a box.  Where several positions are equally low
(a square that hides next to nothing leaves a sure model at 1 everywhere) each counts its share, so
that no order of positions is an advantage (Zhang et al. 2016, "Top-down Neural
Attention by Excitation Backprop", arXiv:1608.00507).  There a point may miss by 15 pixels and the
shares of classes are averaged; here no margin is given, and every image counts the same.
Two numbers stand beside it: how often the centre of the image would hit, and chance, the share of
the square's positions whose centre lies in a box.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int32
from numpy import ndarray

from deconvoy.occlusion import Occlusion

SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),
        "uri": pa.string(),
        "class": pa.string(),
        "clean_probability": pa.float64(),
        "lowest": pa.float64(),
        "y": pa.float64(),
        "x": pa.float64(),
        "boxes": pa.int64(),
        "positions": pa.int64(),
        "places": pa.int64(),
        "hit": pa.float64(),
        "centre": pa.bool_(),
        "chance": pa.float64(),
    }
)


@dataclass(frozen=True)
class Localisation:
    """The pointing game over the occluded images of a run."""

    rows: pa.Table
    """One an image with boxes: where the point is (y, x, in input pixels; the first in reading
    order), how many places are as low, the share of them that hits, whether the image's centre
    does, and the share of all positions that do."""
    without_boxes: int
    """Occluded images that have none, and take no part."""
    labels: str
    """What the class watched is, for people."""

    def share(self, column: str) -> float | None:
        """The mean of ``hit``, ``centre`` or ``chance``; None without images."""
        values = self.rows.column(column).to_numpy(zero_copy_only=False)
        return float(values.mean()) if len(values) else None

    @property
    def unmoved(self) -> int:
        """Images in which the probability is the same wherever the square stands."""
        return sum(row["places"] == row["positions"] for row in self.rows.to_pylist())

    def summary(self) -> dict[str, Any]:
        """The shares and what they are of, as plain fields."""
        shares = {name: self.share(name) for name in ("hit", "centre", "chance")}
        counts = {"with_boxes": len(self.rows), "unmoved": self.unmoved}
        return {**counts, **shares, "without_boxes": self.without_boxes, "labels": self.labels}

    def table(self) -> pa.Table:
        """The rows, with the summary in their metadata: ``told`` a sentence, ``summary`` JSON."""
        told = {"told": self.told(), "summary": json.dumps(self.summary())}
        return self.rows.replace_schema_metadata(told)

    def told(self) -> str:
        """In a sentence."""
        images = len(self.rows)
        if not images:
            return (
                f"localisation: none of the {self.without_boxes:,} occluded images has a box, so "
                "there is nothing to count by: give data.boxes."
            )
        hit, centre, chance = (self.share(name) for name in ("hit", "centre", "chance"))
        left = f"; {self.without_boxes:,} more have no box" if self.without_boxes else ""
        same = f"; in {self.unmoved:,} the square changes nothing" if self.unmoved else ""
        return (
            f"localisation: in {hit:.0%} of {images:,} occluded images the class is least probable "
            f"where the object is covered; the image's centre would be right in {centre:.0%}, "
            f"chance in {chance:.0%} ({self.labels}{same}{left})"
        )


def localisation_of(occlusions: Iterable[Occlusion], labels: str) -> Localisation:
    """Play the game.

    A point on the edge of a box is in it where that pixel is: from y0 to below y1.

    Args:
        labels: what the classes watched are, for people: ``true classes``, say.
    """
    rows, without = [], 0
    for one in occlusions:
        if len(one.boxes):
            rows.append(_row(one))
        else:
            without += 1
    return Localisation(pa.Table.from_pylist(rows, SCHEMA), without, labels)


def _row(one: Occlusion) -> dict[str, object]:
    (y, x), (height, width) = one.weakest, one.size
    half = one.patch / 2
    rows, cols = np.meshgrid(one.y + half, one.x + half, indexing="ij")
    points = np.stack([rows.ravel(), cols.ravel()], axis=1)
    lowest = (one.probability == one.probability.min()).ravel()
    return {
        "image_id": one.image,
        "uri": one.uri,
        "class": one.name_of(one.target),
        "clean_probability": one.clean_probability,
        "lowest": float(one.probability.min()),
        "y": y,
        "x": x,
        "boxes": len(one.boxes),
        "positions": len(points),
        "places": int(lowest.sum()),
        "hit": _share_inside(points[lowest], one.boxes),
        "centre": _share_inside(np.array([[height / 2, width / 2]]), one.boxes) == 1,
        "chance": _share_inside(points, one.boxes),
    }


def _share_inside(
    points: Float[ndarray, "point yx"], boxes: Int32[ndarray, "box y0x0y1x1"]
) -> float:
    """Share of points that lie in any of the boxes."""
    inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] < boxes[None, :, 2:])
    in_any = np.logical_or.reduce(np.logical_and.reduce(inside, axis=2), axis=1)
    return float(in_any.mean())
