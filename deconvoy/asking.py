"""Call a query by its name with arguments that are text: what the command line and HTTP have.

A query is a function whose first parameter is the run and whose others are annotated with what they
are for; ``register`` reads all else from its signature.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from deconvoy.errors import RequestError
from deconvoy.likeness import nearest
from deconvoy.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Argument:
    """One argument of a query."""

    name: str
    type: type
    """``int`` or ``str``: what its text is turned into."""
    doc: str
    required: bool
    default: Any = None


@dataclass(frozen=True)
class Query:
    """A function and what there is to know about calling it by name."""

    name: str
    function: Callable[..., pa.Table]
    doc: str
    """One sentence."""
    arguments: tuple[Argument, ...]
    """In the order in which they may be given without their names."""


QUERIES: dict[str, Query] = {}
"""Every query by its name."""


def register(function: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    """Put a function into ``QUERIES``; its signature and annotations are all that is needed."""
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]  # the first is the run
    name = function.__name__.replace("_", "-")
    arguments = tuple(_argument(parameter, hints[parameter.name]) for parameter in parameters)
    doc = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
    QUERIES[name] = Query(name, function, doc, arguments)
    return function


def _argument(parameter: inspect.Parameter, hint: Any) -> Argument:
    plain, doc = get_args(hint)
    kinds = [kind for kind in get_args(plain) or (plain,) if kind in (int, str)]
    # Of `int | str` the text decides: a number is read as one.
    kind = int if kinds == [int] else str
    required = parameter.default is parameter.empty
    assert get_origin(hint) is Annotated
    default = None if required else parameter.default
    return Argument(parameter.name.rstrip("_"), kind, doc, required, default)


def ask(
    run: Run, name: str, given: Sequence[str] = (), named: Mapping[str, str] | None = None
) -> pa.Table:
    """Answer a query whose arguments are text.

    Args:
        given: arguments in order.
        named: arguments by name.

    Raises:
        RequestError: no such query, an argument that is unknown, missing, too many or no number.
        RunNotFound: no such layer, unit or image.
    """
    query = find(name)
    known = {argument.name: argument for argument in query.arguments}
    texts = by_name(query, given, named or {})
    for argument in query.arguments:
        if argument.required and argument.name not in texts:
            raise RequestError(
                f"The query {name!r} needs {argument.name!r} ({argument.doc}): {usage(query)}."
            )
    values = {key: _value(query, known[key], text) for key, text in texts.items()}
    parameters = list(inspect.signature(query.function).parameters)[1:]
    spelled = {parameter.rstrip("_"): parameter for parameter in parameters}
    return query.function(run, **{spelled[key]: value for key, value in values.items()})


def by_name(query: Query, given: Sequence[T], named: Mapping[str, T]) -> dict[str, T]:
    """All arguments of a query by their names.

    Raises:
        RequestError: too many, one that is unknown, or one that is given twice.
    """
    known = {argument.name: argument for argument in query.arguments}
    if len(given) > len(known):
        raise RequestError(
            f"The query {query.name!r} takes at most {len(known)} arguments ({usage(query)}), "
            f"not {len(given)}."
        )
    found = dict(zip(known, given, strict=False))
    for key, value in named.items():
        if key not in known:
            raise RequestError(
                f"The query {query.name!r} has no argument {key!r}; {nearest(key, list(known))}."
            )
        if key in found:
            raise RequestError(f"The query {query.name!r} is given {key!r} twice: once is enough.")
        found[key] = value
    return found


def find(name: str) -> Query:
    """The query of that name.

    Raises:
        RequestError: none; says which is nearest.
    """
    if name not in QUERIES:
        raise RequestError(f"There is no query {name!r}; {nearest(name, list(QUERIES))}.")
    return QUERIES[name]


def usage(query: Query) -> str:
    """How to type a query: required arguments plain, others in brackets."""
    shown = (a.name.upper() if a.required else f"[{a.name.upper()}]" for a in query.arguments)
    return " ".join([query.name, *shown])


def _value(query: Query, argument: Argument, text: str) -> Any:
    if argument.type is str:
        return text
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise RequestError(
            f"The query {query.name!r}: {argument.name} is {text!r}, but it must be a whole number "
            "from 0."
        )
    return number
