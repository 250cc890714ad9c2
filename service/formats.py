"""Tables as they are sent: JSON pages, or a stream of Arrow, Parquet or CSV.

A stream is written a table at a time, so that memory does not grow with the number of layers.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fastapi import Request
from fastapi.responses import StreamingResponse

from service.problems import refused

Format = Literal["json", "arrow", "parquet", "csv"]

MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
}

PIECE = 2**18
"""Bytes sent at a time, at least: each costs a hop between threads."""

WRITERS: dict[Format, Callable[[Any, pa.Schema], AbstractContextManager[Any]]] = {
    "arrow": lambda sink, schema: pa.ipc.new_stream(sink, schema),
    "parquet": lambda sink, schema: pa.parquet.ParquetWriter(sink, schema, compression="zstd"),
    "csv": lambda sink, schema: pa.csv.CSVWriter(sink, schema),
}


def chosen(request: Request, asked: Format | None) -> Format:
    """The format a caller wants: as asked, else the best of its Accept header, else JSON.

    Raises:
        Problem: none of those it accepts is there.
    """
    accept = request.headers.get("accept", "")
    if asked is not None or not accept:
        return asked or "json"
    for wanted in _by_preference(accept):
        for name, media_type in MEDIA_TYPES.items():
            kind = media_type.partition("/")[0]
            if wanted in ("*/*", media_type, f"{kind}/*"):
                return name
    raise refused(
        406,
        f"The header Accept is {accept[:80]!r}; this is there as "
        f"{', '.join(MEDIA_TYPES.values())}: accept one of them, or give format.",
        "Accept",
    )


def _by_preference(accept: str) -> list[str]:
    """Media types, likeliest first; what is refused (q=0) is left out."""
    weighed = []
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        told = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(told)
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighed.append((-weight, media_type))
    return [media_type for _, media_type in sorted(weighed, key=lambda one: one[0])]


def stream(
    request: Request, tables: Iterable[pa.Table], form: Format, name: str
) -> StreamingResponse:
    """Tables of one schema, one after another, as one file.

    The first is made before anything is sent, so that what is wrong with the request is still told
    as a problem.
    """
    tables = iter(tables)
    first = next(tables)
    suffix = "arrows" if form == "arrow" else form
    file = quote(f"{name}.{suffix}", safe="")  # a run's folder may be called anything
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{file}"}
    pieces = iter(()) if request.method == "HEAD" else _pieces(first, tables, form)
    return StreamingResponse(pieces, media_type=MEDIA_TYPES[form], headers=headers)


def _pieces(first: pa.Table, others: Iterator[pa.Table], form: Format) -> Iterator[bytes]:
    drain = _Drain()
    with pa.PythonFile(drain, mode="w") as sink:
        with WRITERS[form](sink, first.schema) as writer:
            writer.write_table(first)
            for table in others:
                if drain.size >= PIECE:
                    yield drain.emptied()
                writer.write_table(table)
        yield drain.emptied()


class _Drain(io.RawIOBase):
    """Takes what a writer writes, and gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._written.append(bytes(content))
        self.size += len(self._written[-1])
        return len(self._written[-1])

    def emptied(self) -> bytes:
        content = b"".join(self._written)
        self._written.clear()
        self.size = 0
        return content
