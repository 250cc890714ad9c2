"""Find every image at a place, with the label it carries: folders, lists, tar shards, Parquet.

Reads names, footers and labels, but no pixels.  What images are then taken, and what their labels
mean to the model, is decided in ``workers.datasets``.
"""

import csv
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

from deconvoy.errors import RequestError
from deconvoy.files import FileEntry, Files, is_remote, split
from deconvoy.spec import Place
from workers.labels import FOLDER_NAMES, Raw
from workers.shapes import CLASSES
from workers.sources import (
    FileSource,
    ParquetSource,
    ShapesSource,
    Source,
    TarSource,
    tar_members,
)

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))

IMAGE_COLUMNS = ("image", "img", "image_bytes", "jpg", "jpeg", "png", "webp", "bytes", "content")
"""Names an image column of a Parquet file usually has, likeliest first."""

LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")

DIGITS = 18
"""Of a number in ``data.uri``, at most."""

_NUMBER = re.compile(rf"[0-9]{{1,{DIGITS}}}")

MOST_SHAPES = 10_000_000
"""Drawn images of a data set: their names take a gigabyte."""

MOST_SHARDS = 100_000
"""That braces may stand for; a hundred million images are in fewer."""

LABEL_BYTES = 4096
"""Of a label in a table, on average: names are shorter, and pictures are longer."""


@dataclass(frozen=True)
class Found:
    """What lies at a place: every image with the label it carries."""

    source: Source
    uris: list[str]
    raw: list[Raw]
    tags: list[str]
    """Change when the file of the image does."""
    names_are: str = FOLDER_NAMES
    """What the raw labels are, for people."""
    named: bool = False
    """Whether the user himself says which column the labels are: one that does not fit is a slip,
    while those that just lie there may be of another model."""


def find(place: Place) -> Found:
    """Everything a place's ``uri`` leads to.

    Raises:
        RequestError: nothing there, or no image in it.
    """
    uri = place.uri
    if uri == "shapes" or uri.startswith("shapes?"):
        return _find_shapes(place)
    try:
        if is_remote(uri) or Path(uri).exists() or "{" in uri:
            return _find_files(place)
    except RequestError:
        raise
    # ValueError: text that is no UTF-8, a name with a NUL in it.
    except (OSError, ValueError, tarfile.TarError, pa.ArrowException) as error:
        raise RequestError(f"data.uri {uri!r} cannot be read: {error}.") from error
    raise RequestError(
        f"data.uri {uri!r} does not exist: give a folder of images, a .parquet, .tar or .csv file, "
        "or a URL."
    )


def _find_files(place: Place) -> Found:
    suffix = PurePosixPath(place.uri.rstrip("/")).suffix.lower()
    root, name = split(place.uri.rstrip("/"))
    match suffix:
        case ".tar":
            shards = [root.entry(shard) for shard in _expanded(name)]
            return _find_in_tars(root, shards)
        case ".parquet":
            if is_remote(place.uri) or Path(place.uri).is_file():
                return _find_in_parquet(root, [root.entry(name)], place)
        case ".csv":
            return _find_in_csv(root, name)
        case _:
            pass
    if not is_remote(place.uri) and not Path(place.uri).is_dir():
        raise RequestError(
            f"data.uri {place.uri!r} is a file of a kind that holds no images: give a folder of "
            "images, or a .parquet, .tar or .csv file."
        )
    folder = Files(place.uri if is_remote(place.uri) else str(Path(place.uri).absolute()))
    return _find_in_folder(folder, sorted(folder.entries(), key=lambda entry: entry.path), place)


def _find_in_folder(folder: Files, entries: Sequence[FileEntry], place: Place) -> Found:
    """Images in it; where there are none, tar shards or Parquet files."""
    of_kind: dict[str, list[FileEntry]] = {}
    for entry in entries:
        suffix = PurePosixPath(entry.path).suffix.lower()
        of_kind.setdefault("image" if suffix in SUFFIXES else suffix, []).append(entry)
    images = of_kind.get("image", [])
    if images:
        for entry in images:
            _require_text(entry.path)
        raw: list[Raw] = [_folder_of(entry.path) for entry in images]
        uris, tags = [entry.path for entry in images], [entry.digest() for entry in images]
        return Found(FileSource(folder.root), uris, raw, tags)
    if ".tar" in of_kind:
        return _find_in_tars(folder, of_kind[".tar"])
    if ".parquet" in of_kind:
        return _find_in_parquet(folder, of_kind[".parquet"], place)
    raise RequestError(
        f"data.uri {place.uri!r} holds no images: expected files ending in "
        f"{', '.join(sorted(SUFFIXES))}, in class sub-folders or flat; or .tar or .parquet files."
    )


