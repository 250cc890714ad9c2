"""Boxes of parts: read from files and drawings, refused where they do not fit, and kept for later.

What they have in common with boxes of objects is tested in ``test_boxes``.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconvoy.errors import RequestError
from deconvoy.places import anchored
from deconvoy.spec import DataSpec, JobSpec, Transform
from tests.runs import resume_inline, small_spec, write_photographs
from workers import boxes as boxing
from workers import pipeline
from workers.datasets import list_images
from workers.job import settle
from workers.part_boxes import (
    FilePartBoxes,
    PartBoxes,
    digest_of_parts,
    names_of,
    part_boxes_of,
    parts_in_input,
)
from workers.shapes import CLASSES, SIDE, outline, render

HEADER = "path,part,x0,y0,x1,y1"
FACE = CLASSES.index("face")


def listed(folder: Path, *rows: str, header: str = HEADER) -> DataSpec:
    """Four photographs, and a file of parts."""
    if not (folder / "images").exists():
        write_photographs(folder / "images", 4)
    (folder / "parts.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return DataSpec(uri=str(folder / "images"), parts=str(folder / "parts.csv"))


def read(data: DataSpec) -> PartBoxes:
    found = part_boxes_of(data, list_images(data, (), 10))
    assert found is not None
    return found


def lists(parts: PartBoxes, uri: str) -> dict[str, list[float]]:
    return {name: box.tolist() for name, box in parts.of(uri).items()}


def test_a_file_of_parts_is_read_as_csv_and_as_parquet(tmp_path: Path) -> None:
    data = listed(tmp_path, "a/000.png,eye,1,2,30,40", "b/001.png,eye,5,5,9,9",
                  "a/000.png,nose,2.5,3,8,9")  # fmt: skip
    table = {"path": ["a/000.png", "b/001.png", "a/000.png"], "part": ["eye", "eye", "nose"],
             "x0": [1.0, 5, 2.5], "y0": [2, 5, 3], "x1": [30, 9, 8], "y1": [40, 9, 9]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "parts.parquet")
    of_parquet = data.model_copy(update={"parts": str(tmp_path / "parts.parquet")})
    for parts in (read(data), read(of_parquet)):
        assert lists(parts, "a/000.png") == {"eye": [1, 2, 30, 40], "nose": [2.5, 3, 8, 9]}
        assert lists(parts, "b/001.png") == {"eye": [5, 5, 9, 9]}
        assert lists(parts, "a/002.png") == {}
        assert names_of(parts, ["b/001.png"]) == ("eye",)
        assert names_of(parts, ["a/000.png", "b/001.png", "a/002.png"]) == ("eye", "nose")


def test_data_without_parts_has_none(tmp_path: Path) -> None:
    data = listed(tmp_path, "a/000.png,eye,1,2,30,40").model_copy(update={"parts": None})
    assert part_boxes_of(data, list_images(data, (), 10)) is None
    assert digest_of_parts(None) is None


def test_shapes_know_their_own_parts() -> None:
    job = settle(small_spec())
    assert job.part_boxes is not None
    own = render(1, FACE).parts
    assert set(own) == {"left_eye", "right_eye", "nose", "mouth"}
    placed = parts_in_input(job.part_boxes.of(str(FACE)), (SIDE, SIDE), job.packed.transform)
    assert {name: tuple(box.tolist()) for name, box in placed.items()} == own
    assert "parts_sha256" not in job.provenance()


@pytest.mark.parametrize("index", range(2 * len(CLASSES)))
def test_the_outline_of_a_drawing_is_that_of_the_painted_one(index: int) -> None:
    whole, alone = render(3, index), outline(3, index)
    assert (whole.box, whole.parts) == (alone.box, alone.parts)


def test_of_several_places_each_has_its_own(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 2)
    parts = read(DataSpec(uri=(str(tmp_path / "images"), "shapes?size=10&seed=5")))
    assert lists(parts, "a/000.png") == {}
    y0, x0, y1, x1 = render(5, FACE).parts["nose"]
    assert lists(parts, f"+1:{FACE}")["nose"] == [x0, y0, x1, y1]


def test_a_part_that_the_crop_leaves_nothing_of_is_dropped_and_a_cut_one_is_clipped() -> None:
    parts = {"gone": np.array([0, 0, 40.0, 100]), "cut": np.array([40, 10, 60.0, 40]),
             "whole": np.array([90, 10, 110.0, 40])}  # fmt: skip
    placed = parts_in_input(parts, (100, 200), Transform(resize=100, crop=100))
    assert {name: box.tolist() for name, box in placed.items()} == {
        "cut": [10, 0, 40, 10],
        "whole": [10, 40, 40, 60],
    }


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["a/000.png,eye,1,2,3,4", "a/000.png,eye,5,5,9,9"], "row 2 .*'eye' has a box in this"),
        (["a/000.png,,1,2,3,4"], r"row 1 \('a/000.png'\): its part is empty: name what"),
        (["a/000.png,eye,9,2,3,4"], "data.parts .*row 1.*ends before it begins"),
        (["a/000.png,eye,-7,2,3,4"], "data.parts .*row 1.*begins at -7, 2, outside the file"),
        (["a/000.png,eye,1,2,x,4"], "data.parts .*row 1.*are no four numbers"),
        (["a/000.png,eye,1,2,inf,4"], "data.parts .*row 1.*not finite"),
        (["a/000.png,eye,0.1,0.2,0.3,1"], "data.parts .*no coordinate is above 1"),
        (["gone.png,eye,1,2,3,4"], "data.parts .*names none of the images.*it has 'gone.png'"),
        (["b/001.png,eye,1,1,900,5"], "data.parts .*'b/001.png': The box 1, 1, 900, 5 reaches"),
        ([], "data.parts .*has no rows, but its columns are path, part, x0, y0, x1, y1"),
    ],
)
def test_what_does_not_fit_is_refused_by_row_and_rule(
    tmp_path: Path, rows: list[str], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        read(listed(tmp_path, *rows))


def test_a_file_of_boxes_is_no_file_of_parts(tmp_path: Path) -> None:
    data = listed(tmp_path, "a/000.png,1,2,3,4", header="path,x0,y0,x1,y1")
    with pytest.raises(RequestError, match="has path, x0, y0, x1, y1, but its columns are path, p"):
        read(data)
    gone = data.model_copy(update={"parts": str(tmp_path / "gone.csv")})
    with pytest.raises(RequestError, match=r"data\.parts .*gone\.csv' cannot be read"):
        read(gone)
    with pytest.raises(RequestError, match="shapes knows its own parts; leave it out"):
        read(DataSpec(uri="shapes?size=8", parts=str(tmp_path / "parts.csv")))


def test_parts_of_images_that_are_not_there_are_told_and_the_others_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        parts = read(listed(tmp_path, "a/000.png,eye,1,2,30,40", "gone.png,eye,1,1,2,2"))
    assert lists(parts, "a/000.png") == {"eye": [1, 2, 30, 40]}
    assert "data.parts" in caplog.text
    assert "1 of the 2 images it names are not there ('gone.png')" in caplog.text


def test_the_digest_of_parts_is_that_of_their_names_and_boxes_alone() -> None:
    eye, nose = np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])
    one = FilePartBoxes({"a": {"eye": eye, "nose": nose}, "b": {"eye": nose}})
    same = FilePartBoxes({"b": {"eye": nose}, "a": {"nose": nose, "eye": eye}})
    others = [
        FilePartBoxes({"a": {"eye": nose, "nose": eye}, "b": {"eye": nose}}),
        FilePartBoxes({"a": {"eye": eye, "nose": nose}, "c": {"eye": nose}}),
        FilePartBoxes({"a": {"eye": eye, "mouth": nose}, "b": {"eye": nose}}),
        FilePartBoxes({"a": {"eye": eye + 0.5, "nose": nose}, "b": {"eye": nose}}),
    ]
    assert digest_of_parts(one) == digest_of_parts(same)
    assert digest_of_parts(one) not in {digest_of_parts(other) for other in others}


def test_the_digest_of_boxes_is_that_of_runs_that_are_there() -> None:
    boxes = {"b": np.array([[1.0, 2, 3, 4]]), "a": np.array([[5.0, 6, 7.5, 8], [0, 0, 1, 1]])}
    as_written = '{"a": [[5.0, 6.0, 7.5, 8.0], [0.0, 0.0, 1.0, 1.0]], "b": [[1.0, 2.0, 3.0, 4.0]]}'
    assert json.loads(as_written) == {path: own.tolist() for path, own in boxes.items()}
    expected = hashlib.sha256(as_written.encode()).hexdigest()
    assert boxing.digest_of(boxing.FileBoxes(boxes)) == expected


def photographs_with_parts(folder: Path) -> JobSpec:
    data = listed(folder, "a/000.png,eye,1,2,30,40", "b/001.png,eye,5,5,9,9")
    return small_spec(
        data={"uri": data.uri, "parts": data.parts}, layers=["relu2"], analyses=[{"kind": "top"}]
    )


def test_a_run_does_not_go_on_with_other_parts(tmp_path: Path) -> None:
    pipeline.create(photographs_with_parts(tmp_path), str(tmp_path / "run"))
    file = tmp_path / "parts.csv"
    file.write_text(file.read_text().replace("eye,5", "nose,5"))
    with pytest.raises(RequestError, match="parts_sha256.*boxes and parts. Put them back"):
        resume_inline(tmp_path / "run")
    photographs_with_parts(tmp_path)  # as it was
    resume_inline(tmp_path / "run")


def test_the_path_of_parts_is_absolute_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.csv").touch()
    spec = small_spec(data={"parts": "parts.csv"})
    assert anchored(spec).data.parts == str(tmp_path / "parts.csv")
