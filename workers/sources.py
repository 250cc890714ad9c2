"""Where pixels come from: files, tar shards, Parquet columns, or the drawings of ``shapes``.

A source is small and pickles; every actor has its own.  It reads one image by its ``uri``, which
says all there is to know: nothing is looked up in a listing.  Listing is ``workers.datasets``.
"""

import io
import os
import re
import tarfile
from collections import OrderedDict
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
from workers.images import MAX_BYTES, Picture, chunks, decode, from_pixels, refuse_long
from workers.shapes import render

CACHED_TARS = 16
"""Shards whose member lists a process keeps."""

CACHED_ROW_GROUPS = 4
"""Row groups of Parquet files a process keeps, still encoded."""

ROW_GROUP_BYTES = 2 * 2**30
"""Of all that it keeps, and of the images in any one: writers put hundreds in one."""


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
        def content() -> bytes:
            files, name = split(uri) if is_remote(uri) else (Files(self.root), uri)
            return files.read(name, MAX_BYTES)

        return decode(_read(content), transform)


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
            refuse_long(place[1])
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
    except (FilesUnreachable, ImageUnreadable):
        raise
    # ValueError: a name with a NUL in it or of no known scheme, or text that is no UTF-8.
    except (OSError, ValueError, IndexError, tarfile.TarError, pa.ArrowException) as error:
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
    with Files(root).open(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    # Of a sparse one the holes are not there, so its size is of no use here.
                    if info.isreg() and not info.issparse():
                        members[info.name.removeprefix("./")] = info.offset_data, info.size
                _require_end(file, tar.offset)
        except (ValueError, RecursionError, OverflowError) as error:  # headers that are no headers
            raise tarfile.ReadError(f"its headers are broken: {error}") from error
    return members


def _require_end(file: io.BufferedReader, place: int) -> None:
    """Where a header is broken tarfile stops without a word, and all that follows would be lost.

    Raises:
        tarfile.ReadError: the archive has no end mark there.
    """
    file.seek(place)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off: copy it again")
    if block.strip(tarfile.NUL):
        raise tarfile.ReadError(f"the header at byte {place:,} is broken: copy it again")


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
        return _row_groups.get(root, file, column, group)[row - starts[group]].as_py()


@lru_cache(maxsize=CACHED_TARS)
def _parquet_file(root: str, file: str) -> tuple[pq.ParquetFile, list[int]]:
    """The open file, and the first row of each of its row groups."""
    content = Files(root).open(file)
    try:
        opened = pq.ParquetFile(content)
    except BaseException:
        content.close()
        raise
    sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
    return opened, [0, *np.cumsum(sizes)[:-1].tolist()]


class _RowGroups:
    """Those used last, up to a number and to bytes; not safe for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str, int], pa.ChunkedArray] = OrderedDict()

    def get(self, *place: Any) -> pa.ChunkedArray:
        if place not in self._kept:
            self._kept[place] = _row_group(*place)
        self._kept.move_to_end(place)
        while len(self._kept) > 1 and (
            len(self._kept) > CACHED_ROW_GROUPS
            or sum(group.nbytes for group in self._kept.values()) > ROW_GROUP_BYTES
        ):
            self._kept.popitem(last=False)
        return self._kept[place]


_row_groups = _RowGroups()


def _row_group(root: str, file: str, column: str, group: int) -> pa.ChunkedArray:
    """A column of it, row by row: how much comes of a compressed page is known only then, and of a
    value that is named again and again much more than the file says."""
    opened, size, cells = _parquet_file(root, file)[0], 0, []
    for batch in opened.iter_batches(1, [group], [column]):
        cells.append(batch.column(column))
        size += batch.nbytes
        if size > ROW_GROUP_BYTES:
            raise OSError(
                f"row group {group} of {file} holds more than {ROW_GROUP_BYTES:,} bytes of "
                "images: write the file anew with smaller row groups"
            )
    return pa.chunked_array([pa.concat_arrays(some) for some in chunks(cells, 100)])
