"""Test the job spec: what it accepts, that it survives JSON, and the sentence for what is wrong."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deconvoy import JobSpec, specs
from deconvoy.errors import RequestError
from deconvoy.spec import Ids, ProjectionSpec, Sample, TopSpec, Transform
from deconvoy.study_spec import StudySpec

LEAST: dict[str, Any] = {"model": {"name": "deconvoy/zfnet"}, "data": {"uri": "photos"}}

EVERYTHING: dict[str, Any] = {
    "version": 1,
    "name": "squeeze-photos",
    "seed": 3,
    "model": {
        "name": "torchvision/squeezenet1_1",
        "weights": "weights.safetensors",
        "weights_key": "ema",
        "arguments": {"num_classes": 16},
        "classes": ["cat", "dog"],
        "checkpoints": ["epoch-1.safetensors"],
    },
    "data": {
        "uri": "photos",
        "labels": "labels.csv",
        "limit": 100,
        "max_bad": 0.5,
        "transform": {"resize": 256, "crop": 224, "mean": [0, 0, 0], "std": [1, 1, 1]},
    },
    "layers": ["features.*", "logits"],
    "analyses": [
        {
            "kind": "top",
            "k": 5,
            "bottom": 1,
            "per_class": 2,
            "bands": {"count": 3, "examples": 4},
            "outliers": {"multiple": 2.5, "at_most": 7},
        },
        {
            "kind": "projection",
            "method": "guided",
            "layers": ["features.3"],
            "units": {"sample": 0.25},
        },
        {
            "kind": "occlusion",
            "images": {"top_of": [{"layer": "features.3", "unit": 7}]},
            "patch": 12,
            "stride": 5,
            "fill": [1.0, 2.0, 255.0],
            "top5": True,
            "units": ["features.*"],
        },
    ],
    "storage": {"max_side": 64, "projection": "float16"},
    "compute": {
        "workers": 2,
        "gpus_per_worker": 0.5,
        "threads": 4,
        "batch_size": 8,
        "shard_size": 10,
        "precision": "float32",
    },
}


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The least spec with one field set; dots for depth."""
    fields: dict[str, Any] = json.loads(json.dumps(LEAST))
    *parents, last = path.split(".")
    place = fields
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return fields


