"""Write a run's hits, or the run as a report, into one file: whole, or not at all.

Hits go layer by layer, so that memory does not grow with the number of layers.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from deconvoy import report
from deconvoy.errors import RequestError
from deconvoy.files import make_folder_of
from deconvoy.run import Run

SUFFIXES: dict[str, Callable[[Path, pa.Schema], Any]] = {
    ".parquet": lambda path, schema: pa.parquet.ParquetWriter(path, schema, compression="zstd"),
    ".arrow": lambda path, schema: pa.ipc.new_file(str(path), schema),
    ".csv": lambda path, schema: pa.csv.CSVWriter(str(path), schema),
}
"""The writer of a table by the file's suffix."""


def export(run: Run, path: str | os.PathLike[str], units: int = report.UNITS) -> int:
    """Write all hits (``.parquet``, ``.arrow``, ``.csv``) or the report (``.html``).

    Args:
        units: of each layer in a report.

    Returns:
        Rows written; 0 for a report.

    Raises:
        RequestError: another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".html" and suffix not in SUFFIXES:
        raise RequestError(
            f"Cannot export to {str(path)!r}: its suffix is {path.suffix!r}; use one of "
            f"{', '.join([*SUFFIXES, '.html'])}."
        )
    if suffix == ".html":
        with _in_place(path) as draft, draft.open("w", encoding="utf-8") as file:
            file.writelines(report.pages(run, units))
        return 0
    rows = 0
    first = run.table(run.layer_names[0])  # refuses a run without results before a file is there
    with _in_place(path) as draft, SUFFIXES[suffix](draft, first.schema) as writer:
        for layer in run.layer_names:
            table = run.table(layer)
            writer.write_table(table.combine_chunks())
            rows += table.num_rows
    return rows


@contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes ``path`` if all goes well."""
    make_folder_of(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
