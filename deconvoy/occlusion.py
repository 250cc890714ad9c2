"""What a grey square hides from a model: the panels of one image's Fig. 7, as arrays.

Zeiler & Fergus (2013, arXiv:1311.2901) section 4.2: a grey square slides over the image, and for
every position of it one sees what the model still makes of the picture.  A run's sweep and one of a
picture that nobody scanned are the same thing here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float32, Int32, Int64, UInt8
from numpy import ndarray


@dataclass(frozen=True)
class Occlusion:
    """One image under a grey square at every position of a grid."""

    image: int
    """Its id; −1 of a picture that the run has not scanned."""
    uri: str
    size: tuple[int, int]
    """Height and width of the preprocessed image, in whose pixels all places are."""
    y: Int32[ndarray, " gy"]
    """Top rows of the square."""
    x: Int32[ndarray, " gx"]
    """Left columns of the square."""
    patch: int
    """Side of the square."""
    stride: int
    fill: tuple[float, ...]
    """Colour of the square, 0–255, a number a channel."""
    target: int
    """Class whose probability is watched: the image's label, or the predicted one where it has
    none."""
    probability: Float32[ndarray, "gy gx"]
    """Of the target: the softmax output, 0–1.  Fig. 7 (d)."""
    clean_probability: float
    label: Int64[ndarray, "gy gx"]
    """The most probable class.  Fig. 7 (e)."""
    clean_label: int
    top5: Int64[ndarray, "gy gx rank"] | None
    """The five most probable classes, where they were asked for."""
    top5_probability: Float32[ndarray, "gy gx rank"] | None
    unit: Mapping[str, int]
    """Of each layer, in execution order, the map that is strongest in the clean image."""
    activity: Mapping[str, Float32[ndarray, "gy gx"]]
    """The sum over that map.  Fig. 7 (b)."""
    clean_activity: Mapping[str, float]
    picture: UInt8[ndarray, "h w 3"]
    """The preprocessed image, RGB; scaled down where it is larger than the run stores.  Fig. 7
    (a)."""
    projection: Mapping[str, Float32[ndarray, "h w 3"]]
    """Of that map's maximum, on the whole image, signed, in units of the normalised input; layers
    that cannot be projected are absent.  Fig. 7 (c)."""
    boxes: Int32[ndarray, "box y0x0y1x1"]
    """Where the object is, half-open; none where the data carries no boxes."""
    classes: tuple[str, ...]
    """Names of the model's outputs; empty where unknown."""
    maps: tuple[str, ...] = ()
    """Layers of feature maps among ``unit``, without those that have one map for every class; the
    last one is that of the paper's figure.  Empty where nobody looked."""

    @property
    def weakest(self) -> tuple[float, float]:
        """Centre (y, x) of the square under which the target is least probable, in input pixels; of
        equals the first in reading order."""
        row, col = divmod(int(self.probability.argmin()), len(self.x))
        return float(self.y[row]) + self.patch / 2, float(self.x[col]) + self.patch / 2

    def default_layer(self) -> str:
        """The layer whose strongest map a figure shows unless told: the last of feature maps."""
        projected = [name for name in self.projection if name != "logits"]
        return (self.maps or projected or tuple(self.unit))[-1]

    def name_of(self, label: int) -> str:
        """A class for people."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"
