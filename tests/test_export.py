"""A run as one file: the table of all hits in three formats, and the report to mail."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import zarr
from PIL import Image

import deconvoy
from deconvoy import report
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.export import export
from tests.runs import LAYERS, run_inline, small_spec

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, texts, and whether all is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("exported") / "run"
    run_inline(small_spec(name="a <b>run</b> & more"), url)
    return url


@pytest.fixture(scope="module")
def run(place: Path) -> deconvoy.Run:
    return deconvoy.open(place)


@pytest.fixture(scope="module")
def page(run: deconvoy.Run) -> Page:
    return Page("".join(report.pages(run, 2)))


def test_hits_are_written_whole_in_every_format(run: deconvoy.Run, tmp_path: Path) -> None:
    table = run.table()
    for suffix in ("parquet", "arrow", "csv"):
        assert export(run, tmp_path / "new" / f"hits.{suffix}") == table.num_rows
    assert pa.parquet.read_table(tmp_path / "new/hits.parquet").equals(table)
    with pa.ipc.open_file(tmp_path / "new/hits.arrow") as file:
        assert file.read_all().equals(table)
    # in a CSV file a path that looks like a number is one
    types = pa.csv.ConvertOptions(column_types=table.schema)
    read = pa.csv.read_csv(tmp_path / "new/hits.csv", convert_options=types)
    assert read.equals(table)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        *("hits.arrow", "hits.csv", "hits.parquet"),
    ]


def test_hits_are_written_layer_by_layer(
    run: deconvoy.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, tmp_path / "hits.parquet")
    groups = pa.parquet.ParquetFile(tmp_path / "hits.parquet").metadata
    assert groups.num_row_groups == len(LAYERS)
    asked: list[Any] = []
    table = deconvoy.Run.table
    monkeypatch.setattr(
        deconvoy.Run, "table", lambda run, layer=None: asked.append(layer) or table(run, layer)
    )
    export(run, tmp_path / "hits.arrow")
    assert set(asked) == set(LAYERS)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "html"])
def test_a_failed_export_leaves_the_old_file_and_no_other(
    place: Path, tmp_path: Path, suffix: str
) -> None:
    shutil.copytree(place, tmp_path / "run")
    (chunk,) = (p for p in (tmp_path / "run/layers/logits/image/c").rglob("*") if p.is_file())
    chunk.write_bytes(b"broken")
    target = tmp_path / f"hits.{suffix}"
    target.write_text("old")
    with pytest.raises(OSError, match="broken"):
        export(deconvoy.open(tmp_path / "run"), target)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, "run"]


def test_other_suffixes_and_runs_without_results_are_refused(
    run: deconvoy.Run, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"'.xlsx'; use one of .parquet, .arrow, .csv, .html"):
        export(run, tmp_path / "hits.xlsx")
    (tmp_path / "begun").mkdir()
    shutil.copy(place / "zarr.json", tmp_path / "begun")
    with pytest.raises(RunNotFound, match="no results yet"):
        export(deconvoy.open(tmp_path / "begun"), tmp_path / "hits.csv")
    assert not (tmp_path / "hits.csv").exists()


# -- report ------------------------------------------------------------------------------------


def test_the_report_asks_no_server_for_anything(page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.elements}
    for name, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), (name, attributes)
        for key in ("src", "href", "srcset", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
    policy = next(m for m in page.all("meta") if m.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")
    assert "url(" not in "".join(page.texts) and "@import" not in "".join(page.texts)


def test_the_report_has_a_section_a_layer_and_a_bounded_wall(run: deconvoy.Run, page: Page) -> None:
    sections = [s["id"] for s in page.all("section") if "id" in s]
    assert sections == [f"layer-{n}" for n in range(len(LAYERS))]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in sections]
    images = page.all("img")
    projected = [min(2, len(run.projected_units(layer))) for layer in LAYERS]
    assert len(images) == sum(projected) == 4
    for image in images:
        assert image["loading"] == "lazy" and image["alt"]
        content = base64.b64decode(str(image["src"]).partition(",")[2])
        with Image.open(io.BytesIO(content)) as picture:
            assert [str(side) for side in picture.size] == [image["width"], image["height"]]
    text = " ".join(page.texts)
    assert re.search(r"0 · max [\d.]+ · \d/9 ", text) and "40 images" in text
    digest = run.attributes["provenance"]["model_sha256"]
    assert digest in text and '"uri": "shapes?size=40&seed=1"' in text


def test_texts_from_data_are_escaped(page: Page, place: Path, tmp_path: Path) -> None:
    assert "a <b>run</b> & more" in page.texts and not page.all("b")
    shutil.copytree(place, tmp_path / "run")
    evil = '<script>alert("1")</script>'
    group = zarr.open_group(tmp_path / "run", mode="r+")
    group.attrs.update({"classes": [evil] * 10})
    source = "".join(report.pages(deconvoy.open(tmp_path / "run"), 3))
    assert "<script" not in source and evil in "".join(Page(source).texts)


def test_the_report_fits_light_and_dark(run: deconvoy.Run) -> None:
    source = "".join(report.pages(run, 1))
    assert "prefers-color-scheme: dark" in source and 'content="light dark"' in source


def test_units_shown_are_spread_over_the_layer() -> None:
    assert report.chosen(range(3), 5) == [0, 1, 2]
    assert report.chosen(range(100), 3) == [0, 50, 99] or report.chosen(range(100), 3)[1] == 49
    assert report.chosen([4, 7, 9], 2) == [4, 9] and report.chosen([4, 7], 1) == [4]
    assert len(set(report.chosen(range(50), 16))) == 16


def test_a_report_is_written_to_a_file(run: deconvoy.Run, tmp_path: Path) -> None:
    assert export(run, tmp_path / "run.html", units=1) == 0
    assert len(Page((tmp_path / "run.html").read_text(encoding="utf-8")).all("img")) == 2


# -- notebooks ---------------------------------------------------------------------------------


def test_a_notebook_shows_what_a_run_is(run: deconvoy.Run, place: Path, tmp_path: Path) -> None:
    shown = Page(run._repr_html_())
    text = " ".join(shown.texts)
    assert "a <b>run</b> & more" in shown.texts and "40 images" in text
    assert [name for name in LAYERS if name in shown.texts] == list(LAYERS)
    (tmp_path / "begun").mkdir()
    shutil.copy(place / "zarr.json", tmp_path / "begun")
    begun = deconvoy.open(tmp_path / "begun")
    del begun.attributes["results"]
    assert "no results yet" in begun._repr_html_()


def test_a_notebook_shows_a_unit_with_its_pictures_or_its_hits(run: deconvoy.Run) -> None:
    shown = Page(run.unit("relu2", 40)._repr_html_())
    assert len(shown.all("img")) == 1 and "relu2" in shown.texts
    without = Page(run.unit("logits", 3)._repr_html_())
    assert not without.all("img") and len(without.all("tr")) == 10
    dead = next(u for u in range(256) if run.unit("relu7", u).dead)
    assert "no image activates it" in run.unit("relu7", dead)._repr_html_()


def test_deep_layers_look_zoomed_and_smoothed(run: deconvoy.Run) -> None:
    assert run.look("relu2") == {"zoom": False, "sigma": 0.0}
    assert run.look("relu5") == {"zoom": True, "sigma": 1.0}
    assert run.unit("relu5", 0).figure(**run.look("relu5")).width > 0
