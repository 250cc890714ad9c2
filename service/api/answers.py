"""What the routes about runs, layers and units answer, as JSON.

There are no infinities in it: a hit that is missing is left out, and a number that is not known is
null.
"""

import datetime as dt
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

RUN = {
    "id": "squeeze-photos",
    "kind": "job",
    "name": "SqueezeNet on photographs",
    "tags": ["squeezenet"],
    "pinned": False,
    "status": "done",
    "model": "torchvision/squeezenet1_1",
    "images": 5000,
    "layers": 27,
    "units": 4944,
    "top1": 0.5624,
    "created": "2026-05-02T09:30:00Z",
    "commit": "3f2a9c0d1e4b5a67",
}
LAYER = {
    "layer": "features.12.expand3x3_activation",
    "op": "relu",
    "units": 256,
    "height": 13,
    "width": 13,
    "field_size": [211, 211],
    "field_stride": [16, 16],
    "field_offset": [-97.0, -97.0],
    "whole_image": False,
    "dead_units": 0,
    "projected_units": 256,
    "look": {"zoom": True, "sigma": 1.0},
}
HIT = {
    "rank": 0,
    "score": 41.25,
    "image": 1203,
    "uri": "n02123045/ILSVRC2012_val_00012345.JPEG",
    "label": 281,
    "class": "tabby",
    "y": 4,
    "x": 7,
    "box": [0, 15, 178, 224],
    "window": [-33, 15, 178, 226],
}
_UNIT = "/v1/runs/squeeze-photos/layers/features.12.expand3x3_activation/units/42"
PICTURES = {
    show: f"{_UNIT}.png?show={show}&v=3f2a9c0d1e4b5a67" for show in ("both", "projection", "patch")
}
CLASSES = [{"label": 281, "class": "tabby", "count": 7}]


class Answer(BaseModel):
    """One answer of a route."""


