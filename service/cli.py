"""The command line.  It parses, asks the launcher or a run, and prints; it computes nothing.

Errors are one sentence on standard error.  Exit codes: 0 done, 1 the job failed, 2 the request was
wrong, 130 stopped by Ctrl-C, 141 nobody reads the output any more (as before `| head`).
"""

import atexit
import contextlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

import deconvoy
from deconvoy import figures, progress, queries, specs
from deconvoy.errors import DeconvoyError, RequestError, RunNotFound
from deconvoy.study import Study
from service import (
    collisions,
    drawing,
    full_demo,
    launcher,
    reading,
    remote,
    remote_runs,
    studies,
    tables,
    tokens_cli,
    up,
)
from service.console import AsJson, Url, out, print_json, say
from service.launcher import ExecutorName

NEW_RUN = "Folder or s3:// URL of the new run."

READER_GONE = 141
"""As shells tell it: 128 and the number of SIGPIPE."""

app = typer.Typer(
    name="deconvoy",
    help="What does each feature map of a convolutional network see?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Spec = Annotated[Path, typer.Argument(help="Job spec, a YAML or JSON file.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field, as in data.limit=100."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Workers; default: one per GPU, or per two cores.")
]
Address = Annotated[
    str | None,
    typer.Option(metavar="RAY", help="A running Ray; default: RAY_ADDRESS, else one started here."),
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option(help="Where the workers live: on Ray, or in this process.")
]


def _print_version(asked: bool) -> bool:
    if asked:
        try:
            out.print(f"deconvoy {importlib.metadata.version('deconvoy')}")
        except importlib.metadata.PackageNotFoundError:
            out.print("deconvoy runs from its folder, not installed")
        raise typer.Exit
    return asked


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    collisions.refuse(list(collisions.shadowing()))
    # What was stripped from the names of weights, or left out of them, is said.
    logging.getLogger("workers.weights").setLevel(logging.DEBUG if debug else logging.INFO)
    for noisy in ("PIL", "matplotlib", "asyncio", "urllib3", "httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to put it.")] = Path("runs/demo"),
    full: Annotated[
        bool,
        typer.Option("--full", help="All of the paper in small, with report.html: 8 minutes."),
    ] = False,
) -> None:
    """Everything on built-in data, without network: train, analyse, draw."""
    with progress.shown() as observe:
        found = launcher.demo(folder, full=full, observe=observe, say=say)
    if full:
        here = found["folder"]
        out.print(f"\n{tables.summary(found)}")
        full_demo.write(here)
        for line in full_demo.told(here):
            out.print(escape(line), soft_wrap=True)
        return
    run = deconvoy.open(found["folder"].run)
    out.print(f"\n{tables.summary(found)}")
    for layer in drawing.projected(run):
        path = found["folder"].figures / f"{layer}.png"
        figures.save(drawing.draw_layer(run, layer, None), path)
        out.print(f"  {escape(str(path))}", soft_wrap=True)
    path = found["folder"].figures / "occlusion.png"
    figures.save(drawing.draw_images(run, None), path)
    out.print(f"  {escape(str(path))}", soft_wrap=True)
    out.print(f"\n{escape(queries.pointing_game(run).told())}", soft_wrap=True)
    here = found["folder"]
    out.print(
        f"\nThe figures above are Fig. 2 of the paper, a page a layer, and Fig. 7, a row an image: "
        f"the three images whose class a square hides best.\n\nTo walk through it in a browser:\n"
        f"  deconvoy up {here.run}\n\nWhat else to type next:\n"
        f"  deconvoy show {here.run}\n"
        f"  deconvoy show {here.run} relu5 3\n"
        f"  deconvoy figure {here.run} relu5 --units 16-31 -o relu5.png\n"
        f"  deconvoy figure {here.run} --image 7 --patch 16 --stride 4 -o seven.png     (a square "
        f"slides over it, now)\n"
        f"  deconvoy plan {here.spec}     (the job spec: copy it for your own model and images)\n"
        f"  deconvoy demo --full     (all of the paper in small, with a report: some 8 minutes)",
        soft_wrap=True,
    )