def _require_text(path: str) -> None:
    """Paths are kept as UTF-8, in the run and in JSON."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"The name of the file {os.fsencode(path)!r} is not UTF-8: rename it, or leave it out."
        ) from None


def _folder_of(path: str) -> str | None:
    return path.partition("/")[0] if "/" in path else None


def _find_shapes(place: Place) -> Found:
    wanted = dict(parse_qsl(place.uri.partition("?")[2], keep_blank_values=True))
    unknown = set(wanted) - {"size", "seed"}
    if unknown or not all(_NUMBER.fullmatch(value) for value in wanted.values()):
        raise RequestError(
            f"data.uri {place.uri[:100]!r}: shapes takes whole numbers for size and seed, as in "
            f"shapes?size=1000&seed=1, of at most {DIGITS} digits."
        )
    size, seed = int(wanted.get("size", "1000")), int(wanted.get("seed", "0"))
    if not 1 <= size <= MOST_SHAPES:
        raise RequestError(
            f"data.uri {place.uri!r}: size must be at least 1, and at most {MOST_SHAPES:,}."
        )
    if place.labels is not None:
        raise RequestError("data.labels is for files: shapes knows its own labels; leave it out.")
    raw: list[Raw] = [CLASSES[index % len(CLASSES)] for index in range(size)]
    uris = [str(index) for index in range(size)]
    return Found(ShapesSource(seed), uris, raw, [f"seed {seed}"] * size, "classes of shapes")


def _find_in_csv(root: Files, name: str) -> Found:
    try:
        text = root.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"data.uri {root.url(name)!r} is no UTF-8 text: {error}.") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "path" not in (rows.fieldnames or ()):
        raise RequestError(
            f"data.uri {root.url(name)!r} has no column path (it has "
            f"{', '.join(rows.fieldnames or ()) or 'nothing'}): the first line names the columns "
            "path and, if you like, label."
        )
    try:
        pairs = [(row["path"], row.get("label") or None) for row in rows]
    except csv.Error as error:
        raise RequestError(f"data.uri {root.url(name)!r} is no CSV: {error}.") from error
    for number, (path, _) in enumerate(pairs, start=1):
        if not path:
            raise RequestError(
                f"data.uri {root.url(name)!r}: row {number} of its list has no path: fill it in or "
                "take the row out."
            )
    listed = sorted(pairs, key=lambda pair: pair[0])
    if not listed:
        raise RequestError(f"data.uri {root.url(name)!r} lists no images.")
    tags = ["" if is_remote(path) else _tag(root, path) for path, _ in listed]
    uris, raw = [path for path, _ in listed], [label for _, label in listed]
    source = FileSource(root.root if root.remote else str(Path(root.root).absolute()))
    return Found(source, uris, list(raw), tags, "labels of the list", named=True)


def _tag(root: Files, path: str) -> str:
    # Asking a server for each of a million files would take longer than scanning them.
    return "" if root.remote else root.entry(path).digest()


def _expanded(name: str) -> list[str]:
    """``shard-{000..012}.tar`` → thirteen names."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if braces is None:
        return [name]
    first, last = braces.groups()
    count = int(last) - int(first) + 1 if len(first + last) <= 2 * DIGITS else math.inf
    if not 1 <= count <= MOST_SHARDS:
        raise RequestError(
            f"data.uri ends in {name[-100:]!r}, which stands for "
            f"{'too many' if count > 1 else 'no'} files: braces are for 1 to {MOST_SHARDS:,}, as "
            "in shard-{000..012}.tar."
        )
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [name[: braces.start()] + number + name[braces.end() :] for number in numbers]


