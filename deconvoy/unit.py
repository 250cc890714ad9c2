"""One unit of a layer: its strongest hits, and what they look like."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from PIL import Image

from deconvoy.arrays import read_from
from deconvoy.errors import RunNotFound
from deconvoy.figures import UnitPictures, figure2
from deconvoy.occlusion import UnitOcclusion, occlusion_of_unit

if TYPE_CHECKING:
    from deconvoy.run import Run


@dataclass(frozen=True)
class Unit:
    """One feature map or neuron and its strongest hits, strongest first.

    A missing hit (fewer images than ranks, or a dead unit) has score −inf and image −1.
    """

    layer: str
    index: int
    score: Float32[np.ndarray, " rank"]
    image: Int64[np.ndarray, " rank"]
    position: Int32[np.ndarray, "rank yx"]
    """Row and column in the feature map."""
    box: Int32[np.ndarray, "rank y0x0y1x1"]
    """Receptive field in preprocessed-image pixels, half-open, clipped to the image."""
    window: Int32[np.ndarray, "rank y0x0y1x1"]
    """What the pictures show, unclipped."""
    labels: tuple[str, ...]
    """Class names of the images, predicted ones if ``Run.labels`` says so; empty where unknown."""
    _run: "Run"

    @property
    def dead(self) -> bool:
        """No image activates it."""
        return self.empty and not self._run.density(self.layer)[self.index]

    @property
    def empty(self) -> bool:
        """It has no hits: it is dead, or all images that activate it are left out as outliers."""
        return bool((self.image < 0).all())

    @cached_property
    def patches(self) -> UInt8[np.ndarray, "rank h w 3"]:
        """The images in the windows, RGB."""
        return np.asarray(self._pictures("patch"))

    @cached_property
    def projections(self) -> Float32[np.ndarray, "rank h w 3"]:
        """Projections in the windows, signed, in units of the normalised input; by the method that
        ``Run.spec.method`` names."""
        stored = np.asarray(self._pictures("projection")).astype(np.float32)
        scale = self._run.hit_table(self.layer, "scale")[self.index].astype(np.float32)
        stored *= scale[:, None, None, None]
        return stored

    @cached_property
    def occlusion(self) -> tuple[UnitOcclusion, ...]:
        """Its activation at each hit under a square that slides over the receptive field."""
        return occlusion_of_unit(self._run, self)

    def _pictures(self, name: str) -> Any:
        if not self.projected:
            raise RunNotFound(
                f"Unit {self.index} of layer {self.layer!r} has no pictures in {self._run.url!r}: "
                f"{self._run.projected_told(self.layer)}"
            )
        return read_from(self._run.layer_array(self.layer, name), self.index)

    @property
    def projected(self) -> bool:
        """Whether it has pictures: patches and projections."""
        projected = self._run.projected_flags(self.layer)
        return projected is not None and bool(projected[self.index])

    @property
    def pictures(self) -> UnitPictures:
        """What figures are drawn from."""
        name = self._run.output_name(self.layer, self.index)
        return UnitPictures(
            self.layer, self.index, self.score, self.labels, self.patches, self.projections, name,
            self._run.spec.method,
        )  # fmt: skip

    def figure(self, **look: Any) -> Image.Image:
        """The unit as in Fig. 2: nine projections beside nine patches (see ``figures.figure2``)."""
        return figure2([self.pictures], **look)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from deconvoy.markup import of_unit

        return of_unit(self, self._run)
