"""What a person asks for: the job spec, read from YAML or JSON, checked once at the border.

Frozen and closed: an unknown field, a wrong value or a rule broken between fields is a
``RequestError`` of one sentence.  A spec is data only; it also is the body of a request and lies in
the attributes of the run it made, so a round trip through JSON changes nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deconvoy.refusals import validated
from deconvoy.spec_file import override_field, read_fields

Auto = Literal["auto"]


class Section(BaseModel):
    """A part of the spec: frozen, and closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSpec(Section):
    name: str
    """``torchvision/NAME``, ``deconvoy/zfnet``, ``deconvoy/zfnet_small``,
    ``python/pkg.mod:factory`` or ``path/to/file.py:factory``."""
    weights: str | None = None
    """A .safetensors, .pt or .pth file, a torchvision weights name, or null: random, by seed."""
    weights_key: str = "auto"
    """Where the tensors lie inside a .pt file: ``state_dict``, ``model``, ``ema``, …"""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    classes: str | tuple[str, ...] | None = None
    """A file with one name a line, or a list; default: the categories of the weights."""
    checkpoints: tuple[str, ...] = ()
    """Weights files of the same model in training order, for the evolution of its features;
    ``weights`` is what they led to."""


class Transform(Section):
    """Decoded image → model input: resize the shorter side, crop the centre, normalise.

    ``mean`` and ``std`` have three entries, or one for a model of grey images (ITU-R 601).
    """

    resize: Annotated[int, Field(strict=True, ge=1, le=4096)]
    """Length of the shorter side after resizing, in pixels."""
    crop: Annotated[int, Field(strict=True, ge=1, le=4096)]
    """Side of the centre crop in pixels; a smaller image is padded with zeros."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the resizing; antialiased."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of an image in [0, 1]."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Then divides each channel."""

    @model_validator(mode="after")
    def _three_channels_or_one(self) -> "Transform":
        sizes = len(self.mean), len(self.std)
        if sizes not in ((3, 3), (1, 1)) or min(self.std) <= 0:
            raise ValueError(
                "mean and std are three numbers each (or one each, for a model of grey images), "
                "and std is positive"
            )
        return self

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)


class WhereSpec(Section):
    """Which images take part; all conditions must hold."""

    classes: tuple[int | str, ...] | None = None
    """Images labelled with one of these: output indices or class names."""
    wrong: bool = False
    """Only images whose predicted class is not their label."""
    ids: tuple[Annotated[int, Field(strict=True, ge=0)] | str, ...] | None = None
    """Only these images: paths, or places in the list of all, in sorted path order, from 0.  Where
    ``data.uri`` is a list, numbers are those of its first entry, paths of a later one begin with
    ``+1:``, ``+2:``, …, and an entry of which none is named is taken whole."""
    without: tuple[Annotated[int, Field(strict=True, ge=0)] | str, ...] = ()
    """Not these images: outliers, say, that ``deconvoy query URL images-most-hit`` found in a first
    run; named as in ``ids``."""


@dataclass(frozen=True)
class Place:
    """One of the places a job's images come from."""

    uri: str
    labels: str | None
    image_column: str
    label_column: str


