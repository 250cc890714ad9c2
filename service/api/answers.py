"""What the routes about runs answer, as JSON.

There are no infinities in it: a hit that is missing is left out, and a number that is not known is
null.
"""

import datetime as dt
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

RUN = {
    "id": "squeeze-photos",
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
IMAGE = {
    "id": 1203,
    "uri": "n02123045/ILSVRC2012_val_00012345.JPEG",
    "label": 281,
    "class": "tabby",
    "width": 500,
    "height": 375,
    "predicted": 281,
    "predicted_class": "tabby",
    "probability": 0.83,
    "skipped": None,
}


class Answer(BaseModel):
    """One answer of a route."""


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class RunSummary(Answer):
    """One run, in a list."""

    model_config = _example(**RUN)

    id: str
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
    model_config = _example(total=1, offset=0, next=None, runs=[RUN])

    total: int
    offset: int
    next: str | None
    """Where the next page is."""
    runs: list[RunSummary]


class RunDetails(RunSummary):
    """All there is to say of one run."""

    model_config = _example(
        **RUN,
        failure="",
        resumable=False,
        labels="true",
        classes=["tench", "goldfish"],
        layer_names=["features.1", "features.12.expand3x3_activation"],
        occluded=32,
        spec={"model": {"name": "torchvision/squeezenet1_1"}, "data": {"uri": "photos"}},
        provenance={"model_sha256": "cdab693e…", "images": 5000},
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

    name: str | None = Field(None, min_length=1, max_length=200)
    tags: list[str] | None = Field(None, max_length=32)
    pinned: bool | None = None


class LayerRow(Answer):
    """One layer, and what it sees of an image."""

    model_config = _example(**LAYER)

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


class LayerList(Answer):
    model_config = _example(layers=[LAYER])

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
    classes: list[ClassCount]
    """Of its hits, commonest first."""
    pictures: Pictures | None
    """Null where it was not projected."""


class UnitPage(Answer):
    model_config = _example(
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


class UnitDetails(Answer):
    """One unit and its hits, strongest first."""

    model_config = _example(
        run="squeeze-photos",
        layer=LAYER["layer"],
        unit=42,
        units=256,
        name="",
        dead=False,
        mean=3.87,
        density=0.91,
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
    name: str
    dead: bool
    mean: float | None
    """Of its image maxima."""
    density: float | None
    """Share of the images that activate it."""
    labels: str
    classes: list[ClassCount]
    hits: list[Hit]
    pictures: Pictures | None


class ImageRow(Answer):
    """One image of the data set."""

    model_config = _example(**IMAGE)

    id: int
    uri: str
    label: int | None
    name: str = Field(serialization_alias="class")
    width: int | None
    height: int | None
    predicted: int | None
    predicted_class: str
    probability: float | None
    skipped: str | None
    """Why it was left out; null where it was read."""


class ImagePage(Answer):
    model_config = _example(total=5000, offset=0, next=None, images=[IMAGE])

    total: int
    offset: int
    next: str | None
    images: list[ImageRow]


class ImageHit(Answer):
    """A unit that has the image among its strongest."""

    layer: str
    unit: int
    rank: int
    score: float


class ImageDetails(ImageRow):
    """One image, and which units it excites most."""

    model_config = _example(
        **IMAGE,
        hits=[{"layer": LAYER["layer"], "unit": 42, "rank": 0, "score": 41.25}],
        occluded=False,
        picture="/v1/runs/squeeze-photos/images/1203.jpg?v=3f2a9c0d1e4b5a67",
    )

    hits: list[ImageHit]
    """By layer, then rank; a page of them at most."""
    occluded: bool
    picture: str


class OcclusionRow(Answer):
    """An image a square was slid over."""

    image: int
    uri: str
    target: int
    name: str = Field(serialization_alias="class")
    probability: float
    """Of the target, without a square."""
    lowest: float
    """With one, at least."""
    y: int
    x: int
    """Top left corner of that square, in input pixels."""
    picture: str
    """Its Fig. 7."""


_OCCLUDED = {
    "image": 1203,
    "uri": IMAGE["uri"],
    "target": 281,
    "class": "tabby",
    "probability": 0.83,
    "lowest": 0.04,
    "y": 64,
    "x": 80,
    "picture": "/v1/runs/squeeze-photos/occlusion/1203.png?v=3f2a9c0d1e4b5a67",
}


class OcclusionList(Answer):
    model_config = _example(occlusion=[_OCCLUDED])

    occlusion: list[OcclusionRow]


class Watched(Answer):
    """A layer's strongest map under the square."""

    unit: int
    clean: float
    """The sum over the map without a square."""
    activity: list[list[float]]
    """With one, by rows of the grid."""


class OcclusionDetails(Answer):
    """One image under a grey square at every position of a grid."""

    model_config = _example(
        image=1203,
        uri=IMAGE["uri"],
        size=[224, 224],
        patch=32,
        stride=16,
        fill=[124.0, 116.0, 104.0],
        y=[0, 16],
        x=[0, 16],
        target=281,
        **{"class": "tabby"},
        clean_probability=0.83,
        clean_label=281,
        probability=[[0.81, 0.8], [0.43, 0.2]],
        label=[[281, 281], [281, 282]],
        layers={LAYER["layer"]: {"unit": 7, "clean": 12.5, "activity": [[12, 11], [8, 4]]}},
        boxes=[[10, 20, 200, 190]],
        picture=_OCCLUDED["picture"],
    )

    image: int
    uri: str
    size: list[int]
    """Height and width of the preprocessed image, in whose pixels all places are."""
    patch: int
    stride: int
    fill: list[float]
    y: list[int]
    """Top rows of the square."""
    x: list[int]
    target: int
    name: str = Field(serialization_alias="class")
    clean_probability: float
    clean_label: int
    probability: list[list[float]]
    """Of the target, by rows of the grid."""
    label: list[list[int]]
    """The most probable class."""
    layers: dict[str, Watched]
    boxes: list[list[int]]
    """Where the object is: y0, x0, y1, x1."""
    picture: str


class TablePage(Answer):
    """Rows of a table."""

    total: int
    offset: int
    next: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None = None
    """What the table says as a whole, of queries that do."""

    model_config = _example(
        total=2304,
        offset=0,
        next="/v1/runs/squeeze-photos/table?layer=features.12.expand3x3_activation&offset=1000",
        rows=[
            {"layer": LAYER["layer"], "unit": 42, "rank": 0, "score": 41.25, "image_id": 1203,
             "uri": IMAGE["uri"], "label": 281, "y": 4, "x": 7, "y0": 0, "x0": 15, "y1": 178,
             "x1": 224}
        ],
        summary=None,
    )  # fmt: skip


class QueryArgument(Answer):
    name: str
    type: str
    required: bool
    default: Any
    description: str


class QueryUsage(Answer):
    """A question to a run."""

    name: str
    description: str
    arguments: list[QueryArgument]
    address: str


class QueryList(Answer):
    model_config = _example(
        queries=[
            {
                "name": "dead",
                "description": "Units that no image activates.",
                "arguments": [
                    {
                        "name": "layer",
                        "type": "str",
                        "required": False,
                        "default": None,
                        "description": "only this layer",
                    }
                ],
                "address": "/v1/runs/squeeze-photos/query/dead",
            }
        ]
    )

    queries: list[QueryUsage]
