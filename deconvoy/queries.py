"""Questions to a finished run, each a plain function from a ``Run`` to a ``pyarrow.Table``.

The one query layer: the command line, HTTP, client and dashboard look functions up in ``QUERIES``
and let ``ask`` turn text into their arguments, so a new query is one function here.  Tables
come sorted, and equal ones keep the order of the layers, then of the units.
"""

from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Shaped

from deconvoy import likeness
from deconvoy.asking import QUERIES, Query, ask, by_name, find, register, usage
from deconvoy.comparison import diff, diff_units, overall
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.evolution import curves_of, evolved_layers, settling_of
from deconvoy.invariance import layer_number
from deconvoy.localisation import Localisation, localisation_of
from deconvoy.run import Run
from deconvoy.schema import MISSING_LABEL

__all__ = [
    "purity",
    "dead",
    "examples",
    "outliers",
    "images_most_hit",
    "selective",
    "nearest",
    "image",
    "image_id_of",
    "class_index",
    "localisation",
    "invariance",
    "correspondence",
    "evolution",
    "probe",
    "settled",
    "study",
    "study_curves",
    "pointing_game",
    "diff",
    "diff_units",
    "overall",
    "QUERIES",
    "Query",
    "ask",
    "by_name",
    "find",
    "usage",
]

LIMIT = 20
"""Rows of a query that ranks, unless told."""


Layer = Annotated[str | None, "only this layer"]
Limit = Annotated[int, "at most so many rows; 0: all"]


@register
def purity(run: Run, layer: Layer = None) -> pa.Table:
    """How much the hits of each unit agree in class: the share of the commonest one.

    The commonest class is that of the better rank among equally common ones.  Hits without a label
    count as of no class; dead units have no row.
    """
    tables = [_purity_of(run, name) for name in _layers(run, layer)]
    return pa.concat_tables(tables)


@register
def examples(
    run: Run,
    layer: Annotated[str, "of this layer"],
    kind: Annotated[str, "bottom, class or band"],
    unit: Annotated[int | None, "only this unit"] = None,
) -> pa.Table:
    """Images kept besides the strongest: the weakest, those of each class, random ones by strength.

    The group is the class, or the quantile band of the unit's image maxima, 0 the weakest.  They
    are there where the top analysis asked for them.
    """
    table = run.examples(layer, kind)
    return table if unit is None else table.filter(pc.equal(table.column("unit"), unit))


@register
def outliers(run: Run, layer: Layer = None) -> pa.Table:
    """Images left out of a layer's hits because they excite all of it.

    They are there where the top analysis asked for it; each is among the images all the same.
    """
    return pa.concat_tables([run.outliers(name) for name in _layers(run, layer)])


@register
def dead(run: Run, layer: Layer = None) -> pa.Table:
    """Units that no image activates."""
    tables = []
    for name in _layers(run, layer):
        units = np.array(run.dead_units(name), np.int32)
        tables.append(pa.table({"layer": _repeated(name, len(units)), "unit": units}))
    return pa.concat_tables(tables)


@register
def images_most_hit(run: Run, layer: Layer = None, limit: Limit = LIMIT) -> pa.Table:
    """Images that are among the strongest of most units, and in how many layers."""
    units: dict[int, int] = {}
    layers: dict[int, int] = {}
    for name in _layers(run, layer):
        ids, counts = np.unique(_column(run.table(name), "image_id"), return_counts=True)
        for image_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
            units[image_id] = units.get(image_id, 0) + count
            layers[image_id] = layers.get(image_id, 0) + 1
    chosen = sorted(units, key=lambda image_id: (-units[image_id], image_id))[: limit or None]
    images = run.images_of(np.array(chosen, np.int64))
    return pa.table(
        {
            "image_id": pa.array(chosen, pa.int64()),
            "uri": images["uri"],
            "class": _class_names(run, images[run.class_column]),
            "units": pa.array([units[i] for i in chosen], pa.int64()),
            "layers": pa.array([layers[i] for i in chosen], pa.int64()),
        }
    )


@register
def selective(
    run: Run,
    class_: Annotated[str | None, "only units whose commonest class this is: name or index"] = None,
    layer: Layer = None,
    limit: Limit = LIMIT,
) -> pa.Table:
    """Class-selective units: by purity, then by the number of their hits."""
    table = purity(run, layer)
    if class_ is not None:
        wanted = class_index(run, class_)
        table = table.filter(pc.equal(table["label"], wanted))
    key = (-_column(table, "hits"), -_column(table, "purity"))
    order = np.lexsort(key)  # stable: equal ones stay in the order of the layers
    return table.take(pa.array(order[: limit or None]))


