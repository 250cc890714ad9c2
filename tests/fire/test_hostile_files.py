"""Weights and specs that are built to do harm: nothing of them runs, and a sentence comes."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deconvoy import specs
from deconvoy.errors import DeconvoyError, RequestError
from tests.fire import mutations
from tests.fire.conftest import Fire, Tell
from tests.runs import run_inline, small_spec
from workers.job import settle
from workers.weights import read_weights
from workers.zfnet import zfnet_small


class Command:
    """Runs a command of the shell where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_pickles_given_as_weights_never_run(tmp_path: Path, tell: Tell) -> None:
    canary = tmp_path / "canary"
    evil = Command(f"touch {canary}")
    pickle.loads(pickle.dumps(evil))  # so the canary would sing
    assert canary.exists()
    canary.unlink()
    state = zfnet_small().state_dict()
    contents: dict[str, Any] = {
        "alone": evil,
        "beside tensors": {**state, "evil": evil},
        "as a state dict": {"state_dict": evil},
        "a model": zfnet_small(),
    }
    tried = 0
    for what, content in contents.items():
        for ending, zipped in ((".pt", True), (".pth", False)):
            place = tmp_path / f"w{ending}"
            torch.save(content, place, _use_new_zipfile_serialization=zipped)
            with pytest.raises(RequestError):
                run_inline(weighing(place), tmp_path / "run")
            tried += 1
            assert not canary.exists(), what
    for ending in (".pt", ".pth", ".safetensors"):
        (tmp_path / f"raw{ending}").write_bytes(pickle.dumps(evil))
        with pytest.raises(RequestError):
            read_weights(str(tmp_path / f"raw{ending}"))
        tried += 1
    assert not canary.exists() and not (tmp_path / "run").exists()
    tell("bad bytes", malicious_pickles=tried, of_which_ran=0)


def weighing(place: Path) -> Any:
    model = {"name": "deconvoy/zfnet_small", "weights": str(place)}
    return small_spec(model=model, data={"uri": "shapes?size=8"})


def itself(place: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, place)


def folded(place: Path) -> None:
    content: dict[str, Any] = {"x": 1}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, place)


def packed(place: Path) -> None:
    torch.save({"fc8.bias": torch.zeros(2**26)}, place)
    with zipfile.ZipFile(place) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in members.items():
            small.writestr(name, content)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a mapping in itself": (itself, "holds no tensors"),
    "a mapping of 2^40 ways": (folded, "holds no tensors"),
    "a packed archive": (packed, "is packed and would be"),
    "one number told to be 2^40": (
        lambda place: torch.save({"fc8.bias": torch.zeros(1).half().expand(2**40)}, place),
        "does not hold",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", BOMBS)
def test_bombs_given_as_weights_are_refused(tmp_path: Path, what: str) -> None:
    make, told = BOMBS[what]
    make(tmp_path / "w.pt")
    with pytest.raises(RequestError, match=told):
        read_weights(str(tmp_path / "w.pt"))


def one(shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"fc8.bias": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


HEADERS: dict[str, bytes] = {
    "a header of 2^60 bytes": mutations.safetensors_of({}, length=2**60),
    "a shape of 2^65": mutations.safetensors_of(one([2**62, 8], [0, 4]), b"0000"),
    "a shape below nothing": mutations.safetensors_of(one([-1], [0, 4]), b"0000"),
    "offsets beyond the file": mutations.safetensors_of(one([2**30], [0, 2**32]), b"0000"),
    "offsets backwards": mutations.safetensors_of(one([1], [4, 0]), b"0000"),
    "a header of brackets": mutations.safetensors_of(b"[" * 100_000),
    "no header": b"",
    "no tensors": mutations.safetensors_of({}),
    "none of anything": mutations.safetensors_of(one([0, 2**62], [0, 0])),
}


@pytest.mark.parametrize("what", HEADERS)
def test_hostile_headers_of_safetensors_are_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(HEADERS[what])
    with pytest.raises(RequestError):
        settle(weighing(tmp_path / "w.safetensors"))


def test_mutated_weights_are_refused_or_read(tmp_path: Path, fire: Fire, tell: Tell) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4).half()}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pt")
    count, refused = fire.of(100, 4000), 0
    for name in ("w.safetensors", "w.pt"):
        whole = (tmp_path / name).read_bytes()
        for number in range(count):
            place = tmp_path / f"m{Path(name).suffix}"
            place.write_bytes(mutations.mutated(whole, number))
            try:
                read_weights(str(place))
            except RequestError:
                refused += 1
    assert refused > count / 4
    tell("bad bytes", mutated_weights=2 * count, weights_refused=refused)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_fail_the_job_and_name_layer_and_image(
    tmp_path: Path, number: float
) -> None:
    state = zfnet_small().state_dict()
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] = number
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DeconvoyError, match="but activations must be finite: check the weights"):
        run_inline(weighing(tmp_path / "w.safetensors"), tmp_path / "run")


