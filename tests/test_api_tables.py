"""The table of hits and the queries over HTTP, in every format."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import deconvoy
from deconvoy import queries
from service import formats
from tests.serving import client_of, problem_of, settings_of

TABLE = "/v1/runs/small/table"
QUERY = "/v1/runs/small/query"


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    with client_of(settings_of(home, runs=str(small_run.parent), page_rows=500)) as client:
        yield client


@pytest.fixture
def table(small_run: Path) -> pa.Table:
    return deconvoy.open(small_run).table()


def read(answer: httpx.Response) -> pa.Table:
    """As its media type says."""
    answer.raise_for_status()
    content = io.BytesIO(answer.content)
    match answer.headers["content-type"].partition(";")[0]:
        case "application/vnd.apache.arrow.stream":
            return pa.ipc.open_stream(content).read_all()
        case "application/vnd.apache.parquet":
            return pq.read_table(content)
        case "text/csv":
            return pa.csv.read_csv(content)
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_stream_is_the_table(client: httpx.Client, table: pa.Table, form: str) -> None:
    answer = client.get(TABLE, params={"format": form})
    assert read(answer).equals(table)
    assert "filename*=UTF-8''small." in answer.headers["content-disposition"]
    assert read(client.get(TABLE, headers={"accept": formats.MEDIA_TYPES[form]})).equals(table)


def test_csv_is_the_table(client: httpx.Client, table: pa.Table) -> None:
    found = read(client.get(TABLE, params={"format": "csv"}))
    assert found.column_names == table.column_names
    for name in ("layer", "unit", "rank", "image_id", "label", "y", "x", "y0", "x1"):
        assert found[name].to_pylist() == table[name].to_pylist()


def test_json_comes_in_pages_that_make_the_table(client: httpx.Client, table: pa.Table) -> None:
    rows, address = [], f"{TABLE}?limit=500"
    while address:
        page = client.get(address).raise_for_status().json()
        assert page["total"] == table.num_rows
        rows += page["rows"]
        address = page["next"]
    assert rows == table.to_pylist()


def test_filters_are_those_of_the_table(client: httpx.Client, table: pa.Table) -> None:
    def asked(**wanted: object) -> pa.Table:
        return read(client.get(TABLE, params={"format": "arrow", **wanted}))

    def kept(column: str, value: object) -> pa.Table:
        return table.filter(pc.equal(table[column], value))

    assert asked(layer="relu5").equals(kept("layer", "relu5"))
    assert asked(unit=3).combine_chunks().equals(kept("unit", 3).combine_chunks())
    assert asked(image=7).combine_chunks().equals(kept("image_id", 7).combine_chunks())
    assert asked(label="fish").combine_chunks().equals(kept("label", 1).combine_chunks())
    assert asked(label="1").num_rows == asked(label="fish").num_rows > 0
    one = asked(layer="relu5", unit=3, image=kept("unit", 3)["image_id"][0].as_py())
    assert set(one["layer"].to_pylist()) <= {"relu5"} and one.num_rows <= 1
    nothing = asked(layer="relu2", unit=2**31 - 1)
    assert nothing.num_rows == 0 and nothing.schema.equals(table.schema)
    part = asked(offset=570, limit=20)
    assert part.combine_chunks().equals(table.slice(570, 20).combine_chunks())


@pytest.mark.parametrize(
    ("wanted", "status", "field"),
    [
        ({"format": "xml"}, 422, "format"),
        ({"layer": "relu3"}, 404, "layer"),
        ({"label": "dog"}, 422, "label"),
        ({"label": "10"}, 422, "label"),
        ({"image": "40"}, 404, "image"),
        ({"image": "9" * 30}, 404, "image"),
        ({"image": "../../etc/passwd"}, 404, "image"),
        ({"unit": -1}, 422, "unit"),
        ({"units": 3}, 422, "units"),
    ],
)
def test_filters_that_are_wrong_are_named(
    client: httpx.Client, wanted: dict[str, object], status: int, field: str
) -> None:
    problem_of(client.get(TABLE, params=wanted), status, field)


def test_accept_is_heeded(client: httpx.Client) -> None:
    def type_of(accept: str) -> str:
        answer = client.get(f"{TABLE}?limit=1", headers={"accept": accept})
        return answer.headers["content-type"].partition(";")[0]

    assert type_of("*/*") == type_of("text/html, application/*;q=0.9") == "application/json"
    assert type_of("text/csv;q=0.9, application/json;q=0.5") == "text/csv"
    assert type_of("application/json;q=0, text/*") == "text/csv"
    refused = client.get(TABLE, headers={"accept": "application/xml"})
    assert "application/vnd.apache.parquet" in problem_of(refused, 406, "Accept")


# -- queries ---------------------------------------------------------------------------------------

ASKED: list[tuple[str, dict[str, str]]] = [
    ("purity", {"layer": "relu2"}),
    ("dead", {}),
    ("images-most-hit", {"limit": "5"}),
    ("selective", {"class": "fish", "limit": "0"}),
    ("nearest", {"layer": "relu2", "unit": "3", "within": "relu5"}),
    ("image", {"image": "7"}),
    ("localisation", {}),
]


@pytest.mark.parametrize(("name", "arguments"), ASKED, ids=[name for name, _ in ASKED])
def test_a_query_is_that_of_code(
    client: httpx.Client, small_run: Path, name: str, arguments: dict[str, str]
) -> None:
    expected = queries.ask(deconvoy.open(small_run), name, named=arguments)
    page = client.get(f"{QUERY}/{name}", params=arguments).raise_for_status().json()
    assert page["rows"] == expected.slice(0, 500).to_pylist()
    assert page["total"] == expected.num_rows
    assert (page["summary"] is not None) == (name == "localisation")
    found = read(client.get(f"{QUERY}/{name}", params={"format": "arrow", **arguments}))
    assert found.combine_chunks().equals(expected.combine_chunks())


def test_queries_are_listed_with_their_arguments(client: httpx.Client) -> None:
    told = client.get(QUERY).raise_for_status().json()["queries"]
    assert [query["name"] for query in told] == list(queries.QUERIES)
    nearest = next(query for query in told if query["name"] == "nearest")
    assert [a["name"] for a in nearest["arguments"] if a["required"]] == ["layer", "unit"]
    assert nearest["address"] == f"{QUERY}/nearest"


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ("purty", 404, "name"),
        ("nearest?layer=relu2", 422, "unit"),
        ("nearest?layer=relu2&unit=x", 422, "unit"),
        ("nearest?layer=relu2&unit=999", 404, "unit"),
        ("nearest?layer=relu3&unit=1", 404, "layer"),
        ("nearest?layer=relu2&unit=1&within=relu3", 404, "within"),
        ("purity?leyer=relu2", 422, "leyer"),
        ("purity?limit=3", 422, "limit"),
        ("selective?class=dog", 422, "class"),
        ("examples?layer=relu2&kind=best", 422, "kind"),
        ("examples?layer=relu2&kind=bottom", 404, "kind"),
        ("outliers", 404, "layer"),
        ("image?image=no.jpg", 404, "image"),
        ("dead?format=xml", 422, "format"),
    ],
)
def test_queries_that_are_wrong_are_told_what(
    client: httpx.Client, asked: str, status: int, field: str
) -> None:
    problem_of(client.get(f"{QUERY}/{asked}"), status, field)
