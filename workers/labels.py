"""Find out which output of the model each image's label means.

Labels come as class names (of folders, or in a column) or as numbers.  Names are looked up among
the model's classes; where they are not there but as many as the model has outputs, they count in
sorted order; numbers are output indices.  What fits nothing is no label, and says so.
"""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deconvoy.errors import RequestError
from deconvoy.files import split

logger = logging.getLogger(__name__)

Raw = str | int | None
"""A label as the data has it."""


FOLDER_NAMES = "folder names"


@dataclass(frozen=True)
class Labels:
    """Output index of each image, or None where unknown."""

    indices: Sequence[int | None]
    told: str
    """How they were found, for people."""
    names: tuple[str, ...] = ()
    """Names of the outputs, where the data has them."""


def whole(label: Raw) -> Raw:
    """``3.0`` is 3: pandas writes a column of whole numbers so where one is missing."""
    number = re.fullmatch(r"([+-]?[0-9]+)\.0*", label) if isinstance(label, str) else None
    return number[1] if number else label


def resolve(
    raw: Sequence[Raw],
    classes: Sequence[str],
    outputs: int,
    names_are: str,
    uris: Sequence[str] | None = None,
) -> Labels:
    """Labels of a whole data set.

    Args:
        raw: of every image that was found, so that a limit changes nothing.
        names_are: what names are, for people: ``folder names``, say.
        uris: of the images, where the user himself says what is a label; then numbers that are no
            output indices are refused.

    Raises:
        RequestError: names the first such number and its image.
    """
    if names_are != FOLDER_NAMES and not all(str(label) in classes for label in {*raw} - {None}):
        raw = [whole(label) for label in raw]
    if uris is not None:
        _refuse_numbers(raw, uris, classes, outputs, names_are)
    there = {label for label in raw if label is not None}
    numbers = {label for label in there if isinstance(label, int) or label.isdecimal()}
    names = sorted(map(str, there))
    output_of = {name: index for index, name in enumerate(classes)}
    if not there:
        told = "none: a flat folder" if names_are == FOLDER_NAMES else f"none: no {names_are}"
        return Labels([None] * len(raw), told)
    if all(name in output_of for name in names):
        return _looked_up(raw, output_of, f"{names_are} among the classes")
    if len(numbers) == len(there):
        lowest, highest = min(map(int, there)), max(map(int, there))
        if 0 <= lowest and highest < outputs:
            indices = [None if label is None else int(label) for label in raw]
            return Labels(indices, f"{names_are}, which are output indices")
        worst = lowest if lowest < 0 else highest
        told = f"none: {names_are} reach {worst}, but the model has {outputs} outputs"
        return Labels([None] * len(raw), told)
    if len(names) == outputs:
        in_order = {name: index for index, name in enumerate(names)}
        found = _looked_up(raw, in_order, f"sorted {names_are}")
        return Labels(found.indices, found.told, tuple(names))
    told = f"none: {len(names)} {names_are} do not fit {outputs} outputs"
    return Labels([None] * len(raw), told)


def _refuse_numbers(
    raw: Sequence[Raw], uris: Sequence[str], classes: Sequence[str], outputs: int, names_are: str
) -> None:
    """Among names a number may be a name, too, so they are refused only where all are numbers."""
    there = {str(label) for label in raw if label is not None}
    if all(name in classes for name in there) or not all(map(_is_number, there)):
        return
    for uri, label in zip(uris, raw, strict=True):
        index = str(label)
        if label is not None and not (index.isdecimal() and int(index) < outputs):
            raise RequestError(
                f"The label {index!r} of {uri!r} ({names_are}) is no output index: the model has "
                f"{outputs} outputs, counted from 0. Mend the labels, leave their column out, or "
                "set model.arguments (num_classes, say)."
            )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", text) is not None


def _looked_up(raw: Sequence[Raw], output_of: Mapping[str, int], told: str) -> Labels:
    return Labels([None if label is None else output_of[str(label)] for label in raw], told)


def of_file(place: str, uris: Sequence[str], classes: Sequence[str], outputs: int) -> Labels:
    """Labels from a CSV or Parquet file with the columns path and label.

    Raises:
        RequestError: no such file, a label that fits nothing, or paths that name no image.
    """
    rows = _read(place)
    output_of = {name: index for index, name in enumerate(classes)}
    labels: dict[str, int] = {}
    names: dict[int, str] = {}
    for row in rows:
        if row.label is None:
            continue
        text = str(whole(row.label))
        number = int(text) if text.isdecimal() else None
        index = output_of.get(row.label, number)
        if index is None or not 0 <= index < outputs:
            raise RequestError(
                f"data.labels {place!r}: the label {row.label!r} of {row.path!r} is neither an "
                f"output index below {outputs} nor one of the model's class names."
            )
        labels[row.path] = index
        if row.name:
            names[index] = row.name
    if not set(uris) & {row.path for row in rows}:
        first = rows[0].path if rows else "none"
        raise RequestError(
            f"data.labels {place!r} names none of the images below the data folder; its paths are "
            f"relative to that folder, as in {uris[0]!r} (it has {first!r})."
        )
    _warn_of_missing(place, [row.path for row in rows], set(uris))
    named = tuple(names.get(i, f"class {i}") for i in range(outputs)) if names else ()
    return Labels([labels.get(uri) for uri in uris], f"the file {place}", named)


def of_own_file(place: str) -> list[Raw]:
    """Labels of such a file as they stand there, whatever a model makes of them.

    Raises:
        RequestError: there is no such file.
    """
    return [row.label for row in _read(place)]


def _warn_of_missing(place: str, paths: Sequence[str], there: AbstractSet[str]) -> None:
    named = dict.fromkeys(paths)
    missing = [path for path in named if path not in there]
    if missing:
        logger.warning(
            "data.labels %r: %d of the %d images it names are not below the data folder (%s%s): "
            "their labels go unused; mend the paths, which are relative to that folder, unless the "
            "file is of a larger data set.",
            place, len(missing), len(named),
            ", ".join(map(repr, missing[:3])), ", …" if len(missing) > 3 else "",
        )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    path: str
    label: str | None
    """As text; None where the table has null, which a CSV cannot say."""
    name: str | None


def _read(place: str) -> list[_Row]:
    files, file = split(place)
    try:
        content = files.read(file)
        if file.endswith(".parquet"):
            return [_row(fields) for fields in pq.read_table(io.BytesIO(content)).to_pylist()]
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = csv.DictReader(text)
        return [_row({**fields, "label": fields["label"] or ""}) for fields in rows]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise RequestError(
            f"data.labels {place!r} cannot be read ({error}): it is a CSV or Parquet file with the "
            "columns path and label."
        ) from error


def _row(fields: Mapping[str, Any]) -> _Row:
    label, name = fields["label"], fields.get("name")
    text = None if label is None else str(label).strip()
    return _Row(fields["path"], text, None if name is None else str(name).strip())
