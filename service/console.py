"""What all commands print through, and the arguments many of them share."""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

PIPED_WIDTH = 160
"""Columns where the output is no terminal and nothing says how wide it is."""

# Without emoji: a class may be called `:cat:`, and `file.py:factory:` has colons, too.
out = Console(highlight=False, emoji=False)
if not out.is_terminal:
    out = Console(highlight=False, emoji=False, width=PIPED_WIDTH)

Url = Annotated[str, typer.Argument(help="Folder or URL of a run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(line: str) -> None:
    """A line to standard error, where it disturbs no output."""
    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(escape(line), soft_wrap=True)


def minute(time: datetime | None) -> str:
    """In UTC; empty where there is none."""
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M}Z"


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