class DataSpec(Section):
    uri: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """An image folder (class sub-folders or flat), Parquet files with image bytes, WebDataset
    .tar shards (``shard-{000..012}.tar`` for several), a .csv with the columns path and, if you
    like, label; each local, ``s3://…`` or ``https://…``.  Or ``shapes?size=…&seed=…``.  Or a list
    of such places, read in that order; ``limit`` and the classes of ``where`` then hold for each,
    and images of later ones are named ``+1:path``."""
    image_column: str = "auto"
    """Of Parquet files."""
    label_column: str = "auto"
    """Of Parquet files: whole numbers or class names."""
    labels: str | tuple[str | None, ...] | None = None
    """A CSV or Parquet file with the columns path, label and, if you like, name, which then names
    the output of a model that has no names of its own.  For a list of places a list of files, or
    null."""
    boxes: str | None = None
    """A CSV or Parquet file with the columns path, x0, y0, x1 and y1: where the objects are, a row
    each, in pixels of the image's file (turned as EXIF says), x1 and y1 outside; images are named
    as in ``where.ids``.  Occlusion figures show them and ``deconvoy query URL localisation`` counts
    by them."""
    parts: str | None = None
    """A CSV or Parquet file with the columns path, part, x0, y0, x1 and y1: where the parts of the
    objects are, a row each, as in ``boxes``, and at most one of each name an image.  What is masked
    to see how alike images change."""
    where: WhereSpec | None = None
    """Leave the other images out."""
    distinct: bool = False
    """Of images that are equal pixel by pixel after the transform, let only the first one be
    among the strongest."""
    limit: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Take this many images, evenly spaced over the sorted list."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unreadable images above which the job fails."""
    transform: Auto | Transform = "auto"
    """``auto``: the preset of the named weights, else what the factory declares, else the default
    preset of that torchvision model, else 256/224 with the ImageNet mean and deviation."""

    @model_validator(mode="after")
    def _labels_for_each_place(self) -> "DataSpec":
        several = isinstance(self.uri, tuple)
        if isinstance(self.labels, tuple) and (not several or len(self.labels) != len(self.uri)):
            raise ValueError("labels is a list of as many files as uri lists places, null for none")
        return self

    @property
    def places(self) -> tuple[Place, ...]:
        """Where images come from, one after the other."""
        uris = self.uri if isinstance(self.uri, tuple) else (self.uri,)
        files = self.labels if isinstance(self.labels, tuple) else (self.labels,) * len(uris)
        return tuple(
            Place(uri, labels, self.image_column, self.label_column)
            for uri, labels in zip(uris, files, strict=True)
        )


class Sample(Section):
    sample: Annotated[float, Field(gt=0, le=1)]
    """A random share of the units of each layer, drawn from the seed."""


class Ids(Section):
    ids: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)]
    """These units of every layer that has them."""


class BandsSpec(Section):
    count: Annotated[int, Field(strict=True, ge=2, le=20)] = 4
    """Quantile bands the images of a unit are cut into by how strongly they activate it."""
    examples: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Images drawn from each band, at random by the seed."""


class OutliersSpec(Section):
    multiple: Annotated[float, Field(gt=1)] = 3.0
    """An image is an outlier in a layer where the Euclidean norm of its image maxima is more than
    so many times that of the median image."""
    at_most: Annotated[int, Field(strict=True, ge=1, le=100)] = 10
    """Outliers left out of a layer, those of the largest norms first."""


class TopSpec(Section):
    kind: Literal["top"]
    k: Annotated[int, Field(strict=True, ge=1, le=100)] = 9
    """How many images, at most one hit each, are kept for every unit."""
    bottom: Annotated[int, Field(strict=True, ge=0, le=100)] = 0
    """How many images are kept besides that activate a unit least."""
    per_class: Annotated[int, Field(strict=True, ge=0, le=100)] = 0
    """How many of the strongest images of each class are kept besides; of each predicted class
    where the data carries no labels."""
    bands: BandsSpec | None = None
    """Keep random images of every quantile band besides."""
    outliers: OutliersSpec | None = None
    """Leave images out of the strongest that excite a whole layer; ``deconvoy query URL outliers``
    lists them."""


Method = Literal["deconvnet", "guided", "gradient"]
"""What a projection's rectifiers let pass."""


class ProjectionSpec(Section):
    kind: Literal["projection"]
    method: Method = "deconvnet"
    """Where a rectifier lets the signal pass on its way down: ``deconvnet``, where the signal is
    positive (Zeiler & Fergus 2013); ``gradient``, where its forward input was, and below its
    ceiling if it has one (Simonyan et al. 2013); ``guided``, where both were (Springenberg et al.
    2014).  All else is alike, so projections of the same hits can be compared."""
    layers: Literal["maps"] | Annotated[tuple[str, ...], Field(min_length=1)] = "maps"
    """``maps``: every layer with height × width > 1; or a list of names and globs."""
    units: Literal["all"] | Sample | Ids = "all"
    """Which units of those layers are projected."""


