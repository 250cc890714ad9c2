"""Questions to a finished run, each a plain function from a ``Run`` to a ``pyarrow.Table``.

The one query layer: the command line, HTTP, client and dashboard look functions up in ``QUERIES``
and let ``ask`` turn text into their arguments, so that a new query is one function here.  Tables
come sorted, and equal ones keep the order of the layers, then of the units.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, Shaped

from deconvoy.comparison import diff as diff
from deconvoy.comparison import overall as overall
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.run import Run
from deconvoy.schema import MISSING_LABEL

LIMIT = 20
"""Rows of a query that ranks, unless told."""


@dataclass(frozen=True)
class Argument:
    """One argument of a query."""

    name: str
    type: type
    """``int`` or ``str``: what its text is turned into."""
    doc: str
    required: bool
    default: Any = None


@dataclass(frozen=True)
class Query:
    """A function and what there is to know about calling it by name."""

    name: str
    function: Callable[..., pa.Table]
    doc: str
    """One sentence."""
    arguments: tuple[Argument, ...]
    """In the order in which they may be given without their names."""


QUERIES: dict[str, Query] = {}
"""Every query by its name."""


def _query(function: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    """Put a function into ``QUERIES``; its signature and annotations are all that is needed."""
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]  # the first is the run
    name = function.__name__.replace("_", "-")
    arguments = tuple(_argument(parameter, hints[parameter.name]) for parameter in parameters)
    doc = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
    QUERIES[name] = Query(name, function, doc, arguments)
    return function


def _argument(parameter: inspect.Parameter, hint: Any) -> Argument:
    plain, doc = get_args(hint)
    kinds = [kind for kind in get_args(plain) or (plain,) if kind in (int, str)]
    # Of `int | str` the text decides: a number is read as one.
    kind = int if kinds == [int] else str
    required = parameter.default is parameter.empty
    assert get_origin(hint) is Annotated
    default = None if required else parameter.default
    return Argument(parameter.name.rstrip("_"), kind, doc, required, default)


Layer = Annotated[str | None, "only this layer"]
Limit = Annotated[int, "at most so many rows; 0: all"]


@_query
def purity(run: Run, layer: Layer = None) -> pa.Table:
    """How much the hits of each unit agree in class: the share of the commonest one.

    The commonest class is that of the better rank among equally common ones.  Hits without a label
    count as of no class; dead units have no row.
    """
    tables = [_purity_of(run, name) for name in _layers(run, layer)]
    return pa.concat_tables(tables)


@_query
def dead(run: Run, layer: Layer = None) -> pa.Table:
    """Units that no image activates."""
    tables = []
    for name in _layers(run, layer):
        alive = np.unique(_column(run.table(name), "unit"))
        units = np.setdiff1d(np.arange(_units(run, name)), alive).astype(np.int32)
        tables.append(pa.table({"layer": _repeated(name, len(units)), "unit": units}))
    return pa.concat_tables(tables)


@_query
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
    images = _images_by_id(run, np.array(chosen, np.int64))
    shown = "predicted" if run.labels == "predicted" else "label"
    return pa.table(
        {
            "image_id": pa.array(chosen, pa.int64()),
            "uri": images["uri"],
            "class": _class_names(run, images[shown]),
            "units": pa.array([units[i] for i in chosen], pa.int64()),
            "layers": pa.array([layers[i] for i in chosen], pa.int64()),
        }
    )


@_query
def selective(
    run: Run,
    class_: Annotated[str | None, "only units whose commonest class this is: name or index"] = None,
    layer: Layer = None,
    limit: Limit = LIMIT,
) -> pa.Table:
    """Class-selective units: by purity, then by the number of their hits."""
    table = purity(run, layer)
    if class_ is not None:
        wanted = _class_index(run, class_)
        table = table.filter(pc.equal(table["label"], wanted))
    key = (-_column(table, "hits"), -_column(table, "purity"))
    order = np.lexsort(key)  # stable: equal ones stay in the order of the layers
    return table.take(pa.array(order[: limit or None]))


@_query
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
            f"Unit {unit} of layer {layer!r} is dead, so it shares no image with any: choose "
            "another; `deconvoy query URL dead` lists those."
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


@_query
def image(
    run: Run,
    image: Annotated[int | str, "id of the image (a number), or its path in the data set"],
    layer: Layer = None,
) -> pa.Table:
    """Every unit that has an image among its strongest, by layer and rank.

    A number is an id, as all tables print it; anything else is a path (uri).
    """
    image_id = _image_id(run, image)
    tables = []
    for name in _layers(run, layer):
        table = run.table(name)
        table = table.filter(pc.equal(table["image_id"], image_id))
        tables.append(table.sort_by([("rank", "ascending"), ("unit", "ascending")]))
    return pa.concat_tables(tables).drop_columns(["image_id", "uri", "label"])


# -- by name -----------------------------------------------------------------------------------


def ask(
    run: Run, name: str, given: Sequence[str] = (), named: Mapping[str, str] | None = None
) -> pa.Table:
    """Answer a query whose arguments are text.

    Args:
        given: arguments in order.
        named: arguments by name.

    Raises:
        RequestError: no such query, an argument that is unknown, missing, too many or no number.
        RunNotFound: no such layer, unit or image.
    """
    query = find(name)
    known = {argument.name: argument for argument in query.arguments}
    if len(given) > len(known):
        raise RequestError(
            f"The query {name!r} takes at most {len(known)} arguments ({usage(query)}), "
            f"not {len(given)}."
        )
    texts = dict(zip(known, given, strict=False))
    for key, text in (named or {}).items():
        if key not in known:
            raise RequestError(f"The query {name!r} has no argument {key!r}; {_near(key, known)}.")
        if key in texts:
            raise RequestError(f"The query {name!r} is given {key!r} twice: once is enough.")
        texts[key] = text
    for argument in query.arguments:
        if argument.required and argument.name not in texts:
            raise RequestError(
                f"The query {name!r} needs {argument.name!r} ({argument.doc}): {usage(query)}."
            )
    values = {key: _value(query, known[key], text) for key, text in texts.items()}
    parameters = list(inspect.signature(query.function).parameters)[1:]
    spelled = {parameter.rstrip("_"): parameter for parameter in parameters}
    return query.function(run, **{spelled[key]: value for key, value in values.items()})


def find(name: str) -> Query:
    """The query of that name.

    Raises:
        RequestError: none; says which is nearest.
    """
    if name not in QUERIES:
        raise RequestError(f"There is no query {name!r}; {_near(name, QUERIES)}.")
    return QUERIES[name]


def usage(query: Query) -> str:
    """How to type a query: required arguments plain, others in brackets."""
    shown = (a.name.upper() if a.required else f"[{a.name.upper()}]" for a in query.arguments)
    return " ".join([query.name, *shown])


def _value(query: Query, argument: Argument, text: str) -> Any:
    if argument.type is str:
        return text
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise RequestError(
            f"The query {query.name!r}: {argument.name} is {text!r}, but it must be a whole number "
            "from 0."
        )
    return number


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"


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


def _class_index(run: Run, name: str) -> int:
    """Output index of a class by its name, or by the number itself."""
    if name in run.classes:
        return run.classes.index(name)
    if name.isdecimal() and (not run.classes or int(name) < len(run.classes)):
        return int(name)
    if not run.classes:
        raise RequestError(f"The classes of {run.url!r} have no names, so {name!r} is none.")
    near = get_close_matches(name, run.classes, n=3, cutoff=0.3) or run.classes[:3]
    raise RequestError(f"The run {run.url!r} has no class {name!r}; nearest: {', '.join(near)}.")


def _images_by_id(run: Run, ids: Int64[np.ndarray, " image"]) -> pa.Table:
    """Their rows of the images table; ids increase in it."""
    images = run.images()
    return images.take(pa.array(np.searchsorted(_column(images, "id"), ids)))


def _image_id(run: Run, image: int | str) -> int:
    images = run.images()
    number = isinstance(image, int) or image.isdecimal()
    wanted = pc.equal(images["id"], int(image)) if number else pc.equal(images["uri"], image)
    found = images.filter(wanted)["id"].to_pylist()
    if found:
        return int(found[0])
    if number:
        raise RunNotFound(
            f"The run {run.url!r} has no image {image}: ids run from {images['id'][0]} to "
            f"{images['id'][-1]}."
        )
    part = str(image).rpartition("/")[2]
    near = images.filter(pc.match_substring(images["uri"], part))["uri"][:3].to_pylist()
    # Close matches over a million paths would take minutes; a few thousand help as well.
    near = near or get_close_matches(str(image), images["uri"][:5000].to_pylist(), 3, 0.3)
    told = f"; nearest: {', '.join(near)}" if near else ""
    raise RunNotFound(f"The run {run.url!r} has no image {image!r}{told}.")
