"""The table of hits, and the queries: as JSON pages, Arrow, Parquet or CSV."""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Depends, Path, Query, Request
from fastapi.responses import StreamingResponse

from deconvoy import queries
from deconvoy.asking import Argument
from deconvoy.likeness import nearest
from service import formats, problems
from service.api.asking import (
    KNOWN_PARAMETERS,
    Limit,
    Offset,
    RunId,
    link,
    next_page,
    opened,
    page_size,
)
from service.api.routing import Routes
from service.api.table_answers import QueryArgument, QueryList, QueryUsage, TablePage
from service.auth import Scope, requires
from service.formats import Format
from service.shelf import Shelved

router = Routes(
    prefix="/v1/runs/{run_id}",
    tags=["tables"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

AsFormat = Annotated[
    Format | None,
    Query(alias="format", description="Default: as the header Accept says.", examples=["arrow"]),
]
LAYERS = ("layer", "within")
"""Arguments of queries that name a layer."""

STREAMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of rows; or all of them as a stream.",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for name, media_type in formats.MEDIA_TYPES.items()
            if name != "json"
        },
    },
    **problems.documented(406),
}


@router.get("/table", response_model=TablePage, responses=STREAMS)
def show_table(
    request: Request,
    run_id: RunId,
    layer: Annotated[
        str | None,
        Query(description="Only this layer.", examples=["features.12.expand3x3_activation"]),
    ] = None,
    unit: Annotated[
        int | None, Query(ge=0, lt=2**31, description="Only units of this number.", examples=[42])
    ] = None,
    label: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Only hits on images of this class: its name or index.",
            examples=["tabby"],
        ),
    ] = None,
    image: Annotated[
        str | None,
        Query(
            max_length=2000,
            description="Only hits on this image: its id or path in the data set.",
            examples=["1203"],
        ),
    ] = None,
    form: AsFormat = None,
    offset: Offset = 0,
    limit: Limit = None,
) -> Any:
    """All hits: layer, unit, rank, score, image_id, uri, label, y, x, y0, x0, y1, x1.

    As JSON a page; in other formats all rows, unless ``limit`` is given.
    """
    form = formats.chosen(request, form)
    size = page_size(request, limit) if form == "json" else limit
    shelved = opened(request, run_id)
    wanted = _conditions(shelved, unit, label, image)
    if layer is not None:
        with problems.about("layer"):
            shelved.run.layer_group(layer)
    names = shelved.run.layer_names if layer is None else (layer,)
    tables = (_filtered(shelved.layers.hits(name).table, wanted) for name in names)
    if form != "json":
        return formats.stream(request, _sliced(tables, offset, size), form, run_id)
    assert size is not None
    return _page(request, pa.concat_tables(tables), offset, size)


@router.get("/query")
def list_queries(request: Request, run_id: RunId) -> QueryList:
    """What can be asked of a run."""
    opened(request, run_id)
    return QueryList(queries=[_usage(request, run_id, q) for q in queries.QUERIES.values()])


def _conditions(
    shelved: Shelved, unit: int | None, label: str | None, image: str | None
) -> dict[str, int]:
    """Columns of the table, and what they must be."""
    wanted: dict[str, int] = {}
    if unit is not None:
        wanted["unit"] = unit
    if label is not None:
        with problems.about("label"):
            wanted["label"] = queries.class_index(shelved.run, label)
    if image is not None:
        with problems.about("image"):
            wanted["image_id"] = queries.image_id_of(shelved.run, image)
    return wanted


def _filtered(table: pa.Table, wanted: dict[str, int]) -> pa.Table:
    for column, value in wanted.items():
        table = table.filter(pc.equal(table[column], value))
    return table


def _sliced(tables: Iterator[pa.Table], offset: int, limit: int | None) -> Iterator[pa.Table]:
    """Rows of all tables as if they were one; at least one table, however empty."""
    left = limit
    for number, table in enumerate(tables):
        skipped = min(offset, table.num_rows)
        offset -= skipped
        table = table.slice(skipped, left)
        if left is not None:
            left -= table.num_rows
        if table.num_rows or not number:
            yield table
        if left == 0:
            return