class DrawnImages(Section):
    sample: Annotated[int, Field(strict=True, ge=1)]
    """So many of the readable images, drawn by the seed; all of them where there are fewer."""


class NamedImages(Section):
    ids: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)] | str, ...], Field(min_length=1)]
    """These images, named as in ``data.where.ids``."""


class UnitName(Section):
    layer: str
    unit: Annotated[int, Field(strict=True, ge=0)]


class ImagesOfUnits(Section):
    top_of: Annotated[tuple[UnitName, ...], Field(min_length=1)]
    """The images of these units' strongest hits."""


Grey = Annotated[float, Field(ge=0, le=255)]
Fill = Literal["mean"] | Grey | tuple[Grey, Grey, Grey]


class OcclusionSpec(Section):
    kind: Literal["occlusion"]
    images: DrawnImages | NamedImages | ImagesOfUnits = DrawnImages(sample=32)
    """Over which images a grey square slides: ``{sample: 32}``, so many of the readable ones, drawn
    by the seed; ``{ids: [0, a/cat.png]}``, named as in ``data.where.ids``; or
    ``{top_of: [{layer: relu5, unit: 3}]}``, those of the units' strongest hits."""
    patch: Auto | Annotated[int, Field(strict=True, ge=1)] = "auto"
    """Side of the square in input pixels; ``auto``: a fourteenth of the image's side, at least 2
    (16 at 224 pixels)."""
    stride: Auto | Annotated[int, Field(strict=True, ge=1)] = "auto"
    """Pixels from one position of the square to the next; the last is flush with the border.
    ``auto``: half the patch, rounded up."""
    fill: Fill = "mean"
    """Colour of the square, 0–255, before normalisation: the mean of the transform, one number, or
    three."""
    top5: bool = False
    """Keep the five most probable classes at every position besides."""
    units: Literal["maps"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers of which every hit gets a square of its own, that slides over its receptive field:
    ``maps`` (those with height × width > 1), or a list of names and globs.  Its side is a fourth of
    the nominal field, rounded up, and no more than ``patch``; its stride half of that."""

    @model_validator(mode="before")
    @classmethod
    def _one_choice_of_images(cls, given: Any) -> Any:
        return _require_one_choice(given, "occlusion", ("sample", "ids", "top_of"))


def _require_one_choice(given: Any, kind: str, choices: tuple[str, ...]) -> Any:
    """Of the fields of an analysis, whose ``images`` are chosen in one way."""
    images = given.get("images") if isinstance(given, dict) else None
    if isinstance(images, dict) and len(set(choices) & set(images)) > 1:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(
            f"images of {article} {kind} analysis are one of {', '.join(choices[:-1])} and "
            f"{choices[-1]} (here: {', '.join(map(str, images))}): leave the others out"
        )
    return given


class Steps(Section):
    """Amounts evenly spaced, both ends among them."""

    first: float
    last: float
    count: Annotated[int, Field(strict=True, ge=2, le=1000)]

    @property
    def amounts(self) -> tuple[float, ...]:
        apart = (self.last - self.first) / (self.count - 1)
        return (*(self.first + step * apart for step in range(self.count - 1)), self.last)


Amounts = Steps | Annotated[tuple[float, ...], Field(min_length=1, max_length=1000)]


class InvarianceSpec(Section):
    kind: Literal["invariance"]
    images: DrawnImages | NamedImages = DrawnImages(sample=5)
    """Which images are moved: ``{sample: 5}``, so many of the readable ones, drawn by the seed; or
    ``{ids: [0, a/cat.png]}``, named as in ``data.where.ids``."""
    translation: Auto | Amounts | None = "auto"
    """How far down, in pixels of the preprocessed image, up where negative: a list, or ``{first:
    -60, last: 60, count: 13}``; ``auto``: thirteen steps of 27 % of the image's side either way, in
    whole pixels (±60 of 224); null: none."""
    scale: Amounts | None = Steps(first=1.0, last=1.8, count=9)
    """By what factor about the centre, from 0.1 to 10; null: none."""
    rotation: Amounts | None = Steps(first=0.0, last=360.0, count=25)
    """By how many degrees counter-clockwise about the centre; null: none."""
    border: Literal["mean", "edge", "reflect"] = "mean"
    """What comes in from beyond the border: the mean of the transform, the nearest pixel, or the
    image's reflection."""

    @model_validator(mode="before")
    @classmethod
    def _one_choice_of_images(cls, given: Any) -> Any:
        return _require_one_choice(given, "invariance", ("sample", "ids"))

    @model_validator(mode="after")
    def _moves(self) -> "InvarianceSpec":
        if self.translation is None and self.scale is None and self.rotation is None:
            raise ValueError(
                "translation, scale and rotation are all null, so nothing would be moved: leave "
                "one of them out, or give it a list"
            )
        if self.scale is not None and not all(0.1 <= s <= 10 for s in amounts_of(self.scale)):
            raise ValueError("scale has factors from 0.1 to 10")
        return self


class EvolutionSpec(Section):
    kind: Literal["evolution"]
    layers: Literal["maps"] | Annotated[tuple[str, ...], Field(min_length=1)] = "maps"
    """Layers whose strongest activation is projected at every checkpoint, by the method of the
    projection analysis: ``maps`` (those with height × width > 1), or a list of names and globs.
    How early they settle is found of all."""
    units: Literal["all"] | Sample | Ids = "all"
    """Which units of those layers are projected."""


class ScratchSpec(Section):
    """How the whole network is trained; momentum and the clipping of filters are the paper's."""

    epochs: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 30
    """Passes over the training images."""
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.01
    """At the start; it falls in a straight line to nearly nothing."""


class ProbeSpec(Section):
    kind: Literal["probe"]
    data: DataSpec
    """Labelled images of other classes; what is no model's business (``boxes``, ``transform``) is
    ignored: they are seen as the job's own images are."""
    layers: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    """Whose features are classified: ``all``, or a list of names and globs."""
    pool: Auto | Literal["flat"] | Annotated[int, Field(strict=True, ge=1, le=64)] = "auto"
    """Feature maps are averaged over a grid of so many cells a side; ``auto``: the finest that
    leaves no more than ``features``; ``flat``: none, every value is a feature."""
    features: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1024
    """Of a layer at most, where ``pool`` is ``auto``; a layer of more units keeps them all."""
    train: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=1, le=10_000)], ...], Field(min_length=1)
    ] = (15,)
    """Images of each class that are learned from; several numbers give a learning curve."""
    test: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 50
    """Other images of each class that are judged by, at most."""
    folds: Annotated[int, Field(strict=True, ge=1, le=100)] = 5
    """How often images are drawn anew, by the seed."""
    classifiers: Annotated[
        tuple[Literal["softmax", "svm"], ...], Field(min_length=1, max_length=2)
    ] = ("softmax", "svm")
    """Softmax regression, and a linear support vector machine."""
    c: Annotated[float, Field(gt=0, le=1e6)] = 0.01
    """Inverse strength of their regularisation, of standardised features."""
    random_weights: bool = True
    """The same with random weights, drawn by the seed."""
    scratch: ScratchSpec | None = None
    """Beside the classifiers, train the whole network on the same images, from random weights that
    the seed draws; its first outputs stand for the classes.  ``{}`` takes the defaults below; null:
    it is not trained."""


