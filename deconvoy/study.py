"""What became of several architectures that were trained alike: the paper's Table 3, and a look at
their first layers.

Zeiler & Fergus (2013, arXiv:1311.2901), section 5 and Table 3 for what removed or resized layers
cost; section 4.1 and Fig. 6 for the filters of the first layer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from numpy import ndarray

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound, RunUnreadable
from deconvoy.schema import STUDY_GROUP, first_layer_path

if TYPE_CHECKING:
    from deconvoy.run import Run

BANDS = (1 / 6, 1 / 3)
"""Where the frequencies of a filter are cut into low, middle and high ones, in cycles a pixel; half
a cycle is the highest there is along a row."""

AT_BOUND = 0.999
"""Of the bound on the root mean square: a filter that was scaled back to it lies just below."""


@dataclass(frozen=True)
class FirstLayer:
    """The filters that see the image, of one network; the first axis is its repeats."""

    filter: Float32[ndarray, "repeat unit y x channel"]
    rms: Float64[ndarray, "repeat unit"]
    """Root mean square of each filter."""
    peak: Float32[ndarray, "repeat unit"]
    """Strongest activation over the validation images, rectified."""
    frequency: Float64[ndarray, "repeat unit band"]
    """Share of the filter's power at low, middle and high frequencies (``BANDS``)."""

    def of_repeat(self, repeat: int) -> Float32[ndarray, "unit y x channel"]:
        """The filters of one training.

        Raises:
            RunNotFound: there are not so many.
        """
        if not 0 <= repeat < len(self.filter):
            raise RunNotFound(
                f"The study has no repeat {repeat}: repeats are 0 to {len(self.filter) - 1}."
            )
        own: Float32[ndarray, "unit y x channel"] = self.filter[repeat]
        return own

    @property
    def known(self) -> int:
        """Filters of all repeats that came to their end."""
        return int(np.isfinite(self.rms).sum())

    @property
    def dead(self) -> int:
        """Those of them that no validation image excites."""
        return int((self.peak <= 0).sum())


