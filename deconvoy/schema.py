"""Every array of a run, in one table that the writer, the reader and the documentation share.

Axes: ``unit`` a feature map or neuron; ``rank`` 0 is the strongest hit; ``yx`` row and column;
``y0x0y1x1`` a half-open box; ``y x channel`` a picture, RGB (of a model of grey images three equal
channels, so that every reader shows it).
``deconvoy.format_page`` writes the table as a page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

FORMAT = "deconvoy-run/1"
"""Written in the attributes of every run; a reader refuses a number it does not know."""

MISSING_SCORE = float("-inf")
MISSING_IMAGE = -1
MISSING_LABEL = -1

PAD_PIXEL = 128
"""Stored patches show this grey where their window reaches beyond the image."""


@dataclass(frozen=True)
class ArrayField:
    """One array of a layer's group."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    fill: int | float = 0
    pictures: bool = False
    """Stored one unit a chunk, many a Zarr shard; else one chunk a layer."""
    only: str = ""
    """When it is there, for people; empty: always."""


LAYER_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "score",
        ("unit", "rank"),
        "float32",
        "activation",
        "the unit's spatial maximum over the image, strongest first; −inf where there is no hit",
        fill=MISSING_SCORE,
    ),
    ArrayField(
        "image",
        ("unit", "rank"),
        "int64",
        "image id",
        "the image of the hit; −1 where there is no hit",
        fill=MISSING_IMAGE,
    ),
    ArrayField(
        "label",
        ("unit", "rank"),
        "int64",
        "output index",
        "true class of the hit's image, or the predicted one where the data carries no labels (the "
        "root attribute `labels` says which); −1 where unknown",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "position",
        ("unit", "rank", "yx"),
        "int32",
        "feature-map cells",
        "where in the feature map the maximum lies; the first in reading order among equals",
        fill=-1,
    ),
    ArrayField(
        "box",
        ("unit", "rank", "y0x0y1x1"),
        "int32",
        "input pixels",
        "receptive field of the hit, half-open, clipped to the preprocessed image",
    ),
    ArrayField(
        "window",
        ("unit", "rank", "y0x0y1x1"),
        "int32",
        "input pixels",
        "what patch and projection show: the unclipped field where it is smaller than the image, "
        "else the whole image",
    ),
    ArrayField(
        "patch",
        ("unit", "rank", "y", "x", "channel"),
        "uint8",
        "0–255",
        "the preprocessed image in the window, before normalisation; RGB, or three equal channels "
        f"for a model of grey images; {PAD_PIXEL} beyond the image",
        pictures=True,
    ),
    ArrayField(
        "projection",
        ("unit", "rank", "y", "x", "channel"),
        "int8 or float16",
        "normalised input ÷ scale",
        "the hit projected to pixels, in the window, signed, by the method that the attribute "
        "`method` names (`deconvnet`, `guided` or `gradient`; without it, `deconvnet`); times "
        "scale it is in units of the normalised input; three equal channels for a model of grey "
        "images",
        pictures=True,
    ),
    ArrayField(
        "scale",
        ("unit", "rank"),
        "float32",
        "normalised input",
        "factor of the stored projection",
    ),
    ArrayField(
        "projected",
        ("unit",),
        "bool",
        "",
        "whether patch, projection and scale of the unit were computed",
    ),
    ArrayField(
        "mean",
        ("unit",),
        "float64",
        "activation",
        "mean of the image maxima over all readable images",
    ),
    ArrayField(
        "density",
        ("unit",),
        "float64",
        "share of images",
        "share of the readable images whose maximum is above zero",
    ),
    ArrayField(
        "histogram",
        ("unit", "bin"),
        "int64",
        "images",
        "how many image maxima fall in each bin; the edges are in the array's attributes",
    ),
)

EXAMPLE_KINDS: Mapping[str, str] = {"bottom": "bottom", "class": "per_class", "band": "bands"}
"""Kinds of examples, and the field of the top analysis that asks for each."""

