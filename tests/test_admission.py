"""Which jobs a service takes: what they read lies below its roots, and their code is listed."""

from pathlib import Path

import pytest

from deconvoy.errors import RequestError
from deconvoy.places import anchored, places_of
from service.admission import admit, below_any, require_storable
from service.settings import Settings
from tests.runs import small_spec


def settings(*roots: str, **more: tuple[str, ...]) -> Settings:
    return Settings(ray="none", data_roots=roots, **more)


def test_built_in_images_and_models_need_no_root() -> None:
    admit(small_spec(), settings())
    admit(small_spec(model={"name": "torchvision/alexnet", "weights": "DEFAULT"}), settings())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"uri": "{outside}/photographs"}}, "data.uri"),
        ({"data": {"uri": ["{root}/a", "{outside}/b"]}}, "data.uri"),
        ({"data": {"uri": "{root}/a", "labels": "{outside}/labels.csv"}}, "data.labels"),
        ({"data": {"uri": "{root}/a", "boxes": "{outside}/boxes.csv"}}, "data.boxes"),
        ({"data": {"uri": "{root}/a", "parts": "{outside}/parts.csv"}}, "data.parts"),
        ({"data": {"uri": "{root}/../outside"}}, "data.uri"),
        ({"data": {"uri": "photographs"}}, "data.uri"),
        ({"data": {"uri": "s3://bucket/photographs"}}, "data.uri"),
        ({"data": {"uri": "https://example.org/list.csv"}}, "data.uri"),
        ({"model": {"weights": "{outside}/w.safetensors"}}, "model.weights"),
        ({"model": {"weights": "w.pt"}}, "model.weights"),
        ({"model": {"classes": "{outside}/names.txt"}}, "model.classes"),
    ],
)
def test_what_lies_elsewhere_is_refused_by_its_field(
    tmp_path: Path, changes: dict[str, dict[str, object]], field: str
) -> None:
    places = {"root": tmp_path / "root", "outside": tmp_path / "outside"}
    for place in places.values():
        place.mkdir()

    def filled(value: object) -> object:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return str(value).format(**places)

    spec = small_spec(**{s: {k: filled(v) for k, v in c.items()} for s, c in changes.items()})
    with pytest.raises(RequestError, match=f"^{field} is .*DECONVOY_DATA_ROOTS"):
        admit(spec, settings(str(places["root"])))


@pytest.mark.parametrize("field", ["labels", "boxes", "parts"])
def test_only_images_are_drawn(field: str) -> None:
    with pytest.raises(RequestError, match=f"^data.{field} is 'shapes"):
        admit(small_spec(data={field: "shapes?/../../etc/passwd"}), settings())


@pytest.mark.parametrize("uri", ["/a\0b", "http://[::1/x", "/\ud800"])
def test_places_that_are_none_are_refused(uri: str) -> None:
    with pytest.raises(RequestError, match="^data.uri"):
        admit(small_spec(data={"uri": uri}), settings("/data"))


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("nan"), "finite"), ("\ud800", "Unicode"), ("a\0", "Unicode"), ([[[]]], "")],
)
def test_what_no_database_takes_is_refused(value: object, told: str) -> None:
    given = {"model": {"arguments": {"x": value}}}
    if not told:
        require_storable(given)
        return
    with pytest.raises(RequestError, match=told):
        require_storable(given)


def test_too_deep_a_spec_is_refused() -> None:
    deep: object = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(RequestError, match="deep"):
        require_storable({"model": deep})


def test_a_link_does_not_lead_out_of_a_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    assert below_any(str(tmp_path / "root" / "photographs"), [str(tmp_path / "root")])
    assert not below_any(str(tmp_path / "root" / "link" / "photographs"), [str(tmp_path / "root")])
    assert not below_any(str(tmp_path / "rootless"), [str(tmp_path / "root")])


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("s3://bucket/photos/train", True),
        ("s3://bucket/photos", True),
        ("s3://bucket/photosets", False),
        ("s3://bucket/photos/../private", False),
        ("s3://bucket/photos/%2e%2e/private", False),
        ("s3://other/photos/train", False),
        ("https://bucket/photos/train", False),
        ("/photos/train", False),
    ],
)
def test_urls_are_compared_part_by_part(place: str, allowed: bool) -> None:
    assert below_any(place, ["s3://bucket/photos"]) is allowed


def test_dots_lead_to_no_code_that_the_operator_lists_not(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "evil.py").write_text("")
    allowed = settings(str(tmp_path), python_models=[f"{models}/*.py:*"])
    admit(small_spec(model={"name": f"{models}/mine.py:make"}), allowed)
    with pytest.raises(RequestError, match=r"^model\.name is "):
        admit(small_spec(model={"name": f"{models}/../evil.py:make"}), allowed)


@pytest.mark.parametrize("name", ["python/mine.models:make", "{root}/model.py:make"])
def test_code_runs_only_if_the_operator_lists_it(tmp_path: Path, name: str) -> None:
    spec = small_spec(model={"name": name.format(root=tmp_path)})
    with pytest.raises(RequestError, match=r"^model\.name is .*DECONVOY_PYTHON_MODELS"):
        admit(spec, settings(str(tmp_path)))
    admit(spec, settings(str(tmp_path), python_models=("python/mine.*", f"{tmp_path}/*")))


def test_a_spec_tells_all_places_that_it_names() -> None:
    spec = small_spec(
        model={"name": "models/mine.py:make", "weights": "w.pt", "classes": "names.txt"},
        data={
            "uri": ["a", "shapes?size=4&seed=1"],
            "labels": ["l.csv", None],
            "boxes": "b.csv",
            "parts": "p.csv",
        },
    )
    assert list(places_of(spec)) == [
        ("data.uri", "a"),
        ("data.labels", "l.csv"),
        ("data.boxes", "b.csv"),
        ("data.parts", "p.csv"),
        ("model.weights", "w.pt"),
        ("model.classes", "names.txt"),
        ("model.name", "models/mine.py"),
    ]


def test_an_anchored_spec_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photographs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert anchored(small_spec(data={"uri": "photographs"})).data.uri == str(
        tmp_path / "photographs"
    )
