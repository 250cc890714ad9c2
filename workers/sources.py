"""Where pixels come from: files, tar shards, Parquet columns, or the drawings of ``shapes``.

A source is small and pickles; every actor has its own.  It reads one image by its ``uri``, which
says all there is to know: nothing is looked up in a listing.  Listing is ``workers.datasets``.
"""

import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deconvoy.errors import FilesUnreachable, ImageUnreadable
from deconvoy.files import Files, is_remote, split
from deconvoy.spec import Transform
from workers.images import Picture, decode, from_pixels
from workers.shapes import render

CACHED_TARS = 16
"""Shards whose member lists a process keeps."""

CACHED_ROW_GROUPS = 4
"""Row groups of Parquet files a process keeps, still encoded."""


@runtime_checkable
class Source(Protocol):
    """Where images come from."""

    def read(self, uri: str, transform: Transform) -> Picture:
        """Raises ImageUnreadable."""
        ...


@dataclass(frozen=True)
class FileSource:
    """One file an image.  ``uri``: its path below ``root``, an absolute path, or a URL."""

    root: str

    def read(self, uri: str, transform: Transform) -> Picture:
        files, name = split(uri) if is_remote(uri) else (Files(self.root), uri)
        return decode(_read(lambda: files.read(name)), transform)


@dataclass(frozen=True)
class ShapesSource:
    """``uri``: the number of the drawing."""

    seed: int

    def read(self, uri: str, transform: Transform) -> Picture:
        return from_pixels(render(self.seed, int(uri)).image, transform)


@dataclass(frozen=True)
class TarSource:
    """Members of tar shards.  ``uri``: ``path/of/shard.tar/path/of/member.jpg``."""

    root: str

    def read(self, uri: str, transform: Transform) -> Picture:
        shard, member = split_tar(uri)

        def content() -> bytes:
            place = tar_members(self.root, shard).get(member)
            if place is None:
                raise FileNotFoundError(f"{shard} has no member {member}")
            return Files(self.root).read_range(shard, *place)

        return decode(_read(content), transform)


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files.  ``uri``: ``path/of/file.parquet#row``."""

    root: str
    column: str

    def read(self, uri: str, transform: Transform) -> Picture:
        file, _, row = uri.rpartition("#")
        cell = _read(lambda: parquet_cell(self.root, file, self.column, int(row)))
        if isinstance(cell, Mapping):  # {bytes, path}: either is enough
            path = cell.get("path")
            if cell.get("bytes") is None and path:
                return FileSource(self.root).read(path, transform)
            cell = cell.get("bytes")
        if cell is None:
            raise ImageUnreadable(f"{uri} is empty")
        return decode(cell, transform)


@dataclass(frozen=True)
class JoinedSource:
    """Several places.  ``uri``: as the first one's own; of the others after ``+1:``, ``+2:``, …"""

    sources: tuple[Source, ...]

    def read(self, uri: str, transform: Transform) -> Picture:
        number, own = split_joined(uri)
        return self.sources[number].read(own, transform)


def joined_uri(number: int, uri: str) -> str:
    return f"+{number}:{uri}" if number else uri


def split_joined(uri: str) -> tuple[int, str]:
    """Number of the place, and the uri there."""
    match = re.fullmatch(r"\+(\d+):(.*)", uri, re.DOTALL)
    return (int(match[1]), match[2]) if match else (0, uri)


def _read(content: Any) -> Any:
    """What ``content`` returns; what the system refuses makes the image unreadable.

    Raises:
        FilesUnreachable: a store that is away; skipped images would differ from day to day.
    """
    try:
        return content()
    except FilesUnreachable:
        raise
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ImageUnreadable(f"cannot be read: {reason}") from error


def split_tar(uri: str) -> tuple[str, str]:
    """Path of the shard, and name of the member."""
    shard, _, member = uri.partition(".tar/")
    return f"{shard}.tar", member


@lru_cache(maxsize=CACHED_TARS)
def tar_members(root: str, shard: str) -> Mapping[str, tuple[int, int]]:
    """Regular members of a tar file: first byte and size.

    Raises:
        OSError, tarfile.TarError: it is not there, or no (uncompressed) tar file.
    """
    members: dict[str, tuple[int, int]] = {}
    with Files(root).open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.isreg():
                members[info.name.removeprefix("./")] = info.offset_data, info.size
    return members


_parquet_lock = Lock()
"""Readers of one file share its footer and its row groups, and are not safe side by side."""


def parquet_cell(root: str, file: str, column: str, row: int) -> Any:
    """One value of a column.

    Raises:
        OSError, pa.ArrowException: the file is not there or broken.
    """
    with _parquet_lock:
        starts = _parquet_file(root, file)[1]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return _row_group(root, file, column, group)[row - starts[group]].as_py()


@lru_cache(maxsize=CACHED_TARS)
def _parquet_file(root: str, file: str) -> tuple[pq.ParquetFile, list[int]]:
    """The open file, and the first row of each of its row groups."""
    opened = pq.ParquetFile(Files(root).open(file))
    sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
    return opened, [0, *np.cumsum(sizes)[:-1].tolist()]


@lru_cache(maxsize=CACHED_ROW_GROUPS)
def _row_group(root: str, file: str, column: str, group: int) -> pa.ChunkedArray:
    return _parquet_file(root, file)[0].read_row_group(group, columns=[column]).column(column)