EXAMPLE_ARRAYS: tuple[ArrayField, ...] = tuple(
    field
    for name, dims, told in (
        ("bottom", ("unit", "rank"), "images that activate the unit least, weakest first"),
        (
            "class",
            ("unit", "class", "rank"),
            "strongest images of each class (predicted ones where the data carries no labels)",
        ),
        (
            "band",
            ("unit", "band", "rank"),
            "random images of each quantile band of the image maxima, weakest band first; bands "
            "are cut at the edges of the histogram",
        ),
    )
    for field in (
        ArrayField(
            f"{name}_score",
            dims,
            "float32",
            "activation",
            f"image maxima of {name}_image",
            fill=MISSING_SCORE,
        ),
        ArrayField(f"{name}_image", dims, "int64", "image id", told, fill=MISSING_IMAGE),
    )
)
"""Written where the top analysis asks for them: ``bottom``, ``per_class``, ``bands``."""

OUTLIER_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "outlier_image",
        ("outlier",),
        "int64",
        "image id",
        "images left out of the layer's hits, largest norm first; the attribute outlier_limit is "
        "the norm above which they are",
        fill=MISSING_IMAGE,
    ),
    ArrayField(
        "outlier_norm",
        ("outlier",),
        "float64",
        "activation",
        "Euclidean norms of their image maxima",
    ),
)
"""Written where the top analysis asks for it: ``outliers``."""

UNIT_OCCLUSION = ArrayField(
    "occlusion",
    ("unit", "rank", "gy", "gx"),
    "float32",
    "activation",
    "the unit's activation at the hit's position while a square covers part of its box; squares "
    "stand in the box every stride pixels and flush with its end, and where the border cuts the "
    "box, there are fewer and the rest is NaN; NaN where there is no hit; patch, stride and fill "
    "are in the array's attributes",
    fill=float("nan"),
    only="with `units` of the occlusion analysis",
)
"""In a layer's group."""

_SWEPT = ("image", "gy", "gx")

OCCLUSION_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField("y", ("gy",), "int32", "input pixels", "top rows of the square"),
    ArrayField("x", ("gx",), "int32", "input pixels", "left columns of the square"),
    ArrayField(
        "image",
        ("image",),
        "int64",
        "image id",
        "the image the square slides over; −1 where that is not done yet",
        fill=MISSING_IMAGE,
    ),
    ArrayField(
        "target",
        ("image",),
        "int64",
        "output index",
        "the class whose probability is kept: the image's label, or the most probable one where it "
        "has none",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "probability", _SWEPT, "float32", "0–1", "of the target, under the square; by the softmax"
    ),
    ArrayField("clean_probability", ("image",), "float32", "0–1", "of the target, without it"),
    ArrayField(
        "label",
        _SWEPT,
        "int64",
        "output index",
        "the most probable class under the square",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "clean_label",
        ("image",),
        "int64",
        "output index",
        "the most probable class without it",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "top5",
        (*_SWEPT, "rank"),
        "int64",
        "output index",
        "the five most probable classes under the square (all, of a model of fewer)",
        fill=MISSING_LABEL,
        only="with `top5`",
    ),
    ArrayField(
        "top5_probability",
        (*_SWEPT, "rank"),
        "float32",
        "0–1",
        "theirs",
        only="with `top5`",
    ),
    ArrayField(
        "unit",
        ("image", "layer"),
        "int32",
        "",
        "of each layer (the attribute `layers` names them), the map with the largest maximum "
        "without the square",
        fill=-1,
    ),
    ArrayField(
        "activity",
        ("image", "layer", "gy", "gx"),
        "float32",
        "activation",
        "the sum over that map under the square",
    ),
    ArrayField(
        "clean_activity",
        ("image", "layer"),
        "float32",
        "activation",
        "the sum over that map without it",
    ),
    ArrayField(
        "picture",
        ("image", "y", "x", "channel"),
        "uint8",
        "0–255",
        "the preprocessed image before normalisation; scaled down to `storage.max_side`",
    ),
    ArrayField(
        "projection",
        ("image", "layer", "y", "x", "channel"),
        "int8 or float16",
        "normalised input ÷ scale",
        "the deconvnet projection of that map's maximum, on the whole image; scaled down as the "
        "picture",
    ),
    ArrayField(
        "scale",
        ("image", "layer"),
        "float32",
        "normalised input",
        "factor of the stored projection; 0 where the layer cannot be projected or nothing comes "
        "down",
    ),
    ArrayField(
        "box",
        ("image", "box", "y0x0y1x1"),
        "int32",
        "input pixels",
        "where the object is, half-open, in the preprocessed image; −1 where an image has fewer",
        fill=-1,
        only="where the data has boxes",
    ),
)
"""In the group ``occlusion``: one image a chunk, but ``y`` and ``x``."""