def amounts_of(given: Amounts) -> tuple[float, ...]:
    """One by one, as they were given or are spaced."""
    return given.amounts if isinstance(given, Steps) else given


class CorrespondenceSpec(Section):
    kind: Literal["correspondence"]
    images: DrawnImages | NamedImages = DrawnImages(sample=20)
    """In which images parts are covered, at least 2: ``{sample: 20}``, so many of the readable ones
    that have all the parts, drawn by the seed; or ``{ids: [0, a/cat.png]}``, named as in
    ``data.where.ids``."""
    parts: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    """Which parts are covered, one after the other: ``all`` that ``data.parts`` names, or a list
    of names."""
    fill: Fill = "mean"
    """Colour of what is covered, 0–255, before normalisation: the mean of the transform, one
    number, or three."""
    random: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 20
    """How often boxes of the same sizes are placed at random instead, for each part, to tell
    whether it corresponds more than chance has it; n draws give a p of 1/(n + 1) at the least."""

    @model_validator(mode="before")
    @classmethod
    def _one_choice_of_images(cls, given: Any) -> Any:
        return _require_one_choice(given, "correspondence", ("sample", "ids"))

    @model_validator(mode="after")
    def _compares_pairs(self) -> "CorrespondenceSpec":
        images = self.images
        count = images.sample if isinstance(images, DrawnImages) else len(set(images.ids))
        if count < 2:
            raise ValueError(
                "images of a correspondence analysis are compared in pairs, but there is 1: take 2 "
                "or more"
            )
        return self


