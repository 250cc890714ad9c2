"""What the paper leads one to expect of a network, and whether it holds of one: a number, a verdict
and a sentence each.  Measured, not tuned to: one that fails says so, and one that what was measured
cannot decide says that.

Of layers, features are all but the model's output: that is made of labels, and would agree with
them in any network that was trained.  What differs by no more than its noise (``deconvoy.noise``)
is not said to differ.

Source: Zeiler & Fergus (2013, arXiv:1311.2901), sections 4 and 5.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from deconvoy import noise
from deconvoy.correspondence import Correspondence
from deconvoy.evolution import evolution_of, evolved_layers, settling_of
from deconvoy.invariance import Invariance
from deconvoy.localisation import Localisation
from deconvoy.probe import Probe
from deconvoy.queries import pointing_game
from deconvoy.run import Run
from deconvoy.study import Study

LEVEL = 0.05
"""Of p, below which parts are said to correspond."""

OUTPUT = "logits"
"""The layer that is no feature."""


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
    first = evolved_layers(run)[0]
    yield from lower_layers_settle_first(settling_of(run), len(evolution_of(run, first).names))
    yield lower_layers_move_more(run.invariance())
    yield parts_correspond(run.correspondence())
    maps = [row["layer"] for row in run.layers().to_pylist() if row["height"] * row["width"] > 1]
    yield deeper_features_tell_more(run.probe(), maps)
    yield learned_features_tell_more(run.probe())
    yield depth_matters_more_than_width(study)
    yield occlusion_points_at_the_object(pointing_game(run))


# -- Fig. 4 ------------------------------------------------------------------------------------


def lower_layers_settle_first(found: pa.Table, checkpoints: int) -> Iterator[Expectation]:
    """Fig. 4: by the images that excite units most, and by their filters, which need not agree.

    Decided by the mean of the lower half of all layers against that of the upper one, so that no
    layer decides alone.  They must lie a whole checkpoint apart: nothing was looked at between two.
    Every layer agrees with itself at the last checkpoint, so one that settles there has not been
    seen to settle; it counts as of then, which makes halves more alike than they may be and never
    turns them round.

    Args:
        found: as ``settling_of`` gives it.
        checkpoints: how many there are.
    """
    for curve, by, told in (
        ("overlap", "images", "nine tenths of its final strongest images are there"),
        ("cosine", "filters", "its filters stay at a cosine of 0.9 or above to their final ones"),
    ):
        known = [row for row in found.to_pylist() if row[f"{curve}_at"] is not None]
        layers = [row["layer"] for row in known]
        at = [row[f"{curve}_at"] + 1 for row in known]
        claim = f"Lower layers settle at an earlier checkpoint than upper ones, by their {by}."
        half = len(known) // 2
        if not half:
            yield Expectation("Fig. 4", claim, None, "It is known of fewer than two layers.")
            continue
        lower, upper = _halves(at)
        earlier = upper - lower
        sentences = [
            f"A layer has settled at the checkpoint from which on {told}: "
            f"{_by_layer(layers, [f'at {one}' for one in at])}, of {checkpoints}.",
            f"On average that is checkpoint {lower:.2f} in the lower half "
            f"({_span(layers[:half])}) and {upper:.2f} in the upper ({_span(layers[-half:])}).",
        ]
        if abs(earlier) < 1:
            sentences.append("They lie less than one checkpoint apart.")
        if checkpoints in at:
            sentences.append(
                "At the last checkpoint every layer is its final self: what settles there was "
                "still changing."
            )
        decided = None if abs(earlier) < 1 else earlier > 0
        yield Expectation("Fig. 4", claim, decided, " ".join(sentences))


def _halves(values: Sequence[int]) -> tuple[float, float]:
    """Means of the lower and of the upper half; the middle one of an odd number is in neither."""
    half = len(values) // 2
    return float(np.mean(values[:half])), float(np.mean(values[-half:]))


# -- Fig. 5 ------------------------------------------------------------------------------------

_MOVED = {"translation": "shifted", "scale": "scaled", "rotation": "turned"}
_UNITS = {"translation": " pixels", "scale": "", "rotation": "°"}


def lower_layers_move_more(found: Invariance) -> Expectation:
    """Fig. 5: by the smallest step that there is of every transformation, in the first layer and
    the last but the output; each image is compared with itself.

    Holds where all transformations say so beyond their noise, and does not where one says the
    opposite.
    """
    claim = "Under small transformations features move further in the first layer than in the last."
    features = _features(found.layers)
    if len(features) < 2:
        return Expectation("Fig. 5", claim, None, "Fewer than two layers of features are known.")
    signs, told, left = [], [], []
    for name in _MOVED:
        small = _smallest(found, name)
        if not small.any():
            left.append(_MOVED[name])
            continue
        first, last = found.relative[:, small][..., [features[0], features[-1]]].mean(1).T
        heard = ~np.isnan(first - last)
        signs.append(noise.paired((first - last)[heard]))
        ends = [
            f"{values[heard].mean():.2f} in {found.layers[layer]}" if heard.any() else "nothing"
            for values, layer in ((first, features[0]), (last, features[-1]))
        ]
        told.append(f"{_MOVED[name]} by {_amounts(found.amount[small], name)}, {_listed(ends)}")
    if not signs:
        return Expectation("Fig. 5", claim, None, "No image was moved.")
    moves = f"As a share of their norm, features move in images {'; '.join(told)}."
    if 0 in signs:
        moves += " Where the two are close, they differ no more than from image to image."
    if left:
        moves += f" None was {' or '.join(left)}."
    return Expectation("Fig. 5", claim, _all(signs), moves)


def _smallest(found: Invariance, transformation: str) -> Bool[np.ndarray, " step"]:
    """The steps nearest to nothing, both ways; a whole turn is nothing."""
    amount = found.amount
    if transformation == "scale":
        off = np.abs(amount - 1)
    elif transformation == "rotation":
        off = np.minimum(amount % 360, -amount % 360)
    else:
        off = np.abs(amount)
    moved = found.steps(transformation) & ~np.isclose(off, 0)
    smallest: Bool[np.ndarray, " step"] = moved
    if moved.any():
        smallest = moved & np.isclose(off, off[moved].min())
    return smallest


def _amounts(amount: Float[np.ndarray, " step"], transformation: str) -> str:
    if transformation == "rotation":
        amount = (amount + 180) % 360 - 180
    sizes = sorted({float(one) for one in np.round(amount, 6)})
    if len(sizes) == 2 and sizes[0] == -sizes[1]:
        return f"±{sizes[1]:g}{_UNITS[transformation]}"
    return " or ".join(f"{one:g}{_UNITS[transformation]}".replace("-", "−") for one in sizes)


# -- Table 1 -----------------------------------------------------------------------------------


def parts_correspond(found: Correspondence) -> Expectation:
    """Table 1: of more than half of all parts in all upper layers of features together.

    With a test for every part and layer some fall below the level by chance, but hardly most of
    them; and no layer that happens to do so decides alone.
    """
    claim = "In the upper layers, covering the same part changes features more alike than chance."
    features = _features(found.layers)
    half = len(features) // 2
    draws = found.random.shape[1]
    if not half or not found.parts or 1 / (1 + draws) >= LEVEL:
        few = f"Chance is known of {draws} random boxes a part and of {len(features)} layers: "
        return Expectation("Table 1", claim, None, few + "too few to tell.")
    sure = found.p[:, features] < LEVEL
    layers = [found.layers[number] for number in features]
    parts = np.array(found.parts)
    each = [_parts(parts[column].tolist(), len(parts)) for column in sure.T]
    upper = sure[:, -half:]
    return Expectation(
        "Table 1",
        claim,
        bool(upper.mean() > 0.5),
        f"Δ lies below that of random boxes (p < {LEVEL:g}) for: {_by_layer(layers, each)}. "
        f"In the upper half ({_span(layers[-half:])}) it does in {upper.sum()} of {upper.size} "
        "cases, a part in a layer each.",
    )


def _parts(below: Sequence[str], of: int) -> str:
    if not below:
        return "no part"
    return "all parts" if len(below) == of else _listed(below)


# -- Tables 4 to 7 -----------------------------------------------------------------------------


def deeper_features_tell_more(found: Probe, maps: Sequence[str]) -> Expectation:
    """Tables 4 to 7: "as the feature hierarchies become deeper, they learn increasingly powerful
    features", of the convolutional layers, step by step.

    A step down that is more than the scatter of the folds refutes it.  One that is not leaves it
    open, for it may be none.  To hold, every layer must tell at least as much as the one below it,
    and the last clearly more than the first.

    Args:
        maps: the layers that have maps: those of the convolutions.
    """
    claim = "Features of convolutional layers tell more with depth."
    numbers = [number for number, layer in enumerate(found.layers) if layer in maps]
    if len(numbers) < 2:
        return Expectation("Tables 4–7", claim, None, "Fewer than two such layers were probed.")
    most = int(np.argmax(found.train))
    layers = [found.layers[number] for number in numbers]
    accuracy = found.accuracy[0, numbers, 0, most]
    steps = np.diff(accuracy, axis=0)
    falls = [number for number, step in enumerate(steps) if step.mean() < 0]
    clear = [number for number in falls if noise.paired(steps[number]) < 0]
    rises = noise.paired(accuracy[-1] - accuracy[0])
    holds: bool | None = None
    if clear or rises < 0:
        holds = False
    elif rises > 0 and not falls:
        holds = True
    each = [f"{mean:.1%}" for mean in accuracy.mean(1)]
    told = [
        f"With {found.train[most]} images a class to learn from, classifiers tell right: "
        f"{_by_layer(layers, each)}; by guessing {found.chance:.0%}."
    ]
    for number in falls:
        beyond = "beyond" if number in clear else "within"
        told.append(
            f"It falls from {layers[number]} to {layers[number + 1]} by "
            f"{-100 * steps[number].mean():.1f} points, {beyond} the noise of the "
            f"{accuracy.shape[1]} folds."
        )
    if accuracy.shape[1] < 2:
        told.append("One fold does not tell what is noise.")
    return Expectation("Tables 4–7", claim, holds, " ".join(told))


def learned_features_tell_more(found: Probe) -> Expectation:
    """Beside tables 4 to 7: what of it the architecture gives by itself.

    Holds where every layer of features tells clearly more than with random weights, and does not
    where half of them tell no more.
    """
    claim = "Learned features tell more than those of random weights."
    if len(found.weights) < 2:
        return Expectation("Tables 4–7", claim, None, "Random weights were not measured.")
    features = _features(found.layers)
    most = int(np.argmax(found.train))
    trained, random = found.accuracy[:2, :, 0, most][:, features]
    gain = trained - random
    clear = [noise.paired(one) > 0 for one in gain]
    holds: bool | None = None
    if all(clear):
        holds = True
    elif (gain.mean(1) <= 0).mean() >= 0.5:
        holds = False
    names = np.array([found.layers[number] for number in features])
    best = [int(one.mean(1).argmax()) for one in (trained, random)]
    told = (
        f"The best layer tells {trained[best[0]].mean():.1%} right ({names[best[0]]}), with random "
        f"weights {random[best[1]].mean():.1%} ({names[best[1]]})"
    )
    if all(clear):
        told += f"; more in each of the {len(features)} layers, beyond the noise of the folds."
    else:
        told += f"; not clearly more in {_listed(names[~np.array(clear)].tolist())}."
    return Expectation("Tables 4–7", claim, holds, told)


# -- Table 3 -----------------------------------------------------------------------------------


def depth_matters_more_than_width(found: Study) -> Expectation:
    """Table 3: without the middle layers, and with smaller fully connected ones.

    Removing must hurt, against the base, and more than shrinking: than each way of shrinking, where
    the study has several.  Noise is that of the images and that of training anew.  The latter shows
    only in repeats, and it is the larger of the two: so one training a network tells nothing.
    """
    claim = "Removing the middle layers hurts more than shrinking the fully connected ones."
    rows = range(1, len(found.networks))
    removed = next((row for row in rows if _is_without(found.arguments[row], [3, 4])), None)
    shrunk = [row for row in rows if _is_shrunk(found, row)]
    if removed is None or not shrunk:
        return Expectation("Table 3", claim, None, "The study trains no two such networks.")
    if not found.finished[[0, removed, *shrunk]].all():
        return Expectation("Table 3", claim, None, "Not all of these networks came to their end.")
    errors = found.validation_error[:, :, -1, 0]
    hurts = _worse(found, removed, 0)
    more = [_worse(found, removed, row) for row in shrunk]
    named = "; ".join(
        f"{found.networks[row]} {errors[row].mean():.1%}" for row in (removed, *shrunk)
    )
    repeats = errors.shape[1]
    told = (
        f"Of the {found.validation_images:,} validation images the base tells "
        f"{errors[0].mean():.1%} wrong; {named}."
    )
    if repeats < 2:
        told += (
            " Each was trained once, and how far trainings of the same network lie apart is not "
            "known: `repeats: 3` in the spec of the study tells."
        )
    elif not hurts or not all(more):
        told += (
            f" What differs by less than two standard errors (of {repeats} trainings and so many "
            "images) does not tell."
        )
    return Expectation("Table 3", claim, _joined(hurts, more), told)


def _is_without(arguments: dict[str, Any], layers: list[int]) -> bool:
    return arguments.get("remove") == layers and "widths" not in arguments


def _is_shrunk(found: Study, row: int) -> bool:
    """Whether only hidden linear layers have another width, and the network fewer weights."""
    own = found.arguments[row]
    resized = set(own.get("widths", ()))
    smaller = bool(found.parameters[row] < found.parameters[0])
    return "remove" not in own and bool(resized) and resized <= {"6", "7"} and smaller


def _worse(found: Study, one: int, other: int) -> int:
    """1 where one network errs more often than the other, −1 where less, 0 within noise."""
    errors = found.validation_error[:, :, -1, 0]
    shares = [float(errors[row].mean()) for row in (one, other)]
    of_images = [noise.share_error(share, found.validation_images) for share in shares]
    of_training = noise.training_error(errors)
    return noise.sign(shares[0] - shares[1], math.hypot(*of_images, of_training, of_training))


def _joined(hurts: int, more: Sequence[int]) -> bool | None:
    """Does not hold where removing helps, or hurts less than every way of shrinking."""
    if hurts < 0 or all(sign < 0 for sign in more):
        return False
    return True if hurts > 0 and all(sign > 0 for sign in more) else None


# -- Fig. 7 ------------------------------------------------------------------------------------


def occlusion_points_at_the_object(found: Localisation) -> Expectation:
    """Fig. 7: the class is least probable where the object is covered.

    Against two who do not look: one that points at random, and one that always points at the
    image's centre.  Where the centre does as well, things that stand in the middle explain it, and
    it cannot be told.  Each image is compared with itself.
    """
    claim = "Covering the object hurts its class most."
    hit, centre, chance = (
        found.rows.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("hit", "centre", "chance")
    )
    told = found.told().removeprefix("localisation: ").rstrip(".")
    told = f"{told[0].upper()}{told[1:]}."
    if not len(hit):
        return Expectation("Fig. 7", claim, None, told)
    by_chance, by_centre = noise.paired(hit - chance), noise.paired(hit - centre)
    if hit.mean() <= chance.mean():
        return Expectation("Fig. 7", claim, False, f"{told} That is no more than chance.")
    if by_chance <= 0:
        return Expectation(
            "Fig. 7", claim, None, f"{told} So few images cannot tell it from chance."
        )
    if by_centre <= 0:
        why = (
            "Always pointing at the centre does as well: that things lie in the middle explains it."
        )
        return Expectation("Fig. 7", claim, None, f"{told} {why}")
    return Expectation("Fig. 7", claim, True, told)


# -- parts -------------------------------------------------------------------------------------


def _features(layers: Sequence[str]) -> list[int]:
    """Numbers of the layers that are features."""
    return [number for number, layer in enumerate(layers) if layer != OUTPUT]


def _all(signs: Sequence[int]) -> bool | None:
    """Whether all are 1; None where some are 0 and none is −1."""
    if -1 in signs:
        return False
    return None if 0 in signs else True


def _by_layer(layers: Sequence[str], said: Sequence[str]) -> str:
    """``relu1 all; relu2–relu4 none``: neighbours of whom the same is said are put together."""
    groups = itertools.groupby(zip(layers, said, strict=True), key=lambda pair: pair[1])
    return "; ".join(f"{_span([layer for layer, _ in own])} {what}" for what, own in groups)


def _span(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