INVARIANCE_GROUP = "invariance"

_MOVED = ("image", "step")

INVARIANCE_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "transformation",
        ("step",),
        "uint8",
        "",
        "how each step moves the image: an index into the attribute `transformations`",
    ),
    ArrayField(
        "amount",
        ("step",),
        "float64",
        "input pixels down, factor, or degrees counter-clockwise",
        "by how much",
    ),
    ArrayField(
        "image",
        ("image",),
        "int64",
        "image id",
        "the image that is moved; −1 where that is not done yet",
        fill=MISSING_IMAGE,
    ),
    ArrayField(
        "target",
        ("image",),
        "int64",
        "output index",
        "the class whose probability is kept: the image's label, or the most probable one where it "
        "has none",
        fill=MISSING_LABEL,
    ),
    ArrayField("probability", _MOVED, "float32", "0–1", "of the target, in the moved image"),
    ArrayField("clean_probability", ("image",), "float32", "0–1", "of the target, in the image"),
    ArrayField(
        "label",
        _MOVED,
        "int64",
        "output index",
        "the most probable class in the moved image",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "clean_label",
        ("image",),
        "int64",
        "output index",
        "the most probable class in the image",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "distance",
        (*_MOVED, "layer"),
        "float64",
        "activation",
        "Euclidean distance between a layer's whole output in the image and in the moved one (the "
        "attribute `layers` names the layers)",
    ),
    ArrayField(
        "norm",
        ("image", "layer"),
        "float64",
        "activation",
        "Euclidean norm of a layer's whole output in the image; distance ÷ norm is relative",
    ),
)
"""In the group ``invariance``: one image a chunk, but ``transformation`` and ``amount``."""

CORRESPONDENCE_GROUP = "correspondence"

_COVERED = ("part", "draw", "layer")

CORRESPONDENCE_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField("image", ("image",), "int64", "image id", "the images whose parts are covered"),
    ArrayField(
        "delta",
        _COVERED,
        "float64",
        "share of signs",
        "how differently the images change in a layer: the mean over all pairs of the Hamming "
        "distance between the signs of what covering a box changes, by dimension (the attributes "
        "`parts` and `layers` name them); draw 0 is the part itself, the others boxes of the same "
        "sizes at random; NaN where that is not done yet",
        fill=float("nan"),
    ),
    ArrayField(
        "deviation",
        _COVERED,
        "float64",
        "share of signs",
        "standard deviation of the pairs' distances",
        fill=float("nan"),
    ),
)
"""In the group ``correspondence``."""

PROBE_GROUP = "probe"

_FITTED = ("weights", "layer", "classifier", "size", "fold")

PROBE_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "label",
        ("image",),
        "int64",
        "class",
        "of each image of the probe's data, in reading order: an index into the attribute "
        "`classes`; −1 where unknown",
        fill=MISSING_LABEL,
    ),
    ArrayField(
        "read",
        ("weights", "image"),
        "bool",
        "",
        "whether it could be read, and its features are there",
    ),
    ArrayField(
        "accuracy",
        _FITTED,
        "float64",
        "0–1",
        "mean over the classes of the share of their test images that are told right (the "
        "attributes `weights`, `layers`, `classifiers` and `train` name the axes); NaN where that "
        "is not done yet",
        fill=float("nan"),
    ),
    ArrayField(
        "converged",
        _FITTED,
        "bool",
        "",
        "whether the fit came to its end within its iterations",
    ),
)
"""In the group ``probe``."""