def example_of(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class RunSummary(Answer):
    """One run, in a list."""

    model_config = example_of(**RUN)

    id: str
    kind: str
    """job, or study: several networks that were trained"""
    name: str | None
    """What people call it; else as its spec says."""
    tags: list[str]
    pinned: bool
    status: str
    """running, done, failed, stopped or interrupted"""
    model: str
    images: int
    layers: int
    units: int | None
    """Of all layers; null until the scan is done."""
    top1: float | None
    """Share of labelled images whose most probable class is their label."""
    created: dt.datetime | None
    commit: str
    """Changes when the run does."""


class RunPage(Answer):
    model_config = example_of(total=1, offset=0, next=None, runs=[RUN])

    total: int
    offset: int
    next: str | None
    """Where the next page is."""
    runs: list[RunSummary]


class RunDetails(RunSummary):
    """All there is to say of one run."""

    model_config = example_of(
        **RUN,
        failure="",
        resumable=False,
        labels="true",
        classes=["tench", "goldfish"],
        layer_names=["features.1", "features.12.expand3x3_activation"],
        occluded=32,
        spec={"model": {"name": "torchvision/squeezenet1_1"}, "data": {"uri": "photos"}},
        provenance={"model_sha256": "cdab693e…", "images": 5000},
        seconds=412.5,
        results={"images": 5000, "skipped": 0, "top1": 0.5624},
    )

    failure: str
    """Why it failed; empty where it did not."""
    resumable: bool
    labels: str
    """Whether labels of hits are ``true`` classes or ``predicted`` ones."""
    classes: list[str]
    """Names of the model's outputs; none where unknown."""
    layer_names: list[str]
    """In execution order."""
    occluded: int
    """Images a square was slid over."""
    spec: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float | None
    """It took, with any pause before it was resumed."""
    results: dict[str, Any] | None
    """Null until the run is scanned."""


class RunChange(BaseModel):
    """What people say of a run; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "SqueezeNet on photographs", "tags": ["squeezenet"]}]
        },
    )

    name: str | None = Field(None, max_length=200)
    """An empty one takes it back: the run is called what its spec says."""
    tags: list[str] | None = Field(None, max_length=32)
    """All that it has from now on."""
    add_tags: list[str] | None = Field(None, max_length=32)
    """To those it has."""
    remove_tags: list[str] | None = Field(None, max_length=32)
    """From those it has; one that it has not is no error."""
    pinned: bool | None = None


class Look(Answer):
    """How a layer's pictures are drawn unless told otherwise."""

    zoom: bool
    """To what carries signal."""
    sigma: float
    """Blurred by so many pixels."""


class LayerRow(Answer):
    """One layer, and what it sees of an image."""

    model_config = example_of(**LAYER)

    layer: str
    op: str
    units: int
    height: int
    width: int
    field_size: list[int | None] | None
    """Height and width of the receptive field in input pixels."""
    field_stride: list[float] | None
    field_offset: list[float] | None
    whole_image: bool
    """Whether every unit sees the whole image."""
    dead_units: int
    projected_units: int
    look: Look


class LayerList(Answer):
    model_config = example_of(layers=[LAYER])

    layers: list[LayerRow]
    """In execution order."""


class ClassCount(Answer):
    """How many of a unit's hits are of a class."""

    label: int
    name: str = Field(serialization_alias="class")
    count: int


class Pictures(Answer):
    """Where pictures of a unit are."""

    both: str
    projection: str
    patch: str


class UnitRow(Answer):
    """One unit, in a grid of them."""

    unit: int
    name: str
    """Of an output: its class; else empty."""
    dead: bool
    """No image activates it."""
    score: float | None
    """Of its strongest hit."""
    hits: int
    density: float
    """Share of the images that activate it."""
    classes: list[ClassCount]
    """Of its hits, commonest first."""
    pictures: Pictures | None
    """Null where it was not projected."""


class UnitPage(Answer):
    model_config = example_of(
        layer=LAYER["layer"],
        total=256,
        offset=0,
        next=f"{_UNIT.rpartition('/')[0]}?offset=100&limit=100",
        units=[
            {
                "unit": 42,
                "name": "",
                "dead": False,
                "score": 41.25,
                "hits": 9,
                "density": 0.91,
                "classes": CLASSES,
                "pictures": PICTURES,
            }
        ],
    )

    layer: str
    total: int
    offset: int
    next: str | None
    units: list[UnitRow]


class Hit(Answer):
    """One of a unit's strongest activations."""

    rank: int
    """0 is the strongest."""
    score: float
    image: int
    uri: str
    label: int | None
    name: str = Field(serialization_alias="class")
    """Of the label; empty where unknown."""
    y: int
    x: int
    """Row and column in the feature map."""
    box: list[int]
    """y0, x0, y1, x1 of the receptive field in input pixels, half-open, clipped to the image."""
    window: list[int]
    """What the pictures show, unclipped."""


class HistogramBin(Answer):
    """How many images have their maximum in ``low <= maximum < high``."""

    low: float | None
    """Null where there is no bound."""
    high: float | None
    images: int


class UnitDetails(Answer):
    """One unit and its hits, strongest first."""

    model_config = example_of(
        run="squeeze-photos",
        layer=LAYER["layer"],
        unit=42,
        units=256,
        ranks=9,
        name="",
        dead=False,
        mean=3.87,
        density=0.91,
        histogram=[{"low": 22.627417, "high": 32.0, "images": 118}],
        labels="true",
        classes=CLASSES,
        hits=[HIT],
        pictures=PICTURES,
    )

    run: str
    layer: str
    unit: int
    units: int
    """Of the layer."""
    ranks: int
    """Hits that a unit can have: places of its pictures."""
    name: str
    dead: bool
    mean: float | None
    """Of its image maxima."""
    density: float | None
    """Share of the images that activate it."""
    histogram: list[HistogramBin]
    """Of its image maxima over all images."""
    labels: str
    classes: list[ClassCount]
    hits: list[Hit]
    pictures: Pictures | None
