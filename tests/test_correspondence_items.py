"""What a correspondence analysis comes down to: its parts and images, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import CorrespondenceSpec, Transform
from tests import networks
from tests.runs import small_spec, write_photographs
from workers import correspondence as engine
from workers.correspondence_items import (
    Corresponding,
    corresponding_of,
    drawn_images,
    require_parts,
)
from workers.graph import Network
from workers.job import Job, settle, trace
from workers.part_boxes import parts_in_input
from workers.shapes import CLASSES, SIDE

FACE = CLASSES.index("face")
FACES = tuple(range(FACE, 40, len(CLASSES)))


def asked(**fields: Any) -> CorrespondenceSpec:
    return CorrespondenceSpec.model_validate({"kind": "correspondence", **fields})


@pytest.fixture(scope="module")
def job() -> Job:
    """40 drawings, four of them faces."""
    return settle(small_spec())


def come_down(job: Job, spec: CorrespondenceSpec, **changes: Any) -> Corresponding:
    network = Network(job.packed.build(), (3, SIDE, SIDE))
    given = {"transform": job.packed.transform, "network": network, "layers": job.layers,
             "listing": job.listing, "boxes": job.part_boxes}  # fmt: skip
    found = corresponding_of(spec, **{**given, **changes})
    assert found is not None
    return found


def placed_of(job: Job, found: Corresponding) -> dict[int, Mapping[str, Any]]:
    """As the driver will after the scan."""
    assert job.part_boxes is not None
    return {
        job.id_of(place): parts_in_input(
            job.part_boxes.of(job.listing.uris[place]), (SIDE, SIDE), job.packed.transform
        )
        for place in found.able
    }


# --- the section ----------------------------------------------------------------------------------


def test_the_section_has_the_defaults_that_are_documented_and_survives_json() -> None:
    spec = asked()
    assert (spec.parts, spec.fill, spec.random) == ("all", "mean", 20)
    assert spec.images.model_dump() == {"sample": 20}
    full = asked(images={"ids": [3, "a.png"]}, parts=["nose"], fill=[1, 2, 3], random=99)
    for one in (spec, full):
        assert CorrespondenceSpec.model_validate(one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"images": {"sample": 1}}, "compared in pairs, but there is 1: take 2 or more"),
        ({"images": {"ids": [3]}}, "compared in pairs"),
        ({"images": {"ids": [3, 3]}}, "compared in pairs"),
        ({"images": {"ids": [3, 4], "sample": 2}}, "correspondence analysis are one of sample and"),
        ({"images": {"top_of": [{"layer": "relu1", "unit": 0}]}}, "top_of"),
        ({"parts": []}, "parts"),
        ({"parts": "nose"}, "parts"),
        ({"fill": 256}, "fill"),
        ({"random": 0}, "random"),
        ({"randoms": 3}, "randoms"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        asked(**fields)


# --- parts and images -----------------------------------------------------------------------------


def test_named_parts_are_kept_in_order_and_images_without_them_are_not_able(job: Job) -> None:
    found = come_down(job, asked(parts=["nose", "left_eye", "nose"]))
    assert found.parts == ("nose", "left_eye")
    assert found.able == FACES and found.named == ()
    assert found.fill == tuple(255 * mean for mean in job.packed.transform.mean)


def test_all_parts_are_those_of_the_file(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 4)
    rows = [f"{n % 2 * 'b' or 'a'}/00{n}.png,{part},1,2,30,40"
            for n in range(4) for part in ("nose", "eye")]  # fmt: skip
    (tmp_path / "parts.csv").write_text("\n".join(["path,part,x0,y0,x1,y1", *rows[:-1]]))
    spec = small_spec(data={"uri": str(tmp_path / "images"), "parts": str(tmp_path / "parts.csv")})
    job = settle(spec)
    found = come_down(job, asked())
    assert found.parts == ("eye", "nose")
    lacking = job.listing.uris.index("b/003.png")
    assert set(found.able) == set(range(4)) - {lacking}


def test_drawings_have_not_all_the_same_parts(job: Job) -> None:
    with pytest.raises(RequestError, match="none of them have all of the parts 'back_.*name fewer"):
        come_down(job, asked())


def test_one_image_with_the_parts_is_no_pair(job: Job) -> None:
    listing = replace(job.listing, uris=job.listing.uris[:10], labels=job.listing.labels[:10])
    with pytest.raises(RequestError, match="but 1 of them has all of the parts 'nose'"):
        come_down(job, asked(parts=["nose"]), listing=listing)


def test_a_part_that_no_image_has_is_refused_with_the_nearest(job: Job) -> None:
    with pytest.raises(RequestError, match="has 'left eye', but no image has .*nearest: left_eye"):
        come_down(job, asked(parts=["nose", "left eye"]))


def test_without_parts_there_is_nothing_to_cover(job: Job) -> None:
    with pytest.raises(RequestError, match=r"give data\.parts"):
        come_down(job, asked(), boxes=None)


def test_an_analysis_that_nobody_asks_for_comes_to_nothing(job: Job) -> None:
    network = trace(job.packed)
    transform, layers = job.packed.transform, job.layers
    assert corresponding_of(None, transform, network, layers, job.listing, None) is None


def test_named_images_are_found_and_must_have_the_parts(job: Job) -> None:
    named = come_down(job, asked(parts=["nose"], images={"ids": [FACES[2], str(FACES[0])]})).named
    assert named == (FACES[2], FACES[0])
    with pytest.raises(RequestError, match=rf"ids names '{FACE + 1}', of which the part 'nose'"):
        come_down(job, asked(parts=["nose"], images={"ids": [FACE, FACE + 1]}))
    with pytest.raises(RequestError, match="analyses.correspondence.images.ids has 77"):
        come_down(job, asked(parts=["nose"], images={"ids": [FACE, 77]}))
    with pytest.raises(RequestError, match="but 1 of them has all"):
        come_down(job, asked(parts=["nose"], images={"ids": [FACE, str(FACE)]}))


def test_a_named_image_of_which_the_crop_leaves_a_part_out_is_refused() -> None:
    parts = {"eye": np.array([0, 0, 40.0, 100]), "nose": np.array([90, 10, 110.0, 40])}
    left = parts_in_input(parts, (100, 200), Transform(resize=100, crop=100))
    require_parts("a.png", left, ["nose"])
    with pytest.raises(RequestError, match="'a.png', of which the part 'eye' is not in .*crop"):
        require_parts("a.png", left, ["nose", "eye"])


def test_a_sample_is_drawn_by_the_seed_from_images_that_keep_all_parts(job: Job) -> None:
    found = come_down(job, asked(parts=["nose", "mouth"], images={"sample": 2}))
    placed = placed_of(job, found)
    seeds = [drawn_images(found, placed, seed) for seed in range(20)]
    assert seeds == [drawn_images(found, dict(reversed(placed.items())), s) for s in range(20)]
    assert all(len(set(chosen)) == 2 and set(chosen) <= placed.keys() for chosen in seeds)
    assert len({tuple(chosen) for chosen in seeds}) > 1
    first, *_ = placed
    cropped = {**placed, first: {"nose": placed[first]["nose"]}}
    assert all(first not in drawn_images(found, cropped, seed) for seed in range(20))
    many = come_down(job, asked(parts=["nose", "mouth"], images={"sample": 20}))
    assert drawn_images(many, placed, 0) == sorted(placed)


def test_a_sample_of_which_the_crop_or_the_reading_leaves_one_is_refused(job: Job) -> None:
    found = come_down(job, asked(parts=["nose", "mouth"]))
    first, second, *_ = placed = placed_of(job, found)
    for left in ({first: placed[first]}, {first: placed[first], second: {}}):
        with pytest.raises(RequestError, match="but 1 of them has all of the parts 'nose', 'mou"):
            drawn_images(found, left, 0)


def test_more_images_than_there_is_room_for_are_refused_before_the_scan(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_image = sum(16 * engine.words_of(engine.dimension_of(layer)) for layer in job.layers)
    monkeypatch.setattr(engine, "SIGN_BYTES", 3 * an_image)
    come_down(job, asked(parts=["nose"], images={"sample": 3}))
    with pytest.raises(RequestError, match="compares 4 images, .*take at most 3 images"):
        come_down(job, asked(parts=["nose"]))  # as many as there are, of the 20


def test_three_colours_are_none_for_a_model_of_grey_images(job: Job) -> None:
    grey = Transform(resize=64, crop=64, mean=(0.5,), std=(0.2,))
    assert come_down(job, asked(parts=["nose"], fill=7), transform=grey).fill == (7,)
    with pytest.raises(RequestError, match=r"analyses\.correspondence\.fill is \[1\.0, 2\.0, 3"):
        come_down(job, asked(parts=["nose"], fill=[1, 2, 3]), transform=grey)


def test_a_model_that_mixes_the_images_of_a_batch_is_refused(job: Job) -> None:
    case, _ = networks.WITHOUT_RULE["norm_without_statistics"]
    network = Network(case.model(), case.shape)
    with pytest.raises(ModelUnsupported, match=r"analyses\.correspondence: "):
        come_down(job, asked(parts=["nose"]), network=network)
