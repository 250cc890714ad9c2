"""The dashboard as people have it: a browser, a service started in a shell, real runs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, expect
from safetensors.torch import save_file

import deconvoy
from deconvoy import queries
from tests import visitor
from tests.runs import run_inline, small_spec
from tests.studies import run_study, spec_of
from tests.upped import Service
from tests.visitor import NARROW, WIDE, Visitor
from workers.zfnet import zfnet_small

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(visitor.missing() is not None, reason=str(visitor.missing())),
]


@pytest.fixture(scope="module")
def runs(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, the same network with other weights, and one that is broken."""
    place = tmp_path_factory.mktemp("shown")
    shutil.copytree(small_run, place / "small")
    shown = [{"kind": "top"}, {"kind": "projection"}]
    run_inline(small_spec(name="other weights", seed=5, analyses=shown), place / "other")
    first, last = (place.parent / f"{place.name}-{name}.safetensors" for name in ("first", "last"))
    for weights, seed in ((first, 1), (last, 2)):
        torch.manual_seed(seed)
        save_file(zfnet_small().state_dict(), weights)
    evolved = {"kind": "evolution", "layers": ["relu5"], "units": {"ids": [0, 1, 9]}}
    model = {"weights": str(last), "checkpoints": [str(first)]}
    trained = small_spec(name="a training", model=model, analyses=[{"kind": "top"}, evolved])
    run_inline(trained, place / "trained")
    run_study(spec_of(name="a study", repeats=1), place / "study")
    shutil.copytree(small_run, place / "broken")
    (place / "broken" / "zarr.json").write_text('{"zarr_format": 3')
    (place / "halfway").mkdir()
    (place / "halfway" / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {"format": "deconvoy-run/1"}}'
    )
    return place


@pytest.fixture(scope="module")
def service(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("looked-at") / "home"
    every = [str(place) for place in sorted(runs.iterdir())]
    with Service(home, *every) as up:
        yield up


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with visitor.browser() as started:
        yield started


def welcomed(browser: Browser, service: Service, width: int = WIDE) -> Visitor:
    made = Visitor(browser, service.url, width)
    made.log_in((service.home / "token").read_text())
    return made


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visitor]:
    """Somebody who is logged in; nothing may be wrong in their browser."""
    made = welcomed(browser, service)
    yield made
    made.close()
    assert not made.wrong


def test_from_the_runs_to_a_unit_and_on(visit: Visitor, runs: Path) -> None:
    visit.clicks("a small one")
    visit.arrives("a small one")
    assert re.search(r"64 × 16 × 16\s*sees 27 px", visit.page.locator(".strip").inner_text())
    visit.page.locator(".strip").get_by_role("link", name="relu2").click()
    visit.arrives("relu2")
    visit.page.locator(".tile", has=visit.page.get_by_text("40", exact=True)).click()
    visit.arrives("relu2 : 40")
    assert visit.state == "/unit?run=small&layer=relu2&unit=40"
    unit = deconvoy.open(runs / "small").unit("relu2", 40)
    shown = visit.page.locator(".half").first.locator(".hit").all_inner_texts()
    assert len(shown) == 9
    assert all(f"{score:.4g}" in told for score, told in zip(unit.score, shown, strict=True))
    visit.pictures()
    assert visit.page.locator(".half img").count() == 18
    visit.page.keyboard.press("ArrowRight")
    visit.arrives("relu2 : 41")
    visit.page.go_back()
    visit.arrives("relu2 : 40")
    visit.page.locator(".half .hit a").first.click()
    visit.arrives(unit.labels[0])
    assert visit.state == f"/image?run=small&image={unit.image[0]}"


def test_the_wall_is_sorted_and_filtered(visit: Visitor, runs: Path) -> None:
    run = deconvoy.open(runs / "small")
    visit.goes("/layer?run=small&layer=relu7", "relu7")
    assert visit.tiles() == [str(n) for n in range(48)]
    visit.clicks("Next page")
    expect(visit.page.get_by_text("49–96 of 256")).to_be_visible()
    visit.waits()
    assert visit.tiles() == [str(n) for n in range(48, 96)]
    visit.clicks("strength", "Sort by")
    expect(visit.page.get_by_text("1–48 of 256")).to_be_visible()
    visit.waits()
    first = run.hit_table("relu7", "score")[:, 0]
    strength = np.where(run.hit_table("relu7", "image")[:, 0] < 0, -np.inf, first)
    order = np.argsort(-strength, kind="stable")[:48]
    assert visit.tiles() == [str(n) for n in order]
    dead = len(run.dead_units("relu7"))
    visit.clicks("dead", "Dead units")
    expect(visit.page.get_by_text(f"of {dead}")).to_be_visible()
    visit.waits()
    assert set(visit.tiles()) <= {str(n) for n in run.dead_units("relu7")}
    assert visit.page.locator(".tile .none", has_text="dead").count() == min(48, dead)