PROBE_SCRATCH = ArrayField(
    "scratch",
    ("size", "fold"),
    "float64",
    "0–1",
    "the accuracy of the whole network, trained from random weights on the training images; NaN "
    "where that is not done yet",
    fill=float("nan"),
    only="with `scratch`",
)
"""In the group ``probe``, where the spec asks for it."""

PROBE_FEATURES = ArrayField(
    "features",
    ("image", "feature"),
    "float32",
    "activation",
    "of each image, averaged over cells as the attribute `pooled` says; cells in reading order "
    "within each unit",
)
"""In ``probe/<weights>/<layer>``: some images a chunk."""


def features_path(weights: str, layer: str) -> str:
    """Path of the group of a layer's features, by these weights."""
    return f"{PROBE_GROUP}/{weights}/{layer_path(layer).removeprefix('layers/')}"


EVOLUTION_GROUP = "evolution"

_OVER_TIME = ("unit", "checkpoint")

EVOLUTION_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "score",
        _OVER_TIME,
        "float32",
        "activation",
        "the unit's strongest activation at the checkpoint; −inf where it has none",
        fill=MISSING_SCORE,
    ),
    ArrayField(
        "image",
        _OVER_TIME,
        "int64",
        "image id",
        "the image of it; −1 where it has none",
        fill=MISSING_IMAGE,
    ),
    ArrayField(
        "position", (*_OVER_TIME, "yx"), "int32", "feature-map cells", "where it lies", fill=-1
    ),
    ArrayField(
        "overlap",
        _OVER_TIME,
        "float32",
        "share of images",
        "share of the unit's strongest images at the end that are among its strongest at the "
        "checkpoint; NaN where it has none at the end",
        fill=float("nan"),
    ),
    ArrayField(
        "cosine",
        _OVER_TIME,
        "float32",
        "−1–1",
        "of the angle between the unit's filter at the checkpoint and at the end; NaN where the "
        "layer has no filter of its own",
        fill=float("nan"),
    ),
    ArrayField(
        "patch",
        (*_OVER_TIME, "y", "x", "channel"),
        "uint8",
        "0–255",
        "as a layer's, of the strongest activation at each checkpoint",
        pictures=True,
        only="of layers that are projected",
    ),
    ArrayField(
        "projection",
        (*_OVER_TIME, "y", "x", "channel"),
        "int8 or float16",
        "normalised input ÷ scale",
        "as a layer's, by the network of the checkpoint",
        pictures=True,
        only="of layers that are projected",
    ),
    ArrayField(
        "scale",
        _OVER_TIME,
        "float32",
        "normalised input",
        "factor of the stored projection",
        only="of layers that are projected",
    ),
    ArrayField(
        "projected",
        ("unit",),
        "bool",
        "",
        "whether patch, projection and scale of the unit were computed",
        only="of layers that are projected",
    ),
)
"""In a layer's group below ``evolution``."""


def evolution_path(layer: str) -> str:
    """Path of a layer's group below the evolution."""
    return f"{EVOLUTION_GROUP}/{layer_path(layer).removeprefix('layers/')}"


IMAGE_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("id", "int64", "increases in reading order (folders in sorted path order)"),
    ("uri", "string", "path below the data set, or index of a generated image"),
    ("label", "int64", "output index of the true class; null where unknown"),
    ("width", "int32", "pixels of the file, turned as EXIF says; null where unreadable"),
    ("height", "int32", "pixels of the file, turned as EXIF says; null where unreadable"),
    ("predicted", "int64", "output index of the most probable class"),
    ("probability", "float32", "its softmax probability"),
    ("skipped", "string", "why the image was left out; null where it was read"),
)


