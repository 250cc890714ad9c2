"""Listings: order, labels, evenly spaced picks, and a sentence for everything that does not fit."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.spec import DataSpec, Transform
from workers.datasets import Listing, list_images
from workers.images import from_pixels
from workers.shapes import CLASSES, render
from workers.sources import FileSource

TRANSFORM = Transform(resize=8, crop=8)


def folder_of(root: Path, *uris: str) -> str:
    for uri in uris:
        path = root / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (len(uri), 0, 0)).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
    return str(root)


def listed(uri: str, classes: Sequence[str] = (), outputs: int = 10, **fields: object) -> Listing:
    return list_images(DataSpec.model_validate({"uri": uri, **fields}), classes, outputs)


def refusal(uri: str, classes: Sequence[str] = (), outputs: int = 10, **fields: object) -> str:
    with pytest.raises(RequestError) as caught:
        listed(uri, classes, outputs, **fields)
    return str(caught.value)


# --- order ---


def test_images_are_listed_in_sorted_order_of_their_paths(tmp_path: Path) -> None:
    uris = ["b/1.png", "a/z.JPG", "a/10.jpeg", "a/9.webp", "c.gif", "B/x.tiff", "a/b/deep.bmp"]
    listing = listed(folder_of(tmp_path, *uris))
    assert list(listing.uris) == sorted(uris)
    assert listing.shards(4) == [(0, 4), (4, 7)]
    assert len(listing) == 7


def test_hidden_files_and_what_is_no_image_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", ".b.png", ".thumbnails/c.png", "d/._e.png", "d/f.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "png").write_text("no suffix")
    assert list(listed(str(tmp_path)).uris) == ["a.png", "d/f.png"]


def test_folders_behind_a_link_are_listed(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(listed(str(tmp_path / "data")).uris) == ["linked/a.png"]


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, [*range(10)]), (99, [*range(10)])],
)
def test_a_limit_picks_evenly_over_the_sorted_list(
    limit: int, chosen: list[int], tmp_path: Path
) -> None:
    uris = [f"{i}.png" for i in range(10)]
    listing = listed(folder_of(tmp_path, *uris), limit=limit)
    assert list(listing.uris) == [uris[i] for i in chosen]


# --- labels from folders ---


def test_folders_named_like_classes_give_the_outputs_of_that_name(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "dog/1.png", "cat/1.png", "dog/2.png", "loose.png")
    listing = listed(root, classes=["cow", "dog", "cat"], outputs=3)
    assert dict(zip(listing.uris, listing.labels, strict=True)) == {
        "cat/1.png": 2, "dog/1.png": 1, "dog/2.png": 1, "loose.png": None,
    }  # fmt: skip
    assert listing.labels_from == "folder names among the classes"


def test_as_many_folders_as_outputs_are_counted_in_sorted_order(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "n02/1.png", "n10/1.png", "n01/a/b.png")
    listing = listed(root, classes=["cow", "dog", "cat"], outputs=3)
    assert list(listing.labels) == [0, 1, 2]
    assert listing.labels_from == "sorted folder names"


def test_a_limit_does_not_change_what_the_folders_mean(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a/1.png", "b/1.png", "b/2.png", "c/1.png")
    assert list(listed(root, outputs=3, limit=2).labels) == [0, 1]


def test_folders_that_fit_no_outputs_give_no_labels_and_say_so(tmp_path: Path) -> None:
    listing = listed(folder_of(tmp_path, "a/1.png", "b/1.png"), outputs=1000)
    assert list(listing.labels) == [None, None]
    assert listing.labels_from == "none: 2 folder names do not fit 1000 outputs"


def test_a_flat_folder_gives_no_labels_and_says_so(tmp_path: Path) -> None:
    listing = listed(folder_of(tmp_path, "1.png", "2.png"), outputs=2)
    assert list(listing.labels) == [None, None]
    assert listing.labels_from == "none: a flat folder"


# --- labels from a file ---


def csv_of(tmp_path: Path, text: str, encoding: str = "utf-8") -> str:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding=encoding)
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_labels_by_index_and_by_name(encoding: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png", "sub/c.png", "d.png")
    labels = csv_of(tmp_path, "path,label,name\nsub/c.png,dog,x\na.png,2,y\nb.png,0,\n", encoding)
    listing = listed(root, ["cow", "dog", "cat"], 3, labels=labels)
    assert dict(zip(listing.uris, listing.labels, strict=True)) == {
        "a.png": 2, "b.png": 0, "d.png": None, "sub/c.png": 1,
    }  # fmt: skip
    assert listing.labels_from == f"the file {labels}"


@pytest.mark.parametrize("values", [[2, 0], ["2", "cow"]])
def test_a_parquet_file_labels_whatever_the_order_of_its_columns(
    values: list[object], tmp_path: Path
) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png")
    path = str(tmp_path / "labels.parquet")
    table = pa.table({"label": values, "extra": [0.5, 1.5], "path": ["b.png", "a.png"]})
    pq.write_table(table, path)
    assert list(listed(root, ["cow", "dog", "cat"], 3, labels=path).labels) == [0, 2]


def test_labels_of_images_beyond_the_limit_do_no_harm(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png")
    labels = csv_of(tmp_path, "path,label\na.png,1\nb.png,0\n")
    assert list(listed(root, outputs=2, labels=labels, limit=1).labels) == [1]


@pytest.mark.parametrize("label", ["horse", "3", "-1", "--1", "2.5", "3.0", "²", ""])
def test_a_label_that_is_neither_output_nor_name_is_refused(label: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png")
    message = refusal(
        root, ["cow", "dog", "cat"], 3, labels=csv_of(tmp_path, f"path,label\na.png,{label}\n")
    )
    for words in (f"the label {label!r} of 'a.png'", "output index below 3", "data.labels"):
        assert words in message


def test_whole_numbers_with_a_point_are_indices_unless_they_are_names(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png")
    labels = csv_of(tmp_path, "path,label\na.png,2.0\nb.png,0.\n")
    assert list(listed(root, outputs=3, labels=labels).labels) == [2, 0]
    assert list(listed(root, ["2.0", "1.0", "0."], 3, labels=labels).labels) == [0, 2]


def test_a_row_cut_short_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png")
    assert "the label ''" in refusal(root, labels=csv_of(tmp_path, "path,label\na.png\n"))


@pytest.mark.parametrize(
    ("text", "shown"), [("path,label\ndata/a.png,1\n", "'data/a.png'"), ("path,label\n", "'none'")]
)
def test_labels_that_match_no_image_are_refused(text: str, shown: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png")
    message = refusal(root, labels=csv_of(tmp_path, text))
    assert "names none of the images" in message
    assert "'a.png'" in message and shown in message


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png")
    message = refusal(root, labels=csv_of(tmp_path, "file,class\na.png,1\n"))
    assert "cannot be read" in message and "columns path and label" in message
    parquet = str(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"file": ["a.png"], "label": [1]}), parquet)
    assert "columns path and label" in refusal(root, labels=parquet)


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", "broken.parquet", "broken.csv"])
def test_a_labels_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png")
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"path,label\n\xff\xfe\x00,1\n")
    message = refusal(root, labels=str(tmp_path / name))
    assert name in message and "cannot be read" in message


# --- where images come from ---


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = refusal(str(tmp_path / "nowhere"))
    assert "nowhere' does not exist" in message and "folder of images" in message


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    message = refusal(str(tmp_path / "a.png"))
    assert "a kind that holds no images: give a folder" in message


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("")
    message = refusal(str(tmp_path))
    assert "holds no images" in message and ".jpeg" in message


def test_a_store_we_cannot_read_is_refused() -> None:
    message = refusal("gs://bucket/images")
    assert "'gs://bucket/images'" in message and "give a local path, s3://bucket" in message


def test_a_folder_is_read_by_path_and_a_source_pickles(tmp_path: Path) -> None:
    listing = listed(folder_of(tmp_path, "sub/ab.png"))
    source = pickle.loads(pickle.dumps(listing.source))
    picture = source.read("sub/ab.png", TRANSFORM)
    assert (picture.width, picture.height) == (9, 8)
    assert picture.pixels[0].unique().tolist() == [len("sub/ab.png")]


def test_a_file_that_vanished_or_dangles_is_unreadable_not_fatal(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    listing = listed(root)
    assert list(listing.uris) == ["a.png", "b.png"]
    with pytest.raises(ImageUnreadable, match="cannot be read: No such file"):
        listing.source.read("b.png", TRANSFORM)
    with pytest.raises(ImageUnreadable, match="not readable as an image"):
        (tmp_path / "a.png").write_text("")
        FileSource(root).read("a.png", TRANSFORM)


# --- fingerprint ---


def test_the_fingerprint_is_that_of_names_sizes_and_times(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.png", "b.png")
    for name in ("a.png", "b.png"):
        os.utime(tmp_path / name, (1, 1))
    before = listed(root).fingerprint
    assert listed(root).fingerprint == before
    changed = tmp_path / "b.png"
    os.utime(changed, (2, 2))
    newer = listed(root).fingerprint
    changed.write_bytes(changed.read_bytes() + b"\0")
    os.utime(changed, (2, 2))
    larger = listed(root).fingerprint
    changed.rename(tmp_path / "c.png")
    renamed = listed(root).fingerprint
    assert len({before, newer, larger, renamed}) == 4


# --- shapes ---


def test_shapes_are_counted_through_with_their_classes_in_turn() -> None:
    listing = listed("shapes?size=12&seed=3", CLASSES, len(CLASSES))
    assert list(listing.uris) == [str(i) for i in range(12)]
    assert list(listing.labels) == [i % 10 for i in range(12)]
    picture = listing.source.read("7", TRANSFORM)
    assert torch.equal(picture.pixels, from_pixels(render(3, 7).image, TRANSFORM).pixels)


def test_shapes_have_a_default_size_and_seed() -> None:
    listing = listed("shapes", CLASSES, len(CLASSES))
    assert len(listing) == 1000
    assert listing.fingerprint == listed("shapes?size=1000&seed=0").fingerprint
    assert listing.fingerprint != listed("shapes?size=1000&seed=1").fingerprint
    assert listing.fingerprint != listed("shapes?size=999&seed=0").fingerprint


def test_shapes_keep_their_labels_under_a_limit() -> None:
    listing = listed("shapes?size=12", CLASSES, len(CLASSES), limit=3)
    assert list(listing.uris) == ["0", "4", "8"]
    assert list(listing.labels) == [0, 4, 8]


def test_shapes_have_no_labels_for_a_model_of_other_classes() -> None:
    listing = listed("shapes?size=3", [], 1000)
    assert list(listing.labels) == [None] * 3
    assert "not the classes of shapes" in listing.labels_from


@pytest.mark.parametrize(
    "uri", ["shapes?size=many", "shapes?size=-1", "shapes?size=", "shapes?size", "shapes?colour=1",
            "shapes?size=1.5", "shapes?seed=²"]
)  # fmt: skip
def test_a_shapes_address_that_makes_no_sense_is_refused(uri: str) -> None:
    message = refusal(uri)
    assert repr(uri) in message and "shapes?size=1000&seed=1" in message


def test_no_shapes_at_all_are_refused() -> None:
    assert "size must be at least 1" in refusal("shapes?size=0")


def test_folders_named_by_numbers_are_output_indices(tmp_path: Path) -> None:
    uris = [f"{number}/a.png" for number in range(12)]
    for outputs in (12, 1000):
        listing = listed(folder_of(tmp_path, *uris), outputs=outputs)
        labels = dict(zip(listing.uris, listing.labels, strict=True))
        assert labels == {uri: number for number, uri in enumerate(uris)}
        assert listing.labels_from == "folder names, which are output indices"


def test_a_null_label_of_a_table_is_no_label(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png")
    labels = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": [3, None]}), labels)
    assert list(listed(root, labels=str(labels)).labels) == [3, None]


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert r"b'\xff.png' is not UTF-8: rename it" in refusal(str(tmp_path))


def test_a_field_too_long_for_csv_is_told(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "a" * 200_000 + ",1\n")
    assert "cannot be read" in refusal(folder_of(tmp_path / "data", "a.png"), labels=str(labels))


def test_names_in_a_label_file_name_the_outputs(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", "a.png", "b.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,name\na.png,2,owl\nb.png,0,cat\n")
    listing = listed(root, outputs=4, labels=str(labels))
    assert listing.names == ("cat", "class 1", "owl", "class 3")
    assert list(listing.labels) == [2, 0]


def test_several_places_are_read_in_the_order_they_are_given(tmp_path: Path) -> None:
    for name, uris in {
        "b": ["1.png", "22.png"],
        "a": ["333.png"],
        "c": ["1.png", "4444.png"],
    }.items():
        folder_of(tmp_path / name, *uris)
    places = [str(tmp_path / name) for name in "bac"]
    listing = list_images(DataSpec(uri=places), (), 10)
    assert list(listing.uris) == ["1.png", "22.png", "+1:333.png", "+2:1.png", "+2:4444.png"]
    source = pickle.loads(pickle.dumps(listing.source))
    shown = [int(source.read(uri, TRANSFORM).pixels[0, 0, 0]) for uri in listing.uris]
    assert shown == [5, 6, 7, 5, 8]
    assert listing.shards(2) == [(0, 2), (2, 3), (3, 5)]
    assert len(list_images(DataSpec(uri=places, limit=1), (), 10)) == 3


def test_each_place_has_its_labels_file(tmp_path: Path) -> None:
    places = [folder_of(tmp_path / name, "1.png") for name in "ab"]
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n1.png,4\n")
    data = DataSpec(uri=places, labels=(None, str(file)))
    assert list(list_images(data, (), 10).labels) == [None, 4]
    with pytest.raises(ValueError, match="as many files as uri lists places"):
        DataSpec(uri=places, labels=(str(file),))


def test_a_name_that_reads_like_a_further_places_is_refused(tmp_path: Path) -> None:
    places = [folder_of(tmp_path / "a", "+1:x.png"), folder_of(tmp_path / "b", "1.png")]
    with pytest.raises(RequestError, match="reads like one of a further place"):
        list_images(DataSpec(uri=places), (), 10)
