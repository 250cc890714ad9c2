"""List the images of a data set, with their labels, and read one of them.

An image is known by its place in the listing, which is sorted by path: ids increase in reading
order.  Listing reads no pixels.  A source is small and pickles; every actor has its own.
"""

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import parse_qsl

import pyarrow.parquet

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.spec import DataSpec, Transform
from workers.images import Picture, decode, from_pixels
from workers.shapes import CLASSES, render

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))

SORTED_FOLDERS = "sorted folder names"


@dataclass(frozen=True)
class ImageRef:
    """One image of a listing."""

    id: int
    uri: str
    label: int | None


@runtime_checkable
class Source(Protocol):
    """Where images come from."""

    def read(self, uri: str, transform: Transform) -> Picture:
        """Raises ImageUnreadable."""
        ...


@dataclass(frozen=True)
class FolderSource:
    root: str

    def read(self, uri: str, transform: Transform) -> Picture:
        try:
            content = Path(self.root, uri).read_bytes()
        except OSError as error:
            raise ImageUnreadable(f"cannot be read: {error.strerror}") from error
        return decode(content, transform)


@dataclass(frozen=True)
class ShapesSource:
    seed: int

    def read(self, uri: str, transform: Transform) -> Picture:
        return from_pixels(render(self.seed, int(uri)).image, transform)


@dataclass(frozen=True)
class Listing:
    """All images of a job."""

    source: Source
    uris: Sequence[str]
    labels: Sequence[int | None]
    fingerprint: str
    """sha256 over name, size, time of change and label of every file."""
    labels_from: str
    """How labels were found, for people."""
    folders: tuple[str, ...] = ()
    """Class folders, sorted, where labels are their places in that order."""

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def labelled(self) -> bool:
        """Whether the true class of any image is known."""
        return any(label is not None for label in self.labels)

    def refs(self, start: int, stop: int) -> list[ImageRef]:
        return [ImageRef(i, self.uris[i], self.labels[i]) for i in range(start, stop)]


def list_images(data: DataSpec, classes: Sequence[str], outputs: int) -> Listing:
    """The images a data spec names.

    Args:
        classes: names of the model's outputs; may be empty.
        outputs: how many the model has.

    Raises:
        RequestError: nothing there, no image in it, or labels that fit nothing.
    """
    if data.uri == "shapes" or data.uri.startswith("shapes?"):
        return _list_shapes(data, classes, outputs)
    if "://" in data.uri:
        raise RequestError(
            f"data.uri {data.uri!r}: images are read from a local folder or from `shapes?…`; "
            "copy or mount the data set and give its path."
        )
    return _list_folder(data, classes, outputs)


def _list_shapes(data: DataSpec, classes: Sequence[str], outputs: int) -> Listing:
    wanted = dict(parse_qsl(data.uri.partition("?")[2], keep_blank_values=True))
    unknown = set(wanted) - {"size", "seed"}
    if unknown or not all(value.isdecimal() for value in wanted.values()):
        raise RequestError(
            f"data.uri {data.uri!r}: shapes takes whole numbers for size and seed, as in "
            "shapes?size=1000&seed=1."
        )
    size, seed = int(wanted.get("size", "1000")), int(wanted.get("seed", "0"))
    if size < 1:
        raise RequestError(f"data.uri {data.uri!r}: size must be at least 1.")
    chosen = _spaced(size, data.limit)
    labels = [index % len(CLASSES) for index in chosen]
    if data.labels is not None:
        raise RequestError("data.labels is for folders: shapes knows its own labels; leave it out.")
    fits = list(classes) == list(CLASSES) or outputs == len(CLASSES)
    return Listing(
        ShapesSource(seed),
        [str(index) for index in chosen],
        labels if fits else [None] * len(labels),
        hashlib.sha256(f"shapes {seed} {size}".encode()).hexdigest(),
        "the generator" if fits else "none: the model's outputs are not the classes of shapes",
    )


