"""Say in sentences what is wrong with a spec: the field, its value, the form it takes."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from deconvoy.errors import FieldInvalid, RequestError

S = TypeVar("S", bound=BaseModel)

SHOWN = 500
"""Characters of a value that are told."""

FORMS: tuple[tuple[str, str], ...] = (
    (r"model", "a section, as in `model: {name: torchvision/alexnet}`"),
    (r"model\.name", "a name, as in `torchvision/alexnet` or `path/to/file.py:factory`"),
    (r"model\.classes", "a file with one name a line, or a list of names"),
    (r"data", "a section, as in `data: {uri: path/to/images}`"),
    (r"data\.uri", "a place, as in path/to/images, or a list of places"),
    (r"data\.labels", "a CSV or Parquet file; for a list of places, a list of files or null"),
    (r"data\.where", "a section, as in `where: {classes: [3], wrong: true, ids: [0, 1]}`"),
    (r"data\.where\.(ids|without)", "a list of paths or of numbers of 0 or more"),
    (r"data\.transform", "`auto` or {resize: 256, crop: 224, mean: [r, g, b], std: [r, g, b]}"),
    (r"layers", "`all`, or a list with at least 1 name or glob, as in [features.12.*, logits]"),
    (r"analyses", "a list, as in [{kind: top, k: 9}, {kind: projection, layers: maps}]"),
    (r"analyses\.\d+\.projection\.layers", "`maps`, or a list with at least 1 name or glob"),
    (r"analyses\.\d+\.projection\.units", "`all`, {sample: 0.1} or {ids: [0, 1, 2]}"),
    (
        r"analyses\.\d+\.occlusion\.images",
        "{sample: 32}, {ids: [0, a/cat.png]} or {top_of: [{layer: relu5, unit: 3}]}",
    ),
    (r"analyses\.\d+\.occlusion\.(patch|stride)", "`auto` or a whole number of 1 or more"),
    (r"analyses\.\d+\.occlusion\.units", "null, `maps`, or a list with at least 1 name or glob"),
    (r"analyses\.\d+\.invariance\.images", "{sample: 5} or {ids: [0, a/cat.png]}"),
    (
        r"analyses\.\d+\.invariance\.translation",
        "`auto`, null, {first: -60, last: 60, count: 13}, or a list of 1 to 1000 numbers",
    ),
    (
        r"analyses\.\d+\.invariance\.(scale|rotation)",
        "null, {first: 1, last: 1.8, count: 9}, or a list of 1 to 1000 numbers",
    ),
    (r"model\.checkpoints", "a list of weights files in training order"),
    (r"analyses\.\d+\.evolution\.layers", "`maps`, or a list with at least 1 name or glob"),
    (r"analyses\.\d+\.evolution\.units", "`all`, {sample: 0.1} or {ids: [0, 1, 2]}"),
    (r"analyses\.\d+\.correspondence\.images", "{sample: 20} or {ids: [0, a/cat.png]}"),
    (
        r"analyses\.\d+\.correspondence\.parts",
        "`all`, or a list with at least 1 name, as in [nose]",
    ),
    (
        r"analyses\.\d+\.(occlusion|correspondence)\.fill",
        "`mean`, a number from 0 to 255, or a list of three",
    ),
    (r"compute\.workers", "`auto` or a whole number of 1 or more"),
    (r"compute\.gpus_per_worker", "`auto` or a number of 0 or more; above 1, a whole one"),
    (r"compute\.threads", "`auto` or a whole number of 1 or more"),
    (r"base", "`deconvoy/zfnet` or `deconvoy/zfnet_small`"),
    (r"validation", "a share between 0 and 1, or a section, as in {uri: path/to/images}"),
    (r"edits", "a list, as in [{remove: [3, 4]}, {widths: {6: 128, 7: 128}}]"),
    (r"edits\.\d+\.remove(\.\d+)?", "a list of layers of 3 to 7"),
    (r"edits\.\d+\.widths(\..+)?", "whole numbers of 1 or more by layer, 1 to 7: {6: 2048}"),
    (r"training\.checkpoints", "`all`, `last`, or a list of epochs of 1 or more"),
    (r"training\.max_filter_rms", "a number above 0, or null"),
    (r"compute\.batch_size", "`auto` or a whole number of 1 or more"),
)
"""Fields that take several forms, of which pydantic would tell each failure on its own."""


def validated(root: type[S], fields: Any, least: str) -> S:
    """The section these plain fields describe.

    Args:
        least: what it needs at least, for people.

    Raises:
        RequestError: naming every wrong field, its value and the rule; a ``FieldInvalid``, of the
            first.
    """
    if not isinstance(fields, dict):
        raise RequestError(
            f"A spec is a mapping of fields, not {type(fields).__name__}: it needs at least "
            f"{least}."
        )
    try:
        return root.model_validate(fields)
    except ValidationError as error:
        found = sentences(error, root)
        shown = list(islice(found, TOLD))
        told = " ".join(sentence for _, sentence in shown)
        left = sum(1 for _ in found) + max(0, error.error_count() - JUDGED)
        more = f" {left:,} more are wrong." if left else ""
        raise FieldInvalid(told + more, shown[0][0]) from None


JUDGED, TOLD = 200, 40
"""Of the failures of one spec so many are looked at, and so many sentences told: each is compared
with each, and who sends ten thousand wrong fields must not keep a service busy for it."""


def sentences(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each wrong field, and what to say of it; unknown ones first, since a slip there also leaves
    one missing.

    Args:
        root: the spec's class, whose known fields are named where one is unknown.
    """
    problems: list[Any] = error.errors(include_url=False)[:JUDGED]
    problems = [problem for problem in problems if not _told_within(problem, problems)]
    told: set[str] = set()
    for problem in sorted(problems, key=_order):
        place = tuple(str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "extra_forbidden":
            field, sentence = _unknown(place, root)
        else:
            field, sentence = _wrong(place, problem, root)
        # Of a union each branch that was tried fails; what is told of a field covers all below it.
        union = ".".join(takewhile(lambda part: not _is_type(part), place))
        related = any(f"{field}.".startswith(f"{t}.") for t in told)
        if sentence and not related:
            told.add(union if len(union) < len(field) else field)
            yield field, sentence


def _order(problem: dict[str, Any]) -> tuple[int, int]:
    """Of a union that takes several sections, what lacks a field is likely not the one meant; less
    so the deeper the field."""
    in_branch = any(_is_type(str(part)) for part in problem["loc"])
    if problem["type"] == "missing" and in_branch:
        return 3, -len(problem["loc"])
    return {"extra_forbidden": 0, "value_error": 1}.get(problem["type"], 2), 0


def _told_within(problem: dict[str, Any], problems: Sequence[dict[str, Any]]) -> bool:
    """Whether a section is given and one of its own fields is what is wrong with it, or a list
    whose entries are."""
    if problem["type"] == "too_short":
        place = problem["loc"]
        return any(other["loc"][: len(place)] == place != other["loc"] for other in problems)
    if not isinstance(problem["input"], dict) or problem["type"] in ("missing", "extra_forbidden"):
        return False
    union = problem["loc"][:-1]
    return any(
        other["loc"][: len(union)] == union
        and len(other["loc"]) > len(union) + 1
        and other["type"] not in ("missing", "extra_forbidden")
        for other in problems
    )


def _unknown(place: tuple[str, ...], root: type[BaseModel]) -> tuple[str, str]:
    """The field, and what to say of it; nothing where another branch of a union knows it."""
    field = ".".join(part for part in place if not _is_type(part))
    sections: list[type[BaseModel]] = [root]
    for part in place[:-1]:
        if not _is_type(part):
            sections = _inside(sections, part)
    known = [name for section in sections for name in section.model_fields]
    if place[-1] in known:
        return field, ""
    near = difflib.get_close_matches(place[-1], known, n=3)
    if near:
        return (
            field,
            f"The field {field!r} is unknown; did you mean {' or '.join(map(repr, near))}?",
        )
    return field, f"The field {field!r} is unknown; known here: {', '.join(known)}."


def _form_of(place: tuple[str, ...]) -> tuple[str, str]:
    """The field an error is about, without the branches pydantic tried, and its forms."""
    end = len(place)
    while end:
        field = ".".join(place[:end])
        form = next((form for pattern, form in FORMS if re.fullmatch(pattern, field)), "")
        if form:
            return field, form
        if not _is_branch(place[end - 1]):
            break
        end -= 1
    return ".".join(part for part in place if part.isdigit() or not _is_branch(part)), ""


def _is_branch(part: str) -> bool:
    """Whether it names a type that was tried, or an entry of a list, and no field."""
    named = part.partition("[")[0].partition("-")[0]
    return part.isdigit() or _is_type(part) or named in _BRANCHES


def _is_type(part: str) -> bool:
    return part[:1].isupper() or "[" in part


_BRANCHES = frozenset(("tuple", "literal", "constrained", "str", "int", "float", "nullable"))


def _wrong(
    place: tuple[str, ...], problem: dict[str, Any], root: type[BaseModel]
) -> tuple[str, str]:
    """The field, and what to say of its value."""
    field, form = _form_of(place)
    value, kind = problem["input"], problem["type"]
    if kind.startswith("union_tag"):
        kinds = problem["ctx"].get("expected_tags", "'top', 'projection', 'occlusion'")
        shown = value.get("kind") if isinstance(value, dict) else value
        field = f"{'.'.join(place)}.kind"
        return field, f"The field {field!r} is {shown!r}, but kinds are {kinds}."
    if kind == "missing":
        return (
            field,
            f"The field {field!r} is missing: {f'it takes {form}' if form else 'give it a value'}.",
        )
    shown = "" if isinstance(value, dict) else f" is {_in_short(value)}, but that"
    if form and kind != "value_error":
        return field, f"The field {field!r}{shown} does not fit: it takes {form}."
    # What several sections are about together.
    field = field or ("analyses" if "analyses" in root.model_fields else "edits")
    return field, f"The field {field!r}{shown} does not fit: {rule(problem)}."


def _in_short(value: Any) -> str:
    try:
        told = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"
    return told if len(told) <= SHOWN else f"{told[:SHOWN]} …"


def rule(problem: Mapping[str, Any]) -> str:
    """What a value of that kind must be, in our words rather than pydantic's."""
    limits: dict[str, Any] = problem.get("ctx", {})
    match problem["type"]:
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return "it takes a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "it takes a number"
        case "string_type":
            return "it takes a text"
        case "bool_type" | "bool_parsing":
            return "it takes true or false"
        case "tuple_type" | "list_type":
            return "it takes a list"
        case "too_short":
            return f"it takes a list of {limits['min_length']} or more"
        case "too_long":
            return f"it takes a list of {limits['max_length']} at most"
        case "string_too_short":
            return f"it takes {limits['min_length']} characters or more"
        case "string_too_long":
            return f"it takes {limits['max_length']} characters at most"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "it takes a section, as in {field: value}"
        case "literal_error":
            return f"it takes {limits['expected']}"
        case "greater_than_equal":
            return f"it takes {_shown(limits['ge'])} or more"
        case "less_than_equal":
            return f"it takes {_shown(limits['le'])} or less"
        case "greater_than":
            return f"it takes more than {limits['gt']:g}"
        case "less_than":
            return f"it takes less than {_shown(limits['lt'])}"
    return str(problem["msg"]).removeprefix("Value error, ")


def _shown(limit: int | float) -> str:
    """In full where it is a whole number."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _inside(sections: list[type[BaseModel]], part: str) -> list[type[BaseModel]]:
    """Where a part of an error's place leads: a field, a list index, a union's tag or branch."""
    fields = [s.model_fields[part] for s in sections if part in s.model_fields]
    if fields:
        return [section for field in fields for section in _sections_in(field.annotation)]
    named = [s for s in sections if part in (s.__name__, _tag(s))]
    return named or (sections if _is_branch(part) else [])


def _tag(section: type[BaseModel]) -> Any:
    kind = section.model_fields.get("kind")
    return next(iter(get_args(kind.annotation)), None) if kind else None


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