@app.command()
def plan(spec: Spec, sets: Sets = None, as_json: AsJson = False) -> None:
    """Dry run: layers, receptive fields, transform, images; estimated work, time and storage."""
    planned = launcher.plan(specs.from_file(spec, tuple(sets or ())), say)
    if as_json:
        print_json(planned)
    else:
        _print_plan(planned)


@app.command()
def run(
    spec: Spec,
    url: Annotated[str, typer.Option("--out", help=NEW_RUN, show_default=False)],
    workers: Workers = None,
    address: Address = None,
    executor: ExecutorOption = "ray",
    sets: Sets = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
) -> None:
    """Run a job in the foreground."""
    overrides = [*(sets or ()), *([f"compute.workers={workers}"] if workers else [])]
    parsed = specs.from_file(spec, tuple(overrides))
    with progress.shown() as observe:
        found = launcher.run(
            parsed,
            url,
            executor=executor,
            address=address,
            overwrite=overwrite,
            observe=observe,
            say=say,
        )
    _finish(url, found)


@app.command()
def resume(
    run_: Annotated[
        str,
        typer.Argument(
            metavar="URL|ID", help="Folder of a run, or id of a service's job.", show_default=False
        ),
    ],
    workers: Workers = None,
    address: Address = None,
    executor: ExecutorOption = "ray",
    url: remote.Service = None,
) -> None:
    """Go on where a stopped or killed run left off, or let a service go on with a job."""
    if remote.is_job(run_):
        if workers or address:
            raise RequestError(
                f"--workers and --address are for a run on disk, and there is none at {run_!r}: a "
                "service has its own."
            )
        remote.resume_job(run_, url)
        return
    with progress.shown() as observe:
        found = launcher.resume(
            run_, executor=executor, address=address, workers=workers, observe=observe, say=say
        )
    _finish(run_, found)


@app.command()
def extend(
    url: Url,
    data: Annotated[
        str, typer.Option("--data", help="The new images, as in data.uri.", show_default=False)
    ],
    out_: Annotated[str, typer.Option("--out", help=NEW_RUN, show_default=False)],
    labels: Annotated[
        str | None, typer.Option(help="Labels of the new images, as in data.labels.")
    ] = None,
    address: Address = None,
    executor: ExecutorOption = "ray",
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
) -> None:
    """New images merged into a finished run, as a new run; only they are scanned."""
    with progress.shown() as observe:
        found = launcher.extend(
            url, data, out_, labels=labels, executor=executor, address=address,
            overwrite=overwrite, observe=observe, say=say,
        )  # fmt: skip
    _finish(out_, found)


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="As in model.name of a spec.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """The layers of a model, with size, stride and receptive field."""
    found = launcher.layers(model)
    if as_json:
        print_json(found)
        return
    size = "×".join(map(str, found["input"]))
    out.print(escape(f"{model} on {size} ({found['transform_from']})"))
    out.print(tables.of_layers(found["layers"]))


@app.command()
def show(
    url: Url,
    layer: Annotated[str | None, typer.Argument(help="Name of a layer.")] = None,
    unit: Annotated[int | None, typer.Argument(help="Number of a unit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at results in the terminal: the run, a layer, or a unit."""
    opened = deconvoy.open(url)
    if layer is None:
        _show_run(opened, as_json)
    elif unit is None:
        _show_layer(opened, layer, as_json)
    else:
        _show_unit(opened, layer, unit, as_json)


def _show_run(run_: deconvoy.Run, as_json: bool) -> None:
    if run_.kind == "study":
        _show_study(run_, as_json)
        return
    results: dict[str, Any] = run_.attributes.get("results", {})
    if as_json:
        fields = {key: run_.attributes[key] for key in ("state", "spec", "provenance")}
        listed = run_.layers().to_pylist() if results else []
        print_json({**fields, "results": results, "layers": listed})
        return
    _show_state(run_)
    if not results:
        out.print("There are no results: the scan is not done.")
        return
    out.print(tables.summary(results))
    rows = [dict(run_.layer_group(name).attrs.asdict()) for name in run_.layer_names]
    out.print(tables.of_layers(rows, run_.layers().to_pylist()))


