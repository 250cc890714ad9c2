"""What the paper leads one to expect of a network, and whether it holds of one: a number, a verdict
and a sentence each.  Measured, not tuned to: one that fails says so.

Source: Zeiler & Fergus (2013, arXiv:1311.2901), sections 4 and 5.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvoy.correspondence import Correspondence
from deconvoy.evolution import settling_of
from deconvoy.invariance import Invariance
from deconvoy.localisation import Localisation
from deconvoy.probe import Probe
from deconvoy.queries import pointing_game
from deconvoy.run import Run
from deconvoy.study import Study

LEVEL = 0.05
"""Of p, below which parts are said to correspond."""


@dataclass(frozen=True)
class Expectation:
    """One claim, and what was found."""

    source: str
    """Figure or table of the paper."""
    claim: str
    holds: bool | None
    """None: what was measured cannot tell."""
    told: str
    """The numbers, in a sentence."""

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return "cannot be told here"
        return "holds here" if self.holds else "does not hold here"


def expectations(run: Run, study: Study) -> Iterator[Expectation]:
    """Of a run with all analyses, and a study.

    Raises:
        RunNotFound: an analysis is not there.
    """
    yield from lower_layers_settle_first(run)
    yield lower_layers_move_more(run.invariance())
    yield parts_correspond(run.correspondence())
    yield deeper_features_tell_more(run.probe())
    yield depth_matters_more_than_width(study)
    yield occlusion_points_at_the_object(pointing_game(run))


def lower_layers_settle_first(run: Run) -> Iterator[Expectation]:
    """Fig. 4: by the images that excite units most, and by their filters, which need not agree."""
    rows = settling_of(run).to_pylist()
    for curve, by, told in (
        ("overlap", "images", "Nine tenths of the final strongest images are there from"),
        ("cosine", "filters", "Filters stay at a cosine of 0.9 or above to their final ones from"),
    ):
        known = [row for row in rows if row[f"{curve}_at"] is not None]
        lower, upper = _halves([row[f"{curve}_at"] for row in known])
        each = "; ".join(f"{row['layer']}: {row[curve]}" for row in known)
        yield Expectation(
            "Fig. 4",
            f"Lower layers settle at an earlier checkpoint than upper ones, by their {by}.",
            None if lower is None or upper is None else lower < upper,
            f"{told} {each}." if known else "It is known of no layer.",
        )


def _halves(values: list[int]) -> tuple[float | None, float | None]:
    """Means of the lower and of the upper half; the middle one of an odd number is in neither."""
    half = len(values) // 2
    if not half:
        return None, None
    return float(np.mean(values[:half])), float(np.mean(values[-half:]))


def lower_layers_move_more(found: Invariance) -> Expectation:
    """Fig. 5: the smallest shift that there is."""
    steps = found.steps("translation") & (found.amount != 0)
    claim = "Under small transformations features move further in the first layer than in the last."
    if not steps.any():
        return Expectation("Fig. 5", claim, None, "No image was shifted.")
    least = np.abs(found.amount[steps]).min()
    small = steps & (np.abs(found.amount) == least)
    moved = np.nanmean(found.relative[:, small], (0, 1))
    first, last = float(moved[0]), float(moved[-1])
    return Expectation(
        "Fig. 5",
        claim,
        first > last,
        f"Shifted by {least:g} pixels, features move by {first:.2f} of their norm in "
        f"{found.layers[0]} and by {last:.2f} in {found.layers[-1]}.",
    )


def parts_correspond(found: Correspondence) -> Expectation:
    """Table 1: of more than half of the parts, in one of the upper layers.  With a test for every
    part and layer some fall below the level by chance, but hardly most parts of one layer."""
    sure = found.p < LEVEL
    upper = sure[:, len(found.layers) // 2 :]
    layers = [
        f"{layer} ({', '.join(np.array(found.parts)[sure[:, number]])})"
        for number, layer in enumerate(found.layers)
        if sure[:, number].any()
    ]
    told = (
        f"Δ lies below that of random boxes (p < {LEVEL:g}) in {'; '.join(layers)}."
        if layers
        else f"In no layer is Δ of any part below that of random boxes with p < {LEVEL:g}."
    )
    share = float((found.delta < found.random.mean(1)).mean())
    return Expectation(
        "Table 1",
        "In an upper layer, covering the same part changes features more alike than chance.",
        bool((upper.mean(0) > 0.5).any()),
        f"{told} Over all parts and layers, {share:.0%} lie below the mean of random boxes.",
    )


def deeper_features_tell_more(found: Probe) -> Expectation:
    """Tables 4 to 7: of the first layer and the best but the output, and of random weights."""
    most = int(np.argmax(found.train))
    mean = found.accuracy[:, :, 0, most].mean(-1)
    trained = mean[0]
    first, best = float(trained[0]), int(trained.argmax())
    told = (
        f"With {found.train[most]} images a class to learn from, {found.layers[0]} tells "
        f"{first:.0%} right and {found.layers[best]} {trained[best]:.0%}"
    )
    beats = True
    if len(mean) > 1:
        beats = bool((trained > mean[1]).mean() > 0.5)
        told += f"; with random weights the best layer tells {mean[1].max():.0%}"
    upper = len(trained) // 2
    return Expectation(
        "Tables 4–7",
        "Features tell more with depth, and more than those of random weights.",
        bool(trained[upper:].mean() > trained[:upper].mean() and beats),
        f"{told}; by guessing {found.chance:.0%}.",
    )


def depth_matters_more_than_width(found: Study) -> Expectation:
    """Table 3: without the middle layers, and with hidden layers of half the width."""
    claim = "Removing the middle layers hurts more than shrinking the fully connected ones."
    errors = found.validation_error[:, :, -1, 0].mean(1)
    removed = _row(found, lambda own: own.get("remove") == [3, 4] and "widths" not in own)
    shrunk = _row(
        found, lambda own: "remove" not in own and list(own.get("widths", ())) == ["6", "7"]
    )
    if removed is None or shrunk is None:
        return Expectation("Table 3", claim, None, "The study trains no two such networks.")
    return Expectation(
        "Table 3",
        claim,
        bool(errors[removed] > errors[shrunk]),
        f"Of the validation images the base tells {errors[0]:.1%} wrong; {found.networks[removed]} "
        f"{errors[removed]:.1%}; {found.networks[shrunk]} {errors[shrunk]:.1%}.",
    )


def _row(found: Study, fits: Callable[[dict[str, Any]], bool]) -> int | None:
    """The first network but the base whose arguments fit."""
    rows = range(1, len(found.networks))
    return next((row for row in rows if fits(found.arguments[row])), None)


def occlusion_points_at_the_object(found: Localisation) -> Expectation:
    """Fig. 7: the class is least probable where the object is covered."""
    hit, chance = found.share("hit"), found.share("chance")
    return Expectation(
        "Fig. 7",
        "Covering the object hurts its class most.",
        None if hit is None or chance is None else hit > chance,
        found.told(),
    )
