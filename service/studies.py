"""Studies of architectures as tables and sentences for a terminal.  Prints nothing itself."""

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from deconvoy import progress
from deconvoy.study import Study
from service.tables import amount, transform_told

Row = dict[str, Any]


def summary(found: Row) -> str:
    """What was trained, in a line."""
    each = f", each {found['repeats']} times" if found["repeats"] > 1 else ""
    told = (
        f"{found['networks']} networks trained{each} on {found['images']:,} images, judged by "
        f"{found['validation_images']:,}"
    )
    lost = found["diverged"]
    if lost:
        which = ", ".join(f"{one['network']} (epoch {one['epoch']})" for one in lost[:4]) + (
            ", …" if len(lost) > 4 else ""
        )
        told += (
            f". Of {which} the loss was not finite any more: lower training.learning_rate, in a "
            "new run"
        )
    return told


def of_study(study: Study) -> Table:
    """The paper's Table 3: one row a network, errors in percent; and what its first layer looks
    like."""
    repeats = study.loss.shape[1]
    table = Table(box=None)
    table.add_column("network", overflow="fold")
    names = ["parameters", "train error top-1 %", "top-5 %", "validation error top-1 %", "top-5 %"]
    names += ["± over repeats"] * (repeats > 1) + ["dead filters", "at the RMS bound"]
    for name in (*names, "low/middle/high"):
        table.add_column(name, justify="right")
    for network, row in enumerate(study.table().to_pylist()):
        lacking = study.lacking(network)
        if lacking is not None:
            table.add_row(escape(row["network"]), f"{row['parameters']:,}", lacking)
            continue
        errors = ("training_top1", "training_top5", "validation_top1", "validation_top5")
        cells = [f"{100 * row[name]:.1f}" for name in errors]
        cells += [f"{100 * row['deviation']:.1f}"] * (repeats > 1)
        held = "" if row["at_bound"] is None else f"{row['at_bound']} of {row['filters']}"
        bands = "/".join(f"{100 * row[band]:.0f}" for band in ("low", "middle", "high"))
        cells += [f"{row['dead']} of {row['filters']}", held, bands]
        table.add_row(escape(row["network"]), f"{row['parameters']:,}", *cells)
    return table


def plan_lines(planned: Row) -> Iterator[str]:
    """What a study would do, take and need; one line each."""
    total = planned["epochs"] * planned["images"] * planned["repeats"] * len(planned["networks"])
    transform = transform_told(planned["transform"])
    rows = {
        "base": planned["model"],
        "transform": f"{transform} ({planned['transform_from']})",
        "images": f"{planned['images']:,} to learn from, {planned['validation_images']:,} to judge "
        f"by; {planned['classes']} classes",
        "work": f"{len(planned['networks'])} networks, each trained {planned['repeats']}×, "
        f"{planned['epochs']} epochs: {total:,} images learned from",
        "workers": f"{planned['workers']} × {planned['threads']} threads",
        "time": f"about {progress.span(planned['seconds'])}",
        "storage": f"at most {amount(planned['bytes'])}; images take {amount(planned['memory'])} "
        "in the memory of each worker",
    }
    for name, value in rows.items():
        yield f"{name:<11}{escape(value)}"


def of_plan(planned: Row) -> Table:
    """One row a network."""
    table = Table("network", box=None)
    table.add_column("parameters", justify="right")
    table.add_column("time of a worker", justify="right")
    for network in planned["networks"]:
        seconds = progress.span(network["seconds"])
        table.add_row(escape(network["name"]), f"{network['parameters']:,}", seconds)
    return table