def _list_folder(data: DataSpec, classes: Sequence[str], outputs: int) -> Listing:
    root = Path(data.uri)
    if not root.is_dir():
        there = "is a file" if root.exists() else "does not exist"
        raise RequestError(f"data.uri {data.uri!r} {there}: give a folder of images.")
    found = sorted(_walk(root))
    if not found:
        raise RequestError(
            f"data.uri {data.uri!r} holds no images: expected files ending in "
            f"{', '.join(sorted(SUFFIXES))}, in class sub-folders or flat."
        )
    uris = [found[i] for i in _spaced(len(found), data.limit)]
    if data.labels is not None:
        labels, labels_from = _labels_of_file(data.labels, uris, classes, outputs)
    else:
        labels, labels_from = _labels_of_folders(found, uris, classes, outputs)
    folders = _class_folders(found) if labels_from == SORTED_FOLDERS else ()
    source = FolderSource(str(root.absolute()))
    fingerprint = _fingerprint(root, uris, labels)
    return Listing(source, uris, labels, fingerprint, labels_from, folders)


def _walk(root: Path) -> Iterator[str]:
    seen: set[str] = set()  # links may lead back up
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(folder, name).relative_to(root).as_posix()


def _spaced(count: int, limit: int | None) -> list[int]:
    """``limit`` indices evenly spaced over ``count``."""
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _fingerprint(root: Path, uris: Sequence[str], labels: Sequence[int | None]) -> str:
    digest = hashlib.sha256()
    for uri, label in zip(uris, labels, strict=True):
        try:
            status = os.stat(root / uri)
        except OSError:  # a dangling link; reading it will say so
            digest.update(f"{uri}\0unreadable\n".encode())
        else:
            digest.update(f"{uri}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\n".encode())
    return digest.hexdigest()


def _class_folders(found: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({uri.partition("/")[0] for uri in found if "/" in uri}))


def _labels_of_folders(
    found: Sequence[str], uris: Sequence[str], classes: Sequence[str], outputs: int
) -> tuple[list[int | None], str]:
    folders = [uri.partition("/")[0] if "/" in uri else None for uri in uris]
    names = _class_folders(found)
    output_of = {name: index for index, name in enumerate(classes)}
    if names and all(name in output_of for name in names):
        return [output_of[f] if f else None for f in folders], "folder names among the classes"
    if len(names) == outputs:
        sorted_names = {name: index for index, name in enumerate(names)}
        return [sorted_names[f] if f else None for f in folders], SORTED_FOLDERS
    return [None] * len(uris), (
        f"none: {len(names)} class folders do not fit {outputs} outputs"
        if names
        else "none: a flat folder"
    )


def _labels_of_file(
    path: str, uris: Sequence[str], classes: Sequence[str], outputs: int
) -> tuple[list[int | None], str]:
    rows = _read_labels(path)
    output_of = {name: index for index, name in enumerate(classes)}
    known = set(uris)
    labels: dict[str, int] = {}
    for uri, label in rows.items():
        index = int(label) if label.isdecimal() else output_of.get(label)
        if index is None or not 0 <= index < outputs:
            raise RequestError(
                f"data.labels {path!r}: the label {label!r} of {uri!r} is neither an output index "
                f"below {outputs} nor one of the model's class names."
            )
        labels[uri] = index
    if not known & set(rows):
        raise RequestError(
            f"data.labels {path!r} names none of the images below the data folder; its paths are "
            f"relative to that folder, as in {uris[0]!r} (it has {next(iter(rows), 'none')!r})."
        )
    return [labels.get(uri) for uri in uris], f"the file {path}"


def _read_labels(path: str) -> Mapping[str, str]:
    try:
        if path.endswith(".parquet"):
            table = pyarrow.parquet.read_table(path, columns=["path", "label"])
            columns = table.to_pydict()
            rows = zip(columns["path"], columns["label"], strict=True)
            return {uri: str(label) for uri, label in rows}
        with open(path, newline="", encoding="utf-8-sig") as file:
            return {row["path"]: row["label"] or "" for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise RequestError(
            f"data.labels {path!r} cannot be read ({error}): it is a CSV or Parquet file with the "
            "columns path and label."
        ) from error