def test_a_link_opens_exactly_its_view(browser: Browser, service: Service) -> None:
    """Who is not logged in comes there after the login."""
    deep = "/unit?run=small&layer=relu2&unit=1&grey=true&zoom=false"
    guest = Visitor(browser, service.url)
    guest.page.goto(service.url + deep)
    guest.page.get_by_label("Token").fill((service.home / "token").read_text())
    guest.page.get_by_role("button", name="Log in").click()
    guest.arrives("relu2 : 1")
    assert guest.state == deep
    for group, chosen in (("Colours", "Signed grey"), ("Part", "Whole field")):
        assert guest.found(chosen, group).get_attribute("aria-current") == "true"
    assert all("grey=true" in str(each.get_attribute("src")) for each in
               guest.page.locator(".half").first.locator("img").all())  # fmt: skip
    guest.close()
    assert not guest.wrong


def test_the_search_leads_to_units_classes_and_images(visit: Visitor) -> None:
    visit.goes("/run?run=small", "a small one")
    search = visit.page.get_by_placeholder("layer:unit, class, image …")
    search.fill("relu5:7")
    search.press("Enter")
    visit.arrives("relu5 : 7")
    visit.page.locator("body").press("/")
    expect(search).to_be_focused()
    search.fill("ell")
    search.press("Enter")
    visit.arrives("“ell”")
    assert visit.page.get_by_role("heading", level=2).all_inner_texts()
    search.fill("nothing like that")
    search.press("Enter")
    visit.arrives("“nothing like that”")
    expect(visit.page.get_by_text("Nothing in this run is called")).to_be_visible()


def test_an_image_with_its_occlusion(visit: Visitor, runs: Path) -> None:
    image = deconvoy.open(runs / "small").occluded()["image_id"][0]
    visit.page.goto(f"{visit.address}/image?run=small&image={image}")
    expect(visit.page.get_by_text("What a grey square hides")).to_be_visible()
    visit.waits()
    canvas = visit.page.locator("canvas")
    before = visit.page.locator(".value").inner_text()
    canvas.hover()
    told = visit.page.locator(".value").inner_text()
    assert told != before and "with the square here" in told
    canvas.press("ArrowLeft")
    assert "with the square here" in visit.page.locator(".value").inner_text()
    assert visit.pictures().count() > 2


def test_an_analysis_and_one_that_is_absent(visit: Visitor, runs: Path) -> None:
    visit.goes("/run?run=small", "a small one")
    visit.clicks("Analyses")
    visit.arrives("Invariance")
    expect(visit.page.locator("canvas, .vega-embed svg").first).to_be_visible()
    visit.clicks("Scale", "Moved by")
    expect(visit.page.locator(".pill.chosen", has_text="Scale")).to_be_visible()
    visit.clicks("relu5", "Layer")
    expect(visit.page.get_by_role("heading", name="relu5, each image")).to_be_visible()
    assert visit.state == "/analysis?run=small&by=scale&layer=relu5"
    ids = deconvoy.open(runs / "small").invariance().image.tolist()
    addresses = visit.page.locator(".wall a").evaluate_all("all => all.map(a => a.href)")
    assert [int(a.rpartition("=")[2]) for a in addresses] == ids
    visit.goes("/analysis?run=other&kind=invariance", "Invariance")
    expect(visit.page.get_by_text("This run has no invariance")).to_be_visible()