@dataclass(frozen=True)
class Study:
    """Several networks, each trained once or more often."""

    networks: tuple[str, ...]
    """What each is; the first is the base."""
    arguments: tuple[dict[str, Any], ...]
    """Of the factory, by network."""
    classes: tuple[str, ...]
    parameters: Int64[ndarray, " network"]
    loss: Float64[ndarray, "network repeat epoch"]
    """Mean cross-entropy of the training images while the weights moved, with dropout."""
    running_error: Float64[ndarray, "network repeat epoch"]
    """Share of the training images told wrong, under the same conditions."""
    validation_error: Float64[ndarray, "network repeat epoch top"]
    """Share of the validation images whose class is not the first, or among the first five."""
    training_error: Float64[ndarray, "network repeat top"]
    """The same of the training images, at the end."""
    diverged: Int32[ndarray, "network repeat"]
    """The epoch, from 1, in which loss or weights were not finite any more; 0 if they always
    were."""
    validation_images: int
    """That were judged by."""
    max_filter_rms: float | None
    first_layers: tuple[FirstLayer, ...]

    @property
    def finished(self) -> Bool[ndarray, "network repeat"]:
        """Whether a training came to its end; all numbers of others are NaN from some epoch on."""
        ended: Bool[ndarray, "network repeat"] = np.isfinite(self.training_error[:, :, 0])
        return ended

    def lacking(self, network: int) -> str | None:
        """Why a network has no numbers, in a word or two; None where a repeat came to its end."""
        if self.finished[network].any():
            return None
        return "diverged" if self.diverged[network].any() else "not trained yet"

    def first_layer(self, network: int) -> FirstLayer:
        """That of one network.

        Raises:
            RunNotFound: there are not so many.
        """
        if not 0 <= network < len(self.networks):
            raise RunNotFound(
                f"The study has no network {network}: networks are 0 to {len(self.networks) - 1}."
            )
        return self.first_layers[network]

    def table(self) -> pa.Table:
        """One row a network: network, parameters, repeats (that came to their end), diverged
        (repeats whose loss was not finite any more); training_top1, training_top5, validation_top1,
        validation_top5: errors at the end, 0–1, means over the repeats; deviation (of
        validation_top1, over the repeats); and of the filters of the first layer: filters, dead,
        at_bound (whose root mean square the bound holds back; null where there is none), low,
        middle, high (mean shares of their power).  Of a network of which no repeat came to its end
        all but the first four are null."""
        rows = [self._row(network) for network in range(len(self.networks))]
        return pa.Table.from_pylist(rows, _SCHEMA)

    def _row(self, network: int) -> dict[str, Any]:
        ended, first = self.finished[network], self.first_layers[network]
        row = {
            "network": self.networks[network],
            "parameters": int(self.parameters[network]),
            "repeats": int(ended.sum()),
            "diverged": int((self.diverged[network] > 0).sum()),
        }
        if not ended.any():
            return row
        training = self.training_error[network][ended].mean(0)
        each = self.validation_error[network][ended, -1]
        validation, bound = each.mean(0), self.max_filter_rms
        held = None if bound is None else int((first.rms >= AT_BOUND * bound).sum())
        low, middle, high = np.nanmean(first.frequency, (0, 1))
        return row | {
            "training_top1": training[0],
            "training_top5": training[1],
            "validation_top1": validation[0],
            "validation_top5": validation[1],
            "deviation": each[:, 0].std(),
            "filters": first.known,
            "dead": first.dead,
            "at_bound": held,
            "low": low,
            "middle": middle,
            "high": high,
        }

    def curves(self) -> pa.Table:
        """One row a network and epoch: network, epoch (from 1), loss, running_error,
        validation_top1, validation_top5; means over the repeats that have come so far, null where
        none has."""
        loss, running, judged = map(
            over_repeats, (self.loss, self.running_error, self.validation_error)
        )
        networks, epochs = loss.shape
        columns = {
            "network": np.repeat(self.networks, epochs),
            "epoch": np.tile(np.arange(1, epochs + 1), networks),
            "loss": loss.ravel(),
            "running_error": running.ravel(),
            "validation_top1": judged[:, :, 0].ravel(),
            "validation_top5": judged[:, :, 1].ravel(),
        }
        return pa.table(
            {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        )


def over_repeats(
    values: Float[ndarray, "network repeat *rest"],
) -> Float64[ndarray, "network *rest"]:
    """Means over the repeats that have a number; NaN where none has."""
    known = np.isfinite(values)
    count = known.sum(1)
    nothing = np.full(count.shape, np.nan)
    return np.asarray(
        np.divide(np.where(known, values, 0).sum(1), count, out=nothing, where=count > 0)
    )


_ERRORS = ("training_top1", "training_top5", "validation_top1", "validation_top5", "deviation")

_SCHEMA = pa.schema(
    [
        ("network", pa.string()),
        ("parameters", pa.int64()),
        ("repeats", pa.int64()),
        ("diverged", pa.int64()),
        *((name, pa.float64()) for name in _ERRORS),
        ("filters", pa.int64()),
        ("dead", pa.int64()),
        ("at_bound", pa.int64()),
        *((name, pa.float64()) for name in ("low", "middle", "high")),
    ]
)


def study_of(run: "Run") -> Study:
    """That of a run.

    Raises:
        RunNotFound: the run is none, or no network has come to its end.
        RunUnreadable: a part of it is not there.
    """
    if run.kind != "study":
        raise RunNotFound(
            f"The run {run.url!r} is no study of architectures: `kind: study` in a spec of its own "
            "asks for one, as in examples/study.yaml."
        )
    group = run.group_at(STUDY_GROUP)
    if group is None or "networks" not in group.attrs:
        raise RunNotFound(f"The study {run.url!r} has no results yet: it is {run.status}.")
    told: dict[str, Any] = dict(group.attrs.asdict())
    networks, repeats = len(told["networks"]), int(told["repeats"])

    def by_network(name: str) -> ndarray:
        values: ndarray = read(group, name)
        return values.reshape(networks, repeats, *values.shape[1:])

    layers = []
    for network in range(networks):
        own = run.group_at(first_layer_path(network))
        if own is None:
            raise RunUnreadable(
                f"The study {run.url!r} lacks {first_layer_path(network)}: `deconvoy verify "
                f"{run.url}` tells what is missing."
            )
        names = ("filter", "rms", "peak", "frequency")
        layers.append(FirstLayer(**{name: read(own, name) for name in names}))
    found = Study(
        networks=tuple(told["networks"]),
        arguments=tuple(told["arguments"]),
        classes=tuple(run.classes),
        parameters=np.array(told["parameters"], np.int64),
        validation_images=run.attributes["provenance"]["validation_images"],
        max_filter_rms=told["max_filter_rms"],
        first_layers=tuple(layers),
        **{
            name: by_network(name)
            for name in ("loss", "running_error", "validation_error", "training_error", "diverged")
        },
    )
    if not found.finished.any() and not found.diverged.any():
        raise RunNotFound(f"The study {run.url!r} has no results yet: it is {run.status}.")
    return found
