"""The form that makes a job: every field of it, its YAML both ways, and what is wrong told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from streamlit.testing.v1 import AppTest

import deconvoy
from dashboard import draft, library
from deconvoy.spec import JobSpec
from tests.serving import client_of, settings_of, with_runs

BEGUN = {
    "model": {"name": "torchvision/squeezenet1_1", "weights": None},
    "data": {"uri": ""},
    "analyses": [{"kind": "top"}, {"kind": "projection"}],
}


@pytest.fixture(scope="module")
def api(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    place = tmp_path_factory.mktemp("new")
    (place / "runs").mkdir()
    settings = settings_of(place / "home", runs=str(with_runs(place / "runs", small_run)))
    with client_of(settings) as client:
        yield client


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit's test client has no cookies; what it has in their place is no text."""
    monkeypatch.setattr(library, "_session", lambda host, cookies: None)


def script() -> None:
    from dashboard.views import new

    new.show()


def opened(api: httpx.Client, jobs: bool = True, **asked: str) -> AppTest:
    app = AppTest.from_function(script, default_timeout=60)
    app.secrets["service"] = {"address": str(api.base_url), "key": "any", "jobs": jobs}
    for name, value in asked.items():
        app.query_params[name] = value
    return app.run()


def given(app: AppTest) -> Any:
    """What the text says; the form says the same."""
    assert not app.exception
    (text,) = app.text_area
    said = yaml.safe_load(text.value)
    assert said == app.session_state[draft.FIELDS]
    return said


def labelled(app: AppTest, label: str) -> Any:
    widgets = (*app.text_input, *app.number_input, *app.checkbox, *app.selectbox)
    (found,) = [widget for widget in widgets if widget.label == label]
    return found


FORM: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "Network",
        "deconvoy/zfnet_small",
        {"model": {"name": "deconvoy/zfnet_small", "weights": None}},
    ),
    ("Weights", " w.pt ", {"model": {"name": "torchvision/squeezenet1_1", "weights": "w.pt"}}),
    ("Where they are", "photos", {"data": {"uri": "photos"}}),
    ("Labels", "l.csv", {"data": {"uri": "", "labels": "l.csv"}}),
    ("At most", 12, {"data": {"uri": "", "limit": 12}}),
    ("Layers", "relu*, logits,", {"layers": ["relu*", "logits"]}),
    (
        "Strongest images of each unit",
        5,
        {"analyses": [{"kind": "top", "k": 5}, {"kind": "projection"}]},
    ),
    ("Project them to pixels (Fig. 2)", False, {"analyses": [{"kind": "top"}]}),
    (
        "Method of projection",
        "guided",
        {"analyses": [{"kind": "top"}, {"kind": "projection", "method": "guided"}]},
    ),
    (
        "Slide a grey square over images (Fig. 7)",
        True,
        {"analyses": [{"kind": "top"}, {"kind": "projection"}, {"kind": "occlusion"}]},
    ),
    ("Name of the job", "mine", {"name": "mine"}),
    ("Workers", 2, {"compute": {"workers": 2}}),
    ("Images a batch", 8, {"compute": {"batch_size": 8}}),
    ("Seed", 3, {"seed": 3}),
    ("Precision of the scan", "bfloat16", {"compute": {"precision": "bfloat16"}}),
]


@pytest.mark.parametrize(("label", "value", "written"), FORM, ids=[label for label, *_ in FORM])
def test_a_field_writes_the_text(
    api: httpx.Client, label: str, value: Any, written: dict[str, Any]
) -> None:
    app = opened(api)
    assert given(app) == BEGUN
    labelled(app, label).set_value(value).run()
    assert given(app) == BEGUN | written


@pytest.mark.parametrize(("label", "value", "written"), FORM, ids=[label for label, *_ in FORM])
def test_the_text_fills_the_field(
    api: httpx.Client, label: str, value: Any, written: dict[str, Any]
) -> None:
    app = opened(api)
    text = yaml.safe_dump(BEGUN | written)
    app.text_area[0].set_value(text).run()
    assert given(app) == BEGUN | written
    shown = value.strip(" ,") if isinstance(value, str) else value
    assert labelled(app, label).value == shown