Analysis = Annotated[
    TopSpec
    | ProjectionSpec
    | OcclusionSpec
    | InvarianceSpec
    | EvolutionSpec
    | CorrespondenceSpec
    | ProbeSpec,
    Field(discriminator="kind"),
]


class StorageSpec(Section):
    max_side: Annotated[int, Field(strict=True, ge=8, le=1024)] = 112
    """Pictures larger than this many pixels are stored scaled down (area)."""
    projection: Literal["int8", "float16"] = "int8"
    """int8 comes with a scale for each projection."""


class ComputeSpec(Section):
    workers: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = "auto"
    """``auto``: one per GPU, else one per ``threads`` cores, two where that is ``auto``; more as
    nodes join."""
    gpus_per_worker: Auto | Annotated[float, Field(ge=0, le=64)] = "auto"
    """``auto``: one where the cluster has GPUs, else none."""
    threads: Auto | Annotated[int, Field(strict=True, ge=1, le=256)] = "auto"
    """Threads a worker computes with; ``auto``: its share of the cores."""
    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = "auto"
    """Images a forward pass; fixed in the run at start."""
    shard_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 256
    """Images a lease; shards and batches are cut from the data alone."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the candidate scan; stored scores are float32.  bfloat16 is fast where the processor or
    the GPU computes in it; the images it finds are scanned again exactly.  Pays from some 10⁵
    images up."""

    @model_validator(mode="before")
    @classmethod
    def _without_layout(cls, fields: Any) -> Any:
        """Runs of an earlier version say that maps were contiguous, as they all were then."""
        if isinstance(fields, dict) and fields.get("layout") == "contiguous":
            return {name: value for name, value in fields.items() if name != "layout"}
        return fields

    @model_validator(mode="after")
    def _whole_gpus(self) -> "ComputeSpec":
        gpus = self.gpus_per_worker
        if gpus != "auto" and gpus > 1 and gpus != int(gpus):
            raise ValueError("gpus_per_worker above 1 is a whole number")
        return self

    @property
    def exact(self) -> bool:
        """Whether the scan itself decides; if not, it finds candidates, which are scanned again."""
        return self.precision == "float32"


