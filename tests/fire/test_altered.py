"""Test that no file of a finished run can be changed, cut short or lost without being noticed.

`verify` must name the damage.  What it does not name must mean nothing: everything read from the
run is then equal, value for value (a few bytes of Parquet and zip headers are of that kind).
"""

import io
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zarr

import deconvoy
from deconvoy.errors import DeconvoyError
from deconvoy.store import RunStore
from tests.fire.conftest import Fire, Tell
from tests.runs import assert_same_results, resume_inline, run_inline, small_spec
from workers import shards
from workers.topk import Partial
from workers.verify import verify

SEED = 20

FOR_PEOPLE = re.compile(r"ledger/(log.*|driver.*)")
"""Files that nothing is computed from."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every kind of file that a job has."""
    url = tmp_path_factory.mktemp("altered") / "run"
    top = {"kind": "top", "k": 2, "bottom": 2, "outliers": {"multiple": 3.0}}
    squares = {"kind": "occlusion", "images": {"ids": [0]}, "patch": 32, "stride": 32}
    moves = {"translation": [0, 4], "scale": None, "rotation": None}
    moved = {"kind": "invariance", "images": {"ids": [0, 1]}, **moves}
    shown = {"kind": "projection", "units": {"ids": [0, 1]}}
    spec = small_spec(
        data={"uri": "shapes?size=20&seed=1"},
        layers=["relu2", "logits"],
        analyses=[top, shown, {**squares, "units": ["relu2"]}, moved],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "COMPACT_EVERY", 2)  # of three; else of 64
        run_inline(spec, url)
    assert {path.rpartition("/")[2] for path in files_of(url) if path.endswith(".npz")} >= {
        "prefix-000001.npz", "part-000002.npz",
    }  # fmt: skip
    assert verify(str(url), 0).faults == []
    return url


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def files_of(run: Path) -> list[str]:
    return sorted(path for path in RunStore(run).paths() if not FOR_PEOPLE.fullmatch(path))


def damages(content: bytes, rng: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """Flipped bits, then the file cut off at random, before its last byte, and empty."""
    for _ in range(flips):
        place = rng.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        yield f"flipped at {place}", bytes(changed)
    for length in (rng.randrange(1, len(content)), len(content) - 1, 0):
        yield f"cut to {length}", content[:length]


def faults_of(run: Path) -> list[tuple[str, str]]:
    """What verifying finds: places and reasons; of a run that cannot be opened a sentence."""
    try:
        return [(fault.place, fault.reason) for fault in verify(str(run), 0).faults]
    except DeconvoyError as error:
        return [("", str(error))]


def means_the_same(one: bytes, other: bytes, path: str) -> bool:
    """Whether a damaged file still says what it said, all of it."""
    if path.endswith(".parquet"):
        return bool(_table(one).equals(_table(other)))
    if path.endswith(".npz"):
        return (
            Partial.from_bytes(one, path).to_bytes() == Partial.from_bytes(other, path).to_bytes()
        )
    return False


def _table(content: bytes) -> Any:
    return pq.read_table(io.BytesIO(content))


def same_array(run: Path, whole: Path, path: str) -> bool:
    """Whether the array that a chunk is of is read as it was."""
    array = path.partition("/c/")[0]
    values = [zarr.open_array(place / array, mode="r")[...].tobytes() for place in (run, whole)]  # type: ignore[union-attr]
    return values[0] == values[1]


@pytest.mark.timeout(3600)
def test_every_file_that_is_altered_is_found(
    fire: Fire, tell: Tell, whole: Path, run: Path
) -> None:
    """One of each kind of file in the short length, each file in the full one."""
    rng = random.Random(SEED)
    every = files_of(run)
    chosen = every if fire.full else _of_each_kind(every, rng)
    counts: Counter[str] = Counter()
    undetected: list[str] = []
    for path in chosen:
        content = (run / path).read_bytes()
        for what, changed in damages(content, rng, fire.of(1, 3)):
            (run / path).write_bytes(changed)
            counts["tried"] += 1
            try:
                faults = faults_of(run)
            except Exception as error:
                undetected.append(f"{path} {what}: {type(error).__name__}: {error}")
                continue
            if not faults:
                harmless = (
                    same_array(run, whole, path) if "/c/" in path
                    else means_the_same(content, changed, path)
                )  # fmt: skip
                counts["harmless"] += harmless
                if not harmless:
                    undetected.append(f"{path} {what}")
            else:
                counts["found"] += 1
                # The damaged file, its array or its folder is named, or the whole run refused.
                named = [place for place, _ in faults if not place or related(place, path)]
                if not named or not all(reason.strip() for _, reason in faults):
                    undetected.append(f"{path} {what}: told as {faults}")
        (run / path).unlink()
        counts["tried"] += 1
        found = any(not place or related(place, path) for place, _ in faults_of(run))
        counts["found"] += found
        if not found:
            undetected.append(f"{path} deleted")
        (run / path).write_bytes(content)
    tell(
        "altered files",
        altered_seed=SEED,
        files_of_a_run=len(every),
        files_altered=len(chosen),
        alterations=counts["tried"],
        alterations_found_by_verify=counts["found"],
        alterations_without_meaning=counts["harmless"],
        alterations_undetected=len(undetected),
    )
    assert undetected == []
    assert faults_of(run) == []


def related(place: str, path: str) -> bool:
    folder = path.rpartition("/")[0]
    return path.startswith(place) or place.startswith(folder) or place == "images"


def _of_each_kind(paths: list[str], rng: random.Random) -> list[str]:
    """One of every kind: by folder and suffix, numbers and units aside."""
    kinds: dict[str, list[str]] = {}
    for path in paths:
        array = path.partition("/c/")
        kind = f"{array[0].rpartition('/')[0]} chunk" if array[1] else re.sub(r"\d+", "N", path)
        kind = re.sub(r"layers/[^/]+/[^/]+/zarr", "layers/L/A/zarr", kind)
        kind = re.sub(r"(occlusion|invariance)/[^/]+/zarr", r"\1/A/zarr", kind)
        kinds.setdefault(kind, []).append(path)
    return [rng.choice(kinds[kind]) for kind in sorted(kinds)]


def test_a_broken_marker_stops_a_resumed_job_in_a_sentence_and_without_it_it_goes_on(
    fire: Fire, tell: Tell, whole: Path, run: Path
) -> None:
    """Of one shard, or of the first of them together.  Delete what the sentence names, resume, and
    the bits are the same."""
    rng = random.Random(SEED + 1)
    markers = sorted(path for path in files_of(run) if re.fullmatch(r"ledger/scan/.*\.npz", path))
    stopped = harmless = mended = 0
    for path in markers:
        content = (run / path).read_bytes()
        for _, changed in list(damages(content, rng, fire.of(1, 20))):
            (run / path).write_bytes(changed)
            try:
                resume_inline(run)
                assert means_the_same(content, changed, path)
                harmless += 1
            except DeconvoyError as error:
                assert re.search("is broken.*delete it, and `deconvoy resume`", str(error)), error
                assert deconvoy.open(run).status == "failed"
                stopped += 1
        (run / path).unlink()
        resume_inline(run)
        mended += 1
        assert_same_results(whole, run)
        assert faults_of(run) == []
    tell(
        "altered files", resumes_stopped_by_a_marker=stopped, resumed_to_the_same_bits=mended,
        markers_altered_without_meaning=harmless,
    )  # fmt: skip