YAMLS = {
    "laughs": mutations.laughs(9),
    "laughs of merging": "a: &a {k: v}\n"
    + "".join(f"b{n}: &b{n} {{<<: [{'*a, ' * 9}*a]}}\n" for n in range(3)),
    "an alias of itself": "a: &a [*a]",
    "brackets": "layers: " + "[" * 20_000,
    "closed brackets": "layers: " + "[" * 2000 + "]" * 2000,
    "digits": "data: {limit: " + "9" * 5000 + "}",
    "no such day": "name: 2024-99-99",
    "an object": "model: !!python/object/apply:os.system ['touch canary']",
    "a NUL": "a: \0",
    "bytes": "model: !!binary aGk=",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", YAMLS)
def test_hostile_yaml_is_told_in_a_short_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(YAMLS[what])
    with pytest.raises(RequestError) as told:
        specs.from_file(tmp_path / "s.yaml")
    assert 0 < len(str(told.value)) < 5000
    assert not (tmp_path / "canary").exists()


# Specs ---------------------------------------------------------------------------------------

FIELDS = (
    "version name seed model weights weights_key arguments classes checkpoints data uri labels "
    "boxes limit max_bad transform where layers analyses kind k units ids sample storage max_side "
    "compute workers threads batch_size shard_size precision base edits training epochs validation"
).split()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "all", "top", "study", "projection", "occlusion", "shapes?size=4"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), below, max_size=4)
    ),
    max_leaves=12,
)
JOB: dict[str, Any] = {
    "model": {"name": "deconvoy/zfnet_small"},
    "data": {"uri": "shapes?size=4"},
    "layers": ["relu1"],
    "analyses": [{"kind": "top"}],
}
STUDY: dict[str, Any] = {"kind": "study", "base": "deconvoy/zfnet_small", "data": JOB["data"]}


def attempt(fields: Any, further: bool) -> bool:
    """Whether it is taken; RequestError or another of ours is the only way it may not be."""
    try:
        spec = specs.parse(fields)
        if further and not isinstance(spec, specs.StudySpec):
            settle(spec)
    except DeconvoyError as error:
        assert str(error)
        return False
    return True


def test_specs_of_any_form_are_taken_or_refused_with_a_sentence(fire: Fire, tell: Tell) -> None:
    tried = taken = 0

    @settings(
        max_examples=fire.of(300, 10_000),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from([JOB, STUDY, {}]), st.lists(st.sampled_from(FIELDS), max_size=2), VALUES)
    def try_one(whole: dict[str, Any], path: list[str], value: Any) -> None:
        nonlocal tried, taken
        tried += 1
        fields: Any = value
        if path:
            below = {path[1]: value} if path[1:] else value
            old = whole.get(path[0])
            both = isinstance(old, dict) and isinstance(below, dict)
            fields = {**whole, path[0]: {**old, **below} if both else below}
        elif whole:
            fields = whole
        taken += attempt(fields, further=tried % 20 == 0)

    try_one()
    tell("bad bytes", fuzzed_specs=tried, taken_of_them=taken)