def test_the_number_of_images_under_the_square(api: httpx.Client) -> None:
    app = opened(api)
    labelled(app, "Slide a grey square over images (Fig. 7)").set_value(True).run()
    assert labelled(app, "Over so many images").value == 32
    labelled(app, "Over so many images").set_value(4).run()
    assert given(app)["analyses"][2] == {"kind": "occlusion", "images": {"sample": 4}}
    # What the form has no field for stays as it is.
    spec = given(app) | {"storage": {"patch_format": "x"}}
    spec["analyses"][2]["stride"] = 4
    app.text_area[0].set_value(yaml.safe_dump(spec)).run()
    labelled(app, "Over so many images").set_value(5).run()
    assert given(app)["analyses"][2] == {"kind": "occlusion", "images": {"sample": 5}, "stride": 4}
    assert given(app)["storage"] == {"patch_format": "x"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: [", "The text is no YAML"),
        ("just words", "The text is no job spec"),
        ("model: {name: a}\nwhat: 1\ndata: {uri: a}\nanalyses: [{kind: top}]", "what"),
        ("", "The text is no job spec"),
    ],
)
def test_what_is_wrong_with_the_text_is_told(api: httpx.Client, text: str, told: str) -> None:
    app = opened(api)
    app.text_area[0].set_value(text).run()
    assert not app.exception
    assert app.text_area[0].value == text
    (submit,) = [button for button in app.button if button.label == "Submit"]
    submit.click().run()
    assert not app.exception
    (refusal,) = [html for html in app.get("html") if "refusal" in html.proto.body]
    assert told in refusal.proto.body


def test_a_text_of_the_wrong_shape_leaves_the_form_whole(api: httpx.Client) -> None:
    """Whatever somebody types, the form shows what of it fits and does not fall over."""
    app = opened(api)
    for wrong in (
        {"model": 3, "data": [1], "analyses": "top", "layers": "all", "compute": None, "seed": "a"},
        {"analyses": [1, {"kind": "occlusion", "images": 7}, {"kind": "new"}, {}]},
        {"model": {"name": ["a"]}, "data": {"limit": "x"}, "layers": [1, None]},
    ):
        app.text_area[0].set_value(yaml.safe_dump(wrong)).run()
        assert not app.exception, wrong


def test_odd_analyses_in_the_text_do_not_break_the_form(api: httpx.Client) -> None:
    app = opened(api)
    for text in ("analyses: [top]", "analyses: [{kind: nobody}, {kind: top}]", "analyses: 3"):
        app.text_area(key="draft.text").set_value(text).run()
        app.checkbox(key="new.with.occlusion").check().run()
        assert not app.exception
        assert any("occlusion" in str(each) for each in given(app)["analyses"])


def test_it_begins_as_a_run_was_asked_for(api: httpx.Client, small_run: Path) -> None:
    said = given(opened(api, run="small"))
    assert JobSpec.parse(said).to_json() == deconvoy.open(small_run).spec.to_json()
    assert "storage" not in said and "version" not in said


def test_a_service_that_only_shows_runs_says_so(api: httpx.Client) -> None:
    app = opened(api, jobs=False)
    assert not app.exception and not app.text_area
    assert "takes no jobs" in "".join(html.proto.body for html in app.get("html"))


def test_a_text_that_stands_for_more_than_memory_holds_is_refused(api: httpx.Client) -> None:
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    bomb = "\n".join(["a0: &a0 [x, x]", *rows, "layers: *a9"])
    app = opened(api)
    for text, said in ((bomb, "more than"), ("[" * 20_000, "deep"), ("a: &a {b: *a}", "lies in")):
        app.text_area[0].set_value(text).run()
        assert not app.exception
        assert said in app.session_state[draft.WRONG]
