"""Open a run and read what it holds: arrays of a unit, tables of hits, images and layers.

Everything is read lazily, a unit by its own chunk.  A run can be read while it is being made; what
is not there yet is told in a sentence.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from jaxtyping import Float64, Int64
from PIL import Image
from zarr.errors import BaseZarrError

from deconvoy import tombstone
from deconvoy.arrays import array_of, read
from deconvoy.correspondence import Correspondence, correspondence_of
from deconvoy.errors import MissingExtra, RunNotFound, RunUnreachable, RunUnreadable
from deconvoy.evolution import Evolution, evolution_of
from deconvoy.figures import figure2
from deconvoy.hits import HIT_TABLES, examples_of, hits_of, outliers_of
from deconvoy.images_table import images_part
from deconvoy.invariance import Invariance, invariance_of
from deconvoy.kept import KEPT_BYTES, KeptArrays
from deconvoy.likeness import nearest
from deconvoy.occlusion import (
    Occlusion,
    occluded,
    occlusion_of,
)
from deconvoy.probe import Probe, probe_of
from deconvoy.schema import FORMAT, MISSING_LABEL, layer_path
from deconvoy.spec import JobSpec
from deconvoy.store import METADATA, RunStore
from deconvoy.study import Study, study_of
from deconvoy.study_spec import StudySpec
from deconvoy.unit import Unit

FIGURE_UNITS = 16
"""Units of a Fig. 2 unless told."""


_BREAKS = (BaseZarrError, OSError, ValueError, KeyError, TypeError)


def attributes_in(content: bytes, url: str) -> dict[str, Any]:
    """The attributes of the run whose ``zarr.json`` this is.

    Raises:
        RunBeingDeleted: it is no run any more.
        RunUnreadable: something else than a run, or one of a newer format.
    """
    try:
        metadata = json.loads(content)
        attributes = dict(metadata["attributes"])
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(url, error) from error
    tombstone.refuse(url, metadata)
    if attributes.get("format") != FORMAT:
        raise RunUnreadable(
            f"{url!r} has the format {attributes.get('format')!r}, but this version of deconvoy "
            f"reads {FORMAT!r}: use the version that wrote it."
        )
    lacking = [name for name in _NEEDED if name not in attributes]
    state = attributes.get("state")
    if lacking or not isinstance(state, dict) or "status" not in state:
        told = ", ".join(lacking) or "a status"
        raise RunUnreadable(
            f"The run at {url!r} is broken: its attributes lack {told}; copy its zarr.json again "
            "from where it is whole, or make the run anew."
        )
    return attributes


_NEEDED = ("spec", "state", "layers", "classes", "labels", "provenance")
"""Attributes that every run has from its beginning."""


def _broken(url: str, error: Exception) -> RunUnreadable:
    told = str(error) or type(error).__name__
    return RunUnreadable(f"The run at {url!r} is broken: {told}")


class Run:
    """A run, as it was when it was opened.

    Of one that is done, the small tables that were read are kept (``deconvoy.kept``).

    Raises:
        RunNotFound: nothing there, or what is left of a deletion.
        RunUnreadable: something else than a run, or one of a newer format.
        RunUnreachable: a bucket or a service that does not answer.
    """

    def __init__(self, url: str | os.PathLike[str], token: str | None = None) -> None:
        self._store = RunStore(url, token)
        self.url = self._store.url
        try:
            content = self._store.read(METADATA)
        except RunNotFound:
            raise RunNotFound(
                f"There is no run at {self.url!r}: give the folder `--out` named."
            ) from None
        except RunUnreachable:
            raise
        except OSError as error:
            raise _broken(self.url, error) from error
        self.attributes = attributes_in(content, self.url)
        self.commit = hashlib.sha256(content).hexdigest()[:16]
        """Changes whenever its attributes do, which hold its state and results."""
        self._done = self.attributes.get("state", {}).get("status") == "done"
        self._groups: dict[str, zarr.Group] = {}
        self._layer_arrays: dict[tuple[str, str], Any] = {}
        self._with_pictures: dict[str, bool] = {}
        self._kept = KeptArrays(KEPT_BYTES)

    @cached_property
    def _group(self) -> zarr.Group:
        """Opened where arrays are asked for: attributes alone take one request."""
        try:
            return self._store.zarr()
        except (RunNotFound, RunUnreachable):
            raise
        except (AssertionError, *_BREAKS) as error:  # asserted of a group that is none
            raise _broken(self.url, error) from error

    @property
    def kind(self) -> Literal["job", "study"]:
        """What was asked for: a network looked into, or several that were trained."""
        return "study" if self.attributes["spec"].get("kind") == "study" else "job"

    @property
    def name(self) -> str | None:
        """The one that was given to it."""
        name = self.attributes["spec"].get("name")
        return None if name is None else str(name)

    @cached_property
    def spec(self) -> JobSpec:
        """What a job asked for.

        Raises:
            RunNotFound: it is a study, which has no layers, units or hits.
        """
        self._require_job()
        return JobSpec.parse(self.attributes["spec"])

    def _require_job(self) -> None:
        if self.kind == "study":
            raise RunNotFound(
                f"{self.url!r} is a study of architectures: it has no layers, hits or images to "
                f"look at, but a table, `deconvoy show {self.url}` or Run.study() in code, and a "
                f"figure, `deconvoy figure {self.url} --analysis study`."
            )

    @cached_property
    def study_spec(self) -> StudySpec:
        """What a study asked for; of a job a sentence, as ``spec`` has it of a study."""
        if self.kind != "study":
            raise RunNotFound(f"{self.url!r} is no study of architectures: see Run.spec.")
        return StudySpec.parse(self.attributes["spec"])

    def study(self) -> Study:
        """The networks that were trained, and what became of them.

        Raises:
            RunNotFound: the run is no study, or has not finished it.
        """
        return study_of(self)

    @property
    def status(self) -> str:
        """``running``, ``done``, ``failed``, ``stopped``, or ``interrupted``: its driver was killed
        and resuming goes on."""
        status = str(self.attributes["state"]["status"])
        return "interrupted" if status == "running" and self._store.driver_died() else status

    @property
    def failure(self) -> str:
        """Why a failed run failed; empty where it did not, or nothing was written of it."""
        return str(self.attributes["state"].get("error", ""))

    @property
    def resumable(self) -> bool:
        """Whether ``deconvoy resume`` can help.  Of what only other images or weights would mend
        the failure says itself that it takes a new run; and no file holds a model object."""
        made_of_an_object = self.kind == "job" and self.spec.model.name.startswith("object/")
        if made_of_an_object or "start a new run" in self.failure:
            return False
        return self.status in ("stopped", "failed", "interrupted")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's outputs; empty where unknown."""
        return tuple(self.attributes["classes"])

    @property
    def outputs(self) -> int:
        """How many the model has."""
        return int(self.attributes["provenance"]["outputs"])

    @property
    def labels(self) -> str:
        """What the labels of hits are: ``true`` classes, or where the data carries none the
        ``predicted`` ones."""
        return str(self.attributes["labels"])

    @property
    def class_column(self) -> str:
        """Column of the images table that holds the labels of hits."""
        return "predicted" if self.labels == "predicted" else "label"

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """In execution order; of a study a sentence, as ``spec`` has it."""
        self._require_job()
        return tuple(self.attributes["layers"])

    def layer_group(self, layer: str) -> zarr.Group:
        """The Zarr group of a layer.

        Raises:
            RunNotFound: no such layer, or its scan is not done.
        """
        if layer not in self.layer_names:
            near = nearest(layer, self.layer_names)
            raise RunNotFound(f"The run {self.url!r} has no layer {layer!r}; {near}.")
        if layer in self._groups:
            return self._groups[layer]
        try:
            group = self._group[layer_path(layer)]
        except KeyError:
            raise RunNotFound(
                f"Layer {layer!r} of {self.url!r} has no results yet: the run is {self.status}."
            ) from None
        assert isinstance(group, zarr.Group)
        if self._done:
            self._groups[layer] = group
        return group

    def layer_array(self, layer: str, name: str) -> Any:
        """An array of a layer, unread; its metadata is read once, of a run that is done.

        Raises:
            RunNotFound: no such layer, or its scan is not done.
            RunUnreadable: no such array.
        """
        found = self._layer_arrays.get((layer, name))
        if found is None:
            found = array_of(self.layer_group(layer), name)
            if self._done:
                self._layer_arrays[layer, name] = found
        return found

    def hit_table(self, layer: str, name: str) -> np.ndarray:
        """A small table of a layer, whole, read only: ``score``, ``image``, ``position``, ``box``,
        ``window``, ``label``, ``density``, ``projected`` or ``scale``.

        Raises:
            RunNotFound: no such layer, or its scan is not done.
            RunUnreadable: no such table, or a broken one.
        """

        def read_it() -> np.ndarray:
            return np.asarray(read(self.layer_group(layer), name))

        return self._kept.get((layer, name), read_it) if self._done else read_it()

    def unit(self, layer: str, index: int) -> Unit:
        """One unit of a layer.

        Raises:
            RunNotFound: no such layer or unit.
        """
        units = len(self.hit_table(layer, "score"))
        if not 0 <= index < units:
            raise RunNotFound(
                f"Layer {layer!r} has units 0 to {units - 1}, so there is no unit {index}."
            )
        tables = {name: self.hit_table(layer, name)[index].copy() for name in HIT_TABLES}
        labels = tuple(map(self.class_name, self.hit_table(layer, "label")[index].tolist()))
        return Unit(layer, index, **tables, labels=labels, _run=self)

    def layers(self) -> pa.Table:
        """One row a layer: layer, op, units, height, width, receptive field, dead units, whether
        it was projected."""
        rows = []
        for name in self.layer_names:
            group = self.layer_group(name)
            a: dict[str, Any] = dict(group.attrs.asdict())
            field = a["receptive_field"]
            rows.append(
                {
                    "layer": name,
                    "op": a["op"],
                    "units": a["units"],
                    "height": a["height"],
                    "width": a["width"],
                    "field_size": field["nominal_size"],
                    "field_stride": field["stride"],
                    "field_offset": field["offset"],
                    "whole_image": field["whole_image"],
                    "dead_units": len(self.dead_units(name)),
                    "projected_units": len(self.projected_units(name)),
                }
            )
        return pa.Table.from_pylist(rows)

    def table(self, layer: str | None = None) -> pa.Table:
        """All hits, of one layer or of all: layer, unit, rank, score, image_id, uri, label, y, x,
        y0, x0, y1, x1.  Missing hits have no row."""
        names = [layer] if layer is not None else list(self.layer_names)
        return pa.concat_tables([hits_of(self, name) for name in names])

    def images(self) -> pa.Table:
        """All images: id, uri, label, width, height, predicted, probability, skipped."""
        self._require_job()
        if "results" not in self.attributes:  # more come with every shard
            return self._images_so_far()
        return self._images

    def images_of(self, ids: Int64[np.ndarray, " image"]) -> pa.Table:
        """Rows of the images table, one an id, in the order given; ids need not be dense."""
        images = self.images()
        return images.take(pa.array(np.searchsorted(images.column("id").to_numpy(), ids)))

    @cached_property
    def _images(self) -> pa.Table:
        return self._images_so_far()

    def _images_so_far(self) -> pa.Table:
        parts = [images_part(self._store, f"images/{name}") for name in self._store.names("images")]
        if "results" in self.attributes:  # the scan is done, so every image has its row
            rows, promised = sum(map(len, parts)), self.attributes["provenance"]["images"]
            if rows != promised:
                raise RunUnreadable(
                    f"Images tables of {self.url!r} are missing (images/ has {rows:,} of "
                    f"{promised:,} images): `deconvoy verify {self.url}` names the files; copy "
                    "them again from where they are whole, or make the run anew."
                )
        if not parts:
            raise RunNotFound(f"No images of {self.url!r} are scanned yet: it is {self.status}.")
        return pa.concat_tables(parts)

    def density(self, layer: str) -> Float64[np.ndarray, " unit"]:
        """Share of the images that activate each unit."""
        return self.hit_table(layer, "density")

    def dead_units(self, layer: str) -> list[int]:
        """Units that no image activates."""
        empty = self.hit_table(layer, "image")[:, 0] < 0
        units: list[int] = np.flatnonzero(empty & (self.density(layer) == 0)).tolist()
        return units

    def projected_units(self, layer: str) -> list[int]:
        """Units of a layer that have patches and projections."""
        projected = self.projected_flags(layer)
        return [] if projected is None else np.flatnonzero(projected).tolist()

    def projected_flags(self, layer: str) -> np.ndarray | None:
        """Whether each unit has pictures; None where the layer is not projected."""
        there = self._with_pictures.get(layer)
        if there is None:
            there = "projected" in self.layer_group(layer)
            if self._done:
                self._with_pictures[layer] = there
        return self.hit_table(layer, "projected") if there else None

    def output_name(self, layer: str, unit: int) -> str:
        """Class of a unit of the model's output; empty for other layers and unknown classes."""
        named = layer == "logits" and unit < len(self.classes)
        return self.classes[unit] if named else ""

    def examples(self, layer: str, kind: str) -> pa.Table:
        """Images kept besides the strongest: layer, unit, group, rank, score, image_id, uri, label.

        Args:
            kind: ``bottom``; ``class`` (the group is an output index); or ``band`` (the group is a
                quantile band of the unit's image maxima, 0 the weakest).

        Raises:
            RequestError: there is no such kind.
            RunNotFound: the top analysis did not ask for them.
        """
        return examples_of(self, layer, kind)

    def outliers(self, layer: str) -> pa.Table:
        """Images left out of a layer's hits: layer, rank, norm, median, image_id, uri, label.

        The norm is the Euclidean one of the image maxima of all units; the median is that of all
        images, to 2 %.

        Raises:
            RunNotFound: the top analysis leaves none out.
        """
        return outliers_of(self, layer)

    def projected_told(self, layer: str | None = None) -> str:
        """Which units of a layer are projected, and how the others would be, for people.

        Args:
            layer: none: of a run without any projection.
        """
        if self.status != "done":
            return f"it was not projected yet, since the run is {self.status}."
        if layer is None:
            if self.spec.projection is None:
                return "its analyses name no projection."
            return "`deconvoy plan` of its spec tells of each layer why not."
        units = self.projected_units(layer)
        shown = f"{', '.join(map(str, units[:8]))}{', …' if len(units) > 8 else ''}"
        there = f"only units {shown} were projected" if units else "its layer was not projected"
        return f"{there}. analyses.projection of the spec says which: its layers, and its units."

    def class_name(self, label: int | None) -> str:
        """Name of an output; empty for None and ``MISSING_LABEL``."""
        if label is None or label == MISSING_LABEL:
            return ""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    def top1(self) -> float | None:
        """Share of labelled images whose most probable class is their label."""
        images = self.images().filter(pc.is_valid(pc.field("label")))
        images = images.filter(pc.is_valid(pc.field("predicted")))
        if not len(images):
            return None
        right = pc.equal(images.column("label"), images.column("predicted"))
        return float(pc.mean(right.cast(pa.float64())).as_py())

    def group_at(self, path: str) -> zarr.Group | None:
        """A group below the run; None where there is none."""
        found = self._group.get(path)
        return found if isinstance(found, zarr.Group) else None

    def occlusion(self, image: int | str) -> Occlusion:
        """An image under a grey square at every position, by its id or uri.

        Raises:
            RunNotFound: the run has no occlusion, or not of this image.
        """
        return occlusion_of(self, image)

    def occluded(self) -> pa.Table:
        """The images a square was slid over: image_id, uri, target, probability, lowest, y, x."""
        return self._occluded if self._done else occluded(self)

    @cached_property
    def _occluded(self) -> pa.Table:
        return occluded(self)

    def correspondence(self) -> Correspondence:
        """How alike the images change in every layer when the same part of each is covered.

        Raises:
            RunNotFound: the run has no such analysis, or has not finished it.
        """
        return correspondence_of(self)

    def evolution(self, layer: str) -> Evolution:
        """What each unit of a layer saw at every checkpoint of training, and how early it settled.

        Raises:
            RunNotFound: the run has no such analysis, or not of this layer.
        """
        return evolution_of(self, layer)

    def probe(self) -> Probe:
        """How well linear classifiers tell other classes by the features of each layer.

        Raises:
            RunNotFound: the run has no such analysis, or has not finished it.
        """
        return probe_of(self)

    def invariance(self) -> Invariance:
        """Images shifted, scaled and turned, and how far that moves the features of every layer.

        Raises:
            RunNotFound: the run has no such analysis.
        """
        return invariance_of(self)

    def figure(self, layer: str, units: Sequence[int] | None = None, **look: Any) -> Image.Image:
        """Fig. 2 of a layer: of its projected units the first ``FIGURE_UNITS``, or those named."""
        if units is None:
            units = self.projected_units(layer)[:FIGURE_UNITS]
        if not len(units):
            raise RunNotFound(
                f"Layer {layer!r} of {self.url!r} has no projections: {self.projected_told(layer)}"
            )
        return figure2([self.unit(layer, unit).pictures for unit in units], **look)

    def look(self, layer: str) -> dict[str, Any]:
        """How pictures of a layer are best drawn, as keywords of ``figure``.

        Where the pictures show half of the image's side or more, most of a tile is grey unless it
        is zoomed to what carries signal, and that is smoothed.
        """
        field: Any = self.layer_group(layer).attrs["receptive_field"]
        side = self.attributes["provenance"]["transform"]["crop"]
        deep = bool(field["whole_image"] or 2 * min(field["size"]) >= side)
        return {"zoom": deep, "sigma": 1.0 if deep else 0.0}

    def xarray(self, path: str) -> Any:
        """A group's arrays as a lazy ``xarray.Dataset`` with named dims.

        Args:
            path: ``layers/<name>``, for example.
        """
        try:
            import xarray
        except ImportError:
            raise MissingExtra("xarray", "Run.xarray") from None
        kind, _, layer = path.partition("/")
        group = layer_path(layer) if kind == "layers" else path
        return xarray.open_zarr(self._store.zarr_store(), group=group, consolidated=False)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from deconvoy.markup import of_run

        return of_run(self)

    def __repr__(self) -> str:
        layers = f"{len(self.attributes['layers'])} layers"
        return f"Run({self.url!r}, {self.status}, {'study' if self.kind == 'study' else layers})"


def open(url: str | os.PathLike[str], token: str | None = None) -> Run:
    """Open a run: a folder, ``s3://bucket/prefix``, or ``http(s)://host/v1/runs/ID``.

    Args:
        token: for a service; default: ``DECONVOY_TOKEN``, or that of the service started on this
            machine.

    Raises:
        RunNotFound: nothing there.
        RunUnreadable: no run, or one of another format.
        RunUnreachable: a bucket or a service that does not answer.
        RequestError: a URL of no kind that is supported, or a token that the service refuses.
    """
    return Run(url, token)
