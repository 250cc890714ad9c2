"""What a person types: the commands end to end, and what wrong ones get."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import deconvoy
from deconvoy import queries
from service.cli import main
from service.doctor import Finding
from tests.runs import write_photographs
from tests.typing_in import Type, type_
from workers.zfnet import zfnet_small

__all__ = ["type_"]

SMALL = {
    "model": {"name": "deconvoy/zfnet_small"},
    "data": {"uri": "shapes?size=20&seed=3"},
    "layers": ["relu1", "relu2", "logits"],
    "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0, 1, 2]}}],
    "compute": {"batch_size": 4, "shard_size": 8},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def finished(spec: Path) -> Path:
    """A run made by the command line."""
    url = spec.parent / "run"
    with pytest.raises(SystemExit) as end:
        main(["run", str(spec), "--out", str(url), "--executor", "inline"])
    assert end.value.code == 0
    return url


def test_run_prints_what_it_found_and_what_to_type_next(type_: Type, spec: Path) -> None:
    url = spec.parent / "another"
    code, out, err = type_("run", spec, "--out", url, "--executor", "inline")
    assert code == 0
    assert "20 images" in out and "top-1" in out and f"deconvoy show {url}" in out
    assert "images scanned: 20 of 20" in err and "projections done" in err
    assert "weights    none given: random, seed 0" in err
    assert "transform  resize 64, crop 64, mean 0.49, 0.49, 0.49, std 0.26" in err
    assert "(the model's factory)" in err


def test_a_finished_run_is_resumed_without_doing_anything(type_: Type, finished: Path) -> None:
    before = (finished / "ledger/log.jsonl").read_text().count('"granted"')
    code, out, _ = type_("resume", finished, "--executor", "inline")
    assert code == 0 and "20 images" in out
    assert (finished / "ledger/log.jsonl").read_text().count('"granted"') == before


def test_a_folder_comes_before_a_job_of_the_same_name(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECONVOY_URL", "http://127.0.0.1:9")  # where nobody is
    code, _, err = type_("resume", "squeeze-1f0a")
    assert code == 2 and "no service answers at http://127.0.0.1:9" in err
    (tmp_path / "squeeze-1f0a").mkdir()
    code, _, err = type_("resume", "squeeze-1f0a")
    assert code == 2 and "There is no run" in err and "service" not in err


def test_show_goes_from_run_to_layer_to_unit(type_: Type, finished: Path) -> None:
    assert "relu1" in type_("show", finished)[1]
    assert "×" in type_("show", finished, "relu2")[1]
    _, out, _ = type_("show", finished, "relu2", "1")
    assert "relu2, unit 1" in out
    code, out, _ = type_("show", finished, "relu2", "1", "--json")
    hits = json.loads(out)
    assert code == 0 and [hit["rank"] for hit in hits] == list(range(len(hits)))
    assert hits == [r for r in deconvoy.open(finished).table("relu2").to_pylist() if r["unit"] == 1]
    whole = json.loads(type_("show", finished, "--json")[1])
    assert [layer["layer"] for layer in whole["layers"]] == SMALL["layers"]


def test_colons_and_brackets_are_printed_as_they_are(type_: Type, tmp_path: Path) -> None:
    classes = [":smile:", "[red]wine[/red]", *map(str, range(8))]
    model = {"name": "deconvoy/zfnet_small", "classes": classes}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SMALL | {"model": model}))
    url = tmp_path / "[red]:cat:[/red]"
    code, out, _ = type_("run", tmp_path / "job.yaml", "--out", url, "--executor", "inline")
    assert code == 0 and str(url) in out
    assert str(url) in type_("show", url)[1]
    out = type_("show", url, "logits")[1]
    assert ":smile:" in out and "[red]wine[/red]" in out
    assert "my.py:cat: is" in type_("layers", "my.py:cat: is")[2]
    assert ":cat:" in type_("plan", tmp_path / "job.yaml", "--:cat:")[2]


def test_of_how_many_images_labels_and_top1_are_is_said(type_: Type, tmp_path: Path) -> None:
    paths = write_photographs(tmp_path / "images", 9)
    names = sorted(path.relative_to(tmp_path / "images").as_posix() for path in paths)
    rows = [f"{name},{number % 2}" for number, name in enumerate(names[:6])]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    data = {"uri": str(tmp_path / "images"), "labels": str(tmp_path / "labels.csv")}
    spec = SMALL | {"data": data, "layers": ["relu1"], "analyses": [{"kind": "top"}]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    job = ["run", tmp_path / "job.yaml", "--executor", "inline", "--out"]
    code, out, err = type_(*job, tmp_path / "run")
    assert code == 0 and "labels.csv, for 6 of 9 images" in err
    assert "9 images; top-1" in out and "% of 6 labelled;" in out
    code, out, _ = type_(*job, tmp_path / "wrong", "--set", "data.where.wrong=true")
    wrong = deconvoy.open(tmp_path / "wrong").attributes["results"]["images"]
    assert code == 0 and 0 < wrong < 6
    assert f"{wrong} images that are predicted wrongly; top-1" in out
    assert "% of all 6 labelled;" in out
    assert f"{wrong} images that are predicted wrongly" in type_("show", tmp_path / "wrong")[1]


def test_figure_of_a_layer_and_of_all(type_: Type, finished: Path, tmp_path: Path) -> None:
    for arguments in (["relu2", "--units", "0-1,2"], []):
        path = tmp_path / f"{len(arguments)}.png"
        code, out, _ = type_("figure", finished, *arguments, "-o", path)
        assert code == 0 and str(path) in out and path.read_bytes()[1:4] == b"PNG"


def test_a_unit_named_twice_is_drawn_once(type_: Type, finished: Path, tmp_path: Path) -> None:
    for units in ("1,2", "1,1,2,1-2"):
        assert type_("figure", finished, "relu2", "--units", units, "-o", tmp_path / f"{units}.png")
    assert (tmp_path / "1,2.png").read_bytes() == (tmp_path / "1,1,2,1-2.png").read_bytes()


def test_the_units_of_a_figure_are_unless_told_those_that_its_help_says(
    type_: Type, spec: Path, tmp_path: Path
) -> None:
    said = " ".join(type_("figure", "--help")[1].replace("│", " ").split())
    promised = re.search(r"default: of those that the run projected, the first (\d+)\.", said)
    assert promised, said
    ids = [unit for unit in range(3, 32) if unit % 3]
    analyses = f"analyses=[{{kind: top}}, {{kind: projection, units: {{ids: {ids}}}}}]"
    job = ["run", spec, "--executor", "inline", "--set", "layers=[relu1]", "--set", analyses]
    assert type_(*job, "--out", tmp_path / "run")[0] == 0
    first = ",".join(map(str, ids[: int(promised[1])]))
    for name, units in (("told", ["--units", first]), ("not", [])):
        figure = ["figure", tmp_path / "run", "relu1", *units, "-o", tmp_path / f"{name}.png"]
        assert type_(*figure)[0] == 0
    assert (tmp_path / "told.png").read_bytes() == (tmp_path / "not.png").read_bytes()


def test_the_version_is_printed(type_: Type) -> None:
    code, out, _ = type_("--version")
    assert code == 0 and out.startswith("deconvoy ")


def test_a_run_that_can_project_nothing_says_so(
    type_: Type, spec: Path, finished: Path, tmp_path: Path
) -> None:
    job = ["run", spec, "--executor", "inline", "--set", "layers=[logits]"]
    asked = ["--set", "analyses=[{kind: top}, {kind: projection}]"]
    code, _, err = type_(*job, *asked, "--out", tmp_path / "run")
    assert code == 0
    assert "projection none can be made (logits: neurons, which are projected only where" in err
    code, _, err = type_("figure", tmp_path / "run")
    assert code == 2 and "has projections to draw: `deconvoy plan`" in err
    none = ["--set", "analyses=[{kind: top}]"]
    code, _, err = type_(*job, *none, "--out", tmp_path / "top")
    assert code == 0 and "none can be made" not in err
    assert "its analyses name no projection" in type_("figure", tmp_path / "top")[2]


def test_layers_lists_the_receptive_fields(type_: Type) -> None:
    code, out, _ = type_("layers", "deconvoy/zfnet_small", "--json")
    found = json.loads(out)
    assert code == 0 and found["layers"][0]["receptive_field"]["size"] == [7, 7]
    assert "relu1" in type_("layers", "deconvoy/zfnet_small")[1]


def test_plan_says_what_a_job_would_take(type_: Type, spec: Path) -> None:
    code, out, err = type_("plan", spec, "--set", "data.limit=10")
    assert code == 0 and "10" in out and "relu1" in out
    assert err.count("measuring a few of its images") == 1
    assert "weights    none given: random, seed 0" in out
    assert json.loads(type_("plan", spec, "--json")[1])["layers"][0]["name"] == "relu1"


def test_query_answers_as_a_table_and_as_json(type_: Type, finished: Path) -> None:
    run = deconvoy.open(finished)
    code, out, _ = type_("query", finished, "nearest", "relu2", "1", "limit=3")
    assert code == 0 and "jaccard" in out and len(out.splitlines()) == 4
    code, out, _ = type_("query", finished, "purity", "layer=relu2", "--json")
    assert code == 0 and json.loads(out) == queries.purity(run, "relu2").to_pylist()
    code, out, _ = type_("query", finished, "dead", "logits")
    assert (code, out.strip()) == (0, "Nothing found.")


def test_help_names_every_query(type_: Type) -> None:
    code, out, _ = type_("query", "--help")
    told = re.sub(r"[^a-z,.:-]+", " ", out.partition("Ask a run:")[2].partition(".")[0])
    assert code == 0
    assert told.replace(" ", "").split(",") == list(queries.QUERIES)


def test_query_without_a_name_lists_the_queries(type_: Type, finished: Path) -> None:
    code, out, _ = type_("query", finished)
    assert code == 0
    for query in queries.QUERIES.values():
        assert queries.usage(query) in out
    listed = json.loads(type_("query", finished, "--json")[1])
    assert list(listed) == list(queries.QUERIES)


def test_an_argument_with_an_equals_sign_is_given_by_name(type_: Type, finished: Path) -> None:
    # `a/b=c.png` is no name=value; `x=y.png` would be one, and is given as image=x=y.png
    assert "no image 'a/b=c.png'" in type_("query", finished, "image", "a/b=c.png")[2]
    assert "no image 'x=y.png'" in type_("query", finished, "image", "image=x=y.png")[2]


def test_export_says_what_it_wrote(type_: Type, finished: Path, tmp_path: Path) -> None:
    hits = deconvoy.open(finished).table().num_rows
    code, out, _ = type_("export", finished, "-o", tmp_path / "hits.csv")
    assert code == 0 and f"{tmp_path / 'hits.csv'}: {hits:,} hits" in out
    code, out, _ = type_("export", finished, "-o", tmp_path / "run.html", "--units", "1")
    assert code == 0 and "the report" in out
    assert (tmp_path / "run.html").read_text().count("<img ") == 2


def test_diff_tells_layer_by_layer(type_: Type, finished: Path) -> None:
    code, out, _ = type_("diff", finished, finished)
    assert code == 0 and "nothing: weights, images" in out and "relu2" in out
    found = json.loads(type_("diff", finished, finished, "--json")[1])
    assert [layer["kept"] for layer in found["layers"]] == [1.0, 1.0, 1.0]
    assert found["top1_before"] == found["top1_after"] == deconvoy.open(finished).top1()


def test_verify_ends_with_1_where_anything_differs(
    type_: Type, finished: Path, tmp_path: Path
) -> None:
    code, out, _ = type_("verify", finished, "--sample", "30")
    assert code == 0 and "All is well" in out and "30 hits recomputed" in out
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/layers/relu1/scale/c/0/0").unlink()
    code, out, err = type_("verify", tmp_path / "run", "--sample", "0")
    assert code == 1 and "layers/relu1/scale/c/0/0: is missing" in out and "1 fault: copy" in err
    code, out, _ = type_("verify", tmp_path / "run", "--sample", "0", "--json")
    assert code == 1 and len(json.loads(out)["faults"]) == 1


def test_doctor_ends_with_1_where_anything_is_wrong(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("memory", "little", "close [other] programs"), Finding("cores", "2")]
    monkeypatch.setattr("service.doctor.examine", lambda: found)
    code, out, err = type_("doctor")
    assert code == 1 and "→ close [other] programs" in out and "1 of 2" in err and "memory" in err
    code, out, _ = type_("doctor", "--json")
    assert code == 1 and json.loads(out)[1] == {"name": "cores", "found": "2", "remedy": None}
    del found[0]
    assert type_("doctor")[0] == 0


WRONG: list[tuple[str, list[str], int, str]] = [
    ("no such command", ["figur"], 2, "No such command"),
    ("no such spec", ["plan", "nowhere.yaml"], 2, "cannot be read"),
    ("unknown field", ["plan", "{spec}", "--set", "data.urii=x"], 2, "did you mean 'uri'"),
    ("no number", ["plan", "{spec}", "--set", "data.limit=many"], 2, "data.limit"),
    (
        "k of 0",
        ["plan", "{spec}", "--set", "analyses=[{kind: top, k: 0}]"],
        2,
        "it takes 1 or more",
    ),
    ("no key", ["plan", "{spec}", "--set", "limit"], 2, "--set takes key=value"),
    ("no such model", ["layers", "torchvision/resnt18"], 2, "did you mean torchvision/resnet18"),
    ("no known form", ["layers", "resnet18"], 2, "did you mean torchvision/resnet18"),
    ("no such data", ["plan", "{spec}", "--set", "data.uri=nowhere"], 2, "does not exist"),
    ("no such layer", ["plan", "{spec}", "--set", "layers=[rel1]"], 2, "nearest: relu1"),
    ("no workers", ["run", "{spec}", "--out", "x", "--workers", "0"], 2, "than or equal to 1"),
    ("taken", ["run", "{spec}", "--out", "{run}", "--executor", "inline"], 2, "--overwrite"),
    ("not a run", ["show", "{folder}"], 2, "There is no run"),
    ("nothing to resume", ["resume", "{folder}"], 2, "There is no run"),
    ("unknown layer", ["show", "{run}", "relu9"], 2, "nearest"),
    ("unknown unit", ["show", "{run}", "relu1", "99"], 2, "units 0 to 31"),
    ("no such units", ["figure", "{run}", "relu1", "--units", "a-b"], 2, "0-15"),
    ("backwards", ["figure", "{run}", "relu1", "--units", "5-3"], 2, "0-15"),
    ("odd digits", ["figure", "{run}", "relu1", "--units", "²"], 2, "0-15"),
    ("no YAML", ["plan", "{spec}", "--set", "name=[a"], 2, "not valid YAML"),
    ("no layers", ["plan", "{spec}", "--set", "layers=[]"], 2, "at least 1"),
    (
        "units nowhere",
        [
            "run",
            "{spec}",
            "--out",
            "x",
            "--executor",
            "inline",
            "--set",
            "analyses=[{kind: top}, {kind: projection, units: {ids: [999]}}]",
        ],
        2,
        "has such a unit",
    ),
    (
        "units nowhere, foretold",
        [
            "plan",
            "{spec}",
            "--set",
            "analyses=[{kind: top}, {kind: projection, units: {ids: [999]}}]",
        ],
        2,
        "has such a unit",
    ),
    (
        "no image to cover",
        [
            "plan",
            "{spec}",
            "--set",
            "analyses=[{kind: top}, {kind: occlusion, images: {ids: [20]}}]",
        ],
        2,
        "analyses.occlusion.images.ids",
    ),
    ("not projected", ["figure", "{run}", "relu1", "--units", "9"], 2, "only units 0, 1, 2 were"),
    ("no picture", ["figure", "{run}", "relu1", "-o", "{folder}/f.txt"], 2, ".png"),
    ("no such query", ["query", "{run}", "nerest"], 2, "nearest: nearest"),
    ("no such argument", ["query", "{run}", "dead", "lyer=relu1"], 2, "nearest: layer"),
    ("a name twice", ["query", "{run}", "dead", "layer=a", "layer=b"], 2, "twice"),
    ("order", ["query", "{run}", "nearest", "unit=1", "relu1"], 2, "without names first"),
    ("no such image", ["query", "{run}", "image", "20"], 2, "ids run from 0 to 19"),
    ("no such format", ["export", "{run}", "-o", "{folder}/f.txt"], 2, ".parquet"),
    (
        "out is a file",
        ["run", "{spec}", "--out", "{spec}"],
        2,
        "no run, and stays as it is: choose",
    ),
    ("out is no run", ["run", "{spec}", "--out", "{spec}/.."], 2, "a file and no folder"),
    ("out is empty", ["run", "{spec}", "--out", ""], 2, "(--out) is empty"),
    ("out below a file", ["run", "{spec}", "--out", "{spec}/x"], 2, "a file and no folder"),
    ("-o below a file", ["export", "{run}", "-o", "{spec}/x.csv"], 2, "a file and no folder"),
    ("figure below", ["figure", "{run}", "relu1", "-o", "{spec}/x.png"], 2, "a file and no folder"),
    ("nowhere to", ["export", "{run}"], 2, "Missing option"),
    ("diff with none", ["diff", "{run}", "{folder}"], 2, "There is no run"),
    ("verify none", ["verify", "{folder}"], 2, "There is no run"),
    ("sample of −1", ["verify", "{run}", "--sample", "-1"], 2, "than or equal to 0"),
    ("units of no layer", ["figure", "{run}", "--units", "0-3"], 2, "needs a LAYER"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "says"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_wrong_requests_get_one_sentence(
    type_: Type,
    spec: Path,
    finished: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    places = {"spec": spec, "run": finished, "folder": tmp_path}
    for name, place in places.items():
        arguments = [argument.replace(f"{{{name}}}", str(place)) for argument in arguments]
    got, _, err = type_(*arguments)
    said = " ".join(err.replace("│", " ").split())
    assert got == code, said
    assert says in said
    assert "Traceback" not in err
    assert "measuring" not in said, "it is refused first"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_job_cleanly_and_resume_goes_on(
    spec: Path, finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    url = tmp_path / "run"
    command = [sys.executable, "-m", "service.cli"]
    job = ["run", str(spec), "--out", str(url), "--executor", "inline"]
    many = ["--set", "data.uri=shapes?size=3000&seed=3"]
    with subprocess.Popen(
        [*command, *job, *many], stderr=subprocess.PIPE, text=True,
        # What runs the tests in the background may have told them to ignore it.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as running:  # fmt: skip
        log = url / "ledger/log.jsonl"
        for _ in range(1200):
            if log.exists() and '"committed"' in log.read_text():
                break
            time.sleep(0.1)
        running.send_signal(number)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 130, told
    assert f"Stopped. Nothing finished is lost: `deconvoy resume {url}` goes on." in told
    assert "Traceback" not in told
    assert deconvoy.open(url).status == "stopped"


def test_output_that_nobody_reads_any_more_ends_quietly(finished: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "query", str(finished), "purity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()  # as head does
        told = running.stderr.read()
    assert running.returncode == 141
    assert told == b""


def test_a_file_named_like_one_of_our_packages_is_told(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text("mine = True\n")
    code = "import sys; sys.path.insert(0, '.'); from service.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "layers", "deconvoy/zfnet_small"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert found.returncode == 2
    assert "workers.py' is named like the package 'workers' of deconvoy" in (found.stderr)
    assert "Traceback" not in found.stderr


def test_what_is_stripped_from_weights_is_said(spec: Path, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in zfnet_small().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    found = subprocess.run(
        [sys.executable, "-m", "service.cli", "plan", str(spec), "--set",
         f"model.weights={tmp_path / 'w.pt'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "stripping the prefix 'module.'" in found.stderr
    assert "under 'state_dict'" in found.stderr


def test_a_process_ends_before_the_interpreter_is_taken_down_and_after_all_else() -> None:
    """Threads of libraries that ask for it then would abort the process, after its answer."""
    code = (
        "import atexit, sys\n"
        "from service import cli\n"
        "class Loud:\n"
        "    def __del__(self): print('taken down')\n"
        "sys.modules['loud'] = Loud()\n"
        "cli.main = lambda: (atexit.register(print, 'registered'), print('answer'), sys.exit(7))\n"
        "cli.command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 7 and done.stdout.split() == ["answer", "registered"]