@register
def nearest(
    run: Run,
    layer: Annotated[str, "layer of the unit"],
    unit: Annotated[int, "number of the unit"],
    within: Annotated[str | None, "look among the units of this layer only"] = None,
    limit: Limit = LIMIT,
) -> pa.Table:
    """Units that share most of their strongest images with a unit, by Jaccard similarity.

    Jaccard: images both units have among theirs, divided by images any of the two has; 1 where
    both have the same.  Units that share none have no row, nor has the unit itself.
    """
    own = set(run.unit(layer, unit).image.tolist()) - {-1}
    if not own:
        raise RequestError(
            f"Unit {unit} of layer {layer!r} has no hits, so it shares no image with any: choose "
            "another; `deconvoy query URL dead` lists the dead ones."
        )
    tables = []
    for name in _layers(run, within):
        table = run.table(name)
        units, images = _column(table, "unit"), _column(table, "image_id")
        total = _units(run, name)
        shared = np.bincount(units[np.isin(images, list(own))], minlength=total)
        size = np.bincount(units, minlength=total)
        if name == layer:
            shared[unit] = 0
        (there,) = shared.nonzero()
        union = size[there] + len(own) - shared[there]
        columns = {"unit": there.astype(np.int32), "shared": shared[there],
                   "jaccard": shared[there] / union}  # fmt: skip
        tables.append(pa.table({"layer": _repeated(name, len(there)), **columns}))
    found = pa.concat_tables(tables)
    order = np.argsort(-_column(found, "jaccard"), kind="stable")[: limit or None]
    return found.take(pa.array(order))


@register
def image(
    run: Run,
    image: Annotated[int | str, "id of the image (a number), or its path in the data set"],
    layer: Layer = None,
) -> pa.Table:
    """Every unit that has an image among its strongest, by layer, rank and score.

    A number is an id, as all tables print it; anything else is a path (uri).
    """
    image_id = image_id_of(run, image)
    tables = []
    for name in _layers(run, layer):
        table = run.table(name)
        table = table.filter(pc.equal(table["image_id"], image_id))
        order = [("rank", "ascending"), ("score", "descending"), ("unit", "ascending")]
        tables.append(table.sort_by(order))
    return pa.concat_tables(tables).drop_columns(["image_id", "uri", "label"])


@register
def localisation(run: Run) -> pa.Table:
    """Whether the class is least probable where the object is covered: the pointing game.

    One row an occluded image with boxes: the centre of that square (y, x), whether it lies in a box
    (hit; where several places are equally low the share of them), whether the image's centre does,
    and the share of all positions that do (chance).  Images without boxes have no row.  The means
    are in the metadata of the table.
    """
    return pointing_game(run).table()


@register
def invariance(
    run: Run,
    layer: Layer = None,
    transformation: Annotated[str | None, "only translation, scale or rotation"] = None,
) -> pa.Table:
    """How far the features of each layer move when images are shifted, scaled and turned.

    One row a layer and step, over all images of the analysis: the mean Euclidean distance, the mean
    of it relative to the norm of the image's features, and the mean probability of the class.
    """
    found = run.invariance()
    table = found.table()
    if layer is not None:
        layer_number(found, layer)
        table = table.filter(pc.equal(table["layer"], layer))
    if transformation is not None:
        if transformation not in found.transformations:
            near = likeness.nearest(transformation, found.transformations)
            raise RequestError(f"The invariance has no transformation {transformation!r}; {near}.")
        table = table.filter(pc.equal(table["transformation"], transformation))
    return table


@register
def correspondence(run: Run, layer: Layer = None) -> pa.Table:
    """Table 1: how alike images change when the same part of each is covered, and chance.

    A row a layer and part: Δ (the lower, the more alike), its deviation over the pairs of images,
    the mean and deviation of Δ for boxes of the same sizes at random, and how probable a Δ as low
    would be among them (p).
    """
    table = run.correspondence().table()
    if layer is None:
        return table
    run.layer_group(layer)
    return table.filter(pc.equal(table["layer"], layer))


@register
def evolution(run: Run, layer: Layer = None) -> pa.Table:
    """How early layers settle in training: a row a layer and checkpoint.

    Means over the units: the share of the final strongest images that are among the strongest then
    (overlap), and the cosine between the filters then and at the end.
    """
    return curves_of(run, evolved_layers(run) if layer is None else (layer,))


@register
def probe(run: Run, layer: Layer = None) -> pa.Table:
    """Tables 4 to 7: how well other classes are told apart by the features of each layer.

    A row a layer, weights (those of the model, and random ones), classifier and number of training
    images of each class: the accuracy, a mean over classes and folds, and its deviation.  Last,
    where that was asked for, the whole network, trained from scratch.
    """
    table = run.probe().table()
    if layer is None:
        return table
    run.layer_group(layer)
    return table.filter(pc.equal(table["layer"], layer))


@register
def study(run: Run) -> pa.Table:
    """Table 3: what became of several architectures that were trained alike; a row a network.

    Errors are shares of images, at the end, means over the repeats; deviation is that of
    validation_top1 over them.  Of the filters of the first layer: how many there are, are dead, and
    are held back by the bound on their root mean square; and the mean shares of their power at low,
    middle and high frequencies.
    """
    return run.study().table()


@register
def study_curves(run: Run) -> pa.Table:
    """How the networks of a study learned: a row a network and epoch, means over the repeats."""
    return run.study().curves()


