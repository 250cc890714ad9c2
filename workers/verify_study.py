"""Verify a study: that all is there that its markers promise, and that its weights err as it says.

That the bytes are those that were written is checked with all other chunks.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvoy.run import Run
from deconvoy.schema import (
    FIRST_LAYER_ARRAYS,
    STUDY_ARRAYS,
    STUDY_GROUP,
    checkpoint_path,
    first_layer_path,
)
from deconvoy.study import Study
from deconvoy.study_spec import StudySpec
from workers.checksums import Chunks, Fault
from workers.parts import marker_path, number_of

if TYPE_CHECKING:
    from workers.replay_study import Judged

MARKERS = "ledger/study"

TIPPED = 2
"""Images that another machine's rounding may tell otherwise."""


class StudyGroup:
    """The group ``study``: a row a training."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run = chunks, chunks.run
        self.spec = StudySpec.parse(attributes["spec"])
        self.done = attributes["state"]["status"] == "done"
        self.files = 0
        """Markers and weights read."""
        self.trained: dict[int, tuple[int, int]] = {}
        """Network and repeat of every row that a marker promises."""
        self.weights: dict[str, str] = {}
        """sha256 of the weights that markers promise, by path."""

    def faults(self) -> Iterator[Fault]:
        names = [name for name in self.run.names(MARKERS) if name.startswith("item-")]
        if not names and not self.done:
            return
        absent = list(self._absent())
        yield from absent
        if absent:
            return
        for name in names:
            yield from self._marker(f"{MARKERS}/{name}")
        rows = len(self.spec.titles) * self.spec.repeats
        for row in sorted(set(range(rows)) - set(self.trained)) if self.done else ():
            yield Fault(marker_path(f"study/item-{row:06d}"), "is missing")
        yield from self._rows()
        yield from self._weights()

    def _absent(self) -> Iterator[Fault]:
        groups = {STUDY_GROUP: STUDY_ARRAYS}
        for network in range(len(self.spec.titles)):
            groups[first_layer_path(network)] = FIRST_LAYER_ARRAYS
        for group, fields in groups.items():
            places = [f"{group}/zarr.json", *(f"{group}/{f.name}/zarr.json" for f in fields)]
            yield from (Fault(path, "is missing") for path in places if not self.run.exists(path))

    def _marker(self, path: str) -> Iterator[Fault]:
        self.files += 1
        try:
            fields = json.loads(self.run.read(path))
            self.trained[number_of(path)] = int(fields["network"]), int(fields["repeat"])
            self.weights.update(dict(fields["weights"]))
        except (ValueError, KeyError, TypeError) as error:
            yield Fault(path, f"cannot be read: {error}")

    def _rows(self) -> Iterator[Fault]:
        for row, (network, repeat) in self.trained.items():
            for group, fields, place in (
                (STUDY_GROUP, STUDY_ARRAYS, row),
                (first_layer_path(network), FIRST_LAYER_ARRAYS, repeat),
            ):
                for field in fields:
                    path = f"{group}/{field.name}"
                    for missing in self.chunks.missing.get(path, ()):
                        if missing[0] == place:
                            yield self.chunks.absent_at(path, missing)
        diverged = self.chunks.array_at(f"{STUDY_GROUP}/diverged")
        for field in STUDY_ARRAYS:
            found = self.chunks.array_at(f"{STUDY_GROUP}/{field.name}")
            if found is None or diverged is None:
                continue
            for row in self.trained:
                if row < len(diverged) and diverged[row]:
                    continue  # what it has no numbers of is told by the epoch
                if row >= len(found) or not np.isfinite(found[row]).all():
                    yield Fault(f"{STUDY_GROUP}/{field.name}", f"has no numbers in row {row}")

    def _weights(self) -> Iterator[Fault]:
        for path, digest in sorted(self.weights.items()):
            self.files += 1
            if not self.run.exists(path):
                yield Fault(path, "is missing, but the ledger promises it")
            elif hashlib.sha256(self.run.read(path)).hexdigest() != digest:
                yield Fault(path, "is not what was written: its sha256 differs from the ledger's")


def recomputed(url: str, sample: int) -> tuple[int, list[Fault]]:
    """Judge networks again by the weights that are kept; how many, and those that err otherwise.

    Args:
        sample: trainings, at most.

    Raises:
        RequestError: the images of the study are not there any more.
    """
    from workers.replay_study import judge_again

    study = Run(url).study()
    faults, trainings = list[Fault](), 0
    for judged in judge_again(url, sample, study.finished):
        trainings += 1
        faults += _differing(study, judged)
    return trainings, faults


def _differing(study: Study, judged: "Judged") -> Iterator[Fault]:
    """What the study says of a training that its weights do not."""
    network, repeat = judged.network, judged.repeat
    place = checkpoint_path(network, repeat, study.loss.shape[2])
    for found, said, count, images in (
        (judged.validation, study.validation_error[network, repeat, -1], judged.counts[1],
         "validation"),
        (judged.training, study.training_error[network, repeat], judged.counts[0], "training"),
    ):  # fmt: skip
        wrong = np.rint(np.stack([found, said]) * count).astype(int)
        if np.abs(wrong[0] - wrong[1]).max() > TIPPED:
            yield Fault(
                place,
                f"tells {wrong[0, 0]:,} of {count:,} {images} images wrong (top-5: "
                f"{wrong[0, 1]:,}), but the study says {wrong[1, 0]:,} ({wrong[1, 1]:,})",
            )
    layer = study.first_layers[network]
    for name, same in (
        ("filter", np.array_equal(judged.filter, layer.filter[repeat])),
        ("rms", np.allclose(judged.rms, layer.rms[repeat], rtol=1e-6)),
        ("frequency", np.allclose(judged.frequency, layer.frequency[repeat], equal_nan=True)),
        ("peak", np.allclose(judged.peak, layer.peak[repeat], rtol=1e-3, atol=1e-4)),
    ):
        if not same:
            yield Fault(
                f"{first_layer_path(network)}/{name}",
                f"is not that of the weights in row {repeat}",
            )
