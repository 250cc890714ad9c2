"""What the routes share: the run that is meant, addresses, pages, and parameters nobody knows."""

from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant

from deconvoy.likeness import nearest
from service import problems
from service.problems import refused
from service.shelf import Shelf, Shelved

RunId = Annotated[
    str, Path(description="Id of a run, as GET /v1/runs lists it.", examples=["squeeze-photos"])
]
Layer = Annotated[
    str,
    Path(description="Name of a layer of the run.", examples=["features.12.expand3x3_activation"]),
]
UnitNumber = Annotated[int, Path(ge=0, description="Number of a unit of the layer.", examples=[42])]
Offset = Annotated[int, Query(ge=0, le=2**31, description="Rows to leave out.", examples=[0])]
Limit = Annotated[
    int | None,
    Query(ge=1, le=2**31, description="Rows at most; default: a page.", examples=[100]),
]
Version = Annotated[
    str | None,
    Query(
        description="Commit of the run, as picture addresses have it: such an answer is cached "
        "for ever.",
        examples=["3f2a9c0d1e4b5a67"],
    ),
]


def opened(request: Request, run_id: str, field: str = "run_id") -> Shelved:
    """The run that is meant.

    Args:
        field: the part of the request that names it.

    Raises:
        Problem: there is none of that id.
    """
    shelf: Shelf = request.app.state.shelf
    with problems.about(field):
        try:
            return shelf.open(run_id)
        finally:
            # So that no answer tells the place.
            known = getattr(request.state, "runs", ())
            request.state.runs = (*known, (shelf.place(run_id), run_id))


def link(request: Request, *parts: object, **query: object) -> str:
    """An address below ``/v1``, its parts escaped; parameters that are None are left out."""
    root = request.scope.get("root_path", "")
    path = "/".join(map(_escaped, parts))
    given = {key: value for key, value in query.items() if value is not None}
    return f"{root}/v1/{path}" + (f"?{urlencode(given)}" if given else "")


def _escaped(part: object) -> str:
    escaped = quote(str(part), safe="")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")


def page_size(request: Request, limit: int | None, field: str = "limit") -> int:
    """Rows of a page.

    Raises:
        Problem: more than the service gives at once.
    """
    most: int = request.app.state.settings.page_rows
    if limit is not None and limit > most:
        raise refused(
            422,
            f"The parameter {field!r} is {limit}; a page has {most} rows at most: ask for fewer, "
            "and follow next.",
            field,
        )
    return limit or most


def next_page(request: Request, offset: int, size: int, total: int) -> str | None:
    """Where the page after this one is."""
    if offset + size >= total:
        return None
    address = request.url.include_query_params(offset=offset + size)
    return f"{address.path}?{address.query}"


def refuse_unknown(request: Request) -> None:
    """A parameter that a route does not know is a slip, and said so.

    Raises:
        Problem: names the nearest that there is.
    """
    route: Any = request.scope["route"]
    known = _parameters(route.dependant)
    for name in request.query_params:
        if name not in known:
            there = nearest(name, sorted(known))
            raise refused(
                422,
                f"There is no parameter {name!r} here; {there}.",
                name,
            )


def _parameters(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_parameters(each) for each in dependant.dependencies))


async def _refuse_unknown(request: Request) -> None:
    refuse_unknown(request)


KNOWN_PARAMETERS = Depends(_refuse_unknown)
