"""Results and plans as tables and sentences for a terminal.  Prints nothing itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

import deconvoy
from deconvoy import markup, progress, queries
from deconvoy.methods import METHODS

Row = dict[str, Any]


def of_layers(layers: Sequence[Row], found: Sequence[Row] | None = None) -> Table:
    """One row a layer.

    Args:
        layers: the attributes of their groups.
        found: rows of ``Run.layers``, where there are results.
    """
    table = Table(box=None)
    for heading in ("layer", "op", "units", "size", "field", "stride"):
        left = heading in ("layer", "op")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    table.add_column("projectable" if found is None else "projected")
    if found is not None:
        table.add_column("dead", justify="right")
    for number, layer in enumerate(layers):
        field = layer["receptive_field"]
        size = "image" if field["whole_image"] else f"{field['size'][0]}×{field['size'][1]}"
        stride = "" if field["stride"] is None else str(field["stride"][0])
        row = [escape(layer["layer"]), layer["op"], f"{layer['units']:,}",
               f"{layer['height']}×{layer['width']}", size, stride]  # fmt: skip
        if found is None:
            row.append("yes" if layer["projectable"] else f"no: {escape(layer['obstacle'])}")
        else:
            row += [f"{found[number]['projected_units']:,}", f"{found[number]['dead_units']:,}"]
        table.add_row(*row)
    return table


def of_units(run: deconvoy.Run, layer: str, hits: Sequence[Row]) -> Table:
    """One row a unit of a layer: how strong, and on images of which classes."""
    whose = "predicted classes" if run.labels == "predicted" else "classes"
    table = Table("unit", "score", "last", f"{whose} of its hits", box=None)
    by_unit: dict[int, list[Row]] = {}
    for hit in hits:
        by_unit.setdefault(hit["unit"], []).append(hit)
    units, dead = run.layer_group(layer).attrs["units"], set(run.dead_units(layer))
    for unit in range(int(str(units))):
        own = by_unit.get(unit, [])
        if not own:
            why = "dead: no image activates it" if unit in dead else "no hits: images left out"
            table.add_row(str(unit), "", "", why)
            continue
        names = Counter(run.class_name(hit["label"]) for hit in own)
        told = ", ".join(f"{count}× {name}" for name, count in names.most_common() if name)
        table.add_row(str(unit), f"{own[0]['score']:.4g}", f"{own[-1]['score']:.4g}", escape(told))
    return table


def of_hits(run: deconvoy.Run, hits: Sequence[Row]) -> Table:
    """One row a hit of a unit, strongest first."""
    label = "predicted" if run.labels == "predicted" else "label"
    table = Table("rank", "score", label, "y, x", "box y0 x0 y1 x1", "image", box=None)
    for hit in hits:
        box = " ".join(str(hit[side]) for side in ("y0", "x0", "y1", "x1"))
        table.add_row(
            str(hit["rank"] + 1), f"{hit['score']:.5g}", escape(run.class_name(hit["label"])),
            f"{hit['y']}, {hit['x']}", box, escape(hit["uri"]),
        )  # fmt: skip
    return table


def of_rows(found: pa.Table) -> Table:
    """Any table as it is; numbers stand right."""
    table = Table(box=None)
    for field in found.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(field.name, justify="right" if number else "left", overflow="fold")
    for row in found.to_pylist():
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def of_queries(known: Iterable[queries.Query]) -> Table:
    """The queries with their arguments."""
    table = Table("query", "answers", box=None)
    for query in known:
        arguments = "".join(
            f"\n  [dim]{escape(argument.name)}: {escape(argument.doc)}[/dim]"
            for argument in query.arguments
        )
        table.add_row(escape(queries.usage(query)), f"{escape(query.doc)}{arguments}")
    return table


def plan_lines(planned: Row) -> Iterator[str]:
    """What a job would do, take and need; one line each."""
    transform, seconds, sizes = planned["transform"], planned["seconds"], planned["bytes"]
    room = planned["free_bytes"]
    free = "room unknown" if room is None else f"{amount(room)} free"
    rows = {
        "model": planned["model"],
        "weights": planned["weights"],
        "transform": f"{transform_told(transform)} ({planned['transform_from']})",
        "images": f"{planned['images']:,} in {planned['shards']:,} leases, batches of "
        f"{planned['batch_size']}; labels: {planned['labels_from']}",
        "work": f"{planned['multiply_adds_per_image'] / 1e9:.2f} billion multiply-adds an image, "
        f"{planned['projections']:,} {METHODS[planned['method']].name} projections"
        + (f", {planned['squares']:,} squares" if planned["squares"] else "")
        + "".join(f", {n:,} {progress.WORDS[kind]}" for kind, n in planned["further"].items()),
        "workers": f"{planned['workers']} × {planned['threads']} threads",
        "time": _parts(seconds, progress.span),
        "storage": f"{_parts(sizes, amount)}; {free}",
    }
    if "rescan" in seconds:
        pays = planned["candidates_pay_from"]
        least = f"pay from about {pays:,} images on" if pays else "never pay on this machine"
        rows["candidates"] = f"bfloat16 and an exact scan of what it finds {least}"
    for name, value in rows.items():
        yield f"{name:<11}{escape(value)}"


def transform_told(transform: Row) -> str:
    """Size, mean and deviation in a line."""
    mean, std = (", ".join(f"{value:g}" for value in transform[key]) for key in ("mean", "std"))
    how = f" ({transform['interpolation']})" if transform["interpolation"] != "bilinear" else ""
    size = f"resize {transform['resize']}{how}, crop {transform['crop']}"
    return f"{size}, mean {mean}, std {std}"


def summary(found: Row) -> str:
    """What the scan has found, in a line."""
    dead = f", {found['dead_units']:,} of them dead" if found["dead_units"] else ""
    skipped = f", {found['skipped']:,} unreadable ones skipped" if found["skipped"] else ""
    top1 = "" if found["top1"] is None else f"; {markup.top1_told(found)}"
    return (
        f"{markup.images_told(found)}{skipped}{top1}; {found['units']:,} units{dead}"
        f"{_candidates_told(found.get('candidates'))}"
    )


def _candidates_told(judged: Row | None) -> str:
    """How far a scan that only found candidates can be trusted."""
    if judged is None:
        return ""
    units, faint = judged["open_units"], judged["faint_units"]
    missed = f"{units:,} units could lack one" if units else "by the differences seen none is lost"
    missed += f"; {faint:,} with fewer hits than asked for could lack faint ones" if faint else ""
    return f"; hits decided exactly among {judged['images']:,} candidate images ({missed})"


def _parts(values: Row, shown: Callable[[Any], str]) -> str:
    """The total, then what it is made of."""
    parts = ", ".join(f"{name} {shown(v)}" for name, v in values.items() if name != "total")
    return f"about {shown(values['total'])} ({parts})"


def amount(size: Any) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