def test_units_through_time(visit: Visitor, runs: Path) -> None:
    visit.goes("/analysis?run=trained", "Evolution")
    found = deconvoy.open(runs / "trained").evolution("relu5")
    tiles = visit.page.locator(".wall .tile")
    expect(tiles).to_have_count(3)
    assert f"{found.score[9, -1]:.4g}" in tiles.nth(2).inner_text()
    visit.page.get_by_role("slider").press("ArrowLeft")
    expect(tiles.nth(2)).to_contain_text(f"{found.score[9, 0]:.4g}")
    assert visit.state == "/analysis?run=trained&at=0"
    expect(visit.page.locator(".rows tbody tr")).to_have_count(4)


def test_a_study_is_a_table_curves_and_filters(visit: Visitor, runs: Path) -> None:
    found = deconvoy.open(runs / "study").study()
    visit.goes("/run?run=study", "a study")
    rows = visit.page.locator(".rows tbody tr")
    expect(rows).to_have_count(2)
    best = f"{100 * found.validation_error[:, 0, -1, 0].min():.1f}"
    assert best in visit.page.locator(".rows b").first.inner_text()
    expect(visit.page.locator("canvas, .vega-embed svg").first).to_be_visible()
    pictures = visit.page.locator(".filters img")
    expect(pictures).to_have_count(2)
    pictures.last.scroll_into_view_if_needed()
    visit.pictures()
    expect(visit.page.get_by_text("run.study().table()")).to_be_visible()
    visit.goes("/analysis?run=small&kind=study", "Study")
    expect(visit.page.get_by_text("kind: study")).to_be_visible()


def test_two_runs_side_by_side(visit: Visitor, runs: Path) -> None:
    visit.goes("/compare?run=small", "Compare")
    visit.page.get_by_label("With").click()
    visit.page.get_by_role("option", name="other weights").click()
    expect(visit.page.get_by_text("differing")).to_be_visible()
    visit.waits()
    assert visit.state == "/compare?run=small&with=other"
    before, after = deconvoy.open(runs / "small"), deconvoy.open(runs / "other")
    rows = visit.page.locator(".rows tbody tr").all_inner_texts()
    for told, row in zip(rows, queries.diff(before, after).to_pylist(), strict=True):
        assert row["layer"] in told and f"{row['units_changed']:,} of {row['units']:,}" in told
    visit.clicks("relu2")
    expect(visit.page.locator(".pair").first).to_be_visible()
    visit.waits()
    most = queries.diff_units(before, after, "relu2")["unit"].to_pylist()[:24]
    assert visit.tiles() == [str(n) for n in most]


def test_a_job_is_asked_for_watched_and_looked_at(visit: Visitor, service: Service) -> None:
    visit.goes("/new", "New job")
    text = visit.page.get_by_role("textbox", name="The job spec, as YAML")
    # The form writes the text, and the text the form.
    visit.page.get_by_role("textbox", name="Where they are").fill("shapes?size=24")
    visit.page.get_by_role("textbox", name="Where they are").press("Tab")
    expect(text).to_have_value(re.compile("uri: shapes.size=24"))
    visit.waits()
    text.fill(
        "name: from a form\nmodel: {name: deconvoy/zfnet_small}\ndata: {uri: 'shapes?size=40'}\n"
        "layers: [relu2, logits]\nanalyses: [{kind: top, k: 3}]\n"
    )
    text.press("Control+Enter")
    expect(visit.page.get_by_role("textbox", name="Where they are")).to_have_value("shapes?size=40")
    expect(
        visit.page.get_by_role("spinbutton", name="Strongest images of each unit")
    ).to_have_value("3")
    visit.waits()
    visit.page.get_by_role("button", name="Plan").click()
    expect(visit.page.get_by_role("heading", name="Plan")).to_be_visible()
    visit.waits()
    visit.page.get_by_role("button", name="Submit").click()
    visit.arrives("from a form")
    expect(visit.page.locator(".how-far")).to_contain_text("done")
    visit.waits()
    visit.clicks("Open its run")
    visit.arrives("from a form")
    visit.page.locator(".strip").get_by_role("link", name="relu2").click()
    visit.arrives("relu2")
    assert len(visit.tiles()) == 48
    visit.goes("/jobs", "Jobs")
    expect(visit.page.locator("tbody")).to_contain_text("from a form")


