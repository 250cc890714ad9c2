"""The commands ``runs``, ``edit`` and ``delete``: runs at a service, by ``deconvoy.Client``."""

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import deconvoy
from deconvoy.errors import RequestError, RunNotFound
from service.console import AsJson, minute, out, print_json, say
from service.remote import STOPPED, Service

if TYPE_CHECKING:
    from deconvoy.client import ServedRun

RunId = Annotated[
    str, typer.Argument(metavar="ID", help="Of a run, as `runs` lists it.", show_default=False)
]


def runs(
    search: Annotated[
        str | None, typer.Option(help="Only those with this in id, name or model.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", "--state", help="Only these, as in done.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 20,
    as_json: AsJson = False,
    url: Service = None,
) -> None:
    """Runs of a service: pinned ones first, then the newest."""
    with deconvoy.Client(url) as client:
        found = list(islice(client.runs(status, tag, search), limit + 1))
    shown = found[:limit]
    if as_json:
        print_json(list(map(_plain, shown)))
    elif shown:
        out.print(_table(shown))
        if len(found) > limit:
            say(f"There are more than these {limit}: `--limit` shows them.")
    elif search or tag or status:
        out.print("No run fits: leave out --search, --tag or --status to see more.")
    else:
        out.print("There are no runs: `deconvoy submit SPEC` makes one.")


def edit(
    run_id: RunId,
    name: Annotated[
        str | None, typer.Option(help='What it is called from now on; "": as its spec says.')
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Add this tag.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="Take this tag away.")] = None,
    pin: Annotated[
        bool | None,
        typer.Option("--pin/--unpin", help="Pinned: listed first, and not to be deleted."),
    ] = None,
    as_json: AsJson = False,
    url: Service = None,
) -> None:
    """Name, tag and pin a run of a service."""
    if name is None and pin is None and not tag and not untag:
        raise RequestError(
            f"Nothing of {run_id!r} is to change: give --name, --tag, --untag, --pin or --unpin."
        )
    with deconvoy.Client(url) as client:
        try:
            run = client.edit_run(
                run_id, name=name, add_tags=tag or (), remove_tags=untag or (), pinned=pin
            )
        except RunNotFound as error:
            raise _or_a_folder(run_id, error) from None
    if as_json:
        print_json(_plain(run))
        return
    told = [f"called {run.name!r}"] if run.name else []
    told += [f"tagged {', '.join(run.tags)}"] if run.tags else []
    told += ["pinned"] if run.pinned else []
    out.print(escape(f"{run.id}: {'; '.join(told) or 'no name, no tags'}"), soft_wrap=True)


def delete(
    run_ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Of runs, as `runs` lists them.", show_default=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether to.")] = False,
    url: Service = None,
) -> None:
    """Delete runs of a service and all their files, for good."""
    with deconvoy.Client(url) as client:
        found = []
        for run_id in dict.fromkeys(run_ids):
            try:
                found.append(client.served_run(run_id))
            except RunNotFound as error:
                raise _or_a_folder(run_id, error) from None
        if not yes:
            _confirm(found)
        for run in found:
            run.delete()
            out.print(escape(f"{run.id} is deleted."), soft_wrap=True)


# -- parts -----------------------------------------------------------------------------------------


def _confirm(found: list["ServedRun"]) -> None:
    """Ask whoever sits there.

    Raises:
        RequestError: nobody does.
        typer.Exit: they would rather not.
    """
    if not sys.stdin.isatty():
        raise RequestError(
            "Nobody is at this terminal to ask whether to delete for good: give --yes if so."
        )
    for run in found:
        say(f"  {run.id}: {_called(run)}{run.status}, {run.model}, {run.images:,} images")
    which = "this run and all its files" if len(found) == 1 else f"these {len(found)} runs"
    try:
        sure = typer.confirm(f"Delete {which} for good?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of what is typed
        sure = False
    if not sure:
        say("Nothing was deleted.")
        raise typer.Exit(STOPPED)


def _or_a_folder(run_id: str, error: RunNotFound) -> RunNotFound:
    """A run of `deconvoy run` is a folder, of which a service need not know."""
    if not Path(run_id).exists():
        return error
    return RunNotFound(
        f"{run_id!r} is a folder or file here, and no run of the service by that id: this command "
        "takes ids, as `deconvoy runs` lists them; a run in a folder is deleted as any folder is."
    )


def _table(found: list["ServedRun"]) -> Table:
    headings = ("id", "name", "status", "model", "images", "created", "pinned", "tags")
    table = Table(*headings, box=None)
    for run in found:
        name = "" if run.name is None else escape(run.name)
        table.add_row(
            escape(run.id), name, run.status, escape(run.model), f"{run.images:,}",
            minute(run.created), "yes" if run.pinned else "", escape(", ".join(run.tags)),
        )  # fmt: skip
    table.columns[0].no_wrap = True
    return table


def _called(run: "ServedRun") -> str:
    return f"{run.name}, " if run.name else ""


def _plain(run: "ServedRun") -> dict[str, Any]:
    return {**run.model_dump(mode="json"), "url": run.url}