def _page(request: Request, table: pa.Table, offset: int, size: int) -> TablePage:
    told = (table.schema.metadata or {}).get(b"summary")
    return TablePage(
        total=table.num_rows,
        offset=offset,
        next=next_page(request, offset, size, table.num_rows),
        rows=table.slice(offset, size).to_pylist(),
        summary=None if told is None else json.loads(told),
    )


# -- queries ---------------------------------------------------------------------------------------


def _usage(request: Request, run_id: str, query: queries.Query) -> QueryUsage:
    arguments = [
        QueryArgument(
            name=a.name,
            type=a.type.__name__,
            required=a.required,
            default=a.default,
            description=a.doc,
        )
        for a in query.arguments
    ]
    return QueryUsage(
        name=query.name,
        description=query.doc,
        arguments=arguments,
        address=link(request, "runs", run_id, "query", query.name),
    )


def _answer(query: queries.Query) -> Callable[..., Any]:
    """The endpoint of a query: its arguments are parameters of the same names."""

    def ask(
        request: Request, run_id: str, form: Format | None, offset: int, **given: Any
    ) -> TablePage | StreamingResponse:
        form = formats.chosen(request, form)
        shelved = opened(request, run_id)
        named = {name.rstrip("_"): str(v) for name, v in given.items() if v is not None}
        for name in LAYERS:
            if name in named:
                with problems.about(name):
                    shelved.run.layer_group(named[name])
        others = [name for name in named if name not in (*LAYERS, "limit")]
        with problems.about((others or ["layer"])[-1]):
            table = queries.ask(shelved.run, query.name, named=named)
        if form != "json":
            rest = iter([table.slice(offset)])
            return formats.stream(request, rest, form, f"{run_id}-{query.name}")
        return _page(request, table, offset, page_size(request, None))

    shared = (
        ("request", Request, inspect.Parameter.empty),
        ("run_id", RunId, inspect.Parameter.empty),
        ("form", AsFormat, None),
        ("offset", Offset, 0),
    )
    own = [(_spelled(a), _annotation(a), _default(a)) for a in query.arguments]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in (*shared, *own)
    ]
    ask.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    ask.__name__ = f"query_{query.name.replace('-', '_')}"
    ask.__doc__ = query.doc
    return ask


def _spelled(argument: Argument) -> str:
    """As a parameter of a function, where ``class`` and ``offset`` mean something else."""
    return f"{argument.name}_"


def _annotation(argument: Argument) -> Any:
    bounds: dict[str, Any] = {"max_length": 2000}
    if argument.type is int:
        bounds = {"ge": 0, "lt": 2**31}
    told = Query(
        alias=argument.name,
        description=f"{argument.doc[:1].upper()}{argument.doc[1:]}.",
        examples=[_EXAMPLES.get(argument.name, 0)],
        **bounds,
    )
    kind: Any = argument.type
    return Annotated[kind if argument.required else kind | None, told]


_EXAMPLES = {
    "layer": "features.12.expand3x3_activation",
    "within": "features.12.expand3x3_activation",
    "class": "tabby",
    "kind": "bottom",
    "image": "1203",
    "unit": 42,
    "limit": 20,
}


def _default(argument: Argument) -> Any:
    return inspect.Parameter.empty if argument.required else None


for _query in queries.QUERIES.values():
    router.add_api_route(
        f"/query/{_query.name}",
        _answer(_query),
        methods=["GET"],
        response_model=TablePage,
        responses=STREAMS,
        tags=["queries"],
        name=f"query {_query.name}",
    )


@router.get("/query/{name}", include_in_schema=False)
def refuse_query(name: Annotated[str, Path()]) -> None:
    """Of a query that is not there."""
    raise problems.refused(
        404,
        f"There is no query {name!r}; {nearest(name, list(queries.QUERIES))}.",
        "name",
    )