class JobSpec(Section):
    """One job: a model, images, and what to find out."""

    version: Literal[1] = 1
    name: str | None = None
    """For people."""
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] = 0
    model: ModelSpec
    data: DataSpec
    layers: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    """``all``, or a list of layer names and globs."""
    analyses: tuple[Analysis, ...] = (TopSpec(kind="top"), ProjectionSpec(kind="projection"))
    storage: StorageSpec = StorageSpec()
    compute: ComputeSpec = ComputeSpec()

    @model_validator(mode="after")
    def _top_comes_once(self) -> "JobSpec":
        kinds = [analysis.kind for analysis in self.analyses]
        if kinds.count("top") != 1 or len(set(kinds)) < len(kinds):
            raise ValueError(
                "analyses names kind: top exactly once and every other kind at most once (here: "
                f"{', '.join(kinds) or 'nothing'})"
            )
        return self

    @model_validator(mode="after")
    def _candidates_are_of_the_strongest(self) -> "JobSpec":
        top, where = self.top, self.data.where
        asked = [
            name for name in ("bottom", "per_class", "bands", "outliers") if getattr(top, name)
        ]
        if where is not None and where.wrong:
            asked.append("data.where.wrong")
        if asked and not self.compute.exact:
            raise ValueError(
                "compute.precision other than float32 only finds candidates for the strongest "
                f"hits, but the job asks for {', '.join(asked)} besides, which needs exact scores "
                "of all images: leave one of the two out"
            )
        return self

    @property
    def network(self) -> str:
        """The name of the model."""
        return self.model.name

    @property
    def top(self) -> TopSpec:
        return next(a for a in self.analyses if isinstance(a, TopSpec))

    @property
    def projection(self) -> ProjectionSpec | None:
        return next((a for a in self.analyses if isinstance(a, ProjectionSpec)), None)

    @property
    def method(self) -> Method:
        """Of the projections of hits; those of occlusion figures are always the deconvnet's."""
        return self.projection.method if self.projection else "deconvnet"

    @property
    def occlusion(self) -> OcclusionSpec | None:
        return next((a for a in self.analyses if isinstance(a, OcclusionSpec)), None)

    @model_validator(mode="after")
    def _checkpoints_lead_somewhere(self) -> "JobSpec":
        if self.evolution is None:
            return self
        if not self.model.checkpoints or self.model.weights is None:
            raise ValueError(
                "an analysis of kind evolution needs model.checkpoints, weights files in training "
                "order, and model.weights, what they led to (here: "
                f"{len(self.model.checkpoints)} checkpoints, weights {self.model.weights!r})"
            )
        if self.top.outliers:
            raise ValueError(
                "analyses.top.outliers leaves images out by what they do at the end, so an "
                "analysis of kind evolution cannot compare it with before: leave one of the two out"
            )
        if self.data.where is not None and self.data.where.wrong:
            raise ValueError(
                "data.where.wrong takes other images at every checkpoint, so an analysis of kind "
                "evolution cannot compare them: leave one of the two out"
            )
        return self

    @property
    def evolution(self) -> EvolutionSpec | None:
        return next((a for a in self.analyses if isinstance(a, EvolutionSpec)), None)

    @property
    def correspondence(self) -> CorrespondenceSpec | None:
        return next((a for a in self.analyses if isinstance(a, CorrespondenceSpec)), None)

    @property
    def probe(self) -> ProbeSpec | None:
        return next((a for a in self.analyses if isinstance(a, ProbeSpec)), None)

    @property
    def invariance(self) -> InvarianceSpec | None:
        return next((a for a in self.analyses if isinstance(a, InvarianceSpec)), None)

    @classmethod
    def parse(cls, fields: Any) -> "JobSpec":
        """The spec these plain fields describe.

        Raises:
            RequestError: naming every wrong field, its value and the rule; a ``FieldInvalid``, of
                the first.
        """
        return validated(cls, fields, "`model: {name: …}` and `data: {uri: …}`")

    @classmethod
    def from_file(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "JobSpec":
        """Read a YAML or JSON file; relative paths in it stay relative to the working directory.

        Args:
            overrides: ``key=value`` each, dots for depth (``data.limit=100``), the value as YAML.
        """
        fields = read_fields(path)
        for override in overrides:
            override_field(fields, override)
        return cls.parse(fields)

    def to_json(self) -> dict[str, Any]:
        """Plain fields; ``parse`` of them is this spec again."""
        return self.model_dump(mode="json")
