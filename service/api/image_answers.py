"""What the routes about images answer, and those about what a square hides of them."""

from pydantic import Field

from service.api.answers import LAYER, Answer, example_of

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
    "picture": "/v1/runs/squeeze-photos/images/1203.jpg?v=3f2a9c0d1e4b5a67",
}


class ImageRow(Answer):
    """One image of the data set."""

    model_config = example_of(**IMAGE)

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
    picture: str | None
    """Null where the run keeps none whole, and its file may not be read."""


class ImagePage(Answer):
    model_config = example_of(total=5000, offset=0, next=None, images=[IMAGE])

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
    projected: bool
    """Whether there are pictures of it."""


class LayerCount(Answer):
    """How many units of a layer have the image among their strongest."""

    layer: str
    units: int


class ImageDetails(ImageRow):
    """One image, and which units it excites most."""

    model_config = example_of(
        **IMAGE,
        hits=[{"layer": LAYER["layer"], "unit": 42, "rank": 0, "score": 41.25, "projected": True}],
        layers=[{"layer": LAYER["layer"], "units": 1}],
        occluded=False,
    )

    hits: list[ImageHit]
    """By layer, then rank, then score; of each layer so many at most."""
    layers: list[LayerCount]
    """Those that have any."""
    occluded: bool


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
    model_config = example_of(occlusion=[_OCCLUDED])

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

    model_config = example_of(
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
