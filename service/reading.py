"""The commands that read and check: query, export, diff, verify and doctor.  ``cli`` lists them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import deconvoy
from deconvoy import export as exporting
from deconvoy import queries, report
from deconvoy.errors import DeconvoyError, RequestError
from service import doctor as physician
from service import launcher, tables
from service.console import AsJson, Url, out, print_json

VERIFIED_HITS = 200
"""Hits that are recomputed, unless told: they need as many forward passes at most."""


def query(
    url: Url,
    name: Annotated[str | None, typer.Argument(help="Which query; none: list them.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="Its arguments, in order or as name=value."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run: purity, examples, outliers, dead, images-most-hit, selective, nearest, image,
    localisation, invariance, correspondence, evolution, probe, study, study-curves,
    settled."""
    if name is None:
        if as_json:
            print_json({q.name: q.doc for q in queries.QUERIES.values()})
        else:
            out.print(tables.of_queries(queries.QUERIES.values()))
        return
    given, named = _split(queries.find(name), arguments or [])
    found = queries.ask(deconvoy.open(url), name, given, named)
    told = {key.decode(): value.decode() for key, value in (found.schema.metadata or {}).items()}
    if as_json:
        rows = found.to_pylist()
        print_json({**json.loads(told["summary"]), "rows": rows} if told else rows)
        return
    out.print(tables.of_rows(found) if found.num_rows else "Nothing found.")
    if told:
        out.print(escape(told["told"]), soft_wrap=True)


def export(
    url: Url,
    path: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="A .parquet, .arrow, .csv or .html file.", show_default=False
        ),
    ],
    units: Annotated[
        int, typer.Option(min=1, help="Units of each layer in a report (.html).")
    ] = report.UNITS,
) -> None:
    """Write the table of all hits, or the run as one HTML file to mail."""
    rows = exporting.export(deconvoy.open(url), path, units)
    what = f"{rows:,} hits" if rows else "the report"
    out.print(f"{escape(str(path))}: {what}, {tables.amount(path.stat().st_size)}", soft_wrap=True)


def diff(
    a: Annotated[str, typer.Argument(help="Folder of the run before.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Folder of the run after.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two runs of one layout: hits kept, units changed, accuracy."""
    before, after = deconvoy.open(a), deconvoy.open(b)
    found, overall = queries.diff(before, after), queries.overall(before, after)
    if as_json:
        print_json({**overall, "layers": found.to_pylist()})
        return
    differing = ", ".join(overall["differing"]) or "nothing: weights, images and transform are one"
    out.print(f"differing  {differing}")
    shown = [
        "unknown" if overall[key] is None else f"{overall[key]:.1%}"
        for key in ("top1_before", "top1_after")
    ]
    out.print(f"top-1      {shown[0]} before, {shown[1]} after")
    out.print(tables.of_rows(found))


def verify(
    url: Url,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            help="Hits to recompute with the model, or networks of a study to judge again; 0: no "
            "model needed.",
        ),
    ] = VERIFIED_HITS,
    as_json: AsJson = False,
) -> None:
    """Check every chunk, marker and image part, and recompute some hits."""
    found = launcher.verify(url, sample)
    if as_json:
        print_json(found)
    else:
        for fault in found["faults"]:
            out.print(f"{escape(fault['place'])}: {escape(fault['reason'])}", soft_wrap=True)
    if found["faults"]:
        count = len(found["faults"])
        raise DeconvoyError(
            f"{url!r} is not what was written, {count} fault{'s' if count > 1 else ''}: copy the "
            "files named again from where they are whole, or make the run anew."
        )
    if not as_json:
        opened = deconvoy.open(url)
        status = opened.status
        unfinished = (
            "" if status == "done" else f" The run is {status}; what it has so far is whole."
        )
        squares = f" and {found['squares']:,} squares" if found["squares"] else ""
        again = f"{found['hits']:,} hits{squares} recomputed"
        if opened.kind == "study":
            again = f"{found['networks']:,} networks judged again by their weights"
        out.print(
            f"All is well: {found['chunks']:,} chunks and {found['files']:,} other files read, "
            f"{again}.{unfinished}"
        )


def doctor(as_json: AsJson = False) -> None:
    """What this machine has, what is wrong with it, and what helps."""
    findings = physician.examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        out.print(_findings(findings))
    wrong = [finding for finding in findings if finding.remedy]
    if wrong:
        raise DeconvoyError(
            f"{len(wrong)} of {len(findings)} things are wrong here: "
            f"{', '.join(finding.name for finding in wrong)}."
        )


def _findings(findings: list[physician.Finding]) -> Table:
    table = Table("", "what", "found", box=None, show_header=False)
    for finding in findings:
        told = escape(finding.found)
        if finding.remedy:
            told += f"\n[bold]→ {escape(finding.remedy)}[/bold]"
        table.add_row("[red]✗[/red]" if finding.remedy else "[green]✓[/green]", finding.name, told)
    return table


def _split(query_: queries.Query, texts: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments in order, and those given as name=value.

    A text with ``=`` behind something that is no word (a path, for example) is no name.
    """
    given: list[str] = []
    named: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if equals and key.isidentifier():
            if key in named:
                raise RequestError(f"The query {query_.name!r} is given {key!r} twice.")
            named[key] = value
        elif named:
            raise RequestError(
                f"The query {query_.name!r}: {text!r} comes after a name=value: give arguments "
                "without names first."
            )
        else:
            given.append(text)
    return given, named