@register
def settled(
    run: Run,
    percent: Annotated[int, "of the overlap or cosine from which on a layer has settled"] = 90,
) -> pa.Table:
    """From which checkpoint on each layer has settled: by its strongest images, by its filters."""
    return settling_of(run, percent / 100)


def pointing_game(run: Run) -> Localisation:
    """The localisation of a run with its shares.

    Raises:
        RunNotFound: the run has slid no square over its images.
    """
    ids = run.occluded()["image_id"].to_pylist()
    known = [
        label is not None for label in run.images_of(np.array(ids, np.int64))["label"].to_pylist()
    ]
    if all(known):
        whose = "true classes"
    elif any(known):
        whose = f"true classes, of {known.count(False):,} images without one the predicted class"
    else:
        whose = "predicted classes, since the data carries none"
    return localisation_of(map(run.occlusion, ids), whose)


# -- parts -------------------------------------------------------------------------------------


def _purity_of(run: Run, layer: str) -> pa.Table:
    table = run.table(layer)
    unit, rank = _column(table, "unit"), _column(table, "rank")
    label = pc.fill_null(table["label"], MISSING_LABEL).to_numpy()
    there, hits = np.unique(unit, return_counts=True)
    labelled = label != MISSING_LABEL
    pairs = np.stack([unit, label], axis=1)[labelled].astype(np.int64)
    distinct, place = np.unique(pairs, axis=0, return_inverse=True)
    place = place.reshape(-1)
    count = np.bincount(place, minlength=len(distinct))
    best = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(best, place, rank[labelled])
    order = np.lexsort((best, -count, distinct[:, 0]))
    units, first = np.unique(distinct[order, 0], return_index=True)
    chosen, row = order[first], np.searchsorted(there, units)
    commonest, share = np.full(len(there), MISSING_LABEL), np.zeros(len(there))
    commonest[row], share[row] = distinct[chosen, 1], count[chosen] / hits[row]
    labels = pa.array(commonest, pa.int64(), mask=commonest == MISSING_LABEL)
    return pa.table(
        {
            "layer": _repeated(layer, len(there)),
            "unit": there.astype(np.int32),
            "purity": share,
            "label": labels,
            "class": _class_names(run, labels),
            "hits": hits.astype(np.int32),
        }
    )


def _layers(run: Run, layer: str | None) -> tuple[str, ...]:
    """One layer (``Run`` refuses an unknown one) or all."""
    return run.layer_names if layer is None else (layer,)


def _units(run: Run, layer: str) -> int:
    return int(str(run.layer_group(layer).attrs["units"]))


def _column(table: pa.Table, name: str) -> Shaped[np.ndarray, " row"]:
    found: Shaped[np.ndarray, " row"] = table[name].to_numpy()
    return found


def _repeated(text: str, count: int) -> pa.Array:
    return pa.array([text] * count, pa.string())


def _class_names(run: Run, labels: Any) -> pa.Array:
    """Names of outputs; null where there is none."""
    names = (None if label is None else run.class_name(label) for label in labels.to_pylist())
    return pa.array(list(names), pa.string())


def class_index(run: Run, name: str) -> int:
    """Output index of a class by its name, or by the number itself.

    Raises:
        RequestError: no such class; names the nearest.
    """
    if name in run.classes:
        return run.classes.index(name)
    if name.isdecimal() and int(name) < run.outputs:
        return int(name)
    if not run.classes:
        raise RequestError(f"The classes of {run.url!r} have no names, so {name!r} is none.")
    near = likeness.nearest(name, run.classes)
    raise RequestError(f"The run {run.url!r} has no class {name!r}; {near}.")


def image_id_of(run: Run, image: int | str) -> int:
    """Id of an image by its id (a number, also as text) or its path.

    Raises:
        RunNotFound: no such image; names the nearest.
    """
    images = run.images()
    number = isinstance(image, int) or image.isdecimal()
    # No id is as large as what does not fit its column, which cannot be compared with it.
    asked = min(int(image), 2**63 - 1) if number else image
    wanted = pc.equal(images["id" if number else "uri"], asked)
    found = images.filter(wanted)["id"].to_pylist()
    if found:
        return int(found[0])
    if number:
        ids = _column(images, "id")
        below, above = ids[ids < int(image)][-1:].tolist(), ids[ids > int(image)][:1].tolist()
        told = f"ids run from {ids[0]} to {ids[-1]}"
        if below and above:  # every place of data.uri begins a shard of its own
            told = f"no image has this id, since ids have gaps; nearest: {below[0]} and {above[0]}"
        raise RunNotFound(f"The run {run.url!r} has no image {image}: {told}.")
    part = str(image).rpartition("/")[2]
    near = images.filter(pc.match_substring(images["uri"], part))["uri"][:3].to_pylist()
    # Close matches over a million paths would take minutes; a few thousand help as well.
    near = near or likeness.alike(str(image), images["uri"][:5000].to_pylist())[:3]
    told = f"; nearest: {', '.join(near)}" if near else ""
    raise RunNotFound(f"The run {run.url!r} has no image {image!r}{told}.")