def _find_in_tars(root: Files, shards: Sequence[FileEntry]) -> Found:
    """Samples of WebDataset shards: members that share a name up to its first dot."""
    root = root if root.remote else Files(str(Path(root.root).absolute()))
    uris: list[str] = []
    raw: list[Raw] = []
    tags: list[str] = []
    for shard in sorted(shards, key=lambda entry: entry.path):
        labels: dict[str, Raw] = {}
        members = tar_members(root.root, shard.path)
        images = [name for name in members if PurePosixPath(name).suffix.lower() in SUFFIXES]
        for name, place in members.items():
            if name.endswith((".cls", ".json")):
                label = _label_in(root.read_range(shard.path, *place), name)
                labels.setdefault(_sample(name), label)
        for name in sorted(images):
            _require_text(name)
            uris.append(f"{shard.path}/{name}")
            raw.append(labels.get(_sample(name)))
            tags.append(shard.digest())
    if not uris:
        names = sorted(root.url(shard.path) for shard in shards)
        more = f" and {len(names) - 1:,} more tar files hold" if names[1:] else " holds"
        raise RequestError(
            f"{names[0]!r}{more} no images: expected members ending in "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    return Found(TarSource(root.root), uris, raw, tags, "labels of the shards")


def _sample(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label_in(content: bytes, name: str) -> Raw:
    text = content.decode("utf-8", errors="replace").strip()
    if name.endswith(".cls"):
        return int(text) if text.isdecimal() else text or None
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    label = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
    return label if isinstance(label, str | int) and not isinstance(label, bool) else None


def _find_in_parquet(root: Files, entries: Sequence[FileEntry], place: Place) -> Found:
    root = root if root.remote else Files(str(Path(root.root).absolute()))
    uris: list[str] = []
    raw: list[Raw] = []
    tags: list[str] = []
    image: str | None = None
    for entry in sorted(entries, key=lambda entry: entry.path):
        with root.open(entry.path) as opened:
            file = pq.ParquetFile(opened)
            image = image or _image_column(file.schema_arrow, place.image_column, entry.path)
            label = _label_column(file.schema_arrow, place.label_column, entry.path)
            rows = _rows_of(file, entry)
            raw += _parquet_labels(file, label)
        uris += [f"{entry.path}#{row}" for row in range(rows)]
        tags += [entry.digest()] * rows
    if not uris or image is None:
        raise RequestError(f"data.uri {place.uri!r} has no rows.")
    named = place.label_column != "auto"
    return Found(ParquetSource(root.root, image), uris, raw, tags, "labels of the table", named)


def _rows_of(file: pq.ParquetFile, entry: FileEntry) -> int:
    """Names and labels of all rows are held in memory, and any number of them can be declared."""
    counted = file.metadata
    rows: int = sum(counted.row_group(group).num_rows for group in range(counted.num_row_groups))
    if rows != counted.num_rows or not 0 <= rows <= entry.size:
        raise RequestError(
            f"{entry.path} declares {counted.num_rows:,} rows in {entry.size:,} bytes, which do "
            "not hold as many images: it is damaged; copy it again."
        )
    return rows


def _image_column(schema: pa.Schema, asked: str, path: str) -> str:
    if asked != "auto":
        if asked not in schema.names:
            raise RequestError(
                f"data.image_column {asked!r} is not in {path}: it has {', '.join(schema.names)}."
            )
        return asked
    able = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in able]
    if named or len(able) == 1:
        return (named or able)[0]
    raise RequestError(
        f"{path} has {'several columns' if able else 'no column'} of image bytes (its columns: "
        f"{', '.join(schema.names)}): set data.image_column to one of type binary, or a struct "
        "with the field bytes."
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(schema: pa.Schema, asked: str, path: str) -> str | None:
    if asked != "auto":
        if asked not in schema.names:
            raise RequestError(
                f"data.label_column {asked!r} is not in {path}: it has {', '.join(schema.names)}."
            )
        return asked
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)


def _parquet_labels(file: pq.ParquetFile, column: str | None) -> list[Raw]:
    """The label column; numbers become names where the file's metadata has them."""
    if column is None:
        return [None] * file.metadata.num_rows
    values: list[Any] = []
    for batch in file.iter_batches(1024, columns=[column]):
        if batch.nbytes > 1024 * LABEL_BYTES:
            raise RequestError(
                f"The label column {column!r} holds more than {LABEL_BYTES:,} bytes a label: set "
                "data.label_column."
            )
        values += batch.column(column).to_pylist()
    if all(v is None or isinstance(v, float) and (v.is_integer() or v != v) for v in values):
        # pandas writes whole numbers so where one is missing
        values = [None if v is None or v != v else int(v) for v in values]
    if not all(value is None or isinstance(value, str | int) for value in values):
        raise RequestError(
            f"The label column {column!r} holds {type(values[0]).__name__}, but labels are whole "
            "numbers or names: set data.label_column."
        )
    names = _class_label_names(file.schema_arrow, column)
    return [
        names[value] if isinstance(value, int) and 0 <= value < len(names) else value
        for value in values
    ]


def _class_label_names(schema: pa.Schema, column: str) -> Sequence[str]:
    """Class names as Hugging Face's datasets library writes them; empty where there are none."""
    try:
        told: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return [str(name) for name in told["info"]["features"][column]["names"]]
    except (ValueError, KeyError, TypeError):
        return ()