def message_of(fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        JobSpec.parse(fields)
    return str(caught.value)


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_is_a_spec_of_the_kind_it_is_named_by(path: Path) -> None:
    spec = specs.from_file(path)
    if isinstance(spec, StudySpec):
        assert path.stem == spec.kind
    else:
        assert path.stem in [analysis.kind for analysis in spec.analyses]


def test_a_model_and_a_place_are_enough() -> None:
    spec = JobSpec.parse(LEAST)
    assert spec.layers == "all"
    assert spec.top == TopSpec(kind="top", k=9)
    assert spec.projection == ProjectionSpec(kind="projection")
    assert spec.compute.workers == "auto"
    assert spec.storage.max_side == 112


@pytest.mark.parametrize("fields", [LEAST, EVERYTHING], ids=["least", "everything"])
def test_a_round_trip_through_json_changes_nothing(fields: dict[str, Any]) -> None:
    spec = JobSpec.parse(fields)
    assert JobSpec.parse(json.loads(json.dumps(spec.to_json()))) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_every_field_given_is_kept() -> None:
    kept = JobSpec.parse(EVERYTHING).to_json()
    assert json.loads(json.dumps(kept)) == EVERYTHING | {"data": kept["data"]}
    assert kept["data"]["transform"]["crop"] == 224


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        JobSpec.parse(LEAST).seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("units", "read"),
    [("all", "all"), ({"sample": 0.1}, Sample(sample=0.1)), ({"ids": [3, 1]}, Ids(ids=(3, 1)))],
)
def test_units_are_all_or_a_share_or_a_list(units: Any, read: Any) -> None:
    fields = LEAST | {"analyses": [{"kind": "top"}, {"kind": "projection", "units": units}]}
    projection = JobSpec.parse(fields).projection
    assert projection is not None
    assert projection.units == read


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_is_read_as_what_its_name_says(tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"job.{suffix}"
    place.write_text(json.dumps(EVERYTHING) if suffix == "json" else yaml.safe_dump(EVERYTHING))
    assert JobSpec.from_file(place) == JobSpec.parse(EVERYTHING)


def test_overrides_set_fields_at_any_depth_with_values_read_as_yaml(tmp_path: Path) -> None:
    place = tmp_path / "job.yaml"
    place.write_text(yaml.safe_dump(LEAST))
    overrides = ("data.limit=7", "layers=[relu1]", "compute.workers=auto", "name=a=b")
    spec = JobSpec.from_file(place, overrides)
    assert spec.data.limit == 7
    assert spec.layers == ("relu1",)
    assert spec.compute.workers == "auto"
    assert spec.name == "a=b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.limit", "takes key=value"),
        ("=5", "takes key=value"),
        ("data.uri.deep=5", "'uri' is a value, not a section"),
    ],
)
def test_an_override_that_fits_nowhere_is_told(tmp_path: Path, override: str, said: str) -> None:
    place = tmp_path / "job.yaml"
    place.write_text(yaml.safe_dump(LEAST))
    with pytest.raises(RequestError, match=said):
        JobSpec.from_file(place, (override,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: [", "is not valid YAML/JSON"),
        ("- a\n- b\n", "holds a list, not fields: it needs at least"),
        ("", "holds nothing: it needs at least"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_spec_is_told_with_its_name(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    place = tmp_path / "job.yaml"
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=said) as caught:
        JobSpec.from_file(place)
    assert "job.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file or directory.*deconvoy demo"):
        JobSpec.from_file(tmp_path / "nothing.yaml")


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("modle", {}, ["'modle' is unknown", "did you mean 'model'?"]),
        ("data.limits", 3, ["'data.limits' is unknown", "did you mean 'limit'?"]),
        ("compute.worker", 3, ["'compute.worker' is unknown", "did you mean 'workers'?"]),
        ("storage.zzz", 3, ["'storage.zzz' is unknown", "known here: max_side, projection"]),
        ("seed", -1, ["'seed' is -1", "0 or more"]),
        ("seed", "many", ["'seed' is 'many'", "a whole number"]),
        ("version", 2, ["'version' is 2", "it takes 1"]),
        ("data.where", {"classes": 3}, ["'data.where.classes' is 3", "it takes a list"]),
        (
            "data.transform",
            {"resize": 32, "crop": 0},
            ["'data.transform.crop' is 0, but that does not fit: it takes 1 or more."],
        ),
        (
            "data.transform",
            {"resize": 32, "crop": 32, "interpolation": "foo"},
            ["'data.transform.interpolation' is 'foo'", "it takes 'bilinear' or 'bicubic'"],
        ),
        (
            "analyses",
            [{"kind": "top"}, {"kind": "projection", "units": {"sample": 2}}],
            ["projection.units.sample' is 2", "it takes 1 or less."],
        ),
        (
            "analyses",
            [{"kind": "top"}, {"kind": "projection", "units": {"ids": 3}}],
            ["projection.units.ids' is 3", "it takes a list."],
        ),
        (
            "analyses",
            [{"kind": "top"}, {"kind": "projection", "method": "lrp"}],
            ["projection.method' is 'lrp'", "'deconvnet', 'guided' or 'gradient'."],
        ),
        *(
            ("analyses", [{"kind": "top"}, {"kind": "occlusion", **wrong}], said)
            for wrong, said in (
                ({"images": {"sample": 0}}, ["occlusion.images.sample' is 0", "1 or more"]),
                ({"images": {"sample": 0.5}}, ["images.sample' is 0.5", "a whole number"]),
                ({"images": {"ids": []}}, ["images.ids' is []", "a list of 1 or more"]),
                ({"images": {"ids": [-1]}}, ["images.ids.0' is -1", "0 or more"]),
                ({"images": 5}, ["images' is 5", "{sample: 32}, {ids: [0, a/cat.png]} or"]),
                ({"images": {"top_of": []}}, ["images.top_of' is []", "a list of 1 or more"]),
                (
                    {"images": {"top_of": [{"layer": "relu"}]}},
                    ["'analyses.1.occlusion.images.top_of.0.unit' is missing"],
                ),
                ({"patch": 0}, ["occlusion.patch' is 0", "`auto` or a whole number of 1"]),
                ({"stride": "far"}, ["occlusion.stride' is 'far'", "`auto` or a whole number"]),
                ({"fill": 256}, ["occlusion.fill' is 256", "`mean`, a number from 0 to 255"]),
                ({"fill": [1, 2]}, ["occlusion.fill' is [1, 2]", "or a list of three"]),
                ({"units": "all"}, ["occlusion.units' is 'all'", "null, `maps`, or a list"]),
                ({"patchs": 3}, ["'analyses.1.occlusion.patchs' is unknown", "'patch'"]),
            )
        ),
        ("data.max_bad", 1.5, ["'data.max_bad' is 1.5", "it takes 1 or less"]),
        ("data.max_bad", float("nan"), ["'data.max_bad' is nan"]),
        ("data.limit", 0, ["'data.limit' is 0", "1 or more"]),
        ("storage.max_side", 4, ["'storage.max_side' is 4"]),
        ("storage.projection", "png", ["'storage.projection' is 'png'", "int8", "float16"]),
        ("compute.precision", "float16", ["'compute.precision' is 'float16'", "float32"]),
        ("model.name", None, ["'model.name' is None", "it takes a name"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_rule(
    path: str, value: Any, said: list[str]
) -> None:
    message = message_of(with_field(path, value))
    for part in said:
        assert part in message, message


def test_an_unknown_field_of_an_analysis_names_the_nearest() -> None:
    fields = LEAST | {"analyses": [{"kind": "top", "kk": 3}]}
    message = message_of(fields)
    assert "'analyses.0.top.kk' is unknown; did you mean 'k'?" in message


def test_an_unknown_kind_of_analysis_lists_those_there_are() -> None:
    message = message_of(LEAST | {"analyses": [{"kind": "tops"}]})
    assert "'top'" in message
    assert "'projection'" in message


def test_missing_sections_are_all_named() -> None:
    message = message_of({})
    assert "'model' is missing" in message
    assert "'data' is missing" in message


def test_several_faults_are_told_at_once() -> None:
    message = message_of(with_field("seed", -1) | {"modle": 1})
    assert "'seed'" in message
    assert "'modle'" in message


@pytest.mark.parametrize(
    "analyses",
    [
        [],
        [{"kind": "projection"}],
        [{"kind": "top"}, {"kind": "top"}],
        [{"kind": "top"}, {"kind": "projection"}, {"kind": "projection"}],
        [{"kind": "occlusion"}, {"kind": "top"}, {"kind": "occlusion"}],
    ],
)
def test_the_top_comes_exactly_once_and_others_at_most_once(analyses: list[Any]) -> None:
    message = message_of(LEAST | {"analyses": analyses})
    assert "kind: top exactly once" in message
    assert (", ".join(a["kind"] for a in analyses) or "nothing") in message


def test_a_transform_has_three_channels_and_a_positive_deviation() -> None:
    wrong = {"resize": 8, "crop": 8, "mean": [0.5], "std": [1, 1, 1]}
    assert "three numbers each" in message_of(with_field("data.transform", wrong))
    wrong = {"resize": 8, "crop": 8, "std": [1, 1, 0]}
    assert "std is positive" in message_of(with_field("data.transform", wrong))
    assert Transform(resize=8, crop=8).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("fields", [None, [], "spec", 3])
def test_what_is_no_mapping_is_told_what_a_spec_is(fields: Any) -> None:
    assert "A spec is a mapping" in message_of(fields)


def test_messages_are_sentences_without_the_checkers_own_words() -> None:
    message = message_of(with_field("seed", -1))
    assert "pydantic" not in message
    assert "https://" not in message
    assert message.endswith(".")


def test_runs_that_say_their_maps_were_contiguous_are_read() -> None:
    fields = {"model": {"name": "m"}, "data": {"uri": "u"}}
    spec = JobSpec.parse({**fields, "compute": {"layout": "contiguous", "threads": 2}})
    assert spec.compute.threads == 2 and "layout" not in spec.to_json()["compute"]
    with pytest.raises(RequestError, match=r"'compute\.layout' is unknown"):
        JobSpec.parse({**fields, "compute": {"layout": "channels_last"}})


def test_of_ten_thousand_wrong_fields_some_are_told() -> None:
    """Each is compared with each; a service must not be kept busy by a body of a megabyte."""
    wrong = {f"field{number}": number for number in range(10_000)}
    layers = {**LEAST, "layers": list(range(10_000))}
    for fields in (wrong, layers):
        begun = time.process_time()
        with pytest.raises(RequestError) as refused:
            JobSpec.parse(fields)
        assert time.process_time() - begun < 2
        assert len(str(refused.value)) < 100_000
    with pytest.raises(RequestError, match=r"'field0' is unknown.* 9,9.. more are wrong\."):
        JobSpec.parse(wrong)
    few = {f"field{number}": number for number in range(100)}
    with pytest.raises(RequestError, match=r" 6\d more are wrong\."):
        JobSpec.parse(few)