def images_schema() -> pa.Schema:
    """The columns of the images table with their types."""
    return pa.schema([(name, pa.type_for_alias(dtype)) for name, dtype, _ in IMAGE_COLUMNS])


def histogram_edges() -> Float64[np.ndarray, " edge"]:
    """Edges of the histogram of image maxima: two bins an octave, mirrored, ±2⁻⁸ … ±2¹².

    Fixed for every layer, so that shards, runs and checkpoints add up without a first pass over
    the data.  Bin ``i`` counts ``edges[i] <= maximum < edges[i + 1]``; the outermost edges are
    infinite.  Zero (a unit that is silent on an image) has the bin around zero to itself.
    """
    # float32 values, so that comparing float32 maxima with them means the same everywhere
    positive = (2.0 ** np.arange(-8, 12.5, 0.5)).astype(np.float32).astype(np.float64)
    return np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]])


def layer_path(layer: str) -> str:
    """Path of a layer's group below the run; the name is escaped, so it can never leave it."""
    escaped = quote(layer, safe="")
    return "layers/" + (escaped if escaped.strip(".") else escaped.replace(".", "%2E"))


def image_part_path(part: int) -> str:
    return f"images/part-{part:06d}.parquet"


STUDY_GROUP = "study"

_NAN = float("nan")

STUDY_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "diverged",
        ("training",),
        "int32",
        "epochs",
        "the epoch, from 1, in which loss or weights were not finite any more, from which on the "
        "training has no numbers; 0 if they always were",
    ),
    ArrayField(
        "loss",
        ("training", "epoch"),
        "float64",
        "nats",
        "mean cross-entropy of the training images while the weights moved, with dropout; one "
        "training is a repeat of a network, all repeats of the first network first; NaN where it "
        "is not done yet",
        fill=_NAN,
    ),
    ArrayField(
        "running_error",
        ("training", "epoch"),
        "float64",
        "0–1",
        "share of the training images told wrong, under the same conditions",
        fill=_NAN,
    ),
    ArrayField(
        "training_error",
        ("training", "top"),
        "float64",
        "0–1",
        "share of the training images, at the end and without dropout, whose class is not the "
        "first, or not among the first five (of fewer classes: of all)",
        fill=_NAN,
    ),
    ArrayField(
        "validation_error",
        ("training", "epoch", "top"),
        "float64",
        "0–1",
        "the same of the validation images, after every epoch",
        fill=_NAN,
    ),
)
"""In the group ``study``."""

FIRST_LAYER_ARRAYS: tuple[ArrayField, ...] = (
    ArrayField(
        "filter",
        ("repeat", "unit", "y", "x", "channel"),
        "float32",
        "1",
        "of the convolution that sees the normalised image, at the end",
        fill=_NAN,
    ),
    ArrayField(
        "rms", ("repeat", "unit"), "float64", "1", "root mean square of the filter", fill=_NAN
    ),
    ArrayField(
        "peak",
        ("repeat", "unit"),
        "float32",
        "activation",
        "its strongest activation over the validation images, rectified: 0 of a dead one",
        fill=_NAN,
    ),
    ArrayField(
        "frequency",
        ("repeat", "unit", "band"),
        "float64",
        "0–1",
        "share of its power at low (below 1/6), middle and high (from 1/3 on) frequencies, in "
        "cycles a pixel; NaN of a filter that is nothing",
        fill=_NAN,
    ),
)
"""In the group ``study/<network>``, networks counted from 0."""


def first_layer_path(network: int) -> str:
    """Path of the group of a network's first layer."""
    return f"{STUDY_GROUP}/{network}"


def checkpoint_path(network: int, repeat: int, epoch: int) -> str:
    """Path of a network's weights after an epoch, counted from 1."""
    return f"networks/{network}/{repeat}/epoch-{epoch:03d}.safetensors"
