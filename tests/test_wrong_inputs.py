"""A table of wrong inputs: what was given, the exit code, the sentence.

Each row writes its files and returns the command; nothing may be left half-written where a run
was refused, and nobody ever sees a traceback.  What is wrong in a spec alone is in ``test_cli``.
"""

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import deconvoy
from deconvoy.errors import ClusterTooSmall
from deconvoy.spec import JobSpec
from tests.runs import write_photographs
from tests.typing_in import Type, type_
from workers import pipeline
from workers.executors.clusters import require_room
from workers.zfnet import zfnet_small

__all__ = ["type_"]

Case = Callable[[Path], list[str | Path]]


def run(folder: Path, *more: str, **changes: Any) -> list[str | Path]:
    """`deconvoy run` of a small spec, changed."""
    spec: dict[str, Any] = {
        "model": {"name": "deconvoy/zfnet_small"},
        "data": {"uri": "shapes?size=8&seed=3"},
        "layers": ["relu1"],
        "analyses": [{"kind": "top"}],
        "compute": {"batch_size": 4, "shard_size": 8},
    } | changes
    (folder / "job.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    out = ["--out", folder / "run", "--executor", "inline", *more]
    return ["run", folder / "job.yaml", *out]


def finished(folder: Path, type_: Type) -> Path:
    code, _, err = type_(*run(folder))
    assert code == 0, err
    return folder / "run"


def with_weights(tensors: Callable[[Path], None]) -> Case:
    def case(folder: Path) -> list[str | Path]:
        tensors(folder / "w.pt")
        model = {"name": "deconvoy/zfnet_small", "weights": str(folder / "w.pt")}
        return run(folder, model=model)

    return case


def with_model(body: str) -> Case:
    def case(folder: Path) -> list[str | Path]:
        (folder / "mine.py").write_text(body, encoding="utf-8")
        return run(folder, model={"name": f"{folder / 'mine.py'}:make"})

    return case


def with_images(prepare: Callable[[Path], None], **data: Any) -> Case:
    def case(folder: Path) -> list[str | Path]:
        (folder / "images").mkdir()
        prepare(folder)
        files = ("labels", "boxes")
        fields = {k: str(v).format(folder=folder) if k in files else v for k, v in data.items()}
        return run(folder, data={"uri": str(folder / "images"), **fields})

    return case


def narrower(place: Path) -> None:
    state = zfnet_small(7).state_dict()
    torch.save({"state_dict": state}, place)


def two_broken_of_ten(folder: Path) -> None:
    for place in write_photographs(folder / "images", 10)[:2]:
        place.write_bytes(b"GIF89a")


def labels_of_others(folder: Path) -> None:
    write_photographs(folder / "images", 4)
    (folder / "labels.csv").write_text("path,label\nelsewhere/1.png,3\n", encoding="utf-8")


def label_too_high(folder: Path) -> None:
    write_photographs(folder / "images", 4)
    (folder / "labels.csv").write_text("path,label\na/000.png,10\n", encoding="utf-8")


def with_boxes(*lines: str, header: str = "path,x0,y0,x1,y1") -> Case:
    def prepare(folder: Path) -> None:
        write_photographs(folder / "images", 4)
        text = "".join(f"{line}\n" for line in (header, *lines))
        (folder / "boxes.csv").write_text(text, encoding="utf-8")

    return with_images(prepare, boxes="{folder}/boxes.csv")


def an_unfinished_run(folder: Path) -> list[str | Path]:
    run(folder)
    pipeline.create(JobSpec.from_file(folder / "job.yaml"), str(folder / "old"))
    return extend(folder, "old")


def extend(folder: Path, url: str) -> list[str | Path]:
    more = ["--data", "shapes?size=4&seed=4", "--out", folder / "run", "--executor", "inline"]
    return ["extend", folder / url, *more]


REFUSED: dict[str, tuple[Case, int, str]] = {
    "weights that are not there": (
        lambda folder: run(
            folder, model={"name": "deconvoy/zfnet_small", "weights": str(folder / "no.pt")}
        ), 2, "no.pt' is no file here and no weights name of this model"),
    "weights of another shape": (
        with_weights(narrower), 2, "fc8.bias is (7,), the model's (10,)"),
    "weights that are text": (
        with_weights(lambda place: place.write_text("weights")) , 2, "cannot be read as tensors"),
    "a whole pickled model": (
        with_weights(lambda place: torch.save(zfnet_small(), place)), 2, "whole pickled models"),
    "a factory that raises": (
        with_model("def make():\n    raise KeyError('licence')"), 2, "its factory raised KeyError"),
    "a factory that returns no module": (
        with_model("def make():\n    return 3"), 2, "its factory returned int"),
    "a file that does not run": (with_model("def make(:"), 2, "the file raised SyntaxError"),
    "a file without the factory": (
        with_model("def other(): ..."), 2, "no callable 'make' in it; it has other"),
    "an empty folder": (with_images(lambda folder: None), 2, "holds no images"),
    "more broken than max_bad": (
        with_images(two_broken_of_ten), 1, "2 of 10 images are unreadable, more than data.max_bad"),
    "labels of other images": (
        with_images(labels_of_others, labels="{folder}/labels.csv"), 2, "names none of the images"),
    "labels beyond the outputs": (
        with_images(label_too_high, labels="{folder}/labels.csv"), 2,
        "'10' of 'a/000.png' is neither an output index below 10"),
    "a labels file that is not there": (
        with_images(labels_of_others, labels="{folder}/gone.csv"), 2, "gone.csv' cannot be read"),
    "a boxes file that is not there": (
        with_images(labels_of_others, boxes="{folder}/gone.csv"), 2, "gone.csv' cannot be read"),
    "boxes of other images": (
        with_boxes("elsewhere/1.png,1,1,5,5"), 2,
        "names none of the images; its paths are named as the images are, as in 'a/000.png'"),
    "boxes without a column": (
        with_boxes("a/000.png,1,1,5", header="path,x,y,w"), 2,
        "has path, x, y, w, but its columns are path, x0, y0, x1, y1"),
    "an empty boxes file": (with_boxes(), 2, "has no rows, but its columns are path, x0"),
    "a box that is no numbers": (
        with_boxes("a/000.png,1,1,left,5"), 2, "row 1 ('a/000.png'): x0 '1', y0 '1', x1 'left'"),
    "a box whose corners are reversed": (
        with_boxes("a/000.png,30,1,5,5"), 2, "the box 30, 1, 5, 5 ends before it begins"),
    "a box left of its file": (
        with_boxes("a/000.png,-9,1,5,5"), 2, "the box begins at -9, 1, outside the file"),
    "a box beyond its file": (
        with_boxes("b/001.png,1,1,90,5"), 2,
        "'b/001.png': The box 1, 1, 90, 5 reaches beyond its file of 80×81 pixels"),
    "boxes that are shares": (
        with_boxes("a/000.png,0.1,0.1,0.5,1"), 2, "no coordinate is above 1, so they are shares"),
    "boxes of shapes": (
        lambda folder: run(folder, data={"uri": "shapes?size=8", "boxes": "boxes.csv"}), 2,
        "shapes knows its own boxes; leave it out"),
    "no place to write": (
        lambda folder: [*run(folder)[:3], "/proc/nowhere/run", "--executor", "inline"], 1, "/proc"),
    "a file where the output's folder should be": (
        lambda folder: [*run(folder)[:3], folder / "job.yaml/run", "--executor", "inline"], 2,
        "job.yaml"),
    "extending a run that is not there": (lambda folder: extend(folder, "gone"), 2, "is no run"),
    "extending a run that is not finished": (
        an_unfinished_run, 2, "is running, but only a finished one can be extended"),
    "extending a run by nothing": (
        lambda folder: ["extend", folder / "old", "--out", folder / "run"], 2,
        "Missing option '--data'"),
    "two workers inline": (lambda folder: run(folder, "--workers", "2"), 2, "has one worker"),
    "an address inline": (
        lambda folder: run(folder, "--address", "10.0.0.1:6379"), 2, "is for the ray executor"),
    "more GPUs than there are": (
        lambda folder: run(folder, "--set", "compute.gpus_per_worker=64"), 2,
        "compute.gpus_per_worker is 64, but torch sees"),
    "layers of another model": (
        lambda folder: run(folder, layers=["features.0"]), 2, "no layer matches 'features.0'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_input_gets_its_exit_code_and_its_sentence(
    type_: Type, tmp_path: Path, what: str
) -> None:
    case, code, sentence = REFUSED[what]
    got, _, err = type_(*case(tmp_path))
    said = " ".join(err.split())
    assert (got, sentence in said) == (code, True), said
    assert "Traceback" not in err
    if code == 2:
        assert not (tmp_path / "run").exists(), "a refused run left something"


def test_labels_of_images_that_are_not_there_are_told_and_the_others_hold(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those of pytest would keep the command line from putting up its own.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    write_photographs(tmp_path / "images", 4)
    lines = ["path,label", "a/000.png,3", *(f"gone/{n}.png,1" for n in range(5)), "gone/0.png,2"]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    data = {"uri": str(tmp_path / "images"), "labels": str(tmp_path / "labels.csv")}
    code, _, err = type_(*run(tmp_path, data=data))
    said = " ".join(err.split())
    assert code == 0, said
    assert re.search(
        r"WARNING: data\.labels '.*labels\.csv': 5 of the 6 images it names are not below the data "
        r"folder \('gone/0\.png', 'gone/1\.png', 'gone/2\.png', …\): .* mend the paths",
        said,
    ), said
    labels = deconvoy.open(tmp_path / "run").images().column("label").to_pylist()
    assert labels == [3, None, None, None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_written(
    type_: Type, tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "full").write_bytes(bytes(300_000))
    code, _, err = type_(*run(tmp_path)[:3], small_disk / "run", "--executor", "inline")
    said = " ".join(err.split())
    assert (code, "free some space or choose another --out" in said) == (1, True), said
    assert not (small_disk / "run").exists()


def test_a_disk_that_fills_up_under_way_is_told_in_a_sentence_and_resume_goes_on(
    type_: Type, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconvoy.store.FolderStore.bytes_free", lambda _: 10**12)
    url, inline = small_disk / "run", ("--executor", "inline")
    (small_disk / "full").write_bytes(bytes(260_000))
    code, _, err = type_(*run(tmp_path)[:3], url, *inline)
    said = " ".join(err.split())
    assert (code, "No space left on device" in said) == (1, True), said
    assert f"deconvoy resume {url}" in said and "Traceback" not in err
    (small_disk / "full").unlink()
    assert type_("resume", url, *inline)[0] == 0
    assert type_("verify", url, "--sample", "0")[0] == 0


def test_gpus_that_no_node_has_are_refused_on_ray_without_a_cluster() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}]
    for gpus in (0.0, 0.5, 2.0):
        require_room(nodes, 4.0, gpus)
    with pytest.raises(ClusterTooSmall, match=r"with 3 GPUs and 4 cores .* largest has 2 GPUs"):
        require_room(nodes, 4.0, 3.0)
    with pytest.raises(ClusterTooSmall, match=r"has 0 GPUs .* Lower compute\.gpus_per_worker"):
        require_room(nodes[:1], 4.0, 1.0)


def test_one_broken_image_among_good_ones_is_skipped_and_named(type_: Type, tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 8)[5].write_bytes(b"")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.2}
    code, out, err = type_(*run(tmp_path, data=data))
    assert code == 0
    assert "1 unreadable ones skipped" in out
    skipped = deconvoy.open(tmp_path / "run").images().to_pylist()[6]
    assert skipped["uri"] == "b/005.png" and "not readable as an image" in skipped["skipped"]


def test_a_run_that_failed_for_good_says_why_and_promises_no_resume(
    type_: Type, tmp_path: Path
) -> None:
    data = {"uri": str(tmp_path / "images")}
    two_broken_of_ten(tmp_path)
    assert type_(*run(tmp_path, data=data))[0] == 1
    code, out, _ = type_("show", tmp_path / "run")
    assert code == 0 and "It failed: 2 of 10 images are unreadable" in out
    assert "start a new run" in out and "resume" not in out
    code, _, err = type_("extend", tmp_path / "run", "--data", "shapes", "--out", tmp_path / "more")
    assert code == 2 and "start a new run" in err and "resume" not in err
    change_attribute(tmp_path / "run", state={"status": "failed", "error": "No [red]space[/red]"})
    out = type_("show", tmp_path / "run")[1]
    assert "It failed: No [red]space[/red]" in out and "deconvoy resume" in out
    err = type_("extend", tmp_path / "run", "--data", "shapes", "--out", tmp_path / "more")[2]
    assert "is failed, but only a finished one can be extended: `deconvoy resume" in err


SPOILED: dict[str, tuple[Callable[[Path], None], list[str], int, str]] = {
    "a newer format": (
        lambda url: change_attribute(url, format="deconvoy-run/99"), ["show"], 1,
        "'deconvoy-run/99', but this version"),
    "no metadata": (lambda url: (url / "zarr.json").unlink(), ["show"], 2, "There is no run"),
    "cut metadata": (
        lambda url: (url / "zarr.json").write_text('{"zarr_form'), ["show"], 1, "is broken"),
    "a cut array": (
        lambda url: cut(url / "layers/relu1/score/c/0/0"), ["show", "relu1"], 1,
        "is broken"),
    "a layer that is gone": (
        lambda url: shutil.rmtree(url / "layers/relu1"), ["show", "relu1"], 2, "no results yet"),
    "no images": (
        lambda url: shutil.rmtree(url / "images"), ["show", "relu1"], 1,
        "are missing (images/ has 0 of 8 images): `deconvoy verify"),
    "no array": (
        lambda url: shutil.rmtree(url / "layers/relu1/box"), ["show", "relu1", "0"], 1,
        "run' has no array 'layers/relu1/box': `deconvoy verify"),
    "another spec": (
        lambda url: change_spec(url), ["resume", "--executor", "inline"], 2,
        "began with another listing_fingerprint"),
}  # fmt: skip


def change_attribute(url: Path, **values: Any) -> None:
    content = json.loads((url / "zarr.json").read_text())
    content["attributes"].update(values)
    (url / "zarr.json").write_text(json.dumps(content))


def change_spec(url: Path) -> None:
    content = json.loads((url / "zarr.json").read_text())
    content["attributes"]["spec"]["data"]["uri"] = "shapes?size=9&seed=3"
    content["attributes"]["state"] = {"status": "stopped"}
    (url / "zarr.json").write_text(json.dumps(content))


def cut(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-9])


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_run_is_told_in_a_sentence(type_: Type, tmp_path: Path, what: str) -> None:
    spoil, (command, *more), code, sentence = SPOILED[what]
    url = finished(tmp_path, type_)
    spoil(url)
    got, _, err = type_(command, url, *more)
    said = " ".join(err.split())
    assert (got, sentence in said) == (code, True), said
    assert "Traceback" not in err