def _show_state(run_: deconvoy.Run) -> None:
    model = run_.attributes["provenance"]["model"]
    out.print(escape(f"{run_.url}: {run_.status}, {model}"))
    if run_.failure:
        out.print(escape(f"It failed: {run_.failure}"), soft_wrap=True)
    if run_.resumable:
        out.print(escape(f"`deconvoy resume {run_.url}` goes on."), soft_wrap=True)


def _show_study(run_: deconvoy.Run, as_json: bool) -> None:
    results: dict[str, Any] = run_.attributes.get("results", {})
    if as_json:
        fields = {key: run_.attributes[key] for key in ("state", "spec", "provenance")}
        study = _study_of(run_)
        networks = study.table().to_pylist() if study else []
        print_json({**fields, "results": results, "networks": networks})
        return
    _show_state(run_)
    if results:
        out.print(studies.summary(results))
    study = _study_of(run_)
    if study is None:
        out.print("There are no results yet: no network has been trained to its end.")
        return
    out.print(studies.of_study(study))


def _study_of(run_: deconvoy.Run) -> Study | None:
    """None where no network has come to its end."""
    try:
        return run_.study()
    except RunNotFound:
        return None


def _show_layer(run_: deconvoy.Run, layer: str, as_json: bool) -> None:
    rows = run_.table(layer).to_pylist()
    if as_json:
        print_json(rows)
    else:
        out.print(tables.of_units(run_, layer, rows))


def _show_unit(run_: deconvoy.Run, layer: str, unit: int, as_json: bool) -> None:
    found = run_.unit(layer, unit)
    rows = [row for row in run_.table(layer).to_pylist() if row["unit"] == unit]
    if as_json:
        print_json(rows)
        return
    dead = ": dead, no image activates it" if found.dead else ""
    out.print(f"{escape(layer)}, unit {unit}{dead}")
    out.print(tables.of_hits(run_, rows))


def _print_plan(planned: dict[str, Any]) -> None:
    if planned.get("kind") == "study":
        for line in studies.plan_lines(planned):
            out.print(line, soft_wrap=True)
        out.print(studies.of_plan(planned))
        return
    for line in tables.plan_lines(planned):
        out.print(line, soft_wrap=True)
    out.print(tables.of_layers([{**layer, "layer": layer["name"]} for layer in planned["layers"]]))


def _finish(url: str, found: dict[str, Any]) -> None:
    where = escape(f"Done: {url}. Next: deconvoy show {url}")
    told = studies.summary(found) if "networks" in found else tables.summary(found)
    out.print(f"{told}\n{where}", soft_wrap=True)


for _verb in (
    drawing.figure,
    reading.query,
    reading.export,
    reading.diff,
    reading.verify,
    reading.doctor,
    up.up,
    remote.submit,
    remote.jobs,
    remote.status,
    remote.wait,
    remote.logs,
    remote.cancel,
    remote_runs.runs,
    remote_runs.edit,
    remote_runs.delete,
):
    app.command()(_verb)
app.add_typer(tokens_cli.app, name="token")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app)(args=given, prog_name="deconvoy")
    except SystemExit as end:
        # Ours have codes of their own; Typer's 1 means that the reader of a pipe went away.
        sys.exit(READER_GONE if end.code == 1 else end.code)
    except DeconvoyError as error:
        if "--debug" in given:
            raise
        with contextlib.suppress(BrokenPipeError):
            say(f"deconvoy: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in given:
            raise
        place = f" {error.filename!r}" if error.filename else ""
        say(f"deconvoy: the system refused{place}: {error.strerror or error}.")
        sys.exit(1)
    sys.exit(0)


def command() -> NoReturn:
    """``main`` in a process of its own, which ends without taking the interpreter down.

    Threads of libraries (Zarr's loop, Arrow, the client of buckets) may still be at their last
    step.  One that asks for the interpreter while it is taken down is ended by it in the middle of
    compiled code, which aborts the process, after its answer: seen in 2 of 40 queries under load.
    """
    codes: list[int] = [1]
    atexit.register(_leave, codes)  # before all others, so it comes last
    try:
        main()
    except SystemExit as end:
        codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _leave(codes: Sequence[int]) -> None:
    """Threads are joined and all else that was registered is done."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has gone, as told before
            stream.flush()
    os._exit(codes[-1])


if __name__ == "__main__":
    command()