def test_a_job_is_cancelled_and_resumed_by_its_buttons(visit: Visitor, service: Service) -> None:
    client = deconvoy.Client(service.url, (service.home / "token").read_text().strip())
    spec = small_spec(
        name="a long one",
        data={"uri": "shapes?size=6000"},
        layers=["relu2"],
        analyses=[{"kind": "top", "k": 3}],
        compute={"shard_size": 64, "batch_size": 16},
    )
    job = client.submit(spec)
    visit.goes(f"/job?id={job.id}", "a long one")
    expect(visit.page.locator(".how-far")).to_contain_text("scan")
    visit.page.get_by_role("button", name="Cancel").click()
    expect(visit.page.locator(".state")).to_contain_text("stopped")
    visit.waits()
    assert client.job(job.id).state == "stopped"
    visit.page.get_by_role("button", name="Resume").click()
    expect(visit.page.locator(".how-far")).to_contain_text("done")
    visit.waits()
    assert client.job(job.id).state == "done"


def test_an_image_of_ones_own(visit: Visitor, tmp_path: Path) -> None:
    from PIL import Image

    Image.effect_noise((90, 80), 60).convert("RGB").save(tmp_path / "mine.png")
    visit.goes("/upload?run=small", "An image of your own")
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "mine.png")
    visit.page.get_by_role("button", name="Look at it").click()
    expect(visit.page.locator(".how-far")).to_contain_text("done")
    visit.waits()
    visit.clicks("See the image")
    expect(visit.page.get_by_text("What a grey square hides")).to_be_visible()
    visit.waits()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/run?run=broken", "broken"),
        ("/run?run=nobody", "There is no run 'nobody'"),
        ("/layer?run=small&layer=relu3", "has no layer 'relu3'"),
        ("/unit?run=small&layer=relu2&unit=64", "64"),
        ("/unit?run=small&layer=relu2&unit=-1", "unit is a whole number from 0"),
        ("/unit?run=small&layer=relu2", "names no unit"),
        ("/image?run=small&image=40", "40"),
        ("/compare?run=small&with=small2", "There is no run 'small2'"),
        ("/unit?run=small&layer=relu2&unit=1&smooth=abc", "smooth is a number from 0"),
        ("/unit?run=small&layer=relu2&unit=" + "9" * 5000, "unit is a whole number from 0"),
        ("/analysis?run=small&kind=nothing", "kind='nothing'"),
        ("/layer?run=study&layer=relu1", "is a study of architectures"),
        ("/analysis?run=study", "is a study of architectures"),
        ("/run?run=halfway", "its attributes lack"),
        ("/job?id=nobody", "There is no job 'nobody'"),
    ],
)
def test_what_is_wrong_is_a_sentence(visit: Visitor, path: str, told: str) -> None:
    visit.page.goto(visit.address + path)
    expect(visit.page.get_by_role("alert").filter(has_text=told)).to_be_visible()
    visit.waits()


VIEWS = {
    "/": "Runs",
    "/run?run=small": "a small one",
    "/layer?run=small&layer=relu2&show=both": "relu2",
    "/unit?run=small&layer=relu2&unit=40": "relu2 : 40",
    "/images?run=small": "Images",
    "/search?run=small&q=relu": "“relu”",
    "/compare?run=small&with=other": "Compare",
    "/compare?run=small&with=other&layer=relu2": "Compare",
    "/analysis?run=small&kind=invariance": "Invariance",
    "/analysis?run=trained": "Evolution",
    "/analysis?run=trained&kind=study": "Study",
    "/run?run=study": "a study",
    "/image?run=small&image=0": "face",
    "/jobs": "Jobs",
    "/new": "New job",
    "/upload?run=small": "An image of your own",
}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_view_fits_the_window(browser: Browser, service: Service, width: int) -> None:
    guest = welcomed(browser, service, width)
    for path, title in VIEWS.items():
        guest.goes(path, title)
        assert not guest.is_too_wide(), path
        guest.pictures()
    guest.close()
    assert not guest.wrong


def test_every_link_can_be_reached_by_keyboard(visit: Visitor) -> None:
    visit.goes("/run?run=small", "a small one")
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.closest('.strip a')?.innerText ?? ''"):
            break
    visit.page.keyboard.press("Enter")
    expect(visit.page).to_have_url(re.compile("/layer"))


def test_nobody_looks_without_a_login(service: Service) -> None:
    answer = httpx.get(f"{service.url}/run?run=small", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/login?next=/run%3Frun%3Dsmall",
    )
    assert httpx.get(f"{service.url}/_stcore/health").status_code == 401
