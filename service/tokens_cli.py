"""The commands ``deconvoy token create|list|revoke``.  ``cli`` lists them.

They work on the catalogue itself, so the service need not run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deconvoy.errors import MissingExtra
from service.console import AsJson, minute, out, print_json, say
from service.scopes import Scope

if TYPE_CHECKING:
    from service.tokens import Tokens

app = typer.Typer(help="Who may call the API.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Of the token, as in who holds it.", show_default=False)]


@app.command()
def create(
    name: Name,
    scope: Annotated[Scope, typer.Option(help="What it may do.")] = Scope.read,
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="It is good for; default: until revoked.")
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="Only where no token is valid; else do nothing.")
    ] = False,
) -> None:
    """Make a token and print it, this once."""
    with _tokens() as tokens:
        if first and tokens.any_valid():
            say("There are valid tokens already: no other was made.")
            return
        secret = tokens.create(name, scope, None if days is None else timedelta(days=days))
    say(f"The token {name!r} may {_MAY[scope]}. It is shown this once: keep it safe.")
    out.print(escape(secret), soft_wrap=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show the tokens, those that expired or were revoked among them."""
    with _tokens() as tokens:
        found = tokens.all()
    if as_json:
        times = ("created", "expires", "revoked", "used")
        rows = [
            {
                "name": token.name,
                "scope": token.scope,
                "state": token.state,
                **{time: _iso(getattr(token, time)) for time in times},
            }
            for token in found
        ]
        print_json(rows)
        return
    if not found:
        out.print("There are no tokens: `deconvoy token create NAME` makes one.")
        return
    table = Table("name", "scope", "state", "created", "expires", "last used")
    for token in found:
        dates = (minute(token.created), minute(token.expires), minute(token.used))
        table.add_row(escape(token.name), token.scope, token.state, *dates)
    out.print(table)


@app.command()
def revoke(name: Name) -> None:
    """Let a token in no more, from the next request on."""
    with _tokens() as tokens:
        tokens.revoke(name)
    out.print(f"The token {escape(repr(name))} is revoked.")


_MAY = {
    Scope.read: "read",
    Scope.submit: "read, and submit and cancel jobs",
    Scope.admin: "do everything",
}


@contextmanager
def _tokens() -> "Iterator[Tokens]":
    """Those of the catalogue that the settings name."""
    try:
        from service.catalogue import Catalogue
        from service.settings import read_settings
        from service.tokens import Tokens
    except ModuleNotFoundError as error:
        raise MissingExtra("service", "Handling tokens") from error
    catalogue = Catalogue(read_settings().database_url)
    try:
        catalogue.upgrade()
        yield Tokens(catalogue.database)
    finally:
        catalogue.close()


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
